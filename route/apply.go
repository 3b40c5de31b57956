package route

import "github.com/bulkhead-voip/bulkhead"

// Apply returns the snapshot of the revision with the given number, to which
// a change of x's leads: the one that New makes of State.Apply's state, which
// must be valid. x stays as it is.
//
// What it costs follows from the size of the change, not from the number of
// tenants, unless the change has pools or nodes: those may move any tenant,
// and everything is indexed anew.
func (x *Snapshot) Apply(c *bulkhead.Change, number bulkhead.RevisionNumber) *Snapshot {
	if len(c.Pools)+len(c.Nodes)+len(c.Delete.Pools)+len(c.Delete.Nodes) > 0 {
		s := x.State().Apply(c)
		s.Revision = number
		return New(s)
	}
	y := &Snapshot{platform: x.platform.apply(c), tenants: x.tenants, domains: x.domains, numbers: x.numbers, sources: x.sources}
	y.objects.Revision = number
	y.state = y.stateOnce()
	touched := make(map[bulkhead.TenantID]*bulkhead.Tenant, len(c.Tenants)+len(c.Delete.Tenants))
	for i := range c.Tenants {
		touched[c.Tenants[i].ID] = &c.Tenants[i]
	}
	for _, id := range c.Delete.Tenants {
		touched[id] = nil
	}
	if len(touched) == 0 {
		return y
	}
	e := y.edit(0, 0, 0)
	// All that leaves goes before anything comes: a domain, number or network
	// may pass from one of these tenants to another.
	for id := range touched {
		if old := x.home(id); old != nil {
			e.remove(old)
		}
	}
	for _, t := range touched {
		if t != nil {
			h := y.settle(t)
			e.add(h)
			e.sources.add(t.Sources, h)
		}
	}
	e.done()
	return y
}

// edit is a change of a new snapshot's indexes.
type edit struct {
	x       *Snapshot
	tenants *tableEdit[*home]
	domains *tableEdit[*home]
	numbers *tableEdit[did]
	sources *networksEdit[*home]
}

// edit takes how many of each are expected in an empty snapshot.
func (x *Snapshot) edit(tenants, domains, numbers int) *edit {
	return &edit{x, x.tenants.edit(tenants), x.domains.edit(domains), x.numbers.edit(numbers), x.sources.edit()}
}

// add indexes a tenant by all but its networks.
func (e *edit) add(h *home) {
	t := &h.tenant
	e.tenants.set(string(t.ID), h)
	for _, d := range t.Domains {
		e.domains.set(d, h)
	}
	for i, n := range t.Numbers {
		e.numbers.set(n.Number, did{h, i})
	}
}

// remove takes a tenant out.
func (e *edit) remove(h *home) {
	t := &h.tenant
	e.tenants.remove(string(t.ID))
	for _, d := range t.Domains {
		e.domains.remove(d)
	}
	for _, n := range t.Numbers {
		e.numbers.remove(n.Number)
	}
	e.sources.remove(t.Sources)
}

func (e *edit) done() {
	e.x.tenants, e.x.domains, e.x.numbers, e.x.sources = e.tenants.done(), e.domains.done(), e.numbers.done(), e.sources.done()
}
