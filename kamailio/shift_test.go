package kamailio_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

// shift brings the sets to what is known of the nodes.
func (w *world) shift(states route.NodeStates) route.Tables {
	w.t.Helper()
	tables := w.tables()
	var err error
	if tables.Sets, err = route.MakeSets(route.New(w.state), "sbc1", states); err != nil {
		w.t.Fatal(err)
	}
	if err := w.Client.ApplySets(w.t.Context(), tables); err != nil {
		w.t.Fatal(err)
	}
	if diffs, err := w.Client.Verify(w.t.Context(), tables); err != nil || len(diffs) > 0 {
		w.t.Fatalf("after the sets were applied: %q, %v", diffs, err)
	}
	return tables
}

// answeredBy places a call and returns the node that it went to first.
func (w *world) answeredBy(domain string) bulkhead.NodeID {
	w.t.Helper()
	c := call{ruri: "sip:1001@" + domain, callID: fmt.Sprintf("shift-%016x", serial())}
	want(w.t, "call", w.ask("127.1.1.1", c), 486)
	id, _ := w.heardBy(c.callID)
	return id
}

// Kamailio takes one reload of the list a second: with a reload_delta of 0 it
// ended with a signal when they followed each other.
func TestReloadsAreKeptApart(t *testing.T) {
	w := newWorld(t, kamailio.Params{PingInterval: time.Hour})
	eventually(t, "a reload that is refused", func() bool {
		for range 2 {
			_, err := w.Client.Call(t.Context(), "dispatcher.reload")
			if e := (*kamailio.RPCError)(nil); errors.As(err, &e) && e.Message == "Ongoing reload" {
				return true
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		return false
	})
}

// What is known of the nodes moves calls at once, without a row being touched,
// and outlives a restart of Kamailio.
func TestApplySets(t *testing.T) {
	w := newWorld(t, kamailio.Params{PingInterval: time.Hour})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	home := w.answeredBy("acme.example")
	second := map[bulkhead.NodeID]bulkhead.NodeID{"n1": "n2", "n2": "n1"}[home]
	before, err := os.ReadFile(filepath.Join(w.Dir, kamailio.TablesFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		states route.NodeStates
		want   bulkhead.NodeID
	}{
		{"dead", route.NodeStates{home: {Dead: true}}, second},
		{"well", nil, home},
		{"hot", route.NodeStates{home: {}}, second},
		{"full", route.NodeStates{home: {Closed: true}}, second},
		{"both hot", route.NodeStates{home: {}, second: {}}, ""},
		{"well again", nil, home},
	} {
		w.shift(tt.states)
		got := w.answeredBy("acme.example")
		if tt.want == "" && (got == "n3" || got == "n4") {
			continue // the backup pool
		}
		if got != tt.want {
			t.Errorf("home is %s: the call went to %q, want %q", tt.name, got, tt.want)
		}
	}
	after, err := os.ReadFile(filepath.Join(w.Dir, kamailio.TablesFile))
	if err != nil || string(before) != string(after) {
		t.Errorf("the table file was written to (%v)", err)
	}
	w.shift(route.NodeStates{home: {Closed: true}})
	w.Restart()
	if got := w.answeredBy("acme.example"); got != second {
		t.Errorf("after a restart the call went to %q, want %q", got, second)
	}
}

// A node that was taken for dead, while nobody is there to take that back, is
// tried again by Kamailio itself.
func TestDownTargetComesBackByItself(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	home := w.answeredBy("acme.example")
	w.shift(route.NodeStates{home: {Dead: true}})
	for id, n := range w.nodes {
		if id != home {
			n.set("503 Full")
		}
	}
	eventually(t, "the home takes what nobody else does", func() bool {
		return status(w.ask("127.1.1.1", call{ruri: "sip:1001@acme.example"})) == 486
	})
}

// Weights are what decides among many calls of a spread pool.
func TestWeightsAreKept(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("dial", "high_volume", "493030", "127.1.0.0/16")}})
	w.shift(route.NodeStates{"n3": {Share: 25}})
	const calls = 400
	got := map[bulkhead.NodeID]int{}
	for range calls {
		got[w.answeredBy("dial.example")]++
	}
	// n3 has 25 of 125: 80 of 400, with a standard deviation of 8.
	if got["n3"] < 40 || got["n3"] > 120 || got["n3"]+got["n4"] != calls {
		t.Errorf("calls went to %v, want a fifth to n3", got)
	}
}

