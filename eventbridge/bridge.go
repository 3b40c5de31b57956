package eventbridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// Source hears the events of one media node.
type Source interface {
	// Node returns the id of the node, always the same.
	Node() bulkhead.NodeID
	// Run connects once and calls emit for every event, in the order of the
	// node's own stream, until the connection ends or ctx does. It returns
	// the error that ended the connection, nil if ctx did. emit never blocks
	// and must not be called after Run returned. The first Connected event of
	// a Run must list every leg that exists at that place of the stream.
	Run(ctx context.Context, emit func(cdr.Event)) error
}

// Stream keeps payloads durably and in order.
type Stream interface {
	// Append returns nil once all payloads survive a crash of the machine.
	// It may be called by several goroutines. After an error some of the
	// payloads may be kept; they are appended again, which must do no harm.
	Append(ctx context.Context, payloads ...[]byte) error
}

// Config of a Bridge. Start from DefaultConfig.
type Config struct {
	Cell    bulkhead.CellID
	Stream  Stream
	Journal string // folder of the journal of open legs, made if missing; one living bridge each

	// DecodeSBC reads the body of POST /kamailio/events. With an error it may
	// return the records that it could read. nil: the path is not served.
	DecodeSBC func(body []byte) ([]cdr.Record, error)

	// DecodeCDR reads a call record that a node's switch wrote by itself, as a
	// second source of legs. leg is what the request or the file's name calls
	// the leg. With an error it may return what could be read; then Leg is not
	// empty. It is called by several goroutines. nil: none are taken.
	DecodeCDR func(node bulkhead.NodeID, source cdr.Source, leg string, body []byte) (cdr.Record, error)
	// IsNode reports whether password is one of a node that may post such
	// records, which it sends by HTTP Basic with its id as the user. nil: the
	// path /freeswitch/cdr is not served.
	IsNode func(node bulkhead.NodeID, password string) bool
	// Sweeps are folders in which nodes leave records that they could not post.
	Sweeps []Sweep
	// Follows are logs to which nodes append what happens to their legs, one a node.
	Follows []Follow
	// KeepRaw keeps what second sources sent, compressed, beside the record.
	// For the nodes' events their Source decides.
	KeepRaw bool

	// Rules find the tenant of a leg whose switch does not name it; nil: none do.
	Rules *Rules

	QueueEvents int           // events that wait for the disk, a node; 16 or more
	QueueBytes  int           // their estimated size in memory, a node; 64 KiB or more
	OpenLegs    int           // legs remembered as open, a node; further ones are counted only
	Silence     time.Duration // a connection that brings nothing for so long is given up; above the node's heartbeat interval
	GiveUp      time.Duration // legs of a node not heard for so long count as ended

	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

// DefaultConfig returns limits for nodes of some thousand calls: 32768 events
// and 32 MiB of queue and 100000 open legs a node, 70 s of silence (three
// heartbeats of a FreeSWITCH), 15 minutes until legs are given up.
func DefaultConfig() Config {
	return Config{
		QueueEvents: 32768,
		QueueBytes:  32 << 20,
		OpenLegs:    100_000,
		Silence:     70 * time.Second,
		GiveUp:      15 * time.Minute,
	}
}

// Validate names every field that is out of its range.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, field, want string) {
		if !ok {
			errs = append(errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: "eventbridge." + field, Msg: want})
		}
	}
	check(c.Cell != "", "Cell", "must name the cell of the nodes")
	check(c.Stream != nil, "Stream", "must be set")
	check(c.Journal != "", "Journal", "must name a folder")
	check(c.QueueEvents >= 16, "QueueEvents", "must be 16 or more")
	check(c.QueueBytes >= 64<<10, "QueueBytes", "must be 65536 or more")
	check(c.OpenLegs >= 1, "OpenLegs", "must be 1 or more")
	check(c.Silence > 0, "Silence", "must be above zero")
	check(c.GiveUp > 0, "GiveUp", "must be above zero")
	check(c.DecodeCDR != nil || c.IsNode == nil && len(c.Sweeps) == 0, "DecodeCDR", "must be set if records of nodes are taken")
	for i, w := range c.Sweeps {
		check(w.Node != "" && w.Dir != "" && filepath.Clean(w.Done) != filepath.Clean(w.Dir), fmt.Sprintf("Sweeps[%d]", i), "must name a node, its folder, and another folder for what is done")
	}
	followed := map[bulkhead.NodeID]bool{}
	for i, w := range c.Follows {
		check(w.Node != "" && filepath.IsAbs(w.Path) && w.Rows != nil && !followed[w.Node], fmt.Sprintf("Follows[%d]", i), "must name a node, once, its log by an absolute path, and what reads its rows")
		followed[w.Node] = true
	}
	return errors.Join(errs...)
}

