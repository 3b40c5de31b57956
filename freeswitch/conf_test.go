package freeswitch

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
)

func goodParams() Params {
	return Params{
		Node: "fs1", Token: "t0ken&more", URLs: []string{"http://127.0.0.1:8080/freeswitch/xml", "http://10.0.0.5:8080/freeswitch/xml?a=1&b=2"},
		SIP: "10.0.1.1:5080", SBCs: []string{"10.0.1.9:5060", "10.0.1.10:5060"}, ESL: "127.0.0.1:8021", ESLPassword: "esl-s3cret",
		CDRURLs: []string{"http://127.0.0.1:8090/freeswitch/cdr"}, CDRErrDir: "/var/lib/freeswitch/json_cdr",
	}
}

// params collects name and value of every param and node of a document, and
// fails if it is no XML.
func params(t *testing.T, text []byte) (out []string) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(text))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("no XML: %v\n%s", err, text)
		}
		if e, ok := tok.(xml.StartElement); ok {
			var values []string
			for _, a := range e.Attr {
				values = append(values, a.Value)
			}
			out = append(out, e.Name.Local+" "+strings.Join(values, "="))
		}
	}
}

func TestRenderConf(t *testing.T) {
	files, err := RenderConf(goodParams())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"autoload_configs/xml_curl.conf.xml": {
			"param gateway-url=http://127.0.0.1:8080/freeswitch/xml=dialplan|directory|configuration",
			"param gateway-url=http://10.0.0.5:8080/freeswitch/xml?a=1&b=2=dialplan|directory|configuration",
			"param gateway-credentials=fs1:t0ken&more", "param timeout=1", "param enable-post-var=variable_sip_h_X-Bulkhead-Tenant",
		},
		"autoload_configs/event_socket.conf.xml": {"param listen-ip=127.0.0.1", "param listen-port=8021", "param password=esl-s3cret"},
		"autoload_configs/acl.conf.xml":          {"list bulkhead_sbc=deny", "node allow=10.0.1.9/32", "node allow=10.0.1.10/32"},
		jsonCDRConf: {
			"param url=http://127.0.0.1:8090/freeswitch/cdr", "param cred=fs1:t0ken&more", "param timeout=2", "param retries=0",
			"param encode=false", "param encode-values=true", "param log-errors-to-disk=true", "param err-log-dir=/var/lib/freeswitch/json_cdr",
			"param log-b-leg=true",
		},
		"dialplan/bulkhead_curl.xml": {"context bulkhead_curl", "action respond=503 Service Unavailable", "action multiset=${curl_response_data}=true"},
		"dialplan/bulkhead.xml":      {"context bulkhead", "action respond=503 Service Unavailable"},
		"sip_profiles/internal.xml":  {"profile internal", "param sip-ip=10.0.1.1", "param sip-port=5080", "param context=bulkhead", "param apply-inbound-acl=bulkhead_sbc"},
	}
	for _, f := range files {
		got := params(t, f.Text)
		for _, w := range want[f.Path] {
			if !slices.Contains(got, w) {
				t.Errorf("%s: no %q in %q", f.Path, w, got)
			}
		}
		if bytes.Contains(f.Text, []byte("$$")) || f.Path != "dialplan/bulkhead_curl.xml" && bytes.Contains(f.Text, []byte("$")) || bytes.Contains(f.Text, []byte("{{")) || bytes.Contains(f.Text, []byte("<?")) {
			t.Errorf("%s holds what the pre-processor would act on:\n%s", f.Path, f.Text)
		}
		delete(want, f.Path)
	}
	for path := range want {
		t.Errorf("no file %s", path)
	}
}

// TestJSONCDRLosesNothing holds the choice that the file explains (captures:
// cdr/failures): no queue, which a shutdown would drop, and one bounded try
// before the file.
func TestJSONCDRLosesNothing(t *testing.T) {
	files, err := RenderConf(goodParams())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(files, func(f ConfFile) bool { return f.Path == jsonCDRConf })
	if i < 0 {
		t.Fatal("no " + jsonCDRConf)
	}
	for _, p := range params(t, files[i].Text) {
		name, _, _ := strings.Cut(strings.TrimPrefix(p, "param "), "=")
		if name == "queue-capacity" || name == "log-dir" {
			t.Errorf("%s is set", name)
		}
	}
	for _, word := range []string{"chooses to block", "queue-capacity", "SIGKILL"} {
		if !bytes.Contains(files[i].Text, []byte(word)) {
			t.Errorf("the file does not explain %q", word)
		}
	}
	p := goodParams()
	p.CDRURLs = nil
	if files, err = RenderConf(p); err != nil || slices.ContainsFunc(files, func(f ConfFile) bool { return f.Path == jsonCDRConf }) {
		t.Errorf("without a URL the module is configured: %v", err)
	}
}

func TestParamsRefused(t *testing.T) {
	for name, change := range map[string]func(*Params){
		"node": func(p *Params) { p.Node = "a b" }, "token": func(p *Params) { p.Token = "$${x}" }, "colon": func(p *Params) { p.Token = "a:b" },
		"no token": func(p *Params) { p.Token = "" }, "esl password": func(p *Params) { p.ESLPassword = "a\nb" },
		"default password": func(p *Params) { p.ESLPassword = "ClueCon" }, "no url": func(p *Params) { p.URLs = nil },
		"url": func(p *Params) { p.URLs = []string{"ftp://x"} }, "url with password": func(p *Params) { p.URLs = []string{"http://a:b@c/"} },
		"sip": func(p *Params) { p.SIP = "x" }, "esl": func(p *Params) { p.ESL = "node1:8021" }, "no sbc": func(p *Params) { p.SBCs = nil },
		"sbc": func(p *Params) { p.SBCs = []string{"10.0.0.1"} }, "bridge": func(p *Params) { p.Bridges = []string{"x"} },
		"cdr url": func(p *Params) { p.CDRURLs = []string{"http://a/b?c=d"} }, "cdr folder": func(p *Params) { p.CDRErrDir = "json_cdr" },
	} {
		p := goodParams()
		change(&p)
		if _, err := RenderConf(p); !errors.Is(err, bulkhead.Invalid) && !errors.Is(err, bulkhead.Denied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRequestFields: the fields that the configuration asks for are exactly
// those that the request reader knows, so that nothing is missed on a real
// switch that the full captured requests have.
func TestRequestFields(t *testing.T) {
	var r Request
	seen := map[*string]bool{}
	for _, f := range append(requestFields(), "hostname", "section", "tag_name", "key_name", "key_value") {
		slot := r.slot([]byte(f))
		if slot == nil || seen[slot] {
			t.Errorf("field %s is not read, or named twice", f)
		}
		seen[slot] = true
	}
	if n := reflect.TypeFor[Request]().NumField() - 2; n != len(seen) { // without Called and At
		t.Errorf("a request has %d fields, %d are asked for", n, len(seen))
	}
	x := snapshot(t, "127.0.0.1:5265")
	full := fromSBC(requestBody(t, "testdata/xml_curl/dialplan-bridge.txt"), "")
	var cut []string
	for i, f := range strings.Split(string(full), "&") {
		name, _, _ := strings.Cut(f, "=")
		if i < fixedFields || slices.Contains(requestFields(), name) {
			cut = append(cut, f)
		}
	}
	want, _ := Answer(x, "fs1", testTime, full, nil)
	if got, _ := Answer(x, "fs1", testTime, []byte(strings.Join(cut, "&")), nil); !bytes.Equal(want, got) {
		t.Errorf("the answer differs when only the fields that are asked for are sent:\n%s", got)
	}
}
