package freeswitch

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// UnknownNode is the answer to a node that the snapshot does not have: the SBC
// takes another one.
var UnknownNode = route.Reject{Status: 503, Cause: 41, Reason: "unknown node"}

// Malformed is the answer to a dialplan request that cannot be read.
var Malformed = route.Reject{Status: 503, Cause: 41, Reason: "malformed request"}

// Summary says what an answer was, for logs and metrics. It holds no text that
// came with the call except ids.
type Summary struct {
	Section  string // dialplan, directory, configuration, other
	Outcome  string // user, trunk, announcement, voicemail, handover, deferred, reject, found, not found, malformed
	Tenant   bulkhead.TenantID
	Pool     bulkhead.PoolID
	Revision bulkhead.RevisionNumber
	Status   int    // SIP status of a rejection
	Reason   string // of a rejection, in words
	Leg      string // Unique-ID of the leg, if it has the form of one
	Urgent   bool   // FreeSWITCH asks one such question at a time: a REGISTER
	Err      error  // why the request was refused; nil for an ordinary answer
}

// Answer appends the answer to a mod_xml_curl request of a node to dst. It is
// pure and always appends a valid document: a dialplan request gets a real
// answer, since "not found" would send the call to the switch's static
// configuration, unless the node's operator wants just that for calls that are
// no managed tenant's. Everything else that is not known gets the result "not
// found". A nil snapshot knows no node.
func Answer(x *route.Snapshot, node bulkhead.NodeID, now time.Time, body, dst []byte) ([]byte, Summary) {
	w := newWork()
	defer w.done()
	req := &w.req
	err := req.parse(body, &w.values)
	req.At = now
	switch {
	case req.Section == SectionDialplan:
		return w.answerDialplan(x, node, err, dst)
	case err != nil:
		return RenderNotFound(dst), Summary{Section: "other", Outcome: "malformed", Err: err}
	case req.Section == SectionDirectory:
		return answerDirectory(x, node, req, dst)
	case req.Section == SectionConfiguration:
		return answerConfiguration(x, node, req, dst)
	}
	return RenderNotFound(dst), Summary{Section: "other", Outcome: "not found"}
}

// work is what one answer needs for itself. It is used again for others.
type work struct {
	req    Request
	values values
	plan   route.Plan
	script script
}

var works = sync.Pool{New: func() any { return new(work) }}

func newWork() *work { return works.Get().(*work) } //nolint:forcetypeassert // the pool holds nothing else

// done gives the work back. What is left in it of one call, no other's answer is made of.
func (w *work) done() {
	clear(w.script.steps[:cap(w.script.steps)])
	w.req, w.plan, w.script = Request{}, route.Plan{}, script{steps: w.script.steps[:0]}
	w.values.reset()
	works.Put(w)
}

func (w *work) answerDialplan(x *route.Snapshot, node bulkhead.NodeID, err error, dst []byte) ([]byte, Summary) {
	sum := w.decide(x, node, err)
	if sum.Outcome == Deferred {
		return RenderNotFound(dst), sum
	}
	dst, reject := w.script.document(dst, &w.req, node, &w.plan)
	if reject != nil {
		sum.Outcome, sum.Status, sum.Reason = "reject", reject.Status, reject.Reason
	}
	return dst, sum
}

// Deferred is the outcome of a call that is left to what the node has of its own.
const Deferred = "deferred"

// decide makes the plan for a dialplan request that was read, or refused with
// err. If the outcome is Deferred, the node has to be told that the call is not
// ours.
func (w *work) decide(x *route.Snapshot, node bulkhead.NodeID, err error) Summary {
	plan, req := &w.plan, &w.req
	sum := Summary{Section: SectionDialplan}
	if isUUID(req.Leg) {
		sum.Leg = req.Leg
	}
	switch {
	case err != nil:
		plan.Actions = []route.Action{Malformed}
	case x == nil || x.CellOf(node) == "":
		plan.Actions = []route.Action{UnknownNode}
	case req.Handover != "" && req.Context != req.Own:
		// It was handed over to the operator's dialplan, which goes on by itself.
		sum.Outcome = Deferred
		sum.Tenant, sum.Revision = bulkhead.TenantID(clip(req.Tenant)), x.Revision()
		return sum
	default:
		if req.asksAgain() {
			req = req.original()
		}
		err = ask(x, node, req, plan)
		if !plan.Managed && x.Node(node).Unmanaged == bulkhead.DeferUnmanaged {
			sum.Outcome = Deferred
		}
	}
	if sum.Outcome == "" {
		sum.Outcome = outcome(plan.Actions)
	}
	sum.Err, sum.Tenant, sum.Pool, sum.Revision = err, plan.Tenant, plan.Pool, plan.Revision
	return sum
}

// ask makes the plan for a call that begins.
func ask(x *route.Snapshot, node bulkhead.NodeID, req *Request, plan *route.Plan) error {
	c, err := Call(x, node, req)
	if err == nil {
		*plan = route.Decide(x, c)
	} else {
		*plan = route.Plan{SBC: c.SBC, Actions: []route.Action{refusal(c.SBC)}}
	}
	plan.Revision, plan.Cell = x.Revision(), x.CellOf(node)
	return err
}

