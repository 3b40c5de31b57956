package kamailio_test

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/dispatcher"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

// TestDistribution: the calls of a spread pool fit its nodes' weights, by a
// chi-square test, for one node to 64.
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
}

// TestLossIsSpread kills one of six nodes. Whoever watches them finds out, and
// its share of the calls then goes to each of the others alike.
//
// Kamailio deals the hundred places of a set out one after the other, so that
// whole hundreds of calls show what each node has of them without any chance.
func TestLossIsSpread(t *testing.T) {
	w := newWorld(t, kamailio.Params{PingInterval: time.Hour})
	c := bulkhead.Change{
		Pools:   []bulkhead.Pool{{ID: "six", Cell: "c1", Profile: "six", Placement: bulkhead.Spread}},
		Tenants: []bulkhead.Tenant{tenant("six", "six", "493060", "127.1.0.0/16")},
	}
	var ids []bulkhead.NodeID
	for i := range 6 {
		id := bulkhead.NodeID(fmt.Sprintf("six-%d", i))
		ids = append(ids, id)
		w.nodes[id] = newNode(t, "486 Busy Here")
		c.Nodes = append(c.Nodes, bulkhead.Node{ID: id, Pool: "six", SIP: w.nodes[id].addr})
	}
	w.apply(c)
	const calls = 600
	count := func() map[bulkhead.NodeID]int {
		got := map[bulkhead.NodeID]int{}
		for range calls {
			got[w.answeredBy("six.example")]++
		}
		return got
	}
	before := count()
	// One that has 17 places of the hundred: three or four more for each of the
	// others are within a fifth of 17/5. Of 16 they could not be.
	lost := ids[0]
	for _, id := range ids {
		if before[id] > before[lost] {
			lost = id
		}
	}
	watch := w.watch()
	if err := w.nodes[lost].conn.Close(); err != nil { // as the kernel does for a process that is killed
		t.Fatal(err)
	}
	var states route.NodeStates
	within(t, 60*time.Second, "the node that was killed is known to be dead, and no other one is unwell", func() bool {
		states, _ = watch.Next()
		return len(states) == 1 && states.Of(lost).Dead
	})
	w.shift(states)
	after := count()
	fifth := float64(before[lost]) / 5
	for _, id := range ids {
		if n := before[id]; math.Abs(float64(n)-calls/6) > calls/100 {
			t.Errorf("all are well: %s got %d of %d calls", id, n, calls)
		}
		if more := float64(after[id] - before[id]); id != lost && math.Abs(more-fifth) > 0.2*fifth {
			t.Errorf("%s is lost: %s got %.0f more calls, want %.1f: %v, before %v", lost, id, more, fifth, after, before)
		}
	}
	if after[lost] > 0 {
		t.Errorf("%s is lost, and was asked %d times", lost, after[lost])
	}
}

// watch asks the world's nodes how they are until the test ends.
func (w *world) watch() *dispatcher.Watch {
	w.t.Helper()
	live := &route.Live{}
	live.Store(route.New(w.state))
	watch, err := dispatcher.NewWatch(dispatcher.WatchConfig{SBC: "sbc1"}, live, dispatcher.UDPPinger{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(watch.Run)
	return watch
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
