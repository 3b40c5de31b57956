package freeswitch

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// traps are what a FreeSWITCH does that a service behind mod_xml_curl and
// mod_curl falls into, by their numbers in the README of the captures. Where
// another test holds one too, it is named.
var traps = []struct {
	number int
	name   string
	test   func(t *testing.T)
}{
	{1, "the first five fields are not url-encoded", trapFixedFields}, // TestParseRequest
	{2, "Hunt-* decides, never Caller-*", trapHunt},                   // TestDialplan
	{3, "the caller's number is what the caller wrote", trapAssertedIdentity},
	{4, "a configuration request is five fields", trapConfigurationRequest},
	{5, "directory requests differ in action and purpose", trapDirectoryRequests},       // TestDirectory
	{6, "each request has a connection of its own", trapBoundedRequest},                 // freeswitchtest TestOneConnectionForEachRequest
	{7, "enable-post-var cuts all sections alike", trapPostVars},                        // TestRequestFields
	{8, "without an answer the static dialplan decides", trapStaticDialplan},            // TestRenderConf
	{9, "not found is no rejection", trapNotFound},                                      // TestDialplan
	{10, "an answer for another context is final", trapContext},                         //
	{11, "answers run through a pre-processor and are expanded", trapPreProcessor},      // TestHostilePlans, bulkhead TestHostileTexts
	{12, "there is no timeout but the one that is set, in whole seconds", trapTimeout},  //
	{13, "on an error the whole request goes to the log", trapLogged},                   //
	{14, "a call that was given up is still asked about to the end", trapCancelled},     // freeswitchtest TestCancelDuringTheFetch
	{15, "one slow REGISTER delays all others", trapRegister},                           // configsvc TestAFloodIsItsTenantsOwn
	{16, "the directory cache's key has no separators", trapCacheKey},                   //
	{17, "mod_curl splits at spaces and decodes POST data once more", trapCurlEncoding}, // TestCurlFieldTwice
	{18, "a mod_curl answer is split and expanded", trapCurlAnswer},                     // TestCurlHostile
	{19, "mod_curl has no timeout unless the channel has one", trapCurlTimeout},         //
}

func TestTraps(t *testing.T) {
	for i, trap := range traps {
		if trap.number != i+1 {
			t.Errorf("trap %d stands at %d", trap.number, i+1)
		}
		t.Run(fmt.Sprintf("%d %s", trap.number, trap.name), trap.test)
	}
}

func confFile(t *testing.T, path string) []byte {
	t.Helper()
	files, err := RenderConf(goodParams())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(files, func(f ConfFile) bool { return f.Path == path })
	if i < 0 {
		t.Fatalf("there is no %s", path)
	}
	return files[i].Text
}

func lastStep(t *testing.T, b []byte) string {
	t.Helper()
	wellFormed(t, b)
	doc := parse(t, b)
	last := doc.Actions[len(doc.Actions)-1]
	return last.Application + " " + last.Data
}

func trapFixedFields(t *testing.T) {
	r, err := ParseRequest([]byte("hostname=a%41&section=directory&tag_name=domain&key_name=name&key_value=x%2Ey&user=%31"))
	if err != nil || r.Hostname != "a%41" || r.KeyValue != "x%2Ey" || r.User != "1" {
		t.Errorf("%+v %v", r, err)
	}
	// A caller's text in key_value, with a field of his own behind it.
	for _, body := range []string{
		"hostname=vm&section=directory&tag_name=domain&key_name=name&key_value=x&user=1001&domain=x&user=1002",
		"hostname=vm&section=directory&tag_name=domain&key_name=name&key_value=x&section=configuration",
	} {
		if _, err := ParseRequest([]byte(body)); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%s: %v", body, err)
		}
		if b, _ := Answer(snapshot(t, "10.0.1.9:5060"), "fs1", testTime, []byte(body), nil); !bytes.Equal(b, RenderNotFound(nil)) {
			t.Errorf("%s: %s", body, b)
		}
	}
}

func trapHunt(t *testing.T) {
	body := requestBody(t, "testdata/xml_curl/dialplan-transfer-3-execute_extension.txt")
	r, err := ParseRequest(body)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for f := range strings.SplitSeq(string(body), "&") {
		name, value, _ := strings.Cut(f, "=")
		fields[name], _ = url.QueryUnescape(value)
	}
	if fields["Caller-Destination-Number"] == fields["Hunt-Destination-Number"] {
		t.Fatal("the capture does not tell the two apart")
	}
	if r.Destination != fields["Hunt-Destination-Number"] || r.Context != fields["Hunt-Context"] {
		t.Errorf("destination %q in %q, want the hunted ones", r.Destination, r.Context)
	}
}

