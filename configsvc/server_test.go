package configsvc

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

const token = "0123456789abcdef-test"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo shows what the server hands to a dialect.
func echo(x *route.Snapshot, node bulkhead.NodeID, body, dst []byte) ([]byte, string) {
	return fmt.Appendf(dst, "%d|%s|%s", x.Revision(), node, body), "echoed"
}

func start(t *testing.T, live *route.Live) (*Server, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	cfg := DefaultConfig()
	cfg.Listen, cfg.Token = "127.0.0.1:0", token
	s, err := New(cfg, live, echo, slog.New(slog.DiscardHandler), reg)
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
		{"known node", "fs1", token, "1|fs1|section=dialplan"},
		{"wrong token", "fs1", token + "x", "1||section=dialplan"},
		{"unknown node", "fs9", token, "1||section=dialplan"},
		{"no credentials", "", "", "1||section=dialplan"},
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
		"short token": func(c *Config) { c.Token = "short" },
		"body":        func(c *Config) { c.MaxBody = 10 },
		"listen":      func(c *Config) { c.Listen = "127.0.0.1:999999" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.Token = token
			change(&cfg)
			if _, err := New(cfg, &route.Live{}, echo, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil {
				t.Error("accepted")
			}
		})
	}
}
