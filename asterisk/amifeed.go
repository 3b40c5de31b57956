package asterisk

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

const (
	amiLinger  = 15 * time.Second       // that AMI is heard after a Run has ended
	amiQuiet   = 200 * time.Millisecond // after the last row of a channel; Asterisk sends them within one
	amiRecent  = 4096                   // rows remembered, for channels whose rows come apart
	amiWaiting = 65536                  // records that wait for a Run
	amiBackoff = 5 * time.Second        // between attempts to connect, at most
)

// amiFeed hears AMI and keeps what it tells until a Run takes it. It lives
// longer than a Run: AMI may well be heard while ARI is not.
type amiFeed struct {
	cfg AMI
	identity
	log *slog.Logger
	m   *metrics

	mu      sync.Mutex
	cancel  context.CancelFunc // nil: it does not run
	done    chan struct{}
	linger  *time.Timer
	waiting []cdr.Event
	wake    chan struct{} // capacity 1
}

func newAMIFeed(cfg AMI, id identity, log *slog.Logger, m *metrics) *amiFeed {
	return &amiFeed{cfg: cfg, identity: id, log: log, m: m, wake: make(chan struct{}, 1)}
}

// resume starts the feed, or keeps one that lingers.
func (f *amiFeed) resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.linger != nil && f.linger.Stop() {
		f.linger = nil
		return
	}
	f.linger = nil
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	f.cancel, f.done = cancel, done
	go func() {
		defer close(done)
		f.run(ctx)
	}()
}

// pause emits what is waiting. If ctx has ended it also stops the feed, else
// the feed goes on for amiLinger.
func (f *amiFeed) pause(ctx context.Context, emit func(cdr.Event)) {
	f.mu.Lock()
	cancel, done := f.cancel, f.done
	if ctx.Err() == nil {
		f.linger = time.AfterFunc(amiLinger, cancel)
	}
	f.mu.Unlock()
	if ctx.Err() != nil {
		cancel()
		<-done
	}
	for _, ev := range f.take() {
		emit(ev)
	}
}

// stop ends the feed at once. It may be called on nil, and not during a Run.
func (f *amiFeed) stop() {
	if f == nil {
		return
	}
	f.mu.Lock()
	cancel, done := f.cancel, f.done
	f.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

// ready is signalled when take has something. It may be called on nil.
func (f *amiFeed) ready() <-chan struct{} {
	if f == nil {
		return nil
	}
	return f.wake
}

// take returns what was heard since the last take. It may be called on nil.
func (f *amiFeed) take() []cdr.Event {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.waiting
	f.waiting = nil
	return out
}

func (f *amiFeed) put(ev cdr.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.waiting) >= amiWaiting {
		f.m.amiDropped.Inc()
		return
	}
	f.waiting = append(f.waiting, ev)
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run connects, again and again, until ctx ends.
func (f *amiFeed) run(ctx context.Context) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, amiBackoff
	last := ""
	for ctx.Err() == nil {
		heard, err := f.once(ctx)
		f.m.amiConnected.Set(0)
		if ctx.Err() != nil {
			return
		}
		f.m.amiLost.Inc()
		level := slog.LevelDebug
		if heard || err.Error() != last {
			level = slog.LevelWarn
		}
		last = err.Error()
		f.log.Log(ctx, level, "AMI is not heard; ARI is not concerned", "error", err)
		if heard {
			wait.Reset()
		}
		t := time.NewTimer(min(wait.NextBackOff(), amiBackoff))
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// once hears one connection.
func (f *amiFeed) once(ctx context.Context) (heard bool, err error) {
	c, err := dialAMI(ctx, f.cfg)
	if err != nil {
		return false, err
	}
	defer c.close()
	f.m.amiConnected.Set(1)
	ping := time.NewTicker(f.cfg.Ping)
	defer ping.Stop()
	quiet := time.NewTimer(amiQuiet)
	defer quiet.Stop()
	var rows assembler
	defer func() { f.flush(&rows) }()
	for {
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case <-ping.C:
			if err := c.ping(); err != nil {
				return true, err
			}
		case <-quiet.C:
			f.flush(&rows)
		case m, ok := <-c.messages:
			if !ok {
				return true, c.err
			}
			if m["Event"] == "Cdr" {
				f.row(m, &rows)
				quiet.Reset(amiQuiet)
			}
		}
	}
}

// row takes one Cdr event.
func (f *amiFeed) row(m message, rows *assembler) {
	f.m.amiRows.Inc()
	r, err := decodeRow(m)
	switch {
	case errors.Is(err, errNoLeg):
		f.m.ignored.WithLabelValues("no leg").Inc()
		return
	case err != nil:
		f.m.ignored.WithLabelValues("undecodable").Inc()
		f.log.Warn("Cdr event of AMI left out", "error", err)
		return
	}
	if rows.channel != "" && rows.channel != r.uniqueID {
		f.flush(rows)
	}
	rows.add(r)
}

// flush hands on the record of the channel whose rows came last.
func (f *amiFeed) flush(rows *assembler) {
	if of := rows.finish(); len(of) > 0 {
		r := f.merge(of, f.cfg.Location)
		f.put(cdr.Event{Type: cdr.Closed, Time: of[len(of)-1].sent, Record: r})
	}
}

// assembler collects the rows of one channel, which come together. It
// remembers those of other channels for a while: rows that come later, as of a
// channel whose CDR was forked, are joined to them.
type assembler struct {
	channel string
	rows    map[string][]row
	order   []string // UniqueIDs of rows, oldest first
}

func (a *assembler) add(r row) {
	if a.rows == nil {
		a.rows = map[string][]row{}
	}
	a.channel = r.uniqueID
	if len(a.rows[r.uniqueID]) < amiRecent {
		a.rows[r.uniqueID] = append(a.rows[r.uniqueID], r)
		a.order = append(a.order, r.uniqueID)
	}
	for len(a.order) > amiRecent {
		if a.order[0] != a.channel {
			delete(a.rows, a.order[0])
		}
		a.order = a.order[1:]
	}
}

// finish returns the rows of the channel that was collected last; nil if
// nothing was added since.
func (a *assembler) finish() []row {
	rows := a.rows[a.channel]
	if a.channel == "" {
		return nil
	}
	a.channel = ""
	return rows
}
