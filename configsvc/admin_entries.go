package configsvc

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/go-chi/chi/v5"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// entries is one list of a tenant whose entries have a path each: E an entry,
// B what a request says of it.
type entries[E, B any] struct {
	name   string // as in the path and in field errors
	param  string // of the path
	list   func(*bulkhead.Tenant) *[]E
	key    func(*E) *string // unique in the tenant
	keyOf  func(*B) *string
	begin  func(*E) B                                          // what a merge starts from
	finish func(b *B, t *bulkhead.Tenant, old *E) (E, []issue) // old is nil when it is new
	view   func(*principal, *E) any
	admit  guard
	may    func(t *bulkhead.Tenant, old, made *E) error // what a tenant's token may; nil entries are not there
}

// entriesOf adds the routes of a list of entries.
func entriesOf[E, B any](a *Admin, r chi.Router, c *entries[E, B]) {
	all := "/v1/tenants/{tenant}/" + c.name
	one := all + "/{" + c.param + "}"
	r.Get(all, a.handle(c.admit, func(r *http.Request, p *principal) (*answer, error) { return listEntries(a, c, r, p) }))
	r.Get(one, a.handle(c.admit, func(r *http.Request, p *principal) (*answer, error) { return getEntry(a, c, r, p) }))
	r.Put(one, a.handle(c.admit, func(r *http.Request, p *principal) (*answer, error) { return putEntry(a, c, r, p, false) }))
	r.Patch(one, a.handle(c.admit, func(r *http.Request, p *principal) (*answer, error) { return putEntry(a, c, r, p, true) }))
	r.Delete(one, a.handle(c.admit, func(r *http.Request, p *principal) (*answer, error) { return deleteEntry(a, c, r, p) }))
}

// tenantOf returns the tenant of the path at the head.
func (a *Admin) tenantOf(r *http.Request) (bulkhead.State, *bulkhead.Tenant, error) {
	head, err := a.cfg.Store.Head(r.Context())
	if err != nil {
		return head, nil, err
	}
	t := head.Tenants[bulkhead.TenantID(param(r, "tenant"))]
	if t == nil {
		return head, nil, errHidden()
	}
	return head, t, nil
}

func (c *entries[E, B]) find(t *bulkhead.Tenant, key string) int {
	if t == nil {
		return -1
	}
	return slices.IndexFunc(*c.list(t), func(e E) bool { return *c.key(&e) == key })
}

func listEntries[E, B any](a *Admin, c *entries[E, B], r *http.Request, p *principal) (*answer, error) {
	q, err := query(r, "limit", "cursor")
	if err != nil {
		return nil, err
	}
	head, t, err := a.tenantOf(r)
	if err != nil {
		return nil, err
	}
	list := *c.list(t)
	byKey, keys := make(map[string]*E, len(list)), make([]string, 0, len(list))
	for i := range list {
		k := *c.key(&list[i])
		byKey[k], keys = &list[i], append(keys, k)
	}
	slices.Sort(keys)
	return paginate(q, head.Revision, keys, func(key string) any { return c.view(p, byKey[key]) })
}

func getEntry[E, B any](a *Admin, c *entries[E, B], r *http.Request, p *principal) (*answer, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	head, t, err := a.tenantOf(r)
	if err != nil {
		return nil, err
	}
	i := c.find(t, param(r, c.param))
	if i < 0 {
		return nil, errHidden()
	}
	if x := unchanged(r, head.Revision); x != nil {
		return x, nil
	}
	return &answer{status: http.StatusOK, body: c.view(p, &(*c.list(t))[i]), revision: head.Revision, tagged: true}, nil
}

// tenantEdit is a write within one tenant. change alters a copy of the tenant,
// whose lists it must replace and not write into.
func tenantEdit(id bulkhead.TenantID, there func(*bulkhead.Tenant) bool, change func(old, t *bulkhead.Tenant) (place, error)) edit {
	return edit{
		of:    tenants().only(id),
		there: func(s bulkhead.State) bool { return there(s.Tenants[id]) },
		plan: func(head bulkhead.State) (c bulkhead.Change, at place, err error) {
			old := head.Tenants[id]
			if old == nil {
				return c, at, errHidden()
			}
			t := *old
			if at, err = change(old, &t); err != nil {
				return c, at, err
			}
			at.object = objectName("tenants", string(id))
			if err := validated(at.object, at, t.Validate()); err != nil {
				return c, at, err
			}
			if !same(old, &t) {
				c.Tenants = []bulkhead.Tenant{t}
			}
			return c, at, nil
		},
	}
}

