package registry

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
)

// drawChange draws a change of few objects, so that they come again.
func drawChange(t *rapid.T) bulkhead.Change {
	var c bulkhead.Change
	id := rapid.SampledFrom([]string{"a", "b", "c"})
	for range rapid.IntRange(0, 3).Draw(t, "puts") {
		n := rapid.IntRange(1, 9).Draw(t, "value")
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			c.Cells = append(c.Cells, bulkhead.Cell{ID: bulkhead.CellID(id.Draw(t, "id")), MaxTenants: n})
		case 1:
			c.Pools = append(c.Pools, bulkhead.Pool{ID: bulkhead.PoolID(id.Draw(t, "id")), Profile: bulkhead.ProfileID(fmt.Sprint(n))})
		case 2:
			c.Nodes = append(c.Nodes, bulkhead.Node{ID: bulkhead.NodeID(id.Draw(t, "id")), Weight: n})
		case 3:
			c.SBCs = append(c.SBCs, bulkhead.SBC{ID: bulkhead.SBCID(id.Draw(t, "id")), SIP: fmt.Sprint(n)})
		case 4:
			c.Tenants = append(c.Tenants, bulkhead.Tenant{ID: bulkhead.TenantID(id.Draw(t, "id")), Name: fmt.Sprint(n)})
		}
	}
	for range rapid.IntRange(0, 2).Draw(t, "deletions") {
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			c.Delete.Cells = append(c.Delete.Cells, bulkhead.CellID(id.Draw(t, "id")))
		case 1:
			c.Delete.Pools = append(c.Delete.Pools, bulkhead.PoolID(id.Draw(t, "id")))
		case 2:
			c.Delete.Nodes = append(c.Delete.Nodes, bulkhead.NodeID(id.Draw(t, "id")))
		case 3:
			c.Delete.SBCs = append(c.Delete.SBCs, bulkhead.SBCID(id.Draw(t, "id")))
		case 4:
			c.Delete.Tenants = append(c.Delete.Tenants, bulkhead.TenantID(id.Draw(t, "id")))
		}
	}
	return c
}

func TestMerge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := drawChange(t)
		start := bulkhead.State{}.Apply(&first)
		want := start
		var changes []*bulkhead.Change
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			c := drawChange(t)
			changes = append(changes, &c)
			want = want.Apply(&c)
		}
		c := merge(changes)
		got := start.Apply(&c)
		if d := want.Diff(got); !d.IsZero() {
			t.Fatalf("merged, the changes lead elsewhere: %+v", d)
		}
	})
}
