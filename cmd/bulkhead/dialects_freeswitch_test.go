package main

import (
	"encoding/xml"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/route"
)

// xmlNames are the fields of mod_curl's question as mod_xml_curl has them.
var xmlNames = map[string]string{
	"dest": "Hunt-Destination-Number", "context": "Hunt-Context", "uuid": "Unique-ID", "direction": "Call-Direction", "call_id": "variable_sip_call_id",
	"ip": "variable_sip_network_ip", "port": "variable_sip_network_port", "h_tenant": "variable_sip_h_X-Bulkhead-Tenant", "h_user": "variable_sip_h_X-Bulkhead-User",
	"transfer": "Hunt-Transfer-Source", "tenant": "variable_bulkhead_tenant", "sbc": "variable_bulkhead_sbc", "dialled": "variable_bulkhead_dialled", "time": "variable_bulkhead_time",
	"host": "variable_sip_req_host", "from": "variable_sip_from_user", "caller": "Hunt-Caller-ID-Number", "authorized": "variable_sip_authorized",
	"auth_user": "variable_sip_auth_username", "auth_realm": "variable_sip_auth_realm",
}

// freeswitchFields is a call as a FreeSWITCH knows it, with the variables that
// earlier answers have set.
func freeswitchFields(a asked, vars map[string]string) map[string]string {
	q := map[string]string{"dest": a.call.Number, "context": "bulkhead", "uuid": "u-1", "direction": "inbound", "call_id": a.call.ID}
	if a.call.SBC != "" {
		q["ip"], q["port"], q["h_tenant"], q["h_user"], q["caller"] = "127.0.0.1", "5060", string(a.call.Tenant), a.call.User, a.from
	} else {
		q["ip"], q["port"], q["host"], q["from"] = a.call.Source.String(), "5060", a.realm, a.from
		if a.call.User != "" {
			q["authorized"], q["auth_user"], q["auth_realm"], q["tenant"] = "true", a.call.User, a.realm, string(a.call.Tenant)
		}
	}
	if a.transferred {
		q["transfer"] = "1:u-1:bl_xfer:1000/bulkhead/XML"
	}
	for name, v := range map[string]string{"tenant": "bulkhead_tenant", "sbc": "bulkhead_sbc", "dialled": "bulkhead_dialled", "time": "bulkhead_time"} {
		if vars[v] != "" {
			q[name] = vars[v]
		}
	}
	return q
}

func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func curlQuery(fields map[string]string) string {
	var pairs []string
	for name, v := range fields {
		pairs = append(pairs, name+"="+escape(v))
	}
	return strings.Join(pairs, "&")
}

func xmlBody(fields map[string]string, again bool) []byte {
	body := "hostname=vm&section=dialplan&tag_name=&key_name=&key_value="
	for name, v := range fields {
		body += "&" + xmlNames[name] + "=" + escape(v)
	}
	if again {
		body += "&variable_current_application=execute_extension"
	}
	return []byte(body)
}

// causeNames are the causes with which a dial fails here.
var causeNames = map[int]string{
	1: "UNALLOCATED_NUMBER", 17: "USER_BUSY", 18: "NO_USER_RESPONSE", 19: "NO_ANSWER", 20: "SUBSCRIBER_ABSENT", 21: "CALL_REJECTED", 34: "NORMAL_CIRCUIT_CONGESTION", 41: "NORMAL_TEMPORARY_FAILURE",
}

// freeswitchCall follows answers as a FreeSWITCH does.
type freeswitchCall struct {
	follower

	t    *rapid.T
	vars map[string]string
}

// run runs one application. It returns what to ask for next, or that the call
// is over.
func (f *freeswitchCall) run(application, data string) (next string, over bool) {
	switch application {
	case "set", "export":
		name, value, _ := strings.Cut(data, "=")
		f.vars[name] = value
	case "record_session":
		f.vars["bulkhead_record"] = "true"
	case "answer":
	case "bridge":
		cause := f.bridge(data)
		if cause == 0 {
			return "", true
		}
		f.vars["originate_failed_cause"] = causeNames[cause]
		if on := f.vars["continue_on_fail"]; on != "true" && !slices.Contains(strings.Split(on, ","), strconv.Itoa(cause)) {
			f.note("over")
			return "", true
		}
	case "execute_extension":
		next, _, _ = strings.Cut(data, " ")
		return strings.ReplaceAll(next, "${originate_failed_cause}", f.vars["originate_failed_cause"]), false
	case "respond":
		code, _, _ := strings.Cut(data, " ")
		f.note("reject %s", code)
		return "", true
	case "hangup":
		f.note("over")
		return "", true
	case "transfer":
		part := strings.Split(data, " ")
		f.note("context %s %s", part[2], part[0])
		return "", true
	case "playback":
		f.note("play %s", strings.TrimSuffix(data, ".wav"))
	case "voicemail":
		f.note("voicemail %s", data[strings.LastIndexByte(data, ' ')+1:])
	case "callcenter":
		f.note("queue %s", data)
	case "ivr", "conference":
		f.note("%s %s", application, data)
	default:
		f.t.Fatalf("application %s %q", application, data)
	}
	return "", false
}

