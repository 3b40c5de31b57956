package kamailio_test

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

// TestDistribution: the calls of a spread pool fit its nodes' weights, by a
// chi-square test, for one node to 64. Then one of six is lost.
func TestDistribution(t *testing.T) {
	w := newWorld(t, kamailio.Params{PingInterval: time.Hour})
	sizes := []int{1, 6, 64}
	var c bulkhead.Change
	for k, n := range sizes {
		name := fmt.Sprintf("many%d", n)
		c.Pools = append(c.Pools, bulkhead.Pool{ID: bulkhead.PoolID(name), Cell: "c1", Profile: bulkhead.ProfileID(name), Placement: bulkhead.Spread})
		c.Tenants = append(c.Tenants, tenant(bulkhead.TenantID(name), bulkhead.ProfileID(name), fmt.Sprintf("4940%d", k), fmt.Sprintf("127.%d.0.0/16", k+1)))
		for i := range n {
			id := bulkhead.NodeID(fmt.Sprintf("%s-%d", name, i))
			w.nodes[id] = newNode(t, "486 Busy Here")
			node := bulkhead.Node{ID: id, Pool: bulkhead.PoolID(name), SIP: w.nodes[id].addr}
			if n > 6 {
				node.Weight = 20 + 40*(i%3)
			}
			c.Nodes = append(c.Nodes, node)
		}
	}
	w.apply(c)
	// place makes calls of the k-th tenant and counts them by node.
	place := func(k, calls int) map[bulkhead.NodeID]int {
		t.Helper()
		got := map[bulkhead.NodeID]int{}
		for range calls {
			x := call{ruri: fmt.Sprintf("sip:1001@many%d.example", sizes[k]), callID: fmt.Sprintf("many-%016x", serial())}
			want(t, "call", w.ask(fmt.Sprintf("127.%d.1.1", k+1), x), 486)
			id, _ := w.heardBy(x.callID)
			got[id]++
		}
		return got
	}
	for k, n := range sizes {
		const calls = 600
		got := place(k, calls)
		set := w.setOf(fmt.Sprintf("many%d", n))
		sum, chi, left := 0, 0.0, calls
		for _, to := range set.Targets {
			sum += to.Weight
		}
		for _, to := range set.Targets {
			expected := calls * float64(to.Weight) / float64(sum)
			chi += math.Pow(float64(got[to.Node])-expected, 2) / expected
			left -= got[to.Node]
		}
		df := float64(len(set.Targets) - 1)
		if limit := df + 6*math.Sqrt(2*df); chi > limit || left != 0 { // beyond it: one in a million
			t.Errorf("%d nodes: chi-square is %.1f, want at most %.1f; %d calls went elsewhere: %v", n, chi, limit, left, got)
		}
	}
	w.nodes["many6-2"].set("")
	w.shift(route.NodeStates{"many6-2": {Dead: true}})
	const calls = 1500
	for id, n := range place(1, calls) {
		if id == "many6-2" || math.Abs(float64(n)-calls/5) > 0.2*calls/5 {
			t.Errorf("one of six is lost: %s got %d of %d calls", id, n, calls)
		}
	}
}

// setOf returns the set that a tenant's row names.
func (w *world) setOf(tenant string) route.Set {
	w.t.Helper()
	tables := w.tables()
	for _, r := range tables.Rows {
		if r.Key != "t:"+tenant {
			continue
		}
		id, _, _ := strings.Cut(r.Value, "|")
		for _, s := range tables.Sets {
			if strconv.Itoa(s.ID) == id {
				return s
			}
		}
	}
	w.t.Fatalf("there is no set of tenant %s", tenant)
	return route.Set{}
}
