package freeswitch

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// curlSlot returns where the value of a field of a question by mod_curl
// belongs, or nil. The fields are query arguments: POST data is url-decoded once
// more on its way, so that "+4930" would arrive as " 4930"
// (captures, mod_curl/3007-post-url_encode-is-decoded-again.txt).
func (r *Request) curlSlot(name string) *string {
	switch name {
	case "dest":
		return &r.Destination
	case "context":
		return &r.Context
	case "uuid":
		return &r.Leg
	case "direction":
		return &r.Direction
	case "call_id":
		return &r.SIPCallID
	case "ip":
		return &r.NetworkIP
	case "port":
		return &r.NetworkPort
	case "h_tenant":
		return &r.HeaderTenant
	case "h_user":
		return &r.HeaderUser
	case "transfer":
		return &r.Transfer
	case "tenant":
		return &r.Tenant
	case "sbc":
		return &r.SBC
	case "dialled":
		return &r.Dialled
	case "time":
		return &r.Time
	case "handover":
		return &r.Handover
	case "own":
		return &r.Own
	case "profile":
		return &r.Profile
	case "host":
		return &r.Host
	case "from":
		return &r.FromUser
	case "caller":
		return &r.CallerID
	case "authorized":
		return &r.Authorized
	case "auth_user":
		return &r.AuthUser
	case "auth_realm":
		return &r.AuthRealm
	case "called":
		return &r.Called
	}
	return nil
}

// parseCurl reads the query of a question by mod_curl into an empty r. It is
// bulkhead.Invalid if a field is there twice with different values: the URL
// holds what a caller sent, and a '&' in it would begin a field of his choice.
func (r *Request) parseCurl(query string, v *values) error {
	r.Section = SectionDialplan
	v.reset()
	err := r.curlFields(query, v)
	v.fill()
	// The call's own destination is another one only while an extension is
	// executed; after a transfer both are the new one.
	if err == nil && r.Called != "" && r.Called != r.Destination {
		r.Application = "execute_extension"
	}
	return err
}

func (r *Request) curlFields(query string, v *values) error {
	for rest := query; rest != ""; {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		name, value, _ := strings.Cut(pair, "=")
		slot := r.curlSlot(name)
		if slot == nil {
			continue
		}
		start, ok := len(v.bytes), true
		if v.bytes, ok = appendDecoded(v.bytes, value); !ok || !v.add(slot, start) {
			return invalidField(name)
		}
	}
	return nil
}

// appendDecoded appends an argument of a URL with its escapes resolved; false
// if one is malformed. A '+' is a plus: url_encode writes %20 for a space.
func appendDecoded(dst []byte, s string) ([]byte, bool) {
	if strings.IndexByte(s, '%') < 0 {
		return append(dst, s...), true
	}
	start := len(dst)
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			dst = append(dst, s[i])
			continue
		}
		if i+2 >= len(s) || unhex(s[i+1]) > 15 || unhex(s[i+2]) > 15 {
			return dst[:start], false
		}
		dst = append(dst, unhex(s[i+1])<<4|unhex(s[i+2]))
		i += 2
	}
	return dst, true
}

func invalidField(name string) error {
	return &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: name, Msg: "is there twice, or is not url-encoded"}
}

// AnswerCurl appends the answer to a question that mod_curl asked by GET: what
// to do now, as "^^;name=value;..." for the application multiset, or, with
// format=json, the whole plan for a script. It is made as Answer's is.
//
// A dialplan cannot run a list, so the answer holds one action: bulkhead_action
// says which, and bulkhead_next what to ask for when it is over and the call is
// still there. A call that is left to the node's own dialplan has the action
// "defer".
func AnswerCurl(x *route.Snapshot, node bulkhead.NodeID, now time.Time, query string, dst []byte) ([]byte, Summary) {
	w := newWork()
	defer w.done()
	format, query := curlFormat(query)
	err := w.req.parseCurl(query, &w.values)
	w.req.At = now
	sum := w.decide(x, node, err)
	start := len(dst)
	var reject *route.Reject
	if format == "json" {
		dst, reject = appendPlanJSON(dst, node, w.plan, sum.Outcome == Deferred)
	} else {
		dst, reject = w.appendMultiset(dst, node, &w.plan, sum.Outcome == Deferred)
	}
	if len(dst)-start > maxAnswer {
		dst, reject = w.appendMultiset(dst[:start], node, &route.Plan{Actions: []route.Action{unrenderable}}, false)
	}
	if reject != nil {
		sum.Outcome, sum.Status, sum.Reason = "reject", reject.Status, reject.Reason
	}
	return dst, sum
}

