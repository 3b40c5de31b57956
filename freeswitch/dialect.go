package freeswitch

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

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
	Outcome  string // user, trunk, announcement, voicemail, handover, reject, found, not found, malformed
	Tenant   bulkhead.TenantID
	Pool     bulkhead.PoolID
	Revision bulkhead.RevisionNumber
	Status   int    // SIP status of a rejection
	Reason   string // of a rejection, in words
	Leg      string // Unique-ID of the leg, if it has the form of one
	Err      error  // why the request was refused; nil for an ordinary answer
}

// Answer appends the answer to a mod_xml_curl request of a node to dst. It is
// pure and always appends a valid document: a dialplan request of any kind gets
// a real answer, since "not found" would send the call to the switch's static
// configuration; everything else that is not known gets the result "not found".
// A nil snapshot knows no node.
func Answer(x *route.Snapshot, node bulkhead.NodeID, body, dst []byte) ([]byte, Summary) {
	req, err := ParseRequest(body)
	switch {
	case req.Section == SectionDialplan:
		return answerDialplan(x, node, &req, err, dst)
	case err != nil:
		return RenderNotFound(dst), Summary{Section: "other", Outcome: "malformed", Err: err}
	case req.Section == SectionDirectory:
		return answerDirectory(x, node, &req, dst)
	case req.Section == SectionConfiguration:
		return RenderNotFound(dst), Summary{Section: SectionConfiguration, Outcome: "not found"}
	}
	return RenderNotFound(dst), Summary{Section: "other", Outcome: "not found"}
}

func answerDialplan(x *route.Snapshot, node bulkhead.NodeID, req *Request, err error, dst []byte) ([]byte, Summary) {
	var plan route.Plan
	switch {
	case err != nil:
		plan.Actions = []route.Action{Malformed}
	case x == nil || x.CellOf(node) == "":
		plan.Actions = []route.Action{UnknownNode}
	default:
		var c route.Call
		if c, err = Call(x, node, req); err == nil {
			plan = route.Decide(x, c)
		} else {
			plan = route.Plan{SBC: c.SBC, Actions: []route.Action{refusal(c)}}
		}
		plan.Revision, plan.Cell = x.Revision(), x.CellOf(node)
	}
	dst, reject := RenderDialplan(dst, req, node, plan)
	sum := Summary{
		Section: SectionDialplan, Outcome: outcome(plan), Err: err,
		Tenant: plan.Tenant, Pool: plan.Pool, Revision: plan.Revision,
	}
	if isUUID(req.Leg) {
		sum.Leg = req.Leg
	}
	if reject != nil {
		sum.Outcome, sum.Status, sum.Reason = "reject", reject.Status, reject.Reason
	}
	return dst, sum
}

func outcome(p route.Plan) string {
	switch a := p.Actions[len(p.Actions)-1].(type) {
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
func refusal(c route.Call) route.Reject {
	if c.SBC == "" {
		return route.UnknownSBC
	}
	return route.UnknownTenant
}

// Call makes the question for route.Decide out of a dialplan request. The
// X-Bulkhead headers count only if the INVITE came from the address of an SBC
// of the node's own cell: the SBC strips them from whatever it receives, and
// nobody else is believed. Everything else is bulkhead.Denied, with Call.SBC
// set if it is only the tenant that is missing.
//
// A leg that the switch itself placed has no such headers. It asks when it is
// transferred, and then belongs to the tenant that our own earlier answer
// exported to it; it proves no user.
//
// Nor does a transferred call: it may have been the far end that asked for the
// transfer, and a callee must not send his caller to a paid number.
func Call(x *route.Snapshot, node bulkhead.NodeID, req *Request) (route.Call, error) {
	cell := x.CellOf(node)
	if req.Direction == "outbound" {
		sbc := x.SBC(bulkhead.SBCID(req.SBC))
		if sbc == nil || sbc.Cell != cell || req.Tenant == "" {
			return route.Call{}, fmt.Errorf("an outbound leg without a tenant of ours asks for the dialplan: %w", bulkhead.Denied)
		}
		return route.Call{SBC: sbc.ID, Tenant: bulkhead.TenantID(req.Tenant), Number: req.Destination}, nil
	}
	from := peer(req.NetworkIP, req.NetworkPort)
	id, ok := x.SBCAt(from)
	if !ok || x.SBC(id).Cell != cell {
		return route.Call{}, fmt.Errorf("the INVITE came from %s, which is no SBC of cell %s: let the node take calls from its SBCs only: %w", from, cell, bulkhead.Denied)
	}
	c := route.Call{SBC: id, Tenant: bulkhead.TenantID(req.HeaderTenant), Number: req.Destination}
	if req.Transfer == "" && req.EarlierTransfer == "" {
		c.User = req.HeaderUser
	}
	if !isID(req.HeaderTenant) {
		return c, fmt.Errorf("SBC %s sent no X-Bulkhead-Tenant: %w", id, bulkhead.Denied)
	}
	return c, nil
}

// answerDirectory answers look-ups of users and domains. A user is known on the
// nodes of his tenant's cell only. Users come with their HA1 (a1-hash), never
// with a password, so that digest authentication works under the tenant's
// realm, its primary domain.
func answerDirectory(x *route.Snapshot, node bulkhead.NodeID, req *Request, dst []byte) ([]byte, Summary) {
	sum := Summary{Section: SectionDirectory, Outcome: "not found"}
	if x == nil {
		return RenderNotFound(dst), sum
	}
	sum.Revision = x.Revision()
	cell := x.CellOf(node)
	t := x.TenantByDomain(req.KeyValue)
	// The tag's domain and the field's are one in whatever a FreeSWITCH sends;
	// they differ if the caller's text broke out of the tag (see fixedFields).
	if cell == "" || t == nil || t.Cell != cell || req.TagName != "domain" || req.KeyName != "name" ||
		(req.Domain != "" && req.Domain != req.KeyValue) || !isHost(req.KeyValue) {
		return RenderNotFound(dst), sum
	}
	sum.Tenant = t.ID
	if req.User == "" {
		if req.Action == "" && (req.Purpose == "" || req.Purpose == "network-list") || req.Action == "group_call" {
			sum.Outcome = "found"
			return renderDomain(dst, req.KeyValue), sum
		}
		return RenderNotFound(dst), sum
	}
	u := x.User(t.ID, req.User)
	if u == nil || (req.Key != "" && req.Key != "id") || !isToken(u.Extension) || !isHex(u.HA1) {
		return RenderNotFound(dst), sum
	}
	sum.Outcome = "found"
	return renderUser(dst, directoryUser{
		domain: req.KeyValue, realm: t.Realm(), tenant: t.ID, user: u, sbc: sbcOf(x, cell),
	}), sum
}

// sbcOf returns the ip:port of the cell's first SBC by id, or "". Users are
// reached by way of it.
func sbcOf(x *route.Snapshot, cell bulkhead.CellID) string {
	var ids []string
	for id, s := range x.SBCs() {
		if s.Cell == cell {
			ids = append(ids, string(id))
		}
	}
	if len(ids) == 0 {
		return ""
	}
	return x.SBC(bulkhead.SBCID(slices.Min(ids))).SIP
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
