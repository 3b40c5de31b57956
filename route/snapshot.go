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
	domains map[string]*home     // lower case
	self    map[selfKey]struct{} // the SBCs' own addresses and names
	numbers map[string]did       // by E.164 digits
	sources networks[*home]
	tenants map[bulkhead.TenantID]*home
	pools   map[bulkhead.PoolID]*pool
	byPeer  map[netip.AddrPort]bulkhead.NodeID
	sbcAddr map[netip.AddrPort]bulkhead.SBCID
}

// selfKey is an address or name of a cell's SBCs. SBCs of several cells may
// share one: a name in DNS, or an address with different ports.
type selfKey struct {
	cell bulkhead.CellID
	host string
}

// did is where a number leads.
type did struct {
	home *home
	user string // extension
}

// home is a tenant and where its calls go. What is looked up by anything
// leads to it directly and its users are its own, so that a call touches a
// big map once or twice: those are what misses the processor's caches.
type home struct {
	tenant *bulkhead.Tenant
	users  map[string]*bulkhead.User // by extension
	pool   *pool
	set    int
}

// owner returns the tenant; of nil it is nil.
func (h *home) owner() *bulkhead.Tenant {
	if h == nil {
		return nil
	}
	return h.tenant
}

// user returns a user of the tenant or nil; of nil it is nil.
func (h *home) user(extension string) *bulkhead.User {
	if h == nil {
		return nil
	}
	return h.users[extension]
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
		domains: make(map[string]*home, len(s.Tenants)),
		self:    map[selfKey]struct{}{},
		numbers: make(map[string]did, len(s.Tenants)),
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
		x.self[selfKey{b.Cell, uriHost(ap.Addr())}] = struct{}{}
		for _, name := range b.Names {
			x.self[selfKey{b.Cell, name}] = struct{}{}
		}
	}
	for id, t := range s.Tenants {
		p := byProfile[profileKey{t.Cell, t.Profile}]
		h := &home{tenant: t, users: make(map[string]*bulkhead.User, len(t.Users)), pool: p, set: p.setOf(id)}
		x.tenants[id] = h
		x.index(h)
	}
	return x
}

type profileKey struct {
	cell    bulkhead.CellID
	profile bulkhead.ProfileID
}

func (x *Snapshot) index(h *home) {
	t := h.tenant
	for _, d := range t.Domains {
		x.domains[d] = h
	}
	for _, n := range t.Numbers {
		x.numbers[n.Number] = did{h, n.User}
	}
	for i := range t.Users {
		h.users[t.Users[i].Extension] = &t.Users[i]
	}
	for _, p := range t.Sources {
		x.sources.add(p, h)
	}
}

// addrPort parses what State.Validate has checked.
func addrPort(s string) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(s)
	return unmap(ap)
}

// unmap turns the IPv4-mapped form in which a socket for both families names
// an IPv4 peer into the plain one.
func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// uriHost is an address as the host of a SIP URI: IPv6 in brackets (RFC 3261
// section 25.1, IPv6reference).
func uriHost(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// Revision returns the number of the snapshot's revision.
func (x *Snapshot) Revision() bulkhead.RevisionNumber { return x.state.Revision }

// State returns the indexed state, which must not be changed.
func (x *Snapshot) State() bulkhead.State { return x.state }

// Tenant returns a tenant, or nil.
func (x *Snapshot) Tenant(id bulkhead.TenantID) *bulkhead.Tenant { return x.state.Tenants[id] }

// TenantByDomain returns the tenant that owns a domain, or nil. Case does not matter.
func (x *Snapshot) TenantByDomain(domain string) *bulkhead.Tenant {
	return x.domains[strings.ToLower(domain)].owner()
}

// TenantBySource returns the tenant that owns the longest source network that
// holds a, or nil.
func (x *Snapshot) TenantBySource(a netip.Addr) *bulkhead.Tenant {
	return x.sources.lookup(a).owner()
}

// PoolOf returns the pool that a tenant's calls go to, or "".
func (x *Snapshot) PoolOf(t bulkhead.TenantID) bulkhead.PoolID {
	if h := x.tenants[t]; h != nil {
		return h.pool.ID
	}
	return ""
}

// User returns a tenant's user, or nil.
func (x *Snapshot) User(t bulkhead.TenantID, extension string) *bulkhead.User {
	return x.tenants[t].user(extension)
}

// Node returns a node, or nil.
func (x *Snapshot) Node(id bulkhead.NodeID) *bulkhead.Node { return x.state.Nodes[id] }

// Peer returns the node that sends SIP from an address.
func (x *Snapshot) Peer(a netip.AddrPort) (bulkhead.NodeID, bool) {
	id, ok := x.byPeer[unmap(a)]
	return id, ok
}

// SBCAt returns the SBC that sends SIP from an address.
func (x *Snapshot) SBCAt(a netip.AddrPort) (bulkhead.SBCID, bool) {
	id, ok := x.sbcAddr[unmap(a)]
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
