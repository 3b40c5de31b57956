package configsvc

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
)

// claim is something that only one object may have, and the field that says so.
type claim struct {
	key   string
	net   netip.Prefix // of a network, which collides with what overlaps it
	field string       // as in a FieldError
}

func (c claim) collides(o claim) bool {
	return c.key == o.key && (!c.net.IsValid() || c.net.Overlaps(o.net))
}

// claimsIn lists what the objects claim that a change puts.
func claimsIn(c *bulkhead.Change) []claim {
	var out []claim
	add := func(key, object, path string, args ...any) {
		out = append(out, claim{key: key, field: object + "." + fmt.Sprintf(path, args...)})
	}
	for _, p := range c.Pools {
		add("profile "+string(p.Profile)+" in "+string(p.Cell), objectName("pools", string(p.ID)), "profile")
	}
	for _, n := range c.Nodes {
		add("sip "+n.SIP, objectName("nodes", string(n.ID)), "sip")
	}
	for _, s := range c.SBCs {
		object := objectName("sbcs", string(s.ID))
		add("sip "+s.SIP, object, "sip")
		if ap, err := netip.ParseAddrPort(s.SIP); err == nil {
			add("domain "+ap.Addr().String(), object, "sip")
		}
		for i, name := range s.Names {
			add("domain "+name, object, "names[%d]", i)
		}
	}
	for i := range c.Tenants {
		t := &c.Tenants[i]
		object := objectName("tenants", string(t.ID))
		for i, d := range t.Domains {
			add("domain "+d, object, "domains[%d]", i)
		}
		for i, n := range t.Numbers {
			add("number "+n.Number, object, "numbers[%d].number", i)
		}
		for i, p := range t.Sources {
			out = append(out, claim{key: "network", net: p, field: fmt.Sprintf("%s.sources[%d]", object, i)})
		}
	}
	return out
}

// objectOf returns the object of a field, as a change that puts it.
func objectOf(s bulkhead.State, field string) bulkhead.Change {
	var c bulkhead.Change
	kind, rest, _ := strings.Cut(field, "[")
	id, _, _ := strings.Cut(rest, "]") // an object of the registry has no other in its id
	switch kind {
	case "pools":
		if v := s.Pools[bulkhead.PoolID(id)]; v != nil {
			c.Pools = []bulkhead.Pool{*v}
		}
	case "nodes":
		if v := s.Nodes[bulkhead.NodeID(id)]; v != nil {
			c.Nodes = []bulkhead.Node{*v}
		}
	case "sbcs":
		if v := s.SBCs[bulkhead.SBCID(id)]; v != nil {
			c.SBCs = []bulkhead.SBC{*v}
		}
	case "tenants":
		if v := s.Tenants[bulkhead.TenantID(id)]; v != nil {
			c.Tenants = []bulkhead.Tenant{*v}
		}
	}
	return c
}

// collision finds where the request claims what a field of another object
// has: a collision is reported on one side, and that may be the other's.
func (p place) collision(head bulkhead.State, change *bulkhead.Change, field string) (pointer string, ok bool) {
	other := objectOf(head, field)
	for _, theirs := range claimsIn(&other) {
		if theirs.field != field {
			continue
		}
		for _, mine := range claimsIn(change) {
			if mine.field == field || !mine.collides(theirs) {
				continue
			}
			if pointer, ok := p.pointer(mine.field); ok {
				return pointer, true
			}
		}
	}
	return "", false
}
