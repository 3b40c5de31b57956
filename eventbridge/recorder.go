package eventbridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

const (
	stepEvents  = 1024      // events taken from all queues together before they are made durable
	appendCount = 512       // payloads in one Append
	appendBytes = 512 << 10 // bytes in one Append, one payload more at the most
)

// recorder is the one goroutine that empties the queues: it keeps what is
// known of every node, makes the records durable, and then the journal.
type recorder struct {
	bridge  *Bridge
	journal *journal
	wake    chan struct{} // capacity 1

	mu           sync.Mutex // held while nodes change; never during I/O
	nodes        map[bulkhead.NodeID]*node
	failingSince time.Time // of Append; zero: it works
	failure      error
	journalErr   error
}

func newRecorder(b *Bridge, j *journal, nodes map[bulkhead.NodeID]*node) *recorder {
	for _, n := range nodes {
		n.maxLegs, n.rules = b.cfg.OpenLegs, b.cfg.Rules
	}
	return &recorder{bridge: b, journal: j, nodes: nodes, wake: make(chan struct{}, 1)}
}

// run works until drain is closed and the queues are empty, or ctx ends.
func (r *recorder) run(ctx context.Context, drain <-chan struct{}) (err error) {
	defer func() { err = errors.Join(err, r.journal.close()) }()
	if err := r.commit(ctx, r.resume()); err != nil {
		return err
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		last := false
		select {
		case <-ctx.Done():
			return nil
		case <-drain:
			last = true
		case <-ticker.C:
			if err := r.commit(ctx, r.giveUp()); err != nil {
				return err
			}
		case <-r.wake:
		}
		for {
			fx, n := r.step()
			if n == 0 {
				break
			}
			if err := r.commit(ctx, fx); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
	}
}

// resume opens a gap for every node that an earlier bridge heard.
func (r *recorder) resume() *effects {
	r.mu.Lock()
	defer r.mu.Unlock()
	fx, now := &effects{}, time.Now()
	for _, id := range slices.Sorted(maps.Keys(r.nodes)) {
		n := r.nodes[id]
		n.gapSince = now
		n.lost("bridge restarted", now, fx)
		r.bridge.metrics.gaps.WithLabelValues(string(id)).Add(float64(n.gaps))
	}
	return fx
}

func (r *recorder) giveUp() *effects {
	r.mu.Lock()
	defer r.mu.Unlock()
	fx := &effects{}
	for _, id := range slices.Sorted(maps.Keys(r.nodes)) {
		if n := r.nodes[id]; n.gap != nil && time.Since(n.gapSince) >= r.bridge.cfg.GiveUp {
			n.giveUp(fx)
		}
	}
	return fx
}

// step takes a share from every queue, so that a busy node does not starve
// the others, and works out what has to be written.
func (r *recorder) step() (fx *effects, taken int) {
	feeds := r.bridge.allFeeds()
	fx = &effects{}
	for _, f := range feeds {
		items, whole := f.take(max(16, stepEvents/len(feeds)))
		if len(items) == 0 {
			continue
		}
		taken += len(items)
		r.apply(f.node, items, fx)
		f.giveBack(items, whole)
	}
	return fx, taken
}

func (r *recorder) apply(id bulkhead.NodeID, items []item, fx *effects) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[id]
	if n == nil {
		n = newNode(id, r.bridge.cfg.Cell)
		n.maxLegs, n.rules = r.bridge.cfg.OpenLegs, r.bridge.cfg.Rules
		r.nodes[id] = n
	}
	before := *n
	for i := range items {
		n.apply(&items[i], time.Now(), fx)
	}
	if !n.heard.IsZero() && n.heard != before.heard {
		fx.after = append(fx.after, line{Node: id, Heard: n.heard, Offset: n.offset})
	}
	m, label := r.bridge.metrics, string(id)
	m.gaps.WithLabelValues(label).Add(float64(n.gaps - before.gaps))
	m.untracked.WithLabelValues(label).Add(float64(n.untracked - before.untracked))
	m.invalid.WithLabelValues(label).Add(float64(n.invalid - before.invalid))
	if n.untracked > before.untracked && before.untracked == 0 {
		r.bridge.log.Error("more legs are open than are remembered; those that end in a gap will have no record",
			"node", id, "limit", n.maxLegs)
	}
}

// commit makes effects real. The error says what is not durable because ctx
// ended; what it is about is still open in the journal then.
func (r *recorder) commit(ctx context.Context, fx *effects) error {
	r.write(fx.before)
	if err := r.append(ctx, fx.entries); err != nil {
		return err
	}
	for i := range fx.entries {
		if rec := fx.entries[i].Record; rec != nil {
			r.bridge.account(rec)
		}
	}
	r.write(fx.after)
	// Only now memory and journal agree, so that a rewrite loses nothing.
	if r.journal.full() {
		r.noteJournal(r.journal.rewrite(r.nodes))
	}
	return nil
}

func (r *recorder) write(lines []line) { r.noteJournal(r.journal.append(lines)) }

// noteJournal handles a failed write: call records go on, but a kill would
// now lose track of open legs, so Ready and a metric say it.
func (r *recorder) noteJournal(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
		r.bridge.metrics.journalErrors.Inc()
		if r.journalErr == nil {
			r.bridge.log.Error("journal of open legs cannot be written; free space or repair the disk", "error", err)
		}
		r.journalErr = err
	case r.journalErr != nil && !r.journal.dirty:
		r.bridge.log.Info("journal of open legs is written again")
		r.journalErr = nil
	}
}

// append tries until the entries are durable or ctx ends.
func (r *recorder) append(ctx context.Context, entries []cdr.Entry) error {
	var batch [][]byte
	size := 0
	for i := range entries {
		b, err := cdr.Encode(entries[i])
		if err != nil { // a Record of plain fields always encodes, within the years 0 to 9999
			r.bridge.metrics.unencodable.Inc()
			r.bridge.log.Error("call record cannot be encoded", "error", err)
			continue
		}
		batch = append(batch, b)
		size += len(b)
		if len(batch) == appendCount || size >= appendBytes {
			if err := r.appendBatch(ctx, batch); err != nil {
				return err
			}
			batch, size = nil, 0
		}
	}
	if len(batch) == 0 {
		return nil
	}
	return r.appendBatch(ctx, batch)
}

func (r *recorder) appendBatch(ctx context.Context, batch [][]byte) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = appendMin, appendMax
	for {
		err := r.bridge.timedAppend(ctx, batch)
		r.noteAppend(err)
		if err == nil {
			return nil
		}
		t := time.NewTimer(min(wait.NextBackOff(), appendMax))
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("store the last %d call records in time: %w; their legs stay in the journal: %w", len(batch), err, bulkhead.Unavailable)
		case <-t.C:
		}
	}
}

func (b *Bridge) timedAppend(ctx context.Context, batch [][]byte) error {
	start := time.Now()
	err := b.cfg.Stream.Append(ctx, batch...)
	if err != nil {
		b.metrics.appendErrors.Inc()
		return err
	}
	b.metrics.append.Observe(time.Since(start).Seconds())
	return nil
}

func (r *recorder) noteAppend(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil && r.failure != nil:
		r.bridge.log.Info("call records are stored again", "after", time.Since(r.failingSince))
		r.failure, r.failingSince = nil, time.Time{}
	case err != nil && r.failure == nil:
		r.bridge.log.Error("call records cannot be stored and wait in memory", "error", err)
		r.failure, r.failingSince = err, time.Now()
	case err != nil:
		r.failure = err
	}
}
