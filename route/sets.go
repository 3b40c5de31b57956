package route

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/bulkhead-voip/bulkhead"
)

// The dispatcher algorithms that sets are selected by (Kamailio's dispatcher
// module, ds_select_dst).
const (
	ByPriority = 8
	ByWeight   = 9
)

// MaxSets bounds the dispatcher sets of an SBC: so many can be read back in
// one answer.
const MaxSets = 480

// Set is a dispatcher set: the nodes that a group of tenants may be sent to.
type Set struct {
	ID        int // 1 to 2^31-1, the same in every revision
	Pool      bulkhead.PoolID
	Home      bulkhead.NodeID // of a sticky pool: where the calls belong
	Second    bulkhead.NodeID // of a sticky pool: who has them when Home is lost
	Turn      int             // of a spread pool: one of its orders
	Band      int             // of priority: 0 goes first to a backup pool
	Algorithm int             // ByPriority or ByWeight
	Targets   []Target        // in the order in which they are tried
}

// Target is a node in a set.
type Target struct {
	Node     bulkhead.NodeID
	URI      string // sip:ip:port
	Priority int    // higher is tried first
	Weight   int    // share of the set's calls, against those of the others; 0: only after all others
	Down     bool   // takes no calls until it answers the SBC's own OPTIONS
	Disabled bool   // takes no new calls, whatever it answers
}

// NodeState is what is known of a node now, beside its registry entry.
type NodeState struct {
	// Share is how many of its usual calls the node is offered, 0 to 100
	// percent. With 0 it is asked after all others of a set.
	Share int
	// Closed keeps calls from the node altogether, as long as there is another.
	Closed bool
	// Dead is a node that does not answer.
	Dead bool
}

// NodeStates holds nodes that are not well; all others have a Share of 100.
type NodeStates map[bulkhead.NodeID]NodeState

// Of returns the state of a node.
func (s NodeStates) Of(n bulkhead.NodeID) NodeState {
	if st, ok := s[n]; ok {
		return st
	}
	return NodeState{Share: 100}
}

// MakeSets lays out the dispatcher sets of an SBC for what is known of the
// nodes. The number and the ids of the sets do not depend on that. In every
// set there is a node that takes calls, as long as its pool has one that is
// neither drained nor disabled. Its errors are bulkhead.NotFound for an SBC
// that is not in the snapshot, and bulkhead.Conflict when there are more sets
// than MaxSets or two hash to one id.
func MakeSets(x *Snapshot, id bulkhead.SBCID, states NodeStates) ([]Set, error) {
	sbc := x.SBC(id)
	if sbc == nil {
		return nil, fmt.Errorf("sets for SBC %q: %w", id, bulkhead.NotFound)
	}
	var sets []Set
	for _, p := range x.pools {
		if p.Cell == sbc.Cell {
			sets = append(sets, p.sets(x.pools[p.Backup], states)...)
		}
	}
	if len(sets) > MaxSets {
		return nil, fmt.Errorf("sets for SBC %q: the pools of cell %q need %d dispatcher sets, and an SBC takes %d: use smaller pools, or fewer with a backup: %w", id, sbc.Cell, len(sets), MaxSets, bulkhead.Conflict)
	}
	slices.SortFunc(sets, func(a, b Set) int { return cmp.Compare(a.ID, b.ID) })
	for i := 1; i < len(sets); i++ {
		if a, b := sets[i-1], sets[i]; a.ID == b.ID {
			return nil, fmt.Errorf("sets for SBC %q: pools %q and %q both need set %d: rename one: %w", id, a.Pool, b.Pool, a.ID, bulkhead.Conflict)
		}
	}
	return sets, nil
}

// sets returns the pool's dispatcher sets. backup may be nil.
func (p *pool) sets(backup *pool, states NodeStates) []Set {
	out := 0.0
	if backup != nil && backup.capacity(states) >= overflowBelow {
		out = 1 - min(p.capacity(states)/overflowBelow, 1)
	}
	places := p.places()
	sets := make([]Set, len(places))
	per := len(places) / max(1, len(p.nodes)) // of each home of a sticky pool
	for i, at := range places {
		sets[i] = Set{ID: at.id(), Pool: p.ID, Home: at.home, Second: at.second, Turn: at.turn, Band: at.band, Algorithm: p.algorithm()}
		// The lowest band goes whole before the next one begins.
		leaves := min(max(bands*out-float64(at.band), 0), 1)
		if p.Placement == bulkhead.Spread {
			sets[i].Targets = p.spread(at, backup, leaves, states)
		} else {
			// A home with a share of 60 keeps 60 of 100 of its sets, the highest
			// bands; of those of one band that leave the pool likewise.
			inHome := (float64(i%per) + 0.5) / float64(per)
			inBand := (float64(i%(per/p.bands())) + 0.5) / float64(per/p.bands())
			sets[i].Targets = p.sticky(at, backup, inHome, inBand < leaves, states)
		}
	}
	return sets
}

// overflowBelow is the capacity below which a pool's calls begin to go to its
// backup, and which a backup must have to take them.
const overflowBelow = 0.5

// capacity is how much of what the pool could take it can take now, 0 to 1.
func (p *pool) capacity(states NodeStates) float64 {
	have, all := 0, 0
	for _, n := range p.nodes {
		w := cmp.Or(n.Weight, 100)
		all += 100 * w
		if st := states.Of(n.ID); !n.Drain && !n.Disabled && !st.Dead && !st.Closed {
			have += st.Share * w
		}
	}
	if all == 0 {
		return 0
	}
	return float64(have) / float64(all)
}

// takes says how a node is to be offered calls.
type takes int

const (
	gladly  takes = iota // in its place
	last                 // after all others
	down                 // not until it answers
	nothing              // not at all
	drained              // by the operator's own word: not even if nobody else is left
)

