package route

import (
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
)

// Snapshot is a revision indexed in memory. It is never changed after New.
type Snapshot struct {
	state   bulkhead.State
	domains map[string]bulkhead.TenantID // lower case
	self    map[string]bulkhead.CellID   // the SBCs' own addresses and names
	numbers map[string]bulkhead.TenantID // E.164 digits
	sources networks
	users   map[userKey]*bulkhead.User
	tenants map[bulkhead.TenantID]*home
	pools   map[bulkhead.PoolID]*pool
	byPeer  map[netip.AddrPort]bulkhead.NodeID
	sbcAddr map[netip.AddrPort]bulkhead.SBCID
}

type userKey struct {
	tenant    bulkhead.TenantID
	extension string
}

// home is where a tenant's calls go.
type home struct {
	tenant *bulkhead.Tenant
	pool   *pool
	set    int
}

// pool is a pool with its nodes in the order of their ids.
type pool struct {
	*bulkhead.Pool
	nodes []*bulkhead.Node
}

// New indexes a state. The state must be valid (State.Validate).
func New(s bulkhead.State) *Snapshot {
	x := &Snapshot{
		state:   s,
		domains: make(map[string]bulkhead.TenantID, len(s.Tenants)),
		self:    map[string]bulkhead.CellID{},
		numbers: make(map[string]bulkhead.TenantID, len(s.Tenants)),
		users:   make(map[userKey]*bulkhead.User, len(s.Tenants)),
		tenants: make(map[bulkhead.TenantID]*home, len(s.Tenants)),
		pools:   make(map[bulkhead.PoolID]*pool, len(s.Pools)),
		byPeer:  make(map[netip.AddrPort]bulkhead.NodeID, len(s.Nodes)),
		sbcAddr: make(map[netip.AddrPort]bulkhead.SBCID, len(s.SBCs)),
	}
	byProfile := map[profileKey]*pool{}
	for id, p := range s.Pools {
		x.pools[id] = &pool{Pool: p}
		byProfile[profileKey{p.Cell, p.Profile}] = x.pools[id]
	}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		n := s.Nodes[id]
		x.pools[n.Pool].nodes = append(x.pools[n.Pool].nodes, n)
		x.byPeer[addrPort(n.SIP)] = id
	}
	for id, b := range s.SBCs {
		ap := addrPort(b.SIP)
		x.sbcAddr[ap] = id
		x.self[ap.Addr().String()] = b.Cell
		for _, name := range b.Names {
			x.self[name] = b.Cell
		}
	}
	for id, t := range s.Tenants {
		p := byProfile[profileKey{t.Cell, t.Profile}]
		x.tenants[id] = &home{tenant: t, pool: p, set: p.setOf(id)}
		x.index(t)
	}
	return x
}

type profileKey struct {
	cell    bulkhead.CellID
	profile bulkhead.ProfileID
}

func (x *Snapshot) index(t *bulkhead.Tenant) {
	for _, d := range t.Domains {
		x.domains[d] = t.ID
	}
	for _, n := range t.Numbers {
		x.numbers[n.Number] = t.ID
	}
	for i := range t.Users {
		x.users[userKey{t.ID, t.Users[i].Extension}] = &t.Users[i]
	}
	for _, p := range t.Sources {
		x.sources.add(p, t.ID)
	}
}

// addrPort parses what State.Validate has checked.
func addrPort(s string) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(s)
	return ap
}

// Revision returns the number of the snapshot's revision.
func (x *Snapshot) Revision() bulkhead.RevisionNumber { return x.state.Revision }

// State returns the indexed state, which must not be changed.
func (x *Snapshot) State() bulkhead.State { return x.state }

// Tenant returns a tenant, or nil.
func (x *Snapshot) Tenant(id bulkhead.TenantID) *bulkhead.Tenant { return x.state.Tenants[id] }

// TenantByDomain returns the tenant that owns a domain, or nil. Case does not matter.
func (x *Snapshot) TenantByDomain(domain string) *bulkhead.Tenant {
	id, ok := x.domains[strings.ToLower(domain)]
	if !ok {
		return nil
	}
	return x.state.Tenants[id]
}

// TenantBySource returns the tenant that owns the longest source network that
// holds a, or nil.
func (x *Snapshot) TenantBySource(a netip.Addr) *bulkhead.Tenant {
	return x.state.Tenants[x.sources.lookup(a)]
}

// User returns a tenant's user, or nil.
func (x *Snapshot) User(t bulkhead.TenantID, extension string) *bulkhead.User {
	return x.users[userKey{t, extension}]
}

// Node returns a node, or nil.
func (x *Snapshot) Node(id bulkhead.NodeID) *bulkhead.Node { return x.state.Nodes[id] }

// Peer returns the node that sends SIP from an address.
func (x *Snapshot) Peer(a netip.AddrPort) (bulkhead.NodeID, bool) {
	id, ok := x.byPeer[a]
	return id, ok
}

// SBCAt returns the SBC that sends SIP from an address.
func (x *Snapshot) SBCAt(a netip.AddrPort) (bulkhead.SBCID, bool) {
	id, ok := x.sbcAddr[a]
	return id, ok
}

// CellOf returns the cell of a node's pool, or "".
func (x *Snapshot) CellOf(id bulkhead.NodeID) bulkhead.CellID {
	n := x.state.Nodes[id]
	if n == nil || x.pools[n.Pool] == nil {
		return ""
	}
	return x.pools[n.Pool].Cell
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
