package route

import (
	"cmp"
	"hash/fnv"
	"hash/maphash"
	"slices"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
)

// pool is a pool with its nodes in the order of their ids.
type pool struct {
	*bulkhead.Pool
	nodes []*bulkhead.Node
	heirs map[bulkhead.NodeID][]bulkhead.NodeID // seconds of each home
	seed  maphash.Seed                          // of its homes' indexes
}

// A pool's sets. Each is an order in which its nodes are tried, for tenants
// of one band of priority; the orders are few and do not depend on tenants.
const (
	// maxSecond is how many nodes share the calls of a home that is lost, and
	// maxOrders bounds the orders that this makes.
	maxSecond = 5
	maxOrders = 140
	// spreadOrders is how many orders a spread pool has at most, wideOrders one
	// that does not fit into a shard. An SBC deals out hundredths of a set: what
	// cannot be divided goes to other nodes in each.
	spreadOrders = 8
	wideOrders   = 16
	// maxTargets bounds the nodes of a set that can take calls: a call tries five.
	maxTargets = 6
	// maxShard bounds the nodes of a spread set, whose hundredths would be too
	// coarse for more.
	maxShard = 20
	// bands is how many bands of priority are sent to a backup pool one after
	// the other.
	bands = 3
)

// place is one order of a pool and one band: what a dispatcher set is made for.
type place struct {
	pool         bulkhead.PoolID
	home, second bulkhead.NodeID // of a sticky pool
	turn         int             // of a spread pool
	band         int
}

// places returns all places of the pool, those of one home together, a home's
// by band.
func (p *pool) places() []place {
	var out []place
	if p.Placement == bulkhead.Spread {
		for band := range p.bands() {
			for turn := range p.turns() {
				out = append(out, place{pool: p.ID, turn: turn, band: band})
			}
		}
		return out
	}
	if len(p.nodes) == 0 {
		for band := range p.bands() {
			out = append(out, place{pool: p.ID, band: band})
		}
	}
	for _, home := range p.nodes {
		for band := range p.bands() {
			seconds := p.seconds(home.ID)
			for _, second := range seconds {
				out = append(out, place{pool: p.ID, home: home.ID, second: second, band: band})
			}
			if len(seconds) == 0 {
				out = append(out, place{pool: p.ID, home: home.ID, band: band})
			}
		}
	}
	return out
}

// bands returns how many bands the pool tells apart: without a backup pool
// nobody has to go first.
func (p *pool) bands() int {
	if p.Backup == "" {
		return 1
	}
	return bands
}

// turns returns the number of orders of a spread pool.
func (p *pool) turns() int {
	if len(p.nodes) > maxShard {
		return wideOrders
	}
	return max(1, min(spreadOrders, len(p.nodes)))
}

// seconds returns the nodes of which one takes over from a lost home.
func (p *pool) seconds(home bulkhead.NodeID) []bulkhead.NodeID {
	n := len(p.nodes)
	var out []bulkhead.NodeID
	for _, o := range p.order(string(home)) {
		if o.ID != home && len(out) < max(1, min(maxSecond, maxOrders/n)) {
			out = append(out, o.ID)
		}
	}
	return out
}

// setOf returns the id of the dispatcher set that a tenant's calls use.
func (p *pool) setOf(t *bulkhead.Tenant) int {
	at := place{pool: p.ID}
	if p.bands() > 1 {
		at.band = min(t.Priority*bands/100, bands-1)
	}
	key := string(t.ID)
	if p.Placement == bulkhead.Spread {
		at.turn = int(score(key, "") % uint64(p.turns())) //nolint:gosec // less than 17
		return at.id()
	}
	for _, n := range p.nodes {
		at.home = higher(key, at.home, n.ID)
	}
	for _, n := range p.heirs[at.home] {
		at.second = higher(key, at.second, n)
	}
	return at.id()
}

// higher returns the one of two nodes with the higher rendezvous score for a
// key; of equals the first, and whatever there is of one and none.
func higher(key string, a, b bulkhead.NodeID) bulkhead.NodeID {
	if a == "" || score(key, b) > score(key, a) {
		return b
	}
	return a
}

// score is a node's rendezvous score for a key.
func score(key string, n bulkhead.NodeID) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key))
	h.Write([]byte{0})
	h.Write([]byte(n))
	return mix(h.Sum64())
}

// order sorts the pool's nodes by rendezvous score for a key.
func (p *pool) order(key string) []*bulkhead.Node {
	nodes := slices.Clone(p.nodes)
	scores := make(map[*bulkhead.Node]uint64, len(nodes))
	for _, n := range nodes {
		scores[n] = score(key, n.ID)
	}
	slices.SortFunc(nodes, func(a, b *bulkhead.Node) int {
		return cmp.Or(cmp.Compare(scores[b], scores[a]), strings.Compare(string(a.ID), string(b.ID)))
	})
	return nodes
}

// mix spreads FNV's last bytes over all bits (the finaliser of splitmix64);
// without it, keys that differ at their end score alike.
func mix(h uint64) uint64 {
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}

// id numbers the dispatcher set of a place. It depends on nothing else, so
// that a set keeps its number through all revisions and an SBC whose tables
// and sets are one step apart still sends each call to the right pool.
// 1 to 2^31-1.
func (at place) id() int {
	h := fnv.New64a()
	for _, s := range []string{string(at.pool), string(at.home), string(at.second)} {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	h.Write([]byte{byte(at.turn), byte(at.band)})
	return int(mix(h.Sum64())%(1<<31-1)) + 1
}
