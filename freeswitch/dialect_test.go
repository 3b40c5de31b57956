package freeswitch

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

var update = flag.Bool("update", false, "rewrite the golden answers")

const ha1 = "0123456789abcdef0123456789abcdef"

// snapshot returns two cells: c1 with the SBC at sbc, the node fs1 and tenant
// acme of domain tenant1.example; c2 with sbc2, fs2 and tenant other.
func snapshot(t testing.TB, sbc string) *route.Snapshot {
	t.Helper()
	s := bulkhead.State{}.Apply(&bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1"}, {ID: "c2"}},
		Pools: []bulkhead.Pool{
			{ID: "p1", Cell: "c1", Profile: "standard"},
			{ID: "p2", Cell: "c2", Profile: "standard"},
		},
		Nodes: []bulkhead.Node{
			{ID: "fs1", Pool: "p1", SIP: "10.0.1.1:5080"},
			{ID: "fs2", Pool: "p2", SIP: "10.0.2.1:5080"},
		},
		SBCs: []bulkhead.SBC{
			{ID: "sbc1", Cell: "c1", SIP: sbc},
			{ID: "sbc2", Cell: "c2", SIP: "10.0.2.9:5060"},
		},
		Tenants: []bulkhead.Tenant{
			{
				ID: "acme", Cell: "c1", Profile: "standard", Domains: []string{"tenant1.example", "alias.example"},
				Numbers: []bulkhead.Number{{Number: "15550001", User: "1001"}, {Number: "1000", User: "1001"}, {Number: "1004", User: "1002"}, {Number: "1005", User: "1001"}},
				Users:   []bulkhead.User{{Extension: "1001", HA1: ha1, CallerID: "15550001"}, {Extension: "1002", HA1: ha1}},
				Trunks:  []bulkhead.Trunk{{Name: "carrier", Host: "192.0.2.50", Port: 5060}},
				Codecs:  []string{"PCMU", "opus"}, Allow: []string{bulkhead.International},
			},
			{
				ID: "other", Cell: "c2", Profile: "standard", Domains: []string{"other.example"},
				Users: []bulkhead.User{{Extension: "1001", HA1: ha1}},
			},
		},
	})
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return route.New(s)
}

// requestBody returns the form of a captured request.
func requestBody(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, b, _ = bytes.Cut(bytes.ReplaceAll(b, []byte("\r"), nil), []byte("\n\n"))
	b, _, _ = bytes.Cut(b, []byte("\n\n===== answered"))
	return b
}

func requests(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/xml_curl/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	return files
}

// fromSBC is a dialplan request as it is when the INVITE came from the SBC.
func fromSBC(body []byte, extra string) []byte {
	return append(bytes.Clone(body), "&variable_sip_h_X-Bulkhead-Tenant=acme&variable_sip_h_X-Bulkhead-SBC=sbc1&variable_sip_h_X-Bulkhead-Revision=1"+extra...)
}

// TestAnswersToCaptures compares the answer to every captured request with
// testdata/answers: as it was captured (*.xml), and dialplan requests also as
// if an SBC had sent the INVITE of a known tenant (*.sbc.xml) and of a known
// user (*.user.xml).
func TestAnswersToCaptures(t *testing.T) {
	for _, file := range requests(t) {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		body := requestBody(t, file)
		req, err := ParseRequest(body)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		golden(t, name, snapshot(t, "10.0.1.9:5060"), body)
		if from := peer(req.NetworkIP, req.NetworkPort); req.Section == SectionDialplan && from.IsValid() {
			x := snapshot(t, from.String())
			golden(t, name+".sbc", x, fromSBC(body, ""))
			golden(t, name+".user", x, fromSBC(body, "&variable_sip_h_X-Bulkhead-User=1001"))
		}
	}
}

func golden(t *testing.T, name string, x *route.Snapshot, body []byte) {
	t.Helper()
	got, _ := Answer(x, "fs1", testTime, body, nil)
	wellFormed(t, got)
	compare(t, filepath.Join("testdata", "answers", name+".xml"), got)
}

// compare holds an answer against its golden file.
func compare(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s: -want +got:\n%s", file, d)
	}
}

