package dispatcher

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Observation is what was last seen of a node.
type Observation struct {
	At time.Time // of the newest ping or load, whatever came of it

	Answered time.Time     // when it last answered an OPTIONS
	Missed   int           // pings since then without an answer
	RTT      time.Duration // of the last answer
	Refuses  bool          // the last answer was a 503
	Untaken  float64       // calls a second that it did not take and another node did

	HasAgent bool
	Load     *bulkhead.NodeLoad // the newest; nil: none yet
	Silent   int                // requests since then that the agent did not answer
	Why      string             // of the last failure, in words
}

// What the balancer goes by. It acts on three observations in a row, one of
// which is made each pollEvery.
const (
	deadAfter   = 2 // pings without an answer
	silentAfter = 4 // requests that the agent did not answer
	sickRTT     = 500 * time.Millisecond
	window      = 3 // observations that must agree

	// untakenOver is the time over which calls that a node did not take are
	// counted. A single one says nothing; many a second, that it takes none.
	untakenOver             = 2 * time.Second
	untakenFew, untakenMany = 0.5, 2.0

	shareStep = 20 // shares are multiples of it, so that a share changes seldom
	coolFirst = 5 * time.Second
	coolMost  = time.Minute
	riseEvery = 4 * time.Second
	// forgive is how long a node must have been well to count as new.
	forgive = 5 * time.Minute
	// closeAt and reopenAt are parts of the limit of sessions.
	closeAt, reopenAt = 0.88, 0.80
)

// Decision is a change of what a node is offered, and why.
type Decision struct {
	At     time.Time       `json:"at"`
	Node   bulkhead.NodeID `json:"node"`
	From   int             `json:"from"` // percent of its usual calls
	To     int             `json:"to"`
	Reason string          `json:"reason"`
}

func (d Decision) String() string {
	return fmt.Sprintf("node %s weight %d -> %d: %s", d.Node, d.From, d.To, d.Reason)
}

// balancer turns observations into shares. It is pure but for its memory:
// time is what it is told.
type balancer struct {
	nodes map[bulkhead.NodeID]*weighed
}

// weighed is what the balancer remembers of a node.
type weighed struct {
	share   int
	dead    bool
	closed  bool
	reason  string
	since   time.Time // of the present share
	heats   []heat    // the newest observations, at most window
	cool    time.Duration
	changed time.Time // when it was last lowered
	shut    time.Time // when it was last closed
	last    int       // sessions at the observation before
	seen    time.Time
}

// heat is how overloaded a node is, 0 to 1, and by what.
type heat struct {
	of  float64
	why string
}

func newBalancer() *balancer { return &balancer{nodes: map[bulkhead.NodeID]*weighed{}} }

// step takes the observations of a moment and returns the states of the nodes
// that are not well and the decisions that led there. Nodes without an
// observation are as they were.
func (b *balancer) step(now time.Time, nodes map[bulkhead.NodeID]*bulkhead.Node, seen map[bulkhead.NodeID]Observation) (route.NodeStates, []Decision) {
	var made []Decision
	maps.DeleteFunc(b.nodes, func(id bulkhead.NodeID, _ *weighed) bool { return nodes[id] == nil })
	states := route.NodeStates{}
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		w := b.nodes[id]
		if w == nil {
			w = &weighed{share: 100, since: now, cool: coolFirst}
			b.nodes[id] = w
		}
		if o := seen[id]; o.At.After(w.seen) {
			w.seen = o.At
			from := w.offered()
			w.observe(now, nodes[id], o)
			if to := w.offered(); to != from {
				w.since = now
				made = append(made, Decision{At: now, Node: id, From: from, To: to, Reason: w.reason})
			}
		}
		if w.share < 100 || w.dead || w.closed {
			states[id] = route.NodeState{Share: w.share, Dead: w.dead, Closed: w.closed}
		}
	}
	return states, made
}

// offered is the share as an operator sees it.
func (w *weighed) offered() int {
	if w.dead || w.closed {
		return 0
	}
	return w.share
}

func (w *weighed) observe(now time.Time, n *bulkhead.Node, o Observation) {
	if o.Missed >= deadAfter {
		if !w.dead {
			w.dead, w.share, w.heats = true, 0, nil
			w.lowered(now)
			w.reason = fmt.Sprintf("no answer to %d OPTIONS: %s", o.Missed, o.Why)
		}
		return
	}
	h := heatOf(n, o)
	w.heats = append(w.heats, h)
	w.heats = w.heats[max(0, len(w.heats)-window):]
	if len(w.heats) < window {
		return
	}
	if w.dead {
		w.dead, w.share = false, 0
		w.reason = "answers OPTIONS again"
	}
	w.limit(now, n, o)
	least, most := w.heats[0], w.heats[0]
	for _, x := range w.heats {
		if x.of < least.of {
			least = x
		}
		if x.of >= most.of {
			most = x
		}
	}
	if target := floor(100 * (1 - least.of)); target < w.share {
		w.share = target
		w.lowered(now)
		w.reason = fmt.Sprintf("%s for %.2g s", least.why, float64(window)*pollEvery.Seconds())
		return
	}
	// Up by one step, if even the worst of the last observations leaves room
	// for two.
	quiet := now.Sub(w.changed)
	if quiet >= forgive {
		w.cool = coolFirst
	}
	if w.share < 100 && quiet >= w.cool && now.Sub(w.since) >= riseEvery && 100*(1-most.of) >= float64(min(100, w.share+2*shareStep)) {
		w.share = min(100, w.share+shareStep)
		w.reason = "it is quiet"
	}
}

