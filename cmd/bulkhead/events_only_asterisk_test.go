package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// The dialplan and the endpoints of an Asterisk that serves two customers and
// knows nothing of Bulkhead. Phones are told apart by their address.
const (
	plainDialplan = `
[office]
exten => _1XX,1,Dial(PJSIP/carrier/sip:${EXTEN}@{{.Phones}},20)
 same => n,Hangup()
exten => 200,1,Dial(PJSIP/carrier/sip:101@{{.Phones}}&PJSIP/carrier/sip:109@{{.Phones}},20)
 same => n,Hangup()
exten => _+X.,1,Dial(PJSIP/carrier/sip:101@{{.Phones}},20)
 same => n,Hangup()
[from-beta]
exten => _1XX,1,Dial(PJSIP/carrier/sip:${EXTEN}@{{.Phones}},20)
 same => n,Hangup()
`
	plainEndpoints = `
[global]
type = global
endpoint_identifier_order = ip,username,anonymous
[udp]
type = transport
protocol = udp
bind = 127.0.0.1:{{.SIPPort}}
[phone](!)
type = endpoint
context = office
disallow = all
allow = ulaw
[seven](phone)
accountcode = acc-7
[seven-id]
type = identify
endpoint = seven
match = 127.0.1.0/24
[beta](phone)
context = from-beta
[beta-id]
type = identify
endpoint = beta
match = 127.0.2.0/24
[other](phone)
[other-id]
type = identify
endpoint = other
match = 127.0.3.0/24
[carrier](phone)
`
)

// plainAsterisk is a real Asterisk that was configured without Bulkhead in
// mind, with the files of Debian's package, and phones around it.
type plainAsterisk struct {
	*asterisktest.Daemon
	t *testing.T
	// What stands for the document's addresses.
	http, ami, listen string
	etc               map[string]string // its files, before anything was added
}

func startPlainAsterisk(t *testing.T) *plainAsterisk {
	t.Helper()
	asterisktest.Need(t)
	callees := phonesAt(t, "127.0.9.1:0")
	_, err := callees.Add(siptest.PhoneConfig{User: "*", Domain: "phones", OnInvite: func(in *siptest.Incoming) siptest.Behaviour {
		switch in.Request().Recipient.User {
		case "102":
			return siptest.Behaviour{Code: 486}
		case "103", "109":
			return siptest.Behaviour{Delay: time.Minute}
		}
		return siptest.Behaviour{Delay: 100 * time.Millisecond}
	}})
	if err != nil {
		t.Fatal(err)
	}
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }
	a := &plainAsterisk{t: t, http: local(), ami: local(), listen: local(), etc: map[string]string{}}
	conf := map[string]string{"extensions.conf": plainDialplan, "pjsip.conf": plainEndpoints}
	for _, name := range []string{"ari.conf", "http.conf", "manager.conf", "cel.conf", "cel_custom.conf", "cdr_manager.conf", "websocket_client.conf"} {
		b, err := os.ReadFile(filepath.Join(asterisktest.Root(), "etc/asterisk", name))
		if err != nil {
			t.Fatal(err)
		}
		conf[name] = strings.ReplaceAll(string(b), "port = 5038", "port = "+port(a.ami)) // which another Asterisk may have
	}
	a.Daemon = asterisktest.Start(t, asterisktest.Options{Phones: callees.Addr(), Conf: conf, Bare: true})
	a.etc = a.files()
	return a
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

