package kamailio_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
)

// safeguard is a part of the shipped files without which something goes wrong.
type safeguard struct {
	name     string
	old, new string                // what is taken out, and what stands there then
	holds    func(w *world) string // what is wrong, "" if nothing is
}

// answered says what is wrong with the answer to a call.
func answered(w *world, source string, c call, code int) string {
	if got := status(w.ask(source, c)); got != code {
		return fmt.Sprintf("got %d, want %d", got, code)
	}
	return ""
}

// nodeHears places a call and says what is wrong with a header at the node.
func nodeHears(w *world, source string, c call, name, value string) string {
	c.callID = fmt.Sprintf("safe-%016x", serial())
	m := w.ask(source, c)
	if _, invite := w.heardBy(c.callID); strings.Join(headers(invite, name), ",") != value || status(m) != 486 {
		return fmt.Sprintf("the answer is %d, the node got %s %q, want %q", status(m), name, headers(invite, name), value)
	}
	return ""
}

// strangerInDialog says what is wrong with the answer to a stranger's request to ruri
// within a call that never was. Nobody is waited for long: no answer is 0.
func strangerInDialog(w *world, method, ruri, extra string, code int) string {
	s := newSocket(w.t, "127.9.1.7", w.Addr)
	s.send(fmt.Sprintf("%s sip:1@%s SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%x\r\nMax-Forwards: 70\r\nRoute: <sip:%s;lr>\r\nFrom: <sip:1@acme.example>;tag=a\r\n"+
		"To: <sip:2@acme.example>;tag=b\r\nCall-ID: safe-%016x\r\nCSeq: 2 %s\r\nContact: <sip:1@%s>\r\n%sContent-Length: 0\r\n\r\n",
		method, ruri, s.addr(), serial(), w.Addr, serial(), method, s.addr(), extra))
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		if got := status(s.receive(time.Until(end))); got >= 200 {
			if got != code {
				return fmt.Sprintf("got %d, want %d", got, code)
			}
			return ""
		}
	}
	return "no answer"
}

// inCall makes a request within a call, as it goes to a node.
func inCall(w *world, s *socket, method string) string {
	m := s.request(&call{method: method, ruri: "sip:" + w.nodes["n1"].addr, to: "sip:1@acme.example", extra: "Route: <sip:" + w.Addr.String() + ";lr>\r\n"})
	return strings.Replace(m, "To: <sip:1@acme.example>", "To: <sip:1@acme.example>;tag=b", 1)
}

// lastHop says what is wrong with the answer to a request that may go no further.
func lastHop(s *socket, m string) string {
	s.send(strings.Replace(m, "Max-Forwards: 70", "Max-Forwards: 0", 1))
	if got := status(s.final()); got != 483 {
		return fmt.Sprintf("got %d, want 483", got)
	}
	return ""
}

// behindNAT sends a request whose Via has a port that is not its source's, and
// does not ask for the answer to come to this one. It says what is wrong with
// where that goes.
func behindNAT(s *socket, m string, code int) string {
	inner := newSocket(s.t, "127.1.1.1", s.sbc)
	s.send(strings.Replace(strings.Replace(m, ";rport", "", 1), "UDP "+s.addr(), "UDP "+inner.addr(), 1))
	for end := time.Now().Add(answerTimeout); time.Now().Before(end); {
		if got := status(s.receive(50 * time.Millisecond)); got == code {
			return ""
		}
		if got := status(inner.receive(time.Millisecond)); got > 0 {
			return fmt.Sprintf("%d went to the port in Via", got)
		}
	}
	return "there was no answer"
}