// curlFormat takes the argument format out of a query.
func curlFormat(query string) (format, rest string) {
	if rest, ok := strings.CutPrefix(query, "format=json&"); ok {
		return "json", rest
	}
	return "", query
}

// appendMultiset appends what to do now as variables.
func (w *work) appendMultiset(dst []byte, node bulkhead.NodeID, plan *route.Plan, deferred bool) ([]byte, *route.Reject) {
	if deferred {
		return append(dst, curlDefer...), nil
	}
	w.script.write(&w.req, node, plan, true)
	return w.script.variables(append(dst, "^^;"...)), w.script.reject
}

// curlDefer leaves a call to the node's own dialplan.
const curlDefer = "^^;bulkhead_action=defer"

// variables appends a script as variables: what it sets, and the one action
// that ends it. Whatever would come after that action is asked for again.
func (s *script) variables(dst []byte) []byte {
	variable := func(name, value string) {
		dst = append(append(append(append(dst, name...), '='), value...), ';')
	}
	last, next := step{"hangup", "", "NORMAL_TEMPORARY_FAILURE"}, ""
steps:
	for i := range s.steps {
		switch st := &s.steps[i]; st.application {
		case "set", "export":
			variable(st.name, st.data)
		case "record_session":
			// Its path is put together by the dialplan: an answer may hold no ${.
			variable("bulkhead_record", "true")
		case "answer": // each application that needs it is preceded by it in the dialplan
		default:
			last = *st
			if i+1 < len(s.steps) && s.steps[i+1].application == "execute_extension" {
				next, _, _ = strings.Cut(strings.Fields(s.steps[i+1].data)[0], lastCause)
			}
			break steps
		}
	}
	variable("bulkhead_action", last.application)
	variable("bulkhead_data", last.data)
	dst = append(append(dst, "bulkhead_next="...), next...)
	separator := ";export_vars="
	for i := range s.steps {
		if s.steps[i].application == "export" {
			dst = append(append(dst, separator...), s.steps[i].name...)
			separator = ","
		}
	}
	return dst
}

// planJSON is a plan as scripts get it.
type planJSON struct {
	Deferred    bool                    `json:"deferred,omitempty"`
	Revision    bulkhead.RevisionNumber `json:"revision"`
	Cell        bulkhead.CellID         `json:"cell,omitempty"`
	SBC         bulkhead.SBCID          `json:"sbc,omitempty"`
	Node        bulkhead.NodeID         `json:"node,omitempty"`
	Tenant      bulkhead.TenantID       `json:"tenant,omitempty"`
	Pool        bulkhead.PoolID         `json:"pool,omitempty"`
	Emergency   bool                    `json:"emergency,omitempty"`
	Outbound    bool                    `json:"outbound,omitempty"`
	Codecs      []string                `json:"codecs,omitempty"`
	MaxDuration int                     `json:"max_duration,omitempty"` // seconds
	Record      bool                    `json:"record,omitempty"`
	Tap         bool                    `json:"tap,omitempty"`
	Headers     []bulkhead.HeaderRule   `json:"headers,omitempty"`
	CallerID    string                  `json:"caller_id,omitempty"`
	CallerName  string                  `json:"caller_name,omitempty"`
	Actions     []actionJSON            `json:"actions"`
}

