package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	// maxFollowers is how many feeds a server serves at once.
	maxFollowers = 1000
	// maxTokenFeeds is how many of them one token may open: a host has a few
	// parts, and whoever has its token must not lock out the other hosts.
	maxTokenFeeds = 32
)

// FeedOptions say what a Feed serves, and to whom.
type FeedOptions struct {
	Store interface {
		Store
		History
	}
	// Tokens knows the tokens; a *Tokens.
	Tokens interface {
		Authenticate(ctx context.Context, secret string) (Token, error)
		KeepKeys(ctx context.Context, ring *Keyring) error
	}
	Log     *slog.Logger          // nil: nothing is said
	Metrics prometheus.Registerer // nil: nobody counts
}

// Feed tells followers over HTTP what a store holds: a snapshot, then every
// change, cut down to the cell that the follower's token opens, and whose
// tokens the cell's nodes and SBCs have. Each line is encoded once for all
// followers of a cell. A Feed serves while Run runs.
type Feed struct {
	store   FeedOptions
	log     *slog.Logger
	metrics feedMetrics
	ended   chan struct{} // Run has returned
	keep    int           // changes kept for each cell
	keys    Keyring

	mu      sync.Mutex
	ready   bool
	base    position       // a state that was the head
	pending []stored       // what came after it, for who wants the state
	frame   bulkhead.State // the head without its tenants
	homes   map[bulkhead.TenantID]bulkhead.CellID
	head    mark
	epoch   int // grows when the store went another way
	cells   map[bulkhead.CellID]*feedCell
	users   int
	by      map[string]int // of them, by the id of their token
	wake    chan struct{}  // closed, and replaced, when something came

	going bool // head leads on to what Watch will return; of Run alone
}

type feedMetrics struct {
	encodes   prometheus.Counter
	snapshots prometheus.Counter
	refused   prometheus.Counter
}

// NewFeed makes a feed; see Run and ServeHTTP.
func NewFeed(o FeedOptions) (*Feed, error) {
	f := &Feed{
		store: o, log: o.Log, ended: make(chan struct{}), keep: cellLines, cells: map[bulkhead.CellID]*feedCell{}, by: map[string]int{}, wake: make(chan struct{}),
		metrics: feedMetrics{
			encodes:   counter("bulkhead_registry_feed_encodes_total", "Changes and snapshots that were encoded for the feed: one for each revision and cell."),
			snapshots: counter("bulkhead_registry_feed_snapshots_total", "Snapshots that were sent to followers."),
			refused:   counter("bulkhead_registry_feed_refused_total", "Followers that were refused: no token, a wrong one, or too many at once."),
		},
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	followers := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "bulkhead_registry_feed_followers", Help: "Followers that are connected."}, func() float64 {
		f.mu.Lock()
		defer f.mu.Unlock()
		return float64(f.users)
	})
	return f, register(o.Metrics, f.metrics.encodes, f.metrics.snapshots, f.metrics.refused, followers)
}

// Run follows the store until ctx ends and returns nil then; every feed ends
// with it. While the store does not answer, followers keep their connection
// and hear that nothing changed. It is called once.
func (f *Feed) Run(ctx context.Context) error {
	defer close(f.ended)
	keeping, stop := context.WithCancel(ctx)
	var keys sync.WaitGroup
	defer keys.Wait()
	defer stop()
	keys.Go(func() { _ = f.store.Tokens.KeepKeys(keeping, &f.keys) }) // it ends with its context
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = minPause, maxPause
	said := ""
	for {
		err := f.follow(ctx, func() {
			said = ""
			pause.Reset()
		})
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != said {
			said = err.Error()
			f.log.Warn("the feed cannot follow the registry; its followers keep what they have", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause.NextBackOff()):
		}
	}
}

