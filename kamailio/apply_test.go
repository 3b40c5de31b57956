package kamailio_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

func (w *world) verify() []string {
	w.t.Helper()
	diffs, err := w.Client.Verify(w.t.Context(), w.tables())
	if err != nil {
		w.t.Fatal(err)
	}
	return diffs
}

func (w *world) wantInStep(what string) {
	w.t.Helper()
	if d := w.verify(); len(d) > 0 {
		w.t.Errorf("%s: Kamailio differs: %s", what, strings.Join(d, "; "))
	}
}

func TestApplyAndVerify(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.wantInStep("after the first Apply")
	for i := range 5 { // both sides, by reload first and by keys then
		w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(bulkhead.TenantID(fmt.Sprintf("t%d", i)), "standard", fmt.Sprintf("49%d", 300+i), fmt.Sprintf("127.%d.0.0/16", 20+i))}})
		w.wantInStep("after a new tenant")
	}
	w.apply(bulkhead.Change{Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{"t3"}}})
	w.wantInStep("after a tenant went")
	want(t, "a tenant that went", w.ask("127.23.1.1", call{ruri: "sip:1@t3.example"}), 404)
	want(t, "a tenant that stayed", w.ask("127.24.1.1", call{ruri: "sip:1@t4.example"}), 486)

	n5 := newNode(t, "486 Busy Here")
	w.nodes["n5"] = n5
	w.apply(bulkhead.Change{Nodes: []bulkhead.Node{{ID: "n5", Pool: "std", SIP: n5.addr}, {ID: "n1", Pool: "std", SIP: w.nodes["n1"].addr, Drain: true}}})
	w.wantInStep("after a new node and a drain")
	for i := range 10 {
		c := call{ruri: "sip:1@t4.example", callID: fmt.Sprintf("after-drain-%d", i)}
		want(t, "after a drain", w.ask("127.24.1.1", c), 486)
		if id, _ := w.heardBy(c.callID); id == "n1" {
			t.Error("a drained node got a call")
		}
	}
	w.Restart()
	w.wantInStep("after a restart")
	want(t, "after a restart", w.ask("127.24.1.1", call{ruri: "sip:1@t4.example"}), 486)
	w.apply(bulkhead.Change{Delete: bulkhead.Deletion{Nodes: []bulkhead.NodeID{"n1"}}})
	w.wantInStep("after a restart and a node that went")
}

func TestDriftIsFoundAndRepaired(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	change := func(i int) bulkhead.Change {
		return bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", fmt.Sprintf("49%d", 300+i), "127.20.0.0/16")}}
	}
	w.apply(change(0))
	w.apply(change(1))
	for _, tt := range []struct {
		name, finding string
		harm          func(live string)
	}{
		{"a value", "row s:127.20 differs", func(live string) { w.call("htable.sets", live, "s:127.20", "beta|") }},
		{"a row too many", "number of rows", func(live string) { w.call("htable.sets", live, "n:666", "acme") }},
		{"a row too few", "number of rows", func(live string) { w.call("htable.delete", live, "d:acme.example") }},
		{"an empty table", "number of rows", func(live string) { w.call("htable.flush", live) }},
		{"the other side", "revision in memory", func(live string) {
			w.call("htable.sets", "bulkhead_meta", "b_live", string("10"[strings.IndexByte("ab", live[len(live)-1])]))
		}},
		{"a set", "dispatcher set", func(string) {
			// Two reloads a second are refused.
			eventually(t, "dispatcher.reload", func() bool {
				_, err := w.Client.Call(t.Context(), "dispatcher.remove", w.tables().Sets[0].ID, w.tables().Sets[0].Targets[0].URI)
				return err == nil
			})
		}},
		{"the list file", "list file", func(string) { w.write(kamailio.ListFile, "1 sip:127.0.0.1:9 0 0 duid=x\n") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.harm(w.live())
			d := w.verify()
			if !slices.ContainsFunc(d, func(s string) bool { return strings.Contains(s, tt.finding) }) {
				t.Errorf("Verify found %q, want %q", d, tt.finding)
			}
			if err := w.Client.Apply(t.Context(), w.tables()); err != nil {
				t.Fatal(err)
			}
			w.wantInStep("after the repair")
			// The harm must not come back with the side that it was done to.
			w.apply(change(2))
			w.wantInStep("one revision after the repair")
			w.apply(change(3))
			w.wantInStep("two revisions after the repair")
		})
	}
}

// TestOlderFiles has a Kamailio that still says in its own way which table
// counts: whoever switched tables there would be believed and not heard.
func TestOlderFiles(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.wantInStep("before")
	w.call("htable.delete", "bulkhead_meta", "b_live")
	w.call("htable.sets", "bulkhead_meta", "live", "b")
	if err := w.Client.Apply(t.Context(), w.tables()); err == nil || !strings.Contains(err.Error(), "older bulkhead.cfg") {
		t.Errorf("Apply() = %v", err)
	}
	if diffs, err := w.Client.Verify(t.Context(), w.tables()); err == nil || !strings.Contains(err.Error(), "older bulkhead.cfg") {
		t.Errorf("Verify() = %v, %v", diffs, err)
	}
}

