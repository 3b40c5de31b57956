package asterisk

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Summary says what an answer was, for logs and metrics. It holds no text that
// came with the question except ids.
type Summary struct {
	Outcome  string // of realtime: found, none, rows, cut, write; of a call: dial, play, voicemail, handover, reject, defer, denied
	Tenant   bulkhead.TenantID
	Revision bulkhead.RevisionNumber
	Reject   *route.Reject // of a call whose plan begins with one
}

// callContext is the context of the shipped dialplan that every endpoint calls into.
const callContext = "bulkhead"

// AnswerRealtime appends the answer to a res_config_curl request to dst. path is
// what follows the base, such as ps_endpoints/single. It is pure and answers
// whatever it is asked: rows, nothing for no row, and a number for every
// operation that would change something: none of them does. A node that is not
// in the snapshot sees no rows. now is what schedules go by.
func AnswerRealtime(x *route.Snapshot, node bulkhead.NodeID, now time.Time, path string, body, dst []byte) ([]byte, Summary) {
	q := parseRequest(path, body)
	sum := Summary{Outcome: "none"}
	switch q.op {
	case "single", "multi":
	case "static":
		return dst, sum // Bulkhead keeps no files for a PBX
	default:
		sum.Outcome = "write"
		return append(dst, "0\n"...), sum
	}
	if x == nil {
		return dst, sum
	}
	s := &scope{x: x, node: node, cell: x.CellOf(node)}
	sum.Revision = x.Revision()
	if s.cell == "" {
		return dst, sum
	}
	switch q.family {
	case "extensions":
		return appendExtension(dst, s, q.conds, now, sum)
	case "voicemail":
		return appendMailbox(dst, s, q.conds, sum)
	}
	t, ok := tables[q.family]
	if !ok {
		return dst, sum
	}
	for _, c := range q.conds {
		// An identify has the name of its endpoint.
		if c.op == "" && (c.field == "id" || c.field == "endpoint" && q.family == "ps_endpoint_id_ips") {
			found := t.byID(s, c.value)
			if found == nil || !found.matches(q.conds) {
				return dst, sum
			}
			sum.Outcome, sum.Tenant = "found", s.owner(c.value)
			return appendRow(dst, found), sum
		}
	}
	if len(q.conds) == 0 {
		return dst, sum // a question that was cut off
	}
	sum.Outcome = "rows"
	rows, start := 0, len(dst)
	t.all(s, func(r record) bool {
		if !r.matches(q.conds) {
			return true
		}
		if rows == maxRows || len(dst)-start > maxRealtime {
			sum.Outcome = "cut"
			return false
		}
		dst = appendRow(dst, r)
		rows++
		return q.op == "multi"
	})
	return dst, sum
}

// owner returns whose an object's name is, or "".
func (s *scope) owner(name string) bulkhead.TenantID {
	if _, domain, ok := strings.Cut(name, "@"); ok {
		if t := s.own(s.x.TenantByDomain(domain)); t != nil {
			return t.ID
		}
		return ""
	}
	id, _, _ := strings.Cut(name, ".")
	if t := s.tenant(bulkhead.TenantID(id)); t != nil {
		return t.ID
	}
	return ""
}

// callQuestion is what the shipped dialplan asks for a call. All of it is data
// that the caller may have written, but for the endpoint's name, tenant, user
// and transfer, which are Asterisk's.
type callQuestion struct {
	endpoint string // CHANNEL(endpoint)
	exten    string
	from     string // CALLERID(num)
	callID   string
	source   string // ip:port of the peer
	transfer bool   // somebody transferred the call here

	tenant, user   string // BULKHEAD_TENANT, BULKHEAD_USER of an endpoint of the operator's own
	xTenant, xUser string // headers X-Bulkhead-Tenant, -User: believed from an SBC only
}

