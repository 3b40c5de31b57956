package freeswitch

import (
	"fmt"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// hostile is what a caller or a careless operator may write. Each is tried
// alone, before and behind an innocent value.
var hostile = []string{
	"${expr(40+2)}", "$${secret_global}", "$${", "${", "%{x}", "{a=b}", "[a=b]", "<![CDATA[", "]]>", "<?xml?>", "<include>", "</include>",
	`<X-PRE-PROCESS cmd="exec" data="touch /tmp/x"/>`, "<!--#exec data-->", "<!-- ", "\"/><action application=\"system\" data=\"x", "' or '1", "&amp;", "&#36;{",
	"\r\n", "\n", "\x00", "\x01", "\t", "a b", ";fs_path=sip:evil.example", ";transport=tcp", ",loopback/1", "|error/user_busy", ":_:x", "^^:", "\\n", "../..",
	"500&PJSIP/itsp/1416", "group/x@y", "\xff\xfe", "J\xf6rg", "ü", "\u202e", "１２３", "+", "", "*", "#", "@evil.example", "sip:x@y",
}

func variants() []string {
	var out []string
	for _, h := range hostile {
		out = append(out, h, "1000"+h, h+"1000")
	}
	return out
}

// TestHostileRequests: whatever stands in a field, the answer keeps its form.
func TestHostileRequests(t *testing.T) {
	x := snapshot(t, "10.0.1.9:5060")
	for _, field := range []string{
		"Hunt-Destination-Number", "Hunt-Context", "Unique-ID", "Call-Direction", "variable_sip_call_id", "variable_sip_network_ip", "variable_sip_network_port",
		"variable_sip_h_X-Bulkhead-Tenant", "variable_sip_h_X-Bulkhead-User", "variable_sip_h_X-Bulkhead-SBC", "variable_bulkhead_tenant", "Caller-Caller-ID-Name",
	} {
		for _, h := range variants() {
			b, _ := Answer(x, "fs1", testTime, dialplanRequest(map[string]string{field: h}), nil)
			wellFormed(t, b)
			parse(t, b)
		}
	}
	for _, h := range variants() {
		for _, body := range []string{
			"hostname=vm&section=directory&tag_name=domain&key_name=name&key_value=%s&user=1001&domain=tenant1.example",
			"hostname=%s&section=directory&tag_name=domain&key_name=name&key_value=tenant1.example&user=1001",
			"hostname=vm&section=directory&tag_name=domain&key_name=name&key_value=tenant1.example&user=%s",
			"hostname=vm&section=%s&tag_name=domain",
		} {
			b, _ := Answer(x, "fs1", testTime, fmt.Appendf(nil, body, h), nil)
			wellFormed(t, b)
		}
	}
}

func plain(l route.Leg) []route.Action { return []route.Action{route.Dial{Legs: []route.Leg{l}}} }

// TestHostilePlans: a plan that should never have got past State.Validate is
// answered with a rejection, not rendered.
func TestHostilePlans(t *testing.T) {
	for _, h := range variants() {
		id := bulkhead.TenantID(h)
		plans := []route.Plan{
			{Tenant: id, Pool: bulkhead.PoolID(h), SBC: bulkhead.SBCID(h), Cell: bulkhead.CellID(h), Actions: []route.Action{route.UnknownNumber}},
			{Actions: plain(route.DialUser{Extension: h, Realm: "a.example", SBC: "10.0.0.1:5060"})},
			{Actions: plain(route.DialUser{Extension: "1", Realm: h, SBC: "10.0.0.1:5060"})},
			{Actions: plain(route.DialUser{Extension: "1", Realm: "a.example", SBC: h})},
			{Actions: plain(route.DialTrunk{Host: h, Port: 5060, Number: "1"})},
			{Actions: plain(route.DialTrunk{Host: "a.example", Port: 5060, Number: h})},
			{Actions: plain(route.DialTrunk{Host: "a.example", Port: 5060, Number: "1", CallerID: h})},
			{Actions: []route.Action{route.Reject{Status: 404, Reason: h}}},
			{Actions: []route.Action{route.Reject{Status: 200}}},
			{Codecs: []string{h}, Actions: plain(route.DialUser{Extension: "1", Realm: "a.example", SBC: "10.0.0.1:5060"})},
			{Actions: nil},
			{Actions: []route.Action{nil}},
		}
		for _, p := range plans {
			b, _ := RenderDialplan(nil, &Request{Context: h}, bulkhead.NodeID(h), p)
			wellFormed(t, b)
			parse(t, b)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	for _, file := range requests(f) {
		f.Add(requestBody(f, file))
	}
	f.Add(dialplanRequest(nil))
	f.Add(dialplanRequest(map[string]string{"Hunt-Destination-Number": "4930123", "variable_sip_h_X-Bulkhead-User": "1001"}))
	f.Add([]byte("hostname=vm&section=directory&tag_name=domain&key_name=name&key_value=tenant1.example&user=1001&domain=tenant1.example"))
	x := snapshot(f, "10.0.1.9:5060")
	f.Fuzz(func(t *testing.T, body []byte) {
		b, sum := Answer(x, "fs1", testTime, body, nil)
		wellFormed(t, b)
		if sum.Section == SectionDialplan {
			parse(t, b)
		}
	})
}

// FuzzRender fuzzes the strings of a plan.
func FuzzRender(f *testing.F) {
	f.Add("bulkhead", "acme", "1001", "tenant1.example", "10.0.1.9:5060", "15550001", "PCMU")
	f.Add("bulkhead", "acme", "1001", "::1", "[2001:db8::1]:5060", "15550001", "PCMU")
	for _, h := range hostile {
		f.Add(h, h, h, h, h, h, h)
	}
	f.Fuzz(func(t *testing.T, context, id, number, host, sbc, callerID, codec string) {
		for _, leg := range []route.Leg{
			route.DialUser{Extension: number, Realm: host, SBC: sbc},
			route.DialTrunk{Host: host, Port: 5060, Number: number, CallerID: callerID},
		} {
			b, _ := RenderDialplan(nil, &Request{Context: context}, bulkhead.NodeID(id), route.Plan{
				Tenant: bulkhead.TenantID(id), Codecs: []string{codec}, Actions: plain(leg),
			})
			wellFormed(t, b)
			parse(t, b)
		}
		b := renderUser(nil, directoryUser{domain: "a.example", realm: host, tenant: "acme", sbc: sbc, user: &bulkhead.User{Extension: "1", HA1: ha1, CallerID: callerID}})
		wellFormed(t, b)
	})
}

func BenchmarkAnswer(b *testing.B) {
	body := fromSBC(requestBody(b, "testdata/xml_curl/dialplan-bridge.txt"), "")
	x := snapshot(b, "127.0.0.1:5265")
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst, _ = Answer(x, "fs1", testTime, body, dst[:0])
	}
}
