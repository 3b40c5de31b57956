package configsvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

const token = "0123456789abcdef-test"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func isNode(_ *route.Snapshot, _ bulkhead.NodeID, password string) bool { return password == token }

// echo shows what the server hands to a dialect. The tenant of a question is
// what stands before a colon in its query.
func echo(x *route.Snapshot, q Question, dst []byte) ([]byte, Result) {
	tenant, rest, _ := strings.Cut(q.Query, ":")
	rest, slow := strings.CutSuffix(rest, "-slow")
	if slow {
		time.Sleep(5 * time.Millisecond) // it is what is measured
	}
	return fmt.Appendf(dst, "%d|%s|%s|%s", x.Revision(), q.Node, rest, q.Body),
		Result{Outcome: "echoed", Tenant: bulkhead.TenantID(tenant), Urgent: rest == "urgent"}
}

var echoes = []Dialect{
	{Name: "freeswitch", Pattern: "/freeswitch/xml", Methods: []string{http.MethodPost, http.MethodGet}, ContentType: "text/plain", Answer: echo},
	{Name: "other", Pattern: "/other/*", Methods: []string{http.MethodGet}, ContentType: "text/plain", Answer: func(_ *route.Snapshot, q Question, dst []byte) ([]byte, Result) {
		return append(dst, q.Method+" "+q.Path...), Result{Outcome: "echoed", Status: http.StatusTeapot, ContentType: "text/other"}
	}},
}

func start(t *testing.T, live *route.Live, change ...func(*Config)) (*Server, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	cfg := DefaultConfig()
	cfg.Listen, cfg.IsNode = "127.0.0.1:0", isNode
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg, live, echoes, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return s, reg
}

func ask(t *testing.T, s *Server, user, password, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.Addr().String()+"/freeswitch/xml", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func snapshot() *route.Snapshot {
	var s bulkhead.State
	return route.New(s.Apply(&bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1"}},
		Pools: []bulkhead.Pool{{ID: "p1", Cell: "c1", Profile: bulkhead.ProfileStandard}},
		Nodes: []bulkhead.Node{{ID: "fs1", Pool: "p1", SIP: "127.0.0.1:5080"}},
	}))
}

