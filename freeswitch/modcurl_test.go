package freeswitch

import (
	"encoding/json"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// multiset reads an answer as the application does: it splits at the delimiter
// behind ^^ and then at the first = (captures, mod_curl/3001-get-multiset.txt).
func multiset(t testing.TB, answer []byte) map[string]string {
	t.Helper()
	rest, ok := strings.CutPrefix(string(answer), "^^;")
	if !ok || len(answer) > maxAnswer {
		t.Fatalf("answer of %d bytes: %.80q", len(answer), answer)
	}
	if strings.ContainsAny(rest, "\r\n\\&<>\"'`") || strings.Contains(rest, "${") {
		t.Fatalf("answer holds what the switch would take for more than text: %q", rest)
	}
	vars := map[string]string{}
	for _, f := range strings.Split(rest, ";") {
		name, value, ok := strings.Cut(f, "=")
		if _, twice := vars[name]; !ok || twice || !only(name, 64, "_-") {
			t.Fatalf("field %q in %q", f, rest)
		}
		vars[name] = value
	}
	return vars
}

func curlQuery(fields map[string]string) string {
	v := map[string]string{"dest": "1000", "context": "bulkhead", "ip": "10.0.1.9", "port": "5060", "h_tenant": "acme", "direction": "inbound"}
	for k, s := range fields {
		v[k] = s
	}
	var b strings.Builder
	for k, s := range v {
		b.WriteString("&" + k + "=" + strings.ReplaceAll(url.QueryEscape(s), "+", "%20"))
	}
	return b.String()[1:]
}

// TestCurlPlans: each kind of plan as variables and as JSON.
func TestCurlPlans(t *testing.T) {
	for name, p := range plans {
		t.Run(name, func(t *testing.T) {
			p.Tenant, p.Revision, p.Managed = "acme", 7, true
			if name != "here" {
				p.SBC = "sbc1"
			}
			text, _ := appendMultiset(nil, testRequest("101"), "fs1", &p, false)
			vars := multiset(t, text)
			if vars["bulkhead_tenant"] != "acme" || vars["bulkhead_action"] == "" || vars["bulkhead_revision"] != "7" {
				t.Errorf("%v", vars)
			}
			compare(t, filepath.Join("testdata", "plans", strings.ReplaceAll(name, " ", "-")+".multiset"), append(text, '\n'))
			doc, _ := appendPlanJSON(nil, "fs1", p, false)
			compare(t, filepath.Join("testdata", "plans", strings.ReplaceAll(name, " ", "-")+".json"), doc)
		})
	}
}

// TestCurlAsksAsXMLDoes: both give the same tenant, pool and action.
func TestCurlAsksAsXMLDoes(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	for _, c := range []struct {
		fields       map[string]string
		action, data string
	}{
		{nil, "bridge", "{sip_route_uri=sip:10.0.1.9:5060}sofia/internal/1001@tenant1.example"},
		{map[string]string{"dest": "+1000"}, "bridge", "{sip_route_uri=sip:10.0.1.9:5060}sofia/internal/1001@tenant1.example"},
		{map[string]string{"h_tenant": "other"}, "respond", "403 Forbidden"},
		{map[string]string{"ip": "203.0.113.7"}, "respond", "403 Forbidden"},
		{map[string]string{"dest": "nowhere"}, "respond", "404 Not Found"},
	} {
		b, sum := AnswerCurl(x, "fs1", testTime, curlQuery(c.fields), nil)
		vars := multiset(t, b)
		if vars["bulkhead_action"] != c.action || vars["bulkhead_data"] != c.data {
			t.Errorf("%v: %s %q (%+v)", c.fields, vars["bulkhead_action"], vars["bulkhead_data"], sum)
		}
		b, _ = AnswerCurl(x, "fs1", testTime, "format=json&"+curlQuery(c.fields), nil)
		var plan planJSON
		if err := json.Unmarshal(b, &plan); err != nil || string(plan.Tenant) != vars["bulkhead_tenant"] || len(plan.Actions) == 0 {
			t.Errorf("%v: %s %v", c.fields, b, err)
		}
	}
}

// A field that is there twice came out of another one's text.
func TestCurlFieldTwice(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	for _, q := range []string{curlQuery(nil) + "&h_tenant=other", curlQuery(nil) + "&dest=%zz", ""} {
		b, sum := AnswerCurl(x, "fs1", testTime, q, nil)
		if vars := multiset(t, b); vars["bulkhead_action"] != "respond" || sum.Outcome != "reject" {
			t.Errorf("%q: %v", q, vars)
		}
	}
	if b, _ := AnswerCurl(x, "", testTime, curlQuery(nil), nil); multiset(t, b)["bulkhead_data"] != "503 Service Unavailable" {
		t.Errorf("nobody: %s", b)
	}
}

func TestCurlHostile(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	for _, field := range curlNames {
		for _, h := range variants() {
			b, _ := AnswerCurl(x, "fs1", testTime, curlQuery(map[string]string{field: h}), nil)
			multiset(t, b)
			b, _ = AnswerCurl(x, "fs1", testTime, "format=json&"+curlQuery(map[string]string{field: h}), nil)
			if !json.Valid(b) {
				t.Fatalf("%s=%q: %s", field, h, b)
			}
		}
	}
	for _, h := range variants() {
		p := route.Plan{Tenant: bulkhead.TenantID(h), SBC: "sbc1", Codecs: []string{"PCMU"}, CallerID: route.CallerID{Name: h},
			Actions: plain(route.DialTrunk{Trunk: h, Host: h, Port: 5060, Number: h})}
		b, _ := appendMultiset(nil, testRequest(h), "fs1", &p, false)
		multiset(t, b)
	}
}

// parseCurl reads a question as AnswerCurl does.
func parseCurl(query string) (Request, error) {
	var r Request
	err := r.parseCurl(query, &values{})
	return r, err
}

// appendMultiset appends a plan as AnswerCurl does.
func appendMultiset(dst []byte, r *Request, node bulkhead.NodeID, p *route.Plan, deferred bool) ([]byte, *route.Reject) {
	w := newWork()
	defer w.done()
	w.req = *r
	return w.appendMultiset(dst, node, p, deferred)
}

func FuzzCurl(f *testing.F) {
	f.Add(curlQuery(nil))
	f.Add("format=json&" + curlQuery(map[string]string{"dest": "+4930", "h_user": "1001"}))
	f.Add("dest=1&dest=2&%")
	x := snapshot(f, "10.0.1.9:5060")
	f.Fuzz(func(t *testing.T, query string) {
		agreeCurl(t, query)
		b, _ := AnswerCurl(x, "fs1", testTime, query, nil)
		if strings.HasPrefix(query, "format=json&") {
			if !json.Valid(b) {
				t.Fatalf("%s", b)
			}
			return
		}
		multiset(t, b)
	})
}

// TestCurlGoesOn: the shipped dialplan's question after a failed bridge, and
// the same destination when somebody dials it.
func TestCurlGoesOn(t *testing.T) {
	q := curlQuery(map[string]string{"dest": "bulkhead-0l0.NORMAL_TEMPORARY_FAILURE", "called": "1000", "dialled": "1000"})
	r, err := parseCurl(q)
	if err != nil || !r.asksAgain() {
		t.Errorf("%+v %v", r, err)
	}
	p := plans["failover"]
	text, _ := appendMultiset(nil, &r, "fs1", &p, false)
	if vars := multiset(t, text); vars["bulkhead_action"] != "bridge" || !strings.Contains(vars["bulkhead_data"], "b.example") || vars["bulkhead_next"] != "bulkhead-0l1." {
		t.Errorf("%v", vars)
	}
	r, err = parseCurl(curlQuery(map[string]string{"dest": "bulkhead-0.NO_ANSWER", "called": "bulkhead-0.NO_ANSWER", "dialled": "1000"}))
	if err != nil || r.asksAgain() {
		t.Errorf("%+v %v", r, err)
	}
	for _, a := range strings.Split(curlArguments(), "&") {
		name, _, _ := strings.Cut(a, "=")
		if new(Request).curlSlot(name) == nil {
			t.Errorf("the shipped dialplan sends %q, which nobody reads", name)
		}
	}
}
