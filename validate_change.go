package bulkhead

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
)

// Claims is a State of its own and who owns what in it: domains, numbers,
// networks, and how many tenants each cell and pool serves. With it a change
// is validated for the price of the change, not of the state. It is for one
// goroutine.
type Claims struct {
	state    State // whose maps nobody else has
	domains  map[string]TenantID
	numbers  map[string]TenantID
	networks networkIndex
	perCell  map[CellID]int
	perPool  map[poolKey]int
	pools    map[poolKey]PoolID
	sbcs     map[string]string // address or name -> SBC, in words

	asterisks  map[poolKey]NodeID
	registrars map[poolKey]int // tenants with a carrier that wants a REGISTER
}

// NewClaims collects the claims of a state, which is taken to be valid.
func NewClaims(s State) *Claims {
	s.Tenants = maps.Clone(s.Tenants)
	if s.Tenants == nil {
		s.Tenants = map[TenantID]*Tenant{}
	}
	c := &Claims{
		state:   s,
		domains: make(map[string]TenantID, len(s.Tenants)), numbers: make(map[string]TenantID, len(s.Tenants)),
		perCell: map[CellID]int{}, perPool: map[poolKey]int{}, registrars: map[poolKey]int{},
	}
	c.frame()
	var all []claimedNetwork
	for _, t := range s.Tenants {
		c.count(t, 1)
		for _, d := range t.Domains {
			c.domains[d] = t.ID
		}
		for _, n := range t.Numbers {
			c.numbers[n.Number] = t.ID
		}
		for _, p := range t.Sources {
			if p.IsValid() {
				all = append(all, claimedNetwork{p.Masked(), t.ID})
			}
		}
	}
	c.networks.fill(all)
	return c
}

// frame takes over what cells, pools and SBCs claim; they are few.
func (c *Claims) frame() {
	s := c.state
	v := validator{s: s, domains: map[string]string{}, listeners: map[string]string{}, pools: map[poolKey]PoolID{}}
	for _, id := range slices.Sorted(maps.Keys(s.Pools)) {
		p := s.Pools[id]
		v.pools[poolKey{p.Cell, p.Profile}] = id
	}
	for _, id := range slices.Sorted(maps.Keys(s.SBCs)) {
		v.sbc(s.SBCs[id])
	}
	c.pools, c.sbcs, c.asterisks = v.pools, v.domains, asterisksOf(s)
}

func (c *Claims) count(t *Tenant, n int) {
	add(c.perCell, t.Cell, n)
	add(c.perPool, poolKey{t.Cell, t.Profile}, n)
	if t.registers() {
		add(c.registrars, poolKey{t.Cell, t.Profile}, n)
	}
}

func add[K comparable](m map[K]int, k K, n int) {
	if m[k] += n; m[k] == 0 {
		delete(m, k)
	}
}

// Apply makes the change. What it puts is taken over and must not be written
// to any more.
func (c *Claims) Apply(change *Change) {
	changed := tenantsOf(change)
	for id := range changed {
		if old := c.state.Tenants[id]; old != nil {
			c.release(old)
			delete(c.state.Tenants, id)
		}
	}
	for id, t := range changed { // now that every other tenant has let go
		if t != nil {
			c.take(t)
			c.state.Tenants[id] = t
		}
	}
	c.state = framed(c.state, change)
	if touchesFrame(change) {
		c.frame()
	}
}

func (c *Claims) take(t *Tenant) {
	c.count(t, 1)
	for _, d := range t.Domains {
		c.domains[d] = t.ID
	}
	for _, n := range t.Numbers {
		c.numbers[n.Number] = t.ID
	}
	for _, p := range t.Sources {
		if p.IsValid() {
			c.networks.insert(claimedNetwork{p.Masked(), t.ID})
		}
	}
}

func (c *Claims) release(t *Tenant) {
	c.count(t, -1)
	for _, d := range t.Domains {
		if c.domains[d] == t.ID {
			delete(c.domains, d)
		}
	}
	for _, n := range t.Numbers {
		if c.numbers[n.Number] == t.ID {
			delete(c.numbers, n.Number)
		}
	}
	for _, p := range t.Sources {
		if p.IsValid() {
			c.networks.remove(claimedNetwork{p.Masked(), t.ID})
		}
	}
}

