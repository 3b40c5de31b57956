package registry

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-voip/bulkhead"
)

// locate gives the errors of State.Validate the places in the file. to is the
// state that was validated: the file's objects and those of the store.
func (f *File) locate(to bulkhead.State, err error) error {
	all := bulkhead.FieldErrors(err)
	if len(all) == 0 {
		return err
	}
	var index claims // made when it is needed
	var errs []*bulkhead.FieldError
	for _, fe := range all[:min(len(all), maxFileErrors)] {
		c := *fe
		object, rest := f.object(fe.Field)
		inFile := f.at[object] != nil
		if inFile {
			c.Pos = f.pos(object, rest)
		}
		if fe.Kind == bulkhead.Conflict {
			if index == nil {
				index = claimsOf(&f.change)
			}
			f.locateOther(&c, to, index, inFile)
		}
		if c.Pos == "" {
			c.Pos = f.name
			c.Msg += " (the object is in the store and not in this file)"
		}
		errs = append(errs, &c)
	}
	return inOrder(f.name, errs, len(all)-len(errs))
}

// object splits the path of a field into its object and the rest. An id of
// the file is taken whole, whatever it contains.
func (f *File) object(field string) (object, rest string) {
	for i := 0; i < len(field); i++ {
		if strings.HasPrefix(field[i:], "].") {
			if object, rest = field[:i+1], field[i+2:]; f.at[object] != nil {
				return object, rest
			}
		}
	}
	object, rest, _ = strings.Cut(field, "].")
	return object + "]", rest
}

var pathStep = regexp.MustCompile(`^\.?([a-z0-9_]+)|^\[([0-9]+)\]`)

// pos returns file:line of a field, or of the innermost thing around it that
// was written.
func (f *File) pos(object, rest string) string {
	n := f.at[object]
	for rest != "" {
		m := pathStep.FindStringSubmatch(rest)
		if m == nil {
			break
		}
		next := child(n, m[1], m[2])
		if next == nil {
			break
		}
		n, rest = next, rest[len(m[0]):]
	}
	return fmt.Sprintf("%s:%d", f.name, n.Line)
}

func child(n *yaml.Node, key, index string) *yaml.Node {
	if n.Kind == yaml.SequenceNode && index != "" {
		if i, err := strconv.Atoi(index); err == nil && i < len(n.Content) {
			return n.Content[i]
		}
		return nil
	}
	if n.Kind != yaml.MappingNode || key == "" {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// locateOther adds to a conflict where the other claim was written.
func (f *File) locateOther(c *bulkhead.FieldError, to bulkhead.State, index claims, inFile bool) {
	mine, ok := claimOf(to, c.Field)
	if !ok {
		return
	}
	for _, other := range index.like(mine) {
		same := other.object == mine.object && other.field == mine.field
		// The message names the other owner, and its network.
		named := strings.Contains(c.Msg, strconv.Quote(other.id)) &&
			(!other.net.IsValid() || strings.Contains(c.Msg, other.net.Masked().String()))
		if same || !named {
			continue
		}
		pos := f.pos(other.object, other.field)
		if inFile {
			c.Msg += " (the other is at " + pos + ")"
			return
		}
		c.Pos = pos
		break
	}
	c.Msg += " (the other is in the store already)"
}

// claim is something that only one object may have.
type claim struct {
	class, value string
	net          netip.Prefix // of class network, instead of value
	object, id   string       // tenants[acme], acme
	field        string       // domains[0]
}

// claims holds claims by class and value; networks are under their class alone.
type claims map[[2]string][]claim

func (x claims) add(list []claim) {
	for _, c := range list {
		k := [2]string{c.class, c.value}
		x[k] = append(x[k], c)
	}
}

// like returns the claims to the same thing.
func (x claims) like(c claim) []claim {
	list := x[[2]string{c.class, c.value}]
	if c.class != "network" {
		return list
	}
	var out []claim
	for _, o := range list {
		if o.net.Overlaps(c.net) {
			out = append(out, o)
		}
	}
	return out
}

func claimsOf(c *bulkhead.Change) claims {
	x := claims{}
	for i := range c.Pools {
		x.add(poolClaims(&c.Pools[i]))
	}
	for i := range c.Nodes {
		x.add(nodeClaims(&c.Nodes[i]))
	}
	for i := range c.SBCs {
		x.add(sbcClaims(&c.SBCs[i]))
	}
	for i := range c.Tenants {
		x.add(tenantClaims(&c.Tenants[i]))
	}
	return x
}

// claimOf returns the claim that a field of the state makes.
func claimOf(s bulkhead.State, field string) (claim, bool) {
	kind, rest, _ := strings.Cut(field, "[")
	id, path, _ := strings.Cut(rest, "].")
	var list []claim
	switch kind {
	case "pools":
		if v := s.Pools[bulkhead.PoolID(id)]; v != nil {
			list = poolClaims(v)
		}
	case "nodes":
		if v := s.Nodes[bulkhead.NodeID(id)]; v != nil {
			list = nodeClaims(v)
		}
	case "sbcs":
		if v := s.SBCs[bulkhead.SBCID(id)]; v != nil {
			list = sbcClaims(v)
		}
	case "tenants":
		if v := s.Tenants[bulkhead.TenantID(id)]; v != nil {
			list = tenantClaims(v)
		}
	}
	for _, c := range list {
		if c.field == path {
			return c, true
		}
	}
	return claim{}, false
}

func poolClaims(p *bulkhead.Pool) []claim {
	return []claim{{class: "profile in " + string(p.Cell), value: string(p.Profile), object: objectKey("pools", string(p.ID)), id: string(p.ID), field: "profile"}}
}

func nodeClaims(n *bulkhead.Node) []claim {
	return []claim{{class: "sip", value: n.SIP, object: objectKey("nodes", string(n.ID)), id: string(n.ID), field: "sip"}}
}

func sbcClaims(s *bulkhead.SBC) []claim {
	id, object := string(s.ID), objectKey("sbcs", string(s.ID))
	list := []claim{{class: "sip", value: s.SIP, object: object, id: id, field: "sip"}}
	for i, name := range s.Names {
		list = append(list, claim{class: "domain", value: name, object: object, id: id, field: fmt.Sprintf("names[%d]", i)})
	}
	if ap, err := netip.ParseAddrPort(s.SIP); err == nil {
		list = append(list, claim{class: "domain", value: ap.Addr().String(), object: object, id: id, field: "sip"})
	}
	return list
}

func tenantClaims(t *bulkhead.Tenant) []claim {
	id, object := string(t.ID), objectKey("tenants", string(t.ID))
	list := make([]claim, 0, len(t.Domains)+len(t.Numbers)+len(t.Sources)+len(t.Users)+len(t.Trunks))
	add := func(class, value string, net netip.Prefix, format string, i int) {
		list = append(list, claim{class: class, value: value, net: net, object: object, id: id, field: fmt.Sprintf(format, i)})
	}
	for i, d := range t.Domains {
		add("domain", d, netip.Prefix{}, "domains[%d]", i)
	}
	for i, n := range t.Numbers {
		add("number", n.Number, netip.Prefix{}, "numbers[%d].number", i)
	}
	for i, p := range t.Sources {
		add("network", "", p, "sources[%d]", i)
	}
	for i, u := range t.Users {
		add("extension in "+id, u.Extension, netip.Prefix{}, "users[%d].extension", i)
	}
	for i, k := range t.Trunks {
		add("trunk in "+id, k.Name, netip.Prefix{}, "trunks[%d].name", i)
	}
	return list
}
