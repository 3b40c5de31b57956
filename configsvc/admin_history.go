package configsvc

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// revisionView is a revision as an answer shows it.
type revisionView struct {
	Number  bulkhead.RevisionNumber `json:"number"`
	Parent  bulkhead.RevisionNumber `json:"parent"`
	Time    time.Time               `json:"time"`
	Author  string                  `json:"author,omitempty"`
	Message string                  `json:"message,omitempty"`
	Objects []string                `json:"objects,omitempty"` // the first of them, such as tenants[acme]
	Count   int                     `json:"count"`             // of all objects that it put or deleted
}

const maxObjectsNamed = 20

// viewRevision shows a revision, or the part of it that is c. A tenant's
// token does not learn who operates the platform, nor why.
func viewRevision(p *principal, r *bulkhead.Revision, c *bulkhead.Change) revisionView {
	v := revisionView{Number: r.Number, Parent: r.Parent, Time: r.Time.UTC()}
	if p.scope != registry.ScopeTenant {
		v.Author, v.Message = r.Author, r.Message
	}
	names := objectNames(c)
	v.Count, v.Objects = len(names), names[:min(len(names), maxObjectsNamed)]
	return v
}

func objectNames(c *bulkhead.Change) []string {
	var out []string
	out = namesIn(out, cells(), c)
	out = namesIn(out, pools(), c)
	out = namesIn(out, nodes(), c)
	out = namesIn(out, sbcs(), c)
	return namesIn(out, tenants(), c)
}

func namesIn[K ~string, T, B any](out []string, c *collection[K, T, B], change *bulkhead.Change) []string {
	list := *c.puts(change)
	for i := range list {
		out = append(out, objectName(c.name, string(*c.id(&list[i]))))
	}
	for _, id := range *c.dels(change) {
		out = append(out, objectName(c.name, string(id)))
	}
	return out
}

// changeView is a change as the principal may see it.
type changeView struct {
	bulkhead.Change

	Tenants []tenantView `json:"tenants,omitempty"`
}

func viewChange(p *principal, c *bulkhead.Change) *changeView {
	v := &changeView{Change: *c}
	for i := range c.Tenants {
		v.Tenants = append(v.Tenants, viewTenant(p, &c.Tenants[i]))
	}
	return v
}

// changed shows a change: its objects as they become, and field by field.
type changed struct {
	Change      *changeView  `json:"change,omitempty"`
	Differences []Difference `json:"differences,omitempty"`
	Truncated   bool         `json:"truncated,omitempty"` // there is more than is shown
}

const (
	maxObjectsShown = 5000
	maxDifferences  = 1000
)

func (a *Admin) changedBy(p *principal, from bulkhead.State, c *bulkhead.Change) changed {
	var out changed
	out.Differences, out.Truncated = Differences(from, c, maxDifferences)
	if len(objectNames(c)) > maxObjectsShown {
		out.Truncated = true
		return out
	}
	out.Change = viewChange(p, c)
	return out
}

const (
	defaultRevisions = 20
	maxRevisions     = 200
)

// listRevisions lists revisions, newest first.
func (a *Admin) listRevisions(r *http.Request, p *principal) (*answer, error) {
	q, err := query(r, "limit", "cursor")
	if err != nil {
		return nil, err
	}
	limit, err := number(q, "limit", defaultRevisions, 1, maxRevisions)
	if err != nil {
		return nil, err
	}
	head, err := a.cfg.Store.Head(r.Context())
	if err != nil {
		return nil, err
	}
	last := int64(head.Revision) //nolint:gosec // revisions are counted one by one
	before, err := number(q, "cursor", last+1, 1, 1<<62)
	if err != nil {
		return nil, err
	}
	before = min(before, last+1)
	from := max(1, before-limit)
	items := []revisionView{}
	for next := from; next < before; {
		revisions, err := a.cfg.History.Log(r.Context(), bulkhead.RevisionNumber(next), int(before-next)) //nolint:gosec // not negative
		if err != nil {
			return nil, err
		}
		if len(revisions) == 0 {
			break
		}
		for i := range revisions {
			items = append(items, viewRevision(p, &revisions[i], &revisions[i].Change))
		}
		next = int64(revisions[len(revisions)-1].Number) + 1 //nolint:gosec // revisions are counted one by one
	}
	slices.Reverse(items)
	out := map[string]any{"items": items, "revision": head.Revision}
	if from > 1 && int64(len(items)) == before-from { // history may begin later than with 1
		out["next"] = strconv.FormatInt(from, 10)
	}
	return &answer{status: http.StatusOK, body: out, revision: head.Revision, tagged: true}, nil
}

// showRevision shows one revision with its change.
func (a *Admin) showRevision(r *http.Request, p *principal) (*answer, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(param(r, "revision"), 10, 62)
	if err != nil || n == 0 {
		return nil, errHidden()
	}
	revisions, err := a.cfg.History.Log(r.Context(), bulkhead.RevisionNumber(n), 1)
	if err != nil {
		return nil, err
	}
	if len(revisions) == 0 || revisions[0].Number != bulkhead.RevisionNumber(n) {
		return nil, errHidden()
	}
	x := &revisions[0]
	out := struct {
		revisionView
		Change    *changeView `json:"change,omitempty"`
		Truncated bool        `json:"truncated,omitempty"`
	}{revisionView: viewRevision(p, x, &x.Change)}
	if out.Count > maxObjectsShown {
		out.Truncated = true
	} else {
		out.Change = viewChange(p, &x.Change)
	}
	return ok(out), nil
}

// diff shows what leads from one revision to another.
func (a *Admin) diff(r *http.Request, p *principal) (*answer, error) {
	q, err := query(r, "from", "to")
	if err != nil {
		return nil, err
	}
	done, err := a.alone(r)
	if err != nil {
		return nil, err
	}
	defer done()
	head, err := a.cfg.Store.Head(r.Context())
	if err != nil {
		return nil, err
	}
	if !q.Has("from") {
		return nil, errBadRequest("query: from is missing: the number of a revision")
	}
	var ends [2]bulkhead.State
	for i, name := range []string{"from", "to"} {
		n, err := number(q, name, int64(head.Revision), 0, 1<<62) //nolint:gosec // revisions are counted one by one
		if err != nil {
			return nil, err
		}
		if ends[i], err = a.stateAt(r, head, bulkhead.RevisionNumber(n)); err != nil { //nolint:gosec // not negative
			return nil, err
		}
	}
	change := ends[0].Diff(ends[1])
	return ok(struct {
		From bulkhead.RevisionNumber `json:"from"`
		To   bulkhead.RevisionNumber `json:"to"`
		changed
	}{ends[0].Revision, ends[1].Revision, a.changedBy(p, ends[0], &change)}), nil
}

func (a *Admin) stateAt(r *http.Request, head bulkhead.State, n bulkhead.RevisionNumber) (bulkhead.State, error) {
	if n == head.Revision {
		return head, nil
	}
	if n > head.Revision {
		return head, newProblem(http.StatusNotFound, "not-found", "%s", fmt.Sprintf("the head is revision %d", head.Revision))
	}
	return a.cfg.History.State(r.Context(), n)
}