// takes returns what each node of the pool can be offered.
func (p *pool) takes(states NodeStates) map[bulkhead.NodeID]takes {
	out := make(map[bulkhead.NodeID]takes, len(p.nodes))
	var count [drained + 1]int
	for _, n := range p.nodes {
		k := gladly
		switch st := states.Of(n.ID); {
		case n.Drain || n.Disabled:
			k = drained
		case st.Dead:
			k = down
		case st.Closed:
			k = nothing
		case st.Share <= 0:
			k = last
		}
		out[n.ID] = k
		count[k]++
	}
	if count[gladly] > 0 {
		return out
	}
	// Nobody is well: whoever is least bad takes all. If all are thought to be
	// dead, it may be that only we cannot see them.
	for _, least := range []takes{last, nothing, down} {
		if count[least] == 0 {
			continue
		}
		for n, k := range out {
			if k == least {
				out[n] = gladly
			}
		}
		break
	}
	return out
}

// sticky returns the targets of a place: its home, its second, then the
// others; with overflow the backup pool's nodes before them.
func (p *pool) sticky(at place, backup *pool, inHome float64, overflow bool, states NodeStates) []Target {
	can := p.takes(states)
	order := p.order(string(at.home) + "\x00" + string(at.second))
	rank := func(n *bulkhead.Node) int {
		switch n.ID {
		case at.home:
			return 0
		case at.second:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(order, func(a, b *bulkhead.Node) int { return rank(a) - rank(b) })
	// The worst first: the last one that is left stays.
	worst := slices.Clone(order)
	slices.SortStableFunc(worst, func(a, b *bulkhead.Node) int {
		return cmp.Or(cmp.Compare(states.Of(a.ID).Share, states.Of(b.ID).Share), rank(b)-rank(a))
	})
	for _, n := range worst {
		share := float64(states.Of(n.ID).Share) / 100
		leaves := share < 0.5
		if n.ID == at.home {
			leaves = inHome < 1-share
		}
		if leaves && can[n.ID] == gladly && anotherThan(n.ID, can) {
			can[n.ID] = last
		}
	}
	var picked []offer
	if overflow {
		takes := backup.takes(states)
		for _, n := range backup.order(string(at.home) + "\x00" + string(at.second)) {
			if takes[n.ID] == gladly && len(picked) < maxTargets/2 {
				picked = append(picked, offer{node: n, weight: cmp.Or(n.Weight, 100)})
			}
		}
	}
	for _, n := range order {
		picked = append(picked, offer{node: n, takes: can[n.ID], weight: cmp.Or(n.Weight, 100)})
	}
	return targets(picked, maxTargets)
}

// anotherThan reports whether a node beside n takes calls gladly.
func anotherThan(n bulkhead.NodeID, can map[bulkhead.NodeID]takes) bool {
	for o, k := range can {
		if o != n && k == gladly {
			return true
		}
	}
	return false
}

// spread returns the targets of a place by weight; so much of the calls as
// leaves the pool goes to the backup's nodes.
func (p *pool) spread(at place, backup *pool, leaves float64, states NodeStates) []Target {
	picked := p.weighed(at.turn, states)
	if leaves > 0 {
		theirs := slices.DeleteFunc(backup.weighed(at.turn, states), func(o offer) bool { return o.takes != gladly })
		theirs = theirs[:min(len(theirs), maxShard/2)]
		slices.SortStableFunc(picked, byTakes)
		picked = picked[:min(len(picked), maxShard-len(theirs))]
		own, scale := total(picked), 1.0
		if leaves < 1 && own > 0 {
			scale = leaves / (1 - leaves) * float64(own) / float64(total(theirs))
		} else {
			for i := range picked {
				picked[i].takes = max(picked[i].takes, last)
			}
		}
		for _, o := range theirs {
			o.weight = min(max(1, int(float64(o.weight)*scale)), maxWeight)
			picked = append(picked, o)
		}
	}
	return targets(picked, maxShard)
}

// weighed returns the pool's nodes in the order of a turn, with what each may
// weigh now.
func (p *pool) weighed(turn int, states NodeStates) []offer {
	can := p.takes(states)
	out := make([]offer, len(p.nodes))
	for i := range p.nodes {
		n := p.nodes[(i+turn*len(p.nodes)/p.turns())%len(p.nodes)]
		out[i] = offer{node: n, takes: can[n.ID]}
		if out[i].takes == gladly {
			share := states.Of(n.ID).Share
			if share <= 0 {
				share = 100 // the least bad of a pool
			}
			out[i].weight = cmp.Or(n.Weight, 100) * share
		}
	}
	return out
}

// maxWeight bounds a target's weight: where nearly all of a large pool's calls
// leave it for one node, that node's may be less than its share by a little.
const maxWeight = 1 << 20

func byTakes(a, b offer) int { return int(a.takes) - int(b.takes) }

func total(offers []offer) int {
	sum := 0
	for _, o := range offers {
		sum += o.weight
	}
	return sum
}

// offer is a node on its way to be a target.
type offer struct {
	node   *bulkhead.Node
	takes  takes
	weight int
}

// targets makes the offers into at most so many targets: those who take calls
// gladly first.
func targets(offers []offer, limit int) []Target {
	slices.SortStableFunc(offers, byTakes)
	offers = offers[:min(len(offers), limit)]
	out := make([]Target, len(offers))
	for i, o := range offers {
		out[i] = Target{
			Node: o.node.ID, URI: "sip:" + o.node.SIP, Priority: len(offers) - i,
			Down: o.takes == down, Disabled: o.takes > down,
		}
		if o.takes == gladly {
			out[i].Weight = o.weight
		}
	}
	return out
}
