package siptest_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

const domain = "acme.example"

// router is a small table in the spirit of the real one: users of one domain
// call each other, and everything else that an authenticated user dials goes
// to the nodes.
type router struct {
	mu    sync.RWMutex
	users map[string]string // user -> HA1
	nodes []siptest.Target
	open  bool // anybody may call the nodes
	// phones are trusted like nodes within a dialog: here they call each other
	// without a node in between.
	phones netip.AddrPort
}

func (r *router) Peer(src netip.AddrPort) (string, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, n := range r.nodes {
		if n.Addr == src {
			return n.Node, true
		}
	}
	return "", src == r.phones
}

func (r *router) addNode(n siptest.Target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes = append(r.nodes, n)
}

func (r *router) Route(q siptest.Request) siptest.Verdict {
	r.mu.RLock()
	defer r.mu.RUnlock()
	v := siptest.Verdict{Tenant: "acme", Revision: "7"}
	if r.open {
		v.Targets = r.nodes
		return v
	}
	if q.Domain != domain {
		return siptest.Verdict{Refuse: &siptest.Refusal{Code: 404, Reason: "unknown domain"}}
	}
	if q.Node == "" && q.AuthUser == "" {
		user := q.FromUser
		if q.Method == sip.REGISTER {
			user = q.User
		}
		v.Challenge = &siptest.Challenge{Realm: domain, User: user, HA1: r.users[user]}
		return v
	}
	if _, ok := r.users[q.User]; ok || q.Method == sip.REGISTER {
		v.AOR = "sip:" + q.User + "@acme"
		return v
	}
	v.Targets = r.nodes
	v.Headers = []siptest.Header{{Name: "X-Bulkhead-Tenant", Value: "acme"}, {Name: "X-Bulkhead-User", Value: q.AuthUser}}
	return v
}

type world struct {
	t      *testing.T
	proxy  *siptest.Proxy
	router *router
	phones *siptest.Phones

	mu     sync.Mutex
	events []siptest.Event
}

func newWorld(t *testing.T, nodes ...siptest.Target) *world {
	t.Helper()
	return newWorldWith(t, siptest.ProxyConfig{}, nodes...)
}

func newWorldWith(t *testing.T, cfg siptest.ProxyConfig, nodes ...siptest.Target) *world {
	t.Helper()
	w := &world{t: t, router: &router{users: map[string]string{}, nodes: nodes}}
	var err error
	cfg.Listen, cfg.Name, cfg.Router = "127.0.1.1:0", "sbc1", w.router
	cfg.OnEvent = func(e siptest.Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, e)
	}
	w.proxy, err = siptest.NewProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- w.proxy.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	w.phones, err = siptest.NewPhones(siptest.PhonesConfig{Listen: "127.0.1.5:0", Proxy: w.proxy.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	w.router.mu.Lock()
	w.router.phones = w.phones.Addr()
	w.router.mu.Unlock()
	t.Cleanup(func() {
		if err := w.phones.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) seen() []siptest.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]siptest.Event(nil), w.events...)
}