// The bounds of waiting.
const (
	reconnectMin = 100 * time.Millisecond
	reconnectMax = 2 * time.Second
	appendMin    = 50 * time.Millisecond
	appendMax    = 2 * time.Second
	stopWait     = 5 * time.Second // for sources to return, and again for the queues to reach the stream
	unreadyAfter = 5 * time.Second // of loss; Ready promises 10 s
	tick         = time.Second     // of the recorder, when nothing happens
)

// Bridge drains the events of nodes into a stream. Make one with New.
type Bridge struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	rec     *recorder

	wanted chan struct{} // capacity 1: sources changed

	unmatched unmatched
	packers   sync.Pool // of *cdr.Packer

	mu      sync.Mutex
	sources map[bulkhead.NodeID]Source
	feeds   map[bulkhead.NodeID]*feed // of every node that was ever wanted
}

// New opens the journal and reads what an earlier bridge left. The error is
// bulkhead.Invalid for a bad config and bulkhead.Conflict if another living
// bridge has the journal. Without a Run that follows, call Close.
func New(cfg Config) (*Bridge, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log := cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	j, nodes, err := openJournal(cfg.Journal, cfg.Cell, log)
	if err != nil {
		return nil, err
	}
	b := &Bridge{
		cfg:     cfg,
		log:     log,
		wanted:  make(chan struct{}, 1),
		sources: map[bulkhead.NodeID]Source{},
		feeds:   map[bulkhead.NodeID]*feed{},
	}
	b.rec = newRecorder(b, j, nodes)
	if b.metrics, err = newMetrics(cfg.Registerer, b); err != nil {
		return nil, errors.Join(err, j.close())
	}
	return b, nil
}

// Close releases the journal of a Bridge that was not run.
func (b *Bridge) Close() error {
	b.metrics.Unregister()
	return b.rec.journal.close()
}

// SetSources says which nodes to hear from now on, in any number. A source
// that is equal (==) to the present one of its node goes on undisturbed, so
// hand in the same pointer as long as the node's address and secret are the
// same. It returns bulkhead.Invalid, and changes nothing, if two sources are
// of one node.
func (b *Bridge) SetSources(sources []Source) error {
	next := make(map[bulkhead.NodeID]Source, len(sources))
	for _, s := range sources {
		if next[s.Node()] != nil {
			return fmt.Errorf("set event sources: node %s has two; give each node one: %w", s.Node(), bulkhead.Invalid)
		}
		next[s.Node()] = s
	}
	b.mu.Lock()
	b.sources = next
	b.mu.Unlock()
	select {
	case b.wanted <- struct{}{}:
	default: // the signal is there already; it carries nothing
	}
	return nil
}