// actionJSON is one action; Do says which of the fields it has.
type actionJSON struct {
	Do string `json:"do"` // dial, play, voicemail, handover, reject

	Legs        []legJSON    `json:"legs,omitempty"`
	Sequential  bool         `json:"sequential,omitempty"`
	Timeout     int          `json:"timeout,omitempty"` // seconds
	Causes      []int        `json:"causes,omitempty"`
	Busy        []actionJSON `json:"busy,omitempty"`
	NoAnswer    []actionJSON `json:"no_answer,omitempty"`
	Unavailable []actionJSON `json:"unavailable,omitempty"`
	Otherwise   []actionJSON `json:"otherwise,omitempty"`

	File   string `json:"file,omitempty"`
	Box    string `json:"box,omitempty"`
	Realm  string `json:"realm,omitempty"`
	Kind   string `json:"kind,omitempty"`
	Value  string `json:"value,omitempty"`
	Number string `json:"number,omitempty"`
	Status int    `json:"status,omitempty"`
	Cause  int    `json:"cause,omitempty"`
	Reason string `json:"reason,omitempty"`
}

type legJSON struct {
	User      string `json:"user,omitempty"`
	Realm     string `json:"realm,omitempty"`
	SBC       string `json:"sbc,omitempty"` // ip:port
	Trunk     string `json:"trunk,omitempty"`
	Host      string `json:"host,omitempty"`
	Port      uint16 `json:"port,omitempty"`
	Number    string `json:"number,omitempty"`
	CallerID  string `json:"caller_id,omitempty"`
	Anonymous bool   `json:"anonymous,omitempty"`
	Gateway   string `json:"gateway,omitempty"`
	Dial      string `json:"dial"` // the same leg as a dial string with its variables
}

