package route

import (
	"strings"

	"github.com/bulkhead-voip/bulkhead"
)

// Decide answers what to do with a call. It always returns a plan of at
// least one action: what nobody owns is rejected.
func Decide(x *Snapshot, c Call) Plan {
	p := Plan{Revision: x.Revision(), SBC: c.SBC}
	sbc := x.state.SBCs[c.SBC]
	if sbc == nil {
		return p.reject(UnknownSBC)
	}
	p.Cell = sbc.Cell
	id, refusal := x.locate(sbc.Cell, c)
	if refusal != nil {
		return p.reject(*refusal)
	}
	h := x.tenants[id]
	p.Tenant, p.Pool, p.Set, p.Codecs = id, h.pool.ID, h.set, h.tenant.Codecs
	p.Actions = []Action{x.target(h.tenant, sbc, c)}
	return p
}

func (p Plan) reject(r Reject) Plan {
	p.Actions = []Action{r}
	return p
}

// locate finds the tenant that a call belongs to, as the SBC does.
func (x *Snapshot) locate(cell bulkhead.CellID, c Call) (bulkhead.TenantID, *Reject) {
	if c.Tenant != "" {
		if h := x.tenants[c.Tenant]; h == nil || h.tenant.Cell != cell {
			return "", &UnknownTenant
		}
		return c.Tenant, nil
	}
	source := x.inCell(cell, x.sources.lookup(c.Source))
	domain := strings.ToLower(c.Domain)
	if x.self[domain] == cell {
		number := x.inCell(cell, x.numbers[digits(c.Number)])
		if source == "" || (number != "" && number != source) {
			return "", &UnlistedSource
		}
		return source, nil
	}
	owner := x.inCell(cell, x.domains[domain])
	switch {
	case owner == "":
		return "", &UnknownDomain
	case source == owner:
		return owner, nil
	case c.User != "" && x.User(owner, c.User) != nil:
		return owner, nil
	}
	return "", &UnlistedSource
}

// inCell returns the tenant if it lives in the cell, else "".
func (x *Snapshot) inCell(cell bulkhead.CellID, t bulkhead.TenantID) bulkhead.TenantID {
	if h := x.tenants[t]; h == nil || h.tenant.Cell != cell {
		return ""
	}
	return t
}

// target finds what a number means inside a tenant: a user's extension, a
// number of the tenant's own, or, for a caller who proved to be a user,
// anything that a trunk takes. A call from a source network alone may not go
// out again: a carrier's stray number must not become a paid call.
func (x *Snapshot) target(t *bulkhead.Tenant, sbc *bulkhead.SBC, c Call) Action {
	user := func(extension string) Action {
		return DialUser{Extension: extension, Realm: t.Realm(), SBC: sbc.SIP}
	}
	if x.User(t.ID, c.Number) != nil {
		return user(c.Number)
	}
	number := digits(c.Number)
	if number == "" {
		return UnknownNumber
	}
	if x.numbers[number] == t.ID {
		for _, n := range t.Numbers {
			if n.Number == number {
				return user(n.User)
			}
		}
	}
	caller := x.User(t.ID, c.User)
	if caller == nil {
		return UnknownNumber
	}
	var best *bulkhead.Trunk
	for i := range t.Trunks {
		if k := &t.Trunks[i]; strings.HasPrefix(number, k.Prefix) && (best == nil || len(k.Prefix) > len(best.Prefix)) {
			best = k
		}
	}
	if best == nil {
		return UnknownNumber
	}
	return DialTrunk{Trunk: best.Name, Host: best.Host, Port: best.Port, Number: number, CallerID: caller.CallerID}
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
