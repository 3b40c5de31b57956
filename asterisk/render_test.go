package asterisk

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

func user(extension string) route.DialUser {
	return route.DialUser{Extension: extension, Realm: "acme.example"}
}

func carrier(name, callerID string) route.DialTrunk {
	return route.DialTrunk{Trunk: name, Host: "192.0.2.7", Port: 5060, Number: "4930123", CallerID: callerID}
}

// plans are one of each kind.
var plans = []struct {
	name string
	plan route.Plan
}{
	{"user", route.Plan{Actions: []route.Action{route.Dial{Legs: []route.Leg{user("101")}}}}},
	{"user with branches", route.Plan{Actions: []route.Action{route.Dial{
		Legs: []route.Leg{user("101")}, Timeout: 20,
		Busy:      []route.Action{route.Dial{Legs: []route.Leg{user("102")}, Timeout: 30, Otherwise: []route.Action{route.Voicemail{Box: "102", Realm: "acme.example"}}}},
		NoAnswer:  []route.Action{route.Play{File: "acme/later.wav"}, route.Reject{Status: 480, Cause: 18}},
		Otherwise: []route.Action{route.Voicemail{Box: "101", Realm: "acme.example"}},
	}}}},
	{"group", route.Plan{Actions: []route.Action{route.Dial{Legs: []route.Leg{user("101"), user("102"), carrier("first", "49301")}, Timeout: 25}}}},
	{"sequential group", route.Plan{Actions: []route.Action{route.Dial{
		Legs: []route.Leg{user("101"), user("102")}, Sequential: true, Timeout: 5, Otherwise: []route.Action{route.Play{File: "closed"}},
	}}}},
	{"failover by cause", route.Plan{
		Outbound: true, MaxDuration: 3600, Record: true, Tap: true,
		Headers: []bulkhead.HeaderRule{{Action: bulkhead.AddHeader, Name: "X-Account", Value: "a b:1"}, {Action: bulkhead.RemoveHeader, Name: "Subject"}},
		Actions: []route.Action{route.Dial{Legs: []route.Leg{carrier("first", "49301"), carrier("second", "49302")}, Sequential: true, Causes: []int{34, 38, 41}}},
	}},
	{"anonymous", route.Plan{Actions: []route.Action{route.Dial{Legs: []route.Leg{route.DialTrunk{Trunk: "v6", Host: "2001:db8::1", Port: 5061, Number: "112", Anonymous: true}}}}}},
	{"emergency", route.Plan{Emergency: true, Actions: []route.Action{route.Dial{Legs: []route.Leg{carrier("first", "")}}}}},
	{"by way of the SBC", route.Plan{SBC: "sbc1", Codecs: []string{"PCMA", "opus"}, CallerID: route.CallerID{Number: "101", Name: `A"li,ce & Ö`}, Actions: []route.Action{
		route.Dial{Legs: []route.Leg{route.DialUser{Extension: "102", Realm: "acme.example", SBC: "10.0.0.9:5060"}}}}}},
	{"announcement", route.Plan{Actions: []route.Action{route.Play{File: "acme/closed.wav"}}}},
	{"voicemail", route.Plan{Actions: []route.Action{route.Voicemail{Box: "101", Realm: "acme.example"}}}},
	{"context", route.Plan{Actions: []route.Action{route.Handover{Kind: bulkhead.HandoverContext, Value: "from-old", Number: "4930123"}}}},
	{"queue", route.Plan{Actions: []route.Action{route.Handover{Kind: bulkhead.HandoverQueue, Value: "support"}}}},
	{"ivr", route.Plan{Actions: []route.Action{route.Handover{Kind: bulkhead.HandoverIVR, Value: "menu"}}}},
	{"conference", route.Plan{Actions: []route.Action{route.Handover{Kind: bulkhead.HandoverConference, Value: "room1"}}}},
	{"reject", route.Plan{Actions: []route.Action{route.UnknownNumber}}},
}

