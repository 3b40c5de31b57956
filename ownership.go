package bulkhead

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Validate checks every object and everything between objects: references,
// the owners of domains, numbers and networks, and the cells' limits. It
// returns all that is wrong, joined; each error is a FieldError whose Field
// begins with the object's kind and id, such as tenants[acme].domains[0].
func (s State) Validate() error {
	v := validator{s: s, domains: map[string]string{}, numbers: map[string]TenantID{}, listeners: map[string]string{}}
	v.frame()
	ids := slices.Sorted(maps.Keys(s.Tenants))
	perCell := map[CellID]int{}
	for _, id := range ids {
		t := s.Tenants[id]
		v.tenant(t)
		perCell[t.Cell]++
	}
	v.networks(ids)
	v.limits(perCell)
	return errors.Join(v.errs...)
}

type validator struct {
	s       State
	errs    []error
	domains map[string]string   // domain -> owner, in words
	numbers map[string]TenantID // number -> owner
	// listeners are claimed: "sip ip:port", "esl ip:port" and so on -> owner, in words.
	listeners map[string]string
	pools     map[poolKey]PoolID
	asterisks map[poolKey]NodeID
}

type poolKey struct {
	cell    CellID
	profile ProfileID
}

// frame checks everything but the tenants.
func (v *validator) frame() {
	for _, id := range slices.Sorted(maps.Keys(v.s.Cells)) {
		v.add("cells", string(id), v.s.Cells[id].Validate())
	}
	for _, id := range slices.Sorted(maps.Keys(v.s.Pools)) {
		v.pool(v.s.Pools[id])
	}
	for _, id := range slices.Sorted(maps.Keys(v.s.Nodes)) {
		v.node(v.s.Nodes[id])
	}
	for _, id := range slices.Sorted(maps.Keys(v.s.SBCs)) {
		v.sbc(v.s.SBCs[id])
	}
	v.asterisks = asterisksOf(v.s)
}

// asterisksOf returns the first Asterisk of each pool that has one.
func asterisksOf(s State) map[poolKey]NodeID {
	first := map[poolKey]NodeID{}
	for id, n := range s.Nodes {
		p := s.Pools[n.Pool]
		if n.Kind != Asterisk || p == nil {
			continue
		}
		k := poolKey{p.Cell, p.Profile}
		if other, ok := first[k]; !ok || id < other {
			first[k] = id
		}
	}
	return first
}

// registers reports whether a carrier of the tenant's wants a REGISTER.
func (t *Tenant) registers() bool {
	return slices.ContainsFunc(t.Trunks, func(k Trunk) bool { return k.Register })
}

// limits holds the cells to the number of tenants that they take.
func (v *validator) limits(perCell map[CellID]int) {
	for _, id := range slices.Sorted(maps.Keys(perCell)) {
		if c := v.s.Cells[id]; c != nil && perCell[id] > c.TenantLimit() {
			v.add("cells", string(id), invalid("max_tenants", "%d tenants are in cell %q, which takes %d: move some to another cell", perCell[id], id, c.TenantLimit()))
		}
	}
}

// add files err's field errors under the object they belong to.
func (v *validator) add(kind, id string, err error) {
	for _, fe := range FieldErrors(err) {
		fe.Field = fmt.Sprintf("%s[%s].%s", kind, id, fe.Field)
		v.errs = append(v.errs, fe)
	}
}

func (v *validator) pool(p *Pool) {
	v.add("pools", string(p.ID), p.Validate())
	if v.s.Cells[p.Cell] == nil {
		v.add("pools", string(p.ID), invalid("cell", "there is no cell %q", p.Cell))
	}
	if p.Backup != "" {
		if b := v.s.Pools[p.Backup]; b == nil || b.Cell != p.Cell {
			v.add("pools", string(p.ID), invalid("backup", "there is no pool %q in cell %q", p.Backup, p.Cell))
		}
	}
	if v.pools == nil {
		v.pools = map[poolKey]PoolID{}
	}
	k := poolKey{p.Cell, p.Profile}
	if other, ok := v.pools[k]; ok {
		v.add("pools", string(p.ID), conflict("profile", "pools %q and %q both serve profile %q in cell %q", other, p.ID, p.Profile, p.Cell))
	}
	v.pools[k] = p.ID
}

