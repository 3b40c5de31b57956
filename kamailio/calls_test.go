package kamailio_test

import (
	"database/sql"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/kamailio"
)

func register(t testing.TB, s *socket, domain, user, password, contact string) string {
	t.Helper()
	c := call{method: "REGISTER", ruri: "sip:" + domain, from: "sip:" + user + "@" + domain, to: "sip:" + user + "@" + domain, auth: password}
	if contact != "" {
		c.extra = "Contact: <" + contact + ">\r\n"
	}
	return s.ask(&c)
}

func TestDigest(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010"), tenant("beta", "standard", "493020")}})
	for _, tt := range []struct {
		name, from, ruri, password, user string
		status                           int
	}{
		{"right", "sip:1001@acme.example", "sip:+4912345@acme.example", "pw-1001", "", 486},
		{"right, by the second domain", "sip:1001@www.acme.example", "sip:1002@acme.example", "pw-1001", "", 486},
		{"none", "sip:1001@acme.example", "sip:1002@acme.example", "", "", 407},
		{"wrong password", "sip:1001@acme.example", "sip:1002@acme.example", "pw-1002", "", 403},
		{"no such user", "sip:1009@acme.example", "sip:1002@acme.example", "pw-1001", "", 403},
		{"in another user's name", "sip:1002@acme.example", "sip:1002@acme.example", "pw-1001", "1001", 403},
		{"another tenant's user", "sip:1001@beta.example", "sip:1002@acme.example", "pw-1001", "", 403},
		{"empty password of nobody", "sip:1009@acme.example", "sip:1002@acme.example", "-", "", 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := call{ruri: tt.ruri, from: tt.from, auth: tt.password, user: tt.user, callID: fmt.Sprintf("%016x", serial())}
			want(t, tt.name, w.ask("127.9.9.9", c), tt.status)
			id, invite := w.heardBy(c.callID)
			if (id != "") != (tt.status == 486) {
				t.Errorf("node %q heard of it", id)
			}
			if tt.status == 486 && (header(invite, "X-Bulkhead-User") != "1001" || header(invite, "X-Bulkhead-Tenant") != "acme" || header(invite, "Proxy-Authorization") != "") {
				t.Errorf("wrong headers:\n%s", invite)
			}
		})
	}
	s := newSocket(t, "127.9.9.9", w.Addr)
	want(t, "register", register(t, s, "acme.example", "1001", "pw-1001", ""), 200)
	want(t, "register with a wrong password", register(t, s, "acme.example", "1001", "pw-1002", ""), 403)
	want(t, "register nobody", register(t, s, "acme.example", "1009", "pw-1001", ""), 403)
	want(t, "register at nobody's domain", register(t, s, "nobody.example", "1001", "pw-1001", ""), 404)
	want(t, "register at the SBC's own address", register(t, s, w.Addr.Addr().String(), "1001", "pw-1001", ""), 404)
}

// fromNode makes an INVITE as a node sends it to reach a user.
func (w *world) fromNode(id bulkhead.NodeID, c call) (n *node, invite string) {
	n = w.nodes[id]
	n.sbc = w.Addr
	c.extra += "X-Bulkhead-Tenant: acme\r\nx-bulkhead-user: 1\r\nRoute: <sip:" + w.Addr.String() + ";lr>\r\n"
	invite = n.request(&c)
	n.send(invite)
	return n, invite
}

