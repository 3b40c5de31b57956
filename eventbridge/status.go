package eventbridge

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// Status is what GET /status answers.
type Status struct {
	Cell    bulkhead.CellID `json:"cell"`
	Sources []SourceStatus  `json:"sources"`         // in the order of the nodes' ids
	Error   string          `json:"error,omitempty"` // why records cannot be stored now
}

// SourceStatus is one node as the bridge sees it.
type SourceStatus struct {
	Node      bulkhead.NodeID `json:"node"`
	Wanted    bool            `json:"wanted"` // false: known from before, not heard any more
	Connected bool            `json:"connected"`
	Since     time.Time       `json:"since,omitzero"`      // of Connected, by the bridge's clock
	LastHeard time.Time       `json:"last_heard,omitzero"` // last event stored, by the node's clock
	// ClockOffset is how far the node's clock is ahead of the bridge's.
	ClockOffset time.Duration `json:"clock_offset_ns"`
	OpenLegs    int           `json:"open_legs"`
	Queued      int           `json:"queued"`          // events that wait to be stored
	Dropped     uint64        `json:"dropped"`         // events discarded at the queue's limit
	Gaps        int           `json:"gaps"`            // since the bridge started
	Gap         *cdr.Gap      `json:"gap,omitempty"`   // the one that is open
	Error       string        `json:"error,omitempty"` // why it is not connected

	received time.Time
}

// Status returns a picture of all nodes that are wanted or known from before.
func (b *Bridge) Status() Status {
	all := map[bulkhead.NodeID]*SourceStatus{}
	for _, f := range b.allFeeds() {
		all[f.node] = f.status()
	}
	st := Status{Cell: b.cfg.Cell, Sources: []SourceStatus{}}
	b.rec.mu.Lock()
	for id, n := range b.rec.nodes {
		if all[id] == nil {
			all[id] = &SourceStatus{Node: id}
		}
		n.status(all[id])
	}
	if b.rec.failure != nil {
		st.Error = brief(b.rec.failure)
	}
	b.rec.mu.Unlock()
	for _, s := range slices.SortedFunc(maps.Values(all), func(a, b *SourceStatus) int { return cmp.Compare(a.Node, b.Node) }) {
		st.Sources = append(st.Sources, *s)
	}
	return st
}

func (f *feed) status() *SourceStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &SourceStatus{
		Node: f.node, Wanted: f.wanted, Connected: f.connected, Since: f.since.UTC(),
		Queued: len(f.queue), Dropped: f.dropped, Error: f.lastErr, received: f.heard,
	}
}

func (n *node) status(s *SourceStatus) {
	s.LastHeard, s.ClockOffset, s.OpenLegs, s.Gaps = n.heard, n.offset, len(n.open), n.gaps
	if n.gap != nil {
		g := *n.gap
		s.Gap = &g
	}
}

// OpenCalls returns the number of calls that go on, as far as known, by
// tenant: the inbound legs that are open. The tenant is empty until the switch
// names it. It looks at every open leg, so ask about once a second.
func (b *Bridge) OpenCalls() map[bulkhead.TenantID]int {
	out := map[bulkhead.TenantID]int{}
	b.rec.mu.Lock()
	defer b.rec.mu.Unlock()
	for _, n := range b.rec.nodes {
		for _, l := range n.open {
			if l.record.Direction == cdr.Inbound {
				out[l.record.Tenant]++
			}
		}
	}
	return out
}
