package kamailio_test

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/dispatcher"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
	"github.com/bulkhead-voip/bulkhead/route"
)

// added parts what an operator has to add into its three pieces. He leaves out
// the modules that his kamailio.cfg loads already.
func added(t testing.TB, lines, conf string) (pieces [3]string) {
	t.Helper()
	parts := regexp.MustCompile(`(?m)^# [123]\. .*$`).Split(lines, -1)
	if len(parts) != 4 {
		t.Fatalf("the lines to add have %d parts:\n%s", len(parts), lines)
	}
	for i := range pieces {
		for line := range strings.Lines(parts[i+1]) {
			if strings.HasPrefix(line, "loadmodule") && strings.Contains(conf, "\n"+line) {
				continue
			}
			pieces[i] += line
		}
	}
	return pieces
}

// debianConf is the kamailio.cfg of Debian's package with the features on that
// need no other daemon.
func debianConf(t testing.TB, attach bool) kamailiotest.Conf {
	const path = "/etc/kamailio/kamailio.cfg"
	b, err := os.ReadFile(path)
	if err != nil {
		if testenv.RequireReal() {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return func(p kamailio.Params, dir string) string {
		conf := "#!KAMAILIO\n#!define WITH_ANTIFLOOD\n#!define WITH_NAT\n#!define WITH_BLOCK3XX\n#!define WITH_BLOCK401407\n#!define WITH_JSONRPC\n" +
			"listen=udp:" + p.Listen + "\nlisten=tcp:" + p.Listen + "\n" + string(b)
		conf = strings.Replace(conf, "log_stderror=no", "log_stderror=yes", 1)
		conf = strings.Replace(conf, "debug=DBGLEVEL", "debug=-1", 1)
		if !attach {
			return insert(t, conf, "# ----- jsonrpcs params -----", fmt.Sprintf("modparam(\"jsonrpcs\", \"dgram_socket\", \"%s\")\n", filepath.Join(dir, kamailio.SocketFile)))
		}
		parts := added(t, p.Lines(dir), conf)
		conf = insert(t, conf, "# ----- jsonrpcs params -----", parts[0])
		conf = insert(t, conf, "# per request initial checks\n\troute(REQINIT);", parts[1])
		conf = insert(t, conf, "### only initial requests (no To tag)", parts[2])
		return insert(t, conf, "reply_route {", parts[1])
	}
}

// insert puts text behind the only place that says at.
func insert(t testing.TB, conf, at, text string) string {
	t.Helper()
	if n := strings.Count(conf, at); n != 1 {
		t.Fatalf("%q stands in the configuration %d times", at, n)
	}
	return strings.Replace(conf, at, at+"\n"+text+"\n", 1)
}

const mineToo = `
failure_route[MINE_TOO] {
    route(BULKHEAD_FAILURE);
    switch ($rc) {
    case 1:
        t_on_failure("MINE_TOO");
        t_relay();
        break;
    case -2:
        t_reply("503", "Service Unavailable");
        break;
    }
    exit;
}
`

// handwrittenConf is a small one. gateway is where it sends its own calls.
func handwrittenConf(t testing.TB, attach bool, gateway string) kamailiotest.Conf {
	b, err := os.ReadFile("testdata/hosts/handwritten.cfg")
	if err != nil {
		t.Fatal(err)
	}
	return func(p kamailio.Params, dir string) string {
		conf := strings.NewReplacer("HOST_LISTEN", p.Listen, "HOST_GATEWAY", gateway).Replace(string(b))
		parts := [3]string{fmt.Sprintf("modparam(\"jsonrpcs\", \"dgram_socket\", \"%s\")\n", filepath.Join(dir, kamailio.SocketFile))}
		if attach {
			parts = added(t, p.Lines(dir), conf)
			// With a failure route of his own for these calls.
			parts[0] += mineToo
			parts[2] = insert(t, parts[2], "record_route();", `t_on_failure("MINE_TOO");`)
		}
		for i, text := range parts {
			conf = strings.ReplaceAll(conf, fmt.Sprintf("# BULKHEAD %d\n", i+1), text)
		}
		return conf
	}
}

// shape is a message without what is new in each.
func shape(m, listen string) string {
	m = regexp.MustCompile(`branch=[^;\r]*|tag=[^;>\r]*|rport=\d+|127\.0\.0\.1:\d+|127\.\d+\.\d+\.\d+:\d+`).ReplaceAllString(strings.ReplaceAll(m, listen, "HOST"), "*")
	return regexp.MustCompile(`(?m)^(Call-ID|Content-Length|Warning|Server):.*\r\n`).ReplaceAllString(m, "")
}

func TestAttached(t *testing.T) {
	gateway := newNode(t, "486 Busy Here")
	for _, host := range []struct {
		name     string
		conf     func(attach bool) kamailiotest.Conf
		register bool   // it is a registrar
		own      string // a call of its own
	}{
		{"debian", func(attach bool) kamailiotest.Conf { return debianConf(t, attach) }, true, "sip:bob@127.0.0.1"},
		{"handwritten", func(attach bool) kamailiotest.Conf { return handwrittenConf(t, attach, gateway.addr) }, false, "sip:bob@host.example"},
	} {
		t.Run(host.name, func(t *testing.T) {
			before := kamailiotest.Attach(t, kamailio.Params{}, host.conf(false))
			w := newWorldAt(t, kamailio.Params{}, func(p kamailio.Params) *kamailiotest.Daemon { return kamailiotest.Attach(t, p, host.conf(true)) })
			old := tenant("old", "standard", "493099", "127.2.0.0/16")
			old.Managed = new(bool)
			old.Domains = append(old.Domains, "host.example", "pbx.example")
			w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16"), old}})
			w.wantInStep("attached")
			attachedTenant(t, w)
			w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("later", "standard", "493011", "127.3.0.0/16")}})
			want(t, "a new tenant", w.ask("127.3.1.1", call{ruri: "sip:1@later.example"}), 486)

			// Everything else is as before.
			for _, d := range []*kamailiotest.Daemon{before, w.Daemon} {
				own := gateway
				if host.register {
					phone := newNode(t, "486 Busy Here")
					phone.sbc = d.Addr
					m := phone.request(&call{method: "REGISTER", ruri: "sip:127.0.0.1:" + port(d), from: "sip:bob@127.0.0.1", to: "sip:bob@127.0.0.1"})
					phone.send(m)
					want(t, "register", wait(t, "200", phone.other), 200)
					own = phone
				}
				for len(own.heard) > 0 {
					<-own.heard
				}
				s := newSocket(t, "127.2.1.1", d.Addr)
				ruri := host.own
				if host.register {
					ruri += ":" + port(d)
				}
				same(t, d == before, "the answer to a call of its own", shape(s.ask(&call{ruri: ruri, extra: "X-Other: 1\r\n"}), d.Addr.String()))
				same(t, d == before, "a call of its own", shape(wait(t, "its own call", own.heard), d.Addr.String()))
				for _, r := range []string{"sip:493099@" + d.Addr.String(), "sip:nobody@" + d.Addr.String(), "sip:1@pbx.example", "sip:" + d.Addr.String()} {
					m := s.ask(&call{ruri: r})
					same(t, d == before, r, shape(m, d.Addr.String()))
				}
			}
		})
	}
}

