package route_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

func tables(t *testing.T, s bulkhead.State, id bulkhead.SBCID) route.Tables {
	t.Helper()
	got, err := route.MakeTables(route.New(s), id)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestTablesOfTheExample(t *testing.T) {
	x := route.New(example(t))
	got, err := route.MakeTables(x, "sbc-6")
	if err != nil {
		t.Fatal(err)
	}
	set := route.Decide(x, route.Call{SBC: "sbc-6", Tenant: "wolf", Number: "1001"}).Set
	want := route.Tables{
		SBC: "sbc-6", Revision: 7,
		Rows: []route.Row{
			{"d:127.0.0.1", "*"}, {"d:[2001:db8:f::5]", "*"}, {"d:sip.example", "*"}, {"d:west.example", "*"},
			{"d:wolf.example", "wolf"},
			{"n:49303001", "wolf"},
			{"p:2001:db8:f::1:7004", "w1"},
			{"s:192.0", "|24"}, {"s:192.0.2", "wolf"},
			{"t:wolf", fmt.Sprintf("%d|8|west-std|wolf.example|0|0|0|0|0|1", set)},
			{"u:1001@wolf", ha1},
		},
		Sets: []route.Set{{
			ID: set, Pool: "west-std", Home: "w1", Algorithm: route.ByPriority,
			Targets: []route.Target{{Node: "w1", URI: "sip:[2001:db8:f::1]:7004", Priority: 1, Weight: 100}},
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tables differ (-want +got):\n%s", diff)
	}
}

func TestTablesOfAnUnknownSBC(t *testing.T) {
	if _, err := route.MakeTables(route.New(example(t)), "sbc-x"); !errors.Is(err, bulkhead.NotFound) {
		t.Errorf("got %v, want %v", err, bulkhead.NotFound)
	}
}

func TestTablesAreTheSameEachTime(t *testing.T) {
	want := tables(t, example(t), "sbc-e")
	for range 20 {
		if got := tables(t, example(t), "sbc-e"); !cmp.Equal(got, want) {
			t.Fatalf("the same state gave other tables:\n%s", cmp.Diff(want, got))
		}
	}
}

// Set ids are a promise to the SBCs that run: these never change.
func TestSetIDs(t *testing.T) {
	got := setIDs(tables(t, example(t), "sbc-e"))
	want := map[string]int{
		"east-ai///0/0":      1741083875,
		"east-std/e1/e2/0/0": 1437437590, "east-std/e1/e2/0/1": 312565511, "east-std/e1/e2/0/2": 1784131675,
		"east-std/e2/e1/0/0": 835994920, "east-std/e2/e1/0/1": 498351679, "east-std/e2/e1/0/2": 1295558467,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sets differ (-want +got):\n%s", diff)
	}
}

func TestSetIDsStayThroughRevisions(t *testing.T) {
	s := example(t)
	before := setIDs(tables(t, s, "sbc-e"))
	for _, c := range []bulkhead.Change{
		{Nodes: []bulkhead.Node{{ID: "a0", Pool: "east-std", SIP: "127.0.0.1:7100"}, {ID: "z9", Pool: "east-ai", SIP: "127.0.0.1:7101"}}},
		{Nodes: []bulkhead.Node{{ID: "e1", Pool: "east-std", SIP: "127.0.0.1:7001", Drain: true}}},
		{Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{"acme", "bolt"}}},
		{Nodes: []bulkhead.Node{{ID: "e1", Pool: "east-std", SIP: "127.0.0.1:7001"}}, Delete: bulkhead.Deletion{Nodes: []bulkhead.NodeID{"a0"}}},
	} {
		s = s.Apply(&c)
		after := setIDs(tables(t, s, "sbc-e"))
		for key, id := range before {
			if after[key] != id {
				t.Errorf("revision %d: set of %s is %d, was %d", s.Revision, key, after[key], id)
			}
		}
	}
}

func setIDs(t route.Tables) map[string]int {
	ids := map[string]int{}
	for _, s := range t.Sets {
		ids[fmt.Sprintf("%s/%s/%s/%d/%d", s.Pool, s.Home, s.Second, s.Turn, s.Band)] = s.ID
	}
	return ids
}

// A row that is one step behind its sets names a set that is still there,
// whose nodes can take the call.
func TestDrainingKeepsTheSetsThatOldRowsName(t *testing.T) {
	s := example(t)
	old := tables(t, s, "sbc-e")
	s = s.Apply(&bulkhead.Change{Nodes: []bulkhead.Node{{ID: "e1", Pool: "east-std", SIP: "127.0.0.1:7001", Drain: true}}})
	drained := tables(t, s, "sbc-e")
	for _, was := range old.Sets {
		i := slices.IndexFunc(drained.Sets, func(is route.Set) bool { return is.ID == was.ID })
		if i < 0 {
			t.Errorf("set %d of home %q is gone", was.ID, was.Home)
			continue
		}
		if !slices.ContainsFunc(drained.Sets[i].Targets, func(to route.Target) bool { return !to.Disabled }) {
			t.Errorf("set %d of home %q has nobody to take a call", was.ID, was.Home)
		}
	}
}

func TestAllDrained(t *testing.T) {
	s := example(t).Apply(&bulkhead.Change{Nodes: []bulkhead.Node{
		{ID: "e1", Pool: "east-std", SIP: "127.0.0.1:7001", Drain: true}, {ID: "e2", Pool: "east-std", SIP: "127.0.0.1:7002", Drain: true},
	}})
	got := tables(t, s, "sbc-e")
	p := route.Decide(route.New(s), route.Call{SBC: "sbc-e", Tenant: "acme", Number: "1001"})
	i := slices.IndexFunc(got.Sets, func(is route.Set) bool { return is.ID == p.Set })
	if i < 0 {
		t.Fatalf("set %d is missing", p.Set)
	}
	for _, to := range got.Sets[i].Targets {
		if to.Disabled != (to.Node != "e3") {
			t.Errorf("target %+v: only the backup pool's node takes calls", to)
		}
	}
}

// sticky returns a state of n tenants in one sticky pool of the given nodes.
func sticky(t *testing.T, n int, nodes ...string) bulkhead.State {
	t.Helper()
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c", MaxTenants: n}},
		Pools: []bulkhead.Pool{{ID: "p", Cell: "c", Profile: "standard"}},
		SBCs:  []bulkhead.SBC{{ID: "s", Cell: "c", SIP: "127.0.0.1:5060"}},
	}
	for i, id := range nodes {
		c.Nodes = append(c.Nodes, bulkhead.Node{ID: bulkhead.NodeID(id), Pool: "p", SIP: fmt.Sprintf("127.0.0.1:%d", 7000+i)})
	}
	for i := range n {
		id := fmt.Sprintf("tenant%d", i)
		c.Tenants = append(c.Tenants, bulkhead.Tenant{ID: bulkhead.TenantID(id), Cell: "c", Profile: "standard", Domains: []string{id + ".example"}})
	}
	return bulkhead.State{}.Apply(&c)
}

// homes returns the node that each tenant's calls go to.
func homes(t *testing.T, s bulkhead.State) map[string]bulkhead.NodeID {
	t.Helper()
	made := tables(t, s, "s")
	home := map[string]bulkhead.NodeID{}
	for _, set := range made.Sets {
		for _, to := range set.Targets {
			if !to.Disabled {
				home[fmt.Sprint(set.ID)] = to.Node
				break
			}
		}
	}
	out := map[string]bulkhead.NodeID{}
	for _, r := range made.Rows {
		if id, ok := strings.CutPrefix(r.Key, "t:"); ok {
			set, _, _ := strings.Cut(r.Value, "|")
			out[id] = home[set]
		}
	}
	return out
}

func TestHomesAreEven(t *testing.T) {
	for _, nodes := range [][]string{
		{"n1", "n2", "n3", "n4", "n5"},
		{"fs-media-node-001", "fs-media-node-002", "fs-media-node-003", "fs-media-node-004", "fs-media-node-005", "fs-media-node-006", "fs-media-node-007"},
	} {
		const n = 10000
		count := map[bulkhead.NodeID]int{}
		for _, home := range homes(t, sticky(t, n, nodes...)) {
			count[home]++
		}
		mean, chi := float64(n)/float64(len(nodes)), 0.0
		for _, id := range nodes {
			d := float64(count[bulkhead.NodeID(id)]) - mean
			chi += d * d / mean
		}
		// Above 30 lies less than one in ten thousand with 6 degrees of freedom.
		if chi > 30 {
			t.Errorf("homes are %v: chi-square %.1f", count, chi)
		}
	}
}

// A node that goes takes only its own tenants with it, and they spread over
// all others; one that comes takes its share and moves nobody else.
func TestDrainMovesOnlyItsOwn(t *testing.T) {
	const n = 3000
	s := sticky(t, n, "n1", "n2", "n3", "n4")
	before := homes(t, s)
	drained := s.Apply(&bulkhead.Change{Nodes: []bulkhead.Node{{ID: "n2", Pool: "p", SIP: "127.0.0.1:7001", Drain: true}}})
	deleted := s.Apply(&bulkhead.Change{Delete: bulkhead.Deletion{Nodes: []bulkhead.NodeID{"n2"}}})
	after := homes(t, drained)
	heirs := map[bulkhead.NodeID]int{}
	for id, home := range after {
		switch {
		case home == "n2":
			t.Fatalf("tenant %s is at home on the drained node", id)
		case before[id] == "n2":
			heirs[home]++
		case before[id] != home:
			t.Errorf("tenant %s moved from %s to %s", id, before[id], home)
		}
	}
	if len(heirs) != 3 || slices.Min(slices.Collect(maps.Values(heirs))) < n/4/3/2 {
		t.Errorf("the drained node's tenants went to %v", heirs)
	}
	if diff := cmp.Diff(after, homes(t, deleted)); diff != "" {
		t.Errorf("deleting moves others than draining (-drained +deleted):\n%s", diff)
	}
}
