package bulkhead

import (
	"maps"
	"slices"
)

// State is all configuration at one revision. A State that was handed out is
// never changed: Apply makes a new one that shares what did not change.
type State struct {
	Revision RevisionNumber
	Cells    map[CellID]*Cell
	Pools    map[PoolID]*Pool
	Nodes    map[NodeID]*Node
	SBCs     map[SBCID]*SBC
	Tenants  map[TenantID]*Tenant
}

// Change is a set of objects to put and to delete, applied together or not at all.
type Change struct {
	Cells   []Cell   `json:"cells,omitempty"`
	Pools   []Pool   `json:"pools,omitempty"`
	Nodes   []Node   `json:"nodes,omitempty"`
	SBCs    []SBC    `json:"sbcs,omitempty"`
	Tenants []Tenant `json:"tenants,omitempty"`
	Delete  Deletion `json:"delete,omitzero"`
}

// Deletion names the objects that a Change removes.
type Deletion struct {
	Cells   []CellID   `json:"cells,omitempty"`
	Pools   []PoolID   `json:"pools,omitempty"`
	Nodes   []NodeID   `json:"nodes,omitempty"`
	SBCs    []SBCID    `json:"sbcs,omitempty"`
	Tenants []TenantID `json:"tenants,omitempty"`
}

// IsZero reports whether nothing is deleted.
func (d Deletion) IsZero() bool {
	return len(d.Cells)+len(d.Pools)+len(d.Nodes)+len(d.SBCs)+len(d.Tenants) == 0
}

// IsZero reports whether the change changes nothing.
func (c *Change) IsZero() bool {
	return c.Delete.IsZero() &&
		len(c.Cells)+len(c.Pools)+len(c.Nodes)+len(c.SBCs)+len(c.Tenants) == 0
}

// Apply returns the state after c, numbered s.Revision+1. Puts come before
// deletions; deleting what is not there is no error. The result is not
// validated: see State.Validate.
func (s State) Apply(c *Change) State {
	return State{
		Revision: s.Revision + 1,
		Cells:    patch(s.Cells, c.Cells, func(v *Cell) CellID { return v.ID }, c.Delete.Cells),
		Pools:    patch(s.Pools, c.Pools, func(v *Pool) PoolID { return v.ID }, c.Delete.Pools),
		Nodes:    patch(s.Nodes, c.Nodes, func(v *Node) NodeID { return v.ID }, c.Delete.Nodes),
		SBCs:     patch(s.SBCs, c.SBCs, func(v *SBC) SBCID { return v.ID }, c.Delete.SBCs),
		Tenants:  patch(s.Tenants, c.Tenants, func(v *Tenant) TenantID { return v.ID }, c.Delete.Tenants),
	}
}

func patch[K comparable, V any](old map[K]*V, put []V, id func(*V) K, del []K) map[K]*V {
	if len(put) == 0 && len(del) == 0 && old != nil {
		return old
	}
	m := make(map[K]*V, len(old)+len(put))
	maps.Copy(m, old)
	for i := range put {
		v := put[i]
		m[id(&v)] = &v
	}
	for _, k := range del {
		delete(m, k)
	}
	return m
}

// Diff returns the change that leads from s to to: Apply(Diff) of s equals to
// but for the revision number. Objects come in the order of their ids.
func (s State) Diff(to State) Change {
	var c Change
	c.Cells, c.Delete.Cells = diff(s.Cells, to.Cells, equalJSON)
	c.Pools, c.Delete.Pools = diff(s.Pools, to.Pools, equalJSON)
	c.Nodes, c.Delete.Nodes = diff(s.Nodes, to.Nodes, equalJSON)
	c.SBCs, c.Delete.SBCs = diff(s.SBCs, to.SBCs, equalJSON)
	c.Tenants, c.Delete.Tenants = diff(s.Tenants, to.Tenants, equalJSON)
	return c
}

func diff[K ~string, V any](from, to map[K]*V, equal func(a, b any) bool) (put []V, del []K) {
	for _, k := range slices.Sorted(maps.Keys(to)) {
		if old, ok := from[k]; !ok || (old != to[k] && !equal(old, to[k])) {
			put = append(put, *to[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(from)) {
		if _, ok := to[k]; !ok {
			del = append(del, k)
		}
	}
	return put, del
}

// Change returns the change that makes the state out of nothing.
func (s State) Change() Change { return State{}.Diff(s) }
