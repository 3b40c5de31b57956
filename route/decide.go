package route

import (
	"strings"

	"github.com/bulkhead-voip/bulkhead"
)

// Decide answers what to do with a call. It always returns a plan of at
// least one action: what nobody owns is rejected.
func Decide(x *Snapshot, c Call) Plan {
	p := Plan{Revision: x.Revision(), SBC: c.SBC}
	sbc := x.SBC(c.SBC)
	if sbc == nil {
		return p.reject(UnknownSBC)
	}
	p.Cell = sbc.Cell
	h, refusal := x.locate(sbc.Cell, c)
	if refusal != nil {
		return p.reject(*refusal)
	}
	p.Tenant, p.Pool, p.Set, p.Codecs = h.tenant.ID, h.pool.ID, h.set, h.tenant.Codecs
	p.Managed = h.tenant.IsManaged()
	if !p.Managed {
		return p.reject(Unmanaged)
	}
	p.Actions = []Action{x.target(h, sbc, c)}
	return p
}

func (p Plan) reject(r Reject) Plan {
	p.Actions = []Action{r}
	return p
}

// locate finds the tenant that a call belongs to, as the SBC does.
func (x *Snapshot) locate(cell bulkhead.CellID, c Call) (*home, *Reject) {
	if c.Tenant != "" {
		if h := x.home(c.Tenant).in(cell); h != nil {
			return h, nil
		}
		return nil, &UnknownTenant
	}
	domain := strings.ToLower(c.Domain)
	if _, ok := x.self[selfKey{cell, domain}]; ok {
		number := x.number(digits(c.Number)).in(cell)
		source := x.sources.lookup(c.Source).in(cell)
		if source == nil || (number != nil && number != source) {
			return nil, &UnlistedSource
		}
		return source, nil
	}
	owner := x.domain(domain).in(cell)
	switch {
	case owner == nil:
		return nil, &UnknownDomain
	case x.sources.lookup(c.Source) == owner:
		return owner, nil
	case c.User != "" && owner.user(c.User) != nil:
		return owner, nil
	}
	return nil, &UnlistedSource
}

// target finds what a number means inside a tenant: a user's extension, a
// number of the tenant's own, or, for a caller who proved to be a user,
// anything that a trunk takes. A call from a source network alone may not go
// out again: a carrier's stray number must not become a paid call.
func (x *Snapshot) target(h *home, sbc *bulkhead.SBC, c Call) Action {
	user := func(extension string) Action {
		return Dial{Legs: []Leg{DialUser{Extension: extension, Realm: h.realm, SBC: sbc.SIP}}}
	}
	if h.user(c.Number) != nil {
		return user(c.Number)
	}
	number := digits(c.Number)
	if number == "" {
		return UnknownNumber
	}
	if n := x.numbers.find(number); n != nil && n.home == h && n.user != "" {
		return user(n.user)
	}
	caller := h.user(c.User)
	if caller == nil {
		return UnknownNumber
	}
	var best *bulkhead.Trunk
	for i := range h.tenant.Trunks {
		if k := &h.tenant.Trunks[i]; strings.HasPrefix(number, k.Prefix) && (best == nil || len(k.Prefix) > len(best.Prefix)) {
			best = k
		}
	}
	if best == nil {
		return UnknownNumber
	}
	return Dial{Legs: []Leg{DialTrunk{Trunk: best.Name, Host: best.Host, Port: best.Port, Number: number, CallerID: caller.CallerID}}}
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
