package configsvc

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
	"github.com/bulkhead-voip/bulkhead/route"
)

// RouteQuestion is a call that somebody wants explained.
type RouteQuestion struct {
	Tenant bulkhead.TenantID `json:"tenant,omitempty"` // empty: whose it is follows from domain and source
	From   string            `json:"from,omitempty"`   // extension of a user, who then counts as proved, or a number
	To     string            `json:"to"`               // as dialled
	Domain string            `json:"domain,omitempty"` // of the Request-URI, without tenant
	Source string            `json:"source,omitempty"` // address that the INVITE came from, without tenant
	SBC    bulkhead.SBCID    `json:"sbc,omitempty"`    // where the call came in; empty: the first of the cell
	Node   bulkhead.NodeID   `json:"node,omitempty"`   // that asks without an SBC
	Time   string            `json:"time,omitempty"`   // RFC 3339; empty: now
	CallID string            `json:"call_id,omitempty"`
}

// Explanation is a plan, in words that JSON has, and what led to it.
type Explanation struct {
	Revision    bulkhead.RevisionNumber `json:"revision"`
	Cell        bulkhead.CellID         `json:"cell,omitempty"`
	Tenant      bulkhead.TenantID       `json:"tenant,omitempty"`
	Managed     bool                    `json:"managed"`
	Pool        bulkhead.PoolID         `json:"pool,omitempty"`
	Set         int                     `json:"set,omitempty"`
	Emergency   bool                    `json:"emergency,omitempty"`
	Outbound    bool                    `json:"outbound,omitempty"`
	Codecs      []string                `json:"codecs,omitempty"`
	MaxDuration int                     `json:"max_duration,omitempty"`
	Record      bool                    `json:"record,omitempty"`
	Tap         bool                    `json:"tap,omitempty"`
	Headers     []bulkhead.HeaderRule   `json:"headers,omitempty"`
	Actions     []PlanStep              `json:"actions"`
	Why         []string                `json:"why"`
}

// PlanStep is one action of a plan, or one leg that a dial rings.
type PlanStep struct {
	Do string `json:"do"` // dial, user, trunk, play, voicemail, handover or reject

	Legs        []PlanStep `json:"legs,omitempty"`
	Sequential  bool       `json:"sequential,omitempty"`
	Timeout     int        `json:"timeout,omitempty"` // seconds
	Causes      []int      `json:"causes,omitempty"`
	Busy        []PlanStep `json:"busy,omitempty"`
	NoAnswer    []PlanStep `json:"no_answer,omitempty"`
	Unavailable []PlanStep `json:"unavailable,omitempty"`
	Otherwise   []PlanStep `json:"otherwise,omitempty"`

	Name      string `json:"name,omitempty"`      // extension, trunk, file, box, or what is handed over to
	Number    string `json:"number,omitempty"`    // that is called
	CallerID  string `json:"caller_id,omitempty"` // that a trunk is shown
	Anonymous bool   `json:"anonymous,omitempty"`
	Status    int    `json:"status,omitempty"` // SIP
	Cause     int    `json:"cause,omitempty"`  // Q.850
	Reason    string `json:"reason,omitempty"`
}

// maxDialled is the longest number, domain or Call-ID of a RouteQuestion, in bytes.
const maxDialled = 255

// Explain says what would be done with a call in a state, which must be
// valid, and why. Its errors are bulkhead.Invalid, or NotFound for a tenant,
// SBC or node that is not there.
func Explain(s bulkhead.State, q RouteQuestion, now time.Time) (Explanation, error) {
	c, err := q.call(s, now)
	if err != nil {
		return Explanation{}, err
	}
	if q.Tenant != "" {
		// Nothing of the others can matter: all need not be indexed.
		s.Tenants = map[bulkhead.TenantID]*bulkhead.Tenant{q.Tenant: s.Tenants[q.Tenant]}
	}
	p, why := route.Explain(route.New(s), c)
	return Explanation{
		Revision: p.Revision, Cell: p.Cell, Tenant: p.Tenant, Managed: p.Managed, Pool: p.Pool, Set: p.Set, Emergency: p.Emergency, Outbound: p.Outbound,
		Codecs: p.Codecs, MaxDuration: p.MaxDuration, Record: p.Record, Tap: p.Tap, Headers: p.Headers, Actions: planSteps(p.Actions), Why: why,
	}, nil
}

func (q *RouteQuestion) call(s bulkhead.State, now time.Time) (route.Call, error) {
	wrong := func(field, format string, args ...any) (route.Call, error) {
		return route.Call{}, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: fmt.Sprintf(format, args...)}
	}
	c := route.Call{
		Tenant: q.Tenant, Domain: q.Domain, Number: q.To, From: q.From, ID: q.CallID, Time: now,
		SBC: q.SBC, Node: q.Node,
	}
	if q.To == "" {
		return wrong("to", "is missing: the number that is dialled")
	}
	for field, text := range map[string]string{"to": q.To, "from": q.From, "domain": q.Domain, "call_id": q.CallID} {
		if len(text) > maxDialled {
			return wrong(field, "is over %d bytes long", maxDialled)
		}
	}
	var cell bulkhead.CellID
	if q.Tenant != "" {
		t := s.Tenants[q.Tenant]
		if t == nil {
			return c, fmt.Errorf("tenant %q: %w", q.Tenant, bulkhead.NotFound)
		}
		cell = t.Cell
		if t.User(q.From) != nil {
			c.User = q.From
		}
	} else if domain := strings.ToLower(q.Domain); domain != "" {
		for _, t := range s.Tenants {
			if slices.Contains(t.Domains, domain) {
				cell = t.Cell
				if t.User(q.From) != nil && q.Source == "" {
					c.User = q.From
				}
			}
		}
	}
	if q.Source != "" {
		a, err := netip.ParseAddr(q.Source)
		if err != nil {
			return wrong("source", "%q is no IP address", q.Source)
		}
		c.Source = a
	}
	if q.Time != "" {
		at, err := time.Parse(time.RFC3339, q.Time)
		if err != nil {
			return wrong("time", "%q is not a time such as 2026-03-29T09:00:00+02:00", q.Time)
		}
		c.Time = at
	}
	if c.SBC == "" && c.Node == "" {
		c.SBC, c.Node = entrance(s, cell)
	}
	return c, nil
}

