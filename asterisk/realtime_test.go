package asterisk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// testTime is a Sunday in the small hours, UTC.
var testTime = time.Unix(1e9, 0)

const testHA1 = "0123456789abcdef0123456789abcdef"

// testState is two cells: the captures' tenant and one with the same extensions
// in the first, and a tenant in the second that no node of the first may see.
func testState() bulkhead.State {
	users := func() []bulkhead.User {
		var us []bulkhead.User
		for i := range 7 {
			us = append(us, bulkhead.User{Extension: fmt.Sprint(1001 + i), Name: `Al"ice <&> ÄÖ`, HA1: testHA1})
		}
		return us
	}
	acme := &bulkhead.Tenant{
		ID: "acme", Cell: "c1", Profile: "standard", Domains: []string{"acme.example", "acme.test"}, Users: users(),
		Sources: []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32"), netip.MustParsePrefix("2001:db8::/48")},
		Trunks: []bulkhead.Trunk{
			{Name: "carrier", Host: "192.0.2.7", Port: 5060},
			{Name: "paid", Host: "sip.example.net", Port: 5080, Username: "acme", Password: "p w+d%", Realm: "example.net"},
		},
		Numbers: []bulkhead.Number{{Number: "4930123", User: "1001"}},
		Codecs:  []string{"PCMU", "PCMA", "opus"},
	}
	acme.Users[1].Voicemail, acme.Users[2].Devices = true, 2
	return bulkhead.State{
		Revision: 7,
		Cells:    map[bulkhead.CellID]*bulkhead.Cell{"c1": {ID: "c1"}, "c2": {ID: "c2"}},
		Pools: map[bulkhead.PoolID]*bulkhead.Pool{
			"p1": {ID: "p1", Cell: "c1", Profile: "standard"}, "p2": {ID: "p2", Cell: "c2", Profile: "standard"},
		},
		Nodes: map[bulkhead.NodeID]*bulkhead.Node{
			"ast1": {ID: "ast1", Pool: "p1", Kind: bulkhead.Asterisk, SIP: "10.0.0.1:5060"},
			"ast2": {ID: "ast2", Pool: "p2", Kind: bulkhead.Asterisk, SIP: "10.0.0.2:5060"},
		},
		SBCs: map[bulkhead.SBCID]*bulkhead.SBC{"sbc1": {ID: "sbc1", Cell: "c1", SIP: "10.0.0.9:5060"}},
		Tenants: map[bulkhead.TenantID]*bulkhead.Tenant{
			"acme":   acme,
			"globex": {ID: "globex", Cell: "c1", Profile: "standard", Domains: []string{"globex.example"}, Users: users()[:2]},
			"other":  {ID: "other", Cell: "c2", Profile: "standard", Domains: []string{"other.example"}, Users: users()[:1]},
		},
	}
}

