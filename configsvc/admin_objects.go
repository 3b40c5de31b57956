package configsvc

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/go-chi/chi/v5"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// collection is one kind of object: K its id, T the object, B what a request
// says of it.
type collection[K ~string, T, B any] struct {
	name   string // as in the path and in field errors
	all    func(bulkhead.State) map[K]*T
	puts   func(*bulkhead.Change) *[]T
	dels   func(*bulkhead.Change) *[]K
	id     func(*T) *K
	idOf   func(*B) *K
	begin  func(*T) B                       // what a merge starts from; nil: nothing
	finish func(b *B, old *T) (T, []issue)  // old is nil when it is new
	check  func(*T) error                   // of the object alone
	view   func(*principal, *T) any         // what the principal sees
	admit  guard                            // of one object
	filter map[string]func(*T, string) bool // by query key
	limit  int64                            // bytes of a body
	param  string                           // of the path
}

func (c *collection[K, T, B]) only(id K) part {
	return func(change *bulkhead.Change) (out bulkhead.Change, touched bool) {
		for _, v := range *c.puts(change) {
			if *c.id(&v) == id {
				*c.puts(&out) = append(*c.puts(&out), v)
			}
		}
		for _, k := range *c.dels(change) {
			if k == id {
				*c.dels(&out) = append(*c.dels(&out), k)
			}
		}
		return out, !out.IsZero()
	}
}

// routesOf adds the routes of a collection.
func routesOf[K ~string, T, B any](a *Admin, r chi.Router, c *collection[K, T, B]) {
	list := c.admit
	list.tenantWrites = false
	one := "/v1/" + c.name + "/{" + c.param + "}"
	r.Get("/v1/"+c.name, a.handle(list, func(r *http.Request, p *principal) (*answer, error) { return listObjects(a, c, r, p) }))
	r.Get(one, a.handle(c.admit, func(r *http.Request, p *principal) (*answer, error) { return getObject(a, c, r, p) }))
	r.Put(one, a.handle(c.admit, func(r *http.Request, p *principal) (*answer, error) { return putObject(a, c, r, p, false) }))
	r.Patch(one, a.handle(c.admit, func(r *http.Request, p *principal) (*answer, error) { return putObject(a, c, r, p, true) }))
	r.Delete(one, a.handle(c.admit, func(r *http.Request, p *principal) (*answer, error) { return deleteObject(a, c, r, p) }))
}

// page is one page of a list.
type page struct {
	Items    []json.RawMessage       `json:"items"`
	Next     string                  `json:"next,omitempty"` // cursor of the next page
	Revision bulkhead.RevisionNumber `json:"revision"`
}

const (
	defaultPage = 100
	maxPage     = 1000
	maxPageSize = 4 << 20 // bytes; the item that passes it is the last
)

// paginate fills a page with what view returns for the keys after the cursor;
// nil is left out. Keys are sorted.
func paginate(q url.Values, head bulkhead.RevisionNumber, keys []string, view func(key string) any) (*answer, error) {
	limit, err := number(q, "limit", defaultPage, 1, maxPage)
	if err != nil {
		return nil, err
	}
	at, found := slices.BinarySearch(keys, q.Get("cursor"))
	if found {
		at++
	}
	out, size := page{Items: []json.RawMessage{}, Revision: head}, 0
	for i, key := range keys[at:] {
		v := view(key)
		if v == nil {
			continue
		}
		body, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		out.Items = append(out.Items, body)
		if size += len(body); (len(out.Items) == int(limit) || size > maxPageSize) && at+i+1 < len(keys) {
			out.Next = key
			break
		}
	}
	return &answer{status: http.StatusOK, body: out, revision: head, tagged: true}, nil
}

func sortedKeys[K ~string, T any](m map[K]*T) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, string(k))
	}
	slices.Sort(out)
	return out
}

func listObjects[K ~string, T, B any](a *Admin, c *collection[K, T, B], r *http.Request, p *principal) (*answer, error) {
	q, err := query(r, append([]string{"limit", "cursor"}, slices.Sorted(maps.Keys(c.filter))...)...)
	if err != nil {
		return nil, err
	}
	head, err := a.cfg.Store.Head(r.Context())
	if err != nil {
		return nil, err
	}
	all := c.all(head)
	var keys []string
	if p.scope == registry.ScopeTenant {
		// Only tenants let a tenant's token list them: it sees itself.
		if all[K(p.tenant)] != nil {
			keys = []string{string(p.tenant)}
		}
	} else {
		keys = sortedKeys(all)
	}
	return paginate(q, head.Revision, keys, func(key string) any {
		v := all[K(key)]
		for name, match := range c.filter {
			if q.Has(name) && !match(v, q.Get(name)) {
				return nil
			}
		}
		return c.view(p, v)
	})
}