// TestObserve runs a dispatcher that may only look beside Debian's kamailio.cfg,
// whose tables are one revision behind: it tells of the difference, and changes
// neither the file, nor the dispatcher list, nor what Kamailio holds.
func TestObserve(t *testing.T) {
	w := newWorldAt(t, kamailio.Params{}, func(p kamailio.Params) *kamailiotest.Daemon { return kamailiotest.Attach(t, p, debianConf(t, true)) })
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	held, live := w.tables(), &route.Live{}
	files := func() (text []string) {
		for _, name := range []string{kamailio.TablesFile, kamailio.ListFile} {
			b, err := os.ReadFile(filepath.Join(w.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, string(b))
		}
		return text
	}
	before := files()
	drained := *w.state.Nodes["n1"]
	drained.Drain = true
	next := w.state.Apply(&bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("later", "standard", "493011", "127.3.0.0/16")}, Nodes: []bulkhead.Node{drained}})
	live.Store(route.New(next))
	cfg := dispatcher.DefaultConfig()
	cfg.Observe = true
	c, _ := w.keepAs(live, cfg)
	told := func(what string) func() bool {
		return func() bool { return strings.Contains(strings.Join(c.Status().Differences, ";"), what) }
	}
	within(t, 30*time.Second, "the revision and the rows that are missing are told", func() bool { return told("revision")() && told("number of rows")() })
	if s := c.Status(); s.Converged || s.Applied != 0 {
		t.Errorf("status is %+v", s)
	}
	if d, err := w.Client.Verify(t.Context(), held); err != nil || len(d) > 0 {
		t.Errorf("Kamailio does not hold what it did: %q, %v", d, err)
	}
	if d := cmp.Diff(before, files()); d != "" {
		t.Errorf("a file was written:\n%.300s", d)
	}
	want(t, "a tenant that it knows", w.ask("127.1.1.1", call{ruri: "sip:1@acme.example"}), 486)
	m := w.ask("127.3.1.1", call{ruri: "sip:1@later.example", callID: "observed-1"})
	if id, invite := w.heardBy("observed-1"); invite != "" || status(m) == 486 {
		t.Errorf("a call of a tenant that is only wanted came to node %q and got\n%s", id, m)
	}
}

