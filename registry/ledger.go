package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	watchLimit = 256     // revisions that one Watch returns at most
	watchBytes = 8 << 20 // it stops after the one with which their changes pass this size
	logLimit   = 1024
	// replayLimit is how far behind a cached state may be before reading all
	// objects anew is cheaper.
	replayLimit = 128
	// knownLimit is how many revisions a handle can tell from others of the
	// same number.
	knownLimit = 4096
)

// line tells a revision from another of the same number, which a store that
// lost its last ones makes after them. Empty: not known.
type line string

// lineOf returns a revision's line. It does not depend on the change, so that
// versions of this program that write it differently agree.
func lineOf(r *bulkhead.Revision) line {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d %q %q", r.Number, r.Parent, r.Time.UnixMicro(), r.Author, r.Message))
	return line(hex.EncodeToString(sum[:8]))
}

// differs reports whether two lines are known not to be the same.
func (l line) differs(o line) bool { return l != "" && o != "" && l != o }

// mark is a revision by number and line.
type mark struct {
	number bulkhead.RevisionNumber
	line   line
}

// stored is a revision and the line of its parent.
type stored struct {
	bulkhead.Revision
	after line
}

// source is what a ledger reads of its store.
type source interface {
	head(ctx context.Context) (mark, error)
	// origin returns the number of the empty state that the first revision was
	// made on: 0, but for a store that a backup was restored into.
	origin(ctx context.Context) (bulkhead.RevisionNumber, error)
	// revisions reads at most limit revisions, from and to included, in order,
	// fewer when they are large. It stops at one that is not there.
	revisions(ctx context.Context, from, to bulkhead.RevisionNumber, limit int) ([]stored, error)
	// objects reads the whole state, at the head or later.
	objects(ctx context.Context) (position, error)
}

// position is a state and the line of its revision.
type position struct {
	state bulkhead.State
	line  line
}

// ledger is what a handle keeps in memory of its store.
type ledger struct {
	turn   chan struct{}    // whoever put something in may commit, and touch the next two
	claims *bulkhead.Claims // of at; nil: there are none yet
	at     mark

	mu     sync.Mutex
	cached position // was the head
	tail   []stored // what this handle committed on it, and nobody asked for yet
	known  map[bulkhead.RevisionNumber]line
	wake   chan struct{} // closed, and replaced, when there may be a revision
}

func newLedger() *ledger {
	return &ledger{turn: make(chan struct{}, 1), known: map[bulkhead.RevisionNumber]line{}, wake: make(chan struct{})}
}

// begin waits for the turn to commit; done gives it back.
func (l *ledger) begin(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *ledger) done() { <-l.turn }

// head returns the newest state.
func (l *ledger) head(ctx context.Context, src source) (bulkhead.State, error) {
	p, err := catchUp(ctx, src, l.newest())
	if err != nil {
		return bulkhead.State{}, err
	}
	l.remember(p)
	return p.state, nil
}

// prepare validates a change of the head. It returns the base as the store
// has it. The turn must be held.
func (l *ledger) prepare(ctx context.Context, src source, base bulkhead.RevisionNumber, change *bulkhead.Change) (mark, error) {
	head, err := src.head(ctx)
	if err != nil {
		return mark{}, err
	}
	if head.number != base {
		return mark{}, staleBase(base, head.number)
	}
	if err := l.advance(ctx, src, head); err != nil {
		return mark{}, err
	}
	return head, checkChange(l.claims.Validate(change))
}

// advance brings the claims to the head.
func (l *ledger) advance(ctx context.Context, src source, head mark) error {
	if l.claims != nil {
		delta, last, err := between(ctx, src, l.at, head)
		if err != nil {
			return err
		}
		if delta != nil {
			l.claims.Apply(delta)
			l.at = last
			return nil
		}
	}
	p, err := catchUp(ctx, src, l.newest())
	if err != nil {
		return err
	}
	if p.state.Revision != head.number {
		return staleBase(head.number, p.state.Revision)
	}
	l.remember(p)
	l.claims, l.at = bulkhead.NewClaims(p.state), mark{p.state.Revision, p.line}
	return nil
}

// committed moves on to the revision that was stored. The turn must be held.
func (l *ledger) committed(r *bulkhead.Revision, change *bulkhead.Change) {
	after := l.at.line
	l.claims.Apply(change)
	l.at = mark{r.Number, lineOf(r)}
	l.note(l.at)
	next := stored{Revision: *r, after: after}
	next.Change = *change
	l.mu.Lock()
	defer l.mu.Unlock()
	if end := l.cached.state.Revision + bulkhead.RevisionNumber(len(l.tail)); end == r.Parent && len(l.tail) < replayLimit {
		l.tail = append(l.tail, next)
	} else {
		l.tail = nil
	}
	close(l.wake)
	l.wake = make(chan struct{})
}

// watch waits until there is a revision after the given one.
func (l *ledger) watch(ctx context.Context, src source, after bulkhead.RevisionNumber, every time.Duration) ([]bulkhead.Revision, error) {
	poll := time.NewTicker(every)
	defer poll.Stop()
	for {
		wake := l.waker() // before the look, so that no commit falls between
		head, err := src.head(ctx)
		if err != nil {
			return nil, err
		}
		if after > head.number || after == head.number && l.lineAt(after).differs(head.line) {
			l.forget()
			return nil, noPath(after, head.number)
		}
		if after < head.number {
			return l.since(ctx, src, after, head.number)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-wake:
		case <-poll.C:
		}
	}
}