// lowered notes that a node was offered less. The next time that this happens
// soon, it is longer before it is offered more again.
func (w *weighed) lowered(now time.Time) {
	if !w.changed.IsZero() && now.Sub(w.changed) < 2*coolMost {
		w.cool = min(2*w.cool, coolMost)
	}
	w.changed = now
}

// floor rounds a share down to a step.
func floor(share float64) int { return int(share) / shareStep * shareStep }

// limit keeps a node below nine tenths of its limit of sessions. What came
// since the observation before may come again until the next one. It is closed
// at once, and for a while: a small node's few sessions come and go.
func (w *weighed) limit(now time.Time, n *bulkhead.Node, o Observation) {
	used, have, limit := sessions(n, o)
	if limit == 0 {
		w.closed = false
		return
	}
	growth := max(0, have-w.last)
	w.last = have
	switch ahead := used + float64(growth)/float64(limit); {
	case !w.closed && ahead >= closeAt:
		w.closed, w.shut = true, now
		w.reason = fmt.Sprintf("%d of %d sessions", have, limit)
	case w.closed && used < reopenAt && now.Sub(w.shut) >= riseEvery:
		w.closed = false
		w.reason = fmt.Sprintf("%d of %d sessions", have, limit)
	}
}

// sessions returns how full a node is, by its PBX's own limit or by the
// operator's, whichever is nearer. A call has two sessions.
func sessions(n *bulkhead.Node, o Observation) (used float64, have, limit int) {
	if o.Load == nil || o.Load.PBX == nil {
		return 0, 0, 0
	}
	limit = o.Load.PBX.MaxSessions
	if own := 2 * n.MaxCalls; own > 0 && (limit == 0 || own < limit) {
		limit = own
	}
	have = o.Load.PBX.Sessions
	if limit > 0 {
		used = float64(have) / float64(limit)
	}
	return used, have, limit
}

// heatOf says how overloaded a node is by its worst sign.
func heatOf(n *bulkhead.Node, o Observation) heat {
	var worst heat
	sign := func(v, from, to float64, format string, args ...any) {
		if of := min(max((v-from)/(to-from), 0), 1); of > worst.of {
			worst = heat{of, fmt.Sprintf(format, args...)}
		}
	}
	if o.Missed == 0 && o.Refuses {
		sign(1, 0, 1, "it answers OPTIONS with 503")
	}
	sign(o.RTT.Seconds(), sickRTT.Seconds()/2, sickRTT.Seconds(), "OPTIONS takes %s", o.RTT.Round(time.Millisecond))
	sign(o.Untaken, untakenFew, untakenMany, "%.1f calls a second that it does not take, and others do", o.Untaken)
	if !o.HasAgent {
		return worst
	}
	if o.Silent >= silentAfter {
		sign(1, 0, 1, "its agent does not answer: %s", o.Why)
	}
	l := o.Load
	if l == nil {
		return worst
	}
	sign(l.CPU, 0.82, 0.97, "CPU idle %.0f %%", 100*(1-l.CPU))
	sign(l.Throttled, 0.5, 0.9, "CPU quota spent in %.0f %% of the time", 100*l.Throttled)
	sign(l.Steal, 0.2, 0.5, "%.0f %% of the CPU stolen", 100*l.Steal)
	sign(l.SoftIRQ, 0.35, 0.6, "%.0f %% of the CPU in softirq", 100*l.SoftIRQ)
	sign(l.UDPErrors, 0, 100, "%.0f UDP receive-buffer errors a second", l.UDPErrors)
	sign(l.NICDrops, 0, 500, "%.0f packets a second dropped by network cards", l.NICDrops)
	if l.PBXError != "" {
		sign(1, 0, 1, "its PBX does not answer its agent: %s", l.PBXError)
	}
	if used, have, limit := sessions(n, o); limit > 0 {
		sign(used, 0.7, closeAt, "%d of %d sessions", have, limit)
	}
	if p := l.PBX; p != nil && p.MaxRate > 0 {
		sign(p.Rate/p.MaxRate, 0.8, 1, "%.0f of %.0f sessions a second", p.Rate, p.MaxRate)
	}
	return worst
}