// claim says that an address is somebody's alone. Two nodes with one event
// socket would both report every leg of it.
func (v *validator) claim(kind, id, field, addr, owner string) {
	key := field + " " + addr
	if other, ok := v.listeners[key]; ok {
		v.add(kind, id, conflict(field, "%s belongs to both %s and %s", addr, other, owner))
	}
	v.listeners[key] = owner
}

func (v *validator) node(n *Node) {
	v.add("nodes", string(n.ID), n.Validate())
	if v.s.Pools[n.Pool] == nil {
		v.add("nodes", string(n.ID), invalid("pool", "there is no pool %q", n.Pool))
	}
	v.claim("nodes", string(n.ID), "sip", n.SIP, fmt.Sprintf("node %q", n.ID))
	for _, a := range n.listeners() {
		if a.addr != "" {
			v.claim("nodes", string(n.ID), a.field, a.addr, fmt.Sprintf("node %q", n.ID))
		}
	}
}

func (v *validator) sbc(s *SBC) {
	v.add("sbcs", string(s.ID), s.Validate())
	if v.s.Cells[s.Cell] == nil {
		v.add("sbcs", string(s.ID), invalid("cell", "there is no cell %q", s.Cell))
	}
	v.claim("sbcs", string(s.ID), "sip", s.SIP, fmt.Sprintf("SBC %q", s.ID))
	if ap, err := netip.ParseAddrPort(s.SIP); err == nil {
		v.domains[ap.Addr().String()] = fmt.Sprintf("SBC %q", s.ID)
	}
	for _, name := range s.Names {
		v.domains[name] = fmt.Sprintf("SBC %q", s.ID)
	}
}

func (v *validator) tenant(t *Tenant) {
	id := string(t.ID)
	v.add("tenants", id, t.Validate())
	if v.s.Cells[t.Cell] == nil {
		v.add("tenants", id, invalid("cell", "there is no cell %q", t.Cell))
	} else if _, ok := v.pools[poolKey{t.Cell, t.Profile}]; !ok {
		v.add("tenants", id, invalid("profile", "no pool of cell %q serves profile %q", t.Cell, t.Profile))
	}
	if node, ok := v.asterisks[poolKey{t.Cell, t.Profile}]; ok {
		for i := range t.Trunks {
			if t.Trunks[i].Register {
				v.add("tenants", id, invalid(fmt.Sprintf("trunks[%d].register", i),
					"node %q of the tenant's pool is an Asterisk, which takes no registrations from here: have the carrier know the nodes' addresses, or choose a profile of FreeSWITCH nodes", node))
			}
		}
	}
	owner := fmt.Sprintf("tenant %q", t.ID)
	for i, d := range t.Domains {
		if other, ok := v.domains[d]; ok {
			v.add("tenants", id, conflict(fmt.Sprintf("domains[%d]", i), "domain %s belongs to both %s and %s", d, other, owner))
			continue
		}
		v.domains[d] = owner
	}
	for i, n := range t.Numbers {
		if other, ok := v.numbers[n.Number]; ok {
			v.add("tenants", id, conflict(fmt.Sprintf("numbers[%d].number", i), "number %s belongs to both tenant %q and tenant %q", n.Number, other, t.ID))
			continue
		}
		v.numbers[n.Number] = t.ID
	}
}

type ownedNetwork struct {
	net   netip.Prefix
	owner TenantID
	field string
}

// networks finds networks of different tenants that overlap. Sorted by
// address and then from wide to narrow, a network can only lie inside those
// that are still open on the stack.
func (v *validator) networks(ids []TenantID) {
	var all []ownedNetwork
	for _, id := range ids {
		for i, p := range v.s.Tenants[id].Sources {
			if p.IsValid() {
				all = append(all, ownedNetwork{p.Masked(), id, fmt.Sprintf("sources[%d]", i)})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b ownedNetwork) int {
		if c := a.net.Addr().Compare(b.net.Addr()); c != 0 {
			return c
		}
		return a.net.Bits() - b.net.Bits()
	})
	var open []ownedNetwork
	for _, n := range all {
		for len(open) > 0 && !open[len(open)-1].net.Contains(n.net.Addr()) {
			open = open[:len(open)-1]
		}
		if len(open) > 0 {
			if outer := open[len(open)-1]; outer.owner != n.owner {
				v.add("tenants", string(n.owner), conflict(n.field, "network %s of tenant %q overlaps network %s of tenant %q", n.net, n.owner, outer.net, outer.owner))
			}
		}
		open = append(open, n)
	}
}