// TestRenderedPlans compares every kind of plan with what was written before.
// BULKHEAD_UPDATE=1 writes the file anew.
func TestRenderedPlans(t *testing.T) {
	var b bytes.Buffer
	for _, p := range plans {
		p.plan.Tenant, p.plan.Revision, p.plan.Managed = "acme", 7, true
		answer, outcome, _ := renderPlan(nil, p.plan, bulkhead.Limits{Calls: 10})
		readable(t, answer)
		fmt.Fprintf(&b, "# %s: %s\n%s", p.name, outcome, answer)
	}
	const golden = "testdata/realtime/plans.txt"
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
		t.Errorf("the plans are not those of %s:\n%s", golden, b.Bytes())
	}
}

// hostile is text that SIP or a tenant may bring along.
var hostile = []string{
	"500&PJSIP/itsp/1416", "${SHELL(id)}", "$[1+1]", "1,2", "1|2", "a\r\nb", "a\nSet: x", "%", "_%", "1' OR '1'='1", `\`, `"`, "<x>", "a b",
	"../../etc/passwd", "/etc/passwd", "a//b", "sip:x@y", "{}", "`id`", "a;b", "a=b", "\x00", "\xff\xfe", "é", "(x)", "[x]", "!", "~", "^", "#include x", "",
	strings.Repeat("9", 300),
}

// TestHostilePlans: what should never have got past State.Validate is answered
// with a rejection, not written.
func TestHostilePlans(t *testing.T) {
	for _, h := range hostile {
		if h == "" {
			continue
		}
		one := func(a route.Action) route.Plan {
			return route.Plan{Tenant: "acme", Managed: true, Actions: []route.Action{a}}
		}
		leg := func(l route.Leg) route.Plan { return one(route.Dial{Legs: []route.Leg{l}}) }
		list := []route.Plan{
			{Tenant: bulkhead.TenantID(h), Actions: []route.Action{route.UnknownNumber}},
			leg(route.DialUser{Extension: h, Realm: "acme.example"}),
			leg(route.DialUser{Extension: "1", Realm: h}),
			leg(route.DialTrunk{Trunk: h, Host: "a.example", Port: 1, Number: "1"}),
			leg(route.DialTrunk{Trunk: "a", Host: h, Port: 1, Number: "1"}),
			leg(route.DialTrunk{Trunk: "a", Host: "a.example", Port: 1, Number: h}),
			leg(route.DialTrunk{Trunk: "a", Host: "a.example", Port: 1, Number: "1", CallerID: h}),
			one(route.Play{File: h}), one(route.Voicemail{Box: h}), one(route.Handover{Kind: bulkhead.HandoverQueue, Value: h}),
			one(route.Handover{Kind: bulkhead.HandoverKind(h), Value: "x"}),
			{Tenant: "acme", Headers: []bulkhead.HeaderRule{{Action: bulkhead.AddHeader, Name: h, Value: "1"}}, Actions: []route.Action{route.UnknownNumber}},
		}
		for i, p := range list {
			answer, _, _ := renderPlan(nil, p, bulkhead.Limits{})
			readable(t, answer)
			values, err := url.ParseQuery(strings.TrimSpace(string(answer)))
			if err != nil {
				t.Errorf("%q, plan %d: %v", h, i, err)
			}
			for name, v := range values {
				// A name that happens to be allowed is written as it is.
				if v[0] == h && !only(h, 300, "-_/.+~@:") || strings.ContainsAny(v[0], "${}[]|,;\r\n\"`\\<>()") {
					t.Errorf("%q got into %s of plan %d: %q", h, name, i, answer)
				}
			}
		}
	}
	for _, p := range []route.Plan{{}, {Actions: []route.Action{nil}}, {Actions: []route.Action{route.Dial{}}}, {Actions: []route.Action{route.Reject{Status: 200}}}} {
		if answer, outcome, _ := renderPlan(nil, p, bulkhead.Limits{}); outcome != "reject" {
			t.Errorf("%+v is answered %q", p, answer)
		}
	}
}

