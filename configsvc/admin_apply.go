package configsvc

import (
	"bytes"
	"fmt"
	"net/http"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// applied is the answer to a bulk request.
type applied struct {
	// Revision is the number of the state that holds what was asked for; in a
	// dry run, the number it would get.
	Revision bulkhead.RevisionNumber `json:"revision"`
	DryRun   bool                    `json:"dry_run"`
	Changed  bool                    `json:"changed"` // false: it was so already
	changed
}

// planner makes of a head the change that a bulk request asks for.
type planner func(head bulkhead.State) (bulkhead.Change, place, error)

// apply puts the objects of the body into the registry, all or none.
func (a *Admin) apply(r *http.Request, p *principal) (*answer, error) {
	q, err := query(r, "dry_run", "prune", "message")
	if err != nil {
		return nil, err
	}
	prune, err := flag(q, "prune")
	if err != nil {
		return nil, err
	}
	done, err := a.alone(r) // before the body takes memory
	if err != nil {
		return nil, err
	}
	defer done()
	kind, body, err := readDocument(r, MaxBody, "application/json", "application/yaml")
	if err != nil {
		return nil, err
	}
	return a.bulk(r, p, q, body, "", func() (planner, error) {
		if kind == "application/yaml" {
			return planYAML(body, prune)
		}
		return planJSON(body, prune)
	})
}

// rollback makes the state of an old revision the newest one.
func (a *Admin) rollback(r *http.Request, p *principal) (*answer, error) {
	q, err := query(r, "dry_run", "message")
	if err != nil {
		return nil, err
	}
	_, body, err := readDocument(r, maxSmallBody, "application/json")
	if err != nil {
		return nil, err
	}
	var b struct {
		To *uint64 `json:"to"`
	}
	if err := wrongInput(decodeJSON(body, &b, false)); err != nil {
		return nil, err
	}
	if b.To == nil {
		return nil, wrongInput([]issue{{Pointer: "/to", Detail: "is missing: the number of the revision to go back to"}})
	}
	to := bulkhead.RevisionNumber(*b.To)
	done, err := a.alone(r)
	if err != nil {
		return nil, err
	}
	defer done()
	return a.bulk(r, p, q, body, fmt.Sprintf("rollback to revision %d", to), func() (planner, error) {
		old, err := a.cfg.History.State(r.Context(), to)
		if err != nil {
			return nil, err
		}
		return func(head bulkhead.State) (bulkhead.Change, place, error) {
			return head.Diff(old), place{}, nil
		}, nil
	})
}

// bulk runs a bulk request, which is alone: each may take much memory.
func (a *Admin) bulk(r *http.Request, p *principal, q map[string][]string, body []byte, why string, prepare func() (planner, error)) (*answer, error) {
	dry, err := flag(q, "dry_run")
	if err != nil {
		return nil, err
	}
	given, err := message(q)
	if err != nil {
		return nil, err
	}
	if given != "" {
		why = given
	}
	finish, again, err := a.repeats.begin(r, p, body, dry)
	if err != nil || again != nil {
		return again, err
	}
	var x *answer
	defer func() { finish(x) }()
	plan, err := prepare()
	if err != nil {
		return nil, err
	}
	x, err = a.run(r, p, why, dry, plan)
	return x, err
}

// alone waits until no other bulk request runs.
func (a *Admin) alone(r *http.Request) (done func(), err error) { return hold(r, a.heavy) }

// hold waits for a place among those that may hold something at a time.
func hold(r *http.Request, places chan struct{}) (done func(), err error) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

func (a *Admin) run(r *http.Request, p *principal, why string, dry bool, plan planner) (*answer, error) {
	var from bulkhead.State
	var change bulkhead.Change
	e := edit{of: whole, there: func(bulkhead.State) bool { return true }, plan: func(head bulkhead.State) (c bulkhead.Change, at place, err error) {
		c, at, err = plan(head)
		from, change = head, c
		return c, at, err
	}}
	if !dry {
		n, err := a.commit(r, p, why, e)
		if err != nil {
			return nil, err
		}
		out := applied{Revision: n, Changed: !change.IsZero(), changed: a.changedBy(p, from, &change)}
		return &answer{status: http.StatusOK, body: out, revision: n, tagged: true}, nil
	}
	c, err := conditionsOf(r)
	if err != nil {
		return nil, err
	}
	head, err := a.cfg.Store.Head(r.Context())
	if err != nil {
		return nil, err
	}
	if err := a.check(r.Context(), p, c, head.Revision, true, e.of); err != nil {
		return nil, err
	}
	_, at, err := e.plan(head)
	if err != nil {
		return nil, err
	}
	out := applied{Revision: head.Revision, DryRun: true, Changed: !change.IsZero(), changed: a.changedBy(p, from, &change)}
	if out.Changed {
		out.Revision++
		if err := head.Apply(&change).Validate(); err != nil {
			return nil, refused(p, at, head, &change, err)
		}
	}
	return &answer{status: http.StatusOK, body: out, revision: head.Revision, tagged: true}, nil
}

// maxYAMLParts bounds the memory that reading YAML takes: about 200 bytes a part.
const maxYAMLParts = 1_500_000

func planYAML(body []byte, prune bool) (planner, error) {
	parts := 0
	for _, c := range []byte("\n\r,[{:-?") {
		parts += bytes.Count(body, []byte{c})
	}
	if parts > maxYAMLParts {
		return nil, wrongInput([]issue{{Detail: fmt.Sprintf("the document has over %d parts: split it, or send it as JSON", maxYAMLParts)}})
	}
	f, err := registry.ParseFile("body", body)
	if err != nil {
		return nil, wrongInput(place{}.issues(err))
	}
	return func(head bulkhead.State) (bulkhead.Change, place, error) {
		change, err := f.Plan(head, prune)
		if err != nil {
			return change, place{}, errIssues(http.StatusUnprocessableEntity, place{}.issues(err))
		}
		return change, place{}, nil
	}, nil
}

// bulkBody is a bulk request in JSON: a change whose users may have passwords.
type bulkBody struct {
	bulkhead.Change

	Tenants []tenantBody `json:"tenants"`
}

func planJSON(body []byte, prune bool) (planner, error) {
	var b bulkBody
	if err := wrongInput(decodeJSON(body, &b, false)); err != nil {
		return nil, err
	}
	return planBody(&b, "", prune)
}

// planBody plans a bulk request that stands in its document below base.
func planBody(b *bulkBody, base string, prune bool) (planner, error) {
	want := b.Change
	at := place{at: map[string]string{}}
	var issues []issue
	for i := range b.Tenants {
		t, wrong := b.Tenants[i].finish(nil)
		for _, x := range wrong {
			x.Pointer = fmt.Sprintf("%s/tenants/%d%s", base, i, x.Pointer)
			issues = append(issues, x)
		}
		if want.Tenants = append(want.Tenants, t); len(issues) >= maxIssues {
			break
		}
	}
	listObjectsIn(cells(), base, &want, at, &issues)
	listObjectsIn(pools(), base, &want, at, &issues)
	listObjectsIn(nodes(), base, &want, at, &issues)
	listObjectsIn(sbcs(), base, &want, at, &issues)
	listObjectsIn(tenants(), base, &want, at, &issues)
	if len(issues) > 0 {
		return nil, errIssues(http.StatusUnprocessableEntity, issues[:min(len(issues), maxIssues)])
	}
	listed := *b
	return func(head bulkhead.State) (bulkhead.Change, place, error) {
		c := want
		if prune {
			c.Delete.Cells = unnamed(c.Delete.Cells, listed.Cells != nil, head.Cells, "cells", at)
			c.Delete.Pools = unnamed(c.Delete.Pools, listed.Pools != nil, head.Pools, "pools", at)
			c.Delete.Nodes = unnamed(c.Delete.Nodes, listed.Nodes != nil, head.Nodes, "nodes", at)
			c.Delete.SBCs = unnamed(c.Delete.SBCs, listed.SBCs != nil, head.SBCs, "sbcs", at)
			c.Delete.Tenants = unnamed(c.Delete.Tenants, listed.Tenants != nil, head.Tenants, "tenants", at)
		}
		return head.Diff(head.Apply(&c)), at, nil
	}, nil
}

// listObjectsIn notes where the objects of a kind are in the request, and
// checks each alone.
func listObjectsIn[K ~string, T, B any](c *collection[K, T, B], base string, change *bulkhead.Change, at place, issues *[]issue) {
	list := *c.puts(change)
	for i := range list {
		if len(*issues) >= maxIssues {
			return
		}
		name, pointer := objectName(c.name, string(*c.id(&list[i]))), fmt.Sprintf("%s/%s/%d", base, c.name, i)
		if first, twice := at.at[name]; twice {
			*issues = append(*issues, issue{Pointer: pointer + "/id", Detail: "is there twice: the first is " + first})
			continue
		}
		at.at[name] = pointer
		if err := c.check(&list[i]); err != nil {
			own := place{object: "x"}
			for _, fe := range bulkhead.FieldErrors(err) {
				rest, _ := own.pointer("x." + fe.Field)
				*issues = append(*issues, issue{Pointer: pointer + rest, Detail: clip(fe.Msg, maxDetail)})
			}
		}
	}
}

// unnamed adds to the deletions what a list of the request leaves out.
func unnamed[K ~string, V any](del []K, listed bool, have map[K]*V, kind string, at place) []K {
	if !listed {
		return del
	}
	out := append([]K(nil), del...)
	for _, id := range sortedKeys(have) {
		if _, named := at.at[objectName(kind, id)]; !named {
			out = append(out, K(id))
		}
	}
	return out
}
