package route_test

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// poolState returns a state of a pool "p" of n nodes n0, n1, ..., a backup
// pool "b" of m nodes b0, ..., and tenants whose priorities go round.
func poolState(t testing.TB, placement bulkhead.Placement, n, m, tenants int) bulkhead.State {
	t.Helper()
	s := poolStateOf(placement, n, m, tenants)
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return s
}

func poolStateOf(placement bulkhead.Placement, n, m, tenants int) bulkhead.State {
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c", MaxTenants: max(1, tenants)}},
		Pools: []bulkhead.Pool{{ID: "p", Cell: "c", Profile: "standard", Placement: placement}},
		SBCs:  []bulkhead.SBC{{ID: "s", Cell: "c", SIP: "127.0.0.1:5060"}},
	}
	if m > 0 {
		c.Pools[0].Backup = "b"
		c.Pools = append(c.Pools, bulkhead.Pool{ID: "b", Cell: "c", Profile: "reserve", Placement: placement})
	}
	add := func(pool bulkhead.PoolID, prefix string, count int) {
		for i := range count {
			c.Nodes = append(c.Nodes, bulkhead.Node{ID: bulkhead.NodeID(fmt.Sprint(prefix, i)), Pool: pool, SIP: fmt.Sprintf("127.0.0.1:%d", 7000+len(c.Nodes))})
		}
	}
	add("p", "n", n)
	add("b", "b", m)
	for i := range tenants {
		id := fmt.Sprintf("tenant%d", i)
		c.Tenants = append(c.Tenants, bulkhead.Tenant{ID: bulkhead.TenantID(id), Cell: "c", Profile: "standard", Domains: []string{id + ".example"}, Priority: i % 101})
	}
	return bulkhead.State{}.Apply(&c)
}

// load returns the share of all calls that each node gets, if every tenant
// places as many and every node takes those that it is offered first.
func load(t testing.TB, x *route.Snapshot, states route.NodeStates) map[bulkhead.NodeID]float64 {
	t.Helper()
	sets, err := route.MakeSets(x, "s", states)
	if err != nil {
		t.Fatal(err)
	}
	byID := map[int]route.Set{}
	for _, s := range sets {
		byID[s.ID] = s
	}
	out := map[bulkhead.NodeID]float64{}
	for tenant := range x.Tenants() {
		set, ok := byID[route.Decide(x, route.Call{SBC: "s", Tenant: tenant.ID}).Set]
		if !ok {
			t.Fatalf("tenant %s has no set", tenant.ID)
		}
		total := 0
		for _, to := range set.Targets {
			total += to.Weight
		}
		calls := 1 / float64(x.TenantCount())
		if set.Algorithm == route.ByPriority {
			out[set.Targets[0].Node] += calls
			continue
		}
		for _, to := range set.Targets {
			if to.Weight > 0 {
				out[to.Node] += calls * float64(to.Weight) / float64(total)
			}
		}
	}
	return out
}

// fits compares shares with what they should be, within so much of it.
func fits(t *testing.T, what string, got map[bulkhead.NodeID]float64, want map[bulkhead.NodeID]float64, within float64) {
	t.Helper()
	for n, w := range want {
		if math.Abs(got[n]-w) > w*within {
			t.Errorf("%s: node %s gets %.4f of the calls, want %.4f within %.0f %%", what, n, got[n], w, within*100)
		}
	}
	for n := range got {
		if _, ok := want[n]; !ok {
			t.Errorf("%s: node %s gets %.4f of the calls, want none", what, n, got[n])
		}
	}
}

func even(prefix string, nodes ...int) map[bulkhead.NodeID]float64 {
	out := map[bulkhead.NodeID]float64{}
	for _, n := range nodes {
		out[bulkhead.NodeID(fmt.Sprint(prefix, n))] = 1 / float64(len(nodes))
	}
	return out
}

func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// Every number of nodes gets even shares, and as few sets as can be read back.
func TestSharesAreEven(t *testing.T) {
	for _, placement := range []bulkhead.Placement{bulkhead.Sticky, bulkhead.Spread} {
		for _, n := range []int{1, 3, 6, 20, 64} {
			x := route.New(poolState(t, placement, n, 0, 8000))
			within := 0.35 // of 8000/64 tenants at each home: three standard deviations
			if placement == bulkhead.Spread {
				within = 0.15
			}
			fits(t, fmt.Sprintf("%s pool of %d", placement, n), load(t, x, nil), even("n", upTo(n)...), within)
		}
	}
}

