package configsvc

import (
	"crypto/md5" //nolint:gosec // SIP digest authentication is made of it
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/bulkhead-voip/bulkhead"
)

// MaxPassword is the longest password of a user, in bytes.
const MaxPassword = 256

// HA1 returns the digest secret of a user: what is kept instead of the
// password (RFC 7616, section 3.4.2). Its errors are bulkhead.Invalid and do
// not quote the password.
func HA1(extension, realm, password string) (string, error) {
	switch {
	case password == "" || len(password) > MaxPassword:
		return "", fmt.Errorf("the password is empty or over %d bytes long: %w", MaxPassword, bulkhead.Invalid)
	case strings.ContainsFunc(password, unicode.IsControl):
		return "", fmt.Errorf("the password holds a control character, such as a line end: %w", bulkhead.Invalid)
	case realm == "":
		return "", fmt.Errorf("a password needs a domain of the tenant: its first one is the digest realm: %w", bulkhead.Invalid)
	}
	sum := md5.Sum([]byte(extension + ":" + realm + ":" + password)) //nolint:gosec // RFC 3261 section 22
	return hex.EncodeToString(sum[:]), nil
}

// userBody is a user as a request gives it: with a password, an HA1, or
// neither, which keeps what is there.
type userBody struct {
	bulkhead.User

	Password *secret `json:"password"`
}

func beginUser(u *bulkhead.User) userBody {
	b := userBody{User: *u}
	b.HA1 = ""
	return b
}

// finish makes the user. realm is the tenant's, oldRealm what it was before.
func (b *userBody) finish(realm, oldRealm string, old *bulkhead.User, pointer string) (bulkhead.User, []issue) {
	wrong := func(field, format string, args ...any) (bulkhead.User, []issue) {
		return bulkhead.User{}, []issue{{Pointer: pointer + field, Detail: fmt.Sprintf(format, args...)}}
	}
	u := b.User
	switch {
	case b.Password != nil && u.HA1 != "":
		return wrong("/password", "is there beside ha1: leave one out")
	case b.Password != nil:
		ha1, err := HA1(u.Extension, realm, string(*b.Password))
		if err != nil {
			return wrong("/password", "%s", strings.TrimSuffix(err.Error(), ": "+string(bulkhead.Invalid)))
		}
		u.HA1 = ha1
	case u.HA1 == "" && old == nil:
		return wrong("", "has neither password nor ha1")
	case old == nil:
	case realm != oldRealm && (u.HA1 == "" || u.HA1 == old.HA1):
		return wrong("", "needs its password again: the first domain is the digest realm, and that changes from %q to %q", oldRealm, realm)
	case u.HA1 == "":
		u.HA1 = old.HA1
	}
	return u, nil
}

// tenantBody is a tenant as a request gives it.
type tenantBody struct {
	bulkhead.Tenant

	Users []userBody `json:"users"`
}

func beginTenant(t *bulkhead.Tenant) tenantBody {
	b := tenantBody{Tenant: *t}
	b.Tenant.Users = nil
	for i := range t.Users {
		b.Users = append(b.Users, beginUser(&t.Users[i]))
	}
	return b
}

func (b *tenantBody) finish(old *bulkhead.Tenant) (bulkhead.Tenant, []issue) {
	t := b.Tenant
	oldUsers, oldRealm := map[string]*bulkhead.User{}, ""
	if old != nil {
		oldRealm = old.Realm()
		for i := range old.Users {
			oldUsers[old.Users[i].Extension] = &old.Users[i]
		}
	}
	var issues []issue
	for i := range t.Trunks {
		t.Trunks[i] = keepPassword(t.Trunks[i], old)
	}
	t.Users = make([]bulkhead.User, 0, len(b.Users))
	for i := range b.Users {
		u, wrong := b.Users[i].finish(t.Realm(), oldRealm, oldUsers[b.Users[i].Extension], fmt.Sprintf("/users/%d", i))
		if len(issues) < maxIssues {
			issues = append(issues, wrong...)
		}
		t.Users = append(t.Users, u)
	}
	return t, issues
}

// keepPassword gives a trunk that comes with a username but no password the
// one that the trunk of its name has: it is not shown to everybody who writes.
func keepPassword(k bulkhead.Trunk, t *bulkhead.Tenant) bulkhead.Trunk {
	if t == nil || k.Password != "" || k.Username == "" {
		return k
	}
	if i := slices.IndexFunc(t.Trunks, func(o bulkhead.Trunk) bool { return o.Name == k.Name }); i >= 0 {
		k.Password = t.Trunks[i].Password
	}
	return k
}

// userView is a user whose digest secret may be left out.
type userView struct {
	bulkhead.User

	HA1 string `json:"ha1,omitempty"`
}

func viewUser(p *principal, u *bulkhead.User) userView {
	v := userView{User: *u}
	if p.seesSecrets() {
		v.HA1 = u.HA1
	}
	return v
}

type tenantView struct {
	bulkhead.Tenant

	Users []userView `json:"users,omitempty"`
}

// viewTrunk leaves the password out for whoever may not see it.
func viewTrunk(p *principal, k *bulkhead.Trunk) bulkhead.Trunk {
	v := *k
	if !p.seesSecrets() {
		v.Password = ""
	}
	return v
}

func viewTenant(p *principal, t *bulkhead.Tenant) tenantView {
	v := tenantView{Tenant: *t, Users: make([]userView, 0, len(t.Users))}
	v.Trunks = make([]bulkhead.Trunk, 0, len(t.Trunks))
	for i := range t.Trunks {
		v.Trunks = append(v.Trunks, viewTrunk(p, &t.Trunks[i]))
	}
	for i := range t.Users {
		v.Users = append(v.Users, viewUser(p, &t.Users[i]))
	}
	return v
}

// mayWriteUser holds a tenant's token to caller ids that are its tenant's:
// any other would show somebody else's number to the called.
func mayWriteUser(t *bulkhead.Tenant, old, u *bulkhead.User) error {
	if u == nil || u.CallerID == "" || old != nil && old.CallerID == u.CallerID {
		return nil
	}
	if slices.ContainsFunc(t.Numbers, func(n bulkhead.Number) bool { return n.Number == u.CallerID }) {
		return nil
	}
	return newForbiddenField("/caller_id", "is not a number of the tenant, and only those may a tenant's token set")
}

// mayWriteNumber lets a tenant's token say where its numbers lead. Which
// numbers it has is the operator's to say.
func mayWriteNumber(_ *bulkhead.Tenant, old, n *bulkhead.Number) error {
	if old != nil && n != nil {
		return nil
	}
	return errForbidden("a tenant's token changes where its numbers lead, and neither adds nor removes one")
}

func newForbiddenField(pointer, detail string) error {
	p := errForbidden("a field holds what the token may not set; nothing was changed")
	p.Errors = []issue{{Pointer: pointer, Detail: detail}}
	return p
}
