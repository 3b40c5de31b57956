package configsvc

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/route"
)

func openShadow(t *testing.T, dir string, size int64) *Shadow {
	t.Helper()
	s, err := OpenShadow(dir, size, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// decided is a managed tenant's decision about a leg, with one action.
func decided(leg string, actions ...PlanStep) Decision {
	return Decision{Time: time.Now(), Dialect: "freeswitch", Cell: "c1", Node: "fs1", Tenant: "acme", Managed: true, Leg: leg, Number: "101", Actions: actions}
}

func dialUser(name string) PlanStep {
	return PlanStep{Do: "dial", Legs: []PlanStep{{Do: "user", Name: name}}}
}

func readAll(t *testing.T, dir string) (out []Decision, torn int) {
	t.Helper()
	torn, err := ReadShadow(dir, func(d Decision) { out = append(out, d) })
	if err != nil {
		t.Fatal(err)
	}
	return out, torn
}

// runShadow runs a shadow over what add hands to it, and ends it.
func runShadow(t *testing.T, s *Shadow, add func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	add()
	go func() { done <- s.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestShadowKeepsDecisions: over a restart, and over a line that a crash tore.
func TestShadowKeepsDecisions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "shadow")
	if _, err := ReadShadow(dir, nil); err == nil {
		t.Error("a folder that is not there was read")
	}
	s := openShadow(t, dir, 1<<20)
	runShadow(t, s, func() {
		for i := range 3 {
			d := decided(fmt.Sprint(i), dialUser("101"))
			s.add(&d)
		}
	})
	f, err := os.OpenFile(filepath.Join(dir, shadowNew), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"time":"2026-`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s = openShadow(t, dir, 1<<20)
	runShadow(t, s, func() {
		d := decided("3", PlanStep{Do: "reject", Status: 404})
		s.add(&d)
	})
	list, torn := readAll(t, dir)
	if len(list) != 4 || torn != 1 || list[0].Leg != "0" || list[3].Actions[0].Status != 404 || list[0].Actions[0].Legs[0].Name != "101" {
		t.Errorf("%d decisions, %d torn: %+v", len(list), torn, list)
	}
}

// TestShadowIsBounded: the disk never holds more than its size, and the newest
// decisions are kept; what finds the queue full is dropped and counted.
func TestShadowIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := openShadow(t, dir, 64<<10)
	const n = shadowQueue + 500
	runShadow(t, s, func() {
		for i := range n {
			d := decided(fmt.Sprintf("leg-%d", i), dialUser("101"))
			s.add(&d)
		}
	})
	if got := testutil.ToFloat64(s.dropped); got != 500 {
		t.Errorf("%v dropped, want 500", got)
	}
	size := int64(0)
	for _, name := range []string{shadowNew, shadowOld} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 64<<10 {
		t.Errorf("%d bytes on disk", size)
	}
	list, _ := readAll(t, dir)
	if len(list) == 0 || list[len(list)-1].Leg != fmt.Sprintf("leg-%d", shadowQueue-1) {
		t.Errorf("the last of %d is not kept", len(list))
	}
	for _, size := range []int64{0, 1 << 40} {
		if _, err := OpenShadow(dir, size, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil {
			t.Errorf("%d bytes were accepted", size)
		}
	}
}

// TestShadowServer: every question is answered "not mine", by whomever and
// also before there is a revision; decisions are those of the node that proved to ask.
func TestShadowServer(t *testing.T) {
	shadow := openShadow(t, t.TempDir(), 1<<20)
	live := &route.Live{}
	cfg := DefaultConfig()
	cfg.Listen, cfg.IsNode, cfg.Shadow, cfg.TenantRate = "127.0.0.1:0", isNode, shadow, 1
	d := Dialect{
		Name: "freeswitch", Pattern: "/freeswitch/xml", Methods: []string{http.MethodPost}, ContentType: "text/plain", Answer: echo,
		Shadow: func(x *route.Snapshot, q Question, dst []byte) ([]byte, Result, *Decision) {
			if x == nil || q.Node == "" {
				return append(dst, "not mine"...), Result{}, nil
			}
			return append(dst, "not mine"...), Result{}, &Decision{Leg: string(q.Body), Actions: []PlanStep{dialUser("101")}}
		},
	}
	reg := prometheus.NewRegistry()
	if _, err := New(cfg, live, echoes, slog.New(slog.DiscardHandler), reg); err == nil {
		t.Fatal("a dialect without words for a shadow was accepted")
	}
	s, err := New(cfg, live, []Dialect{d}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	}()
	notMine := func(user, password, body string) {
		t.Helper()
		if code, got := ask(t, s, user, password, body); code != 200 || got != "not mine" {
			t.Errorf("%d %q", code, got)
		}
	}
	notMine("fs1", token, "before")
	live.Store(snapshot())
	notMine("fs1", token+"x", "wrong token")
	for i := range 50 { // far beyond the tenants' rate: nobody waits
		notMine("fs1", token, fmt.Sprint(i))
	}
	if n := len(shadow.queue); n != 50 {
		t.Errorf("%d decisions, want 50", n)
	}
	if got := <-shadow.queue; got.Node != "fs1" || got.Dialect != "freeswitch" || got.Time.IsZero() || got.Leg != "0" {
		t.Errorf("%+v", got)
	}
}

// leg is a record of fs1's.
func leg(name, call, callee string, change ...func(*cdr.Record)) cdr.Record {
	r := cdr.Record{Kind: cdr.Leg, Source: cdr.SourceESL, Node: "fs1", Leg: name, Call: call, Callee: callee, Direction: cdr.Inbound, SIPCode: 200, Q850: 16, Answer: time.Now()}
	if name != call {
		r.Direction = cdr.Outbound
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

func failed(code, q850 int) func(*cdr.Record) {
	return func(r *cdr.Record) { r.SIPCode, r.Q850, r.Answer = code, q850, time.Time{} }
}

// TestShadowVerdicts: what is the same, what is not, and what records do not tell.
func TestShadowVerdicts(t *testing.T) {
	trunk := PlanStep{Do: "dial", Legs: []PlanStep{{Do: "trunk", Name: "out", Number: "4930123456", CallerID: "4940555"}}}
	withBox := dialUser("101")
	withBox.NoAnswer = []PlanStep{{Do: "voicemail", Name: "101"}}
	withBox.Busy = []PlanStep{dialUser("102")}
	gaveUp := func(r *cdr.Record) { failed(487, 31)(r); r.Cause = "ORIGINATOR_CANCEL" }
	caller := func(n string) func(*cdr.Record) { return func(r *cdr.Record) { r.Caller = n } }
	for _, c := range []struct {
		name string
		step PlanStep
		legs []cdr.Record
		want Verdict
		how  string
	}{
		{"no record", dialUser("101"), nil, NotKnown, "no record"},
		{"rang him", dialUser("101"), []cdr.Record{leg("a", "a", "101"), leg("b", "a", "101")}, Same, ""},
		{"rang him at his address", dialUser("101"), []cdr.Record{leg("a", "a", "101"), leg("b", "a", "101@10.0.0.1")}, Same, ""},
		{"rang another", dialUser("101"), []cdr.Record{leg("a", "a", "101"), leg("b", "a", "102")}, Different, "called 102"},
		{"rang another too", dialUser("101"), []cdr.Record{leg("a", "a", "101"), leg("b", "a", "101"), leg("c", "a", "103")}, Different, "called 101, 103"},
		{"nobody knows whom", dialUser("101"), []cdr.Record{leg("a", "a", "101"), leg("b", "a", "")}, NotKnown, "does not tell"},
		{"rejected instead", dialUser("101"), []cdr.Record{leg("a", "a", "101", failed(404, 1))}, Different, "ended with 404"},
		{"answered by itself", dialUser("101"), []cdr.Record{leg("a", "a", "101")}, Different, "the node answered by itself"},
		{"not registered", dialUser("101"), []cdr.Record{leg("a", "a", "101", failed(480, 20))}, NotKnown, "nobody could be rung"},
		{"gave up", dialUser("101"), []cdr.Record{leg("a", "a", "101", gaveUp)}, NotKnown, "gave up"},
		{"gave up while it rang", withBox, []cdr.Record{leg("a", "a", "101", gaveUp), leg("b", "a", "101", failed(487, 16))}, Same, ""},
		{"no answer, then the box", withBox, []cdr.Record{leg("a", "a", "101"), leg("b", "a", "101", failed(487, 19))}, Same, ""},
		{"no answer, then no box", withBox, []cdr.Record{leg("a", "a", "101", failed(480, 19)), leg("b", "a", "101", failed(487, 19))}, Different, "then go to voicemail 101"},
		{"box that is not ours", dialUser("101"), []cdr.Record{leg("a", "a", "101"), leg("b", "a", "101", failed(487, 19))}, Different, "answered by itself"},
		{"busy, then the next", withBox, []cdr.Record{leg("a", "a", "101"), leg("b", "a", "101", failed(486, 17)), leg("c", "a", "102")}, Same, ""},
		{"only the next", withBox, []cdr.Record{leg("a", "a", "101"), leg("c", "a", "102")}, Different, "first, called 102"},
		{"carrier", trunk, []cdr.Record{leg("a", "a", "1"), leg("b", "a", "+4930123456", caller("4940555"))}, Same, ""},
		{"carrier, national", trunk, []cdr.Record{leg("a", "a", "1"), leg("b", "a", "030123456", caller("040555"))}, Different, "would show 4940555"},
		{"carrier, other number", trunk, []cdr.Record{leg("a", "a", "1"), leg("b", "a", "4930123457")}, Different, "called 4930123457"},
		{"carrier, other caller", trunk, []cdr.Record{leg("a", "a", "1"), leg("b", "a", "004930123456", caller("4940556"))}, Different, "showed 4940556"},
		{"rejected alike", PlanStep{Do: "reject", Status: 404, Cause: 1}, []cdr.Record{leg("a", "a", "x", failed(404, 1))}, Same, ""},
		{"rejected alike by cause", PlanStep{Do: "reject", Status: 403, Cause: 21}, []cdr.Record{leg("a", "a", "x", failed(603, 21))}, Same, ""},
		{"no such extension on an Asterisk", PlanStep{Do: "reject", Status: 404, Cause: 1}, []cdr.Record{leg("a", "a", "x", failed(404, 16), func(r *cdr.Record) { r.HangupBy = cdr.HangupPeer })}, Same, ""},
		{"rejected otherwise", PlanStep{Do: "reject", Status: 403, Cause: 21}, []cdr.Record{leg("a", "a", "x", failed(404, 1))}, Different, "ended with 404"},
		{"let in", PlanStep{Do: "reject", Status: 403, Cause: 21}, []cdr.Record{leg("a", "a", "x"), leg("b", "a", "y")}, Different, "called y"},
		{"answered", PlanStep{Do: "reject", Status: 403, Cause: 21}, []cdr.Record{leg("a", "a", "x")}, Different, "was answered"},
		{"announcement", PlanStep{Do: "play", Name: "closed.wav"}, []cdr.Record{leg("a", "a", "x")}, NotKnown, "what is not recorded"},
		{"announcement, but rejected", PlanStep{Do: "play", Name: "closed.wav"}, []cdr.Record{leg("a", "a", "x", failed(404, 1))}, Different, "ended with 404"},
		{"announcement, but rung", PlanStep{Do: "voicemail", Name: "101"}, []cdr.Record{leg("a", "a", "x"), leg("b", "a", "101")}, Different, "called 101"},
		{"handed over", PlanStep{Do: "handover", Name: "queue:support"}, []cdr.Record{leg("a", "a", "x"), leg("b", "a", "agent7")}, NotKnown, "which is yours"},
		{"gap", dialUser("101"), []cdr.Record{leg("a", "a", "x", func(r *cdr.Record) { r.Gap = "g1" })}, NotKnown, "not heard"},
		{"another's", dialUser("101"), []cdr.Record{leg("a", "a", "x", func(r *cdr.Record) { r.Tenant = "other" })}, Different, "recorded as other's"},
	} {
		r := NewShadowReport()
		r.Decide(decided("a", c.step))
		r.Decide(decided("a", PlanStep{Do: "reject", Status: 999})) // the PBX's own dialplan asked again
		for _, l := range c.legs {
			r.Record(l)
		}
		got := r.Comparisons()
		if len(got) != 1 || got[0].Verdict != c.want || !strings.Contains(got[0].How, c.how) || (c.how == "") != (got[0].How == "") {
			t.Errorf("%s: %+v, want %s %q", c.name, got, c.want, c.how)
		}
	}
}

// TestShadowByCallID: a PBX that does not tell its leg's name is found by the
// SIP Call-ID of the caller's leg, on its own node alone.
func TestShadowByCallID(t *testing.T) {
	r := NewShadowReport()
	d := decided("", dialUser("101"))
	d.SIPCallID = "x@y"
	r.Decide(d)
	other := d
	other.Node = "fs2"
	r.Decide(other)
	alone := decided("z", dialUser("101"))
	alone.Managed = false
	r.Decide(alone)
	r.Record(leg("17.1", "17.1", "101", func(r *cdr.Record) { r.SIPCallID = "x@y" }))
	r.Record(leg("17.2", "17.1", "101"))
	sums := Tenants(r.Comparisons(), 10)
	if len(sums) != 2 || sums[0].Tenant != "" || sums[0].Unmanaged != 1 || sums[1].Same != 1 || sums[1].NotKnown != 1 || sums[1].How[0].Calls != 1 {
		t.Errorf("%+v", sums)
	}
}

// FuzzShadowLine: whatever stands in the files, the report is made.
func FuzzShadowLine(f *testing.F) {
	f.Add(`{"node":"fs1","leg":"a","managed":true,"actions":[{"do":"dial","legs":[{"do":"user","name":"101"}],"busy":[{"do":"dial"}]}]}`)
	f.Add(`{"node":"fs1","leg":"a","managed":true,"actions":[{"do":"dial"}]}`)
	f.Add(`{"node":"fs1","leg":"a","managed":true,"actions":[{}]}`)
	f.Add("{")
	f.Fuzz(func(t *testing.T, line string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, shadowNew), []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		r := NewShadowReport()
		if _, err := ReadShadow(dir, r.Decide); err != nil {
			return
		}
		r.Record(leg("a", "a", "101", failed(480, 20)))
		r.Record(leg("b", "a", "101", failed(480, 20)))
		Tenants(r.Comparisons(), 3)
	})
}
