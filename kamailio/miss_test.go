package kamailio_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

const missToken = "miss-token-0123456789"

// asked is a configsvc as far as an SBC sees it.
type asked struct {
	addr    string
	live    route.Live
	count   atomic.Int64
	conns   sync.Map // remote addresses
	waiting atomic.Int64
	most    atomic.Int64
	hang    atomic.Pointer[chan struct{}] // not nil: nobody is answered before it is closed
}

func newAsked(t *testing.T) *asked {
	a := &asked{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.count.Add(1)
		a.conns.Store(r.RemoteAddr, true)
		for n := a.waiting.Add(1); ; {
			if most := a.most.Load(); n <= most || a.most.CompareAndSwap(most, n) {
				break
			}
		}
		defer a.waiting.Add(-1)
		if h := a.hang.Load(); h != nil {
			<-*h
		}
		sbc := bulkhead.SBCID("")
		if user, token, _ := r.BasicAuth(); token == missToken {
			sbc = bulkhead.SBCID(user)
		}
		answer, sum := kamailio.Answer(a.live.Load(), sbc, r.URL.RawQuery, nil)
		w.WriteHeader(sum.Status)
		_, _ = w.Write(answer)
	}))
	t.Cleanup(srv.Close)
	a.addr = strings.TrimPrefix(srv.URL, "http://")
	return a
}

// newAskingWorld is a world whose SBC asks a configsvc that knows what the SBC does.
func newAskingWorld(t *testing.T) (*world, *asked) {
	a := newAsked(t)
	w := newWorld(t, kamailio.Params{Workers: 4, Route: a.addr, User: "sbc1", Token: missToken})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	a.live.Store(route.New(w.state))
	return w, a
}

func TestMiss(t *testing.T) {
	w, a := newAskingWorld(t)
	want(t, "a known tenant", w.ask("127.1.2.3", call{ruri: "sip:1@acme.example"}), 486)
	want(t, "a known tenant's number from nowhere", w.ask("127.9.2.3", call{ruri: "sip:493010@" + w.Addr.String()}), 403)
	want(t, "a known tenant's domain from nowhere", w.ask("127.9.2.3", call{ruri: "sip:1@acme.example", from: "sip:1001@acme.example"}), 407)
	if n := a.count.Load(); n != 0 {
		t.Errorf("configsvc was asked %d times about a known tenant", n)
	}
	for range 5 {
		want(t, "nobody", w.ask("127.1.2.3", call{ruri: "sip:1@nobody.example"}), 404)
	}
	if n := a.count.Load(); n != 1 {
		t.Errorf("configsvc was asked %d times about nobody, want once", n)
	}

	// A tenant that the tables do not have yet.
	next := w.state.Apply(&bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("beta", "standard", "493020", "127.2.0.0/16")}})
	a.live.Store(route.New(next))
	for i, ruri := range []string{"sip:1@Beta.example", "sip:+493020@" + w.Addr.String()} {
		c := call{ruri: ruri, callID: fmt.Sprintf("miss-found-%d", i)}
		want(t, ruri, w.ask("127.2.2.3", c), 486)
		if _, invite := w.heardBy(c.callID); header(invite, "X-Bulkhead-Tenant") != "beta" {
			t.Errorf("the node got\n%s", invite)
		}
	}
	want(t, "its domain from elsewhere", w.ask("127.1.2.3", call{ruri: "sip:1@beta.example"}), 404)
	// Whatever stands in a Request-URI reaches configsvc as one value.
	want(t, "hostile", w.ask("127.1.2.3", call{ruri: "sip:1%26d=acme.example@x.example"}), 404)

	conns := 0
	a.conns.Range(func(any, any) bool { conns++; return true })
	if n := a.count.Load(); conns > 4 || int64(conns) >= n {
		t.Errorf("%d questions came over %d connections: want one for each worker at most", n, conns)
	}
}

// TestMissOfASlowConfigsvc lets nobody of a known tenant wait.
func TestMissOfASlowConfigsvc(t *testing.T) {
	w, a := newAskingWorld(t)
	hang := make(chan struct{})
	a.hang.Store(&hang)
	t.Cleanup(func() { close(hang) })
	var strangers sync.WaitGroup
	for i := range 12 {
		strangers.Go(func() {
			start := time.Now()
			want(t, "nobody", w.ask("127.9.2.3", call{ruri: fmt.Sprintf("sip:1@nobody%d.example", i)}), 404)
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("a stranger waited %s", d)
			}
		})
	}
	eventually(t, "configsvc is asked", func() bool { return a.waiting.Load() > 0 })
	for range 20 {
		start := time.Now()
		want(t, "a known tenant", w.ask("127.1.2.3", call{ruri: "sip:1@acme.example"}), 486)
		if d := time.Since(start); d > 900*time.Millisecond {
			t.Errorf("a known tenant's call waited %s", d)
		}
	}
	strangers.Wait()
	if n := a.most.Load(); n != 1 {
		t.Errorf("%d of 4 workers waited at once, want one", n)
	}
	// After one that got no answer nobody asks for some seconds.
	if n := a.count.Load(); n > 3 {
		t.Errorf("configsvc, which answers nobody, was asked %d times", n)
	}
}

func TestMissBreaker(t *testing.T) {
	w, a := newAskingWorld(t)
	if err := w.Client.AskOnMiss(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	want(t, "nobody", w.ask("127.1.2.3", call{ruri: "sip:1@nobody1.example"}), 404)
	if n := a.count.Load(); n != 0 {
		t.Errorf("configsvc was asked %d times while nobody shall ask", n)
	}
	if err := w.Client.AskOnMiss(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	want(t, "nobody", w.ask("127.1.2.3", call{ruri: "sip:1@nobody2.example"}), 404)
	if n := a.count.Load(); n != 1 {
		t.Errorf("configsvc was asked %d times, want once", n)
	}
}

// TestKeepBreaker lets the dispatcher see that configsvc hangs.
func TestKeepBreaker(t *testing.T) {
	w, a := newAskingWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Client.KeepBreaker(ctx, a.addr) }()
	breaker := func() string {
		b, err := w.Client.Call(t.Context(), "htable.get", "bulkhead_gate", "breaker")
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	hang := make(chan struct{})
	a.hang.Store(&hang)
	within(t, 20*time.Second, "nobody shall ask", func() bool { return strings.Contains(breaker(), `"value":1`) })
	a.hang.Store(nil)
	close(hang)
	within(t, 20*time.Second, "everybody may ask again", func() bool { return strings.Contains(breaker(), `"value":0`) })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("KeepBreaker() = %v", err)
	}
}
