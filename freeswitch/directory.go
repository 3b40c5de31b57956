package freeswitch

import (
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// GatewayDomain is the name under which a profile asks the directory for the
// gateways of its node's tenants: <domain name="..." parse="true"/>. It can be
// no tenant's domain (RFC 2606 section 2).
const GatewayDomain = "gateways.bulkhead.invalid"

// sourcesUser is the directory entry whose cidr attribute says where calls of
// a domain come from, for an acl list with domain="...". No extension has a dot.
const sourcesUser = "bulkhead.sources"

// answerDirectory answers look-ups of users, groups, domains and gateways. A
// user is known on the nodes of his tenant's cell only. Users come with their
// HA1 (a1-hash), never with a password, so that digest authentication works
// under the tenant's realm, its primary domain. For the same reason there is
// nothing to add for a reverse-auth-lookup, which wants a password in clear.
func answerDirectory(x *route.Snapshot, node bulkhead.NodeID, req *Request, dst []byte) ([]byte, Summary) {
	sum := Summary{Section: SectionDirectory, Outcome: "not found", Urgent: req.Action == "sip_auth" && req.Method == "REGISTER"}
	if x == nil {
		return RenderNotFound(dst), sum
	}
	sum.Revision = x.Revision()
	cell := x.CellOf(node)
	if cell != "" && req.KeyValue == GatewayDomain && req.Purpose == "gateways" {
		sum.Outcome = "found"
		return renderGatewayDomain(dst, x, cell), sum
	}
	t := x.TenantByDomain(req.KeyValue)
	// The tag's domain and the field's are one in whatever a FreeSWITCH sends;
	// they differ if the caller's text broke out of the tag (see fixedFields).
	if cell == "" || t == nil || t.Cell != cell || !t.IsManaged() || req.TagName != "domain" || req.KeyName != "name" ||
		(req.Domain != "" && req.Domain != req.KeyValue) || !isHost(req.KeyValue) {
		return RenderNotFound(dst), sum
	}
	sum.Tenant = t.ID
	found := func(b []byte) ([]byte, Summary) {
		sum.Outcome = "found"
		return b, sum
	}
	switch {
	case req.User != "":
		u := x.User(t.ID, req.User)
		if u == nil || (req.Key != "" && req.Key != "id") || !isToken(u.Extension) || !isHex(u.HA1) {
			return RenderNotFound(dst), sum
		}
		d := directoryUser{domain: req.KeyValue, realm: t.Realm(), tenant: t.ID, user: u, sbc: sbcOf(x, cell)}
		if n := x.Node(node); n.Cacheable > 0 && !ambiguous(x, u.Extension, req.KeyValue) {
			d.cacheable = n.Cacheable
		}
		return found(renderUser(dst, d))
	case req.Action == "group_call":
		return found(renderGroup(dst, t, req.KeyValue, req.Group))
	case req.Action == "" && req.Purpose == "network-list":
		return found(renderSources(dst, t, req.KeyValue))
	case req.Action == "" && req.Purpose == "":
		return found(renderDomain(dst, req.KeyValue))
	}
	return RenderNotFound(dst), sum
}

// ambiguous reports whether FreeSWITCH's cache would take this user for
// another: its key is the user and the domain without anything between them
// (switch_xml.c:2126), so that a at bc.x and ab at c.x are one. Of such users
// none is cached.
func ambiguous(x *route.Snapshot, user, domain string) bool {
	key := user + domain
	for i := 1; i < len(key); i++ {
		if i == len(user) {
			continue
		}
		if t := x.TenantByDomain(key[i:]); t != nil && x.User(t.ID, key[:i]) != nil {
			return true
		}
	}
	return false
}

// sbcOf returns the ip:port of the cell's first SBC by id, or "". Users are
// reached by way of it.
func sbcOf(x *route.Snapshot, cell bulkhead.CellID) string {
	first, sip := bulkhead.SBCID(""), ""
	for id, s := range x.SBCs() {
		if s.Cell == cell && (first == "" || id < first) {
			first, sip = id, s.SIP
		}
	}
	return sip
}

const directoryHead = documentHead + "  <section name=\"directory\">\n    <domain name=\""

// renderDomain appends a domain without users.
func renderDomain(dst []byte, domain string) []byte {
	dst = append(dst, directoryHead...)
	dst = escape(dst, domain)
	return append(dst, "\"/>\n  </section>\n"+documentTail...)
}

// renderGroup appends a domain with one group, whose members FreeSWITCH looks
// up one by one. A group that the tenant does not have is empty.
func renderGroup(dst []byte, t *bulkhead.Tenant, domain, group string) []byte {
	i := slices.IndexFunc(t.Groups, func(g bulkhead.Group) bool { return g.Name == group })
	if i < 0 || !isID(group) {
		return renderDomain(dst, domain)
	}
	dst = append(dst, directoryHead...)
	dst = escape(dst, domain)
	dst = append(dst, "\">\n      <groups><group name=\""...)
	dst = append(dst, group...)
	dst = append(dst, "\"><users>\n"...)
	for _, m := range t.Groups[i].Members {
		if kind, user := m.Parse(); kind == bulkhead.ToUser && isToken(user) {
			dst = append(dst, "        <user id=\""...)
			dst = append(dst, user...)
			dst = append(dst, "\" type=\"pointer\"/>\n"...)
		}
	}
	return append(dst, "      </users></group></groups>\n    </domain>\n  </section>\n"+documentTail...)
}

// renderSources appends a domain with the networks whose calls are the tenant's.
func renderSources(dst []byte, t *bulkhead.Tenant, domain string) []byte {
	if len(t.Sources) == 0 {
		return renderDomain(dst, domain)
	}
	list := make([]string, len(t.Sources))
	for i, p := range t.Sources {
		list[i] = p.String()
	}
	dst = append(dst, directoryHead...)
	dst = escape(dst, domain)
	dst = append(dst, "\">\n      <groups><group name=\"default\"><users>\n        <user id=\""+sourcesUser+"\" cidr=\""...)
	dst = escape(dst, strings.Join(list, ","))
	return append(dst, "\"/>\n      </users></group></groups>\n    </domain>\n  </section>\n"+documentTail...)
}

// directoryUser is a user as the directory shows him.
type directoryUser struct {
	domain    string // as it was asked for
	realm     string
	tenant    bulkhead.TenantID
	user      *bulkhead.User
	sbc       string // ip:port; empty: he registers on the node
	cacheable int    // seconds; 0: not at all
}

// renderUser appends a domain with one user. All strings have passed an
// allow-list except the caller id, which is left out if it is no number.
func renderUser(dst []byte, d directoryUser) []byte {
	dst = append(dst, directoryHead...)
	dst = escape(dst, d.domain)
	dst = append(dst, "\">\n      <groups><group name=\"default\"><users>\n        <user id=\""...)
	dst = escape(dst, d.user.Extension)
	if d.cacheable > 0 {
		dst = append(dst, "\" cacheable=\""...)
		dst = strconv.AppendInt(dst, int64(d.cacheable)*1000, 10)
	}
	dst = append(dst, "\">\n          <params>\n"...)
	dst = element(dst, "param", "a1-hash", d.user.HA1)
	switch {
	case !isHost(d.realm):
	case d.sbc == "": // wherever he registered on this node
		dst = element(dst, "param", "dial-string", "${sofia_contact(*/"+d.user.Extension+"@"+d.domain+")}")
	case isAddrPort(d.sbc):
		dst = element(dst, "param", "dial-string", "sofia/internal/"+d.user.Extension+"@"+d.realm+";fs_path=sip:"+d.sbc)
	}
	if d.user.Devices > 0 {
		dst = element(dst, "param", "max-registrations-per-extension", strconv.Itoa(d.user.Devices))
	}
	dst = append(dst, "          </params>\n          <variables>\n"...)
	dst = element(dst, "variable", "user_context", Context)
	dst = element(dst, "variable", varTenant, string(d.tenant))
	if isDigits(d.user.CallerID) {
		dst = element(dst, "variable", "effective_caller_id_number", d.user.CallerID)
	}
	return append(dst, "          </variables>\n        </user>\n      </users></group></groups>\n    </domain>\n  </section>\n"+documentTail...)
}

// Context is the dialplan context of Bulkhead's calls in the shipped files.
const Context = "bulkhead"
