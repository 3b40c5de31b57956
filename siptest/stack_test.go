package siptest_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

func newStack(t *testing.T, cfg siptest.StackConfig) *siptest.Stack {
	t.Helper()
	if cfg.T1 == 0 {
		cfg.T1 = 50 * time.Millisecond
	}
	s, err := siptest.NewStack(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func uri(user string, addr netip.AddrPort) sip.Uri {
	return sip.Uri{Scheme: "sip", User: user, Host: addr.Addr().String(), Port: int(addr.Port())}
}

func timeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func waitClosed(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited 10s for %s", what)
	}
}

// eventually polls, because the condition depends on another socket.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited 10s for %s", what)
		}
	}
}

func TestStackCallBetweenTwo(t *testing.T) {
	for _, byCaller := range []bool{true, false} {
		answered := make(chan *siptest.Dialog, 1)
		callee := newStack(t, siptest.StackConfig{Listen: "127.0.0.3:0", OnInvite: func(in *siptest.Incoming) {
			if err := in.Progress(180, "Ringing", nil); err != nil {
				t.Error(err)
			}
			d, err := in.Answer(siptest.Offer(in.Source()))
			if err != nil {
				t.Error(err)
				return
			}
			answered <- d
		}})
		caller := newStack(t, siptest.StackConfig{Listen: "127.0.0.2:0"})
		ringing := 0
		d, err := caller.Invite(timeout(t, 5*time.Second), siptest.Invitation{
			URI: uri("1002", callee.Addr()), From: uri("1001", caller.Addr()), Body: siptest.Offer(caller.Addr()),
			OnProvisional: func(*sip.Response) { ringing++ },
		})
		if err != nil {
			t.Fatal(err)
		}
		in := <-answered
		if got := in.Invite().Source(); got != caller.Addr().String() {
			t.Errorf("INVITE from %s, want %s", got, caller.Addr())
		}
		if ringing != 1 {
			t.Errorf("%d provisional responses, want 1", ringing)
		}
		waitClosed(t, "the ACK", in.Acked())
		a, b := d, in
		if !byCaller {
			a, b = in, d
		}
		if err := a.Bye(timeout(t, 5*time.Second), sip.NewHeader("Reason", "Q.850;cause=16")); err != nil {
			t.Fatal(err)
		}
		waitClosed(t, "the BYE", b.Done())
		waitClosed(t, "the own BYE", a.Done())
		if r := b.RemoteBye().GetHeader("Reason"); r == nil || r.Value() != "Q.850;cause=16" {
			t.Errorf("Reason of the BYE: %v", r)
		}
		if n := caller.Dialogs() + callee.Dialogs(); n != 0 {
			t.Errorf("%d dialogs left", n)
		}
	}
}

func TestStackRefusalAndCancel(t *testing.T) {
	canceled := make(chan struct{})
	callee := newStack(t, siptest.StackConfig{OnInvite: func(in *siptest.Incoming) {
		if in.Request().Recipient.User == "busy" {
			if err := in.Reject(486, "Busy Here"); err != nil {
				t.Error(err)
			}
			return
		}
		in.OnCancel(func() { close(canceled) })
	}})
	caller := newStack(t, siptest.StackConfig{})
	_, err := caller.Invite(timeout(t, 5*time.Second), siptest.Invitation{URI: uri("busy", callee.Addr())})
	var se *siptest.StatusError
	if !errors.As(err, &se) || se.Code != 486 || se.Reason != "Busy Here" {
		t.Fatalf("got %v, want 486", err)
	}
	_, err = caller.Invite(timeout(t, 200*time.Millisecond), siptest.Invitation{URI: uri("slow", callee.Addr())})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want the deadline", err)
	}
	waitClosed(t, "the CANCEL", canceled)
}

func TestStackOptions(t *testing.T) {
	a, b := newStack(t, siptest.StackConfig{}), newStack(t, siptest.StackConfig{})
	res, err := a.Do(timeout(t, 5*time.Second), sip.NewRequest(sip.OPTIONS, uri("", b.Addr())), b.Addr())
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("OPTIONS: %v %v", res, err)
	}
	_, err = a.Do(timeout(t, 100*time.Millisecond), sip.NewRequest(sip.OPTIONS, uri("", a.Addr())), netip.MustParseAddrPort("127.0.0.9:9"))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("OPTIONS to nobody: %v", err)
	}
}