func phonesAt(t *testing.T, listen string) *siptest.Phones {
	t.Helper()
	g, err := siptest.NewPhones(siptest.PhonesConfig{Listen: listen})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// files reads Asterisk's configuration folder.
func (a *plainAsterisk) files() map[string]string {
	a.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(filepath.Join(a.Dir, "etc"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = string(b)
		return err
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

// here puts the addresses, folders and passwords of the test in place of the
// document's.
func (a *plainAsterisk) here(text string) string {
	return strings.NewReplacer("127.0.0.1:8088", a.http, "bindport = 8088", "bindport = "+port(a.http),
		"127.0.0.1:5038", a.ami, "port = 5038", "port = "+port(a.ami), "PASSWORD", "for-this-test-1",
		"127.0.0.1:8090", a.listen, "/var/log/asterisk", filepath.Join(a.Dir, "var")).Replace(text)
}

// add does what the document says to do with the block for the end of a file
// that begins so.
func (a *plainAsterisk) add(begin, name string) {
	a.t.Helper()
	block := documented(a.t, begin+" /etc/asterisk/"+name+"\n")
	f, err := os.OpenFile(filepath.Join(a.Dir, "etc", name), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		a.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("\n" + a.here(block) + "\n"); err != nil {
		a.t.Fatal(err)
	}
}

// run runs the asterisk -rx commands of a block.
func (a *plainAsterisk) run(begin string) {
	a.t.Helper()
	commands := regexp.MustCompile(`(?m)^asterisk -rx '([^']+)'$`).FindAllStringSubmatch(documented(a.t, begin), -1)
	if len(commands) < 2 {
		a.t.Fatalf("the block that begins with %q has %d commands", begin, len(commands))
	}
	for _, c := range commands {
		out, err := a.CLI(a.t.Context(), c[1])
		if err != nil {
			a.t.Errorf("%v", err)
		}
		a.t.Logf("%s: %s", c[1], strings.TrimSpace(out))
	}
}

// attached is a bridge and a pipe beside it, as the document says.
type attached struct {
	t           *testing.T
	data, admin string
	listen      string
	bridge      *proc
}

func attach(t *testing.T, nodes string, listen string) *attached {
	t.Helper()
	dir := t.TempDir()
	e := &attached{t: t, data: filepath.Join(dir, "data"), admin: fmt.Sprintf("127.0.0.1:%d", freePort(t)), listen: listen}
	for name, secret := range map[string]string{"pbx2.password": "for-this-test-1", "pbx2.ami-password": "AMI_for-this-test-1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "nodes.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(nodes, "/etc/bulkhead", dir)), 0o640); err != nil {
		t.Fatal(err)
	}
	run := strings.Split(strings.TrimSpace(replaced(t, documented(t, "bulkhead eventbridge"), "/etc/bulkhead/nodes.yaml", file, "/var/lib/bulkhead", e.data)), "\n")
	pipeAdmin := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	e.bridge = spawn(t, append(strings.Fields(run[0])[1:], "--listen", listen, "--admin", e.admin)...)
	spawn(t, append(strings.Fields(run[1])[1:], "--admin", pipeAdmin)...)
	waitReady(t, pipeAdmin, 30*time.Second)
	return e
}

func (e *attached) records() []cdrpipe.Row {
	return decodeLines[cdrpipe.Row](e.t, tool(e.t, "cdr", "--json", "--limit", "1000", "--data", e.data))
}

// sipCall is a call as its phone saw it.
type sipCall struct {
	from, to string
	talk     time.Duration // then the caller hangs up
	cancel   time.Duration // after which the caller gives up; 0: it does not
	tenant   string
	legs     int

	id                  string // its Call-ID
	code                int
	start, answer, ends time.Time
}

// place places a call and waits for its end.
func (a *plainAsterisk) place(c *sipCall) error {
	group, err := siptest.NewPhones(siptest.PhonesConfig{Listen: c.from + ":0"})
	if err != nil {
		return err
	}
	a.t.Cleanup(func() { group.Close() }) // later: a CANCEL may be on its way
	p, err := group.Add(siptest.PhoneConfig{User: "8001", Domain: a.SIP.String()})
	if err != nil {
		return err
	}
	dial, stop := context.WithTimeout(a.t.Context(), 20*time.Second)
	defer stop()
	if c.cancel > 0 {
		defer time.AfterFunc(c.cancel, stop).Stop()
	}
	c.start = time.Now()
	c.id = fmt.Sprintf("%s-%d", c.from, c.start.UnixNano())
	call, err := p.Dial(dial, "sip:"+c.to+"@"+a.SIP.String(), siptest.DialOptions{CallID: c.id})
	if refused := (*siptest.StatusError)(nil); errors.As(err, &refused) {
		c.code, c.ends = refused.Code, time.Now()
		return nil
	}
	if err != nil {
		c.code, c.ends = 487, time.Now()
		if c.cancel == 0 {
			return err
		}
		return nil
	}
	c.code, c.answer = 200, time.Now()
	select {
	case <-time.After(c.talk): // part of the call, not a wait for something
	case <-call.Done():
	}
	c.ends = time.Now()
	return call.Hangup(a.t.Context())
}

func (a *plainAsterisk) placeAll(calls []*sipCall) {
	a.t.Helper()
	var wg sync.WaitGroup
	for _, c := range calls {
		wg.Go(func() {
			if err := a.place(c); err != nil {
				a.t.Errorf("call to %s: %v", c.to, err)
			}
		})
	}
	wg.Wait()
}

// checkCalls waits for every leg of the calls and compares the callers' records
// with what their phones saw. A source that knows no Call-ID tells calls to one
// number apart by their times.
func (e *attached) checkCalls(what string, calls []*sipCall) []cdrpipe.Row {
	e.t.Helper()
	total := 0
	for _, c := range calls {
		total += c.legs
	}
	var rows []cdrpipe.Row
	eventually(e.t, 40*time.Second, what, func() string {
		rows = e.records()
		whole := 0
		for _, r := range rows {
			if !r.End.IsZero() {
				whole++
			}
		}
		if whole < total {
			return fmt.Sprintf("%d of %d legs are whole", whole, total)
		}
		return ""
	})
	if len(rows) != total {
		e.t.Errorf("%s: %d records of %d legs", what, len(rows), total)
	}
	for _, c := range calls {
		found := 0
		for _, r := range rows {
			within := time.Second
			if r.SIPCallID == c.id {
				within = 2 * time.Second // the phone's clock is read late on a busy machine
			}
			near := func(a, b time.Time) bool { return a.IsZero() == b.IsZero() && a.Sub(b).Abs() < within }
			if r.Direction != cdr.Inbound || r.Callee != c.to || string(r.Tenant) != c.tenant || !near(r.Start, c.start) || r.SIPCallID != "" && r.SIPCallID != c.id {
				continue
			}
			if r.SIPCode == c.code && near(r.Answer, c.answer) && near(r.End, c.ends) && r.Caller == "8001" && r.Node == "pbx2" && r.Cell == "main" {
				found++
			}
			for _, leg := range rows {
				if leg.Call == r.Call && string(leg.Tenant) != c.tenant {
					e.t.Errorf("%s: leg of another tenant than %q: %+v", what, c.tenant, leg.Record)
				}
			}
		}
		if found != 1 {
			e.t.Errorf("%s: %d records of %+v", what, found, *c)
			for _, r := range rows {
				e.t.Logf("%+v", r.Record)
			}
		}
	}
	return rows
}

// TestEventsOnlyAsterisk follows docs/attach-events.md beside an Asterisk that
// was there before: adds what it says, runs what it says, places calls, kills
// the bridge among them, and takes everything off again.
func TestEventsOnlyAsterisk(t *testing.T) {
	a := startPlainAsterisk(t)
	for _, name := range []string{"ari.conf", "http.conf", "cel.conf", "cel_custom.conf", "manager.conf", "cdr_manager.conf"} {
		a.add("; at the end of", name)
	}
	a.run("asterisk -rx 'module reload http'")
	e := attach(t, a.here(documented(t, "# /etc/bulkhead/nodes.yaml\n")), a.listen)
	waitReady(t, e.admin, 30*time.Second)

	calls := []*sipCall{
		{from: "127.0.1.1", to: "101", talk: time.Second, tenant: "acme", legs: 2},
		{from: "127.0.1.2", to: "102", tenant: "acme", legs: 2},
		{from: "127.0.1.3", to: "103", cancel: 400 * time.Millisecond, tenant: "acme", legs: 2},
		{from: "127.0.1.4", to: "200", talk: time.Second, tenant: "acme", legs: 3},
		{from: "127.0.2.1", to: "101", talk: time.Second, tenant: "beta", legs: 2},
		{from: "127.0.3.1", to: "+4930123", talk: time.Second, tenant: "beta", legs: 2},
		{from: "127.0.3.2", to: "101", talk: time.Second, tenant: "", legs: 2},
	}
	a.placeAll(calls)
	for _, r := range e.checkCalls("heard", calls) {
		if r.Source != cdr.SourceARI {
			t.Errorf("heard by ARI, and the record is of %s: %+v", r.Source, r.Record)
		}
	}

	// The bridge is away while some calls begin, some are answered and some end.
	through := &sipCall{from: "127.0.1.5", to: "101", talk: 9 * time.Second, tenant: "acme", legs: 2}
	ends := &sipCall{from: "127.0.2.2", to: "101", talk: 4 * time.Second, tenant: "beta", legs: 2}
	within := []*sipCall{
		{from: "127.0.1.6", to: "101", talk: 300 * time.Millisecond, tenant: "acme", legs: 2},
		{from: "127.0.1.7", to: "102", tenant: "acme", legs: 2},
		{from: "127.0.1.8", to: "200", talk: 300 * time.Millisecond, tenant: "acme", legs: 3},
	}
	long := make(chan struct{})
	go func() {
		defer close(long)
		a.placeAll([]*sipCall{through, ends})
	}()
	eventually(t, 10*time.Second, "two calls up", func() string {
		out, err := a.CLI(t.Context(), "core show channels count")
		if err != nil || !strings.Contains(out, "4 active channels") {
			return out
		}
		return ""
	})
	e.bridge.kill()
	a.placeAll(within)
	eventually(t, 10*time.Second, "one call is over", func() string {
		out, err := a.CLI(t.Context(), "core show channels count")
		if err != nil || !strings.Contains(out, "2 active channels") {
			return out
		}
		return ""
	})
	e.bridge.start()
	waitReady(t, e.admin, 30*time.Second)
	<-long
	calls = append(append(calls, through, ends), within...)
	byFile := 0
	for _, r := range e.checkCalls("through a gap", calls) {
		if r.Source == cdr.SourceFile {
			byFile++
		}
	}
	if byFile < 7 { // all that began and ended in the gap
		t.Errorf("%d records of the log alone, want 7 or more", byFile)
	}
	if gaps := tool(t, "cdr", "--gaps", "--data", e.data); !strings.Contains(gaps, "bridge restarted") {
		t.Errorf("gaps: %s", gaps)
	}

	// Off again.
	e.bridge.stop()
	for path, text := range a.etc {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a.run("asterisk -rx 'module unload cel_custom.so'")
	if d := cmp.Diff(a.etc, a.files()); d != "" {
		t.Errorf("what is left in the configuration: %s", d)
	}
	for command, gone := range map[string]string{"ari show users": "bulkhead", "manager show users": "bulkhead", "cel show status": "Logging: Enabled", "module show like cel_custom": "Running"} {
		if out, err := a.CLI(t.Context(), command); err != nil || strings.Contains(out, gone) {
			t.Errorf("%s still says %s: %s %v", command, gone, out, err)
		}
	}
	after := &sipCall{from: "127.0.1.9", to: "101", talk: 100 * time.Millisecond}
	if err := a.place(after); err != nil || after.code != 200 {
		t.Errorf("a call after all that: %+v, %v", after, err)
	}
}

// TestEventsOnlyAsteriskConnects follows the document where Asterisk opens the
// connection: what happened while the bridge was killed comes from Asterisk's
// own memory, whole and with its own times. There is no channel event log.
func TestEventsOnlyAsteriskConnects(t *testing.T) {
	a := startPlainAsterisk(t)
	a.add("; at the end of", "ari.conf")
	a.add("; at the end of", "websocket_client.conf")
	a.add("; and at the end of", "ari.conf")
	e := attach(t, a.here(documented(t, "# /etc/bulkhead/nodes.yaml, where Asterisk connects\n")), a.listen)
	for _, refused := range []struct {
		path, user, password string
		want                 int
	}{{"pbx2", "bulkhead", "wrong", 401}, {"pbx2", "", "", 401}, {"pbx3", "bulkhead", "for-this-test-1", 404}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+a.listen+"/asterisk/"+refused.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(refused.user, refused.password)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != refused.want {
			t.Errorf("%+v: %s", refused, resp.Status)
		}
	}
	a.run("asterisk -rx 'module load res_websocket_client.so'")
	waitReady(t, e.admin, 30*time.Second)

	calls := []*sipCall{{from: "127.0.1.1", to: "101", talk: 500 * time.Millisecond, legs: 2}, {from: "127.0.1.2", to: "102", legs: 2}}
	a.placeAll(calls)
	e.checkCalls("heard", calls)

	e.bridge.kill()
	within := []*sipCall{
		{from: "127.0.1.3", to: "101", talk: 500 * time.Millisecond, legs: 2},
		{from: "127.0.1.4", to: "102", legs: 2},
		{from: "127.0.1.5", to: "200", talk: 300 * time.Millisecond, legs: 3},
	}
	a.placeAll(within)
	e.bridge.start()
	waitReady(t, e.admin, 30*time.Second)
	for _, r := range e.checkCalls("through a gap", append(calls, within...)) {
		if r.Source != cdr.SourceARI || r.SIPCallID == "" {
			t.Errorf("Asterisk kept its events, and the record is %+v", r.Record)
		}
	}
	if gaps := tool(t, "cdr", "--gaps", "--data", e.data); !strings.Contains(gaps, "bridge restarted") {
		t.Errorf("gaps: %s", gaps)
	}
}