func TestWhoMayAsk(t *testing.T) {
	live := &route.Live{}
	live.Store(snapshot())
	s, reg := start(t, live)
	for _, c := range []struct{ name, user, password, want string }{
		{"known node", "fs1", token, "1|fs1||section=dialplan"},
		{"wrong token", "fs1", token + "x", "1|||section=dialplan"},
		{"unknown node", "fs9", token, "1|||section=dialplan"},
		{"no credentials", "", "", "1|||section=dialplan"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if code, got := ask(t, s, c.user, c.password, "section=dialplan"); code != 200 || got != c.want {
				t.Errorf("got %d %q, want 200 %q", code, got, c.want)
			}
		})
	}
	want := `
# HELP bulkhead_configsvc_answers_total Questions of PBXs answered, by dialect and kind of answer.
# TYPE bulkhead_configsvc_answers_total counter
bulkhead_configsvc_answers_total{dialect="freeswitch",outcome="echoed"} 4
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "bulkhead_configsvc_answers_total"); err != nil {
		t.Error(err)
	}
}

func TestBodyLimit(t *testing.T) {
	live := &route.Live{}
	live.Store(snapshot())
	s, _ := start(t, live)
	if code, _ := ask(t, s, "fs1", token, strings.Repeat("x", 64<<10)); code != 200 {
		t.Errorf("64 KiB: %d, want 200", code)
	}
	if code, _ := ask(t, s, "fs1", token, strings.Repeat("x", 64<<10+1)); code != http.StatusRequestEntityTooLarge {
		t.Errorf("64 KiB and a byte: %d, want 413", code)
	}
}

func TestNoRevisionYet(t *testing.T) {
	live := &route.Live{}
	s, _ := start(t, live)
	if s.Ready() == nil {
		t.Error("ready without a revision")
	}
	if code, _ := ask(t, s, "fs1", token, "x"); code != http.StatusServiceUnavailable {
		t.Errorf("got %d, want 503, on which a PBX goes to its second URL", code)
	}
	live.Store(snapshot())
	if err := s.Ready(); err != nil {
		t.Error(err)
	}
	if code, _ := ask(t, s, "fs1", token, "x"); code != 200 {
		t.Errorf("got %d after the first revision, want 200", code)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"nobody":      func(c *Config) { c.IsNode = nil },
		"body":        func(c *Config) { c.MaxBody = 10 },
		"connections": func(c *Config) { c.ConnsPerPeer = 0 },
		"rate":        func(c *Config) { c.TenantRate = 0 },
		"deadline":    func(c *Config) { c.Deadline = 0 },
		"urgent":      func(c *Config) { c.UrgentDeadline = 0 },
		"stale":       func(c *Config) { c.StaleAfter = 0 },
		"max stale":   func(c *Config) { c.MaxStale = time.Second },
		"listen":      func(c *Config) { c.Listen = "127.0.0.1:999999" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.IsNode = isNode
			change(&cfg)
			if _, err := New(cfg, &route.Live{}, echoes, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestDialectsHaveTheirOwnPaths(t *testing.T) {
	live := &route.Live{}
	live.Store(snapshot())
	s, _ := start(t, live)
	for _, c := range []struct {
		method, path, body, kind string
		status                   int
	}{
		{http.MethodGet, "/other/a/b", "GET /other/a/b", "text/other", http.StatusTeapot},
		{http.MethodPost, "/other/a/b", "", "", http.StatusMethodNotAllowed},
		{http.MethodGet, "/nowhere", "404 page not found\n", "text/plain; charset=utf-8", http.StatusNotFound},
	} {
		resp, body := get(t, s, c.method, c.path)
		if resp.StatusCode != c.status || body != c.body || resp.Header.Get("Content-Type") != c.kind {
			t.Errorf("%s %s: %d %q %q", c.method, c.path, resp.StatusCode, resp.Header.Get("Content-Type"), body)
		}
	}
}

func TestDialectsAreChecked(t *testing.T) {
	for _, d := range []Dialect{{}, {Name: "x", Pattern: "x", Methods: []string{"GET"}, Answer: echo}, {Name: "x", Pattern: "/x", Methods: []string{"PUT"}, Answer: echo}, {Name: "x", Pattern: "/x", Methods: []string{"GET"}}} {
		cfg := DefaultConfig()
		cfg.Listen, cfg.IsNode = "127.0.0.1:0", isNode
		if _, err := New(cfg, &route.Live{}, []Dialect{d}, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

func get(t *testing.T, s *Server, method, path string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Addr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("fs1", token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestStaleAnswersAreMarkedAndEnd(t *testing.T) {
	live := &route.Live{}
	live.Store(snapshot())
	var age time.Duration
	s, reg := start(t, live, func(c *Config) {
		c.Age, c.MaxStale = func() time.Duration { return age }, time.Hour
	})
	for _, c := range []struct {
		age    time.Duration
		mark   string
		status int
	}{
		{0, "", 200}, {9 * time.Second, "", 200}, {70 * time.Second, "70", 200}, {2 * time.Hour, "", http.StatusServiceUnavailable},
	} {
		age = c.age
		resp, _ := get(t, s, http.MethodGet, "/freeswitch/xml")
		if resp.StatusCode != c.status || resp.Header.Get("X-Bulkhead-Stale") != c.mark {
			t.Errorf("age %s: %d, marked %q, want %d and %q", c.age, resp.StatusCode, resp.Header.Get("X-Bulkhead-Stale"), c.status, c.mark)
		}
	}
	if s.Ready() == nil {
		t.Error("ready, though every answer is refused")
	}
	want := `
# HELP bulkhead_configsvc_stale_answers_total Answers made from a revision that nobody confirmed lately.
# TYPE bulkhead_configsvc_stale_answers_total counter
bulkhead_configsvc_stale_answers_total{dialect="freeswitch"} 1
bulkhead_configsvc_stale_answers_total{dialect="other"} 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "bulkhead_configsvc_stale_answers_total"); err != nil {
		t.Error(err)
	}
}

// A tenant that floods is refused what it asks too much; another tenant, a
// node's own questions and urgent ones are answered meanwhile.
func TestAFloodIsItsTenantsOwn(t *testing.T) {
	live := &route.Live{}
	live.Store(snapshot())
	// One turn a second, so that a second question finds none within its deadline.
	s, _ := start(t, live, func(c *Config) { c.TenantRate = 1 })
	status := func(query string) int {
		resp, _ := get(t, s, http.MethodGet, "/freeswitch/xml?"+query)
		return resp.StatusCode
	}
	if got := status("a:"); got != 200 {
		t.Fatalf("the first question: %d", got)
	}
	refused := 0
	for range 5 {
		if status("a:") == http.StatusServiceUnavailable {
			refused++
		}
	}
	if refused < 3 { // a slow machine may give it a turn or two
		t.Errorf("%d of 5 questions beyond the rate were refused", refused)
	}
	for _, q := range []string{"b:", ":", "a:urgent"} {
		if got := status(q); got != 200 {
			t.Errorf("question %q in a flood of tenant a: %d", q, got)
		}
	}
	if got := testutil.ToFloat64(s.metrics.refused.WithLabelValues(refusedTenant)); got != float64(refused) {
		t.Errorf("%v refusals counted, want %d", got, refused)
	}
}

