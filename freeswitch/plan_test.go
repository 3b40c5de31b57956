package freeswitch

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

func user(extension string) route.Leg {
	return route.DialUser{Extension: extension, Realm: "tenant1.example", SBC: "10.0.1.9:5060"}
}

func trunk(name string) route.Leg {
	return route.DialTrunk{Trunk: name, Host: name + ".example", Port: 5060, Number: "4930123", CallerID: "15550001"}
}

var voicemail = []route.Action{route.Voicemail{Box: "101", Realm: "tenant1.example"}}

// plans are one of each thing that a plan can say.
var plans = map[string]route.Plan{
	"user":         {Actions: plain(user("101")), CallerID: route.CallerID{Number: "102", Name: "J\u00f6rg ${x} <b>, Jr."}},
	"here":         {Actions: plain(route.DialUser{Extension: "101", Realm: "tenant1.example"})},
	"simultaneous": {Actions: []route.Action{route.Dial{Legs: []route.Leg{user("101"), user("102"), trunk("a")}, Timeout: 20, Otherwise: voicemail}}},
	"sequential":   {Actions: []route.Action{route.Dial{Legs: []route.Leg{user("101"), user("102")}, Sequential: true, Timeout: 15}}},
	"failover":     {Outbound: true, Actions: []route.Action{route.Dial{Legs: []route.Leg{trunk("a"), trunk("b"), trunk("c")}, Sequential: true, Causes: []int{27, 34, 41}}}},
	"failover and more": {Actions: []route.Action{route.Dial{
		Legs: []route.Leg{trunk("a"), trunk("b")}, Sequential: true, Causes: []int{27, 34, 41},
		Busy: []route.Action{route.Play{File: "busy.wav"}},
	}}},
	"forwarding": {Actions: []route.Action{route.Dial{
		Legs: []route.Leg{user("101")}, Timeout: 25,
		Busy:        []route.Action{route.Dial{Legs: []route.Leg{user("102")}, NoAnswer: voicemail}},
		NoAnswer:    voicemail,
		Unavailable: []route.Action{route.Play{File: "closed.wav"}, route.Reject{Status: 480}},
	}}},
	"announcement": {Actions: []route.Action{route.Play{File: "acme/closed.wav"}}},
	"voicemail":    {Actions: voicemail},
	"context":      {Actions: []route.Action{route.Handover{Kind: bulkhead.HandoverContext, Value: "support", Number: "101"}}},
	"queue":        {Actions: []route.Action{route.Handover{Kind: bulkhead.HandoverQueue, Value: "sales@default"}}},
	"ivr":          {Actions: []route.Action{route.Handover{Kind: bulkhead.HandoverIVR, Value: "main"}}},
	"conference":   {Actions: []route.Action{route.Handover{Kind: bulkhead.HandoverConference, Value: "3000@default"}}},
	"everything": {
		MaxDuration: 3600, Record: true, Tap: true, Codecs: []string{"opus", "PCMA"},
		Headers: []bulkhead.HeaderRule{{Action: "add", Name: "X-Account", Value: "a b:1"}, {Action: "remove", Name: "Subject"}, {Action: "replace", Name: "Priority", Value: "urgent"}},
		Actions: []route.Action{route.Dial{Legs: []route.Leg{
			route.DialTrunk{Trunk: "secret", Host: "192.0.2.7", Port: 5060, Number: "4930123", Anonymous: true, Gateway: true},
		}}},
	},
	"reject": {Actions: []route.Action{route.DoNotDisturb}},
}

func testRequest(destination string) *Request {
	return &Request{Context: "bulkhead", Destination: destination, At: testTime, Profile: "external"}
}

// TestPlans: each kind of plan, in the switch's words and as mod_curl gets it.
func TestPlans(t *testing.T) {
	for name, p := range plans {
		t.Run(name, func(t *testing.T) {
			p.Tenant, p.Revision, p.Managed = "acme", 7, true
			if name != "here" {
				p.SBC = "sbc1"
			}
			xml, reject := RenderDialplan(nil, testRequest("101"), "fs1", p)
			if (reject != nil) != (name == "reject") {
				t.Errorf("rejected: %+v", reject)
			}
			wellFormed(t, xml)
			compare(t, filepath.Join("testdata", "plans", strings.ReplaceAll(name, " ", "-")+".xml"), xml)
		})
	}
}

// again is a request by which the switch goes on with a plan.
func again(at, cause string) *Request {
	r := testRequest(askPrefix + at + "." + cause)
	r.Application, r.Dialled = "execute_extension", "101"
	return r
}

func steps(t *testing.T, p route.Plan, r *Request) string {
	t.Helper()
	p.Tenant, p.SBC, p.Managed = "acme", "sbc1", true
	xml, _ := RenderDialplan(nil, r, "fs1", p)
	wellFormed(t, xml)
	var out []string
	for _, a := range parse(t, xml).Actions {
		out = append(out, strings.TrimSpace(a.Application+" "+a.Data))
	}
	return strings.Join(out, "\n")
}