// unchanged answers a GET whose If-None-Match names the head.
func unchanged(r *http.Request, head bulkhead.RevisionNumber) *answer {
	if n, ok := revisionOf(r.Header.Get("If-None-Match")); ok && n == head {
		return &answer{status: http.StatusNotModified, revision: head, tagged: true}
	}
	return nil
}

func getObject[K ~string, T, B any](a *Admin, c *collection[K, T, B], r *http.Request, p *principal) (*answer, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	head, err := a.cfg.Store.Head(r.Context())
	if err != nil {
		return nil, err
	}
	v := c.all(head)[K(param(r, c.param))]
	if v == nil {
		return nil, errHidden()
	}
	if x := unchanged(r, head.Revision); x != nil {
		return x, nil
	}
	return &answer{status: http.StatusOK, body: c.view(p, v), revision: head.Revision, tagged: true}, nil
}

// putObject makes the object what the body says, or with merge changes what
// the body names.
func putObject[K ~string, T, B any](a *Admin, c *collection[K, T, B], r *http.Request, p *principal, merge bool) (*answer, error) {
	why, err := reason(r)
	if err != nil {
		return nil, err
	}
	kinds := []string{"application/json"}
	if merge {
		kinds = append(kinds, "application/merge-patch+json")
	}
	_, body, err := readDocument(r, c.limit, kinds...)
	if err != nil {
		return nil, err
	}
	id := K(param(r, c.param))
	var made T
	var isNew bool
	n, err := a.commit(r, p, why, edit{
		of:    c.only(id),
		there: func(s bulkhead.State) bool { return c.all(s)[id] != nil },
		plan: func(head bulkhead.State) (change bulkhead.Change, at place, err error) {
			old := c.all(head)[id]
			if merge && old == nil {
				return change, at, errHidden()
			}
			var b B
			if merge {
				b = c.begin(old)
			}
			if err := wrongInput(decodeJSON(body, &b, merge)); err != nil {
				return change, at, err
			}
			if got := c.idOf(&b); *got == "" {
				*got = id
			} else if *got != id {
				return change, at, wrongInput([]issue{{Pointer: "/id", Detail: "is not the id of the path: an object keeps its id"}})
			}
			v, issues := c.finish(&b, old)
			if err := wrongInput(issues); err != nil {
				return change, at, err
			}
			at.object = objectName(c.name, string(id))
			if err := validated(at.object, at, c.check(&v)); err != nil {
				return change, at, err
			}
			made, isNew = v, old == nil
			if old == nil || !same(old, &v) {
				*c.puts(&change) = []T{v}
			}
			return change, at, nil
		},
	})
	if err != nil {
		return nil, err
	}
	return wrote(c.view(p, &made), n, isNew, "/v1/"+c.name+"/"+url.PathEscape(string(id))), nil
}

func wrote(body any, n bulkhead.RevisionNumber, isNew bool, location string) *answer {
	x := &answer{status: http.StatusOK, body: body, revision: n, tagged: true}
	if isNew {
		x.status, x.location = http.StatusCreated, location
	}
	return x
}

// reason reads the query of a write.
func reason(r *http.Request) (string, error) {
	q, err := query(r, "message")
	if err != nil {
		return "", err
	}
	return message(q)
}

func deleteObject[K ~string, T, B any](a *Admin, c *collection[K, T, B], r *http.Request, p *principal) (*answer, error) {
	why, err := reason(r)
	if err != nil {
		return nil, err
	}
	id := K(param(r, c.param))
	n, err := a.commit(r, p, why, edit{
		of:    c.only(id),
		there: func(s bulkhead.State) bool { return c.all(s)[id] != nil },
		plan: func(head bulkhead.State) (change bulkhead.Change, at place, err error) {
			if c.all(head)[id] == nil {
				return change, at, errHidden()
			}
			*c.dels(&change) = []K{id}
			return change, at, nil
		},
	})
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusNoContent, revision: n, tagged: true}, nil
}
