package route

import (
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
	seed  maphash.Seed // of its homes' indexes
}

// setOf returns the id of the dispatcher set that a tenant's calls use.
func (p *pool) setOf(t bulkhead.TenantID) int {
	if p.Placement == bulkhead.Spread {
		return setID(p.ID, "")
	}
	return setID(p.ID, p.homeOf(string(t)))
}

// homeOf returns the node with the highest rendezvous score for a key among
// those that are not drained, or "".
func (p *pool) homeOf(key string) bulkhead.NodeID {
	if order := p.order(key); len(order) > 0 && !order[0].Drain {
		return order[0].ID
	}
	return ""
}

// order sorts the pool's nodes by rendezvous score for a key, drained nodes last.
func (p *pool) order(key string) []*bulkhead.Node {
	nodes := slices.Clone(p.nodes)
	score := make(map[*bulkhead.Node]uint64, len(nodes))
	for _, n := range nodes {
		h := fnv.New64a()
		h.Write([]byte(key))
		h.Write([]byte{0})
		h.Write([]byte(n.ID))
		score[n] = mix(h.Sum64())
	}
	slices.SortFunc(nodes, func(a, b *bulkhead.Node) int {
		if a.Drain != b.Drain {
			if a.Drain {
				return 1
			}
			return -1
		}
		if score[a] != score[b] {
			if score[a] > score[b] {
				return -1
			}
			return 1
		}
		return strings.Compare(string(a.ID), string(b.ID))
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

// setID numbers the dispatcher set of a pool's home node (empty: the whole
// pool). It depends on nothing else, so that a set keeps its number through
// all revisions and an SBC whose tables and sets are one step apart still
// sends each call to the right pool. 1 to 2^31-1.
func setID(p bulkhead.PoolID, home bulkhead.NodeID) int {
	h := fnv.New64a()
	h.Write([]byte(p))
	h.Write([]byte{0})
	h.Write([]byte(home))
	return int(mix(h.Sum64())%(1<<31-1)) + 1
}
