package route

import (
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"

	"github.com/bulkhead-voip/bulkhead"
)

// platform indexes what is not a tenant.
type platform struct {
	objects   bulkhead.State       // without its tenants
	self      map[selfKey]struct{} // the SBCs' own addresses and names
	pools     map[bulkhead.PoolID]*pool
	byProfile map[profileKey]*pool
	byPeer    map[netip.AddrPort]bulkhead.NodeID
	sbcAddr   map[netip.AddrPort]bulkhead.SBCID
	classes   map[bulkhead.CellID]classes // of destinations; cells without are not there
}

// selfKey is an address or name of a cell's SBCs. SBCs of several cells may
// share one: a name in DNS, or an address with different ports.
type selfKey struct {
	cell bulkhead.CellID
	host string
}

// profileKey is what chooses a tenant's pool.
type profileKey struct {
	cell    bulkhead.CellID
	profile bulkhead.ProfileID
}

func newPlatform(s bulkhead.State) platform {
	s.Tenants = nil
	p := platform{
		objects:   s,
		pools:     make(map[bulkhead.PoolID]*pool, len(s.Pools)),
		byProfile: make(map[profileKey]*pool, len(s.Pools)),
		byPeer:    make(map[netip.AddrPort]bulkhead.NodeID, len(s.Nodes)),
	}
	seed := maphash.MakeSeed()
	for id, o := range s.Pools {
		p.pools[id] = &pool{Pool: o, seed: seed}
		p.byProfile[profileKey{o.Cell, o.Profile}] = p.pools[id]
	}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		n := s.Nodes[id]
		p.pools[n.Pool].nodes = append(p.pools[n.Pool].nodes, n)
		p.byPeer[addrPort(n.SIP)] = id
	}
	for _, o := range p.pools {
		o.heirs = make(map[bulkhead.NodeID][]bulkhead.NodeID, len(o.nodes))
		for _, n := range o.nodes {
			o.heirs[n.ID] = o.seconds(n.ID)
		}
	}
	p.indexSBCs()
	p.indexClasses()
	return p
}

// apply returns the platform after a change that leaves pools and nodes as they are.
func (p platform) apply(c *bulkhead.Change) platform {
	p.objects = p.objects.Apply(&bulkhead.Change{
		Cells: c.Cells, SBCs: c.SBCs, Delete: bulkhead.Deletion{Cells: c.Delete.Cells, SBCs: c.Delete.SBCs},
	})
	p.objects.Tenants = nil
	if len(c.SBCs)+len(c.Delete.SBCs) > 0 {
		p.indexSBCs()
	}
	if len(c.Cells)+len(c.Delete.Cells) > 0 {
		p.indexClasses()
	}
	return p
}

func (p *platform) indexClasses() {
	p.classes = map[bulkhead.CellID]classes{}
	for id, c := range p.objects.Cells {
		if k := classesOf(c); k != nil {
			p.classes[id] = k
		}
	}
}

func (p *platform) indexSBCs() {
	p.self = map[selfKey]struct{}{}
	p.sbcAddr = make(map[netip.AddrPort]bulkhead.SBCID, len(p.objects.SBCs))
	for id, b := range p.objects.SBCs {
		ap := addrPort(b.SIP)
		p.sbcAddr[ap] = id
		p.self[selfKey{b.Cell, uriHost(ap.Addr())}] = struct{}{}
		for _, name := range b.Names {
			p.self[selfKey{b.Cell, name}] = struct{}{}
		}
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

// Node returns a node, or nil.
func (p *platform) Node(id bulkhead.NodeID) *bulkhead.Node { return p.objects.Nodes[id] }

// Nodes returns all nodes, which must not be changed.
func (p *platform) Nodes() map[bulkhead.NodeID]*bulkhead.Node { return p.objects.Nodes }

// SBC returns an SBC, or nil.
func (p *platform) SBC(id bulkhead.SBCID) *bulkhead.SBC { return p.objects.SBCs[id] }

// SBCs returns all SBCs, which must not be changed.
func (p *platform) SBCs() map[bulkhead.SBCID]*bulkhead.SBC { return p.objects.SBCs }

// Peer returns the node that sends SIP from an address.
func (p *platform) Peer(a netip.AddrPort) (bulkhead.NodeID, bool) {
	id, ok := p.byPeer[unmap(a)]
	return id, ok
}

// SBCAt returns the SBC that sends SIP from an address.
func (p *platform) SBCAt(a netip.AddrPort) (bulkhead.SBCID, bool) {
	id, ok := p.sbcAddr[unmap(a)]
	return id, ok
}

// CellOf returns the cell of a node's pool, or "".
func (p *platform) CellOf(id bulkhead.NodeID) bulkhead.CellID {
	n := p.objects.Nodes[id]
	if n == nil || p.pools[n.Pool] == nil {
		return ""
	}
	return p.pools[n.Pool].Cell
}