// wellFormed checks what must hold for every answer: it is XML, FreeSWITCH's
// pre-processor finds nothing to do in it, and no value is more than the
// allow-lists let through.
func wellFormed(t testing.TB, b []byte) {
	t.Helper()
	b = []byte(ownExpansions.Replace(string(b)))
	for _, bad := range []string{"${", "$$", "<?", "<!", "X-PRE-PROCESS", "<include", "&amp;", "&lt;", "&#", "\r"} {
		if bytes.Contains(b, []byte(bad)) {
			t.Fatalf("answer holds %q:\n%s", bad, b)
		}
	}
	if len(b) > maxAnswer || len(b) == 0 {
		t.Fatalf("answer has %d bytes", len(b))
	}
	d := xml.NewDecoder(bytes.NewReader(b))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("answer is no XML: %v\n%s", err, b)
		}
		if e, ok := tok.(xml.StartElement); ok {
			checkAttributes(t, e, b)
		}
	}
}

// ipv6Reference is an IPv6 address as the host of a SIP URI (RFC 3261 section
// 25.1): the one place for brackets.
var ipv6Reference = regexp.MustCompile(`(@|sip:)\[[0-9A-Fa-f:.]{2,45}\]`)

// dialVariables are the variables of legs in a dial string, each with a value
// of the least form.
var dialVariables = regexp.MustCompile(`[{\[]((origination_caller_id_number|origination_caller_id_name|originate_timeout|ignore_early_media|sip_cid_type|sip_h_[A-Za-z-]+)=[A-Za-z0-9 .:@+/_=-]*,?)+[}\]]`)

// ownExpansions takes out what we have the switch expand itself, and the
// shipped profile's lists.
var ownExpansions = strings.NewReplacer(lastCause, "", recordings, "", thisCall, "", `value="PCMU,PCMA,G722,opus"`, `value=""`)

func checkAttributes(t testing.TB, e xml.StartElement, b []byte) {
	t.Helper()
	for _, a := range e.Attr {
		v := a.Value
		if e.Name.Local == "action" && a.Name.Local == "data" {
			// What stands in the brackets of a dial string.
			v = dialVariables.ReplaceAllString(v, "")
			v = strings.ReplaceAll(v, ";fs_path=sip:", "")
			v = strings.ReplaceAll(v, ",", "")
		}
		if a.Name.Local == "value" {
			v = strings.Replace(v, ";fs_path=sip:", "", 1)
		}
		if a.Name.Local == "expression" {
			continue
		}
		v = ipv6Reference.ReplaceAllString(v, "$1")
		if strings.ContainsAny(v, "$%{}[]<>&|^;,'\"`\\\n\r\t") {
			t.Fatalf("attribute %s=%q:\n%s", a.Name.Local, a.Value, b)
		}
	}
}

func dialplanRequest(fields map[string]string) []byte {
	v := map[string]string{
		"variable_sip_network_ip": "10.0.1.9", "variable_sip_network_port": "5060", "Hunt-Context": "bulkhead",
		"variable_sip_h_X-Bulkhead-Tenant": "acme", "Call-Direction": "inbound", "Hunt-Destination-Number": "1000",
		"Unique-ID": "6581e1a1-9509-4023-b790-54d9a7cc7836",
	}
	for k, s := range fields {
		v[k] = s
	}
	var b strings.Builder
	b.WriteString("hostname=vm&section=dialplan&tag_name=&key_name=&key_value=")
	for k, s := range v {
		b.WriteString("&" + k + "=" + strings.ReplaceAll(url.QueryEscape(s), "+", "%20"))
	}
	return []byte(b.String())
}