// entrance returns the first SBC of a cell, else its first node. Without a
// cell any will do.
func entrance(s bulkhead.State, cell bulkhead.CellID) (bulkhead.SBCID, bulkhead.NodeID) {
	for _, id := range slices.Sorted(maps.Keys(s.SBCs)) {
		if cell == "" || s.SBCs[id].Cell == cell {
			return id, ""
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		if p := s.Pools[s.Nodes[id].Pool]; p != nil && (cell == "" || p.Cell == cell) {
			return "", id
		}
	}
	return "", ""
}

func planSteps(list []route.Action) []PlanStep {
	var out []PlanStep
	for _, a := range list {
		out = append(out, planStep(a))
	}
	return out
}

func planStep(a route.Action) PlanStep {
	switch a := a.(type) {
	case route.Dial:
		s := PlanStep{
			Do: "dial", Sequential: a.Sequential, Timeout: a.Timeout, Causes: a.Causes,
			Busy: planSteps(a.Busy), NoAnswer: planSteps(a.NoAnswer), Unavailable: planSteps(a.Unavailable), Otherwise: planSteps(a.Otherwise),
		}
		for _, l := range a.Legs {
			switch l := l.(type) {
			case route.DialUser:
				s.Legs = append(s.Legs, PlanStep{Do: "user", Name: l.Extension})
			case route.DialTrunk:
				s.Legs = append(s.Legs, PlanStep{Do: "trunk", Name: l.Trunk, Number: l.Number, CallerID: l.CallerID, Anonymous: l.Anonymous})
			}
		}
		return s
	case route.Play:
		return PlanStep{Do: "play", Name: a.File}
	case route.Voicemail:
		return PlanStep{Do: "voicemail", Name: a.Box}
	case route.Handover:
		return PlanStep{Do: "handover", Name: string(a.Kind) + ":" + a.Value, Number: a.Number}
	case route.Reject:
		return PlanStep{Do: "reject", Status: a.Status, Cause: a.Cause, Reason: a.Reason}
	}
	return PlanStep{Do: "unknown"}
}

// explainBody is a RouteQuestion to the API: of the head, of an old revision, or
// of what a change would make of it.
type explainBody struct {
	RouteQuestion

	Revision *uint64   `json:"revision"`
	Change   *bulkBody `json:"change"`
}

// explain answers what would be done with a call. It writes nothing.
func (a *Admin) explain(r *http.Request, p *principal) (*answer, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	limit := int64(maxSmallBody)
	if p.scope == registry.ScopeAdmin { // who may send a whole change, and waits before it is read
		done, err := a.alone(r)
		if err != nil {
			return nil, err
		}
		defer done()
		limit = MaxBody
	}
	_, body, err := readDocument(r, limit, "application/json")
	if err != nil {
		return nil, err
	}
	var b explainBody
	if err := wrongInput(decodeJSON(body, &b, false)); err != nil {
		return nil, err
	}
	if p.scope == registry.ScopeTenant {
		if b.Tenant == "" {
			b.Tenant = p.tenant
		}
		if b.Tenant != p.tenant {
			return nil, errHidden()
		}
		if b.Change != nil || b.Revision != nil {
			return nil, errForbidden("a tenant's token asks about what is, not about changes or what was")
		}
	}
	if p.scope != registry.ScopeAdmin {
		turn := a.asking
		if b.Change != nil || b.Revision != nil || b.Tenant == "" { // all tenants are looked at
			turn = a.heavy
		}
		done, err := hold(r, turn)
		if err != nil {
			return nil, err
		}
		defer done()
	}
	s, err := a.stateFor(r, p, &b)
	if err != nil {
		return nil, err
	}
	out, err := Explain(s, b.RouteQuestion, a.now())
	if fields := bulkhead.FieldErrors(err); len(fields) > 0 {
		return nil, wrongInput([]issue{{Pointer: "/" + fields[0].Field, Detail: fields[0].Msg}})
	}
	if err != nil {
		return nil, errHidden()
	}
	return ok(out), nil
}

// stateFor returns the state that a question is about.
func (a *Admin) stateFor(r *http.Request, p *principal, b *explainBody) (s bulkhead.State, err error) {
	if b.Revision != nil {
		s, err = a.cfg.History.State(r.Context(), bulkhead.RevisionNumber(*b.Revision))
	} else {
		s, err = a.cfg.Store.Head(r.Context())
	}
	if err != nil || b.Change == nil {
		return s, err
	}
	plan, err := planBody(b.Change, "/change", false)
	if err != nil {
		return s, err
	}
	change, at, err := plan(s)
	if err != nil {
		return s, err
	}
	to := s.Apply(&change)
	if err := to.Validate(); err != nil {
		return s, refused(p, at, s, &change, err)
	}
	return to, nil
}