// phone adds a phone whose password is right, and registers it.
func (w *world) phone(cfg siptest.PhoneConfig) *siptest.Phone {
	w.t.Helper()
	p := w.unregistered(cfg)
	if err := p.Register(timeout(w.t, 5*time.Second)); err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) unregistered(cfg siptest.PhoneConfig) *siptest.Phone {
	w.t.Helper()
	cfg.Domain, cfg.Password = domain, "secret-"+cfg.User
	w.router.mu.Lock()
	w.router.users[cfg.User] = siptest.HA1(cfg.User, domain, cfg.Password)
	w.router.mu.Unlock()
	p, err := w.phones.Add(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func wantStatus(t *testing.T, err error, code int) {
	t.Helper()
	var se *siptest.StatusError
	if !errors.As(err, &se) || se.Code != code {
		t.Errorf("got %v, want status %d", err, code)
	}
}

func TestProxyCallWithMediaAndByeOfEachSide(t *testing.T) {
	w := newWorld(t)
	got := make(chan *siptest.Call, 1)
	a := w.phone(siptest.PhoneConfig{User: "1001"})
	w.phone(siptest.PhoneConfig{User: "1002", OnCall: func(c *siptest.Call) { got <- c }})
	if n := w.proxy.Registrations(); n != 2 {
		t.Errorf("%d registrations, want 2", n)
	}
	for _, byCaller := range []bool{true, false} {
		c, err := a.Dial(timeout(t, 5*time.Second), "1002", siptest.DialOptions{})
		if err != nil {
			t.Fatal(err)
		}
		d := <-got
		eventually(t, "RTP both ways", func() bool {
			return c.Stats().Audible >= 10 && d.Stats().Audible >= 10
		})
		if s := c.Stats(); s.Lost != 0 || s.Invalid != 0 || s.Jitter > 100*time.Millisecond {
			t.Errorf("caller's media: %+v", s)
		}
		x, y := c, d
		if !byCaller {
			x, y = d, c
		}
		if err := x.Hangup(timeout(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		waitClosed(t, "the far end", y.Done())
		waitClosed(t, "the near end", x.Done())
		if x.RemoteHangup() || !y.RemoteHangup() {
			t.Error("the wrong side counts as the one that hung up")
		}
	}
	if err := a.Unregister(timeout(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if n := w.proxy.Registrations(); n != 1 {
		t.Errorf("%d registrations after one left, want 1", n)
	}
	if ev := w.seen(); len(ev) != 0 {
		t.Errorf("events of good calls: %+v", ev)
	}
}

func TestProxyRefusals(t *testing.T) {
	w := newWorld(t)
	a := w.phone(siptest.PhoneConfig{User: "1001"})
	w.phone(siptest.PhoneConfig{User: "1002", OnInvite: func(*siptest.Incoming) siptest.Behaviour {
		return siptest.Behaviour{Code: 486}
	}})
	w.unregistered(siptest.PhoneConfig{User: "1003"})
	dial := func(to string) error {
		_, err := a.Dial(timeout(t, 5*time.Second), to, siptest.DialOptions{})
		return err
	}
	wantStatus(t, dial("1002"), 486)
	wantStatus(t, dial("1003"), 480)
	wantStatus(t, dial("1003@nobody.example"), 404)
	wantStatus(t, dial("999"), 503) // no nodes
	wrong, err := w.phones.Add(siptest.PhoneConfig{User: "1001", Domain: domain, Password: "guess"})
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, wrong.Register(timeout(t, 5*time.Second)), 403)
	_, err = wrong.Dial(timeout(t, 5*time.Second), "1002", siptest.DialOptions{})
	wantStatus(t, err, 403)
	thief, err := w.phones.Add(siptest.PhoneConfig{User: "1003", AuthUser: "1001", Domain: domain, Password: "secret-1001"})
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, thief.Register(timeout(t, 5*time.Second)), 403)
	none, err := w.phones.Add(siptest.PhoneConfig{User: "1001", Domain: domain})
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, none.Register(timeout(t, 5*time.Second)), 401)
	var codes []string
	for _, e := range w.seen() {
		if e.Kind != "refused" || e.SBC != "sbc1" || e.From == "" || e.CallID == "" || e.Src != "127.0.1.5" {
			t.Errorf("event %+v", e)
		}
		codes = append(codes, e.Code+" "+e.Reason)
	}
	want := "480 not registered, 404 unknown domain, 503 no node, 403 bad credentials"
	if got := strings.Join(codes, ", "); got != want {
		t.Errorf("events %s, want %s", got, want)
	}
}

func TestProxyCancel(t *testing.T) {
	w := newWorld(t)
	a := w.phone(siptest.PhoneConfig{User: "1001"})
	canceled := make(chan struct{})
	w.phone(siptest.PhoneConfig{User: "1002", OnInvite: func(in *siptest.Incoming) siptest.Behaviour {
		in.OnCancel(func() { close(canceled) })
		return siptest.Behaviour{Delay: time.Minute}
	}})
	ctx, cancel := context.WithCancel(timeout(t, 5*time.Second))
	_, err := a.Dial(ctx, "1002", siptest.DialOptions{OnRinging: func(int) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want the cancellation", err)
	}
	waitClosed(t, "the CANCEL at the far end", canceled)
}

// node is a media node that answers everything itself.
func node(t *testing.T, id, ip string, onInvite func(*siptest.Incoming) siptest.Behaviour) (siptest.Target, *siptest.Phones) {
	t.Helper()
	g, err := siptest.NewPhones(siptest.PhonesConfig{Listen: ip + ":0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := g.Add(siptest.PhoneConfig{User: "*", OnInvite: onInvite}); err != nil {
		t.Fatal(err)
	}
	return siptest.Target{Node: id, Addr: g.Addr()}, g
}

func TestProxyFailoverAndTrust(t *testing.T) {
	dead, err := net.ListenPacket("udp", "127.0.2.1:0") // takes everything, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	full, _ := node(t, "fs2", "127.0.2.2", func(*siptest.Incoming) siptest.Behaviour { return siptest.Behaviour{Code: 503} })
	headers := make(chan map[string]string, 1)
	good, _ := node(t, "fs3", "127.0.2.3", func(in *siptest.Incoming) siptest.Behaviour {
		h := map[string]string{}
		for _, x := range in.Request().Headers() {
			h[strings.ToLower(x.Name())] += x.Value()
		}
		headers <- h
		return siptest.Behaviour{}
	})
	w := newWorldWith(t, siptest.ProxyConfig{Failover: 300 * time.Millisecond}, siptest.Target{Node: "fs1", Addr: netip.MustParseAddrPort(dead.LocalAddr().String())}, full, good)
	a := w.phone(siptest.PhoneConfig{User: "1001"})
	c, err := a.Dial(timeout(t, 10*time.Second), "+4930123", siptest.DialOptions{Headers: []sip.Header{
		sip.NewHeader("X-Bulkhead-Tenant", "other"), sip.NewHeader("x-BULKHEAD-Secret", "1"), sip.NewHeader("X-Other", "stays"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	h := <-headers
	if h["x-bulkhead-tenant"] != "acme" || h["x-bulkhead-user"] != "1001" || h["x-bulkhead-secret"] != "" || h["x-other"] != "stays" || h["proxy-authorization"] != "" {
		t.Errorf("headers at the node: %v", h)
	}
	eventually(t, "RTP from the node", func() bool { return c.Stats().Received > 5 })
	if err := c.Hangup(timeout(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	ev := w.seen()
	if len(ev) != 2 || ev[0].Kind != "failover" || ev[0].Node != dead.LocalAddr().String() || ev[0].Code != "408" ||
		ev[1].Node != full.Addr.String() || ev[1].Code != "503" || ev[0].CallID != c.ID() || ev[0].Rev != "7" || ev[0].Branch == ev[1].Branch {
		t.Errorf("events %+v", ev)
	}
}

func TestProxyNothingLeft(t *testing.T) {
	full, _ := node(t, "fs1", "127.0.2.2", func(*siptest.Incoming) siptest.Behaviour { return siptest.Behaviour{Code: 500} })
	w := newWorld(t, full)
	a := w.phone(siptest.PhoneConfig{User: "1001"})
	_, err := a.Dial(timeout(t, 5*time.Second), "999", siptest.DialOptions{})
	wantStatus(t, err, 503)
	ev := w.seen()
	if len(ev) != 2 || ev[0].Kind != "failover" || ev[1].Kind != "refused" || ev[1].Code != "503" {
		t.Errorf("events %+v", ev)
	}
}

func TestProxyFromNodeToUserKeepsSecrets(t *testing.T) {
	w := newWorld(t)
	private := make(chan bool, 1)
	w.phone(siptest.PhoneConfig{User: "1002", OnInvite: func(in *siptest.Incoming) siptest.Behaviour {
		private <- in.Request().GetHeader("x-bulkhead-tenant") != nil
		return siptest.Behaviour{}
	}})
	// As a node does: Request-URI of the domain, next hop the SBC by a Route.
	stack := newStack(t, siptest.StackConfig{Listen: "127.0.2.4:0"})
	w.router.addNode(siptest.Target{Node: "fs2", Addr: stack.Addr()})
	sbc := uri("", w.proxy.Addr())
	sbc.UriParams = sip.HeaderParams{{K: "lr"}}
	d, err := stack.Invite(timeout(t, 5*time.Second), siptest.Invitation{
		URI: sip.Uri{Scheme: "sip", User: "1002", Host: domain}, From: sip.Uri{Scheme: "sip", User: "1001", Host: domain},
		Route: []sip.Uri{sbc}, Body: siptest.Offer(netip.MustParseAddrPort("127.0.2.4:4000")),
		Headers: []sip.Header{sip.NewHeader("X-Bulkhead-Tenant", "acme")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if <-private {
		t.Error("a phone saw X-Bulkhead-Tenant")
	}
	if err := d.Bye(timeout(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// TestProxySmuggling sends what a lenient next hop would read as a header of
// the SBC.
func TestProxySmuggling(t *testing.T) {
	reached := make(chan struct{}, 1)
	good, _ := node(t, "fs1", "127.0.2.3", func(*siptest.Incoming) siptest.Behaviour {
		reached <- struct{}{}
		return siptest.Behaviour{Code: 404}
	})
	w := newWorld(t, good)
	conn, err := net.Dial("udp", w.proxy.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w.router.addNode(siptest.Target{Node: "fs2", Addr: netip.MustParseAddrPort(conn.LocalAddr().String())})
	send := func(branch, subject string) {
		t.Helper()
		if _, err := fmt.Fprintf(conn, "INVITE sip:999@%s SIP/2.0\r\nVia: SIP/2.0/UDP %s;rport;branch=z9hG4bK%s\r\nFrom: <sip:1@%s>;tag=1\r\nTo: <sip:999@%s>\r\n"+
			"Call-ID: %s\r\nCSeq: 1 INVITE\r\nContact: <sip:1@%s>\r\nSubject: %s\r\nContent-Length: 0\r\n\r\n",
			domain, conn.LocalAddr(), branch, domain, domain, branch, conn.LocalAddr(), subject); err != nil {
			t.Fatal(err)
		}
	}
	send("one", "x\nX-Bulkhead-Tenant: evil")
	send("two", "x")
	<-reached
	eventually(t, "the second INVITE only", func() bool { return len(reached) == 0 })
	buf := make([]byte, 65536)
	n, err := conn.Read(buf)
	if err != nil || !strings.Contains(string(buf[:n]), "branch=z9hG4bKtwo") {
		t.Errorf("first answer %q %v, want one to the second INVITE", buf[:n], err)
	}
}

func TestProxyRegistrationExpires(t *testing.T) {
	w := newWorld(t)
	a := w.phone(siptest.PhoneConfig{User: "1001", Expires: time.Second})
	if err := a.Close(); err != nil { // no refresh
		t.Fatal(err)
	}
	eventually(t, "the registration to expire", func() bool { return w.proxy.Registrations() == 0 })
	w.phone(siptest.PhoneConfig{User: "1002", Expires: time.Second})
	start := time.Now()
	eventually(t, "two lives of a refreshed registration", func() bool {
		return time.Since(start) > 2200*time.Millisecond
	})
	if n := w.proxy.Registrations(); n != 1 {
		t.Errorf("%d registrations, want the refreshed one", n)
	}
}

// TestProxyLoad places 100 calls at 50 a second between users that share one
// socket.
func TestProxyLoad(t *testing.T) {
	w := newWorld(t)
	var phones []*siptest.Phone
	for i := range 20 {
		phones = append(phones, w.phone(siptest.PhoneConfig{User: fmt.Sprint(1000 + i), OnInvite: func(*siptest.Incoming) siptest.Behaviour {
			return siptest.Behaviour{Delay: 50 * time.Millisecond}
		}}))
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var wg sync.WaitGroup
	for i := range 100 {
		<-tick.C
		wg.Go(func() {
			c, err := phones[i%20].Dial(timeout(t, 20*time.Second), phones[(i+7)%20].User(), siptest.DialOptions{Talk: time.Second})
			if err != nil {
				t.Errorf("call %d: %v", i, err)
				return
			}
			waitClosed(t, "the end of a call", c.Done())
			// Not how many: the machine may be busy with other things.
			if s := c.Stats(); s.Received == 0 || s.Sent == 0 || s.Invalid != 0 {
				t.Errorf("call %d: %+v", i, s)
			}
		})
	}
	wg.Wait()
	eventually(t, "the last BYE", func() bool { return w.phones.Calls() == 0 })
	if ev := w.seen(); len(ev) != 0 {
		t.Errorf("%d events, first %+v", len(ev), ev[0])
	}
}

// TestProxyStaleNonces wants a phone to try again on a stale nonce, and to stop
// some time if every nonce is.
func TestProxyStaleNonces(t *testing.T) {
	w := newWorldWith(t, siptest.ProxyConfig{NonceLife: time.Nanosecond})
	p := w.unregistered(siptest.PhoneConfig{User: "1001"})
	wantStatus(t, p.Register(timeout(t, 5*time.Second)), 401)
	_, err := p.Dial(timeout(t, 5*time.Second), "1001", siptest.DialOptions{})
	wantStatus(t, err, 407)
}