func TestCallToPhone(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010"), tenant("beta", "standard", "493020")}})
	phone := newSocket(t, "127.8.8.8", w.Addr)
	want(t, "register", register(t, phone, "acme.example", "1001", "pw-1001", ""), 200)

	refused := func(ruri string, code int) {
		t.Helper()
		n, _ := w.fromNode("n1", call{ruri: ruri})
		for m := ""; status(m) < 200; {
			if m = wait(t, "answer to "+ruri, n.other); status(m) >= 200 {
				want(t, ruri, m, code)
			}
		}
	}
	refused("sip:1009@acme.example", 404)
	refused("sip:1002@acme.example", 480)
	refused("sip:1001@beta.example", 480) // another tenant's 1001
	refused("sip:1001@nobody.example", 404)

	w.Restart() // the contact must survive it
	n, _ := w.fromNode("n2", call{ruri: "sip:1001@www.acme.example", from: "sip:4930@acme.example"})
	invite := phone.receive(answerTimeout)
	if !strings.HasPrefix(invite, "INVITE sip:me@"+phone.addr()) || strings.Contains(strings.ToLower(invite), "x-bulkhead") {
		n, err := w.Client.Counters(t.Context())
		t.Fatalf("the phone got\n%s\nand the SBC counted %v, %v", invite, n, err)
	}
	phone.send(reply(invite, "180 Ringing", phone.addr()))
	phone.send(reply(invite, "200 OK", phone.addr()))
	var ok string
	for status(ok) != 200 {
		ok = wait(t, "200 from the phone", n.other)
	}
	inDialog(t, w, phone, n, ok)
}

// inDialog sends an ACK from the node, then a BYE from the phone, through the SBC.
func inDialog(t *testing.T, w *world, phone *socket, n *node, ok string) {
	t.Helper()
	n.send(fmt.Sprintf("ACK sip:me@%s SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%x\r\nMax-Forwards: 70\r\nRoute: %s\r\nFrom: %s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: 1 ACK\r\nContent-Length: 0\r\n\r\n",
		phone.addr(), n.addr, serial(), header(ok, "Record-Route"), header(ok, "From"), header(ok, "To"), header(ok, "Call-ID")))
	if ack := phone.receive(answerTimeout); !strings.HasPrefix(ack, "ACK ") {
		t.Fatalf("the phone got %q, want the ACK", ack)
	}
	bye := func(to string) string {
		return fmt.Sprintf("BYE sip:x@%s SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%x\r\nMax-Forwards: 70\r\nRoute: %s\r\nFrom: %s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: 2 BYE\r\nContent-Length: 0\r\n\r\n",
			to, phone.addr(), serial(), header(ok, "Record-Route"), header(ok, "To"), header(ok, "From"), header(ok, "Call-ID"))
	}
	stranger := newNode(t, "200 OK")
	phone.send(bye(stranger.addr))
	want(t, "BYE by way of the SBC to somebody who is no node", phone.final(), 481)
	phone.send(bye("localhost:" + fmt.Sprint(netip.MustParseAddrPort(n.addr).Port())))
	want(t, "BYE to a name", phone.final(), 481)
	phone.send(bye(n.addr))
	want(t, "BYE", phone.final(), 200)
	for m := ""; !strings.HasPrefix(m, "BYE "); { // the 180 may come late: two workers passed both on
		m = wait(t, "BYE", n.other)
	}
	if len(stranger.other) != 0 {
		t.Error("the SBC relayed to a stranger")
	}
}

// TestContactCannotReachNode registers contacts that would make the SBC speak
// to a node, or ask DNS, in a user's name.
func TestContactCannotReachNode(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010")}})
	phone := newSocket(t, "127.8.8.8", w.Addr)
	for _, contact := range []string{"sip:1002@" + w.nodes["n2"].addr, "sip:1002@localhost:5060"} {
		c := call{
			method: "REGISTER", ruri: "sip:acme.example", from: "sip:1001@acme.example", to: "sip:1001@acme.example", auth: "pw-1001",
			callID: "evil-contact-1", extra: "Expires: 600\r\n",
		}
		// Replaces the Contact that request() writes.
		msg := func() string {
			return strings.Replace(phone.request(&c), "Contact: <sip:me@"+phone.addr()+">", "Contact: <"+contact+">", 1)
		}
		phone.send(msg())
		c.extra += "Authorization: " + digest(header(phone.final(), "WWW-Authenticate"), "1001", "pw-1001", "REGISTER", c.ruri) + "\r\n"
		phone.send(msg())
		want(t, "register", phone.final(), 200)
	}
	n, _ := w.fromNode("n1", call{ruri: "sip:1001@acme.example"})
	var m string
	for status(m) < 200 {
		m = wait(t, "answer", n.other)
	}
	want(t, "call to a user with such contacts", m, 480)
	if len(w.nodes["n2"].heard) != 0 {
		t.Error("the node got an INVITE that nobody decided")
	}
}

