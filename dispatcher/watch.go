package dispatcher

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

const (
	// pollEvery is how often each node is asked.
	pollEvery = 250 * time.Millisecond
	// pollTimeout is how long one answer may take.
	pollTimeout = 600 * time.Millisecond
	// maxLoad bounds an agent's answer, in bytes.
	maxLoad = 16 << 10
	// keptDecisions is how many of the newest decisions are told.
	keptDecisions = 200
)

// Pinger asks a node at ip:port with an OPTIONS whether it lives.
type Pinger interface {
	Ping(ctx context.Context, node bulkhead.NodeID, addr string) (status int, err error)
}

// Untaken tells how the calls fare that an SBC sends to nodes. It is called by
// one goroutine.
type Untaken interface {
	// Refused returns, by the ip:port of a node, how many calls it did not take
	// and another node did, since any moment that is the same for a while.
	Refused(ctx context.Context) (map[string]int, error)
}

// WatchConfig says whom a Watch watches.
type WatchConfig struct {
	SBC     bulkhead.SBCID
	Token   string  // of the SBC, shown to agents; empty: none
	Untaken Untaken // nil: nobody knows
}

// Watch asks the nodes of an SBC's cell how they are and decides what each is
// to be offered. A nil Watch knows nothing of any node.
type Watch struct {
	cfg    WatchConfig
	live   *route.Live
	ping   Pinger
	client *http.Client
	log    *slog.Logger
	reg    *watchMetrics

	balance *balancer // belongs to the goroutine of Run

	mu        sync.Mutex
	seen      map[bulkhead.NodeID]Observation
	states    route.NodeStates
	changed   chan struct{}
	offered   map[bulkhead.NodeID]NodeStatus
	decisions []Decision // the newest last
}

// NodeStatus is what is known of an intended node of the SBC's cell.
type NodeStatus struct {
	Node     bulkhead.NodeID `json:"node"`
	Pool     bulkhead.PoolID `json:"pool"`
	Weight   int             `json:"weight"`           // percent of its usual calls that it is offered
	Reason   string          `json:"reason,omitempty"` // of the last change of it
	Since    time.Time       `json:"since,omitzero"`
	Drain    bool            `json:"drain"`
	Disabled bool            `json:"disabled"`
	Dead     bool            `json:"dead"` // it does not answer OPTIONS
	Full     bool            `json:"full"` // nine tenths of its sessions are in use

	OptionsSeconds float64            `json:"options_seconds"` // of the last answer
	Agent          string             `json:"agent"`           // none, ok, or why it does not answer
	Load           *bulkhead.NodeLoad `json:"load,omitempty"`
}

// NewWatch returns a Watch that has not begun. Metrics that are registered
// already are its only error.
func NewWatch(cfg WatchConfig, live *route.Live, ping Pinger, log *slog.Logger, reg prometheus.Registerer) (*Watch, error) {
	w := &Watch{
		cfg: cfg, live: live, ping: ping, log: log.With("sbc", cfg.SBC), balance: newBalancer(),
		client: &http.Client{
			Transport:     &http.Transport{MaxIdleConnsPerHost: 2, MaxConnsPerHost: 2, IdleConnTimeout: time.Minute},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		seen: map[bulkhead.NodeID]Observation{}, changed: make(chan struct{}), offered: map[bulkhead.NodeID]NodeStatus{},
	}
	var err error
	w.reg, err = newWatchMetrics(reg, w)
	return w, err
}

// Next returns what is known of the nodes that are not well, and a channel
// that is closed when that changes.
func (w *Watch) Next() (route.NodeStates, <-chan struct{}) {
	if w == nil {
		return nil, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.states, w.changed
}

// Nodes returns the status of every intended node of the cell, by id.
func (w *Watch) Nodes() []NodeStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.SortedFunc(maps.Values(w.offered), func(a, b NodeStatus) int { return cmp.Compare(a.Node, b.Node) })
}

// Decisions returns the newest decisions, the newest last.
func (w *Watch) Decisions() []Decision {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Decision{}, w.decisions...)
}

// Routes serves GET /v1/dispatcher/nodes and GET /v1/dispatcher/decisions as
// JSON: every intended node, and the newest decisions.
func (w *Watch) Routes() http.Handler {
	r := chi.NewRouter()
	r.Get("/v1/dispatcher/nodes", func(rw http.ResponseWriter, _ *http.Request) {
		answer(rw, map[string]any{"sbc": w.cfg.SBC, "nodes": w.Nodes()})
	})
	r.Get("/v1/dispatcher/decisions", func(rw http.ResponseWriter, _ *http.Request) {
		answer(rw, map[string]any{"sbc": w.cfg.SBC, "decisions": w.Decisions()})
	})
	return r
}