// What a PBX asks one at a time has a deadline of its own. An answer beyond it
// is sent all the same: nothing better would come of it.
func TestLateUrgentAnswersAreCounted(t *testing.T) {
	live := &route.Live{}
	live.Store(snapshot())
	s, _ := start(t, live, func(c *Config) { c.UrgentDeadline = time.Millisecond })
	for _, q := range []string{"a:-slow", "a:urgent-slow", "b:urgent-slow"} {
		if resp, _ := get(t, s, http.MethodGet, "/freeswitch/xml?"+q); resp.StatusCode != 200 {
			t.Errorf("%q: %s", q, resp.Status)
		}
	}
	if got := testutil.ToFloat64(s.metrics.late.WithLabelValues("freeswitch")); got != 2 {
		t.Errorf("%v are counted, want 2", got)
	}
}

func TestTurns(t *testing.T) {
	p := newPacer(100) // every 10 ms, 50 ahead
	now, a := p.start.Add(time.Hour), asker{tenant: "a"}
	for i := range 51 {
		if wait, ok := p.turn(a, now, time.Second); !ok || wait != 0 {
			t.Fatalf("question %d of a burst waits %s, %t", i, wait, ok)
		}
	}
	if wait, ok := p.turn(a, now, time.Second); !ok || wait != 10*time.Millisecond {
		t.Errorf("the first beyond the burst waits %s, %t", wait, ok)
	}
	if wait, ok := p.turn(a, now, 15*time.Millisecond); ok {
		t.Errorf("a question that would wait %s with 15 ms left was taken", wait)
	}
	if wait, ok := p.turn(a, now, 20*time.Millisecond); !ok || wait != 20*time.Millisecond {
		t.Errorf("a refused question took a turn: the next waits %s, %t", wait, ok)
	}
	if wait, ok := p.turn(asker{node: "a"}, now, time.Second); !ok || wait != 0 {
		t.Errorf("a node of the same name waits %s", wait)
	}
	if wait, ok := p.turn(asker{tenant: "late"}, now, -time.Second); !ok || wait != 0 {
		t.Errorf("a question that need not wait, but took long to read, waits %s, %t", wait, ok)
	}
	if wait, ok := p.turn(a, now.Add(time.Minute), time.Second); !ok || wait != 0 {
		t.Errorf("a minute later it waits %s, %t", wait, ok)
	}
}

// Whoever is not ahead of his turn is forgotten.
func TestTurnsAreBounded(t *testing.T) {
	p := newPacer(1000)
	now := p.start
	for i := range 2 * len(p.shards) * shardSize {
		p.turn(asker{tenant: bulkhead.TenantID(strconv.Itoa(i))}, now, time.Second)
		now = now.Add(time.Millisecond)
	}
	for i := range p.shards {
		if n := len(p.shards[i].next); n > shardSize {
			t.Fatalf("shard %d holds %d", i, n)
		}
	}
}

func TestConnectionsOfOnePeerAreBounded(t *testing.T) {
	live := &route.Live{}
	live.Store(snapshot())
	s, _ := start(t, live, func(c *Config) { c.ConnsPerPeer = 2 })
	open := func() (net.Conn, bool) {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(c, "GET /other/x HTTP/1.1\r\nHost: x\r\n\r\n")
		_, err = c.Read(make([]byte, 1))
		return c, err == nil
	}
	first, ok := open()
	if _, ok2 := open(); !ok || !ok2 {
		t.Fatal("the first two connections were not served")
	}
	if _, ok := open(); ok {
		t.Fatal("a third connection was served")
	}
	first.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if _, ok := open(); ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a closed connection is not free again")
		}
	}
	if testutil.ToFloat64(s.metrics.refused.WithLabelValues(refusedPeer)) < 1 {
		t.Error("not counted")
	}
}

// TestHeadersAndTimeAreBounded: a question with headers without end is refused,
// and a peer that does not finish its question loses its connection.
func TestHeadersAndTimeAreBounded(t *testing.T) {
	live := &route.Live{}
	live.Store(snapshot())
	s, _ := start(t, live)
	answer := func(t *testing.T, question string) string {
		t.Helper()
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.WriteString(c, question); err != nil {
			return "" // it was closed before
		}
		b, err := io.ReadAll(c)
		if late := net.Error(nil); errors.As(err, &late) && late.Timeout() {
			t.Errorf("%.60q holds its connection for a minute", question)
		}
		return string(b)
	}
	const ask = "GET /other/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
	if got := answer(t, ask+"\r\n"); !strings.HasPrefix(got, "HTTP/1.1 418") {
		t.Fatalf("an ordinary question: %q", got)
	}
	// net/http adds 4 KiB to the limit.
	if got := answer(t, ask+"X: "+strings.Repeat("x", 2*maxHeader)+"\r\n\r\n"); strings.HasPrefix(got, "HTTP/1.1 418") {
		t.Errorf("headers of %d bytes were taken", 2*maxHeader)
	}
	for what, half := range map[string]string{
		"nothing": "", "half a header": ask, "half a body": "POST /freeswitch/xml HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel() // each waits for the limit
			if got := answer(t, half); got != "" && !strings.HasPrefix(got, "HTTP/1.1 4") || strings.HasPrefix(got, "HTTP/1.1 418") {
				t.Errorf("it was answered: %q", got)
			}
		})
	}
}
