package siptest_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// TestProxyRang wants a call that rang not to be placed a second time.
func TestProxyRang(t *testing.T) {
	placedOnce(t, func(in *siptest.Incoming) error {
		return errors.Join(in.Progress(180, "Ringing", nil), in.Reject(503, "Late"))
	})
}

// TestProxyDecided: what became of a call that a node took is no failure of the node.
func TestProxyDecided(t *testing.T) {
	placedOnce(t, func(in *siptest.Incoming) error {
		return in.Reject(503, "Full", sip.NewHeader("X-Bulkhead-Decided", "true"))
	})
}

// placedOnce places a call that the first of two nodes ends with 503 after all.
func placedOnce(t *testing.T, end func(*siptest.Incoming) error) {
	t.Helper()
	first := newStack(t, siptest.StackConfig{Listen: "127.0.2.2:0", OnInvite: func(in *siptest.Incoming) {
		if err := end(in); err != nil {
			t.Error(err)
		}
	}})
	asked := make(chan struct{}, 1)
	second, _ := node(t, "fs2", "127.0.2.3", func(*siptest.Incoming) siptest.Behaviour {
		asked <- struct{}{}
		return siptest.Behaviour{Code: 486}
	})
	w := newWorld(t, siptest.Target{Node: "fs1", Addr: first.Addr()}, second)
	a := w.phone(siptest.PhoneConfig{User: "1001"})
	_, err := a.Dial(timeout(t, 5*time.Second), "999", siptest.DialOptions{})
	wantStatus(t, err, 503)
	if ev := w.seen(); len(ev) != 0 || len(asked) != 0 {
		t.Errorf("the second node was asked: %d times, events %+v", len(asked), ev)
	}
}

// TestProxyIsNoRelay sends what looks like part of a call from elsewhere.
func TestProxyIsNoRelay(t *testing.T) {
	victim, err := net.ListenPacket("udp", "127.0.2.5:0")
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	sender := newStack(t, siptest.StackConfig{Listen: "127.0.2.4:0"})
	w := newWorld(t)
	message := func(ctx context.Context) (int, error) {
		route, target := uri("", w.proxy.Addr()), uri("x", netip.MustParseAddrPort(victim.LocalAddr().String()))
		route.UriParams = sip.HeaderParams{{K: "lr"}}
		req := sip.NewRequest(sip.MESSAGE, target)
		req.AppendHeader(&sip.RouteHeader{Address: route})
		req.AppendHeader(&sip.ToHeader{Address: target, Params: sip.HeaderParams{{K: "tag", V: "made-up"}}})
		res, err := sender.Do(ctx, req, w.proxy.Addr())
		if err != nil {
			return 0, err
		}
		return res.StatusCode, nil
	}
	if got, err := message(timeout(t, 5*time.Second)); got != 481 || err != nil {
		t.Errorf("a stranger's MESSAGE got %d, %v", got, err)
	}
	buf := make([]byte, 1<<16)
	if err := victim.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := victim.ReadFrom(buf); err == nil {
		t.Errorf("relayed for a stranger:\n%s", buf[:n])
	}
	// A node may, wherever the call is.
	w.router.addNode(siptest.Target{Node: "fs1", Addr: sender.Addr()})
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = message(ctx) // the victim does not answer
	}()
	if err := victim.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := victim.ReadFrom(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "MESSAGE ") {
		t.Errorf("a node's MESSAGE: %q, %v", buf[:n], err)
	}
	cancel()
	<-sent
}
