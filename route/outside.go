package route

import (
	"cmp"
	"hash/fnv"
	"math"
	"slices"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
)

// classes find the class of an E.164 number in a cell.
type classes map[string]string // by prefix

func classesOf(c *bulkhead.Cell) classes {
	if len(c.Classes) == 0 {
		return nil
	}
	k := classes{}
	for _, class := range c.Classes {
		for _, p := range class.Prefixes {
			k[p] = class.Name
		}
	}
	return k
}

// of returns the class with the longest prefix of a number, or "".
func (k classes) of(number string) string {
	if len(k) == 0 {
		return ""
	}
	for n := len(number); n > 0; n-- {
		if name, ok := k[number[:n]]; ok {
			return name
		}
	}
	return ""
}

// class returns the destination class of an E.164 number for the tenant.
func (d *decision) class(number string) string {
	if name := d.x.classes[d.cell].of(number); name != "" {
		return name
	}
	if c := d.h.tenant.Dialling.Country; c != "" && strings.HasPrefix(number, c) {
		return bulkhead.National
	}
	return bulkhead.International
}

// allowed checks whether the tenant may call a number.
func (d *decision) allowed(number string) bool {
	class, t := d.class(number), &d.h.tenant
	ok := class == bulkhead.National
	if len(t.Allow) > 0 {
		ok = slices.Contains(t.Allow, class)
	}
	if d.tracing {
		d.note("+%s is of the destination class %s, allowed: %v", number, class, ok)
	}
	return ok
}

// outside calls an E.164 number by trunk, for a user or, if by is nil, for the tenant.
func (d *decision) outside(number string, by *bulkhead.User) []Action {
	if !d.allowed(number) {
		return d.one(NotAllowed)
	}
	return d.dialTrunks(d.trunks(number), number, func(k *bulkhead.Trunk) DialTrunk { return d.trunkLeg(k, number, by) })
}

// callForHelp sends an emergency number out by every trunk there is, those
// first whose prefix fits it.
func (d *decision) callForHelp(number string) []Action {
	list := d.trunks(number)
	rest := make([]*bulkhead.Trunk, 0, len(d.h.tenant.Trunks))
	for i := range d.h.tenant.Trunks {
		if k := &d.h.tenant.Trunks[i]; !slices.Contains(list, k) {
			rest = append(rest, k)
		}
	}
	d.inOrder(rest)
	return d.dialTrunks(append(list, rest...), number, func(k *bulkhead.Trunk) DialTrunk {
		l := leg(k, number)
		l.CallerID = d.reachable()
		return l
	})
}

// dialTrunks rings trunks one after the other.
func (d *decision) dialTrunks(list []*bulkhead.Trunk, number string, leg func(*bulkhead.Trunk) DialTrunk) []Action {
	if len(list) == 0 {
		return d.one(NoTrunk)
	}
	dial := Dial{Legs: make([]Leg, 0, len(list)), Sequential: len(list) > 1}
	for _, k := range list {
		if len(dial.Legs) == maxTrunks || len(dial.Legs) > 0 && d.steps >= bulkhead.MaxTargetSteps {
			break
		}
		l := leg(k)
		d.steps++
		dial.Legs = append(dial.Legs, l)
		if d.tracing {
			d.note("calls %s by trunk %s, which shows %s", number, k.Name, cmp.Or(l.CallerID, "nothing"))
		}
	}
	if dial.Sequential {
		dial.Causes = d.h.tenant.Causes()
	}
	return []Action{dial}
}

// maxTrunks bounds how many trunks one call tries.
const maxTrunks = 8

func leg(k *bulkhead.Trunk, number string) DialTrunk {
	return DialTrunk{Trunk: k.Name, Host: k.Host, Port: k.Port, Number: number, Gateway: k.Password != ""}
}

func (d *decision) trunkLeg(k *bulkhead.Trunk, number string, by *bulkhead.User) DialTrunk {
	l := leg(k, number)
	l.CallerID = d.shown(by)
	l.Anonymous = l.CallerID == ""
	return l
}

// trunkTo returns the first trunk for a number, or why there is none.
func (d *decision) trunkTo(number string) (*bulkhead.Trunk, *Reject) {
	if !d.allowed(number) {
		return nil, &NotAllowed
	}
	list := d.trunks(number)
	if len(list) == 0 {
		return nil, &NoTrunk
	}
	return list[0], nil
}

// trunks returns those with the longest prefix of a number, in the order in
// which to try them.
func (d *decision) trunks(number string) []*bulkhead.Trunk {
	longest := -1
	var list []*bulkhead.Trunk
	for i := range d.h.tenant.Trunks {
		k := &d.h.tenant.Trunks[i]
		if len(k.Prefix) < longest || !strings.HasPrefix(number, k.Prefix) {
			continue
		}
		if len(k.Prefix) > longest {
			longest, list = len(k.Prefix), list[:0]
		}
		list = append(list, k)
	}
	d.inOrder(list)
	return list
}

// inOrder sorts trunks by priority. Among equals the Call-ID draws: each comes
// first in proportion to its weight. Without a Call-ID they stay as written.
func (d *decision) inOrder(list []*bulkhead.Trunk) {
	if len(list) < 2 {
		return
	}
	draw := make(map[*bulkhead.Trunk]float64, len(list))
	if d.c.ID != "" {
		for _, k := range list {
			// Exponential variables of rate weight: the probability to be the
			// least is in proportion to it.
			draw[k] = -math.Log(fraction(d.c.ID, k.Name)) / float64(cmp.Or(k.Weight, 100))
		}
	}
	slices.SortStableFunc(list, func(a, b *bulkhead.Trunk) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(draw[a], draw[b]))
	})
}

// fraction hashes two texts into a number above 0, up to 1.
func fraction(a, b string) float64 {
	h := fnv.New64a()
	h.Write([]byte(a))
	h.Write([]byte{0})
	h.Write([]byte(b))
	return float64(mix(h.Sum64())>>11+1) / (1 << 53)
}

// shown is the number that the called sees on a call of a user's or, if by is
// nil, of the tenant's; empty: none may be shown.
func (d *decision) shown(by *bulkhead.User) string {
	p := &d.h.tenant.CallerID
	switch p.Mode {
	case bulkhead.CallerIDFixed:
		return p.Number
	case bulkhead.CallerIDAnonymous:
		return ""
	}
	return d.ownNumber(by)
}

// ownNumber returns a number of the tenant: the user's, else the policy's,
// else the first; empty: it has none.
func (d *decision) ownNumber(by *bulkhead.User) string {
	if by != nil && d.h.own(d.x, by.CallerID) != nil {
		return by.CallerID
	}
	if n := d.h.tenant.CallerID.Number; n != "" {
		return n
	}
	if len(d.h.tenant.Numbers) > 0 {
		return d.h.tenant.Numbers[0].Number
	}
	return ""
}

// reachable is the number under which an emergency service can call back. A
// policy that hides the caller does not hold here.
func (d *decision) reachable() string {
	from := strings.TrimPrefix(d.c.From, "+")
	if d.caller == nil && d.h.own(d.x, from) != nil {
		return from
	}
	return d.ownNumber(d.caller)
}