// bareConf is Debian's kamailio.cfg as its package runs it, with nothing of
// ours in it: as a user of its own where there is one, and with its socket
// where it puts one by itself. own, if there is any, is a dispatcher list.
func bareConf(t testing.TB, own string) kamailiotest.Conf {
	debian := debianConf(t, false)
	return func(p kamailio.Params, dir string) string {
		p.RPC = filepath.Join(dir, "kamailio_rpc.sock")
		if err := p.Write(dir); err != nil {
			t.Fatal(err)
		}
		lines, list := "", filepath.Join(dir, "own.list")
		if err := os.WriteFile(list, []byte(own), 0o600); err != nil {
			t.Fatal(err)
		}
		if own != "" {
			lines = "loadmodule \"dispatcher.so\"\nmodparam(\"dispatcher\", \"list_file\", \"" + list + "\")\n"
		}
		conf := regexp.MustCompile(`(?m)^modparam\("jsonrpcs", "dgram_socket".*\n`).ReplaceAllLiteralString(debian(p, dir), lines)
		if own == "" { // the only feature that loads htable
			conf = strings.Replace(conf, "#!define WITH_ANTIFLOOD\n", "", 1)
		}
		if u, err := user.Lookup("kamailio"); err == nil && os.Geteuid() == 0 {
			conf = strings.Replace(conf, "listen=", "user=\"kamailio\"\nlisten=", 1)
			uid, _ := strconv.Atoi(u.Uid)
			for _, path := range []string{dir, list} {
				if err := os.Chown(path, uid, -1); err != nil {
					t.Fatal(err)
				}
			}
		}
		return conf
	}
}

// TestObserveBare runs a dispatcher that may only look beside a Kamailio that
// has nothing of ours: it says so, tells what it would write and what would go,
// and writes nothing.
func TestObserveBare(t *testing.T) {
	for name, own := range map[string]string{"without dispatcher and htable": "", "with sets of its own": "7 sip:127.0.0.1:9\n"} {
		t.Run(name, func(t *testing.T) {
			d := kamailiotest.Attach(t, kamailio.Params{}, bareConf(t, own))
			w := &world{Daemon: d, t: t}
			w.state = w.state.Apply(&bulkhead.Change{
				Cells:   []bulkhead.Cell{{ID: "c1", MaxTenants: 10}},
				Pools:   []bulkhead.Pool{{ID: "std", Cell: "c1", Profile: "standard"}},
				SBCs:    []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: d.Addr.String()}},
				Nodes:   []bulkhead.Node{{ID: "n1", Pool: "std", SIP: "127.0.0.1:9"}},
				Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")},
			})
			files := func() map[string]string {
				text := map[string]string{}
				for _, name := range []string{kamailio.ConfFile, kamailio.TablesFile, kamailio.ListFile, "own.list"} {
					b, err := os.ReadFile(filepath.Join(d.Dir, name))
					if err != nil {
						t.Fatal(err)
					}
					text[name] = string(b)
				}
				return text
			}
			before, live := files(), &route.Live{}
			live.Store(route.New(w.state))
			cfg := dispatcher.DefaultConfig()
			cfg.Observe, cfg.VerifyEvery = true, 200*time.Millisecond
			c, _ := w.keepAs(live, cfg)
			wanted := []string{"does not include bulkhead.cfg", fmt.Sprintf("the %d rows of revision %d", len(w.tables().Rows), w.state.Revision), "would get dispatcher set", "sip:127.0.0.1:9"}
			if own != "" {
				wanted = append(wanted, "dispatcher set 7 is its own")
			}
			for _, what := range wanted {
				within(t, 30*time.Second, what, func() bool { return strings.Contains(strings.Join(c.Status().Differences, ";"), what) })
			}
			within(t, 30*time.Second, "an answer without an error", func() bool { return c.Status().LastError == "" })
			if s := c.Status(); s.Converged || s.Applied != 0 {
				t.Errorf("status is %+v", s)
			}
			if err := w.Client.Apply(t.Context(), w.tables()); err == nil || !strings.Contains(err.Error(), "does not include bulkhead.cfg") {
				t.Errorf("who writes is told %v", err)
			}
			if d := cmp.Diff(before, files()); d != "" {
				t.Errorf("a file was written:\n%.300s", d)
			}
			d.Stop()
			within(t, 30*time.Second, "what to look at when nobody answers", func() bool { return strings.Contains(c.Status().LastError, "another dgram_socket") })
		})
	}
}