// TestGoesOn: what follows a bridge that failed depends on why it did.
func TestGoesOn(t *testing.T) {
	const next = "set continue_on_fail=true\nbridge {ignore_early_media=ring_ready,origination_caller_id_number=15550001,origination_caller_id_name=15550001}sofia/internal/4930123@b.example:5060\n" +
		"execute_extension bulkhead-0l1." + lastCause + " XML bulkhead"
	for _, c := range []struct{ plan, at, cause, want string }{
		{"forwarding", "0", "USER_BUSY", "set continue_on_fail=true\nbridge {ignore_early_media=ring_ready}sofia/internal/102@tenant1.example;fs_path=sip:10.0.1.9:5060\nexecute_extension bulkhead-0b0." + lastCause + " XML bulkhead"},
		{"forwarding", "0", "CALL_REJECTED", "set continue_on_fail=true\nbridge {ignore_early_media=ring_ready}sofia/internal/102@tenant1.example;fs_path=sip:10.0.1.9:5060\nexecute_extension bulkhead-0b0." + lastCause + " XML bulkhead"},
		{"forwarding", "0", "NO_ANSWER", "answer\nvoicemail default tenant1.example 101"},
		{"forwarding", "0", "NO_USER_RESPONSE", "answer\nplayback closed.wav\nset bulkhead_status=480\nrespond 480 Temporarily Unavailable"},
		{"forwarding", "0", "", "answer\nplayback closed.wav\nset bulkhead_status=480\nrespond 480 Temporarily Unavailable"},
		{"forwarding", "0b0", "NO_ANSWER", "answer\nvoicemail default tenant1.example 101"},
		{"forwarding", "0b0", "USER_BUSY", "hangup USER_BUSY"},
		{"simultaneous", "0", "USER_BUSY", "answer\nvoicemail default tenant1.example 101"},
		{"failover and more", "0l0", "NORMAL_TEMPORARY_FAILURE", next},
		{"failover and more", "0l0", "GATEWAY_DOWN", next},
		{"failover and more", "0l0", "USER_BUSY", "answer\nplayback busy.wav"},
		{"failover and more", "0l0", "UNALLOCATED_NUMBER", "hangup UNALLOCATED_NUMBER"},
		{"failover and more", "0l1", "NORMAL_TEMPORARY_FAILURE", "hangup NORMAL_TEMPORARY_FAILURE"},
	} {
		if got := steps(t, plans[c.plan], again(c.at, c.cause)); got != c.want {
			t.Errorf("%s, %s after %s:\n%s\nwant\n%s", c.plan, c.at, c.cause, got, c.want)
		}
	}
}

// TestNowhere: a place that the plan does not have ends the call; a
// destination of this form that was dialled is a number like any other.
func TestNowhere(t *testing.T) {
	const ended = "set bulkhead_status=480\nrespond 480 Temporarily Unavailable"
	for _, at := range []string{"", "1", "0b1", "0n0", "0x0", "0l0", "0l", "99999", "0b0b0b0", "-1", "0u0", strings.Repeat("0b", 99), "0b0l1"} {
		if got := steps(t, plans["forwarding"], again(at, "USER_BUSY")); got != ended {
			t.Errorf("at %q: %s", at, got)
		}
	}
	for _, cause := range []string{"NO_SUCH_CAUSE", "user_busy", "${x}", "17"} {
		if got := steps(t, plans["forwarding"], again("0", cause)); got != ended {
			t.Errorf("after %q: %s", cause, got)
		}
	}
	for _, dialled := range []func(*Request){
		func(r *Request) { r.Application = "transfer" },
		func(r *Request) { r.Dialled = "" },
	} {
		r := again("0", "NO_ANSWER")
		dialled(r)
		if r.asksAgain() {
			t.Errorf("%+v goes on with a plan", r)
		}
	}
}

// TestAskedAgain: the second answer is made from the first one's number and
// time, whoever asks and whatever the destination is now.
func TestAskedAgain(t *testing.T) {
	r := again("0", "USER_BUSY")
	r.Time = fmt.Sprint(testTime.Add(-time.Minute).Unix())
	if first := r.original(); first.Destination != "101" || !first.At.Equal(testTime.Add(-time.Minute)) {
		t.Errorf("%q at %s", first.Destination, first.At)
	}
	for _, bad := range []string{"", "x", "-5", "0", fmt.Sprint(testTime.Add(-48 * time.Hour).Unix())} {
		r.Time = bad
		if first := r.original(); !first.At.Equal(testTime) {
			t.Errorf("time %q became %s", bad, first.At)
		}
	}
	if !slices.Contains(strings.Split(steps(t, plans["forwarding"], testRequest("101")), "\n"), "set bulkhead_dialled=101") {
		t.Error("the first answer does not leave the number")
	}
}
