package eventbridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// item is what travels from a node's reader to the recorder: an event, or the
// mark that the connection was lost.
type item struct {
	event  cdr.Event
	lost   string // reason; not empty: the node is not heard from here on
	size   int
	at     time.Time     // when it was received, by our clock; zero: not known
	offset time.Duration // of the node's clock then, as clock knows it
	timed  bool          // offset is known
}

// errQueueLimit and errSilence end a Run from our side.
var (
	errQueueLimit = errors.New("queue limit reached")
	errSilence    = errors.New("nothing heard")
)

// feed is one node: its connection and the queue behind it. The queue is
// written by the node's reader and emptied by the recorder.
type feed struct {
	node    bulkhead.NodeID
	log     *slog.Logger
	metrics *metrics
	wake    chan<- struct{}

	maxEvents, maxBytes int
	silence             time.Duration

	mu        sync.Mutex
	queue     []item
	cut       bool   // a part of queue's array was taken
	spare     []item // an empty one that was a queue before; nil: none
	bytes     int
	room      chan struct{} // closed when the queue is at most half full; nil: nobody waits
	wanted    bool
	connected bool
	since     time.Time // of connected, by our clock
	heard     time.Time // last event, by our clock; zero: never
	overflow  context.CancelCauseFunc
	discarded int // events of this connection, since its queue was full
	dropped   uint64
	lastErr   string
	clock     clock
}

func newFeed(node bulkhead.NodeID, b *Bridge) *feed {
	return &feed{
		node: node, log: b.log.With("node", node), metrics: b.metrics, wake: b.rec.wake,
		maxEvents: b.cfg.QueueEvents, maxBytes: b.cfg.QueueBytes, silence: b.cfg.Silence,
		since: time.Now(),
	}
}

func (f *feed) setWanted(w bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w && !f.wanted {
		f.since = time.Now()
	}
	f.wanted = w
}