// Validate returns what State.Validate would after the change, provided that
// the state is valid before it. It looks only at what the change puts, at
// whom that collides with, and, if the change touches cells, pools, nodes or
// SBCs, at all of these.
func (c *Claims) Validate(change *Change) error {
	changed := tenantsOf(change)
	after := framed(c.state, change)
	perCell, perPool := map[CellID]int{}, map[poolKey]int{} // how many more than now
	for id, t := range changed {
		if old := c.state.Tenants[id]; old != nil {
			perCell[old.Cell]--
			perPool[poolKey{old.Cell, old.Profile}]--
		}
		if t != nil {
			perCell[t.Cell]++
			perPool[poolKey{t.Cell, t.Profile}]++
		}
	}
	v := validator{s: after, domains: map[string]string{}, numbers: map[string]TenantID{}, listeners: map[string]string{}}
	if touchesFrame(change) {
		v.frame()
		if c.orphans(&v, perPool) {
			return c.state.Apply(change).Validate() // tenants that the change does not name
		}
		for id := range after.Cells {
			perCell[id] += 0 // its limit may be another
		}
	} else {
		v.pools, v.asterisks = c.pools, c.asterisks
	}
	v.s.Tenants = c.involved(changed, v.domains)
	ids := slices.Sorted(maps.Keys(v.s.Tenants))
	for _, id := range ids {
		t := v.s.Tenants[id]
		if !touchesFrame(change) {
			for _, d := range t.Domains {
				if owner, ok := c.sbcs[d]; ok {
					v.domains[d] = owner
				}
			}
		}
	}
	for _, id := range ids {
		v.tenant(v.s.Tenants[id])
	}
	v.networks(ids)
	for id := range perCell {
		perCell[id] += c.perCell[id]
	}
	v.limits(perCell)
	return errors.Join(v.errs...)
}

// orphans reports whether tenants stay whose cell or pool is gone, or whose pool
// has an Asterisk now and must not.
func (c *Claims) orphans(v *validator, more map[poolKey]int) bool {
	for k, n := range c.perPool {
		if _, ok := v.pools[k]; n+more[k] > 0 && (!ok || v.s.Cells[k.cell] == nil) {
			return true
		}
	}
	for k := range v.asterisks {
		if _, had := c.asterisks[k]; !had && c.registrars[k] > 0 {
			return true
		}
	}
	return false
}

// involved returns the tenants that a change puts and those that it leaves
// alone but collides with. Nobody else can have become wrong.
func (c *Claims) involved(changed map[TenantID]*Tenant, sbcs map[string]string) map[TenantID]*Tenant {
	out := map[TenantID]*Tenant{}
	stays := func(owner TenantID) {
		if _, ok := changed[owner]; !ok && owner != "" {
			out[owner] = c.state.Tenants[owner]
		}
	}
	for d := range sbcs {
		stays(c.domains[d])
	}
	for id, t := range changed {
		if t == nil {
			continue
		}
		out[id] = t
		for _, d := range t.Domains {
			stays(c.domains[d])
		}
		for _, n := range t.Numbers {
			stays(c.numbers[n.Number])
		}
		for _, p := range t.Sources {
			if p.IsValid() {
				c.networks.overlapping(p.Masked(), stays)
			}
		}
	}
	return out
}

// tenantsOf returns what a change makes of each tenant that it names; nil: deleted.
func tenantsOf(c *Change) map[TenantID]*Tenant {
	m := make(map[TenantID]*Tenant, len(c.Tenants)+len(c.Delete.Tenants))
	for i := range c.Tenants {
		m[c.Tenants[i].ID] = &c.Tenants[i]
	}
	for _, id := range c.Delete.Tenants {
		m[id] = nil
	}
	return m
}

// framed applies a change but for its tenants.
func framed(before State, c *Change) State {
	f := *c
	f.Tenants, f.Delete.Tenants = nil, nil
	return before.Apply(&f)
}

