package kamailio_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/dispatcher"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

// traffic places calls of a tenant at an even rate until stop, and counts
// those that were not answered by a node while the caller had patience. An
// INVITE is sent again every half second, as a phone does, so that a restart
// of the SBC fails none.
type traffic struct {
	rate          int // calls a second
	begun         time.Time
	calls, failed atomic.Int64
	why           atomic.Pointer[string]
	stop          func()
}

func startTraffic(t *testing.T, w *world, rate int, patience time.Duration, source, ruri string) *traffic {
	ctx, cancel := context.WithCancel(t.Context())
	tr := &traffic{rate: rate, begun: time.Now()}
	var all sync.WaitGroup
	all.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			all.Go(func() {
				tr.calls.Add(1)
				if m := patient(t, w, patience, source, ruri); status(m) != 486 {
					tr.failed.Add(1)
					tr.why.CompareAndSwap(nil, &m)
				}
			})
		}
	})
	tr.stop = sync.OnceFunc(func() {
		cancel()
		all.Wait()
	})
	t.Cleanup(tr.stop)
	return tr
}

// check ends the traffic; not one call may have failed, and half of the calls
// at least must have been placed, however busy the machine is.
func (tr *traffic) check(t *testing.T) {
	t.Helper()
	ran := time.Since(tr.begun)
	tr.stop()
	if n := tr.failed.Load(); n > 0 {
		t.Errorf("%d of %d calls failed; the first got\n%s", n, tr.calls.Load(), *tr.why.Load())
	}
	if n := tr.calls.Load(); float64(n) < float64(tr.rate)*ran.Seconds()/2 {
		t.Errorf("only %d calls were placed in %s, want %d a second", n, ran, tr.rate)
	}
	t.Logf("%d calls in %s", tr.calls.Load(), ran)
}

// patient places one call and returns its final answer, "" if there was none for so long.
func patient(t *testing.T, w *world, patience time.Duration, source, ruri string) string {
	s := newSocket(t, source, w.Addr)
	defer s.conn.Close() //nolint:errcheck // closed again by the cleanup
	invite := s.request(&call{ruri: ruri})
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		s.send(invite)
		for wait := time.Now().Add(min(500*time.Millisecond, patience)); time.Now().Before(wait); {
			m := s.receive(time.Until(wait))
			if status(m) >= 200 {
				return m
			}
		}
	}
	return ""
}

// keep runs a dispatcher for the world's SBC, with its default patience.
func (w *world) keep(live *route.Live) (*dispatcher.Controller, *prometheus.Registry) {
	w.t.Helper()
	return w.keepAs(live, dispatcher.DefaultConfig())
}

