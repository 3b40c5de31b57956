package bulkhead

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
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
	return err
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

// Validate checks the node alone.
func (n *Node) Validate() error {
	errs := []error{validID("id", string(n.ID)), validAddrPort("sip", n.SIP)}
	if n.Kind != "" && n.Kind != FreeSWITCH && n.Kind != Asterisk {
		errs = append(errs, invalid("kind", "%q is neither freeswitch nor asterisk", n.Kind))
	}
	if n.Weight < 0 || n.Weight > 100 {
		errs = append(errs, invalid("weight", "%d is not within 0 to 100", n.Weight))
	}
	if n.ESL != "" {
		errs = append(errs, validAddrPort("esl", n.ESL))
	}
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

// Validate checks the tenant alone.
func (t *Tenant) Validate() error {
	errs := []error{
		validID("id", string(t.ID)),
		validID("profile", string(t.Profile)),
		validText("name", t.Name),
	}
	if len(t.Domains) == 0 {
		errs = append(errs, invalid("domains", "tenant %q needs a domain: it is the realm of its users", t.ID))
	}
	for i, d := range t.Domains {
		errs = append(errs, validHost(fmt.Sprintf("domains[%d]", i), d))
	}
	for i, p := range t.Sources {
		errs = append(errs, validSource(fmt.Sprintf("sources[%d]", i), p))
	}
	errs = append(errs, t.validUsers(), t.validNumbers(), t.validTrunks())
	for i, c := range t.Codecs {
		if !slices.Contains(Codecs, c) {
			errs = append(errs, invalid(fmt.Sprintf("codecs[%d]", i), "%q is not one of %s", c, strings.Join(Codecs, ", ")))
		}
	}
	if l := t.Limits; l.Calls < 0 || l.Calls > 100000 {
		errs = append(errs, invalid("limits.calls", "%d is not within 0 to 100000", l.Calls))
	}
	if l := t.Limits; l.CallsPerSecond < 0 || l.CallsPerSecond > 10000 {
		errs = append(errs, invalid("limits.calls_per_second", "%d is not within 0 to 10000", l.CallsPerSecond))
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

func (t *Tenant) validUsers() error {
	var errs []error
	seen := make(map[string]bool, len(t.Users))
	for i, u := range t.Users {
		at := func(f string) string { return fmt.Sprintf("users[%d].%s", i, f) }
		if !extensionForm.MatchString(u.Extension) {
			errs = append(errs, invalid(at("extension"), "%q is not an extension: use 1 to 15 of a-z, 0-9, - and _", u.Extension))
		}
		if seen[u.Extension] {
			errs = append(errs, conflict(at("extension"), "%q is there twice in tenant %q", u.Extension, t.ID))
		}
		seen[u.Extension] = true
		if b, err := hex.DecodeString(u.HA1); err != nil || len(b) != 16 || strings.ToLower(u.HA1) != u.HA1 {
			errs = append(errs, invalid(at("ha1"), "is not MD5(extension:realm:password) as 32 lower-case hex digits"))
		}
		if u.CallerID != "" && !numberForm.MatchString(u.CallerID) {
			errs = append(errs, invalid(at("caller_id"), "%q is not an E.164 number without '+'", u.CallerID))
		}
		errs = append(errs, validText(at("name"), u.Name))
	}
	return errors.Join(errs...)
}

func (t *Tenant) validNumbers() error {
	var errs []error
	users := make(map[string]bool, len(t.Users))
	for _, u := range t.Users {
		users[u.Extension] = true
	}
	for i, n := range t.Numbers {
		at := func(f string) string { return fmt.Sprintf("numbers[%d].%s", i, f) }
		if !numberForm.MatchString(n.Number) {
			errs = append(errs, invalid(at("number"), "%q is not an E.164 number without '+'", n.Number))
		}
		if !users[n.User] {
			errs = append(errs, invalid(at("user"), "tenant %q has no user %q", t.ID, n.User))
		}
	}
	return errors.Join(errs...)
}

func (t *Tenant) validTrunks() error {
	var errs []error
	seen := make(map[string]bool, len(t.Trunks))
	for i, k := range t.Trunks {
		at := func(f string) string { return fmt.Sprintf("trunks[%d].%s", i, f) }
		errs = append(errs, validID(at("name"), k.Name))
		if seen[k.Name] {
			errs = append(errs, conflict(at("name"), "%q is there twice in tenant %q", k.Name, t.ID))
		}
		seen[k.Name] = true
		// A zone may hold any character, and the host becomes part of a SIP URI.
		if a, err := netip.ParseAddr(k.Host); err != nil || a.Zone() != "" {
			errs = append(errs, validHost(at("host"), k.Host))
		}
		if k.Port == 0 {
			errs = append(errs, invalid(at("port"), "is missing: 5060 is usual"))
		}
		if !prefixForm.MatchString(k.Prefix) {
			errs = append(errs, invalid(at("prefix"), "%q is not 0 to 15 digits", k.Prefix))
		}
	}
	return errors.Join(errs...)
}
