package route

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
)

// Decide answers what to do with a call. It always returns a plan of at
// least one action: what nobody owns is rejected.
func Decide(x *Snapshot, c Call) Plan {
	var p Plan
	d := decision{x: x, c: c}
	d.decide(&p)
	return p
}

// Explain decides as Decide does, and returns beside the plan why: each step
// that led to it, in words.
func Explain(x *Snapshot, c Call) (Plan, []string) {
	var p Plan
	d := decision{x: x, c: c, tracing: true}
	d.decide(&p)
	return p, d.trace
}

// decision is the work on one call.
type decision struct {
	x       *Snapshot
	c       Call
	cell    bulkhead.CellID
	sbc     string // ip:port of the SBC; empty: there is none
	h       *home
	caller  *bulkhead.User // who proved to be one; nil: the call comes from outside
	steps   int            // legs and other actions so far
	tracing bool
	trace   []string
}

// note adds a step to the trace. Callers look at tracing first, so that a
// call costs nothing for words that nobody reads.
func (d *decision) note(format string, args ...any) {
	d.trace = append(d.trace, fmt.Sprintf(format, args...))
}

// decide makes the plan in p, which is empty.
func (d *decision) decide(p *Plan) {
	p.Revision, p.SBC = d.x.Revision(), d.c.SBC
	if refusal := d.enter(); refusal != nil {
		d.reject(p, refusal)
		return
	}
	p.Cell = d.cell
	h, refusal := d.locate()
	if refusal != nil {
		// Nobody's call: but one that claims to be a managed tenant's is not
		// left to what else the node has.
		p.Managed = h != nil && h.tenant.IsManaged()
		d.reject(p, refusal)
		return
	}
	t := &h.tenant
	d.h = h
	p.Tenant, p.Pool, p.Set, p.Codecs, p.Managed = t.ID, h.pool.ID, h.set, t.Codecs, t.IsManaged()
	if !p.Managed {
		d.reject(p, &Unmanaged)
		return
	}
	if d.tracing {
		d.note("its calls go to pool %s, dispatcher set %d", p.Pool, p.Set)
	}
	if d.caller = h.user(d.c.User); d.caller != nil {
		p.CallerID = CallerID{Number: d.caller.Extension, Name: d.caller.Name}
		if d.tracing {
			d.note("the caller is user %s, proved by digest", d.caller.Extension)
		}
	} else if d.tracing {
		d.note("the caller is no user of the tenant: the call comes from outside")
	}
	p.MaxDuration, p.Tap, p.Headers = t.Limits.MaxDuration, t.Tap, t.Headers
	d.dialled(p)
	p.Record = t.Record == bulkhead.RecordAll || t.Record == bulkhead.RecordInbound && d.caller == nil || t.Record == bulkhead.RecordOutbound && p.Outbound
}

func (d *decision) reject(p *Plan, r *Reject) {
	if d.tracing {
		d.note("rejected with %d: %s", r.Status, r.Reason)
	}
	p.Actions = []Action{*r}
}

// enter finds the cell that the call came into.
func (d *decision) enter() *Reject {
	if d.c.SBC == "" && d.c.Node != "" {
		if d.cell = d.x.CellOf(d.c.Node); d.cell == "" {
			return &UnknownNode
		}
		if d.tracing {
			d.note("cell %s, by node %s", d.cell, d.c.Node)
		}
		return nil
	}
	sbc := d.x.SBC(d.c.SBC)
	if sbc == nil {
		return &UnknownSBC
	}
	d.cell, d.sbc = sbc.Cell, sbc.SIP
	if d.tracing {
		d.note("cell %s, by SBC %s", d.cell, d.c.SBC)
	}
	return nil
}

// locate finds the tenant that a call belongs to, as the SBC does. With a
// refusal it returns the tenant that the call claimed to be for, or nil.
func (d *decision) locate() (*home, *Reject) {
	x, c, cell := d.x, &d.c, d.cell
	if c.Tenant != "" {
		h := x.home(c.Tenant).in(cell)
		if h == nil {
			return nil, &UnknownTenant
		}
		if d.tracing {
			d.note("tenant %s, as the SBC or node has found", c.Tenant)
		}
		return h, nil
	}
	domain := strings.ToLower(c.Domain)
	if d.ownAddress(domain) {
		number := x.number(digits(c.Number)).in(cell)
		source := x.sources.lookup(c.Source).in(cell)
		if source == nil || (number != nil && number != source) {
			if d.tracing {
				d.note("%q is an address of the platform's own: the source %s and the number %q must be one tenant's", domain, c.Source, c.Number)
			}
			return number, &UnlistedSource
		}
		if d.tracing {
			d.note("tenant %s, by the source %s", source.tenant.ID, c.Source)
		}
		return source, nil
	}
	owner := x.domain(domain).in(cell)
	switch {
	case owner == nil:
		return nil, &UnknownDomain
	case x.sources.lookup(c.Source) == owner:
		if d.tracing {
			d.note("tenant %s, by the domain %s and the source %s", owner.tenant.ID, domain, c.Source)
		}
		return owner, nil
	case c.User != "" && owner.user(c.User) != nil:
		if d.tracing {
			d.note("tenant %s, by the domain %s and its user", owner.tenant.ID, domain)
		}
		return owner, nil
	}
	if d.tracing {
		d.note("the domain %s is tenant %s's, but neither the source %s nor the user is", domain, owner.tenant.ID, c.Source)
	}
	return owner, &UnlistedSource
}