// appendPlanJSON appends a whole plan. Its strings have to pass the same
// allow-lists as in the other words: a script will hand them to the switch.
func appendPlanJSON(dst []byte, node bulkhead.NodeID, p route.Plan, deferred bool) ([]byte, *route.Reject) {
	s := &script{plan: &p, req: &Request{Context: Context, Destination: "0"}, via: true}
	out := planJSON{
		Deferred: deferred, Revision: p.Revision, Cell: p.Cell, SBC: p.SBC, Node: node, Tenant: p.Tenant, Pool: p.Pool,
		Emergency: p.Emergency, Outbound: p.Outbound, Codecs: p.Codecs, MaxDuration: p.MaxDuration, Record: p.Record, Tap: p.Tap,
		Headers: p.Headers, CallerID: p.CallerID.Number, CallerName: displayName(p.CallerID.Name),
	}
	if deferred {
		out.Actions = []actionJSON{}
	} else if ok := len(p.Actions) > 0 && s.begin(node); ok {
		out.Actions, ok = s.json(p.Actions)
		if !ok {
			out.Actions = nil
		}
	}
	if out.Actions == nil {
		out = planJSON{Revision: p.Revision, Node: node}
		out.Actions = []actionJSON{rejectJSON(unrenderable)}
	}
	var reject *route.Reject
	if a := out.Actions; len(a) > 0 && a[0].Do == "reject" {
		reject = &route.Reject{Status: a[0].Status, Cause: a[0].Cause, Reason: a[0].Reason}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(out); err != nil { // there is nothing in it that could not be encoded
		return append(dst, `{"actions":[{"do":"reject","status":503}]}`...), &unrenderable
	}
	return append(dst, b.Bytes()...), reject
}

func rejectJSON(r route.Reject) actionJSON {
	return actionJSON{Do: "reject", Status: r.Status, Cause: r.Cause, Reason: r.Reason}
}

func (s *script) json(list []route.Action) ([]actionJSON, bool) {
	out := make([]actionJSON, 0, len(list))
	for _, a := range list {
		j, ok := s.actionJSON(a)
		if !ok {
			return nil, false
		}
		out = append(out, j)
	}
	return out, true
}

func (s *script) actionJSON(a route.Action) (actionJSON, bool) {
	switch a := a.(type) {
	case route.Dial:
		j := actionJSON{Do: "dial", Sequential: a.Sequential, Timeout: a.Timeout, Causes: a.Causes}
		for _, l := range a.Legs {
			leg, ok := s.legJSON(l)
			if !ok {
				return j, false
			}
			j.Legs = append(j.Legs, leg)
		}
		for _, b := range []struct {
			to   *[]actionJSON
			list []route.Action
		}{{&j.Busy, a.Busy}, {&j.NoAnswer, a.NoAnswer}, {&j.Unavailable, a.Unavailable}, {&j.Otherwise, a.Otherwise}} {
			var ok bool
			if *b.to, ok = s.json(b.list); !ok {
				return j, false
			}
		}
		return j, len(a.Legs) > 0
	case route.Play:
		return actionJSON{Do: "play", File: a.File}, isFile(a.File)
	case route.Voicemail:
		return actionJSON{Do: "voicemail", Box: a.Box, Realm: a.Realm}, isToken(a.Box) && isHost(a.Realm)
	case route.Handover:
		return actionJSON{Do: "handover", Kind: string(a.Kind), Value: a.Value, Number: a.Number},
			isID(string(a.Kind)) && only(a.Value, 64, "-_.@") && (a.Number == "" || isDialled(a.Number))
	case route.Reject:
		if a.Status < 400 || a.Status > 699 {
			a = unrenderable
		}
		return rejectJSON(a), true
	}
	return actionJSON{}, false
}

func (s *script) legJSON(l route.Leg) (legJSON, bool) {
	vars, to, ok := s.leg(l)
	if !ok {
		return legJSON{}, false
	}
	var b strings.Builder
	brackets(&b, '[', vars)
	j := legJSON{Dial: b.String() + to}
	switch a := l.(type) {
	case route.DialUser:
		j.User, j.Realm, j.SBC = a.Extension, a.Realm, a.SBC
	case route.DialTrunk:
		j.Trunk, j.Host, j.Port, j.Number, j.CallerID, j.Anonymous = a.Trunk, a.Host, a.Port, a.Number, a.CallerID, a.Anonymous
		if a.Gateway {
			j.Gateway = gatewayName(s.plan.Tenant, a.Trunk)
		}
	}
	return j, true
}

// curlArguments is the query that the shipped dialplan asks with: each field
// and the channel variable that it is filled from, url-encoded.
func curlArguments() string {
	names := []struct{ field, variable string }{
		{"called", "destination_number"}, {"uuid", "uuid"}, {"direction", "direction"}, {"call_id", "sip_call_id"},
		{"ip", "sip_network_ip"}, {"port", "sip_network_port"}, {"h_tenant", "sip_h_X-Bulkhead-Tenant"}, {"h_user", "sip_h_X-Bulkhead-User"},
		{"transfer", "transfer_source"}, {"tenant", varTenant}, {"sbc", varSBC}, {"dialled", varDialled}, {"time", varTime},
		{"handover", varHandover}, {"own", varContext}, {"profile", "sofia_profile_name"}, {"host", "sip_req_host"},
		{"from", "sip_from_user"}, {"caller", "caller_id_number"}, {"authorized", "sip_authorized"}, {"auth_user", "sip_auth_username"}, {"auth_realm", "sip_auth_realm"},
	}
	args := []string{"dest=${url_encode($1)}", "context=" + curlContext}
	for _, n := range names {
		args = append(args, n.field+"=${url_encode(${"+n.variable+"})}")
	}
	return strings.Join(args, "&")
}

// curlContext is the context of the shipped dialplan that asks by mod_curl.
const curlContext = "bulkhead_curl"

// curlURL is where mod_curl asks the configsvc that mod_xml_curl asks at a URL;
// it takes the name and password of HTTP Basic out of the URL.
func curlURL(xml string, node bulkhead.NodeID, token string) string {
	u, err := url.Parse(xml)
	if err != nil {
		return ""
	}
	u.Path, u.RawQuery, u.User = "/freeswitch/curl", "", url.UserPassword(string(node), token)
	return u.String()
}
