package freeswitch

import (
	"bytes"
	"encoding/xml"
	"strconv"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// The channel variables that a dialplan answer sets. All but varStatus are
// exported, so that the B leg has them too and its CDR names the tenant.
const (
	varTenant   = "bulkhead_tenant"
	varPool     = "bulkhead_pool"
	varNode     = "bulkhead_node"
	varSBC      = "bulkhead_sbc"
	varRevision = "bulkhead_revision"
	varCell     = "bulkhead_cell"
	// varStatus is the SIP status of a rejection. FreeSWITCH keeps no trace of
	// the code that `respond` sent, and 403 cannot be told from 603 by its cause.
	varStatus = "bulkhead_status"
)

// unrenderable is the answer when a plan holds a string that is not on the
// allow-list for its kind. State.Validate does not let such a string in, so it
// means that the configuration got in by another way.
var unrenderable = route.Reject{Status: 503, Cause: 41, Reason: "unrenderable plan"}

// A document has no XML declaration: FreeSWITCH's pre-processor drops every
// line that holds one, and with it whatever else is on that line.
const (
	documentHead = "<document type=\"freeswitch/xml\">\n"
	documentTail = "</document>\n"
)

// RenderNotFound appends the result "not found". FreeSWITCH then asks its next
// binding and at last its static configuration, so it is no way to reject a call.
func RenderNotFound(dst []byte) []byte {
	return append(dst, documentHead+
		"  <section name=\"result\">\n    <result status=\"not found\"/>\n  </section>\n"+documentTail...)
}

// RenderDialplan appends the answer to a dialplan request: the context that was
// asked for, one extension that always matches, and the plan's actions. A
// context name that is not on the allow-list is answered as the context
// "global", which FreeSWITCH takes for any. The returned Reject is what the
// document rejects the call with, nil if it does not.
func RenderDialplan(dst []byte, req *Request, node bulkhead.NodeID, plan route.Plan) ([]byte, *route.Reject) {
	context := req.Context
	if !isContext(context) {
		context = "global"
	}
	start := len(dst)
	dst = append(dst, documentHead...)
	dst = append(dst, "  <section name=\"dialplan\">\n    <context name=\""...)
	dst = append(dst, context...)
	dst = append(dst, "\">\n      <extension name=\"bulkhead\">\n"+
		"        <condition field=\"destination_number\" expression=\"^.*$\">\n"...)
	dst = exports(dst, node, plan)
	body := len(dst)
	var reject *route.Reject
	for _, a := range plan.Actions {
		var ok bool
		if dst, reject, ok = renderAction(dst, plan, a); !ok {
			dst = dst[:body]
			dst, reject = respond(dst, unrenderable)
			break
		}
	}
	if len(plan.Actions) == 0 || len(dst) == body || len(dst)-start > maxAnswer {
		dst = dst[:body]
		dst, reject = respond(dst, unrenderable)
	}
	dst = append(dst, "        </condition>\n      </extension>\n    </context>\n  </section>\n"+documentTail...)
	return dst, reject
}

// maxAnswer bounds an answer. FreeSWITCH takes up to 1 MiB (response-max-bytes).
const maxAnswer = 32 << 10

// RenderReject appends an answer that rejects the call of a dialplan request.
func RenderReject(dst []byte, req *Request, node bulkhead.NodeID, r route.Reject) []byte {
	dst, _ = RenderDialplan(dst, req, node, route.Plan{Actions: []route.Action{r}})
	return dst
}

// exports appends what the channel and the legs it places are to carry. What
// is not known or has not the form of an id is left out.
func exports(dst []byte, node bulkhead.NodeID, p route.Plan) []byte {
	for _, v := range [...]struct{ name, value string }{
		{varTenant, string(p.Tenant)},
		{varPool, string(p.Pool)},
		{varNode, string(node)},
		{varSBC, string(p.SBC)},
		{varCell, string(p.Cell)},
	} {
		if isID(v.value) {
			dst = action(dst, "export", v.name, "=", v.value)
		}
	}
	return action(dst, "export", varRevision, "=", strconv.FormatUint(uint64(p.Revision), 10))
}

// renderAction appends one action of a plan; ok is false if it cannot be rendered.
func renderAction(dst []byte, p route.Plan, a route.Action) (_ []byte, _ *route.Reject, ok bool) {
	switch a := a.(type) {
	case route.Dial:
		// One leg and nothing after it is all that there are words for here.
		if len(a.Legs) != 1 || len(a.Busy)+len(a.NoAnswer)+len(a.Unavailable)+len(a.Otherwise) > 0 {
			return dst, nil, false
		}
		dst, ok = renderLeg(dst, p, a.Legs[0])
		return dst, nil, ok
	case route.Reject:
		dst, r := respond(dst, a)
		return dst, r, true
	}
	return dst, nil, false
}

// renderLeg appends the bridge to a leg; ok is false if it cannot be rendered.
func renderLeg(dst []byte, p route.Plan, l route.Leg) (_ []byte, ok bool) {
	switch a := l.(type) {
	case route.DialUser:
		if !isToken(a.Extension) || !isHost(a.Realm) || !isAddrPort(a.SBC) {
			return dst, false
		}
		if dst, ok = bridging(dst, p.Codecs); !ok {
			return dst, false
		}
		return action(dst, "bridge", "sofia/internal/", a.Extension, "@", a.Realm, ";fs_path=sip:", a.SBC), true
	case route.DialTrunk:
		host, fine := hostPort(a.Host, a.Port)
		if !fine || a.Gateway || a.Anonymous || !isDigits(a.Number) || (a.CallerID != "" && !isDigits(a.CallerID)) {
			return dst, false
		}
		if dst, ok = bridging(dst, p.Codecs); !ok {
			return dst, false
		}
		vars := ""
		if a.CallerID != "" {
			vars = "{origination_caller_id_number=" + a.CallerID + "}"
		}
		return action(dst, "bridge", vars, "sofia/internal/", a.Number, "@", host), true
	}
	return dst, false
}

// bridging appends what has to be set before a bridge. The SBC's headers must
// not travel on to phones and carriers, where sofia would copy them.
func bridging(dst []byte, codecs []string) ([]byte, bool) {
	dst = action(dst, "set", "sip_copy_custom_headers=false")
	dst = action(dst, "set", "hangup_after_bridge=true")
	if len(codecs) == 0 {
		return dst, true
	}
	list := ""
	for i, c := range codecs {
		if !only(c, 32, "") {
			return dst, false
		}
		if i > 0 {
			list += ","
		}
		list += c
	}
	return action(dst, "export", "absolute_codec_string=", list), true
}

// respond appends the rejection of a call and returns what it came to.
func respond(dst []byte, r route.Reject) ([]byte, *route.Reject) {
	if r.Status < 400 || r.Status > 699 {
		r = unrenderable
	}
	code := strconv.Itoa(r.Status)
	dst = action(dst, "set", varStatus, "=", code)
	return action(dst, "respond", code, " ", phrase(r.Status)), &r
}

// phrase is the reason phrase of a final SIP status (RFC 3261 section 21).
func phrase(status int) string {
	switch status {
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 408:
		return "Request Timeout"
	case 480:
		return "Temporarily Unavailable"
	case 484:
		return "Address Incomplete"
	case 486:
		return "Busy Here"
	case 488:
		return "Not Acceptable Here"
	case 500:
		return "Server Internal Error"
	case 503:
		return "Service Unavailable"
	case 600:
		return "Busy Everywhere"
	case 603:
		return "Decline"
	case 604:
		return "Does Not Exist Anywhere"
	}
	return "Rejected"
}

// action appends one action. The parts of its data are fixed text or have
// passed an allow-list; they are escaped all the same.
func action(dst []byte, application string, data ...string) []byte {
	dst = append(dst, "          <action application=\""...)
	dst = append(dst, application...)
	dst = append(dst, "\" data=\""...)
	for _, d := range data {
		dst = escape(dst, d)
	}
	return append(dst, "\"/>\n"...)
}

// escape appends s as the text of an XML attribute.
func escape(dst []byte, s string) []byte {
	for i := range len(s) {
		switch s[i] {
		case '<', '>', '&', '"', '\'', '\r', '\n', '\t':
			var b bytes.Buffer
			_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
			return append(dst, b.Bytes()...)
		}
	}
	return append(dst, s...)
}

// renderDomain appends a domain without users.
func renderDomain(dst []byte, domain string) []byte {
	dst = append(dst, documentHead+"  <section name=\"directory\">\n    <domain name=\""...)
	dst = escape(dst, domain)
	return append(dst, "\"/>\n  </section>\n"+documentTail...)
}

// directoryUser is a user as the directory shows him.
type directoryUser struct {
	domain string // as it was asked for
	realm  string
	tenant bulkhead.TenantID
	user   *bulkhead.User
	sbc    string // ip:port, or empty
}

// renderUser appends a domain with one user. All strings have passed an
// allow-list except the caller id, which is left out if it is no number.
func renderUser(dst []byte, d directoryUser) []byte {
	dst = append(dst, documentHead+"  <section name=\"directory\">\n    <domain name=\""...)
	dst = escape(dst, d.domain)
	dst = append(dst, "\">\n      <groups><group name=\"default\"><users>\n        <user id=\""...)
	dst = escape(dst, d.user.Extension)
	dst = append(dst, "\">\n          <params>\n"...)
	dst = element(dst, "param", "a1-hash", d.user.HA1)
	if isAddrPort(d.sbc) && isHost(d.realm) {
		dst = element(dst, "param", "dial-string", "sofia/internal/"+d.user.Extension+"@"+d.realm+";fs_path=sip:"+d.sbc)
	}
	dst = append(dst, "          </params>\n          <variables>\n"...)
	dst = element(dst, "variable", "user_context", "bulkhead")
	dst = element(dst, "variable", varTenant, string(d.tenant))
	if isDigits(d.user.CallerID) {
		dst = element(dst, "variable", "effective_caller_id_number", d.user.CallerID)
	}
	return append(dst, "          </variables>\n        </user>\n      </users></group></groups>\n    </domain>\n  </section>\n"+documentTail...)
}

// element appends a name-value element.
func element(dst []byte, tag, name, value string) []byte {
	dst = append(dst, "            <"...)
	dst = append(dst, tag...)
	dst = append(dst, " name=\""...)
	dst = append(dst, name...)
	dst = append(dst, "\" value=\""...)
	dst = escape(dst, value)
	return append(dst, "\"/>\n"...)
}