func TestDialplan(t *testing.T) {
	const direct = "sofia/internal/1001@tenant1.example;fs_path=sip:10.0.1.9:5060"
	tests := []struct {
		name   string
		node   bulkhead.NodeID
		fields map[string]string
		want   string // of the last action: application and data
		tenant bulkhead.TenantID
	}{
		{"number", "fs1", nil, "bridge " + direct, "acme"},
		{"number with plus", "fs1", map[string]string{"Hunt-Destination-Number": "+1000"}, "bridge " + direct, "acme"},
		{"user", "fs1", map[string]string{"Hunt-Destination-Number": "1001"}, "bridge " + direct, "acme"},
		{"caller with a trunk", "fs1", map[string]string{"Hunt-Destination-Number": "4930123", "variable_sip_h_X-Bulkhead-User": "1001"},
			"bridge {origination_caller_id_number=15550001,origination_caller_id_name=15550001}sofia/internal/4930123@192.0.2.50:5060", "acme"},
		{"caller without a caller id", "fs1", map[string]string{"Hunt-Destination-Number": "4930123", "variable_sip_h_X-Bulkhead-User": "1002"},
			"bridge {origination_caller_id_number=15550001,origination_caller_id_name=15550001}sofia/internal/4930123@192.0.2.50:5060", "acme"},
		{"stranger wants a trunk", "fs1", map[string]string{"Hunt-Destination-Number": "4930123"}, "respond 404 Not Found", "acme"},
		{"transferred caller wants a trunk", "fs1", map[string]string{"Hunt-Destination-Number": "4930123", "variable_sip_h_X-Bulkhead-User": "1001",
			"Hunt-Transfer-Source": "1795398495:f36dc3e8:bl_xfer:2021/tenant1/XML"}, "respond 404 Not Found", "acme"},
		{"user of nobody", "fs1", map[string]string{"Hunt-Destination-Number": "4930123", "variable_sip_h_X-Bulkhead-User": "7777"}, "respond 404 Not Found", "acme"},
		{"Caller-* is not looked at", "fs1", map[string]string{"Caller-Destination-Number": "1001", "Hunt-Destination-Number": "nowhere"}, "respond 404 Not Found", "acme"},
		{"from elsewhere", "fs1", map[string]string{"variable_sip_network_ip": "203.0.113.7"}, "respond 403 Forbidden", ""},
		{"from the SBC's host, another port", "fs1", map[string]string{"variable_sip_network_port": "5061"}, "respond 403 Forbidden", ""},
		{"from a node", "fs1", map[string]string{"variable_sip_network_ip": "10.0.1.1", "variable_sip_network_port": "5080"}, "respond 403 Forbidden", ""},
		{"from the other cell's SBC", "fs1", map[string]string{"variable_sip_network_ip": "10.0.2.9"}, "respond 403 Forbidden", ""},
		// The headers name a tenant of the very cell that the SBC is in, so that
		// nothing but the address is wrong.
		{"from the other cell's SBC, with its own tenant", "fs1", map[string]string{"variable_sip_network_ip": "10.0.2.9",
			"variable_sip_h_X-Bulkhead-Tenant": "other", "variable_sip_h_X-Bulkhead-SBC": "sbc2", "Hunt-Destination-Number": "1001"}, "respond 403 Forbidden", ""},
		{"from elsewhere, with all headers of the SBC", "fs1", map[string]string{"variable_sip_network_ip": "203.0.113.7",
			"variable_sip_h_X-Bulkhead-SBC": "sbc1", "variable_sip_h_X-Bulkhead-User": "1001", "Hunt-Destination-Number": "4930123"}, "respond 403 Forbidden", ""},
		{"tenant of the other cell", "fs1", map[string]string{"variable_sip_h_X-Bulkhead-Tenant": "other"}, "respond 403 Forbidden", ""},
		{"no tenant", "fs1", map[string]string{"variable_sip_h_X-Bulkhead-Tenant": ""}, "respond 403 Forbidden", ""},
		{"variable instead of header", "fs1", map[string]string{"variable_sip_h_X-Bulkhead-Tenant": "", "variable_bulkhead_tenant": "acme", "variable_bulkhead_sbc": "sbc1"}, "respond 403 Forbidden", ""},
		{"unknown node", "fs9", nil, "respond 503 Service Unavailable", ""},
		{"B leg is transferred", "fs1", map[string]string{"Call-Direction": "outbound", "variable_sip_network_ip": "192.0.2.50",
			"variable_bulkhead_tenant": "acme", "variable_bulkhead_sbc": "sbc1", "variable_sip_h_X-Bulkhead-Tenant": "other"}, "bridge " + direct, "acme"},
		{"B leg wants a trunk", "fs1", map[string]string{"Call-Direction": "outbound", "Hunt-Destination-Number": "4930123",
			"variable_bulkhead_tenant": "acme", "variable_bulkhead_sbc": "sbc1", "variable_sip_h_X-Bulkhead-User": "1001"}, "respond 404 Not Found", "acme"},
		{"B leg of nobody", "fs1", map[string]string{"Call-Direction": "outbound"}, "respond 403 Forbidden", ""},
		{"B leg of the other cell", "fs1", map[string]string{"Call-Direction": "outbound", "variable_bulkhead_tenant": "other", "variable_bulkhead_sbc": "sbc2"}, "respond 403 Forbidden", ""},
	}
	x := snapshot(t, "10.0.1.9:5060")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, sum := Answer(x, tt.node, testTime, dialplanRequest(tt.fields), nil)
			wellFormed(t, b)
			doc := parse(t, b)
			last := doc.Actions[len(doc.Actions)-1]
			if got := last.Application + " " + last.Data; got != tt.want {
				t.Errorf("last action %q, want %q", got, tt.want)
			}
			if doc.Context != "bulkhead" {
				t.Errorf("context %q", doc.Context)
			}
			if sum.Tenant != tt.tenant {
				t.Errorf("tenant %q, want %q", sum.Tenant, tt.tenant)
			}
			if got := doc.data("export", "bulkhead_tenant"); got != string(tt.tenant) {
				t.Errorf("exports tenant %q", got)
			}
			if rejected := last.Application == "respond"; rejected != (sum.Outcome == "reject") || (rejected && fmt.Sprint(sum.Status) != doc.data("set", "bulkhead_status")) {
				t.Errorf("summary %+v does not fit", sum)
			}
			if last.Application == "bridge" && (doc.data("set", "sip_copy_custom_headers") != "false" ||
				doc.data("set", "hangup_after_bridge") != "true" || doc.data("export", "absolute_codec_string") != "PCMU,opus") {
				t.Errorf("not set before the bridge: %+v", doc.Actions)
			}
		})
	}
}

