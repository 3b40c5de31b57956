package siptest_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// lossy is a UDP hop in front of to that loses a quarter of the datagrams of
// both directions. It knows one client.
func lossy(t *testing.T, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 3, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	dice := rand.New(rand.NewPCG(3, 4))
	lost := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return dice.IntN(4) == 0
	}
	client := make(chan netip.AddrPort, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 65536)
		for known := false; ; {
			n, src, err := front.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if !known {
				known = true
				client <- src
			}
			if !lost() {
				_, _ = back.Write(b[:n])
			}
		}
	})
	wg.Go(func() {
		b := make([]byte, 65536)
		var dst netip.AddrPort
		for {
			n, err := back.Read(b)
			if err != nil {
				return
			}
			if !dst.IsValid() {
				dst = <-client
			}
			if !lost() {
				_, _ = front.WriteToUDPAddrPort(b[:n], dst)
			}
		}
	})
	t.Cleanup(func() {
		_ = front.Close()
		_ = back.Close()
		wg.Wait()
	})
	return front.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestCallsOverLossyNetwork makes 60 calls of which a third is refused; the
// INVITE transactions lose a quarter of their messages.
func TestCallsOverLossyNetwork(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	callee := newStack(t, siptest.StackConfig{Listen: "127.0.3.2:0", OnInvite: func(in *siptest.Incoming) {
		mu.Lock()
		seen[in.Request().CallID().Value()]++
		mu.Unlock()
		if in.Request().Recipient.User == "busy" {
			if err := in.Reject(486, "Busy Here"); err != nil {
				t.Error(err)
			}
			return
		}
		if _, err := in.Answer(siptest.Offer(in.Source())); err != nil {
			t.Error(err)
		}
	}})
	caller := newStack(t, siptest.StackConfig{Listen: "127.0.3.3:0"})
	hop := lossy(t, callee.Addr())
	var wg sync.WaitGroup
	for i := range 60 {
		user := "ok"
		if i%3 == 0 {
			user = "busy"
		}
		wg.Go(func() {
			d, err := caller.Invite(timeout(t, 20*time.Second), siptest.Invitation{URI: uri(user, callee.Addr()), Dest: hop, Body: siptest.Offer(caller.Addr())})
			if user == "busy" {
				wantStatus(t, err, 486)
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			if err := d.Bye(timeout(t, 10*time.Second)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	for id, n := range seen {
		if n != 1 {
			t.Errorf("call %s was offered %d times", id, n)
		}
	}
	if len(seen) != 60 {
		t.Errorf("%d calls arrived, want 60", len(seen))
	}
	eventually(t, "the last BYE", func() bool { return callee.Dialogs() == 0 })
}

// raw is a peer that does only what a test makes it do.
type raw struct {
	t    *testing.T
	conn *net.UDPConn
	addr netip.AddrPort
}

func newRaw(t *testing.T, ip string) *raw {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &raw{t, conn, conn.LocalAddr().(*net.UDPAddr).AddrPort()}
}

// read waits for a message that starts with prefix and passes over others.
func (r *raw) read(prefix string) (sip.Message, netip.AddrPort) {
	r.t.Helper()
	if err := r.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	b := make([]byte, 65536)
	for {
		n, src, err := r.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			r.t.Fatalf("waiting for %s: %v", prefix, err)
		}
		if !strings.HasPrefix(string(b[:n]), prefix) {
			continue
		}
		m, err := sip.ParseMessage(b[:n])
		if err != nil {
			r.t.Fatal(err)
		}
		m.SetSource(src.String())
		return m, src
	}
}

func (r *raw) write(m sip.Message, dst netip.AddrPort) {
	r.t.Helper()
	if _, err := r.conn.WriteToUDPAddrPort([]byte(m.String()), dst); err != nil {
		r.t.Fatal(err)
	}
}

// TestProxyEndsOrphanedCall lets a node answer after its caller was refused.
func TestProxyEndsOrphanedCall(t *testing.T) {
	n := newRaw(t, "127.0.2.9")
	w := newWorldWith(t, siptest.ProxyConfig{Failover: 100 * time.Millisecond}, siptest.Target{Node: "fs1", Addr: n.addr})
	a := w.phone(siptest.PhoneConfig{User: "1001"})
	_, err := a.Dial(timeout(t, 5*time.Second), "999", siptest.DialOptions{})
	wantStatus(t, err, 503)
	m, src := n.read("INVITE")
	res := sip.NewSDPResponseFromRequest(m.(*sip.Request), siptest.Offer(n.addr))
	contact := &sip.ContactHeader{Address: uri("999", n.addr)}
	res.AppendHeader(contact)
	n.write(res, src)
	n.read("ACK")
	bye, src := n.read("BYE")
	n.write(sip.NewResponseFromRequest(bye.(*sip.Request), 200, "OK", nil), src)
}

// TestCallWithoutAckEnds wants the 200 repeated and then a BYE.
func TestCallWithoutAckEnds(t *testing.T) {
	got := make(chan *siptest.Dialog, 1)
	callee := newStack(t, siptest.StackConfig{T1: 5 * time.Millisecond, OnInvite: func(in *siptest.Incoming) {
		d, err := in.Answer(siptest.Offer(in.Source()))
		if err != nil {
			t.Error(err)
		}
		got <- d
	}})
	r := newRaw(t, "127.0.3.4")
	req := sip.NewRequest(sip.INVITE, uri("1", callee.Addr()))
	id, mf := sip.CallIDHeader("x"), sip.MaxForwardsHeader(70)
	for _, h := range []sip.Header{
		&sip.ViaHeader{ProtocolName: "SIP", ProtocolVersion: "2.0", Transport: "UDP", Host: r.addr.Addr().String(), Port: int(r.addr.Port()), Params: sip.HeaderParams{{K: "branch", V: "z9hG4bKx"}}},
		&sip.FromHeader{Address: uri("2", r.addr), Params: sip.HeaderParams{{K: "tag", V: "f"}}},
		&sip.ToHeader{Address: uri("1", callee.Addr())}, &id, &mf,
		&sip.CSeqHeader{SeqNo: 1, MethodName: sip.INVITE}, &sip.ContactHeader{Address: uri("2", r.addr)},
	} {
		req.AppendHeader(h)
	}
	req.SetBody(siptest.Offer(r.addr))
	r.write(req, callee.Addr())
	r.read("SIP/2.0 200")
	r.read("SIP/2.0 200")
	bye, src := r.read("BYE")
	r.write(sip.NewResponseFromRequest(bye.(*sip.Request), 200, "OK", nil), src)
	waitClosed(t, "the end of the call", (<-got).Done())
}

// TestLargeMessages proxies an INVITE of 6 kB, several fragments on a real
// network, as PBXs with many headers send.
func TestLargeMessages(t *testing.T) {
	w := newWorld(t)
	a := w.phone(siptest.PhoneConfig{User: "1001"})
	w.phone(siptest.PhoneConfig{User: "1002"})
	c, err := a.Dial(timeout(t, 5*time.Second), "1002", siptest.DialOptions{Headers: []sip.Header{sip.NewHeader("X-Long", strings.Repeat("x", 6000))}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Hangup(timeout(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// sipp runs SIPp, which is somebody else's idea of the same protocol.
func sipp(t *testing.T, args ...string) {
	t.Helper()
	bin, err := exec.LookPath("sipp")
	if err != nil {
		if os.Getenv("BULKHEAD_REQUIRE_REAL") == "1" {
			t.Fatal("needs sipp: install the package sip-tester")
		}
		t.Skip("needs sipp: install the package sip-tester")
	}
	dir := t.TempDir()
	ctx := timeout(t, 30*time.Second)
	cmd := exec.CommandContext(ctx, bin, append(args, "-nostdin", "-trace_err", "-error_file", filepath.Join(dir, "err"))...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "TERM=dumb")
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		log, _ := os.ReadFile(filepath.Join(dir, "err"))
		t.Errorf("sipp: %v\n%s\n%s", err, out, log)
	}
}

// TestSippCallsPhone has SIPp's stock caller call a phone.
func TestSippCallsPhone(t *testing.T) {
	n, group := node(t, "fs1", "127.0.2.3", nil)
	sipp(t, "-sn", "uac", "-i", "127.0.3.7", "-s", "4930123", "-m", "20", "-r", "20", "-d", "100", n.Addr.String())
	eventually(t, "the last BYE", func() bool { return group.Calls() == 0 })
}

// TestSippCallsPhoneThroughProxy has SIPp call a node by way of the proxy and
// its Record-Route.
func TestSippCallsPhoneThroughProxy(t *testing.T) {
	scenario, err := filepath.Abs("testdata/uac-routes.xml")
	if err != nil {
		t.Fatal(err)
	}
	n, group := node(t, "fs1", "127.0.2.3", nil)
	w := newWorld(t, n)
	w.router.mu.Lock()
	w.router.open = true
	w.router.mu.Unlock()
	sipp(t, "-sf", scenario, "-pause_msg_ign", "-i", "127.0.3.7", "-s", "4930123", "-m", "20", "-r", "20", w.proxy.Addr().String())
	eventually(t, "the last BYE", func() bool { return group.Calls() == 0 })
	for _, e := range w.seen() {
		t.Errorf("event %+v", e)
	}
}

// TestPhoneCallsSipp has a phone call SIPp's stock callee.
func TestPhoneCallsSipp(t *testing.T) {
	port := newRaw(t, "127.0.3.8")
	addr := port.addr
	_ = port.conn.Close() // free for SIPp
	g, err := siptest.NewPhones(siptest.PhonesConfig{Listen: "127.0.3.9:0", Proxy: addr.String()})
	if err != nil {
		t.Fatal(err)
	}
	p, err := g.Add(siptest.PhoneConfig{User: "1001"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer func() {
		wg.Wait()
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := exec.LookPath("sipp"); err == nil {
		wg.Go(func() {
			for range 5 {
				c, err := p.Dial(timeout(t, 20*time.Second), "service@"+addr.String(), siptest.DialOptions{Talk: 100 * time.Millisecond})
				if err != nil {
					t.Error(err)
					return
				}
				waitClosed(t, "the end of a call", c.Done())
			}
		})
	}
	sipp(t, "-sn", "uas", "-i", addr.Addr().String(), "-p", netip.AddrPortFrom(addr.Addr(), addr.Port()).String()[len(addr.Addr().String())+1:], "-m", "5")
}