func (l *ledger) since(ctx context.Context, src source, after, head bulkhead.RevisionNumber) ([]bulkhead.Revision, error) {
	list, err := src.revisions(ctx, after+1, head, watchLimit)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || list[0].Parent != after || list[0].after.differs(l.lineAt(after)) {
		l.forget()
		return nil, noPath(after, head)
	}
	out := make([]bulkhead.Revision, len(list))
	for i := range list {
		out[i] = list[i].Revision
		l.note(mark{out[i].Number, lineOf(&out[i])})
	}
	return out, nil
}

// newest returns the newest state that this handle knows.
func (l *ledger) newest() position {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.tail) == 0 {
		return l.cached
	}
	first, last := &l.tail[0], &l.tail[len(l.tail)-1]
	if first.Parent == l.cached.state.Revision && !first.after.differs(l.cached.line) {
		c := mergeStored(l.tail)
		l.cached = position{l.cached.state.Apply(&c), lineOf(&last.Revision)}
		l.cached.state.Revision = last.Number
	}
	l.tail = nil
	return l.cached
}

func (l *ledger) remember(p position) {
	l.note(mark{p.state.Revision, p.line})
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.state.Revision > l.cached.state.Revision || p.state.Revision == l.cached.state.Revision && l.cached.line.differs(p.line) {
		l.cached = p
	}
}

// forget drops what was read of a store that has gone another way since.
func (l *ledger) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cached, l.tail = position{}, nil
	clear(l.known)
}

func (l *ledger) note(m mark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.line != "" {
		l.known[m.number] = m.line
		delete(l.known, m.number-knownLimit)
	}
	if len(l.known) > 2*knownLimit {
		clear(l.known)
	}
}

func (l *ledger) lineAt(n bulkhead.RevisionNumber) line {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known[n]
}

func (l *ledger) waker() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wake
}

func (l *ledger) wakeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.wake)
	l.wake = make(chan struct{})
}

// catchUp returns the head, starting from a position that was the head.
func catchUp(ctx context.Context, src source, from position) (position, error) {
	head, err := src.head(ctx)
	if err != nil {
		return position{}, err
	}
	if from.state.Revision == 0 && head.number > 0 {
		return src.objects(ctx)
	}
	delta, last, err := between(ctx, src, mark{from.state.Revision, from.line}, head)
	switch {
	case err != nil:
		return position{}, err
	case delta == nil:
		return src.objects(ctx)
	case delta.IsZero():
		return from, nil
	}
	next := from.state.Apply(delta)
	next.Revision = last.number
	return position{next, last.line}, nil
}

// between returns the change that leads from one mark to another, and the
// mark that it leads to. Without a change there is no way that is worth it.
func between(ctx context.Context, src source, from, to mark) (*bulkhead.Change, mark, error) {
	if from.number == to.number && !from.line.differs(to.line) {
		return &bulkhead.Change{}, from, nil
	}
	if to.number <= from.number || to.number-from.number > replayLimit {
		return nil, mark{}, nil
	}
	var all []stored
	for from.number < to.number {
		list, err := src.revisions(ctx, from.number+1, to.number, replayLimit)
		if err != nil {
			return nil, mark{}, err
		}
		if len(list) == 0 || list[0].Parent != from.number || list[0].after.differs(from.line) {
			return nil, mark{}, nil
		}
		all = append(all, list...)
		last := &list[len(list)-1].Revision
		from = mark{last.Number, lineOf(last)}
	}
	delta := mergeStored(all)
	return &delta, from, nil
}

func mergeStored(list []stored) bulkhead.Change {
	changes := make([]*bulkhead.Change, len(list))
	for i := range list {
		changes[i] = &list[i].Change
	}
	return merge(changes)
}

// readLog is History.Log.
func readLog(ctx context.Context, src source, from bulkhead.RevisionNumber, limit int) ([]bulkhead.Revision, error) {
	head, err := src.head(ctx)
	if err != nil || limit <= 0 {
		return nil, err
	}
	origin, err := src.origin(ctx)
	if err != nil {
		return nil, err
	}
	if from = max(from, 1); from <= origin { // nothing has these numbers
		limit -= int(origin + 1 - from) //nolint:gosec // numbers are far below
		from = origin + 1
	}
	list, err := src.revisions(ctx, from, head.number, max(0, min(limit, logLimit)))
	out := make([]bulkhead.Revision, len(list))
	for i := range list {
		out[i] = list[i].Revision
	}
	return out, err
}

// replay is History.State.
func replay(ctx context.Context, src source, number bulkhead.RevisionNumber) (bulkhead.State, error) {
	var state bulkhead.State
	if number > 0 {
		origin, err := src.origin(ctx)
		if err != nil {
			return state, err
		}
		if number < origin {
			return state, fmt.Errorf("revision %d: %w: history begins with revision %d", number, bulkhead.NotFound, origin+1)
		}
		state.Revision = origin
	}
	for state.Revision < number {
		list, err := src.revisions(ctx, state.Revision+1, number, watchLimit)
		if err != nil {
			return bulkhead.State{}, err
		}
		if len(list) == 0 || list[0].Parent != state.Revision {
			return bulkhead.State{}, fmt.Errorf("revision %d: %w", number, bulkhead.NotFound)
		}
		c := mergeStored(list)
		state = state.Apply(&c)
		state.Revision = list[len(list)-1].Number
	}
	return state, nil
}