// follow publishes what the store commits, until something fails. It begins
// where it stopped: only a store that went another way, or a first call, makes
// it begin with the head, from which no lines lead on.
func (f *Feed) follow(ctx context.Context, done func()) error {
	if !f.going {
		if err := f.begin(ctx); err != nil {
			return err
		}
		done()
	}
	f.going = false
	for {
		at, asked := f.last(), time.Now()
		revisions, err := f.store.Store.Watch(ctx, at)
		if err == nil || time.Since(asked) > maxPause {
			done()
		}
		if err != nil {
			f.going = !errors.Is(err, bulkhead.Conflict)
			return fmt.Errorf("watch the registry after revision %d: %w", at, err)
		}
		for i := range revisions {
			r := &revisions[i]
			if r.Number != at+1 || r.Parent != at {
				return fmt.Errorf("revision %d on %d came after revision %d: %w", r.Number, r.Parent, at, bulkhead.Conflict)
			}
			if err := f.publish(r); err != nil {
				return err
			}
			at = r.Number
		}
		f.sweep()
	}
}

// begin takes the head over.
func (f *Feed) begin(ctx context.Context) error {
	state, err := f.store.Store.Head(ctx)
	if err != nil {
		return fmt.Errorf("read the registry's head: %w", err)
	}
	if err := lost(state.Revision, f.last()); err != nil {
		return err
	}
	at, err := f.markOf(ctx, state.Revision)
	if err != nil {
		return err
	}
	f.restart(position{state, at.line})
	return nil
}

// last returns the number of the head that came last.
func (f *Feed) last() bulkhead.RevisionNumber {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.head.number
}

// markOf reads which revision of that number the store has.
func (f *Feed) markOf(ctx context.Context, number bulkhead.RevisionNumber) (mark, error) {
	if number == 0 {
		return mark{}, nil
	}
	list, err := f.store.Store.Log(ctx, number, 1)
	if err != nil {
		return mark{}, fmt.Errorf("read revision %d: %w", number, err)
	}
	if len(list) != 1 || list[0].Number != number {
		return mark{}, fmt.Errorf("read revision %d: %w: it was the head", number, bulkhead.Conflict)
	}
	return mark{number, lineOf(&list[0])}, nil
}

// restart takes a head over. If it is the one that came last, nothing
// happened; else all followers get a snapshot.
func (f *Feed) restart(p position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := mark{p.state.Revision, p.line}
	if f.ready && f.head == m {
		return
	}
	f.ready, f.base, f.pending, f.head = true, p, nil, m
	f.epoch++
	f.frame = p.state
	f.frame.Tenants = nil
	f.homes = make(map[bulkhead.TenantID]bulkhead.CellID, len(p.state.Tenants))
	for id, t := range p.state.Tenants {
		f.homes[id] = t.Cell
	}
	for _, c := range f.cells {
		c.start, c.lines, c.marks, c.size = m, nil, nil, 0
	}
	f.wakeAll()
}

// publish encodes a revision for every cell that somebody follows.
func (f *Feed) publish(r *bulkhead.Revision) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := feedStep{revision: r, before: f.frame, was: map[bulkhead.TenantID]bulkhead.CellID{}}
	frame := r.Change
	frame.Tenants, frame.Delete.Tenants = nil, nil
	s.after = f.frame.Apply(&frame)
	for i := range r.Change.Tenants {
		id := r.Change.Tenants[i].ID
		s.was[id] = f.homes[id]
	}
	for _, id := range r.Change.Delete.Tenants {
		s.was[id] = f.homes[id]
	}
	m := mark{r.Number, lineOf(r)}
	for _, c := range f.cells {
		text, err := encodeLine(feedLine{Type: lineChange, Revision: m.number, Line: m.line, Time: &r.Time, Change: s.change(c.id)})
		if err != nil {
			return fmt.Errorf("encode revision %d: %w", r.Number, err)
		}
		f.metrics.encodes.Inc()
		c.add(text, m)
	}
	for i := range r.Change.Tenants {
		f.homes[r.Change.Tenants[i].ID] = r.Change.Tenants[i].Cell
	}
	for _, id := range r.Change.Delete.Tenants {
		delete(f.homes, id)
	}
	f.frame, f.head = s.after, m
	f.pending = append(f.pending, stored{Revision: *r})
	if len(f.pending) >= replayLimit {
		f.state()
	}
	f.wakeAll()
	return nil
}

