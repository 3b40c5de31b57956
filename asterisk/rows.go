package asterisk

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// maxRows bounds the rows of one answer, and maxRealtime its bytes.
const (
	maxRows     = 20_000
	maxRealtime = 8 << 20
)

// The names of endpoints. A user's is his address, EXTENSION@REALM: realms
// belong to one tenant, so that two tenants may share extensions. The others
// begin with the tenant's id and a dot, which an id does not have; an SBC's
// with an underscore, with which no id begins.
const (
	sourceSuffix = ".source"
	trunkInfix   = ".trunk."
	sbcPrefix    = "_sbc."
)

func userName(extension, realm string) string { return extension + "@" + realm }

func trunkName(t bulkhead.TenantID, trunk string) string { return string(t) + trunkInfix + trunk }

// table is the rows of one family: by id, which must be O(1) in the number of
// tenants, and all of a node's.
type table struct {
	byID func(s *scope, id string) record
	all  func(s *scope, yield func(record) bool)
}

var tables = map[string]table{
	"ps_endpoints":       {byID: endpointRow, all: endpointRows},
	"ps_auths":           {byID: authRow, all: authRows},
	"ps_aors":            {byID: aorRow, all: aorRows},
	"ps_domain_aliases":  {byID: aliasRow, all: aliasRows},
	"ps_endpoint_id_ips": {byID: identifyRow, all: identifyRows},
}

// scope is what one node may see of a snapshot: its own cell.
type scope struct {
	x    *route.Snapshot
	node bulkhead.NodeID
	cell bulkhead.CellID
}

// tenant returns a tenant of the node's cell whose endpoints the node has, or nil.
func (s *scope) tenant(id bulkhead.TenantID) *bulkhead.Tenant { return s.own(s.x.Tenant(id)) }

func (s *scope) own(t *bulkhead.Tenant) *bulkhead.Tenant {
	if t == nil || t.Cell != s.cell || len(t.Domains) == 0 || !t.IsManaged() {
		return nil
	}
	return t
}