// The calls of a lost node go to all others alike.
func TestLostNodeIsSharedOut(t *testing.T) {
	for _, placement := range []bulkhead.Placement{bulkhead.Sticky, bulkhead.Spread} {
		x := route.New(poolState(t, placement, 6, 0, 12000))
		before := load(t, x, nil)
		after := load(t, x, route.NodeStates{"n2": {Dead: true}})
		more := map[bulkhead.NodeID]float64{}
		for n, share := range after {
			more[n] = share - before[n]
		}
		want := even("n", 0, 1, 3, 4, 5)
		for n := range want {
			want[n] *= before["n2"]
		}
		fits(t, string(placement)+" pool that lost a node: more calls", more, want, 0.2)
	}
}

// Only the tenants of a node that is lost, hot or drained move, and they come
// back. The rows of tenants stay as they are.
func TestOthersStay(t *testing.T) {
	s := poolState(t, bulkhead.Sticky, 5, 3, 3000)
	x := route.New(s)
	first := func(states route.NodeStates) map[int]bulkhead.NodeID {
		sets, err := route.MakeSets(x, "s", states)
		if err != nil {
			t.Fatal(err)
		}
		out := map[int]bulkhead.NodeID{}
		for _, set := range sets {
			if set.Pool == "p" {
				out[set.ID] = set.Targets[0].Node
				if states == nil && set.Home != set.Targets[0].Node {
					t.Errorf("set %d of home %s begins with %s", set.ID, set.Home, set.Targets[0].Node)
				}
			}
		}
		return out
	}
	well := first(nil)
	for name, st := range map[string]route.NodeState{"dead": {Dead: true}, "hot": {}, "closed": {Closed: true}} {
		moved := 0
		for id, n := range first(route.NodeStates{"n1": st}) {
			switch {
			case well[id] == "n1" && n == "n1":
				t.Errorf("set %d stays at a node that is %s", id, name)
			case well[id] == "n1":
				moved++
			case well[id] != n:
				t.Errorf("set %d moved from %s to %s though n1 is %s", id, well[id], n, name)
			}
		}
		if moved == 0 {
			t.Errorf("nothing moved from a node that is %s", name)
		}
	}
	n1 := *s.Nodes["n1"]
	n1.Drain = true
	drained, err := route.MakeTables(route.New(s.Apply(&bulkhead.Change{Nodes: []bulkhead.Node{n1}})), "s")
	if err != nil {
		t.Fatal(err)
	}
	was, err := route.MakeTables(x, "s")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(was.Rows, drained.Rows) {
		t.Error("a drain changes the rows of the table")
	}
	half := map[bulkhead.NodeID]int{}
	for id, n := range first(route.NodeStates{"n1": {Share: 60}}) {
		if well[id] == "n1" {
			half[n]++
		}
	}
	if total := 4 * 3; half["n1"] < total*5/10 || half["n1"] > total*7/10 {
		t.Errorf("of %d sets at a node with a share of 60, %v", total, half)
	}
}

// A pool that is hot as a whole gives the calls of the lowest priority to its
// backup first, and keeps those of the highest the longest.
func TestOverflowByPriority(t *testing.T) {
	for _, placement := range []bulkhead.Placement{bulkhead.Sticky, bulkhead.Spread} {
		x := route.New(poolState(t, placement, 3, 3, 500))
		away := func(share int) (out [3]float64) {
			states := route.NodeStates{}
			for i := range 3 {
				states[bulkhead.NodeID(fmt.Sprint("n", i))] = route.NodeState{Share: share}
			}
			sets, err := route.MakeSets(x, "s", states)
			if err != nil {
				t.Fatal(err)
			}
			var count [3]float64
			for _, s := range sets {
				if s.Pool != "p" {
					continue
				}
				count[s.Band]++
				weight, theirs := 0, 0
				for _, to := range s.Targets {
					weight += to.Weight
					if to.Node[0] == 'b' {
						theirs += to.Weight
					}
				}
				switch {
				case s.Algorithm == route.ByWeight:
					out[s.Band] += float64(theirs) / float64(weight)
				case s.Targets[0].Node[0] == 'b':
					out[s.Band]++
				}
			}
			for b := range out {
				out[b] /= count[b]
			}
			return out
		}
		for share, want := range map[int][3]float64{100: {}, 50: {}, 40: {0.6, 0, 0}, 25: {1, 0.5, 0}, 10: {1, 1, 0.4}, 0: {1, 1, 1}} {
			got := away(share)
			for b := range want {
				if math.Abs(got[b]-want[b]) > 0.26 {
					t.Errorf("%s pool at %d %%: %.2f of the calls of each band go to the backup, want %.2f", placement, share, got, want)
					break
				}
			}
		}
	}
}

