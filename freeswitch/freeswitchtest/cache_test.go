package freeswitchtest_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
	"github.com/bulkhead-voip/bulkhead/route"
)

// cuttable passes connections on to an address, until it is cut.
type cuttable struct {
	net.Listener
	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func startCuttable(t *testing.T, to string) *cuttable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cuttable{Listener: l, conns: map[net.Conn]bool{}}
	c.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil || !c.take(in, out) {
				in.Close()
				continue
			}
			c.wg.Go(func() { _, _ = io.Copy(out, in); out.Close() })
			c.wg.Go(func() { _, _ = io.Copy(in, out); in.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); c.set(true); c.wg.Wait() })
	return c
}

func (c *cuttable) take(conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range conns {
		if c.cut {
			n.Close()
		}
		c.conns[n] = true
	}
	return !c.cut
}

func (c *cuttable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	for n := range c.conns {
		if cut {
			n.Close()
		}
	}
}

// TestCachedUsersFollow: a switch remembers a user until a revision changes
// him, also one that came while the switch could not be reached.
func TestCachedUsersFollow(t *testing.T) {
	old, changed, again := strings.Repeat("0a", 16), strings.Repeat("1b", 16), strings.Repeat("2c", 16)
	tenant := func(ha1 string) bulkhead.Change {
		return bulkhead.Change{Tenants: []bulkhead.Tenant{{
			ID: "acme", Cell: "c1", Profile: "standard", Domains: []string{"acme.example"}, Users: []bulkhead.User{{Extension: "101", HA1: ha1}},
		}}}
	}
	first := tenant(old)
	first.Cells, first.Pools = []bulkhead.Cell{{ID: "c1"}}, []bulkhead.Pool{{ID: "p1", Cell: "c1", Profile: "standard"}}
	first.Nodes = []bulkhead.Node{{ID: "fs1", Pool: "p1", SIP: "127.0.0.1:5080", Cacheable: 3600}}
	state := bulkhead.State{}.Apply(&first)
	live := &route.Live{}
	live.Store(route.New(state))
	commit := func(c bulkhead.Change) {
		state = state.Apply(&c)
		live.Store(route.New(state))
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		answer, _ := freeswitch.Answer(live.Load(), "fs1", time.Now(), body, nil)
		_, _ = w.Write(answer)
	}))
	defer srv.Close()
	node, err := freeswitchtest.New(freeswitchtest.Config{ID: "fs1", ESLPassword: "not the default", XMLURLs: []string{srv.URL}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	esl := startCuttable(t, node.ESLAddr())
	esl.set(true) // at first the switch cannot be reached
	reg := prometheus.NewRegistry()
	caches, err := freeswitch.NewCaches("fs1", freeswitch.Config{Addr: esl.Addr().String(), Password: "not the default"}, live, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- node.Run(ctx) }()
	go func() { ended <- caches.Run(ctx) }()
	defer func() {
		cancel()
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}()
	look := func() (ha1 string, fetched bool) {
		t.Helper()
		ha1, found, fetched := node.UserParam(ctx, "101", "acme.example", "a1-hash")
		if !found {
			t.Fatal("there is no user")
		}
		return ha1, fetched
	}
	becomes := func(want string) {
		t.Helper()
		until(t, "the switch takes "+want+" for his hash", func() bool { got, _ := look(); return got == want })
	}
	if got, fetched := look(); got != old || !fetched {
		t.Fatalf("first: %s, fetched %t", got, fetched)
	}
	commit(tenant(changed))
	until(t, "a try to reach the switch", func() bool { return counter(t, reg, "bulkhead_freeswitch_cache_failures_total") > 0 })
	if got, fetched := look(); got != old || fetched {
		t.Fatalf("from the cache: %s, fetched %t", got, fetched)
	}
	esl.set(false)
	becomes(changed)
	commit(tenant(again))
	becomes(again)
}

// until polls until ok, for at most 30 s.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after 30 s still not: %s", what)
		}
	}
}

// counter returns the value of the first metric of that name.
func counter(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	return 0
}