func touchesFrame(c *Change) bool {
	d := &c.Delete
	return len(c.Cells)+len(c.Pools)+len(c.Nodes)+len(c.SBCs)+len(d.Cells)+len(d.Pools)+len(d.Nodes)+len(d.SBCs) > 0
}

// claimedNetwork is a network and the tenant whose it is.
type claimedNetwork struct {
	net   netip.Prefix
	owner TenantID
}

func compareNetworks(a, b claimedNetwork) int {
	if c := a.net.Addr().Compare(b.net.Addr()); c != 0 {
		return c
	}
	if c := a.net.Bits() - b.net.Bits(); c != 0 {
		return c
	}
	switch {
	case a.owner < b.owner:
		return -1
	case a.owner > b.owner:
		return 1
	}
	return 0
}

// chunkSize bounds what one insertion moves.
const chunkSize = 512

// networkIndex is a sorted list of networks, in chunks. A network that a
// tenant lists twice is in it twice.
type networkIndex struct {
	chunks  [][]claimedNetwork
	lengths [2][129]int // IPv4 and IPv6: how many networks have this prefix length
}

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

func (x *networkIndex) fill(all []claimedNetwork) {
	slices.SortFunc(all, compareNetworks)
	for chunk := range slices.Chunk(all, chunkSize/2) {
		x.chunks = append(x.chunks, slices.Clone(chunk))
	}
	for _, n := range all {
		x.lengths[family(n.net)][n.net.Bits()]++
	}
}

// find returns where n is, or where it belongs.
func (x *networkIndex) find(n claimedNetwork) (chunk, at int, found bool) {
	chunk, _ = slices.BinarySearchFunc(x.chunks, n, func(c []claimedNetwork, n claimedNetwork) int {
		return compareNetworks(c[len(c)-1], n)
	})
	if chunk == len(x.chunks) {
		return chunk, 0, false
	}
	at, found = slices.BinarySearchFunc(x.chunks[chunk], n, compareNetworks)
	return chunk, at, found
}

func (x *networkIndex) insert(n claimedNetwork) {
	x.lengths[family(n.net)][n.net.Bits()]++
	chunk, at, _ := x.find(n)
	if chunk == len(x.chunks) {
		if chunk == 0 {
			x.chunks = append(x.chunks, []claimedNetwork{n})
			return
		}
		chunk, at = chunk-1, len(x.chunks[chunk-1])
	}
	c := slices.Insert(x.chunks[chunk], at, n)
	x.chunks[chunk] = c
	if len(c) > chunkSize {
		x.chunks[chunk] = c[: len(c)/2 : len(c)/2]
		x.chunks = slices.Insert(x.chunks, chunk+1, slices.Clone(c[len(c)/2:]))
	}
}

func (x *networkIndex) remove(n claimedNetwork) {
	chunk, at, found := x.find(n)
	if !found {
		return
	}
	x.lengths[family(n.net)][n.net.Bits()]--
	if len(x.chunks[chunk]) == 1 {
		x.chunks = slices.Delete(x.chunks, chunk, chunk+1)
		return
	}
	x.chunks[chunk] = slices.Delete(x.chunks[chunk], at, at+1)
}

// overlapping calls yield with the owner of every network that overlaps p.
func (x *networkIndex) overlapping(p netip.Prefix, yield func(TenantID)) {
	x.from(p, func(n claimedNetwork) bool { // p itself, and what lies inside it
		if !p.Contains(n.net.Addr()) {
			return false
		}
		yield(n.owner)
		return true
	})
	for bits := range p.Bits() { // what p lies inside
		if x.lengths[family(p)][bits] == 0 {
			continue
		}
		wide := netip.PrefixFrom(p.Addr(), bits).Masked()
		x.from(wide, func(n claimedNetwork) bool {
			if n.net != wide {
				return false
			}
			yield(n.owner)
			return true
		})
	}
}

// from walks the networks from p on while yield says so.
func (x *networkIndex) from(p netip.Prefix, yield func(claimedNetwork) bool) {
	chunk, at, _ := x.find(claimedNetwork{net: p})
	for ; chunk < len(x.chunks); chunk, at = chunk+1, 0 {
		for _, n := range x.chunks[chunk][at:] {
			if !yield(n) {
				return
			}
		}
	}
}