func trapAssertedIdentity(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	lone := alone(t, x)
	fields := map[string]string{
		"Hunt-Caller-ID-Number": "1001", "variable_sip_from_user": "4930999", "variable_sip_cid_type": "pid", "variable_sip_req_host": "tenant1.example",
		"Hunt-Destination-Number": "4930123",
	}
	call := func(x *route.Snapshot, more map[string]string) route.Call {
		t.Helper()
		for k, v := range fields {
			if _, ok := more[k]; !ok {
				more[k] = v
			}
		}
		r, err := ParseRequest(dialplanRequest(more))
		if err != nil {
			t.Fatal(err)
		}
		c, err := Call(x, "fs1", &r)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// From an SBC, which strips what it does not trust, it is the number to show.
	if c := call(x, map[string]string{}); c.From != "1001" || c.User != "" {
		t.Errorf("from the SBC: %+v", c)
	}
	// From anybody else not even that, and it proves nothing.
	if c := call(lone, map[string]string{"variable_sip_network_ip": "203.0.113.7"}); c.From != "4930999" || c.User != "" || c.Tenant != "" {
		t.Errorf("from elsewhere: %+v", c)
	}
	// Nor does a header that an SBC would have added.
	if c := call(lone, map[string]string{"variable_sip_network_ip": "203.0.113.7", "variable_sip_h_X-Bulkhead-User": "1001"}); c.User != "" || c.Tenant != "" {
		t.Errorf("with an SBC's header: %+v", c)
	}
}

// alone returns x with a node that also takes calls that no SBC sent.
func alone(t *testing.T, x *route.Snapshot) *route.Snapshot {
	t.Helper()
	s := x.State()
	n := *s.Nodes["fs1"]
	n.Unmanaged, n.Cacheable = bulkhead.DeferUnmanaged, 20
	return route.New(s.Apply(&bulkhead.Change{Nodes: []bulkhead.Node{n}}))
}

func trapConfigurationRequest(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	for name, want := range map[string]string{"acl.conf": "found", "sofia.conf": "found", "db.conf": "not found", "switch.conf": "not found"} {
		body := "hostname=vm&section=configuration&tag_name=configuration&key_name=name&key_value=" + name
		b, sum := Answer(x, "fs1", testTime, []byte(body), nil)
		wellFormed(t, b)
		if sum.Outcome != want {
			t.Errorf("%s: %s, want %s", name, sum.Outcome, want)
		}
	}
}

func trapDirectoryRequests(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	for file, want := range map[string]string{
		"directory-sip_auth-register": `name="a1-hash"`, "directory-user_call": `name="dial-string"`, "directory-user_exists": `<user id=`,
		"directory-domain_exists": `<domain name="tenant1.example"/>`,
	} {
		b, _ := Answer(x, "fs1", testTime, requestBody(t, "testdata/xml_curl/"+file+".txt"), nil)
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("%s: no %s in\n%s", file, want, b)
		}
	}
	gateways := "hostname=vm&section=directory&tag_name=domain&key_name=name&key_value=" + GatewayDomain + "&domain=" + GatewayDomain + "&purpose=gateways"
	if _, sum := Answer(x, "fs1", testTime, []byte(gateways), nil); sum.Outcome != "found" {
		t.Errorf("gateways: %+v", sum)
	}
}

// A connection for each request costs the more, the longer the request is.
func trapBoundedRequest(t *testing.T) {
	if _, err := ParseRequest(make([]byte, maxRequest+1)); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("a request over %d bytes: %v", maxRequest, err)
	}
}

func trapPostVars(t *testing.T) {
	text := string(confFile(t, BindingsFile))
	for _, of := range []string{"Hunt-Destination-Number", "action", "purpose", "user", "key", "sip_auth_method"} { // dialplan and directory
		if !strings.Contains(text, `<param name="enable-post-var" value="`+of+`"/>`) {
			t.Errorf("%s is not asked for", of)
		}
	}
}

func trapStaticDialplan(t *testing.T) {
	text := params(t, confFile(t, "dialplan/bulkhead.xml"))
	if len(text) == 0 || text[len(text)-1] != "action respond=503 Service Unavailable" {
		t.Errorf("the static dialplan ends with %q", text)
	}
}