// tenants yields the tenants of the node's cell, in the order of their ids.
func (s *scope) tenants() []*bulkhead.Tenant {
	var list []*bulkhead.Tenant
	for t := range s.x.Tenants() {
		if t := s.own(t); t != nil {
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b *bulkhead.Tenant) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// sbcs returns the SBCs of the node's cell, in the order of their ids.
func (s *scope) sbcs() []*bulkhead.SBC {
	var list []*bulkhead.SBC
	for _, b := range s.x.SBCs() {
		if b.Cell == s.cell {
			list = append(list, b)
		}
	}
	slices.SortFunc(list, func(a, b *bulkhead.SBC) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// user finds EXTENSION@REALM. Other domains of the tenant are aliases, which
// have rows of their own.
func (s *scope) user(name string) (*bulkhead.Tenant, *bulkhead.User) {
	extension, domain, ok := strings.Cut(name, "@")
	if !ok {
		return nil, nil
	}
	t := s.own(s.x.TenantByDomain(domain))
	if t == nil || domain != t.Realm() {
		return nil, nil
	}
	u := s.x.User(t.ID, extension)
	if u == nil || !isExtension(extension) || !isHost(domain) {
		return nil, nil
	}
	return t, u
}

// trunk finds TENANT.trunk.NAME.
func (s *scope) trunk(name string) (*bulkhead.Tenant, *bulkhead.Trunk) {
	id, trunk, ok := strings.Cut(name, trunkInfix)
	if !ok || !isName(trunk) {
		return nil, nil
	}
	t := s.tenant(bulkhead.TenantID(id))
	if t == nil {
		return nil, nil
	}
	for i := range t.Trunks {
		if t.Trunks[i].Name == trunk {
			return t, &t.Trunks[i]
		}
	}
	return nil, nil
}

func (s *scope) source(name string) *bulkhead.Tenant {
	id, ok := strings.CutSuffix(name, sourceSuffix)
	if !ok {
		return nil
	}
	if t := s.tenant(bulkhead.TenantID(id)); t != nil && len(t.Sources) > 0 {
		return t
	}
	return nil
}

func (s *scope) sbc(name string) *bulkhead.SBC {
	id, ok := strings.CutPrefix(name, sbcPrefix)
	if !ok {
		return nil
	}
	if b := s.x.SBC(bulkhead.SBCID(id)); b != nil && b.Cell == s.cell {
		return b
	}
	return nil
}

func endpointRow(s *scope, id string) record {
	if t, u := s.user(id); u != nil {
		return userEndpoint(t, u)
	}
	if t, k := s.trunk(id); k != nil {
		return trunkEndpoint(t, k)
	}
	if t := s.source(id); t != nil {
		r := newEndpoint(id, t.Codecs)
		tenantColumns(&r, t)
		r.add("identify_by", "ip")
		return r
	}
	if s.sbc(id) != nil {
		r := newEndpoint(id, nil)
		r.add("identify_by", "ip")
		// The SBC has checked who calls, and tells his number in P-Asserted-Identity.
		r.add("trust_id_inbound", "yes")
		r.add("trust_id_outbound", "yes")
		r.add("send_pai", "yes")
		return r
	}
	return nil
}

// newEndpoint begins the row of any endpoint.
func newEndpoint(id string, codecs []string) record {
	r := make(record, 0, 24)
	r.add("id", id)
	r.add("context", callContext)
	r.add("disallow", "all")
	r.add("allow", codecNames(codecs))
	r.add("direct_media", "no")
	r.add("rtp_symmetric", "yes")
	r.add("allow_subscribe", "no")
	// A 3xx of a phone must not choose whom his caller pays for: Dial has the
	// option i, and this keeps the URI from being called directly.
	r.add("redirect_method", "user")
	return r
}

// tenantColumns says whose the endpoint is, for call records and events.
func tenantColumns(r *record, t *bulkhead.Tenant) {
	r.add("accountcode", string(t.ID))
	r.add("set_var", "TENANT="+string(t.ID))
	r.add("set_var", "CDR(tenant)="+string(t.ID))
}

func userEndpoint(t *bulkhead.Tenant, u *bulkhead.User) record {
	id := userName(u.Extension, t.Realm())
	r := newEndpoint(id, t.Codecs)
	tenantColumns(&r, t)
	r.add("identify_by", "username")
	r.add("auth", id)
	r.add("aors", id)
	r.add("callerid", callerID(u))
	// Phones are behind NAT as often as not.
	r.add("force_rport", "yes")
	r.add("rewrite_contact", "yes")
	return r
}

func trunkEndpoint(t *bulkhead.Tenant, k *bulkhead.Trunk) record {
	id := trunkName(t.ID, k.Name)
	r := newEndpoint(id, t.Codecs)
	tenantColumns(&r, t)
	// Nobody calls as this endpoint: what a carrier sends is known by its source.
	r.add("identify_by", "ip")
	r.add("send_pai", "yes")
	r.add("trust_id_outbound", "yes")
	if k.Username != "" {
		r.add("outbound_auth", id)
		r.add("from_user", k.Username)
	}
	return r
}

// callerID is what a phone's callers see, in the form "Name" <number>.
func callerID(u *bulkhead.User) string {
	name := strings.Map(func(c rune) rune {
		if c < ' ' || strings.ContainsRune("\"\\<>;,&|$[]{}()%", c) {
			return -1
		}
		return c
	}, u.Name)
	if name == "" {
		return "<" + u.Extension + ">"
	}
	return `"` + name + `" <` + u.Extension + ">"
}

func endpointRows(s *scope, yield func(record) bool) {
	for _, b := range s.sbcs() {
		if !yield(endpointRow(s, sbcPrefix+string(b.ID))) {
			return
		}
	}
	for _, t := range s.tenants() {
		for i := range t.Users {
			if !yield(userEndpoint(t, &t.Users[i])) {
				return
			}
		}
		for i := range t.Trunks {
			if !yield(trunkEndpoint(t, &t.Trunks[i])) {
				return
			}
		}
		if len(t.Sources) > 0 && !yield(endpointRow(s, string(t.ID)+sourceSuffix)) {
			return
		}
	}
}

func authRow(s *scope, id string) record {
	if t, u := s.user(id); u != nil {
		return userAuth(t, u)
	}
	if t, k := s.trunk(id); k != nil && k.Username != "" {
		return trunkAuth(t, k)
	}
	return nil
}

// userAuth has the HA1 of the user, never a password.
func userAuth(t *bulkhead.Tenant, u *bulkhead.User) record {
	if !isHex(u.HA1) {
		return nil
	}
	return record{
		{"id", userName(u.Extension, t.Realm())}, {"auth_type", "md5"}, {"username", u.Extension},
		{"realm", t.Realm()}, {"md5_cred", u.HA1},
	}
}

// trunkAuth answers a carrier's challenge. Without a realm any will do.
func trunkAuth(t *bulkhead.Tenant, k *bulkhead.Trunk) record {
	r := record{
		{"id", trunkName(t.ID, k.Name)}, {"auth_type", "userpass"}, {"username", k.Username}, {"password", string(k.Password)},
	}
	if k.Realm != "" {
		r.add("realm", k.Realm)
	}
	return r
}

func authRows(s *scope, yield func(record) bool) {
	for _, t := range s.tenants() {
		for i := range t.Users {
			if r := userAuth(t, &t.Users[i]); r != nil && !yield(r) {
				return
			}
		}
		for i := range t.Trunks {
			if t.Trunks[i].Username != "" && !yield(trunkAuth(t, &t.Trunks[i])) {
				return
			}
		}
	}
}

func aorRow(s *scope, id string) record {
	_, u := s.user(id)
	if u == nil {
		return nil
	}
	return aor(id, u)
}

// defaultDevices is how many contacts a user has at most if he has no number
// of his own.
const defaultDevices = 5

func aor(id string, u *bulkhead.User) record {
	return record{
		{"id", id}, {"max_contacts", strconv.Itoa(cmp.Or(u.Devices, defaultDevices))}, {"remove_existing", "yes"},
		{"minimum_expiration", "60"}, {"default_expiration", "3600"}, {"maximum_expiration", "7200"},
		{"qualify_frequency", "0"},
	}
}

func aorRows(s *scope, yield func(record) bool) {
	for _, t := range s.tenants() {
		for i := range t.Users {
			if !yield(aor(userName(t.Users[i].Extension, t.Realm()), &t.Users[i])) {
				return
			}
		}
	}
}

// aliasRow leads from a tenant's further domain to its first.
func aliasRow(s *scope, id string) record {
	t := s.own(s.x.TenantByDomain(id))
	if t == nil || id == t.Realm() || !isHost(id) {
		return nil
	}
	return record{{"id", id}, {"domain", t.Realm()}}
}

func aliasRows(s *scope, yield func(record) bool) {
	for _, t := range s.tenants() {
		for _, d := range t.Domains[1:] {
			if !yield(record{{"id", d}, {"domain", t.Realm()}}) {
				return
			}
		}
	}
}

func identifyRow(s *scope, id string) record {
	if t := s.source(id); t != nil {
		return sourceIdentify(t)
	}
	if b := s.sbc(id); b != nil {
		return sbcIdentify(b)
	}
	return nil
}

// sourceIdentify has networks in digits only: a name would be looked up in DNS
// each time the row is read.
func sourceIdentify(t *bulkhead.Tenant) record {
	id := string(t.ID) + sourceSuffix
	nets := make([]string, len(t.Sources))
	for i, p := range t.Sources {
		nets[i] = p.Masked().String()
	}
	return record{{"id", id}, {"endpoint", id}, {"match", strings.Join(nets, ",")}}
}

func sbcIdentify(b *bulkhead.SBC) record {
	ap, err := netip.ParseAddrPort(b.SIP)
	if err != nil {
		return nil
	}
	a := ap.Addr().Unmap()
	id := sbcPrefix + string(b.ID)
	return record{{"id", id}, {"endpoint", id}, {"match", netip.PrefixFrom(a, a.BitLen()).String()}}
}

func identifyRows(s *scope, yield func(record) bool) {
	for _, b := range s.sbcs() {
		if r := sbcIdentify(b); r != nil && !yield(r) {
			return
		}
	}
	for _, t := range s.tenants() {
		if len(t.Sources) > 0 && !yield(sourceIdentify(t)) {
			return
		}
	}
}

// defaultCodecs are those of a tenant that names none.
const defaultCodecs = "ulaw,alaw"

// codecNames turns SDP's encoding names into Asterisk's.
func codecNames(codecs []string) string {
	var out []string
	for _, c := range codecs {
		switch c {
		case "PCMU":
			out = append(out, "ulaw")
		case "PCMA":
			out = append(out, "alaw")
		case "G722", "G729", "opus":
			out = append(out, strings.ToLower(c))
		}
	}
	if len(out) == 0 {
		return defaultCodecs
	}
	return strings.Join(out, ",")
}

// The allow-lists: nothing else of a tenant's or a caller's text gets into a
// name, a dial string or the dialplan.

func only(s string, limit int, extra string) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && strings.IndexByte(extra, c) < 0 {
			return false
		}
	}
	return true
}

func isExtension(s string) bool { return only(s, 64, "-_") }
func isName(s string) bool      { return only(s, 64, "-_") }
func isHost(s string) bool      { return only(s, 253, "-.") }
func isHex(s string) bool       { return only(s, 128, "") && strings.Trim(s, "0123456789abcdefABCDEF") == "" }