// Run hears the sources until ctx ends. It then stops them, makes durable
// what they emitted, writes down when each node was last heard, closes the
// journal, and returns nil; 10 s at the most. An error says what could not be
// made durable in that time. Run may be called once.
func (b *Bridge) Run(ctx context.Context) error {
	defer b.metrics.Unregister()
	// The recorder outlives ctx: it has to store what came before.
	recCtx, stopRecorder := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRecorder()
	drain := make(chan struct{})
	recorded := make(chan error, 1)
	go func() { recorded <- b.rec.run(recCtx, drain) }()
	var files sync.WaitGroup
	for _, w := range b.cfg.Sweeps {
		files.Go(func() { newSweeper(b, w).run(ctx) })
	}
	for _, w := range b.cfg.Follows {
		files.Go(func() { newFollower(b, w).run(ctx) })
	}

	running := b.supervise(ctx)
	stopped := b.stopAll(running)
	files.Wait()
	close(drain)
	deadline := time.AfterFunc(stopWait, stopRecorder)
	defer deadline.Stop()
	return errors.Join(stopped, <-recorded)
}

// attachment is the goroutine that hears one node.
type attachment struct {
	source Source
	cancel context.CancelFunc
	done   chan struct{}
}

// supervise keeps one attachment a wanted node until ctx ends.
func (b *Bridge) supervise(ctx context.Context) map[bulkhead.NodeID]*attachment {
	running := map[bulkhead.NodeID]*attachment{}
	for {
		b.mu.Lock()
		want := b.sources
		b.mu.Unlock()
		over := map[bulkhead.NodeID]*attachment{}
		for id, a := range running {
			if s := want[id]; s == nil || !same(s, a.source) {
				a.cancel()
				over[id] = a
				delete(running, id)
			}
		}
		deadline := time.Now().Add(stopWait) // of all: one that is stuck must not keep the others waiting
		for id, a := range over {
			b.detach(id, a, want[id] == nil, deadline)
		}
		for id, s := range want {
			if running[id] == nil && ctx.Err() == nil {
				running[id] = b.attach(ctx, s)
			}
		}
		select {
		case <-ctx.Done():
			return running
		case <-b.wanted:
		}
	}
}

func same(a, b Source) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.TypeOf(a).Comparable() && a == b
}

func (b *Bridge) attach(ctx context.Context, s Source) *attachment {
	b.mu.Lock()
	f := b.feeds[s.Node()]
	if f == nil {
		f = newFeed(s.Node(), b)
		b.feeds[s.Node()] = f
	}
	b.mu.Unlock()
	f.setWanted(true)
	ctx, cancel := context.WithCancel(ctx)
	a := &attachment{source: s, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		f.hear(ctx, s)
	}()
	return a
}

// detach waits for the end of an attachment that was cancelled. What it emitted stays queued.
func (b *Bridge) detach(id bulkhead.NodeID, a *attachment, gone bool, deadline time.Time) {
	if !wait(a.done, time.Until(deadline)) {
		b.log.Error("event source does not stop", "node", id)
	}
	reason := "node's address was changed"
	if gone {
		reason = "node was taken out of the configuration"
	}
	b.mu.Lock()
	f := b.feeds[id]
	b.mu.Unlock()
	f.lost(reason)
	f.setWanted(!gone)
}

// stopAll cancels every attachment before it waits for any.
func (b *Bridge) stopAll(running map[bulkhead.NodeID]*attachment) error {
	for _, a := range running {
		a.cancel()
	}
	deadline := time.Now().Add(stopWait)
	var errs []error
	for id, a := range running {
		if !wait(a.done, time.Until(deadline)) {
			errs = append(errs, fmt.Errorf("stop event source of node %s: it still runs after %v", id, stopWait))
		}
	}
	return errors.Join(errs...)
}

func wait(done <-chan struct{}, limit time.Duration) bool {
	select {
	case <-done: // even if the time is over
		return true
	default:
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// allFeeds returns the feeds in the order of their nodes' ids.
func (b *Bridge) allFeeds() []*feed {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.SortedFunc(maps.Values(b.feeds), func(a, b *feed) int { return cmp.Compare(a.node, b.node) })
}
