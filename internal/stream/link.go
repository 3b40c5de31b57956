package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

// link is what a Forwarder knows of its records in Redis. Only Run uses it.
type link struct {
	session string         // "": none that is good
	doubt   bool           // what Redis holds must be found out before anything else
	sent    spool.Position // place behind the last record that Redis has
	upto    spool.Position // the same, with a call whose answer did not come
	high    spool.Position // the highest place that was ever sent
	flight  []flight       // sent and not acknowledged, oldest first

	batch    spool.Batch // read and not sent
	full     bool        // the stream had no room at the last attempt to send
	waiting  bool        // for the next look, because of that
	nextLook time.Time
}

// flight is one call that sent records.
type flight struct {
	last    entryID        // of its last entry, or one behind that
	to      spool.Position // place behind its last record
	records int
	at      time.Time
}

// errMoved means that Redis is not where it was left: it lost something, or
// somebody else uses the writer's name.
var errMoved = errors.New("what was last sent is not what Redis holds: it restarted with a loss, or another process sends under the same writer's name")

// open finds out where Redis is, and lets the source go on from there.
func (f *Forwarder) open(ctx context.Context) error {
	acked := f.cfg.Source.Acked()
	args := []any{f.cfg.Writer, f.session, newSession(), placeString(acked), placeString(f.upto)}
	answer, err := f.call(ctx, openScript, f.keysWithGroups(), f.withGroups(args)...)
	if err != nil {
		return fmt.Errorf("take up the session: %w", err)
	}
	session, at := parseSession(answer.text(0) + " " + answer.text(1))
	last, err := parseID(answer.text(2))
	if err != nil || session == "" {
		return fmt.Errorf("take up the session: Redis answers %q", answer)
	}
	switch {
	case session != f.session:
		if f.high != (spool.Position{}) {
			f.m.lost.Inc()
			f.log.Warn("Redis lost records or is another one: all that is not acknowledged is sent again", "from", acked)
		}
		f.flight = nil
	case at.Before(f.sent):
		f.m.lost.Inc()
		f.log.Warn("Redis lost its latest records: they are sent again", "from", at, "had", f.sent)
	}
	f.session, f.sent, f.upto = session, at, at
	for len(f.flight) > 0 && at.Before(f.flight[len(f.flight)-1].to) {
		f.flight = f.flight[:len(f.flight)-1]
	}
	if acked.Before(at) && (len(f.flight) == 0 || f.flight[len(f.flight)-1].to.Before(at)) {
		// A call whose answer was lost did arrive. How many records it had is
		// not worth remembering.
		f.flight = append(f.flight, flight{last: last, to: at, at: time.Now()})
	}
	f.batch, f.full, f.waiting, f.doubt = spool.Batch{}, false, false, false
	f.cfg.Source.Seek(at)
	return nil
}

// send adds the batch to the stream, if it has room.
func (f *Forwarder) send(ctx context.Context) error {
	args := make([]any, 0, 4+2*len(f.batch.Payloads))
	args = append(args, f.cfg.Writer, f.session+" "+placeString(f.sent), f.session+" "+placeString(f.batch.To), f.cfg.MaxLen)
	o := origin{writer: f.cfg.Writer, session: f.session, from: f.sent}
	again := 0
	var to spool.Position
	for behind, p := range f.batch.All() {
		o.to = behind
		args = append(args, p, o.appendTo(make([]byte, 0, 96)))
		o.from, to = behind, behind
		if !f.high.Before(behind) {
			again++
		}
	}
	f.doubt, f.upto = true, to
	answer, err := f.call(ctx, sendScript, []string{f.key().sent(), f.key().stream()}, args...)
	if err != nil {
		if strings.HasPrefix(err.Error(), "OOM") {
			f.m.refused.WithLabelValues(reasonMemory).Inc()
		}
		return fmt.Errorf("add %d records: %w", len(f.batch.Payloads), err)
	}
	switch answer.text(0) {
	case "ok":
	case "full":
		f.doubt, f.upto, f.full, f.waiting = false, f.sent, true, true
		f.m.refused.WithLabelValues(reasonFull).Inc()
		f.m.length.Set(float64(answer.number(1)))
		return nil
	default:
		return errMoved
	}
	last, err := parseID(answer.text(2))
	if err != nil {
		return fmt.Errorf("add records: %w", err)
	}
	n := len(f.batch.Payloads)
	f.doubt, f.full, f.sent = false, false, to
	f.flight = append(f.flight, flight{last: last, to: to, records: n, at: time.Now()})
	f.m.sent.Add(float64(n))
	f.m.resent.Add(float64(again))
	f.m.length.Set(float64(answer.number(1)))
	if f.high.Before(to) {
		f.high = to
	}
	f.batch = spool.Batch{}
	return nil
}

// look learns how far the groups are and tells the source.
func (f *Forwarder) look(ctx context.Context) error {
	f.nextLook = time.Now().Add(f.cfg.Every)
	answer, err := f.call(ctx, lookScript, f.keysWithGroups(), f.withGroups([]any{f.cfg.Writer})...)
	if err != nil {
		f.doubt = true
		return fmt.Errorf("look how far the groups are: %w", err)
	}
	f.waiting = false
	f.m.length.Set(float64(answer.number(1)))
	if session, at := parseSession(answer.text(0)); session != f.session || at != f.sent {
		f.doubt = true
		return errMoved
	}
	low := f.sent // place before which every group is done
	for i := range f.cfg.Groups {
		at, err := f.progress(answer.text(2+2*i), answer.text(3+2*i))
		if err != nil {
			f.session, f.doubt = "", true
			return fmt.Errorf("group %s: %w", f.cfg.Groups[i], err)
		}
		if at.Before(low) {
			low = at
		}
	}
	return f.free(low)
}

// progress returns the place before which a group has acknowledged all. Every
// entry below the id that the group still needs is acknowledged or gone; that
// none is gone shows in the place.
func (f *Forwarder) progress(acked, needs string) (spool.Position, error) {
	session, at := parseSession(acked)
	if session != f.session {
		return at, errMoved
	}
	var low entryID
	if needs != "" {
		var err error
		if low, err = parseID(needs); err != nil {
			return at, err
		}
	}
	for _, x := range f.flight {
		if needs != "" && !x.last.before(low) {
			break
		}
		if at.Before(x.to) {
			return at, fmt.Errorf("records before %v are gone from the stream and were never acknowledged; see to it that Redis does not evict and nobody trims: %w", x.to, errMoved)
		}
	}
	return at, nil
}

// free acknowledges at the source all that lies before low.
func (f *Forwarder) free(low spool.Position) error {
	if f.cfg.Source.Acked().Before(low) {
		if err := f.cfg.Source.Ack(low); err != nil {
			return err
		}
	}
	n := 0
	for n < len(f.flight) && !low.Before(f.flight[n].to) {
		f.m.acked.Add(float64(f.flight[n].records))
		n++
	}
	f.flight = append(f.flight[:0], f.flight[n:]...)
	if len(f.flight) == 0 {
		f.m.age.Set(0)
	} else {
		f.m.age.Set(time.Since(f.flight[0].at).Seconds())
	}
	return nil
}

func (f *Forwarder) key() keys { return keys(f.cfg.Stream) }

func (f *Forwarder) keysWithGroups() []string {
	all := []string{f.key().sent(), f.key().stream()}
	for _, g := range f.cfg.Groups {
		all = append(all, f.key().acked(g))
	}
	return all
}

func (f *Forwarder) withGroups(args []any) []any {
	for _, g := range f.cfg.Groups {
		args = append(args, g)
	}
	return args
}
