package route

import (
	"iter"
	"net/netip"
	"strings"
	"sync"

	"github.com/bulkhead-voip/bulkhead"
)

// Snapshot is a revision indexed in memory. It is never changed: Apply makes
// the next one, which shares with it whatever is the same, so that whoever
// holds an older one can go on with it.
//
// What a Snapshot indexes is not a bulkhead.State but the objects in it: a
// State is maps, whose 100,000 tenants would have to be copied for each
// change. The objects of other kinds are few and stay in maps.
type Snapshot struct {
	platform
	tenants table[*home]
	domains table[*home] // lower case
	numbers table[did]   // by E.164 digits
	sources networks[*home]
	state   func() bulkhead.State // made when somebody asks for it first
}

// did is where a number leads.
type did struct {
	home *home
	at   int // its place in the tenant's numbers
}

// New indexes a state. The state must be valid (State.Validate). The snapshot
// shares the lists within its tenants, but does not keep the state.
func New(s bulkhead.State) *Snapshot {
	x := &Snapshot{platform: newPlatform(s)}
	domains, numbers, networks := 0, 0, 0
	for _, t := range s.Tenants {
		domains += len(t.Domains)
		numbers += len(t.Numbers)
		networks += len(t.Sources)
	}
	e := x.edit(len(s.Tenants), domains, numbers)
	sources := make([]owned[*home], 0, networks)
	for _, t := range s.Tenants {
		h := x.settle(t)
		e.add(h)
		for _, p := range widest(t.Sources) {
			sources = append(sources, owned[*home]{p, h})
		}
	}
	e.sources.fill(sources)
	e.done()
	x.state = x.stateOnce()
	return x
}

// Revision returns the number of the snapshot's revision.
func (x *Snapshot) Revision() bulkhead.RevisionNumber { return x.objects.Revision }

// State returns the indexed state, which must not be changed. The first call
// makes the list of all tenants: what answers calls asks for single objects
// instead.
func (x *Snapshot) State() bulkhead.State { return x.state() }

func (x *Snapshot) stateOnce() func() bulkhead.State {
	return sync.OnceValue(func() bulkhead.State {
		s := x.objects
		s.Tenants = make(map[bulkhead.TenantID]*bulkhead.Tenant, x.tenants.len)
		for t := range x.Tenants() {
			s.Tenants[t.ID] = t
		}
		return s
	})
}

// home returns a tenant's home, or nil.
func (x *Snapshot) home(id bulkhead.TenantID) *home {
	if h := x.tenants.find(string(id)); h != nil {
		return *h
	}
	return nil
}

// domain returns the home of the tenant that owns a domain in lower case, or nil.
func (x *Snapshot) domain(name string) *home {
	if h := x.domains.find(name); h != nil {
		return *h
	}
	return nil
}

// number returns the home of the tenant that owns a number, or nil.
func (x *Snapshot) number(digits string) *home {
	if n := x.numbers.find(digits); n != nil {
		return n.home
	}
	return nil
}

// Tenant returns a tenant, or nil.
func (x *Snapshot) Tenant(id bulkhead.TenantID) *bulkhead.Tenant { return x.home(id).owner() }

// Tenants yields all tenants, in no order.
func (x *Snapshot) Tenants() iter.Seq[*bulkhead.Tenant] {
	return func(yield func(*bulkhead.Tenant) bool) {
		for _, h := range x.tenants.all() {
			if !yield(&h.tenant) {
				return
			}
		}
	}
}

// TenantCount returns the number of tenants.
func (x *Snapshot) TenantCount() int { return x.tenants.len }

// TenantByDomain returns the tenant that owns a domain, or nil. Case does not matter.
func (x *Snapshot) TenantByDomain(domain string) *bulkhead.Tenant {
	return x.domain(strings.ToLower(domain)).owner()
}

// TenantByNumber returns the tenant that owns a number, with or without its '+', or nil.
func (x *Snapshot) TenantByNumber(number string) *bulkhead.Tenant {
	return x.number(digits(number)).owner()
}

// TenantBySource returns the tenant that owns the longest source network that
// holds a, or nil.
func (x *Snapshot) TenantBySource(a netip.Addr) *bulkhead.Tenant {
	return x.sources.lookup(a).owner()
}

// PoolOf returns the pool that a tenant's calls go to, or "".
func (x *Snapshot) PoolOf(t bulkhead.TenantID) bulkhead.PoolID {
	if h := x.home(t); h != nil {
		return h.pool.ID
	}
	return ""
}

// User returns a tenant's user, or nil.
func (x *Snapshot) User(t bulkhead.TenantID, extension string) *bulkhead.User {
	return x.home(t).user(extension)
}