func (w *world) live() string {
	w.t.Helper()
	b, err := w.Client.Call(w.t.Context(), "htable.get", "bulkhead_meta", "b_live")
	if err != nil {
		w.t.Fatal(err)
	}
	if strings.Contains(string(b), `"value":"1"`) {
		return "bulkhead_b"
	}
	return "bulkhead_a"
}

func (w *world) call(method string, params ...any) {
	w.t.Helper()
	if _, err := w.Client.Call(w.t.Context(), method, params...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.Dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func TestApplyWithoutKamailio(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.Stop()
	acme := bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}}
	w.state = w.state.Apply(&acme)
	if err := w.Client.Apply(t.Context(), w.tables()); !errors.Is(err, bulkhead.Unavailable) {
		t.Fatalf("Apply() = %v, want unavailable", err)
	}
	if _, err := w.Client.Verify(t.Context(), w.tables()); !errors.Is(err, bulkhead.Unavailable) {
		t.Fatalf("Verify() = %v, want unavailable", err)
	}
	w.Restart()
	w.wantInStep("after the start")
	want(t, "call", w.ask("127.1.1.1", call{ruri: "sip:1@acme.example"}), 486)
}

func TestApplyRefuses(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	if err := w.Client.Apply(t.Context(), route.Tables{SBC: "sbc1", Revision: 9}); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("Apply of an empty table = %v, want invalid", err)
	}
	w.wantInStep("after an empty table")
	second, err := kamailio.New(w.Dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Apply(t.Context(), w.tables()); !errors.Is(err, bulkhead.Conflict) {
		t.Errorf("Apply of a second writer = %v, want conflict", err)
	}
	if d, err := second.Verify(t.Context(), w.tables()); err != nil || len(d) > 0 {
		t.Errorf("Verify of a second client = %q, %v", d, err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(w.Dir, "c*.sock")); len(left) > 8 {
		t.Errorf("sockets are left: %q", left)
	}
}

// TestSwapUnderTraffic changes the tables while calls run: no call may fail,
// and a new tenant's calls are taken.
func TestSwapUnderTraffic(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	bad := make(chan string, 1000)
	calls := 0
	wg.Go(func() {
		s := newSocket(t, "127.1.1.1", w.Addr)
		for ; ctx.Err() == nil; calls++ {
			if m := s.ask(&call{ruri: "sip:1@acme.example"}); status(m) != 486 {
				bad <- m
			}
		}
	})
	for i := range 12 {
		id := bulkhead.TenantID(fmt.Sprintf("t%d", i))
		w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(id, "high_volume", fmt.Sprintf("49%d", 300+i), fmt.Sprintf("127.%d.0.0/16", 20+i))}})
		want(t, "call of the new tenant", w.ask(fmt.Sprintf("127.%d.3.4", 20+i), call{ruri: "sip:1@" + string(id) + ".example"}), 486)
	}
	stop()
	wg.Wait()
	close(bad)
	for m := range bad {
		t.Errorf("a call failed:\n%s", m)
	}
	if calls < 50 {
		t.Errorf("only %d calls ran meanwhile", calls)
	}
}

func TestApplyTenThousandTenants(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	w := newWorld(t, kamailio.Params{})
	var c bulkhead.Change
	for i := range 10000 {
		c.Tenants = append(c.Tenants, tenant(bulkhead.TenantID(fmt.Sprintf("t%d", i)), "standard", fmt.Sprintf("49%d", 10000+i), fmt.Sprintf("10.%d.%d.0/28", i/250, i%250)))
	}
	w.state = w.state.Apply(&c)
	tables := w.tables()
	start := time.Now()
	if err := w.Client.Apply(t.Context(), tables); err != nil {
		t.Fatal(err)
	}
	full := time.Since(start)
	w.state = w.state.Apply(&bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	tables = w.tables()
	var one [3]time.Duration // the other side is filled by the first
	for i := range one {
		start = time.Now()
		if err := w.Client.Apply(t.Context(), tables); err != nil {
			t.Fatal(err)
		}
		one[i] = time.Since(start)
	}
	w.wantInStep("with 10,000 tenants")
	t.Logf("%d rows: full %s, the other side %s, by keys %s and %s", len(tables.Rows), full, one[0], one[1], one[2])
	want(t, "call", w.ask("127.1.1.1", call{ruri: "sip:1@acme.example"}), 486)
	if full > 10*time.Second || one[2] > 5*time.Second {
		t.Error("that is too slow")
	}
}

// TestWeights holds the module's dealing of places to what the weights say.
func TestWeights(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{
		Tenants: []bulkhead.Tenant{tenant("gamma", "high_volume", "493030", "127.1.0.0/16")},
		Nodes: []bulkhead.Node{
			{ID: "n3", Pool: "hv", SIP: w.nodes["n3"].addr, Weight: 90},
			{ID: "n4", Pool: "hv", SIP: w.nodes["n4"].addr, Weight: 30},
		},
	})
	count := map[bulkhead.NodeID]int{}
	for i := range 100 {
		c := call{ruri: "sip:1@gamma.example", callID: fmt.Sprintf("weights-%03d", i)}
		want(t, "call", w.ask("127.1.1.1", c), 486)
		id, _ := w.heardBy(c.callID)
		count[id]++
	}
	if count["n3"] != 75 || count["n4"] != 25 {
		t.Errorf("100 calls went to %v, want 75 and 25", count)
	}
}