// TestCapturedRequests answers what a real Asterisk asked, as it asked it and
// with the names that objects have here, and compares with what was answered
// before. BULKHEAD_UPDATE=1 writes the file anew.
func TestCapturedRequests(t *testing.T) {
	requests, err := os.ReadFile("testdata/realtime/requests.txt")
	if err != nil {
		t.Fatal(err)
	}
	x := route.New(testState())
	var b bytes.Buffer
	for line := range strings.Lines(string(requests)) {
		line = strings.TrimRight(line, "\n")
		_, rest, _ := strings.Cut(line, " ")
		url, body, _ := strings.Cut(rest, " ")
		path, _, _ := strings.Cut(url, "?")
		answer, sum := AnswerRealtime(x, "ast1", testTime, path, []byte(body), nil)
		again, _ := AnswerRealtime(x, "ast1", testTime, path, []byte(body), nil)
		if !bytes.Equal(answer, again) {
			t.Errorf("%s was answered twice, and differently", line)
		}
		fmt.Fprintf(&b, "> %s\n%s< %s\n", line, answer, sum.Outcome)
	}
	const golden = "testdata/realtime/answers.txt"
	if os.Getenv("BULKHEAD_UPDATE") == "1" {
		if err := os.WriteFile(golden, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, b.Bytes()) {
		t.Errorf("the answers are not those of %s:\n%s", golden, b.Bytes())
	}
}

func ask(x *route.Snapshot, node bulkhead.NodeID, path, body string) string {
	b, _ := AnswerRealtime(x, node, testTime, path, []byte(body), nil)
	return string(b)
}

// TestRealtimeIsPerNode: a node sees its own cell; nobody sees nothing.
func TestRealtimeIsPerNode(t *testing.T) {
	x := route.New(testState())
	for path, body := range map[string]string{
		"ps_endpoints/single": "id=1001%40acme.example", "ps_auths/single": "id=1001%40acme.example", "ps_aors/single": "id=1001%40acme.example",
		"ps_domain_aliases/single": "id=acme.test", "ps_endpoint_id_ips/single": "id=acme.source",
		"ps_endpoints/multi": "id%20LIKE=%25", "ps_auths/multi": "id%20LIKE=%25", "ps_endpoint_id_ips/multi": "id%20LIKE=%25",
		"voicemail/single": "mailbox=1002&context=acme",
	} {
		if got := ask(x, "ast1", path, body); !strings.Contains(got, "acme") || strings.Contains(got, "other") {
			t.Errorf("ast1 %s: %q", path, got)
		}
		if got := ask(x, "ast2", path, body); strings.Contains(got, "acme") {
			t.Errorf("ast2 sees the other cell: %s %q", path, got)
		}
		for _, stranger := range []bulkhead.NodeID{"", "ast3"} {
			if got := ask(x, stranger, path, body); got != "" {
				t.Errorf("%q is answered: %s %q", stranger, path, got)
			}
		}
	}
	if got := ask(nil, "ast1", "ps_endpoints/single", "id=1001%40acme.example"); got != "" {
		t.Errorf("no snapshot, but %q", got)
	}
}

// TestRealtimeNames: a name that is not in a family has no row there, and a
// carrier's password arrives as it is.
func TestRealtimeNames(t *testing.T) {
	x := route.New(testState())
	for _, id := range []string{"1001", "1001%40acme.test", "1001%40globex", "acme.trunk.none", "acme.trunk.", ".source", "globex.source", "_sbc.sbc2", "1009%40acme.example", "1001%40acme.example%26x"} {
		for _, family := range []string{"ps_endpoints", "ps_auths", "ps_aors", "ps_endpoint_id_ips"} {
			if got := ask(x, "ast1", family+"/single", "id="+id); got != "" {
				t.Errorf("%s %s: %q", family, id, got)
			}
		}
	}
	if got := ask(x, "ast1", "ps_auths/single", "id=acme.trunk.paid"); got != "id=acme.trunk.paid&auth_type=userpass&username=acme&password=p%20w%2Bd%25&realm=example.net\n" {
		t.Errorf("a carrier's credentials: %q", got)
	}
	if got := ask(x, "ast1", "ps_endpoints/single", "id=1001%40acme.example&context=other"); got != "" {
		t.Errorf("a second condition is not looked at: %q", got)
	}
}

// TestUnmanagedHasNoObjects: a tenant that Bulkhead does not decide for has no objects here.
func TestUnmanagedHasNoObjects(t *testing.T) {
	s, no := testState(), false
	s.Tenants["acme"].Managed = &no
	if got := ask(route.New(s), "ast1", "ps_endpoints/multi", "id%20LIKE=%25"); strings.Contains(got, "acme") {
		t.Errorf("an unmanaged tenant: %q", got)
	}
}

func TestLike(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"%", "", true}, {"%", "abc", true}, {"", "", true}, {"", "a", false}, {"a%", "abc", true}, {"%c", "abc", true},
		{"a_c", "abc", true}, {"a_c", "ac", false}, {`\_%`, "_X.", true}, {`\_%`, "1X.", false}, {`a\%`, "a%", true}, {`a\%`, "ab", false},
		{"%a%b%c", "xxaxxbxxc", true}, {"%a%b%c", "xxaxxbxx", false}, {`\`, `\`, true}, {"%%%%%%%%%%%%a", strings.Repeat("b", 200), false},
	} {
		if got := like(c.pattern, c.s); got != c.want {
			t.Errorf("%q LIKE %q is %v", c.s, c.pattern, got)
		}
	}
}

// TestBoundedRows: an unscoped question has an answer of bounded size.
func TestBoundedRows(t *testing.T) {
	s := testState()
	var many []bulkhead.User
	for i := range maxRows + 10 {
		many = append(many, bulkhead.User{Extension: fmt.Sprint(100000 + i), HA1: testHA1})
	}
	s.Tenants["acme"].Users = many
	got, sum := AnswerRealtime(route.New(s), "ast1", testTime, "ps_endpoints/multi", []byte("id%20LIKE=%25"), nil)
	if n := bytes.Count(got, []byte("\n")); n > maxRows || len(got) > maxRealtime+4096 || sum.Outcome != "cut" {
		t.Errorf("%d rows, %d bytes, %s", n, len(got), sum.Outcome)
	}
}

// TestRandomRequests: whatever comes, there is an answer that Asterisk can read.
func TestRandomRequests(t *testing.T) {
	x := route.New(testState())
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"ps_endpoints", "ps_auths", "extensions", "voicemail", "single", "multi", "update", "id", "=", "&", "%", "%20LIKE=", "%25", "_", `\`, "1001%40acme.example", "\r\n", "+", ",", "\x00", "\xff", "context=acme", "exten=1001", "priority=1", "endpoint=1001%40acme.example", "${SHELL(id)}"}
	for range 10_000 {
		var path, body strings.Builder
		for range r.IntN(4) {
			path.WriteString(words[r.IntN(len(words))] + "/")
		}
		for range r.IntN(12) {
			if r.IntN(4) == 0 {
				body.WriteByte(byte(r.IntN(256)))
			} else {
				body.WriteString(words[r.IntN(len(words))])
			}
		}
		got, _ := AnswerRealtime(x, "ast1", testTime, path.String(), []byte(body.String()), nil)
		readable(t, got)
		got, _ = AnswerCall(x, "ast1", []byte(body.String()), testTime, nil)
		readable(t, got)
	}
}

// readable fails for an answer with anything in it that is not a name, an
// encoded value or a separator.
func readable(t *testing.T, answer []byte) {
	t.Helper()
	for _, c := range answer {
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("-_.~%=&\n", c) >= 0 {
			continue
		}
		t.Fatalf("%q has a character that Asterisk may read in another way", answer)
	}
}

func FuzzRealtime(f *testing.F) {
	f.Add("ps_endpoints/single", "id=1001%40acme.example")
	f.Add("ps_endpoints/multi", "id%20LIKE=%25")
	f.Add("extensions/multi", "exten%20LIKE=%5C_%25&priority=1&context=acme")
	f.Add("demo/update", "&plan=iron")
	x := route.New(testState())
	f.Fuzz(func(t *testing.T, path, body string) {
		got, _ := AnswerRealtime(x, "ast1", testTime, path, []byte(body), nil)
		readable(t, got)
	})
}

func FuzzCall(f *testing.F) {
	f.Add("exten=102&endpoint=1001%40acme.example&from=1001&transfer=&callid=x&source=127.0.0.1%3A5060&tenant=&user=")
	f.Add("exten=4930123&endpoint=carrier&from=%2C%26")
	x := route.New(testState())
	f.Fuzz(func(t *testing.T, body string) {
		got, _ := AnswerCall(x, "ast1", []byte(body), testTime, nil)
		readable(t, got)
	})
}