// begun takes what the first answer said of the whole call.
func (f *freeswitchCall) begun() {
	if len(f.Events) > 0 && strings.HasPrefix(f.Events[0], "reject") {
		return
	}
	f.Head = head{
		Tenant: bulkhead.TenantID(f.vars["bulkhead_tenant"]), Record: f.vars["bulkhead_record"] == "true", Tap: f.vars["bulkhead_tap"] == "true",
		Number: f.vars["effective_caller_id_number"], Name: f.vars["effective_caller_id_name"], Codecs: f.vars["absolute_codec_string"],
	}
	_, _ = fmt.Sscanf(f.vars["execute_on_answer"], "sched_hangup +%d", &f.Head.Max) // 0 without one
}

// bridge reads a dial string, and rings.
func (f *freeswitchCall) bridge(data string) (cause int) {
	timeout := 0
	common := map[string]string{}
	if rest, ok := strings.CutPrefix(data, "{"); ok {
		list, to, _ := strings.Cut(rest, "}")
		common, data = pairs(list), to
		timeout, _ = strconv.Atoi(common["originate_timeout"]) // 0 without one
	}
	var legs []string
	for data != "" {
		vars := pairs("")
		if rest, ok := strings.CutPrefix(data, "["); ok {
			list, to, _ := strings.Cut(rest, "]")
			vars, data = pairs(list), to
		}
		var to string
		to, data, _ = strings.Cut(data, ",")
		for name, v := range common {
			vars[name] = v
		}
		legs = append(legs, f.to(to, vars))
	}
	return f.ring(legs, timeout)
}

func pairs(list string) map[string]string {
	vars := map[string]string{}
	for _, p := range strings.Split(list, ",") {
		if name, v, ok := strings.Cut(p, "="); ok {
			vars[name] = v
		}
	}
	return vars
}

func (f *freeswitchCall) to(to string, vars map[string]string) string {
	if user, ok := strings.CutPrefix(to, "user/"); ok {
		return user
	}
	address, via, ok := strings.Cut(to, ";fs_path=")
	if vars["sip_route_uri"] != "" {
		via, ok = vars["sip_route_uri"], true
	}
	if ok {
		if via != "sip:127.0.0.1:5060" {
			f.t.Fatalf("by way of %q", via)
		}
		return strings.TrimPrefix(address, "sofia/internal/") + " by the SBC"
	}
	shows := vars["origination_caller_id_number"]
	if vars["sip_cid_type"] == "none" && vars["sip_h_Privacy"] == "id" {
		shows = "nobody"
	}
	var headers []string
	for _, name := range []string{"X-Account", "Subject"} {
		if v := vars["sip_h_"+name]; v != "" {
			headers = append(headers, name+"="+v)
		}
	}
	if gateway, ok := strings.CutPrefix(address, "sofia/gateway/bulkhead."); ok {
		name, number, _ := strings.Cut(gateway, "/")
		tenant, trunk, _ := strings.Cut(name, ".")
		return trunkLeg(number+" by "+tenant+" "+trunk, shows, headers)
	}
	return trunkLeg(strings.TrimPrefix(address, "sofia/internal/"), shows, headers)
}

