package registry

import (
	"maps"
	"slices"

	"github.com/bulkhead-voip/bulkhead"
)

// merge makes one change of several that follow each other. What one puts
// may be shared with the result.
func merge(changes []*bulkhead.Change) bulkhead.Change {
	if len(changes) == 1 {
		return *changes[0]
	}
	var (
		cells   = merged[bulkhead.CellID, bulkhead.Cell]{}
		pools   = merged[bulkhead.PoolID, bulkhead.Pool]{}
		nodes   = merged[bulkhead.NodeID, bulkhead.Node]{}
		sbcs    = merged[bulkhead.SBCID, bulkhead.SBC]{}
		tenants = merged[bulkhead.TenantID, bulkhead.Tenant]{}
		out     bulkhead.Change
	)
	for _, c := range changes {
		cells.add(c.Cells, func(v *bulkhead.Cell) bulkhead.CellID { return v.ID }, c.Delete.Cells)
		pools.add(c.Pools, func(v *bulkhead.Pool) bulkhead.PoolID { return v.ID }, c.Delete.Pools)
		nodes.add(c.Nodes, func(v *bulkhead.Node) bulkhead.NodeID { return v.ID }, c.Delete.Nodes)
		sbcs.add(c.SBCs, func(v *bulkhead.SBC) bulkhead.SBCID { return v.ID }, c.Delete.SBCs)
		tenants.add(c.Tenants, func(v *bulkhead.Tenant) bulkhead.TenantID { return v.ID }, c.Delete.Tenants)
	}
	out.Cells, out.Delete.Cells = cells.lists()
	out.Pools, out.Delete.Pools = pools.lists()
	out.Nodes, out.Delete.Nodes = nodes.lists()
	out.SBCs, out.Delete.SBCs = sbcs.lists()
	out.Tenants, out.Delete.Tenants = tenants.lists()
	return out
}

// merged is what becomes of each object; nil: it is deleted.
type merged[K ~string, V any] map[K]*V

func (m merged[K, V]) add(put []V, id func(*V) K, del []K) {
	for i := range put {
		m[id(&put[i])] = &put[i]
	}
	for _, k := range del {
		m[k] = nil
	}
}

func (m merged[K, V]) lists() (put []V, del []K) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if v := m[k]; v != nil {
			put = append(put, *v)
		} else {
			del = append(del, k)
		}
	}
	return put, del
}