func TestAnsweredCall(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	for _, n := range w.nodes {
		n.set("200 OK")
	}
	s := newSocket(t, "127.1.1.1", w.Addr)
	c := call{ruri: "sip:1001@acme.example", callID: "answered-1"}
	answeredCall(t, w, s, c)
}

// answeredCall runs INVITE, ACK, a BYE from the caller and one from the node.
func answeredCall(t *testing.T, w *world, s *socket, c call) {
	t.Helper()
	ok := s.ask(&c)
	want(t, "INVITE", ok, 200)
	id, _ := w.heardBy(c.callID)
	n := w.nodes[id]
	routes := headers(ok, "Record-Route")
	forged := "X-Bulkhead-Tenant: evil\r\nx-bulkhead-user : 1\r\nX-BULKHEAD-SBC: evil\r\nX-Bulkhead-Revision\t: 9\r\nX-Bulkhead-decided: 1\r\nX-Bulkhead-Tenant: evil\r\n"
	for i, method := range []string{"ACK", "BYE"} {
		s.send(fmt.Sprintf("%s sip:%s SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%x\r\nMax-Forwards: 70\r\nRoute: %s\r\n%sFrom: %s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: %d %s\r\nContent-Length: 0\r\n\r\n",
			method, n.addr, s.addr(), serial(), reversed(routes), forged, header(ok, "From"), header(ok, "To"), c.callID, i+1, method))
		m := wait(t, method, n.other)
		for header(m, "Call-ID") != c.callID { // an ACK of a call before
			m = wait(t, method, n.other)
		}
		if !strings.HasPrefix(m, method+" ") || strings.Contains(strings.ToLower(m), "x-bulkhead") {
			t.Errorf("the node got\n%s\nwant the %s", m, method)
		}
	}
	want(t, "BYE", s.final(), 200)
	n.sbc = w.Addr
	n.send(fmt.Sprintf("BYE sip:me@%s SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%x\r\nMax-Forwards: 70\r\nRoute: %s\r\nFrom: %s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: 7 BYE\r\nContent-Length: 0\r\n\r\n",
		s.addr(), n.addr, serial(), strings.Join(routes, ", "), header(ok, "To"), header(ok, "From"), c.callID))
	if m := s.receive(answerTimeout); !strings.HasPrefix(m, "BYE ") {
		t.Errorf("the caller got %q, want the BYE", m)
	}
}

// TestReplyKeepsSecrets lets a node say in its answers what is for the SBC alone.
func TestReplyKeepsSecrets(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	for _, answer := range []string{"200 OK", "486 Busy Here"} {
		for _, n := range w.nodes {
			n.mu.Lock()
			n.answer, n.extra = answer, "X-Bulkhead-Tenant: acme\r\nx-bulkhead-user: 1\r\nX-Other: stays\r\n"
			n.mu.Unlock()
		}
		m := w.ask("127.1.1.1", call{ruri: "sip:1001@acme.example"})
		if !strings.HasPrefix(m, "SIP/2.0 "+answer) || strings.Contains(strings.ToLower(m), "x-bulkhead") || header(m, "X-Other") != "stays" {
			t.Errorf("the caller got\n%s", m)
		}
	}
}

func reversed(routes []string) string {
	routes = slices.Clone(routes)
	slices.Reverse(routes)
	return strings.Join(routes, ", ")
}