// document is the part of an answer that a FreeSWITCH acts on.
type document struct {
	Context string
	Actions []struct {
		Application string `xml:"application,attr"`
		Data        string `xml:"data,attr"`
	}
}

func parse(t testing.TB, b []byte) document {
	t.Helper()
	var d struct {
		Context struct {
			Name      string `xml:"name,attr"`
			Extension []struct {
				Actions []struct {
					Application string `xml:"application,attr"`
					Data        string `xml:"data,attr"`
				} `xml:"condition>action"`
			} `xml:"extension"`
		} `xml:"section>context"`
	}
	if err := xml.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Context.Extension) != 1 || len(d.Context.Extension[0].Actions) == 0 {
		t.Fatalf("not one extension with actions:\n%s", b)
	}
	return document{d.Context.Name, d.Context.Extension[0].Actions}
}

// data returns the value that an application gives to a variable, or "".
func (d document) data(application, name string) string {
	for _, a := range d.Actions {
		if v, ok := strings.CutPrefix(a.Data, name+"="); ok && a.Application == application {
			return v
		}
	}
	return ""
}

func TestDirectory(t *testing.T) {
	const base = "hostname=vm&section=directory&tag_name=domain&key_name=name&key_value="
	tests := []struct {
		name, body, outcome string
	}{
		{"register", base + "tenant1.example&action=sip_auth&key=id&user=1001&domain=tenant1.example", "found"},
		{"alias", base + "alias.example&action=sip_auth&key=id&user=1001&domain=alias.example", "found"},
		{"upper case", base + "Tenant1.Example&user=1001&domain=Tenant1.Example", "found"},
		{"domain alone", base + "tenant1.example&domain=tenant1.example", "found"},
		{"network list", base + "tenant1.example&domain=tenant1.example&purpose=network-list", "found"},
		{"group", base + "tenant1.example&domain=tenant1.example&action=group_call&group=default", "found"},
		{"gateways", base + "tenant1.example&domain=tenant1.example&purpose=gateways", "not found"},
		{"unknown user", base + "tenant1.example&user=9999&domain=tenant1.example", "not found"},
		{"unknown domain", base + "nowhere.example&user=1001&domain=nowhere.example", "not found"},
		{"other cell", base + "other.example&user=1001&domain=other.example", "not found"},
		{"another key", base + "tenant1.example&key=number-alias&user=1001&domain=tenant1.example", "not found"},
		{"two domains", base + "tenant1.example&user=1001&domain=other.example", "not found"},
		{"broken out of the tag", base + "tenant1.example&user=1001&domain=x&user=9999&domain=tenant1.example%26user", "malformed"},
		{"no domain tag", "hostname=vm&section=directory&tag_name=&key_name=&key_value=tenant1.example&user=1001", "not found"},
	}
	x := snapshot(t, "10.0.1.9:5060")
	for _, tt := range tests {
		b, sum := Answer(x, "fs1", testTime, []byte(tt.body), nil)
		wellFormed(t, b)
		if sum.Outcome != tt.outcome {
			t.Errorf("%s: %+v, want %s", tt.name, sum, tt.outcome)
		}
		if hash := bytes.Contains(b, []byte(ha1)); hash != (sum.Outcome == "found" && strings.Contains(tt.body, "user=1001")) {
			t.Errorf("%s: holds the hash: %t", tt.name, hash)
		}
	}
}