// state returns the head. f.mu must be held.
func (f *Feed) state() position {
	if len(f.pending) > 0 {
		c := mergeStored(f.pending)
		f.base = position{f.base.state.Apply(&c), f.head.line}
		f.base.state.Revision = f.head.number
		f.pending = nil
	}
	return f.base
}

func (f *Feed) wakeAll() {
	close(f.wake)
	f.wake = make(chan struct{})
}

// sweep forgets cells that nobody has followed for a while.
func (f *Feed) sweep() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, c := range f.cells {
		if c.users == 0 && time.Since(c.idle) > cellIdle {
			delete(f.cells, id)
		}
	}
}

var (
	errTooMany  = errors.New("too many followers")
	errTooOften = fmt.Errorf("the token has %d feeds open: give each host a token of its own", maxTokenFeeds)
)

// enter adds a follower of a cell.
func (f *Feed) enter(cell bulkhead.CellID, token string) (*feedCell, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ready {
		return nil, fmt.Errorf("the feed has no revision yet: %w", bulkhead.Unavailable)
	}
	if f.users >= maxFollowers {
		return nil, errTooMany
	}
	if f.by[token] >= maxTokenFeeds {
		return nil, errTooOften
	}
	c := f.cells[cell]
	if c == nil {
		c = &feedCell{id: cell, keep: f.keep, start: f.head}
		f.cells[cell] = c
	}
	c.users++
	f.users++
	f.by[token]++
	return c, nil
}

func (f *Feed) leave(c *feedCell, token string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users--
	if f.by[token]--; f.by[token] == 0 {
		delete(f.by, token)
	}
	if c.users--; c.users == 0 {
		c.idle = time.Now()
	}
}

// news returns the lines after at, whether they do not lead on from there,
// so that a snapshot must come first, and what is closed by the next change.
func (f *Feed) news(c *feedCell, at mark) (lines [][]byte, to mark, lost bool, wake <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !c.has(at) {
		return nil, mark{}, true, f.wake
	}
	lines, to = c.after(at)
	return lines, to, false, f.wake
}

// snapshot encodes a cell's state, or returns one that was encoded lately.
// A large one is not kept, and comes back as a state without lines.
func (f *Feed) snapshot(c *feedCell) (*encodedSnapshot, *position, error) {
	c.encoding.Lock()
	defer c.encoding.Unlock()
	f.mu.Lock()
	if s := c.cached; s != nil && c.has(s.mark) && f.head.number-s.number <= snapshotAge {
		f.mu.Unlock()
		return s, nil, nil
	}
	p := f.state()
	f.mu.Unlock()
	if c.id != "" {
		p.state = cellState(p.state, c.id)
	}
	f.metrics.encodes.Inc()
	s := &encodedSnapshot{mark: mark{p.state.Revision, p.line}}
	size := 0
	for text, err := range encodeSnapshot(p) {
		if err != nil {
			return nil, nil, err
		}
		if size += len(text); size > cachedSnapshot {
			c.cached = nil
			return nil, &p, nil
		}
		s.lines = append(s.lines, text)
	}
	c.cached = s
	return s, nil, nil
}

// encodeSnapshot yields the lines of a snapshot.
func encodeSnapshot(p position) func(yield func([]byte, error) bool) {
	return func(yield func([]byte, error) bool) {
		line := func(l feedLine) bool { return yield(encodeLine(l)) }
		if !line(feedLine{Type: lineSnapshot, Revision: p.state.Revision, Line: p.line}) {
			return
		}
		for c := range chunks(p.state) {
			if !line(feedLine{Type: lineObjects, Change: c}) {
				return
			}
		}
		line(feedLine{Type: lineEnd, Revision: p.state.Revision, Objects: countObjects(p.state)})
	}
}