func port(d *kamailiotest.Daemon) string { return fmt.Sprint(d.Addr.Port()) }

var firstSaid = map[string]string{}

// same compares what the attached host says with what it said before.
func same(t *testing.T, before bool, what, said string) {
	t.Helper()
	key := t.Name() + regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(what, "HOST")
	if before {
		firstSaid[key] = said
		return
	}
	if d := cmp.Diff(firstSaid[key], said); d != "" {
		t.Errorf("%s (-before +attached):\n%s", what, d)
	}
}

// attachedTenant runs a managed tenant's calls through an attached host.
func attachedTenant(t *testing.T, w *world) {
	t.Helper()
	c := call{ruri: "sip:1001@acme.example", callID: "attached-1", extra: "X-Bulkhead-Tenant: beta\r\nx-bulkhead-user: 1\r\n"}
	want(t, "a managed tenant", w.ask("127.1.2.3", c), 486)
	id, invite := w.heardBy(c.callID)
	if strings.Join(headers(invite, "X-Bulkhead-Tenant"), ",") != "acme" || header(invite, "X-Bulkhead-SBC") != "sbc1" || header(invite, "X-Bulkhead-User") != "" {
		t.Errorf("node %q got\n%s", id, invite)
	}
	smuggler := newSocket(t, "127.1.2.3", w.Addr)
	smuggled := call{ruri: "sip:1001@acme.example", callID: "attached-smuggled", extra: "Subject: a\rx-bulkhead-user: 1001\r\n"}
	smuggler.send(smuggler.request(&smuggled))
	if m := smuggler.receive(500 * time.Millisecond); m != "" {
		t.Errorf("a header within another got\n%s\nwant no answer", m)
	}
	if id, invite := w.heardBy(smuggled.callID); id != "" {
		t.Errorf("node %q got a header within another:\n%s", id, invite)
	}
	want(t, "its number from nowhere", w.ask("127.1.2.4", call{ruri: "sip:493099@acme.example"}), 486)
	want(t, "its number from another network", w.ask("127.9.2.3", call{ruri: "sip:493010@" + w.Addr.String()}), 403)
	// Failover, and an answered call.
	first, second := w.nodes["n1"], w.nodes["n2"]
	if id == "n2" {
		first, second = second, first
	}
	for i, answer := range []string{"503 Full", ""} {
		first.set(answer)
		c = call{ruri: "sip:1001@acme.example", callID: fmt.Sprintf("attached-failover-%d", i)}
		want(t, "failover", w.ask("127.1.2.5", c), 486)
		if second.call(c.callID) == "" {
			t.Errorf("the second node was not asked after %q", answer)
		}
	}
	for _, n := range w.nodes {
		n.set("200 OK")
		n.mu.Lock()
		n.extra = "X-Bulkhead-Revision: 1\r\n"
		n.mu.Unlock()
	}
	s := newSocket(t, "127.1.3.1", w.Addr)
	answeredCall(t, w, s, call{ruri: "sip:1001@acme.example", callID: "attached-answered-1"})
	for _, n := range w.nodes {
		n.set("486 Busy Here")
	}
}