// ownAddress reports whether a domain stands for the platform and for no
// tenant. A node that asks without an SBC has its own address and no domain
// for that.
func (d *decision) ownAddress(domain string) bool {
	if _, ok := d.x.self[selfKey{d.cell, domain}]; ok {
		return true
	}
	if d.c.SBC != "" {
		return false
	}
	return domain == "" || domain == uriHost(addrPort(d.x.Node(d.c.Node).SIP).Addr())
}

// dialled finds what a number means inside a tenant: an emergency number, a
// user's extension, a number of the tenant's own, or, for a caller who proved
// to be a user, anything that a trunk takes. A call from a source network
// alone may not go out again, but for an emergency: a carrier's stray number
// must not become a paid call.
func (d *decision) dialled(p *Plan) {
	t, number := &d.h.tenant, d.c.Number
	if emergency := d.emergency(); emergency != "" {
		p.Emergency, p.Outbound, p.MaxDuration = true, true, 0
		p.Actions = d.callForHelp(emergency)
		return
	}
	if u := d.h.user(number); u != nil {
		if d.tracing {
			d.note("%s is the user's extension", number)
		}
		p.Actions = d.user(u, 1)
		return
	}
	plain := digits(number)
	n := d.h.own(d.x, plain)
	e164, ok := "", false
	if n == nil && plain != "" {
		if d.caller != nil {
			e164, ok = t.Dialling.E164(number)
		} else {
			e164, ok = t.Dialling.Public(number)
		}
		if d.tracing && ok && e164 != plain {
			d.note("%s is +%s in the tenant's dialling", number, e164)
		}
		n = d.h.own(d.x, e164)
	}
	switch {
	case n != nil:
		if d.tracing {
			d.note("+%s is a number of the tenant", n.Number)
		}
		p.Actions = d.number(n, 1)
	case !ok || d.caller == nil:
		if d.tracing {
			d.note("%q is neither an extension nor a number of the tenant, and %s", number, d.noWayOut())
		}
		p.Actions = d.one(UnknownNumber)
	default:
		p.Outbound = true
		p.Actions = d.outside(e164, d.caller)
	}
}

func (d *decision) noWayOut() string {
	if d.caller == nil {
		return "only its users may call out"
	}
	return "it is no number that can be called"
}

// emergency returns the emergency number that was dialled, or "".
func (d *decision) emergency() string {
	number := strings.TrimPrefix(d.c.Number, "+")
	if len(number) < 2 || len(number) > 10 {
		return ""
	}
	outside := d.h.tenant.Dialling.OutsidePrefix
	for _, e := range d.h.tenant.EmergencyNumbers() {
		if number == e || outside != "" && number == outside+e {
			if d.tracing {
				d.note("%s is an emergency number: it goes out as dialled, whatever else holds", e)
			}
			return e
		}
	}
	return ""
}

func (d *decision) one(a Action) []Action {
	d.steps++
	if r, ok := a.(Reject); ok && d.tracing {
		d.note("rejected with %d: %s", r.Status, r.Reason)
	}
	return []Action{a}
}

// fewNumbers are searched one by one: they are where the tenant's other data
// is, and a look-up in the table of all numbers misses the processor's caches
// four times.
const fewNumbers = 8

// own returns the number of the tenant's with the given digits, or nil.
func (h *home) own(x *Snapshot, digits string) *bulkhead.Number {
	if digits == "" {
		return nil
	}
	if len(h.tenant.Numbers) <= fewNumbers {
		for i := range h.tenant.Numbers {
			if h.tenant.Numbers[i].Number == digits {
				return &h.tenant.Numbers[i]
			}
		}
		return nil
	}
	n := x.numbers.find(digits)
	if n == nil || n.home != h {
		return nil
	}
	return &h.tenant.Numbers[n.at]
}

// digits returns a dialled number without its '+', or "" when it is not 2 to
// 20 digits.
func digits(number string) string {
	number = strings.TrimPrefix(number, "+")
	if len(number) < 2 || len(number) > 20 {
		return ""
	}
	for i := range len(number) {
		if number[i] < '0' || number[i] > '9' {
			return ""
		}
	}
	return number
}

func named[T any](list []T, name func(*T) string, want string) *T {
	i := slices.IndexFunc(list, func(v T) bool { return name(&v) == want })
	if i < 0 {
		return nil
	}
	return &list[i]
}