func TestStaleNonce(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010")}})
	s := newSocket(t, "127.9.9.9", w.Addr)
	c := call{ruri: "sip:1002@acme.example", from: "sip:1001@acme.example"}
	challenge := header(s.ask(&c), "Proxy-Authenticate")
	// The same nonce for another destination.
	c = call{ruri: "sip:00123@acme.example", from: c.from}
	c.extra = "Proxy-Authorization: " + digest(challenge, "1001", "pw-1001", "INVITE", c.ruri) + "\r\n"
	m := s.ask(&c)
	want(t, "the nonce of another call", m, 407)
	if !strings.Contains(header(m, "Proxy-Authenticate"), "stale=true") {
		t.Errorf("challenged again with %s, want stale", header(m, "Proxy-Authenticate"))
	}
}

func TestCancel(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	for _, n := range w.nodes {
		n.set("180 Ringing")
	}
	s := newSocket(t, "127.1.1.1", w.Addr)
	c := call{ruri: "sip:1001@acme.example", callID: "cancelled-1"}
	invite := s.request(&c)
	s.send(invite)
	for m := ""; status(m) != 180; {
		if m = s.receive(answerTimeout); m == "" {
			t.Fatal("no 180")
		}
	}
	s.send(strings.Replace(strings.Replace(invite, "INVITE ", "CANCEL ", 1), "1 INVITE", "1 CANCEL", 1))
	want(t, "CANCEL", s.final(), 200)
	id, _ := w.heardBy(c.callID)
	for {
		m := wait(t, "CANCEL", w.nodes[id].other)
		if strings.HasPrefix(m, "CANCEL ") {
			break
		}
	}
}

func TestFailover(t *testing.T) {
	got := make(chan []cdr.Record, 100)
	srv := newReceiver(t, got)
	w := newWorld(t, kamailio.Params{Events: srv.addr, PingInterval: time.Hour})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	home := w.tables().Sets
	var first, second *node
	for _, s := range home {
		if s.Home != "" && fmt.Sprintf("%d", s.ID) == w.set("acme") {
			first, second = w.nodes[s.Targets[0].Node], w.nodes[s.Targets[1].Node]
		}
	}
	call503 := func() string {
		c := call{ruri: "sip:1001@acme.example", callID: fmt.Sprintf("fail-%016x", serial())}
		return header(w.ask("127.1.1.1", c), "Call-ID")
	}
	// 503: the next at once; a real answer of the second stands.
	first.set("503 Full")
	start := time.Now()
	id := call503()
	if first.call(id) == "" || second.call(id) == "" {
		t.Fatal("a 503 did not lead to the second node")
	}
	if d := time.Since(start); d > 900*time.Millisecond {
		t.Errorf("the second node was asked after %s", d)
	}
	wantEvent(t, got, "failover", id, first.addr, "503")
	// A 503 of the far end, which the node passes back, is the answer.
	first.mu.Lock()
	first.extra = "X-Bulkhead-Decided: true\r\n"
	first.mu.Unlock()
	decided := call{ruri: "sip:1001@acme.example", callID: "far-end-503"}
	answer := w.ask("127.1.1.1", decided)
	want(t, "a far end's 503", answer, 503)
	if second.call(decided.callID) != "" {
		t.Error("a far end's 503 led to the second node")
	}
	if header(answer, "X-Bulkhead-Decided") != "" {
		t.Error("the caller hears what the node says to the SBC alone")
	}
	first.mu.Lock()
	first.extra = ""
	first.mu.Unlock()
	// Silence: the next after the node timeout, in the same transaction.
	first.set("")
	id = call503()
	if v1, v2 := headers(first.call(id), "Via"), headers(second.call(id), "Via"); len(v1) != 2 || len(v2) != 2 || v1[1] != v2[1] {
		t.Errorf("not the same transaction of the caller: %q and %q", v1, v2)
	}
	wantEvent(t, got, "failover", id, first.addr, "408")
	// Both of the pool: the backup pool.
	second.set("500 Oops")
	id = call503()
	if by, _ := w.heardBy(id); by == "" {
		t.Error("nobody was asked")
	}
	if w.nodes["n3"].call(id) == "" && w.nodes["n4"].call(id) == "" {
		t.Error("the backup pool was not asked")
	}
	wantEvent(t, got, "failover", id, second.addr, "500")
	// Nobody: 503, and the store is told why.
	w.nodes["n3"].set("503 Full")
	w.nodes["n4"].set("503 Full")
	c := call{ruri: "sip:1001@acme.example", callID: "nobody-left-1"}
	want(t, "nobody left", w.ask("127.1.1.1", c), 503)
	wantEvent(t, got, "refused", c.callID, "", "503")
	// A call that rang is not placed a second time.
	second.set("180 Ringing")
	s := newSocket(t, "127.1.1.1", w.Addr)
	c = call{ruri: "sip:1001@acme.example", callID: "rang-already-1"}
	s.send(s.request(&c))
	invite := wait(t, "INVITE", second.heard)
	for header(invite, "Call-ID") != c.callID {
		invite = wait(t, "INVITE", second.heard)
	}
	for m := ""; status(m) != 180; {
		if m = s.receive(answerTimeout); m == "" {
			t.Fatal("no 180")
		}
	}
	if _, err := second.conn.WriteToUDPAddrPort([]byte(reply(invite, "503 Late", second.addr)), w.Addr); err != nil {
		t.Fatal(err)
	}
	want(t, "a call that rang", s.final(), 503)
	if w.nodes["n3"].call(c.callID) != "" || w.nodes["n4"].call(c.callID) != "" {
		t.Error("a call that rang was placed a second time")
	}
}