func trapNotFound(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	for name, body := range map[string][]byte{
		"unknown number": dialplanRequest(map[string]string{"Hunt-Destination-Number": "nowhere"}),
		"stranger":       dialplanRequest(map[string]string{"variable_sip_network_ip": "203.0.113.7"}),
		"malformed":      append(dialplanRequest(nil), "&Hunt-Destination-Number=2"...),
	} {
		b, _ := Answer(x, "fs1", testTime, body, nil)
		if got := lastStep(t, b); !strings.HasPrefix(got, "respond ") {
			t.Errorf("%s: %s", name, got)
		}
	}
	if b, _ := Answer(x, "", testTime, dialplanRequest(nil), nil); !strings.HasPrefix(lastStep(t, b), "respond 503") {
		t.Errorf("wrong token: %s", b)
	}
	// Only the operator's own wish leaves a call to the static configuration.
	b, sum := Answer(alone(t, x), "fs1", testTime, dialplanRequest(map[string]string{"variable_sip_network_ip": "203.0.113.7", "Hunt-Destination-Number": "777"}), nil)
	if !bytes.Equal(b, RenderNotFound(nil)) || sum.Outcome != Deferred {
		t.Errorf("deferred: %+v\n%s", sum, b)
	}
}

func trapContext(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	for asked, want := range map[string]string{"bulkhead": "bulkhead", "public": "public", "a b": "global", "x\"/>": "global", "${x}": "global", "": "global"} {
		b, _ := Answer(x, "fs1", testTime, dialplanRequest(map[string]string{"Hunt-Context": asked}), nil)
		if doc := parse(t, b); doc.Context != want {
			t.Errorf("context %q is answered as %q, want %q", asked, doc.Context, want)
		}
	}
}

// trapPreProcessor: what the switch would run or expand is refused when it is
// written, and again when it is rendered.
func trapPreProcessor(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	for _, code := range []string{
		`<X-PRE-PROCESS cmd="exec" data="touch /tmp/x"/>`, "<!--#exec touch /tmp/x -->", "$${secret}", "${api(system touch /tmp/x)}", "${user_data(x)}", "a\n<include>", "<?xml?>",
	} {
		for field, change := range map[string]func(*bulkhead.Tenant){
			"announcement": func(k *bulkhead.Tenant) { k.Announcements = []bulkhead.Announcement{{Name: "a", File: code}} },
			"header": func(k *bulkhead.Tenant) {
				k.Headers = []bulkhead.HeaderRule{{Action: bulkhead.AddHeader, Name: "X-A", Value: code}}
			},
			"trunk": func(k *bulkhead.Tenant) { k.Trunks[0].Host = code },
			"handover": func(k *bulkhead.Tenant) {
				k.PBX = []bulkhead.Handover{{Name: "a", Kind: bulkhead.HandoverIVR, Value: code}}
			},
			"domain":    func(k *bulkhead.Tenant) { k.Domains = []string{code} },
			"extension": func(k *bulkhead.Tenant) { k.Users[0].Extension = code },
		} {
			s := x.State()
			k := *s.Tenants["acme"]
			k.Trunks, k.Users = slices.Clone(k.Trunks), slices.Clone(k.Users)
			change(&k)
			s = s.Apply(&bulkhead.Change{Tenants: []bulkhead.Tenant{k}})
			if err := s.Validate(); !errors.Is(err, bulkhead.Invalid) {
				t.Errorf("%s takes %q: %v", field, code, err)
			}
			// As if it had got in all the same.
			for number, user := range map[string]string{"1000": "", "4930123": "1001", code: ""} {
				b, _ := Answer(route.New(s), "fs1", testTime, dialplanRequest(map[string]string{"Hunt-Destination-Number": number, "variable_sip_h_X-Bulkhead-User": user}), nil)
				wellFormed(t, b)
				b, _ = AnswerCurl(route.New(s), "fs1", testTime, curlQuery(map[string]string{"dest": number, "h_user": user}), nil)
				multiset(t, b)
			}
		}
	}
	// A line with an XML declaration is dropped whole: no answer has one, and
	// none is one line.
	for _, body := range [][]byte{dialplanRequest(nil), []byte("section=directory"), requestBody(t, "testdata/xml_curl/directory-sip_auth-register.txt")} {
		b, _ := Answer(x, "fs1", testTime, body, nil)
		if bytes.Contains(b, []byte("<?")) || bytes.Count(b, []byte("\n")) < 3 || !bytes.HasPrefix(b, []byte("<document ")) {
			t.Errorf("%s", b)
		}
	}
}

func trapTimeout(t *testing.T) {
	if got := params(t, confFile(t, BindingsFile)); !slices.Contains(got, "param timeout=1") {
		t.Errorf("no timeout of a whole second: %q", got)
	}
}

func trapLogged(t *testing.T) {
	for _, f := range requestFields() {
		if strings.Contains(f, "password") || strings.Contains(f, "response") || strings.Contains(f, "a1") {
			t.Errorf("%s is asked for, and would stand in the log", f)
		}
	}
	if text := string(confFile(t, BindingsFile)); strings.Contains(text, "t0ken&amp;more@") {
		t.Error("the token is in a URL, which is logged")
	}
}