// Run watches until ctx ends, and returns when nothing is under way any more.
func (w *Watch) Run(ctx context.Context) error {
	defer w.client.CloseIdleConnections()
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	pollers := map[bulkhead.NodeID]*poller{}
	defer func() {
		for _, p := range pollers {
			p.stop()
		}
	}()
	if w.cfg.Untaken != nil {
		wg.Go(func() { w.countUntaken(ctx) })
	}
	for {
		nodes := w.nodes()
		for id, p := range pollers {
			if n := nodes[id]; n == nil || n.SIP != p.sip || n.Agent != p.agent {
				p.stop()
				delete(pollers, id)
			}
		}
		for id, n := range nodes {
			if pollers[id] == nil {
				own, cancel := context.WithCancel(ctx)
				p := &poller{watch: w, node: id, sip: n.SIP, agent: n.Agent, stop: cancel}
				pollers[id] = p
				w.mu.Lock()
				w.seen[id] = Observation{HasAgent: n.Agent != ""}
				w.mu.Unlock()
				wg.Go(func() { p.run(own) })
			}
		}
		w.decide(nodes)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// nodes returns the nodes of the SBC's cell.
func (w *Watch) nodes() map[bulkhead.NodeID]*bulkhead.Node {
	out := map[bulkhead.NodeID]*bulkhead.Node{}
	x := w.live.Load()
	if x == nil {
		return out
	}
	sbc := x.SBC(w.cfg.SBC)
	for id, n := range x.Nodes() {
		if sbc != nil && x.CellOf(id) == sbc.Cell {
			out[id] = n
		}
	}
	return out
}

// decide has the balancer judge what was seen.
func (w *Watch) decide(nodes map[bulkhead.NodeID]*bulkhead.Node) {
	w.mu.Lock()
	maps.DeleteFunc(w.seen, func(id bulkhead.NodeID, _ Observation) bool { return nodes[id] == nil })
	seen := maps.Clone(w.seen)
	w.mu.Unlock()
	states, made := w.balance.step(time.Now(), nodes, seen)
	for _, d := range made {
		w.log.Warn(d.String())
		w.reg.decisions.WithLabelValues(string(d.Node)).Inc()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.decisions = append(w.decisions, made...)
	w.decisions = w.decisions[max(0, len(w.decisions)-keptDecisions):]
	w.offered = map[bulkhead.NodeID]NodeStatus{}
	for id, n := range nodes {
		w.offered[id] = statusOf(n, w.balance.nodes[id], seen[id])
	}
	if !maps.Equal(states, w.states) {
		w.states = states
		close(w.changed)
		w.changed = make(chan struct{})
	}
}

func statusOf(n *bulkhead.Node, b *weighed, o Observation) NodeStatus {
	s := NodeStatus{
		Node: n.ID, Pool: n.Pool, Weight: b.offered(), Reason: b.reason, Since: b.since, Drain: n.Drain, Disabled: n.Disabled,
		Dead: b.dead, Full: b.closed, OptionsSeconds: o.RTT.Seconds(), Load: o.Load, Agent: "none",
	}
	if n.Drain || n.Disabled {
		s.Weight = 0
	}
	switch {
	case o.HasAgent && o.Silent > 0:
		s.Agent = o.Why
	case o.HasAgent:
		s.Agent = "ok"
	}
	return s
}

// poller asks one node.
type poller struct {
	watch *Watch
	node  bulkhead.NodeID
	sip   string
	agent string
	stop  context.CancelFunc
}

// run asks for both at once, so that an agent that hangs does not delay the
// ping.
func (p *poller) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { p.every(ctx, p.options) })
	if p.agent != "" {
		wg.Go(func() { p.every(ctx, p.load) })
	}
	wg.Wait()
}

func (p *poller) every(ctx context.Context, ask func(context.Context) func(*Observation)) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, pollTimeout)
		note := ask(bounded)
		cancel()
		if ctx.Err() != nil {
			return
		}
		w := p.watch
		w.mu.Lock()
		o := w.seen[p.node]
		note(&o)
		o.At = time.Now()
		w.seen[p.node] = o
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *poller) options(ctx context.Context) func(*Observation) {
	start := time.Now()
	status, err := p.watch.ping.Ping(ctx, p.node, p.sip)
	took := time.Since(start)
	return func(o *Observation) {
		if err != nil {
			o.Missed++
			o.Why = err.Error()
			return
		}
		o.Missed, o.Answered, o.RTT, o.Refuses = 0, start.Add(took), took, status == 503
	}
}

func (p *poller) load(ctx context.Context) func(*Observation) {
	l, err := p.watch.askLoad(ctx, p.agent)
	return func(o *Observation) {
		if err != nil {
			o.Silent++
			o.Why = err.Error()
			return
		}
		o.Silent, o.Load = 0, l
	}
}

// askLoad asks an agent for its node's load.
func (w *Watch) askLoad(ctx context.Context, agent string) (*bulkhead.NodeLoad, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+agent+"/load", nil)
	if err != nil {
		return nil, fmt.Errorf("ask agent %s for its load: %w", agent, err)
	}
	if w.cfg.Token != "" {
		req.SetBasicAuth(string(w.cfg.SBC), w.cfg.Token)
	}
	res, err := w.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask agent %s for its load: %w: %w", agent, bulkhead.Unavailable, err)
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(io.LimitReader(res.Body, maxLoad))
	if err != nil || res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask agent %s for its load: %s: %w: %w", agent, res.Status, bulkhead.Unavailable, err)
	}
	l := new(bulkhead.NodeLoad)
	if err := json.Unmarshal(body, l); err != nil {
		return nil, fmt.Errorf("agent %s says of its load %.80q: %w: %w", agent, body, bulkhead.Invalid, err)
	}
	return l, nil
}
