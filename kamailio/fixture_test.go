package kamailio_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
	"github.com/bulkhead-voip/bulkhead/route"
)

// world is a cell with a real SBC and four nodes: n1 and n2 in the sticky pool
// std, whose backup is the spread pool hv with n3 and n4.
type world struct {
	*kamailiotest.Daemon
	t     testing.TB
	state bulkhead.State
	nodes map[bulkhead.NodeID]*node
}

func newWorld(t testing.TB, p kamailio.Params) *world {
	t.Helper()
	return newWorldAt(t, p, func(p kamailio.Params) *kamailiotest.Daemon { return kamailiotest.Start(t, p) })
}

func newWorldAt(t testing.TB, p kamailio.Params, start func(kamailio.Params) *kamailiotest.Daemon) *world {
	t.Helper()
	if p.NodeTimeout == 0 {
		p.NodeTimeout = 300 * time.Millisecond
	}
	w := &world{Daemon: start(p), t: t, nodes: map[bulkhead.NodeID]*node{}}
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1", MaxTenants: 20000}},
		Pools: []bulkhead.Pool{
			{ID: "std", Cell: "c1", Profile: "standard", Backup: "hv"},
			{ID: "hv", Cell: "c1", Profile: "high_volume", Placement: bulkhead.Spread},
		},
		SBCs: []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: w.Addr.String(), Names: []string{"sbc.example"}}},
	}
	for _, id := range []bulkhead.NodeID{"n1", "n2", "n3", "n4"} {
		pool := bulkhead.PoolID("std")
		if id > "n2" {
			pool = "hv"
		}
		w.nodes[id] = newNode(t, "486 Busy Here")
		c.Nodes = append(c.Nodes, bulkhead.Node{ID: id, Pool: pool, SIP: w.nodes[id].addr})
	}
	w.apply(c)
	return w
}

func tenant(id bulkhead.TenantID, profile bulkhead.ProfileID, number string, sources ...string) bulkhead.Tenant {
	realm := string(id) + ".example"
	t := bulkhead.Tenant{ID: id, Cell: "c1", Profile: profile, Domains: []string{realm, "www." + realm}}
	for _, u := range []string{"1001", "1002"} {
		t.Users = append(t.Users, bulkhead.User{Extension: u, HA1: md5hex(u + ":" + realm + ":pw-" + u)})
	}
	t.Numbers = []bulkhead.Number{{Number: number, User: "1001"}}
	for _, s := range sources {
		t.Sources = append(t.Sources, netip.MustParsePrefix(s))
	}
	return t
}

// apply changes the state and brings it to the SBC.
func (w *world) apply(c bulkhead.Change) {
	w.t.Helper()
	w.state = w.state.Apply(&c)
	if err := w.state.Validate(); err != nil {
		w.t.Fatal(err)
	}
	if err := w.Client.Apply(w.t.Context(), w.tables()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tables() route.Tables {
	w.t.Helper()
	tables, err := route.MakeTables(route.New(w.state), "sbc1")
	if err != nil {
		w.t.Fatal(err)
	}
	return tables
}

// ask places one call from a fresh socket and returns the final answer.
func (w *world) ask(source string, c call) string {
	w.t.Helper()
	s := newSocket(w.t, source, w.Addr)
	defer s.conn.Close() //nolint:errcheck // closed again by the cleanup
	return s.ask(&c)
}

// heardBy returns the node that heard a call, and the INVITE.
func (w *world) heardBy(callID string) (bulkhead.NodeID, string) {
	for id, n := range w.nodes {
		if m := n.call(callID); m != "" {
			return id, m
		}
	}
	return "", ""
}

func want(t testing.TB, what, answer string, code int) {
	t.Helper()
	if got := status(answer); got != code {
		t.Errorf("%s: got %d, want %d\n%s", what, got, code, answer)
	}
}
