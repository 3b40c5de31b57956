package bulkhead

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
)

var (
	idForm        = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	numberForm    = regexp.MustCompile(`^[1-9][0-9]{1,14}$`)
	extensionForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,14}$`)
	hostForm      = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	prefixForm    = regexp.MustCompile(`^[0-9]{0,15}$`)
	// textForm is what an operator's free text may hold: it travels into XML
	// answers and SIP headers, where quotes, $, { and line ends would be code.
	textForm = regexp.MustCompile(`^[\pL\pN .,'()+/_-]{0,64}$`)
)

// Codecs lists the codec names that a tenant may use, by their SDP encoding
// names (RFC 3551, RFC 7587).
var Codecs = []string{"PCMU", "PCMA", "G722", "G729", "opus"}

func validID(field, id string) error {
	if !idForm.MatchString(id) {
		return invalid(field, "%q is not an id: use 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit", id)
	}
	return nil
}

func validHost(field, host string) error {
	if len(host) > 253 || !hostForm.MatchString(host) {
		return invalid(field, "%q is not a lower-case host name", host)
	}
	return nil
}

func validAddrPort(field, s string) error {
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 || ap.Addr().IsUnspecified() || ap.Addr().Zone() != "" {
		return invalid(field, "%q is not ip:port", s)
	}
	if ap.String() != s {
		return invalid(field, "%q has another usual form, by which it is compared: write %s", s, ap)
	}
	return nil
}

func validText(field, s string) error {
	if !textForm.MatchString(s) {
		return invalid(field, "%q holds a character that is not allowed, or is over 64 long: use letters, digits, spaces and . , ' ( ) + / _ -", s)
	}
	return nil
}

// Validate checks the cell alone.
func (c *Cell) Validate() error {
	err := validID("id", string(c.ID))
	if c.MaxTenants < 0 || c.MaxTenants > 200000 {
		err = errors.Join(err, invalid("max_tenants", "%d is not within 0 to 200000", c.MaxTenants))
	}
	return errors.Join(err, c.validClasses())
}

// TenantLimit returns the number of tenants the cell takes.
func (c *Cell) TenantLimit() int {
	if c.MaxTenants == 0 {
		return DefaultMaxTenants
	}
	return c.MaxTenants
}

// Validate checks the pool alone.
func (p *Pool) Validate() error {
	errs := []error{validID("id", string(p.ID)), validID("profile", string(p.Profile))}
	if p.Placement != "" && p.Placement != Sticky && p.Placement != Spread {
		errs = append(errs, invalid("placement", "%q is neither sticky nor spread", p.Placement))
	}
	if p.Backup == p.ID {
		errs = append(errs, invalid("backup", "pool %q cannot be its own backup", p.ID))
	}
	return errors.Join(errs...)
}

func (c *Cell) validClasses() error {
	if len(c.Classes) > maxClasses {
		return invalid("classes", "there are %d of them: up to %d are taken", len(c.Classes), maxClasses)
	}
	var errs []error
	names, prefixes := map[string]bool{}, map[string]string{}
	for i, k := range c.Classes {
		at := func(f string) string { return fmt.Sprintf("classes[%d].%s", i, f) }
		errs = append(errs, validID(at("name"), k.Name))
		switch {
		case k.Name == National || k.Name == International:
			errs = append(errs, invalid(at("name"), "%q is what no class fits: it has no prefixes", k.Name))
		case names[k.Name]:
			errs = append(errs, conflict(at("name"), "%q is there twice in cell %q", k.Name, c.ID))
		case len(k.Prefixes) == 0 || len(k.Prefixes) > maxPrefixes:
			errs = append(errs, invalid(at("prefixes"), "has %d entries: 1 to %d are taken", len(k.Prefixes), maxPrefixes))
			continue
		}
		names[k.Name] = true
		for j, p := range k.Prefixes {
			f := at(fmt.Sprintf("prefixes[%d]", j))
			if !prefixForm.MatchString(p) || p == "" || p[0] == '0' {
				errs = append(errs, invalid(f, "%q is not 1 to 15 digits that an E.164 number begins with", p))
			}
			if other, ok := prefixes[p]; ok {
				errs = append(errs, conflict(f, "%s is in class %q and in class %q", p, other, k.Name))
			}
			prefixes[p] = k.Name
		}
	}
	return errors.Join(errs...)
}

// Limits of a cell's classes.
const (
	maxClasses  = 64
	maxPrefixes = 2000
)

func within(field string, n, from, to int) error {
	if n < from || n > to {
		return invalid(field, "%d is not within %d to %d", n, from, to)
	}
	return nil
}

// listener is an address at which a node is spoken to beside SIP.
type listener struct{ field, addr string }

func (n *Node) listeners() []listener {
	return []listener{{"esl", n.ESL}, {"ari", n.ARI}, {"ami", n.AMI}, {"agent", n.Agent}}
}

// Validate checks the node alone.
func (n *Node) Validate() error {
	errs := []error{validID("id", string(n.ID)), validAddrPort("sip", n.SIP)}
	if n.Kind != "" && n.Kind != FreeSWITCH && n.Kind != Asterisk {
		errs = append(errs, invalid("kind", "%q is neither freeswitch nor asterisk", n.Kind))
	}
	if n.Weight < 0 || n.Weight > 100 {
		errs = append(errs, invalid("weight", "%d is not within 0 to 100", n.Weight))
	}
	for _, a := range n.listeners() {
		if a.addr != "" {
			errs = append(errs, validAddrPort(a.field, a.addr))
		}
	}
	if n.Unmanaged != "" && n.Unmanaged != RejectUnmanaged && n.Unmanaged != DeferUnmanaged {
		errs = append(errs, invalid("unmanaged", "%q is neither defer nor reject", n.Unmanaged))
	}
	errs = append(errs, within("max_calls", n.MaxCalls, 0, 100000), within("cacheable", n.Cacheable, 0, 86400))
	return errors.Join(errs...)
}

// Validate checks the SBC alone.
func (s *SBC) Validate() error {
	errs := []error{validID("id", string(s.ID)), validAddrPort("sip", s.SIP)}
	for i, name := range s.Names {
		errs = append(errs, validHost(fmt.Sprintf("names[%d]", i), name))
	}
	return errors.Join(errs...)
}

// validSource accepts the prefix lengths that an SBC can look up with a fixed
// number of probes.
func validSource(field string, p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return invalid(field, "is not a network such as 192.0.2.0/24")
	case p != p.Masked():
		return invalid(field, "%s has bits set behind its prefix: write %s", p, p.Masked())
	case p.Addr().Is4In6() || p.Addr().Zone() != "":
		return invalid(field, "%s is not a plain IPv4 or IPv6 network", p)
	case p.Addr().Is4() && p.Bits() < 8:
		return invalid(field, "%s is wider than /8: its whole owner would be believed without a password", p)
	case p.Addr().Is6() && !validBits6(p.Bits()):
		return invalid(field, "%s: an IPv6 source network is /32, /40 to /48, /56 to /64 or /128", p)
	}
	return nil
}

// validBits6 holds an IPv6 network to the lengths that an SBC probes (32, 48,
// 64, 128) and those that stand there as at most 256 networks of such a length.
func validBits6(bits int) bool {
	return bits == 32 || bits >= 40 && bits <= 48 || bits >= 56 && bits <= 64 || bits == 128
}