// A sticky tenant keeps its node through many calls, changes of weights in its
// own pool and in others, and reloads. It goes last of all when its home is
// offered less, so that this may be offered a fifth of its calls still.
func TestStickyTenantStays(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	acme := tenant("acme", "standard", "493010", "127.1.0.0/16")
	acme.Priority = 100
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{acme}})
	home := w.answeredBy("acme.example")
	second := map[bulkhead.NodeID]bulkhead.NodeID{"n1": "n2", "n2": "n1"}[home]
	weights := func(ofHome, ofSecond int) {
		w.apply(bulkhead.Change{Nodes: []bulkhead.Node{
			{ID: home, Pool: "std", SIP: w.nodes[home].addr, Weight: ofHome},
			{ID: second, Pool: "std", SIP: w.nodes[second].addr, Weight: ofSecond},
		}})
	}
	reload := func(method string, params ...any) {
		eventually(t, method, func() bool { // "Ongoing reload": Kamailio takes one a second
			_, err := w.Client.Call(t.Context(), method, params...)
			return err == nil
		})
	}
	before := map[int]func(){
		100: func() { w.shift(route.NodeStates{"n3": {Share: 40}, "n4": {Dead: true}}) },
		250: func() { weights(1, 100) },
		400: func() { w.shift(route.NodeStates{home: {Share: 20}}) },
		550: func() { w.shift(route.NodeStates{home: {Share: 60}, second: {Share: 80}}) },
		700: func() { reload("dispatcher.reload"); reload("htable.reload", w.live()) },
		850: func() { weights(100, 50) },
	}
	for i := range 1000 {
		if change := before[i]; change != nil {
			change()
		}
		if got := w.answeredBy("acme.example"); got != home {
			t.Fatalf("call %d went to %s, the others to %s", i, got, home)
		}
	}
}

// A node that refuses calls, or hears none, is known by them, if another node
// takes them. A call that nobody takes says nothing of anybody.
func TestRefused(t *testing.T) {
	w := newWorld(t, kamailio.Params{PingInterval: time.Hour})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	check := func(what string, want map[string]int) {
		t.Helper()
		if got, err := w.Client.Refused(t.Context()); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", what, got, err, want)
		}
	}
	home := w.answeredBy("acme.example")
	check("all is well", map[string]int{})
	for _, n := range w.nodes {
		n.set("503 Full")
	}
	want(t, "a call that nobody takes", w.ask("127.1.1.1", call{ruri: "sip:1001@acme.example"}), 503)
	check("nobody takes it", map[string]int{})
	for id, n := range w.nodes {
		if id != home {
			n.set("486 Busy Here")
		}
	}
	for range 3 {
		want(t, "a call that another node takes", w.ask("127.1.1.1", call{ruri: "sip:1001@acme.example"}), 486)
	}
	check("the home refuses", map[string]int{w.nodes[home].addr: 3})
	w.nodes[home].set("")
	want(t, "a call that the home does not hear", w.ask("127.1.1.1", call{ruri: "sip:1001@acme.example"}), 486)
	check("the home is silent", map[string]int{w.nodes[home].addr: 4})
}

// A pool that has no nodes yet is no difference.
func TestPoolWithoutNodes(t *testing.T) {
	w := newWorld(t, kamailio.Params{PingInterval: time.Hour})
	w.apply(bulkhead.Change{Pools: []bulkhead.Pool{{ID: "later", Cell: "c1", Profile: "ai"}}, Tenants: []bulkhead.Tenant{tenant("bot", "ai", "493010", "127.1.0.0/16")}})
	if diffs, err := w.Client.Verify(t.Context(), w.tables()); err != nil || len(diffs) > 0 {
		t.Errorf("%q, %v", diffs, err)
	}
	if diffs, err := w.Client.Examine(t.Context(), w.tables()); err != nil || len(diffs) > 0 {
		t.Errorf("%q, %v", diffs, err)
	}
	want(t, "a call for it", w.ask("127.1.1.1", call{ruri: "sip:1001@bot.example"}), 503)
}
