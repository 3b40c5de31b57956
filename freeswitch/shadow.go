package freeswitch

import (
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Decided is what would be done with a call that began, and which it is. Its
// texts may hold any bytes, but for Leg.
type Decided struct {
	Plan              route.Plan
	Leg               string // Unique-ID; empty if it has not the form of one
	SIPCallID, Number string
}

// Decide returns what Answer would do with the call that a mod_xml_curl
// request is about; false if it is about none, about a leg that the switch
// placed, or about a call that was asked about before it was transferred.
func Decide(x *route.Snapshot, node bulkhead.NodeID, now time.Time, body []byte) (Decided, bool) {
	w := newWork()
	defer w.done()
	err := w.req.parse(body, &w.values)
	if w.req.Section != SectionDialplan {
		return Decided{}, false
	}
	return w.decideOnly(x, node, now, err, false)
}

// DecideCurl is Decide for a question by mod_curl.
func DecideCurl(x *route.Snapshot, node bulkhead.NodeID, now time.Time, query string) (Decided, bool) {
	w := newWork()
	defer w.done()
	_, query = curlFormat(query)
	err := w.req.parseCurl(query, &w.values)
	return w.decideOnly(x, node, now, err, true)
}

func (w *work) decideOnly(x *route.Snapshot, node bulkhead.NodeID, now time.Time, err error, via bool) (Decided, bool) {
	req := &w.req
	if x == nil || x.CellOf(node) == "" || req.Direction == "outbound" || req.Transfer != "" || req.EarlierTransfer != "" {
		return Decided{}, false
	}
	req.At = now
	sum := w.decide(x, node, err)
	plan := w.plan
	if len(plan.Actions) == 0 {
		return Decided{}, false // it was handed over before
	}
	if _, ok := plan.Actions[0].(route.Reject); !ok {
		if w.script.write(req, node, &w.plan, via); w.script.reject != nil {
			plan.Actions = []route.Action{*w.script.reject} // it cannot be said in the switch's words
		}
	}
	// Whoever keeps these does not keep the whole request.
	return Decided{Plan: plan, Leg: strings.Clone(sum.Leg), SIPCallID: strings.Clone(req.SIPCallID), Number: strings.Clone(req.Destination)}, true
}

// DeferCurl appends the answer to a question by mod_curl that leaves the call
// to the node's own dialplan.
func DeferCurl(query string, dst []byte) []byte {
	if format, _ := curlFormat(query); format == "json" {
		dst, _ = appendPlanJSON(dst, "", route.Plan{}, true)
		return dst
	}
	return append(dst, curlDefer...)
}
