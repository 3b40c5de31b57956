package main

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/registry"
	"github.com/bulkhead-voip/bulkhead/route"
)

// rawPBX asks over one connection, and may write what no HTTP library would.
type rawPBX struct {
	conn net.Conn
	r    *bufio.Reader
	auth string
}

func newRawPBX(t *testing.T, addr, user, password string) *rawPBX {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	q := &http.Request{Header: http.Header{}}
	q.SetBasicAuth(user, password)
	return &rawPBX{conn: conn, r: bufio.NewReader(conn), auth: q.Header.Get("Authorization")}
}

// question is what a PBX asks; without a body it is a GET.
type question struct{ path, body string }

func (p *rawPBX) write(q question) []byte {
	method, length := http.MethodGet, ""
	if q.body != "" {
		method, length = http.MethodPost, fmt.Sprintf("Content-Length: %d\r\nContent-Type: application/x-www-form-urlencoded\r\n", len(q.body))
	}
	return fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\n%s\r\n%s", method, q.path, p.auth, length, q.body)
}

// ask asks several questions at once, and returns the answers.
func (p *rawPBX) ask(t *testing.T, list ...question) (status []int, answers []string) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		var b bytes.Buffer
		for _, q := range list {
			b.Write(p.write(q))
		}
		_, err := p.conn.Write(b.Bytes())
		sent <- err
	}()
	for _, q := range list {
		resp, err := http.ReadResponse(p.r, nil)
		if err != nil {
			t.Fatalf("%q: %v", q, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("%q: %v", q, err)
		}
		status, answers = append(status, resp.StatusCode), append(answers, string(body))
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	return status, answers
}

// hostileServer answers node fs1, node ast1 and SBC s1, as fast as they ask.
func hostileServer(t *testing.T) string {
	t.Helper()
	change := twoCells()
	live := &route.Live{}
	live.Store(route.New(bulkhead.State{Revision: 7}.Apply(&change)))
	cfg := configsvc.DefaultConfig()
	cfg.Listen, cfg.TenantRate = "127.0.0.1:0", 1_000_000
	cfg.IsNode = func(_ *route.Snapshot, _ bulkhead.NodeID, password string) bool { return password == "right" }
	cfg.IsSBC = func(_ *route.Snapshot, _ bulkhead.SBCID, password string) bool { return password == "right" }
	s, err := configsvc.New(cfg, live, dialects(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	g := newGroup(t.Context(), serviceStop)
	g.run(services, "configsvc", s.Run)
	g.started()
	t.Cleanup(func() {
		g.cancel()
		if err := g.wait(); err != nil {
			t.Error(err)
		}
	})
	return s.Addr().String()
}

// hostileValues are what a caller may write into any header: each alone, and
// before and behind what is innocent.
func hostileValues() []string {
	var out []string
	for _, h := range []string{
		"&", "&&", "&a1=dial", "&v=1", "&amp;", "&#36;{x}", "${SHELL(id)}", "${x}", "$${secret}", "${api(reload)}", "$[1+1]", "%{x}", "{a=b}", "[a=b]",
		"\r\n", "\n", "\r", "\r\nX-Bulkhead-Tenant: globex", "\x00", "\x01", "\t", " ", ",", ",1", ",loopback/1", ",Local/1@x", "|", "|error/user_busy", ";", ";fs_path=sip:evil.example", ";transport=tcp",
		"<", ">", "<x/>", "</action>", `"/><action application="system" data="x`, `<X-PRE-PROCESS cmd="exec" data="id"/>`, "<![CDATA[", "]]>", "<!-- ", "<?xml?>", `"`, "'", "' OR '1'='1", "`id`",
		"%", "%25", "%%", "_", `\`, `\_%`, `\n`, "(", ")", "Goto(x)", "^^:", "=", "==", "@evil.example", "@globex.example", "sip:x@y", "/", "//", "../..", "PJSIP/101@globex.example",
		"ü", "\xff\xfe", "\xc0\xaf", "\u202e", "１０１", "\U0001f600", "+", "*", "#", "", "globex", "_sbc.s1", "_sbc.s2", "globex.source", "bulkhead-0.USER_BUSY", "a1", "h",
	} {
		out = append(out, h, "5557"+h, h+"5557") // digits that no answer holds by itself
	}
	return out
}

var (
	harmless = regexp.MustCompile(`^[A-Za-z0-9_.+*#@-]*$`)
	variable = regexp.MustCompile(`^[a-z_A-Z-]+$`)
)

// TestHostileCalls: whatever stands in a header of a call, the answer in each
// dialect has the form of one to an innocent call, and nothing of it inside.
func TestHostileCalls(t *testing.T) {
	addr := hostileServer(t)
	values := hostileValues()
	if len(values) < 200 {
		t.Fatalf("%d values", len(values))
	}
	// each asks with every value in the fields to vary, which are all if there
	// are none, and looks at the answers.
	each := func(user string, innocent map[string]string, vary []string, make func(map[string]string) question, look func(answer, value string) string) {
		t.Helper()
		if vary == nil {
			vary = slices.Collect(maps.Keys(innocent))
		}
		for _, field := range vary {
			var list []question
			for _, v := range values {
				fields := maps.Clone(innocent)
				fields[field] = v
				list = append(list, make(fields))
			}
			status, answers := newRawPBX(t, addr, user, "right").ask(t, list...)
			for i, a := range answers {
				if status[i] >= 500 {
					t.Errorf("%s = %q: status %d", field, values[i], status[i])
				}
				if wrong := look(a, values[i]); wrong != "" {
					t.Fatalf("%s = %q: %s: %q", field, values[i], wrong, a)
				}
			}
		}
	}
	for i, call := range []asked{
		{call: route.Call{SBC: "s1", Tenant: "acme", Number: "49301", ID: "x@y"}, from: "4930999", realm: "acme.example"},
		{call: route.Call{SBC: "s1", Tenant: "acme", User: "101", Number: "102", ID: "x@y"}, from: "101", realm: "acme.example"},
		{call: route.Call{SBC: "s1", Tenant: "acme", User: "101", Number: "030999", ID: "x@y"}, from: "101", realm: "acme.example"},
	} {
		var fs, ast []string // all fields of one call, and of the others what decides
		if i > 0 {
			fs, ast = []string{"dest", "caller"}, []string{"exten", "from"}
		}
		fields := freeswitchFields(call, nil)
		each("fs1", fields, fs, func(f map[string]string) question { return question{"/freeswitch/xml", string(xmlBody(f, false))} }, lookXML)
		each("fs1", fields, fs, func(f map[string]string) question { return question{"/freeswitch/curl?" + curlQuery(f), ""} }, lookMultiset)
		fields = map[string]string{
			"exten": call.call.Number, "endpoint": "_sbc.s1", "from": call.from, "callid": "x@y", "source": "127.0.0.1:5060",
			"transfer": "", "tenant": "", "user": "", "xtenant": "acme", "xuser": call.call.User,
		}
		each("ast1", fields, ast, func(f map[string]string) question { return question{"/asterisk/call", curlQuery(f)} }, lookHash)
	}
	for _, family := range []string{"ps_endpoints", "ps_auths", "ps_aors", "ps_domain_aliases", "ps_endpoint_id_ips"} {
		each("ast1", map[string]string{"id": "101@acme.example"}, nil, func(f map[string]string) question {
			return question{"/asterisk/realtime/" + family + "/single", curlQuery(f)}
		}, lookRow)
	}
	each("ast1", map[string]string{"exten": "101", "context": "acme", "priority": "1"}, nil, func(f map[string]string) question {
		return question{"/asterisk/realtime/extensions/single", curlQuery(f)}
	}, lookHash)
	each("ast1", map[string]string{"mailbox": "101", "context": "acme"}, nil, func(f map[string]string) question {
		return question{"/asterisk/realtime/voicemail/single", curlQuery(f)}
	}, lookRow)
	each("fs1", map[string]string{"user": "101", "domain": "acme.example", "key": "id", "action": "sip_auth"}, nil, func(f map[string]string) question {
		return question{"/freeswitch/xml", "hostname=vm&section=directory&tag_name=domain&key_name=name&key_value=acme.example&" + curlQuery(f)}
	}, lookXML)
	_, found := newRawPBX(t, addr, "s1", "right").ask(t, question{"/kamailio/route?d=acme.example&s=10.0.1.9&n=101", ""})
	each("s1", map[string]string{"d": "acme.example", "s": "10.0.1.9", "n": "101"}, nil, func(f map[string]string) question {
		return question{"/kamailio/route?" + curlQuery(f), ""}
	}, func(answer, _ string) string {
		if answer != "" && answer != found[0] {
			return "another answer"
		}
		return ""
	})
}

// expanded is what FreeSWITCH is meant to expand in an answer.
var expanded = strings.NewReplacer("${recordings_dir}", "", "${uuid}", "", "${originate_failed_cause}", "")

func lookXML(answer, value string) string {
	d := xml.NewDecoder(strings.NewReader(answer))
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return ""
		}
		if err != nil {
			return err.Error()
		}
		switch e := tok.(type) {
		case xml.Comment, xml.ProcInst, xml.Directive:
			return "a comment or an instruction"
		case xml.StartElement:
			for _, a := range e.Attr {
				if text := expanded.Replace(a.Value); strings.Contains(text, "${") || strings.Contains(text, "$$") || strings.ContainsAny(text, "\r\n\t&<>\"'`\\\x00") {
					return "the attribute " + text
				}
				if !harmless.MatchString(value) && strings.Contains(a.Value, value) && len(value) > 1 {
					return "the value is in it"
				}
			}
			switch e.Name.Local {
			case "document", "section", "context", "extension", "condition", "action", "result", "domain", "params", "param", "variables", "variable", "groups", "group", "users", "user":
			default:
				return "an element " + e.Name.Local
			}
		}
	}
}

func lookMultiset(answer, value string) string {
	rest, ok := strings.CutPrefix(answer, "^^;")
	if !ok || strings.ContainsAny(rest, "\r\n\t\\&<>\"'`\x00") || strings.Contains(rest, "${") {
		return "it is more than fields"
	}
	seen := map[string]bool{}
	for f := range strings.SplitSeq(rest, ";") {
		name, _, ok := strings.Cut(f, "=")
		if !ok || seen[name] || !variable.MatchString(name) {
			return "the field " + f
		}
		seen[name] = true
	}
	if !harmless.MatchString(value) && len(value) > 1 && strings.Contains(rest, value) {
		return "the value is in it"
	}
	return ""
}

// lookHash looks at fields for CURLOPT(hashcompat), and at a line of the dialplan.
func lookHash(answer, value string) string {
	if strings.Trim(strings.TrimSuffix(answer, "\n"), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~%=&") != "" {
		return "it is more than fields"
	}
	fields, err := url.ParseQuery(strings.TrimSuffix(answer, "\n"))
	if err != nil {
		return err.Error()
	}
	for name, list := range fields {
		text := list[0]
		if name == "appdata" { // bulkhead,EXTEN,1
			text = strings.TrimSuffix(strings.TrimPrefix(text, "bulkhead,"), ",1")
		}
		if name[0] == 'o' {
			text = strings.ReplaceAll(text, "&PJSIP/", "") // the legs that we put together
		}
		if name == "codecs" {
			text = strings.ReplaceAll(text, ",", "") // the tenant's
		}
		if len(list) > 1 || strings.ContainsAny(text, "\r\n\t,;|&$%{}[]()\"'`\\<>^\x00") {
			return "the field " + name
		}
		if !harmless.MatchString(value) && len(value) > 1 && strings.Contains(text, value) {
			return "the value is in it"
		}
	}
	return ""
}

// lookRow: a name that is none has no row, and matches none by a wildcard.
func lookRow(answer, value string) string {
	switch {
	case answer == "":
		return ""
	case value != "101" && value != "acme" && value != "_sbc.s1":
		return "a row"
	}
	return ""
}

// TestChaosRandomBytes: questions of random bytes in each dialect get an answer
// that is no 5xx, and nothing of them is kept: 2,000 in make test, 10,000 in
// make chaos (BULKHEAD_CHAOS_RANDOM).
func TestChaosRandomBytes(t *testing.T) {
	const batch = 500
	total := fromEnv(t, "BULKHEAD_CHAOS_RANDOM", 2000) / batch * batch
	addr := hostileServer(t)
	r := rand.New(rand.NewPCG(7, 7))
	noise := func(limit int) string {
		b := make([]byte, r.IntN(limit))
		for i := range b {
			b[i] = byte(r.IntN(256))
		}
		return string(b) + "x" // never empty
	}
	line := func(limit int) string { // what ends a request line is left out
		return strings.Map(func(c rune) rune {
			if c <= ' ' || c == 0x7f || c == '#' || c == 0xfffd {
				return 'x'
			}
			return c
		}, noise(limit))
	}
	for _, d := range []struct {
		name, user string
		question   func() question
	}{
		{"mod_xml_curl", "fs1", func() question {
			begin := []string{"", "hostname=&section=dialplan&tag_name=&key_name=&key_value=&", "hostname=&section=directory&tag_name=domain&key_name=name&key_value=acme.example&", "hostname=&section=configuration&"}
			return question{"/freeswitch/xml", begin[r.IntN(len(begin))] + noise(300)}
		}},
		{"mod_curl", "fs1", func() question { return question{"/freeswitch/curl?" + line(200), ""} }},
		{"asterisk realtime", "ast1", func() question {
			return question{"/asterisk/realtime/" + []string{"ps_endpoints/single", "extensions/multi", "a/update", "%41"}[r.IntN(4)], noise(300)}
		}},
		{"asterisk call", "ast1", func() question { return question{"/asterisk/call", noise(300)} }},
		{"kamailio", "s1", func() question {
			return question{"/kamailio/route?" + []string{"", "d=acme.example&s=10.0.1.9&n=", "s=10.0.1.9&n=1&d="}[r.IntN(3)] + line(100), ""}
		}},
	} {
		p := newRawPBX(t, addr, d.user, "right")
		statuses := map[int]int{}
		var before, after uint64
		for n := 0; n < total; n += batch {
			list := make([]question, batch)
			for i := range list {
				list[i] = d.question()
			}
			status, _ := p.ask(t, list...)
			for _, s := range status {
				if statuses[s]++; s >= 500 {
					t.Fatalf("%s: status %d", d.name, s)
				}
			}
			if n == total/batch/4*batch {
				before = heap()
			}
		}
		if after = heap(); after > before+4<<20 {
			t.Errorf("%s: %d KB are in use, and were %d KB after a quarter", d.name, after>>10, before>>10)
		}
		t.Logf("%s: statuses %v, %d KB in use, %d KB after a quarter", d.name, statuses, after>>10, before>>10)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestWrongTokens: who has not the token of the node or SBC that he says he is,
// and who is one of another cell, gets the dialect's own denial on every route
// (P27), and nothing of the tenant.
func TestWrongTokens(t *testing.T) {
	data := t.TempDir()
	seedTwoCells(t, data)
	var server *configsvc.Server
	r := startService(t, data, func(p *parts, g *group) (err error) {
		if err := p.followStore(g, &storeFlags{}, "configsvc"); err != nil {
			return err
		}
		server, err = startConfigsvc(p, g, listenFlags{Listen: "127.0.0.1:0"}, nil)
		return err
	})
	defer r.stop(t)
	tokens := map[string]string{"": "", "made up": "bh_aaaaaaaaaa_AAAAAAAAAAAAAAAAAAAAAAAAAA"}
	for name, tok := range map[string]registry.Token{
		"fs1": {Scope: registry.ScopeNode, Node: "fs1"}, "ast1": {Scope: registry.ScopeNode, Node: "ast1"}, "s1": {Scope: registry.ScopeSBC, SBC: "s1"},
		"fs2": {Scope: registry.ScopeNode, Node: "fs2"}, "ast2": {Scope: registry.ScopeNode, Node: "ast2"}, "s2": {Scope: registry.ScopeSBC, SBC: "s2"},
		"tenant": {Scope: registry.ScopeTenant, Tenant: "acme"}, "admin": {Scope: registry.ScopeAdmin}, "read": {Scope: registry.ScopeRead},
	} {
		file, _ := r.tokenFile(t, tok)
		tokens[name] = secretIn(t, file)
	}
	once := func(user, token string, q question) (status int, answer string) {
		t.Helper()
		p := newRawPBX(t, server.Addr().String(), user, token)
		defer p.conn.Close()
		statuses, answers := p.ask(t, q)
		return statuses[0], answers[0]
	}
	call := asked{call: route.Call{SBC: "s1", Tenant: "acme", User: "101", Number: "102"}, from: "101", realm: "acme.example"}
	fields := freeswitchFields(call, nil)
	hash := curlQuery(map[string]string{"exten": "102", "endpoint": "101@acme.example", "from": "101"})
	for _, d := range []struct {
		what, owner string
		question    question
		right       string // in the answer to who may ask
		denial      string // the answer, or a part of it
		status      int
	}{
		{"dialplan", "fs1", question{"/freeswitch/xml", string(xmlBody(fields, false))}, "102@acme.example", `application="respond"`, 200},
		{"directory", "fs1", question{"/freeswitch/xml", "hostname=&section=directory&tag_name=domain&key_name=name&key_value=acme.example&user=101&domain=acme.example"}, "a1-hash", `status="not found"`, 200},
		{"configuration", "fs1", question{"/freeswitch/xml", "hostname=&section=configuration&tag_name=configuration&key_name=name&key_value=sofia.conf"}, "", `status="not found"`, 200},
		{"mod_curl", "fs1", question{"/freeswitch/curl?" + curlQuery(fields), ""}, "102@acme.example", "bulkhead_action=respond;", 200},
		{"mod_curl JSON", "fs1", question{"/freeswitch/curl?format=json&" + curlQuery(fields), ""}, "102@acme.example", `"do":"reject"`, 200},
		{"CURL()", "ast1", question{"/asterisk/call", hash}, "PJSIP%2F102", "denied\n", 200},
		{"endpoint", "ast1", question{"/asterisk/realtime/ps_endpoints/single", "id=101%40acme.example"}, "accountcode=acme", "", 200},
		{"auth", "ast1", question{"/asterisk/realtime/ps_auths/single", "id=101%40acme.example"}, "md5_cred=", "", 200},
		{"all endpoints", "ast1", question{"/asterisk/realtime/ps_endpoints/multi", "id%20LIKE=%25"}, "accountcode=acme", "", 200},
		{"extension", "ast1", question{"/asterisk/realtime/extensions/single", "exten=101&context=acme&priority=1"}, "bulkhead", "", 200},
		{"mailbox", "ast1", question{"/asterisk/realtime/voicemail/single", "mailbox=101&context=acme"}, "fullname", "", 200},
		{"route", "s1", question{"/kamailio/route?d=acme.example&s=10.0.1.9&n=101", ""}, "acme|", "", 403},
	} {
		eventually(t, 30*time.Second, d.what+": who may ask is answered", func() string { // a token counts from the next second on
			if _, a := once(d.owner, tokens[d.owner], d.question); !strings.Contains(a, d.right) {
				return a
			}
			return ""
		})
		for _, user := range []string{d.owner, "fs2", "ast2", "s2", "", "nobody", "acme"} {
			for name, token := range tokens {
				if name == user && user != "" { // of another cell, and right: it may ask, and sees nothing
					continue
				}
				status, a := once(user, token, d.question)
				if status != d.status || !strings.Contains(a, d.denial) || d.denial == "" && a != "" {
					t.Errorf("%s by %q with the token of %q: %d %q", d.what, user, name, status, a)
				}
			}
		}
		for _, other := range []string{"fs2", "ast2", "s2"} {
			if other[0] != d.owner[0] {
				continue
			}
			_, a := once(other, tokens[other], d.question)
			if strings.Contains(a, "acme") || strings.Contains(a, fmt.Sprintf("%032x", 0xabcdef)) || strings.Contains(a, "PJSIP") {
				t.Errorf("%s by %s, which is of another cell: %q", d.what, other, a)
			}
		}
	}
}