// hear connects, again and again, until ctx ends.
func (f *feed) hear(ctx context.Context, s Source) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = reconnectMin, reconnectMax
	for ctx.Err() == nil {
		wasConnected, err := f.once(ctx, s)
		if ctx.Err() != nil {
			return // whoever ended ctx decides whether that is a loss
		}
		if wasConnected {
			wait.Reset()
		}
		reason := "connection lost: " + brief(err)
		f.log.Log(ctx, f.level(wasConnected, reason), "event source is not heard", "reason", reason)
		f.lost(reason)
		if !f.awaitRoom(ctx) {
			return
		}
		t := time.NewTimer(min(wait.NextBackOff(), reconnectMax))
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// level is Warn when something changed, so that a node that stays away does
// not fill the log.
func (f *feed) level(wasConnected bool, reason string) slog.Level {
	f.mu.Lock()
	defer f.mu.Unlock()
	if wasConnected || reason != f.lastErr {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// once runs the source for one connection. It ends the connection itself when
// nothing is heard for too long or the queue is full.
func (f *feed) once(ctx context.Context, s Source) (wasConnected bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f.mu.Lock()
	f.overflow, f.discarded = cancel, 0
	f.mu.Unlock()
	quiet := time.AfterFunc(f.silence, func() {
		cancel(fmt.Errorf("%w for %v", errSilence, f.silence))
	})
	defer quiet.Stop()

	err = s.Run(ctx, func(ev cdr.Event) {
		quiet.Reset(f.silence)
		f.emit(ev)
	})
	if cause := context.Cause(ctx); errors.Is(cause, errSilence) || errors.Is(cause, errQueueLimit) {
		err = cause // what Run made of it says less
	} else if err == nil {
		err = errors.New("source ended")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.discarded > 0 {
		err = fmt.Errorf("%w, %d events discarded", err, f.discarded)
	}
	return f.connected, err
}

// emit queues an event. It never waits. After the first event that found no
// room everything else of that connection is discarded too, so that the gap
// that follows begins before all of it.
func (f *feed) emit(ev cdr.Event) {
	f.metrics.events.WithLabelValues(string(f.node), typeLabel(ev.Type)).Inc()
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.heard = now
	if !ev.Time.IsZero() {
		f.clock.sample(ev.Time.Sub(now), now)
	}
	size := estimate(&ev)
	// An empty queue takes any event, or a node with very many legs could never connect.
	full := len(f.queue) >= f.maxEvents || f.bytes+size > f.maxBytes && len(f.queue) > 0
	if f.discarded > 0 || full {
		if f.discarded == 0 {
			f.overflow(errQueueLimit)
		}
		f.discarded++
		f.dropped++
		f.metrics.dropped.WithLabelValues(string(f.node)).Inc()
		return
	}
	if ev.Type == cdr.Connected && !f.connected {
		f.connected, f.since, f.lastErr = true, now, ""
		f.log.Info("event source is heard", "core", ev.Core, "legs", len(ev.Live))
	}
	it := item{event: ev, size: size, at: now}
	it.offset, it.timed = f.clock.offset()
	f.push(it)
}

// lost queues the mark that the node is not heard from here on. It finds room
// always: there is one a connection, and none is made before the queue has
// room again. Repeating it does no harm.
func (f *feed) lost(reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.connected {
		f.connected, f.since = false, time.Now()
	}
	f.lastErr = reason
	f.push(item{lost: reason})
}

func (f *feed) push(it item) {
	f.queue = append(f.queue, it)
	f.bytes += it.size
	select {
	case f.wake <- struct{}{}:
	default: // awake already
	}
}

// take removes up to n items. The caller gives them back, with whole as it is:
// whether they begin and end an array.
func (f *feed) take(n int) (out []item, whole bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch out = f.queue; {
	case len(out) == 0:
		return nil, false // the queue keeps its array
	case n < len(out):
		out, f.queue, f.cut = out[:n:n], out[n:], true
	default:
		whole = !f.cut
		f.queue, f.spare, f.cut = f.spare, nil, false
	}
	for i := range out {
		f.bytes -= out[i].size
	}
	if f.room != nil && f.hasRoom() {
		close(f.room)
		f.room = nil
	}
	return out, whole
}

// spareItems is how long a queue may be that is used again: some 700 kB.
const spareItems = stepEvents

// giveBack says that the items of a take are done with. Only a whole array is
// used again: a part pins all of it, however large it is and whoever has the rest.
func (f *feed) giveBack(items []item, whole bool) {
	clear(items) // the rest of the array may stay for long
	if !whole || cap(items) > spareItems {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if cap(items) > cap(f.spare) {
		f.spare = items[:0]
	}
}

func (f *feed) hasRoom() bool { return len(f.queue) <= f.maxEvents/2 && f.bytes <= f.maxBytes/2 }

// awaitRoom waits until the queue is at most half full; false: ctx ended.
func (f *feed) awaitRoom(ctx context.Context) bool {
	f.mu.Lock()
	if f.hasRoom() {
		f.mu.Unlock()
		return true
	}
	if f.room == nil {
		f.room = make(chan struct{})
	}
	room := f.room
	f.mu.Unlock()
	select {
	case <-room:
		return true
	case <-ctx.Done():
		return false
	}
}

// estimate is about what an event takes in memory, in bytes.
func estimate(ev *cdr.Event) int {
	r := &ev.Record
	n := 640 + len(ev.Raw) + 80*len(r.Attrs) + 640*len(ev.Found) + len(ev.Core) + len(r.Leg) + len(r.Call) + len(r.SIPCallID) + len(r.Caller) + len(r.Callee) + len(r.Cause) + len(r.Codec)
	for _, l := range ev.Live {
		n += 16 + len(l)
	}
	return n
}

func typeLabel(t cdr.EventType) string {
	switch t {
	case cdr.Connected, cdr.Listed, cdr.Opened, cdr.Answered, cdr.Closed, cdr.Heartbeat:
		return string(t)
	}
	return "unknown"
}

// brief is an error's text, short enough for a record.
func brief(err error) string {
	const limit = 200 // bytes
	return clip(strings.ToValidUTF8(err.Error(), "?"), limit)
}