func putEntry[E, B any](a *Admin, c *entries[E, B], r *http.Request, p *principal, merge bool) (*answer, error) {
	why, err := reason(r)
	if err != nil {
		return nil, err
	}
	kinds := []string{"application/json"}
	if merge {
		kinds = append(kinds, "application/merge-patch+json")
	}
	_, body, err := readDocument(r, maxSmallBody, kinds...)
	if err != nil {
		return nil, err
	}
	tenant, key := param(r, "tenant"), param(r, c.param)
	var made E
	var isNew bool
	n, err := a.commit(r, p, why, tenantEdit(bulkhead.TenantID(tenant),
		func(t *bulkhead.Tenant) bool { return c.find(t, key) >= 0 },
		func(was, t *bulkhead.Tenant) (at place, err error) {
			list := slices.Clone(*c.list(t))
			i := c.find(t, key)
			var old *E
			var b B
			switch {
			case i >= 0:
				old = &(*c.list(was))[i]
				if merge {
					b = c.begin(old)
				}
			case merge:
				return at, errHidden()
			default:
				i = len(list)
				list = append(list, made)
			}
			if list[i], err = c.decode(body, &b, merge, key, t, old); err != nil {
				return at, err
			}
			if p.scope == registry.ScopeTenant && c.may != nil {
				if err := c.may(was, old, &list[i]); err != nil {
					return at, err
				}
			}
			*c.list(t) = list
			made, isNew = list[i], old == nil
			return place{inside: fmt.Sprintf("%s[%d]", c.name, i)}, nil
		}))
	if err != nil {
		return nil, err
	}
	return wrote(c.view(p, &made), n, isNew, "/v1/tenants/"+url.PathEscape(tenant)+"/"+c.name+"/"+url.PathEscape(key)), nil
}

// decode makes the entry that a body describes, or changes.
func (c *entries[E, B]) decode(body []byte, b *B, merge bool, key string, t *bulkhead.Tenant, old *E) (E, error) {
	var none E
	if err := wrongInput(decodeJSON(body, b, merge)); err != nil {
		return none, err
	}
	if got := c.keyOf(b); *got == "" {
		*got = key
	} else if *got != key {
		return none, wrongInput([]issue{{Pointer: "/" + c.jsonKey(), Detail: "is not the one of the path: an entry keeps it"}})
	}
	e, issues := c.finish(b, t, old)
	return e, wrongInput(issues)
}

// jsonKey is the key's name in a body: that of the path, but for a trunk.
func (c *entries[E, B]) jsonKey() string {
	if c.name == "trunks" {
		return "name"
	}
	return c.param
}

func deleteEntry[E, B any](a *Admin, c *entries[E, B], r *http.Request, p *principal) (*answer, error) {
	why, err := reason(r)
	if err != nil {
		return nil, err
	}
	key := param(r, c.param)
	n, err := a.commit(r, p, why, tenantEdit(bulkhead.TenantID(param(r, "tenant")),
		func(t *bulkhead.Tenant) bool { return c.find(t, key) >= 0 },
		func(was, t *bulkhead.Tenant) (at place, err error) {
			i := c.find(was, key)
			if i < 0 {
				return at, errHidden()
			}
			if p.scope == registry.ScopeTenant && c.may != nil {
				if err := c.may(was, &(*c.list(was))[i], nil); err != nil {
					return at, err
				}
			}
			*c.list(t) = slices.Delete(slices.Clone(*c.list(t)), i, i+1)
			return place{inside: "-"}, nil // nothing is in the request
		}))
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusNoContent, revision: n, tagged: true}, nil
}

// list is a list of a tenant that is read and written whole, because its
// order has a meaning or its entries do not fit into a path.
type list[E any] struct {
	name string
	list func(*bulkhead.Tenant) *[]E
}

// listBody is such a list, in a request and in an answer.
type listBody[E any] struct {
	Items []E `json:"items"`
}

// listOf adds the routes of a list.
func listOf[E any](a *Admin, r chi.Router, c *list[E]) {
	path := "/v1/tenants/{tenant}/" + c.name
	g := guard{tenantReads: true}
	r.Get(path, a.handle(g, func(r *http.Request, _ *principal) (*answer, error) {
		if _, err := query(r); err != nil {
			return nil, err
		}
		head, t, err := a.tenantOf(r)
		if err != nil {
			return nil, err
		}
		if x := unchanged(r, head.Revision); x != nil {
			return x, nil
		}
		return c.answer(t, head.Revision), nil
	}))
	r.Put(path, a.handle(g, func(r *http.Request, p *principal) (*answer, error) { return c.put(a, r, p) }))
}

func (c *list[E]) answer(t *bulkhead.Tenant, n bulkhead.RevisionNumber) *answer {
	b := listBody[E]{Items: *c.list(t)}
	if b.Items == nil {
		b.Items = []E{}
	}
	return &answer{status: http.StatusOK, body: b, revision: n, tagged: true}
}

func (c *list[E]) put(a *Admin, r *http.Request, p *principal) (*answer, error) {
	why, err := reason(r)
	if err != nil {
		return nil, err
	}
	var b listBody[E]
	if err := readJSON(r, MaxBody, &b, false); err != nil {
		return nil, err
	}
	if b.Items == nil {
		return nil, wrongInput([]issue{{Pointer: "/items", Detail: "is missing: write [] for an empty list"}})
	}
	var made bulkhead.Tenant
	n, err := a.commit(r, p, why, tenantEdit(bulkhead.TenantID(param(r, "tenant")),
		func(t *bulkhead.Tenant) bool { return t != nil },
		func(was, t *bulkhead.Tenant) (place, error) {
			*c.list(t) = b.Items
			if t.Realm() != was.Realm() && len(t.Users) > 0 {
				return place{}, errIssues(http.StatusUnprocessableEntity, []issue{{Pointer: "/items/0", Detail: fmt.Sprintf(
					"%q is the digest realm of %d users, whose passwords go with it: change it together with them, by PATCH of the tenant", was.Realm(), len(t.Users))}})
			}
			made = *t
			return place{inside: c.name, base: "/items"}, nil
		}))
	if err != nil {
		return nil, err
	}
	return c.answer(&made, n), nil
}