// The answer is made of the request alone: nothing is kept for a call that may
// be gone when it comes.
func trapCancelled(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	first, _ := Answer(x, "fs1", testTime, dialplanRequest(nil), nil)
	again, _ := Answer(x, "fs1", testTime, dialplanRequest(nil), nil)
	if !bytes.Equal(first, again) {
		t.Error("the same question is answered otherwise")
	}
}

func trapRegister(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	for file, want := range map[string]bool{"directory-sip_auth-register": true, "directory-sip_auth-register-unknown-user": true, "directory-sip_auth-invite": false, "directory-user_call": false} {
		if _, sum := Answer(x, "fs1", testTime, requestBody(t, "testdata/xml_curl/"+file+".txt"), nil); sum.Urgent != want {
			t.Errorf("%s: urgent %t", file, sum.Urgent)
		}
	}
}

// trapCacheKey: user a at bc.example and ab at c.example are one to the
// switch's cache, so neither is kept there.
func trapCacheKey(t *testing.T) {
	s := snapshot(t, "10.0.1.9:5060").State()
	k := *s.Tenants["acme"]
	k.Domains = []string{"bc.example"}
	k.Users = []bulkhead.User{{Extension: "a", HA1: ha1}, {Extension: "z", HA1: ha1}}
	k.Numbers = nil
	other := bulkhead.Tenant{ID: "next", Cell: "c1", Profile: "standard", Domains: []string{"c.example"}, Users: []bulkhead.User{{Extension: "ab", HA1: ha1}, {Extension: "y", HA1: ha1}}}
	s = s.Apply(&bulkhead.Change{Tenants: []bulkhead.Tenant{k, other}})
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	x := alone(t, route.New(s))
	for _, c := range []struct {
		user, domain string
		cached       bool
	}{{"a", "bc.example", false}, {"ab", "c.example", false}, {"z", "bc.example", true}, {"y", "c.example", true}} {
		body := fmt.Sprintf("hostname=vm&section=directory&tag_name=domain&key_name=name&key_value=%s&action=sip_auth&key=id&user=%s&domain=%s", c.domain, c.user, c.domain)
		b, sum := Answer(x, "fs1", testTime, []byte(body), nil)
		if sum.Outcome != "found" || bytes.Contains(b, []byte(`cacheable="20000"`)) != c.cached || bytes.Contains(b, []byte("cacheable")) != c.cached {
			t.Errorf("%s@%s: cached %t\n%s", c.user, c.domain, !c.cached, b)
		}
	}
}

func trapCurlEncoding(t *testing.T) {
	for arg := range strings.SplitSeq(curlArguments(), "&") {
		name, value, _ := strings.Cut(arg, "=")
		if name != "context" && (!strings.HasPrefix(value, "${url_encode(") || strings.Contains(arg, " ")) {
			t.Errorf("%s goes out as %s", name, value)
		}
	}
	text := string(confFile(t, "dialplan/bulkhead_curl.xml"))
	if !strings.Contains(text, ` get" inline="true"/>`) || strings.Contains(text, " post ") {
		t.Errorf("it is not asked by GET alone")
	}
	r, err := parseCurl("dest=+4930&caller=a%20b%2Bc")
	if err != nil || r.Destination != "+4930" || r.CallerID != "a b+c" {
		t.Errorf("%+v %v", r, err)
	}
}

func trapCurlAnswer(t *testing.T) {
	b, _ := AnswerCurl(snapshot(t, "10.0.1.9:5060"), "fs1", testTime, curlQuery(nil), nil)
	if vars := multiset(t, b); vars["bulkhead_action"] != "bridge" || bytes.ContainsAny(b, "\\\n{}$") && !bytes.Contains(b, []byte("{sip_route_uri=")) {
		t.Errorf("%s", b)
	}
	if text := confFile(t, "dialplan/bulkhead_curl.xml"); !bytes.Contains(text, []byte(`application="multiset" data="${curl_response_data}"`)) {
		t.Error("the shipped dialplan does not read it by multiset")
	}
}

func trapCurlTimeout(t *testing.T) {
	text := string(confFile(t, "dialplan/bulkhead_curl.xml"))
	asks := strings.Index(text, `application="curl"`)
	for _, name := range []string{"curl_timeout", "curl_connect_timeout"} {
		if i := strings.Index(text, `data="`+name+`=1"`); i < 0 || i > asks {
			t.Errorf("%s is not set before mod_curl asks", name)
		}
	}
}