// followXML asks as mod_xml_curl does.
func followXML(t *rapid.T, x *route.Snapshot, a asked) decided {
	f := &freeswitchCall{t: t, vars: map[string]string{}, follower: follower{causes: a.causes}}
	destination := a.call.Number
	for n := range 100 {
		fields := freeswitchFields(a, f.vars)
		fields["dest"] = destination
		answer, _ := freeswitch.Answer(x, "fs1", a.call.Time, xmlBody(fields, n > 0), nil)
		var doc struct {
			Section struct {
				Result []struct{} `xml:"result"`
				Action []struct {
					Application string `xml:"application,attr"`
					Data        string `xml:"data,attr"`
				} `xml:"context>extension>condition>action"`
			} `xml:"section"`
		}
		if err := xml.Unmarshal(answer, &doc); err != nil {
			t.Fatalf("%v: %s", err, answer)
		}
		if f.Head.Deferred = len(doc.Section.Result) > 0; f.Head.Deferred {
			return f.decided
		}
		next, over := "", false
		for _, act := range doc.Section.Action {
			if next, over = f.run(act.Application, act.Data); over || next != "" {
				break
			}
		}
		if n == 0 {
			f.begun()
		}
		if next == "" {
			if !over {
				f.note("over")
			}
			return f.decided
		}
		destination = next
	}
	t.Fatalf("it asks for ever: %q", f.Events)
	return f.decided
}

// followCurl asks as the shipped dialplan does by mod_curl.
func followCurl(t *rapid.T, x *route.Snapshot, a asked) decided {
	f := &freeswitchCall{t: t, vars: map[string]string{}, follower: follower{causes: a.causes}}
	destination := a.call.Number
	for n := range 100 {
		fields := freeswitchFields(a, f.vars)
		fields["called"], fields["dest"] = a.call.Number, destination
		answer, _ := freeswitch.AnswerCurl(x, "fs1", a.call.Time, curlQuery(fields), nil)
		rest, ok := strings.CutPrefix(string(answer), "^^;")
		if !ok {
			t.Fatalf("%q", answer)
		}
		for v := range strings.SplitSeq(rest, ";") {
			name, value, _ := strings.Cut(v, "=")
			f.vars[name] = value
		}
		if f.Head.Deferred = f.vars["bulkhead_action"] == "defer"; f.Head.Deferred {
			return f.decided
		}
		_, over := f.run(f.vars["bulkhead_action"], f.vars["bulkhead_data"])
		if n == 0 {
			f.begun()
		}
		if next := f.vars["bulkhead_next"]; !over && next != "" {
			destination = next + f.vars["originate_failed_cause"]
			continue
		}
		if !over {
			f.note("over")
		}
		return f.decided
	}
	t.Fatalf("it asks for ever: %q", f.Events)
	return f.decided
}

// jsonAction is an action as scripts get it.
type jsonAction struct {
	Do                           string
	Legs                         []jsonLeg
	Sequential                   bool
	Timeout                      int
	Causes                       []int
	Busy, Unavailable, Otherwise []jsonAction
	NoAnswer                     []jsonAction `json:"no_answer"`
	File, Box, Realm             string
	Kind, Value, Number          string
	Status, Cause                int
	Reason                       string
}

type jsonLeg struct {
	User, Realm, SBC, Trunk, Host string
	Port                          uint16
	Number, Gateway               string
	CallerID                      string `json:"caller_id"`
	Anonymous                     bool
}

// jsonActions makes actions of it again.
func jsonActions(list []jsonAction) []route.Action {
	var out []route.Action
	for _, j := range list {
		switch j.Do {
		case "dial":
			d := route.Dial{
				Sequential: j.Sequential, Timeout: j.Timeout, Causes: j.Causes,
				Busy: jsonActions(j.Busy), NoAnswer: jsonActions(j.NoAnswer), Unavailable: jsonActions(j.Unavailable), Otherwise: jsonActions(j.Otherwise),
			}
			for _, l := range j.Legs {
				if l.User != "" {
					d.Legs = append(d.Legs, route.DialUser{Extension: l.User, Realm: l.Realm, SBC: l.SBC})
					continue
				}
				d.Legs = append(d.Legs, route.DialTrunk{Trunk: l.Trunk, Host: l.Host, Port: l.Port, Number: l.Number, CallerID: l.CallerID, Anonymous: l.Anonymous, Gateway: l.Gateway != ""})
			}
			out = append(out, d)
		case "play":
			out = append(out, route.Play{File: j.File})
		case "voicemail":
			out = append(out, route.Voicemail{Box: j.Box, Realm: j.Realm})
		case "handover":
			out = append(out, route.Handover{Kind: bulkhead.HandoverKind(j.Kind), Value: j.Value, Number: j.Number})
		case "reject":
			out = append(out, route.Reject{Status: j.Status, Cause: j.Cause, Reason: j.Reason})
		}
	}
	return out
}