// A backup that is not well itself takes nothing over.
func TestNoOverflowIntoAHotPool(t *testing.T) {
	x := route.New(poolState(t, bulkhead.Sticky, 2, 2, 50))
	got := load(t, x, route.NodeStates{"n0": {Share: 10}, "n1": {Share: 10}, "b0": {Share: 10}, "b1": {Share: 20}})
	if got["b0"]+got["b1"] > 0 {
		t.Errorf("a hot backup gets calls: %v", got)
	}
}

func TestTooManySets(t *testing.T) {
	_, err := route.MakeSets(route.New(poolState(t, bulkhead.Sticky, 128, 128, 0)), "s", nil)
	if !errors.Is(err, bulkhead.Conflict) {
		t.Errorf("MakeSets returns %v, want a conflict", err)
	}
	if _, err := route.MakeSets(route.New(poolState(t, bulkhead.Sticky, 1, 0, 0)), "x", nil); !errors.Is(err, bulkhead.NotFound) {
		t.Errorf("MakeSets of an unknown SBC returns %v", err)
	}
}

// Whatever is known of the nodes: somebody takes the calls of every set whose
// pool has a node that is not drained, nobody who is drained does, the ids
// stay, and no set is larger than it may be.
func TestSetsOfAnyStates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string, max int) int { return rapid.IntRange(0, max).Draw(t, name) }
		placement := rapid.SampledFrom([]bulkhead.Placement{bulkhead.Sticky, bulkhead.Spread}).Draw(t, "placement")
		s := poolStateOf(placement, 1+draw("nodes", 25), draw("backup", 4), 0)
		states := route.NodeStates{}
		var c bulkhead.Change
		for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
			n := *s.Nodes[id]
			n.Drain, n.Disabled = draw("drain", 3) == 0, draw("disabled", 5) == 0
			n.Weight = draw("weight", 100)
			c.Nodes = append(c.Nodes, n)
			if draw("known", 2) > 0 {
				states[id] = route.NodeState{Share: draw("share", 100) * draw("some", 1), Dead: draw("dead", 3) == 0, Closed: draw("closed", 3) == 0}
			}
		}
		s = s.Apply(&c)
		x := route.New(s)
		plain, err := route.MakeSets(x, "s", nil)
		if err != nil {
			t.Fatal(err)
		}
		sets, err := route.MakeSets(x, "s", states)
		if err != nil {
			t.Fatal(err)
		}
		undrained := map[bulkhead.PoolID]bool{}
		for _, n := range s.Nodes {
			if !n.Drain && !n.Disabled {
				undrained[n.Pool] = true
			}
		}
		for i, set := range sets {
			if set.ID != plain[i].ID {
				t.Fatalf("set %d is %d without states", set.ID, plain[i].ID)
			}
			offered := 0
			for _, to := range set.Targets {
				n := s.Nodes[to.Node]
				if (n.Drain || n.Disabled) && !to.Disabled {
					t.Fatalf("set %+v offers calls to %+v", set, n)
				}
				if to.Weight < 0 || to.Weight > 1<<20 || to.Weight > 0 && (to.Disabled || to.Down) {
					t.Fatalf("set %+v: target %+v", set, to)
				}
				if to.Weight > 0 {
					offered++
				}
			}
			if (offered > 0) != undrained[set.Pool] && !(offered > 0 && undrained[s.Pools[set.Pool].Backup]) {
				t.Fatalf("set %+v has %d nodes that take calls", set, offered)
			}
			if len(set.Targets) > 20 {
				t.Fatalf("set %+v has %d targets", set, len(set.Targets))
			}
		}
	})
}