// TestHostileCalls: nothing of what a caller wrote is in an answer.
func TestHostileCalls(t *testing.T) {
	x := route.New(testState())
	for _, h := range hostile {
		for _, field := range []string{"exten", "endpoint", "from", "callid", "source", "transfer", "tenant", "user", "xtenant", "xuser"} {
			q := url.Values{"endpoint": {"1001@acme.example"}, "exten": {"1002"}, "from": {"1001"}}
			q.Set(field, h)
			body := strings.ReplaceAll(q.Encode(), "+", "%20")
			answer, _ := AnswerCall(x, "ast1", []byte(body), time.Unix(1e9, 0), nil)
			readable(t, answer)
			if len(h) > 3 && bytes.Contains(answer, appendEscaped(nil, h)) {
				t.Errorf("%s %q is in the answer %q", field, h, answer)
			}
		}
	}
}

// TestWhoCalls: who a call is from is told by the endpoint; everything else
// that claims to be somebody is not believed.
func TestWhoCalls(t *testing.T) {
	s := testState()
	s.Nodes["ast1"].Unmanaged = bulkhead.DeferUnmanaged
	x := route.New(s)
	for _, c := range []struct {
		name, body, tenant, outcome string
	}{
		{"a user", "endpoint=1001%40acme.example&exten=1002", "acme", "dial"},
		{"the same extension elsewhere", "endpoint=1001%40globex.example&exten=1002", "globex", "dial"},
		{"a source", "endpoint=acme.source&exten=4930123", "acme", "dial"},
		{"a source that wants out", "endpoint=acme.source&exten=12125550123", "acme", "reject"},
		{"an SBC", "endpoint=_sbc.sbc1&exten=1002&xtenant=acme&xuser=1001", "acme", "dial"},
		{"an SBC that says nothing", "endpoint=_sbc.sbc1&exten=1002", "", "defer"},
		{"a phone with an SBC's headers", "endpoint=1001%40globex.example&exten=1003&xtenant=acme&xuser=1001", "globex", "reject"},
		{"a phone with the variables of an own endpoint", "endpoint=1001%40globex.example&exten=1003&tenant=acme&user=1001", "globex", "reject"},
		{"an endpoint of the operator's", "endpoint=desk&exten=1002&tenant=acme&user=1001", "acme", "dial"},
		{"a carrier of the operator's", "endpoint=carrier&exten=%2B4930123", "acme", "dial"},
		{"a carrier of the operator's, for somebody else", "endpoint=carrier&exten=4930999", "", "defer"},
		{"a tenant of another cell", "endpoint=1001%40other.example&exten=1001", "", "defer"},
		{"nobody", "exten=1001", "", "defer"},
	} {
		_, sum := AnswerCall(x, "ast1", []byte(c.body), time.Unix(1e9, 0), nil)
		if string(sum.Tenant) != c.tenant || sum.Outcome != c.outcome {
			t.Errorf("%s: tenant %q, %s; not %q, %s", c.name, sum.Tenant, sum.Outcome, c.tenant, c.outcome)
		}
	}
	for _, node := range []bulkhead.NodeID{"", "ast3"} {
		if answer, sum := AnswerCall(x, node, []byte("endpoint=1001%40acme.example&exten=1002"), time.Unix(1e9, 0), nil); string(answer) != "denied\n" || sum.Outcome != "denied" {
			t.Errorf("node %q is answered %q", node, answer)
		}
	}
	// A call that was transferred goes to numbers inside only.
	_, sum := AnswerCall(x, "ast1", []byte("endpoint=1001%40acme.example&exten=12125550123&transfer=yes"), time.Unix(1e9, 0), nil)
	if sum.Outcome != "reject" {
		t.Errorf("a transfer to a paid number: %s", sum.Outcome)
	}
}
