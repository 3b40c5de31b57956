package kamailio_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
)

func TestHeaderRules(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	acme := tenant("acme", "standard", "493010", "127.1.0.0/16")
	acme.Headers = []bulkhead.HeaderRule{
		{Action: bulkhead.AddHeader, Name: "X-Added", Value: "a: b @ 1"},
		{Action: bulkhead.RemoveHeader, Name: "X-Gone"},
		{Action: bulkhead.ReplaceHeader, Name: "Subject", Value: "acme call"},
		{Action: bulkhead.AddHeader, Name: "X-Added", Value: "second"},
		{Action: bulkhead.ReplaceHeader, Name: "X-New", Value: "1"},
	}
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{acme, tenant("beta", "standard", "493020", "127.2.0.0/16")}})
	sent := "X-Gone: 1\r\nx-gone: 2\r\nSubject: theirs\r\nsubject: again\r\nX-Added: theirs\r\nX-Kept: 1\r\n"
	names := []string{"X-Added", "X-Gone", "Subject", "X-New", "X-Kept", "X-Bulkhead-Tenant"}
	got := func(source, ruri, id string) map[string]string {
		t.Helper()
		want(t, ruri, w.ask(source, call{ruri: ruri, callID: id, extra: sent}), 486)
		_, invite := w.heardBy(id)
		out := map[string]string{}
		for _, n := range names {
			out[n] = strings.Join(headers(invite, n), ",")
		}
		return out
	}
	mine := map[string]string{"X-Added": "theirs,a: b @ 1,second", "X-Gone": "", "Subject": "acme call", "X-New": "1", "X-Kept": "1", "X-Bulkhead-Tenant": "acme"}
	if d := cmp.Diff(mine, got("127.1.1.1", "sip:1@acme.example", "rules-acme")); d != "" {
		t.Errorf("a tenant with rules (-want +got):\n%s", d)
	}
	none := map[string]string{"X-Added": "theirs", "X-Gone": "1,2", "Subject": "theirs,again", "X-New": "", "X-Kept": "1", "X-Bulkhead-Tenant": "beta"}
	if d := cmp.Diff(none, got("127.2.1.1", "sip:1@beta.example", "rules-beta")); d != "" {
		t.Errorf("a tenant without (-want +got):\n%s", d)
	}
	// One row broken by hand.
	w.call("htable.sets", w.live(), "h:1@acme", "-X-Kept")
	mine["X-Gone"], mine["X-Kept"] = "1,2", ""
	if d := cmp.Diff(mine, got("127.1.1.1", "sip:1@acme.example", "rules-broken")); d != "" {
		t.Errorf("a row that was changed (-want +got):\n%s", d)
	}
	// A rule that went.
	acme.Headers = acme.Headers[:1]
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{acme}})
	w.wantInStep("with fewer rules")
	none["X-Added"], none["X-Bulkhead-Tenant"] = "theirs,a: b @ 1", "acme"
	if d := cmp.Diff(none, got("127.1.1.1", "sip:1@acme.example", "rules-fewer")); d != "" {
		t.Errorf("with fewer rules (-want +got):\n%s", d)
	}
}

func TestCallsPerSecond(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	acme := tenant("acme", "standard", "493010", "127.1.0.0/16")
	acme.Limits.CallsPerSecond = 3
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{acme, tenant("beta", "standard", "493020", "127.2.0.0/16")}})
	s, other := newSocket(t, "127.1.1.1", w.Addr), newSocket(t, "127.2.1.1", w.Addr)
	const tries = 60
	taken, refused := 0, 0
	start := time.Now()
	for i := range tries {
		switch m := s.ask(&call{ruri: "sip:1@acme.example", callID: fmt.Sprintf("calls-per-second-%d", i)}); status(m) {
		case 486:
			taken++
		case 480:
			refused++
		default:
			t.Fatalf("got\n%s", m)
		}
		want(t, "another tenant", other.ask(&call{ruri: "sip:1@beta.example"}), 486)
	}
	seconds := int(time.Since(start)/time.Second) + 2 // that it touched
	if taken < 3 || taken > 3*seconds || refused != tries-taken {
		t.Errorf("of %d calls within %d seconds %d were taken and %d refused, want 3 a second", tries, seconds, taken, refused)
	}
	// A storm of refused calls must not take the memory that the others need.
	var stats struct{ Current int }
	if w.rpc(&stats, "tm.stats"); stats.Current > taken+tries+refused/2 {
		t.Errorf("%d transactions for %d calls that were taken: those that are refused have some too", stats.Current, taken+tries)
	}
	eventually(t, "the next second", func() bool { return status(s.ask(&call{ruri: "sip:1@acme.example"})) == 486 })
	if n, err := w.Client.Counters(t.Context()); err != nil || n["refused_limit"] < int64(refused) {
		t.Errorf("Counters() = %v, %v", n, err)
	}
}