// set returns the dispatcher set of a tenant, in digits.
func (w *world) set(id bulkhead.TenantID) string {
	for _, r := range w.tables().Rows {
		if r.Key == "t:"+string(id) {
			s, _, _ := strings.Cut(r.Value, "|")
			return s
		}
	}
	return ""
}

func TestDeadNodeIsNotAsked(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	w.nodes["n1"].set("")
	w.nodes["n2"].set("")
	eventually(t, "the backup pool is asked at once", func() bool {
		c := call{ruri: "sip:1001@acme.example", callID: fmt.Sprintf("dead-%016x", serial())}
		start := time.Now()
		want(t, "call", w.ask("127.1.1.1", c), 486)
		return time.Since(start) < 200*time.Millisecond
	})
	w.nodes["n1"].set("486 Busy Here")
	w.nodes["n2"].set("486 Busy Here")
	eventually(t, "the pool is asked again", func() bool {
		c := call{ruri: "sip:1001@acme.example", callID: fmt.Sprintf("alive-%016x", serial())}
		want(t, "call", w.ask("127.1.1.1", c), 486)
		id, _ := w.heardBy(c.callID)
		return id == "n1" || id == "n2"
	})
}

// TestRegistrationsAtOnceAreOnDisk registers from many phones at the same
// time: Kamailio's SQLite driver would lose what two workers write at once.
func TestRegistrationsAtOnceAreOnDisk(t *testing.T) {
	w := newWorld(t, kamailio.Params{Workers: 4})
	const tenants, phones = 8, 10
	var c bulkhead.Change
	for i := range tenants {
		c.Tenants = append(c.Tenants, tenant(bulkhead.TenantID(fmt.Sprintf("t%d", i)), "standard", fmt.Sprintf("49%d", 300+i)))
	}
	w.apply(c)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range tenants {
		wg.Go(func() {
			for range phones {
				s := newSocket(t, "127.8.8.8", w.Addr)
				if m := register(t, s, fmt.Sprintf("t%d.example", i), "1001", "pw-1001", ""); status(m) != 200 {
					t.Errorf("register: %s", m)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d registrations in %s", tenants*phones, time.Since(start))
	db, err := sql.Open("sqlite", filepath.Join(w.Dir, kamailio.LocationFile))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // read only
	var n int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM location`).Scan(&n); err != nil || n != tenants*phones {
		t.Errorf("%d contacts are on disk, %v; want %d", n, err, tenants*phones)
	}
}