func parseCall(body []byte) callQuestion {
	var q callQuestion
	var transfer string
	fields := map[string]*string{
		"endpoint": &q.endpoint, "exten": &q.exten, "from": &q.from, "callid": &q.callID, "source": &q.source, "transfer": &transfer,
		"tenant": &q.tenant, "user": &q.user, "xtenant": &q.xTenant, "xuser": &q.xUser,
	}
	for n := 0; len(body) > 0 && n < maxConds; n++ {
		var pair []byte
		pair, body, _ = bytes.Cut(body, []byte("&"))
		name, value, _ := bytes.Cut(pair, []byte("="))
		if f := fields[string(name)]; f != nil {
			*f = unescape(value)
			delete(fields, string(name)) // the first one counts
		}
	}
	q.transfer = transfer != ""
	return q
}

// AnswerCall appends the answer to the shipped dialplan's question about a call
// to dst: fields for CURLOPT(hashcompat). It is pure but for now, which is what
// schedules go by. A node that is not in the snapshot gets an answer that is
// none: the dialplan then does what it does when nobody answers.
func AnswerCall(x *route.Snapshot, node bulkhead.NodeID, body []byte, now time.Time, dst []byte) ([]byte, Summary) {
	sum := Summary{Outcome: "denied"}
	if x == nil || x.CellOf(node) == "" {
		return append(dst, "denied\n"...), sum
	}
	q := parseCall(body)
	s := &scope{x: x, node: node, cell: x.CellOf(node)}
	plan := s.decide(&q, now)
	sum.Tenant, sum.Revision = plan.Tenant, x.Revision()
	if !plan.Managed && x.Node(node).Unmanaged == bulkhead.DeferUnmanaged {
		sum.Outcome = "defer"
		return DeferCall(x, dst), sum
	}
	var limits bulkhead.Limits
	if t := x.Tenant(plan.Tenant); t != nil {
		limits = t.Limits
	}
	dst, sum.Outcome, sum.Reject = renderPlan(dst, plan, limits)
	return dst, sum
}

// decide asks route what to do with a call.
func (s *scope) decide(q *callQuestion, now time.Time) route.Plan {
	c, err := s.call(q)
	if err != nil {
		return route.Plan{Revision: s.x.Revision(), Cell: s.cell, SBC: c.SBC, Actions: []route.Action{route.UnlistedSource}}
	}
	c.Time = now
	if !only(q.exten, 64, "+*#-_.") {
		c.Number = "" // which is nobody's, whoever calls
	}
	return route.Decide(s.x, c)
}

// call makes the question for route.Decide. Who calls is told by the endpoint
// that Asterisk found and authenticated. A user who was transferred here proves
// nothing: it may have been the far end that asked for it, and a callee must not
// send his caller to a number that costs money.
func (s *scope) call(q *callQuestion) (route.Call, error) {
	c := route.Call{Node: s.node, Number: q.exten, ID: q.callID}
	if only(q.from, 64, "+*#-_.") {
		c.From = q.from
	}
	if ap, err := netip.ParseAddrPort(q.source); err == nil {
		c.Source = ap.Addr().Unmap()
	}
	if b := s.sbc(q.endpoint); b != nil {
		c.SBC, c.Tenant, c.User = b.ID, bulkhead.TenantID(q.xTenant), q.xUser
		if q.xTenant == "" {
			return c, fmt.Errorf("SBC %s sent no X-Bulkhead-Tenant: %w", b.ID, bulkhead.Denied)
		}
	} else if t, u := s.user(q.endpoint); u != nil {
		c.Tenant, c.User = t.ID, u.Extension
	} else if t := s.source(q.endpoint); t != nil {
		c.Tenant = t.ID
	} else if q.tenant != "" {
		c.Tenant, c.User = bulkhead.TenantID(q.tenant), q.user
	} else if t := s.x.TenantByNumber(q.exten); t != nil && t.Cell == s.cell && s.foreign(q.endpoint) {
		c.Tenant = t.ID // a carrier of the operator's own
	} else {
		return c, fmt.Errorf("endpoint %q is nobody's: %w", q.endpoint, bulkhead.Denied)
	}
	if q.transfer {
		c.User = ""
	}
	return c, nil
}

// foreign tells an endpoint that is the operator's own: its name has none of
// the forms that endpoints from here have.
func (s *scope) foreign(name string) bool {
	return name != "" && !strings.Contains(name, "@") && !strings.Contains(name, trunkInfix) &&
		!strings.HasSuffix(name, sourceSuffix) && !strings.HasPrefix(name, sbcPrefix)
}