// contactHears registers a contact of a user of beta, which n must not hear
// about when a node calls the user.
func contactHears(w *world, user, contact string, n *node) string {
	s := newSocket(w.t, "127.8.8.8", w.Addr)
	own := "<sip:me@" + s.addr() + ">"
	r := call{method: "REGISTER", ruri: "sip:beta.example", from: "sip:" + user + "@beta.example", to: "sip:" + user + "@beta.example"}
	s.send(strings.Replace(s.request(&r), own, "<"+contact+">", 1))
	r.extra = "Authorization: " + digest(header(s.final(), "WWW-Authenticate"), user, "pw-"+user, "REGISTER", r.ruri) + "\r\n"
	s.send(strings.Replace(s.request(&r), own, "<"+contact+">", 1))
	want(w.t, "register", s.final(), 200)
	c := call{ruri: "sip:" + user + "@beta.example", callID: fmt.Sprintf("safe-%016x", serial())}
	from, _ := w.fromNode("n1", c)
	answer := ""
	for status(answer) < 200 || header(answer, "Call-ID") != c.callID {
		answer = wait(w.t, "answer", from.other)
	}
	if n.call(c.callID) != "" || status(answer) != 480 {
		return fmt.Sprintf("the answer is %d, and at %s came\n%s", status(answer), contact, n.call(c.callID))
	}
	return ""
}

// byProxy has a node end a call that came by way of a proxy of the caller's,
// and says what is wrong with where the BYE goes.
func byProxy(w *world, between string) string {
	caller, proxy, n := newSocket(w.t, "127.1.1.1", w.Addr), newSocket(w.t, "127.1.1.2", w.Addr), w.nodes["n1"]
	n.sbc = w.Addr
	m := n.request(&call{method: "BYE", ruri: "sip:me@" + caller.addr(), to: "sip:1@acme.example", extra: "Route: <sip:" + w.Addr.String() + ";lr>" + between + "<sip:" + proxy.addr() + ";lr>\r\n"})
	n.send(strings.Replace(m, "To: <sip:1@acme.example>", "To: <sip:1@acme.example>;tag=b", 1))
	for end := time.Now().Add(answerTimeout); time.Now().Before(end); {
		if m := proxy.receive(50 * time.Millisecond); m != "" {
			proxy.send(reply(m, "200 OK", proxy.addr()))
			return ""
		}
		if m := caller.receive(time.Millisecond); m != "" {
			return "it did not go by way of the proxy:\n" + m
		}
	}
	return "it went nowhere"
}