func TestWithoutSnapshot(t *testing.T) {
	b, sum := Answer(nil, "fs1", testTime, dialplanRequest(nil), nil)
	if doc := parse(t, b); doc.Actions[len(doc.Actions)-1].Data != "503 Service Unavailable" || sum.Status != 503 {
		t.Errorf("%+v\n%s", sum, b)
	}
	for _, body := range []string{"", "x", "section=directory&tag_name=domain&user=1001", "section=configuration", "section=phrases", strings.Repeat("a=b&", maxRequest)} {
		if b, _ := Answer(nil, "fs1", testTime, []byte(body), nil); !bytes.Equal(b, RenderNotFound(nil)) {
			t.Errorf("%.20q: %s", body, b)
		}
	}
}

func TestParseRequest(t *testing.T) {
	tests := []struct {
		name, in string
		want     Request
		bad      bool
	}{
		{"fixed fields are not encoded", "hostname=a%41&section=dialplan&tag_name=&key_name=&key_value=%20&Hunt-Context=a%41", Request{Hostname: "a%41", Section: "dialplan", KeyValue: "%20", Context: "aA"}, false},
		{"plus is plus", "section=dialplan&a=&b=&c=&d=&Hunt-Destination-Number=+1%2B2", Request{Section: "dialplan", Destination: "+1+2"}, false},
		{"broken escapes", "section=dialplan&a=&b=&c=&d=&Hunt-Context=%&user=%4&key=%zz", Request{Section: "dialplan", Context: "%", User: "%4", Key: "%zz"}, false},
		{"twice alike", "section=dialplan&user=1&user=1", Request{Section: "dialplan", User: "1"}, false},
		{"twice", "section=dialplan&user=1&user=2", Request{Section: "dialplan", User: "1"}, true},
		{"twice, first empty", "section=dialplan&user=&user=2", Request{Section: "dialplan"}, true},
		{"no section", "user=1", Request{User: "1"}, true},
		{"fields without a value", "section=dialplan&&x&=&=y", Request{Section: "dialplan"}, false},
	}
	for _, tt := range tests {
		got, err := ParseRequest([]byte(tt.in))
		if (err != nil) != tt.bad || (err != nil && !errors.Is(err, bulkhead.Invalid)) {
			t.Errorf("%s: error %v", tt.name, err)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: -want +got:\n%s", tt.name, d)
		}
	}
	if _, err := ParseRequest(make([]byte, maxRequest+1)); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("too large: %v", err)
	}
}

// TestFieldsOfCapture checks the request reader against the capture's own
// decoded list of fields.
func TestFieldsOfCapture(t *testing.T) {
	r, err := ParseRequest(requestBody(t, "testdata/xml_curl/dialplan-bridge.txt"))
	if err != nil {
		t.Fatal(err)
	}
	want := Request{
		Hostname: "vm", Section: "dialplan", Destination: "1004", Context: "public", Direction: "inbound",
		Leg: "6581e1a1-9509-4023-b790-54d9a7cc7836", SIPCallID: "1-5347@127.0.0.1", NetworkIP: "127.0.0.1", NetworkPort: "5265",
		Profile: "internal", Host: "127.0.0.1", FromUser: "5550100", CallerID: "+15550100",
	}
	if d := cmp.Diff(want, r); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if got := peer("::ffff:10.0.0.1", "5060"); got != netip.MustParseAddrPort("10.0.0.1:5060") {
		t.Errorf("mapped address: %s", got)
	}
}

// testTime is a Tuesday.
var testTime = time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