func outcome(list []route.Action) string {
	switch a := list[len(list)-1].(type) {
	case route.Dial:
		if _, ok := a.Legs[0].(route.DialTrunk); ok {
			return "trunk"
		}
		return "user"
	case route.Play:
		return "announcement"
	case route.Voicemail:
		return "voicemail"
	case route.Handover:
		return "handover"
	}
	return "reject"
}

// refusal is how a call is rejected that Call refused.
func refusal(sbc bulkhead.SBCID) route.Reject {
	if sbc == "" {
		return route.UnknownSBC
	}
	return route.UnknownTenant
}

// Call makes the question for route.Decide out of a dialplan request. The
// X-Bulkhead headers count only if the INVITE came from the address of an SBC
// of the node's own cell: the SBC strips them from whatever it receives, and
// nobody else is believed.
//
// On a node that works without an SBC, or beside what it did before, other
// INVITEs are asked about by the user that FreeSWITCH itself has authenticated
// against our directory, or else by source and domain. Elsewhere they are
// bulkhead.Denied, with Call.SBC set if it is only the tenant that is missing.
//
// A leg that the switch itself placed has no such headers. It asks when it is
// transferred, and then belongs to the tenant that our own earlier answer
// exported to it; it proves no user.
//
// Nor does a transferred call: it may have been the far end that asked for the
// transfer, and a callee must not send his caller to a paid number.
func Call(x *route.Snapshot, node bulkhead.NodeID, req *Request) (route.Call, error) {
	cell := x.CellOf(node)
	c := route.Call{Number: req.Destination, ID: req.SIPCallID, Time: req.At}
	if req.Direction == "outbound" {
		sbc := x.SBC(bulkhead.SBCID(req.SBC))
		c.Tenant = bulkhead.TenantID(req.Tenant)
		switch {
		case req.Tenant == "":
		case sbc != nil && sbc.Cell == cell:
			c.SBC = sbc.ID
			return c, nil
		case req.SBC == "" && worksAlone(x, node, cell):
			c.Node = node
			return c, nil
		}
		return route.Call{}, fmt.Errorf("an outbound leg without a tenant of ours asks for the dialplan: %w", bulkhead.Denied)
	}
	transferred := req.Transfer != "" || req.EarlierTransfer != ""
	from := peer(req.NetworkIP, req.NetworkPort)
	id, ok := x.SBCAt(from)
	if !ok || x.SBC(id).Cell != cell {
		if !worksAlone(x, node, cell) {
			return route.Call{}, fmt.Errorf("the INVITE came from %s, which is no SBC of cell %s: let the node take calls from its SBCs only: %w", from, cell, bulkhead.Denied)
		}
		c.Node, c.Source, c.Domain, c.From = node, from.Addr(), req.Host, req.FromUser
		if t := x.Tenant(bulkhead.TenantID(req.Tenant)); t != nil && req.Authorized == "true" && req.AuthRealm == t.Realm() {
			c.Tenant = t.ID
			if !transferred {
				c.User = req.AuthUser
			}
		}
		return c, nil
	}
	c.SBC, c.Tenant, c.From = id, bulkhead.TenantID(req.HeaderTenant), req.CallerID
	if !transferred {
		c.User = req.HeaderUser
	}
	if !isID(req.HeaderTenant) {
		return c, fmt.Errorf("SBC %s sent no X-Bulkhead-Tenant: %w", id, bulkhead.Denied)
	}
	return c, nil
}

// worksAlone reports whether a node takes calls that no SBC of ours sent: it
// leaves to its own configuration what is not ours, or its cell has no SBC.
func worksAlone(x *route.Snapshot, node bulkhead.NodeID, cell bulkhead.CellID) bool {
	return x.Node(node).Unmanaged == bulkhead.DeferUnmanaged || sbcOf(x, cell) == ""
}

// The allow-lists. What SIP or a tenant brought in is rendered only if all of
// it is on the list for its kind; none of them has a character that means
// anything to XML, to FreeSWITCH's pre-processor, to its expansion of
// variables, or in a dial string.

func only(s string, limit int, extra string) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && strings.IndexByte(extra, c) < 0 {
			return false
		}
	}
	return true
}

// isID tells the form of tenant, cell, pool, node and SBC ids.
func isID(s string) bool { return only(s, 63, "-_") }

// isToken tells the form of an extension.
func isToken(s string) bool { return only(s, 64, "-_") }

// isHost tells a host name or an IPv4 address.
func isHost(s string) bool { return only(s, 253, "-.") }

// isContext tells the form of a dialplan context that is echoed.
func isContext(s string) bool { return only(s, 64, "-_.") }

// isUUID tells the form of a channel's uuid, an operator's own ones included.
func isUUID(s string) bool { return only(s, 64, "-_.") }

func isHex(s string) bool {
	for i := range len(s) {
		if unhex(s[i]) > 15 {
			return false
		}
	}
	return s != ""
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != "" && len(s) <= 20
}

// hostPort renders host:port for a SIP URI; false if the host is neither an
// address nor a name.
func hostPort(host string, port uint16) (string, bool) {
	if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
		return netip.AddrPortFrom(a, port).String(), true
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), isHost(host)
}

// isAddrPort tells ip:port.
func isAddrPort(s string) bool {
	ap, err := netip.ParseAddrPort(s)
	return err == nil && ap.Addr().Zone() == ""
}
