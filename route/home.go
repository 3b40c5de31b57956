package route

import (
	"hash/maphash"

	"github.com/bulkhead-voip/bulkhead"
)

// home is a tenant and where its calls go. What is looked up by anything
// leads to it directly, it holds the tenant itself, and its users are its own:
// a call touches a big table once or twice, and then little memory but this.
// That is what misses the processor's caches.
type home struct {
	pool   *pool // of the tenant's own cell
	set    int
	realm  string
	index  []uint32 // a hash table of places in tenant.Users, counted from 1; 0: none
	tenant bulkhead.Tenant
}

// settle gives a tenant its home.
func (p *platform) settle(t *bulkhead.Tenant) *home {
	pool := p.byProfile[profileKey{t.Cell, t.Profile}]
	h := &home{pool: pool, set: pool.setOf(t), realm: t.Realm(), tenant: *t}
	if len(t.Users) == 0 {
		return h
	}
	size := 2
	for size < 2*len(t.Users) {
		size *= 2
	}
	h.index = make([]uint32, size)
	for i := range t.Users {
		at := h.slot(t.Users[i].Extension)
		for h.index[at] != 0 {
			at = (at + 1) & (size - 1)
		}
		h.index[at] = uint32(i + 1)
	}
	return h
}

// slot is where the search for an extension begins.
func (h *home) slot(extension string) int {
	return int(maphash.String(h.pool.seed, extension) & uint64(len(h.index)-1))
}

// owner returns the tenant; of nil it is nil.
func (h *home) owner() *bulkhead.Tenant {
	if h == nil {
		return nil
	}
	return &h.tenant
}

// in returns the home if it is in the cell, else nil; of nil it is nil.
func (h *home) in(cell bulkhead.CellID) *home {
	if h == nil || h.pool.Cell != cell {
		return nil
	}
	return h
}

// user returns a user of the tenant or nil; of nil it is nil.
func (h *home) user(extension string) *bulkhead.User {
	if h == nil || len(h.index) == 0 || extension == "" {
		return nil
	}
	// At least half of the table is empty: the search ends.
	for at := h.slot(extension); h.index[at] != 0; at = (at + 1) & (len(h.index) - 1) {
		if u := &h.tenant.Users[h.index[at]-1]; u.Extension == extension {
			return u
		}
	}
	return nil
}