// keepAs is keep with other settings.
func (w *world) keepAs(live *route.Live, cfg dispatcher.Config) (*dispatcher.Controller, *prometheus.Registry) {
	w.t.Helper()
	cfg.SBC = "sbc1"
	reg := prometheus.NewRegistry()
	c, err := dispatcher.New(cfg, live, w.Client, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(c.Run)
	return c, reg
}

// run runs a service until the test ends.
func (w *world) run(service func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = service(ctx) // nil
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
}

// within polls until ok.
func within(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(d); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("not in %s: %s", d, what)
}

// chaos returns how long a test with random changes runs: BULKHEAD_CHAOS_CHANGES
// or the short cut.
func chaos(t testing.TB, short time.Duration) time.Duration {
	v := os.Getenv("BULKHEAD_CHAOS_CHANGES")
	if v == "" {
		return short
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestChangesUnderTraffic makes 100 changes a second while 50 calls a second
// run, drains among them. Afterwards somebody changes the tables by hand.
func TestChangesUnderTraffic(t *testing.T) {
	length := chaos(t, 5*time.Second)
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	live := &route.Live{}
	live.Store(route.New(w.state))
	c, reg := w.keep(live)
	tr := startTraffic(t, w, 50, 5*time.Second, "127.1.1.1", "sip:1@acme.example")
	r := rand.New(rand.NewPCG(1, 2))
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	changes := 0
	for end := time.Now().Add(length); time.Now().Before(end); changes++ {
		<-tick.C
		change := randomChange(r, w)
		w.state = w.state.Apply(&change)
		live.Store(route.New(w.state))
	}
	if float64(changes) < 50*length.Seconds() { // half of them, however busy the machine is
		t.Errorf("%d changes were made in %s, want 100 a second", changes, length)
	}
	// Kamailio takes one reload a second: those of one apply go together.
	if n := metric(t, reg, "bulkhead_dispatcher_apply_seconds"); n < length.Seconds()/2 {
		t.Errorf("they were brought to the SBC %.0f times in %s, want about once a second", n, length)
	}
	if err := w.state.Validate(); err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, "the SBC holds the last state", func() bool { return c.Status().Converged && c.Status().Applied == w.state.Revision })
	w.wantInStep(fmt.Sprintf("after %d changes", changes))
	tr.check(t)

	const drift = "bulkhead_dispatcher_drift_total"
	before := metric(t, reg, drift)
	w.call("htable.delete", w.live(), "d:acme.example")
	within(t, 30*time.Second, "the row that was deleted by hand is found", func() bool { return metric(t, reg, drift) > before })
	within(t, 30*time.Second, "and repaired", func() bool { return c.Status().Converged })
	if d := strings.Join(c.Status().Differences, ";"); !strings.Contains(d, "number of rows") {
		t.Errorf("Status() tells of %q", d)
	}
	want(t, "after the repair", w.ask("127.1.1.1", call{ruri: "sip:1@acme.example"}), 486)
}

// metric returns the value of a counter, or how often a histogram was told one.
func metric(t testing.TB, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name && len(f.GetMetric()) == 1 {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	t.Fatalf("there is no metric %s, or more than one", name)
	return 0
}

// randomChange adds, changes or removes a tenant, or drains one node of each
// pool or none.
func randomChange(r *rand.Rand, w *world) bulkhead.Change {
	i := r.IntN(30)
	id := bulkhead.TenantID(fmt.Sprintf("t%d", i))
	switch r.IntN(4) {
	case 0:
		if w.state.Tenants[id] != nil {
			return bulkhead.Change{Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{id}}}
		}
	case 1:
		var nodes []bulkhead.Node
		for _, of := range []bulkhead.NodeID{"n1", "n3"} {
			n := *w.state.Nodes[of]
			n.Drain, n.Weight = r.IntN(2) == 0, 1+r.IntN(100)
			nodes = append(nodes, n)
		}
		return bulkhead.Change{Nodes: nodes}
	}
	tn := tenant(id, "standard", fmt.Sprintf("49%d", 300+i), fmt.Sprintf("127.%d.0.0/16", 20+i))
	tn.Limits.CallsPerSecond = r.IntN(100)
	return bulkhead.Change{Tenants: []bulkhead.Tenant{tn}}
}

// TestRestartUnderTraffic kills and restarts Kamailio in mid-load with 10,000
// tenants, while no dispatcher lives: the whole table is there, and a drained
// node stays drained.
func TestRestartUnderTraffic(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	c := bulkhead.Change{Nodes: []bulkhead.Node{{ID: "n1", Pool: "std", SIP: w.nodes["n1"].addr, Drain: true}}}
	for i := range 10000 {
		c.Tenants = append(c.Tenants, bulkhead.Tenant{ID: bulkhead.TenantID(fmt.Sprintf("t%d", i)), Cell: "c1", Profile: "standard", Domains: []string{fmt.Sprintf("t%d.example", i)}})
	}
	c.Tenants = append(c.Tenants, tenant("acme", "standard", "493010", "127.1.0.0/16"))
	w.state = w.state.Apply(&c)
	tables := w.tables()
	if err := w.Client.Apply(t.Context(), tables); err != nil {
		t.Fatal(err)
	}
	if err := w.Client.Close(); err != nil { // nobody is left who could help
		t.Fatal(err)
	}
	tr := startTraffic(t, w, 20, 20*time.Second, "127.1.1.1", "sip:1@acme.example")
	within(t, 20*time.Second, "calls run", func() bool { return tr.calls.Load() > 20 })
	for range 2 {
		start := time.Now()
		w.Restart()
		up := time.Since(start)
		t.Logf("restarted with %d rows in %s", len(tables.Rows), up)
		if up > 15*time.Second { // 5 s are wanted on a machine of one's own
			t.Errorf("the restart took %s", up)
		}
		reader, err := kamailio.New(w.Dir, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := reader.Verify(t.Context(), tables); err != nil || len(d) > 0 {
			t.Errorf("after the restart Kamailio differs: %q, %v", d, err)
		}
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
		n := tr.calls.Load()
		within(t, 20*time.Second, "calls go on", func() bool { return tr.calls.Load() > n+20 })
	}
	tr.check(t)
	if n := len(w.nodes["n1"].heard); n > 0 {
		t.Errorf("the drained node got %d calls", n)
	}
}

// TestTenantsApart lets two tenants of one pool try to reach each other.
func TestTenantsApart(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	phone, trunk := newSocket(t, "127.8.8.8", w.Addr), newSocket(t, "127.2.0.9", w.Addr)
	beta := tenant("beta", "standard", "493020", "127.2.0.0/16")
	beta.Trunks = []bulkhead.Trunk{{Name: "carrier", Host: "127.2.0.9", Port: netip.MustParseAddrPort(trunk.addr()).Port()}}
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16"), beta}})
	want(t, "beta's phone registers", register(t, phone, "beta.example", "1001", "pw-1001", ""), 200)
	spoofed := "X-Bulkhead-Tenant: beta\r\nX-Bulkhead-User: 1001\r\nX-Bulkhead-SBC: sbc1\r\nX-Bulkhead-Revision: 2\r\n"
	for _, tt := range []struct {
		name, source string
		c            call
		status       int
		tenant       string // 486: whose the node took it for
	}{
		{"the other's user by its domain", "127.1.1.1", call{ruri: "sip:1001@beta.example"}, 403, ""},
		{"the other's number", "127.1.1.1", call{ruri: "sip:493020@" + w.Addr.String()}, 403, ""},
		{"in the other's name, with one's own password", "127.1.1.1", call{ruri: "sip:1001@beta.example", from: "sip:1001@acme.example", auth: "pw-1001"}, 403, ""},
		{"as the other's user, with one's own realm", "127.9.1.1", call{ruri: "sip:1001@beta.example", from: "sip:1001@beta.example", auth: "pw-1002"}, 403, ""},
		{"with the other's headers", "127.1.1.1", call{ruri: "sip:1001@acme.example", extra: spoofed}, 486, "acme"},
		{"with a route through a node", "127.1.1.1", call{ruri: "sip:1001@beta.example", extra: "Route: <sip:" + w.nodes["n1"].addr + ";lr>\r\n"}, 403, ""},
		{"to the phone itself", "127.1.1.1", call{ruri: "sip:me@" + phone.addr()}, 404, ""},
		{"to the other's trunk", "127.1.1.1", call{ruri: "sip:4930@" + trunk.addr()}, 404, ""},
		{"by a route to the other's trunk", "127.1.1.1", call{ruri: "sip:1001@acme.example", extra: "Route: <sip:" + w.Addr.String() + ";lr>, <sip:" + trunk.addr() + ";lr>\r\n"}, 486, "acme"},
		{"with the other's headers from nowhere", "127.9.1.1", call{ruri: "sip:1001@beta.example", extra: spoofed}, 403, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.c.callID = fmt.Sprintf("apart-%016x", serial())
			want(t, tt.name, w.ask(tt.source, tt.c), tt.status)
			_, invite := w.heardBy(tt.c.callID)
			if got := strings.Join(headers(invite, "X-Bulkhead-Tenant"), ","); got != tt.tenant || header(invite, "X-Bulkhead-User") != "" {
				t.Errorf("a node got\n%s", invite)
			}
		})
	}
	// Within a call that there is not: nobody who is no node may have the SBC
	// pass anything on but to a node.
	us, n1 := "<sip:"+w.Addr.String()+";lr>", w.nodes["n1"].addr
	for _, victim := range []string{phone.addr(), trunk.addr()} {
		for _, tt := range []struct{ name, ruri, route string }{
			{"by the Request-URI", "sip:me@" + victim, us},
			{"without a route", "sip:me@" + victim, ""},
			{"by a second route", "sip:" + n1, us + ", <sip:" + victim + ";lr>"},
			{"by a second header", "sip:" + n1, us + "\r\nRoute: <sip:" + victim + ";lr>"},
			{"by a route that is not ours", "sip:" + n1, "<sip:" + victim + ";lr>"},
			{"by a strict route", "sip:" + w.Addr.String(), "<sip:" + victim + ">"},
		} {
			for _, method := range []string{"INVITE", "BYE", "REFER", "ACK"} {
				for _, source := range []string{"127.1.1.1", "127.9.1.1"} {
					s := newSocket(t, source, w.Addr)
					c := call{method: method, ruri: tt.ruri, to: "sip:1001@beta.example", from: "sip:1001@acme.example"}
					if tt.route != "" {
						c.extra = "Route: " + tt.route + "\r\n"
					}
					s.send(strings.Replace(s.request(&c), "To: <sip:1001@beta.example>", "To: <sip:1001@beta.example>;tag=b", 1))
					if method != "ACK" { // which has no answer
						want(t, method+" to "+victim+" "+tt.name+" from "+source, s.final(), 481)
					}
				}
			}
		}
	}
	for id, n := range w.nodes {
		if len(n.other) > 0 {
			t.Errorf("node %s got\n%s", id, <-n.other)
		}
	}
	if m := trunk.receive(100 * time.Millisecond); m != "" {
		t.Errorf("beta's trunk got\n%s", m)
	}
	if m := phone.receive(100 * time.Millisecond); m != "" {
		t.Errorf("beta's phone got\n%s", m)
	}
}