var safeguards = []safeguard{
	{"headers of ours are removed", `remove_hf("X-Bulkhead-User");`, "", func(w *world) string {
		return nodeHears(w, "127.1.1.1", call{ruri: "sip:1@acme.example", extra: "X-Bulkhead-User: 1001\r\n"}, "X-Bulkhead-User", "")
	}},
	{"a route of the caller's is removed", `remove_hf("Route");`, "", func(w *world) string {
		return nodeHears(w, "127.1.1.1", call{ruri: "sip:1@acme.example", extra: "Route: <sip:127.0.0.9:9;lr>\r\n"}, "Route", "")
	}},
	{"headers within a Request-URI", ` || str_find("$ru", "?")`, "", func(w *world) string {
		return answered(w, "127.1.1.1", call{ruri: "sip:1@acme.example?X-Bulkhead-User=1"}, 400)
	}},
	{"a number is called by its owner's networks only", `$vn(bulkhead_row) != $vn(bulkhead_src)) {`, `1 == 2) {`, func(w *world) string {
		return answered(w, "127.1.1.1", call{ruri: "sip:493020@" + w.Addr.String()}, 403)
	}},
	{"a domain is called by its owner's networks only", `    if ($vn(bulkhead_src) == $vn(bulkhead_owner)) {`, `    if (1 == 1) {`, func(w *world) string {
		return answered(w, "127.1.1.1", call{ruri: "sip:1@beta.example"}, 403)
	}},
	{"a user is of the tenant that is called", "    if ($vn(bulkhead_row) != $vn(bulkhead_owner)) route(UNLISTED_SOURCE);", "", func(w *world) string {
		return answered(w, "127.9.1.1", call{ruri: "sip:1@beta.example", from: "sip:1001@acme.example"}, 403)
	}},
	{"who says to be a user must prove it", "    if ($vn(bulkhead_row) != $null) route(AUTHENTICATE);", "", func(w *world) string {
		return answered(w, "127.1.1.1", call{ruri: "sip:004930@acme.example", from: "sip:1001@acme.example"}, 407)
	}},
	{"credentials are checked", "if (pv_auth_check(", "if (1 == 1 || pv_auth_check(", func(w *world) string {
		return answered(w, "127.9.1.1", call{ruri: "sip:1@acme.example", from: "sip:1001@acme.example", auth: "wrong"}, 403)
	}},
	{"credentials are not passed on", "    consume_credentials();", "", func(w *world) string {
		return nodeHears(w, "127.9.1.1", call{ruri: "sip:1@acme.example", from: "sip:1001@acme.example", auth: "pw-1001"}, "Proxy-Authorization", "")
	}},
	{"calls per second", `$shtinc(bulkhead_cps=>$var(bulkhead_tenant)@$Ts) >`, `0 >`, func(w *world) string {
		codes := map[int]int{}
		for range 40 {
			codes[status(w.ask("127.3.1.1", call{ruri: "sip:1@limited.example"}))]++
		}
		if codes[480] == 0 {
			return fmt.Sprintf("40 calls at once got %v", codes)
		}
		return ""
	}},
	{"a retransmission is not judged anew", "        # Retransmissions end here.\n        t_check_trans();", "", func(w *world) string {
		s := newSocket(w.t, "127.1.9.9", w.Addr)
		invite := s.request(&call{ruri: "sip:1@acme.example"})
		s.send(invite)
		first := status(s.final())
		w.call("htable.delete", w.live(), "d:acme.example")
		defer w.call("htable.sets", w.live(), "d:acme.example", "acme")
		s.send(invite)
		if again := status(s.final()); first != 486 || again != first {
			return fmt.Sprintf("the answer was %d, and %d when the INVITE came again", first, again)
		}
		return ""
	}},
	{"no header within another", "        if (BULKHEAD_HIDES_HEADER) route(MALFORMED);", "", func(w *world) string {
		return answered(w, "127.1.1.1", call{ruri: "sip:1@acme.example", extra: "Subject: a\rx-bulkhead-User: 1001\r\n"}, 400)
	}},
	{"no header within another, in a call", ` || BULKHEAD_HIDES_HEADER) route(MALFORMED);`, ") route(MALFORMED);", func(w *world) string {
		return strangerInDialog(w, "INVITE", w.nodes["n1"].addr, "Subject: a\rTo: <sip:1@acme.example>\rX-Bulkhead-User: 1001\r\n", 400)
	}},
	{"no header within the Request-URI, in a call", ` || str_find("$ru", "?") || BULKHEAD_HIDES_HEADER`, ` || BULKHEAD_HIDES_HEADER`, func(w *world) string {
		return strangerInDialog(w, "INVITE", w.nodes["n1"].addr+"?X-Bulkhead-User=1001", "", 400)
	}},
	{"no registration in a call", `    if (is_method("REGISTER|SUBSCRIBE|PUBLISH")) route(NOT_ALLOWED);`, "", func(w *world) string {
		return strangerInDialog(w, "REGISTER", w.nodes["n1"].addr, "", 405)
	}},
	{"what is in a call goes to an address only if a node sent it", "    if ($vn(bulkhead_row) == $null || !is_ip(\"$nh(d)\")) route(UNKNOWN_DIALOG);", "", func(w *world) string {
		victim := newSocket(w.t, "127.9.1.8", w.Addr)
		return strangerInDialog(w, "BYE", victim.addr(), "", 481)
	}},
	{"a node that says 503 is not the end", `t_on_failure("BULKHEAD_FAILURE");`, "", func(w *world) string {
		w.nodes["n1"].set("503 Full")
		w.nodes["n2"].set("503 Full")
		defer w.nodes["n1"].set("486 Busy Here")
		defer w.nodes["n2"].set("486 Busy Here")
		return answered(w, "127.1.1.1", call{ruri: "sip:1@acme.example"}, 486)
	}},
	{"what a phone calls itself is no tenant", `if ($vn(bulkhead_row) == $null || $vn(bulkhead_row) == "*") route(UNKNOWN_DOMAIN);`, "", func(w *world) string {
		return answered(w, "127.9.1.1", call{method: "REGISTER", ruri: "sip:nobody.example", from: "sip:1@nobody.example", to: "sip:1@nobody.example"}, 404)
	}},
	{"a call that goes round and round ends", "    if (!mf_process_maxfwd_header(\"70\")) route(LOOPED);\n    # Everybody", "    # Everybody", func(w *world) string {
		s := newSocket(w.t, "127.1.1.1", w.Addr)
		return lastHop(s, s.request(&call{ruri: "sip:1@acme.example"}))
	}},
	{"what is within a call and goes round ends", "    if (!mf_process_maxfwd_header(\"70\")) route(LOOPED);\n#!ifdef BULKHEAD_OWN_ROUTE", "#!ifdef BULKHEAD_OWN_ROUTE", func(w *world) string {
		s := newSocket(w.t, "127.1.1.1", w.Addr)
		return lastHop(s, inCall(w, s, "BYE"))
	}},
	{"a caller is answered where he sent from", "    force_rport();\n    # The way is our decision", "    # The way is our decision", func(w *world) string {
		s := newSocket(w.t, "127.1.1.1", w.Addr)
		return behindNAT(s, s.request(&call{ruri: "sip:1@acme.example"}), 486)
	}},
	{"within a call he is too", "        force_rport();\n        t_set_fr(0, 16000);", "        t_set_fr(0, 16000);", func(w *world) string {
		s := newSocket(w.t, "127.1.1.1", w.Addr)
		return behindNAT(s, inCall(w, s, "BYE"), 200)
	}},
	{"and when there is no such call", "    force_rport();\n    $var(stat) = \"refused_dialog\"", "    $var(stat) = \"refused_dialog\"", func(w *world) string {
		s := newSocket(w.t, "127.1.1.1", w.Addr)
		return behindNAT(s, strings.Replace(inCall(w, s, "BYE"), "BYE sip:"+w.nodes["n1"].addr, "BYE sip:1@192.0.2.1", 1), 481)
	}},
	// Kamailio itself asks nobody else then.
	{"a call that was cancelled did not fail", " || t_is_canceled()", "", func(w *world) string {
		for _, n := range w.nodes {
			n.set("100 Trying")
			defer n.set("486 Busy Here")
		}
		before, err := w.Client.Counters(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		s := newSocket(w.t, "127.1.1.1", w.Addr)
		c := call{ruri: "sip:1@acme.example", callID: fmt.Sprintf("safe-%016x", serial())}
		invite := s.request(&c)
		s.send(invite)
		var first bulkhead.NodeID
		eventually(w.t, "a node hears the call", func() bool {
			first, _ = w.heardBy(c.callID)
			return first != ""
		})
		s.send(strings.Replace(strings.Replace(invite, "INVITE ", "CANCEL ", 1), "1 INVITE", "1 CANCEL", 1))
		n := w.nodes[first]
		for m := ""; !strings.HasPrefix(m, "CANCEL "); {
			m = wait(w.t, "CANCEL", n.other)
		}
		if _, err := n.conn.WriteToUDPAddrPort([]byte(reply(n.call(c.callID), "503 Full", n.addr)), w.Addr); err != nil { // it crosses the CANCEL
			w.t.Fatal(err)
		}
		for header(s.final(), "CSeq") != "1 INVITE" {
		}
		for id, o := range w.nodes {
			if id != first && o.call(c.callID) != "" {
				return fmt.Sprintf("%s was asked after %s", id, first)
			}
		}
		after, err := w.Client.Counters(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		for _, name := range []string{"failovers", "refused_no_node"} {
			if after[name] != before[name] {
				return fmt.Sprintf("%s is %v, and was %v", name, after[name], before[name])
			}
		}
		return ""
	}},
	{"a contact is no node's address", `$vn(bulkhead_row) != $null || !is_ip("$nh(d)")) drop;`, `!is_ip("$nh(d)")) drop;`, func(w *world) string {
		return contactHears(w, "1001", "sip:1001@"+w.nodes["n3"].addr, w.nodes["n3"])
	}},
	{"a contact is an address", `$vn(bulkhead_row) != $null || !is_ip("$nh(d)")) drop;`, `$vn(bulkhead_row) != $null) drop;`, func(w *world) string {
		n := newNode(w.t, "486 Busy Here")
		return contactHears(w, "1002", "sip:1002@localhost:"+strings.TrimPrefix(n.addr, "127.0.0.1:"), n)
	}},
	{"a caller's own proxy stays on the way", "    } else {\n        route(LOOSE_ROUTE);\n    }\n", "    }\n", func(w *world) string {
		return byProxy(w, ", ")
	}},
	{"also if it has a Route header of its own", "$(hdr(Route)[*])", "$hdr(Route)", func(w *world) string {
		return byProxy(w, "\r\nRoute: ")
	}},
}

// TestEveryHeaderIsStripped reads what headers of ours anything of ours knows:
// the SBC must take each of them out of every message by its name.
func TestEveryHeaderIsStripped(t *testing.T) {
	include, err := os.ReadFile("conf/bulkhead.cfg")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	form := regexp.MustCompile(`(?i)X-Bulkhead-[a-z]+`)
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, "_test.go") || !slices.Contains([]string{".go", ".cfg", ".conf", ".xml"}, filepath.Ext(path)) {
			return err
		}
		text, err := os.ReadFile(path)
		for _, name := range form.FindAllString(string(text), -1) {
			known[name] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	delete(known, "X-Bulkhead-Stale") // of an HTTP answer
	if len(known) < 5 {
		t.Errorf("only the headers %v were found", known)
	}
	for name := range known {
		if !strings.Contains(string(include), `remove_hf("`+name+`");`) {
			t.Errorf("bulkhead.cfg does not remove %s by its name", name)
		}
	}
}

// TestSafeguards takes each named part out of the shipped files and sees that
// something goes wrong then, and not with all of them in place.
func TestSafeguards(t *testing.T) {
	if testing.Short() {
		t.Skip("starts Kamailio a dozen times")
	}
	limited := tenant("limited", "standard", "493030", "127.3.0.0/16")
	limited.Limits.CallsPerSecond = 1
	tenants := bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16"), tenant("beta", "standard", "493020", "127.2.0.0/16"), limited}}
	whole := newWorld(t, kamailio.Params{})
	whole.apply(tenants)
	for _, s := range safeguards {
		t.Run(s.name, func(t *testing.T) {
			if wrong := s.holds(whole); wrong != "" {
				t.Fatalf("with the shipped files: %s", wrong)
			}
			n := 0
			w := newWorldAt(t, kamailio.Params{}, func(p kamailio.Params) *kamailiotest.Daemon {
				return kamailiotest.Edited(t, p, func(_, text string) string {
					n += strings.Count(text, s.old)
					return strings.ReplaceAll(text, s.old, s.new)
				})
			})
			if n == 0 {
				t.Fatalf("the shipped files do not have %q", s.old)
			}
			w.apply(tenants)
			if wrong := s.holds(w); wrong == "" {
				t.Errorf("nothing is wrong without %q", s.old)
			}
		})
	}
}
