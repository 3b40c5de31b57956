package freeswitch

import (
	"bytes"
	"encoding/xml"

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

	varTap      = "bulkhead_tap"      // true: the media goes to the AI tap too; exported
	varDialled  = "bulkhead_dialled"  // what the plan was made for
	varTime     = "bulkhead_time"     // when, in seconds since 1970
	varHandover = "bulkhead_handover" // the operator's context that the call was handed over to
	varContext  = "bulkhead_context"  // the context that it came from
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
// asked for, one extension that always matches, and the plan's actions, or, if
// the switch asks again, what is left of them. A context name that is not on
// the allow-list is answered as the context "global", which FreeSWITCH takes
// for any. The returned Reject is what the document rejects the call with, nil
// if it does not.
func RenderDialplan(dst []byte, req *Request, node bulkhead.NodeID, plan route.Plan) ([]byte, *route.Reject) {
	w := newWork()
	defer w.done()
	w.plan = plan
	return w.script.document(dst, req, node, &w.plan)
}

// document appends a plan as RenderDialplan does.
func (s *script) document(dst []byte, req *Request, node bulkhead.NodeID, plan *route.Plan) ([]byte, *route.Reject) {
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
	body := len(dst)
	s.write(req, node, plan, false)
	dst = appendSteps(dst, s.steps)
	if len(dst)-start > maxAnswer-len(dialplanTail) {
		s.write(req, node, &route.Plan{Actions: []route.Action{unrenderable}}, false)
		dst = appendSteps(dst[:body], s.steps)
	}
	return append(dst, dialplanTail...), s.reject
}

const dialplanTail = "        </condition>\n      </extension>\n    </context>\n  </section>\n" + documentTail

// write turns a plan, or what is left of it, into the switch's words. What
// cannot be said in them becomes a rejection.
func (s *script) write(req *Request, node bulkhead.NodeID, plan *route.Plan, via bool) {
	*s = script{plan: plan, req: req, via: via, steps: s.steps[:0]}
	ok := len(plan.Actions) > 0
	if ok && req.asksAgain() {
		// A plan of a newer revision may be a rejection now, or another one.
		if !s.goOn(req.Destination) {
			s.steps = s.steps[:0]
			s.respond(gone)
		}
		return
	}
	if ok && s.begin(node) && s.actions(plan.Actions, "") {
		return
	}
	s.steps, s.reject = s.steps[:0], nil
	s.exports(node)
	s.respond(unrenderable)
}

func appendSteps(dst []byte, steps []step) []byte {
	for i := range steps {
		dst = action(dst, &steps[i])
	}
	return dst
}

// maxAnswer bounds an answer. FreeSWITCH takes up to 1 MiB from mod_xml_curl
// (response-max-bytes) and 64,000 bytes from mod_curl (max-bytes).
// State.Validate does not let in what would need more.
const maxAnswer = bulkhead.MaxAnswer

// RenderReject appends an answer that rejects the call of a dialplan request.
func RenderReject(dst []byte, req *Request, node bulkhead.NodeID, r route.Reject) []byte {
	dst, _ = RenderDialplan(dst, req, node, route.Plan{Actions: []route.Action{r}})
	return dst
}

// gone is the answer when what follows is not in the plan any more.
var gone = route.Reject{Status: 480, Cause: 31, Reason: "the plan has changed meanwhile"}

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

// action appends one action. Its data is fixed text or has passed an
// allow-list; it is escaped all the same.
func action(dst []byte, s *step) []byte {
	dst = append(dst, "          <action application=\""...)
	dst = append(dst, s.application...)
	if s.name != "" || s.data != "" {
		dst = append(dst, "\" data=\""...)
		if s.name != "" {
			dst = append(append(dst, s.name...), '=')
		}
		dst = escape(dst, s.data)
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
