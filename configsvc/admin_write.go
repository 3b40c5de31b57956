package configsvc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// query reads the query strictly: a misspelt dry_run must not become a write.
func query(r *http.Request, known ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, errBadRequest("the query cannot be read")
	}
	for k, v := range q {
		switch {
		case !slices.Contains(known, k):
			return nil, errBadRequest("query: %q is not known here; known are: %s", clip(k, maxKeyQuoted), strings.Join(known, ", "))
		case len(v) > 1:
			return nil, errBadRequest("query: %s is there twice", k)
		case !utf8.ValidString(v[0]):
			return nil, errBadRequest("query: %s is not UTF-8", k)
		}
	}
	return q, nil
}

func flag(q url.Values, name string) (bool, error) {
	switch q.Get(name) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	if q.Has(name) {
		return false, errBadRequest("query: %s is neither true nor false", name)
	}
	return false, nil
}

// number reads a number of the query, or def when it is not there.
func number(q url.Values, name string, def, low, high int64) (int64, error) {
	if !q.Has(name) {
		return def, nil
	}
	n, err := strconv.ParseInt(q.Get(name), 10, 64)
	if err != nil || n < low || n > high {
		return 0, errBadRequest("query: %s is not a whole number within %d to %d", name, low, high)
	}
	return n, nil
}

// message returns what the log of revisions shall say.
func message(q url.Values) (string, error) {
	m := q.Get("message")
	if len(m) > registry.MaxMessage || strings.ContainsFunc(m, unprintable) {
		return "", errBadRequest("query: message is over %d bytes or holds control characters", registry.MaxMessage)
	}
	return m, nil
}

// readDocument reads the body, which must be of one of the media types.
func readDocument(r *http.Request, limit int64, kinds ...string) (kind string, body []byte, err error) {
	kind, _, err = mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !slices.Contains(kinds, kind) || r.Header.Get("Content-Encoding") != "" {
		return "", nil, newProblem(http.StatusUnsupportedMediaType, "media-type", "the body is to be %s, without Content-Encoding", strings.Join(kinds, " or "))
	}
	tooLarge := newProblem(http.StatusRequestEntityTooLarge, "too-large", "the body is over %d bytes", limit)
	if r.ContentLength > limit {
		return "", nil, tooLarge
	}
	body, err = io.ReadAll(io.LimitReader(r.Body, limit+1))
	switch {
	case int64(len(body)) > limit:
		return "", nil, tooLarge
	case err != nil:
		return "", nil, errBadRequest("the body ended before its end")
	}
	return kind, body, nil
}

// readJSON reads the body into the struct to which v points.
func readJSON(r *http.Request, limit int64, v any, merge bool) error {
	kinds := []string{"application/json"}
	if merge {
		kinds = []string{"application/merge-patch+json", "application/json"}
	}
	_, body, err := readDocument(r, limit, kinds...)
	if err != nil {
		return err
	}
	return wrongInput(decodeJSON(body, v, merge))
}

func wrongInput(issues []issue) error {
	if len(issues) == 0 {
		return nil
	}
	return errIssues(http.StatusBadRequest, issues)
}

// part picks out of a change what belongs to one object; false when nothing does.
type part func(*bulkhead.Change) (bulkhead.Change, bool)

func whole(c *bulkhead.Change) (bulkhead.Change, bool) { return *c, true }

// conditions are what a request says about the state it was made for (RFC
// 9110, section 13.1). An ETag is a revision: If-Match holds as long as the
// object has not changed since.
type conditions struct {
	match    bool // If-Match is there
	exists   bool // as *
	revision bulkhead.RevisionNumber
	known    bool // the revision was read
	absent   bool // If-None-Match: *
}

func conditionsOf(r *http.Request) (conditions, error) {
	var c conditions
	if v := r.Header.Values("If-Match"); len(v) > 0 {
		c.match = true
		for tag := range strings.SplitSeq(strings.Join(v, ","), ",") {
			tag = strings.TrimSpace(tag)
			if tag == "*" {
				c.exists = true
			}
			if n, ok := revisionOf(tag); ok {
				c.revision, c.known = max(n, c.revision), true
			}
		}
	}
	switch v := strings.TrimSpace(r.Header.Get("If-None-Match")); v {
	case "":
	case "*":
		c.absent = true
	default:
		if r.Method != http.MethodGet {
			return c, errBadRequest("If-None-Match: only * has a meaning here")
		}
	}
	return c, nil
}

func revisionOf(tag string) (bulkhead.RevisionNumber, bool) {
	digits, ok := strings.CutPrefix(tag, `"`)
	digits, ok2 := strings.CutSuffix(digits, `"`)
	n, err := strconv.ParseUint(digits, 10, 63)
	return bulkhead.RevisionNumber(n), ok && ok2 && err == nil
}

// maxLookBack is how many revisions If-Match may be old.
const maxLookBack = 4096

// maxChanges is how many of them a refusal shows, the newest.
const maxChanges = 20

// check holds the conditions against the head. A refusal shows what happened
// to the object since.
func (a *Admin) check(ctx context.Context, p *principal, c conditions, head bulkhead.RevisionNumber, there bool, of part) error {
	refuse := func(format string, args ...any) *problem {
		x := newProblem(http.StatusPreconditionFailed, "precondition", format, args...)
		x.Revision = head
		return x
	}
	switch {
	case c.absent && there:
		return refuse("the object is there already")
	case !c.match, c.exists && there, c.known && c.revision == head && there:
		return nil
	case !c.known:
		return refuse("the object is not there, or If-Match names no revision")
	case c.revision > head:
		return refuse("If-Match names revision %d, and the head is revision %d", c.revision, head)
	case head-c.revision > maxLookBack:
		return refuse("revision %d is too long ago: read the object again", c.revision)
	}
	var changes []revisionView
	for from := c.revision + 1; from <= head; {
		revisions, err := a.cfg.History.Log(ctx, from, int(head-from)+1)
		if err != nil {
			return err
		}
		if len(revisions) == 0 {
			return refuse("the revisions since %d are not there any more: read the object again", c.revision)
		}
		for i := range revisions {
			if mine, touched := of(&revisions[i].Change); touched && revisions[i].Number <= head {
				changes = append(changes, viewRevision(p, &revisions[i], &mine))
			}
		}
		from = revisions[len(revisions)-1].Number + 1
	}
	switch {
	case len(changes) == 0 && there:
		return nil
	case len(changes) == 0:
		return refuse("the object is not there")
	}
	x := refuse("the object changed since revision %d: see what changed, and make your change anew on revision %d", c.revision, head)
	x.Changes = changes[max(0, len(changes)-maxChanges):]
	return x
}

// edit is a write: what it is about, and how it is made on a given state.
type edit struct {
	of    part
	there func(bulkhead.State) bool
	// plan returns the change and where its fields are in the request. An
	// empty change means that the state is so already.
	plan func(head bulkhead.State) (bulkhead.Change, place, error)
}

const (
	commitTries   = 20
	commitTimeout = 30 * time.Second
)

// commit makes the edit a revision and returns its number: that of the head
// when there was nothing to do. When somebody else commits first, conditions
// and plan are looked at anew.
func (a *Admin) commit(r *http.Request, p *principal, why string, e edit) (bulkhead.RevisionNumber, error) {
	c, err := conditionsOf(r)
	if err != nil {
		return 0, err
	}
	// Who hangs up in between must not leave it open whether he has written.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), commitTimeout)
	defer cancel()
	for try := 1; ; try++ {
		head, err := a.cfg.Store.Head(ctx)
		if err != nil {
			return 0, err
		}
		if err := a.check(ctx, p, c, head.Revision, e.there(head), e.of); err != nil {
			return 0, err
		}
		change, at, err := e.plan(head)
		if err != nil {
			return 0, err
		}
		if change.IsZero() {
			return head.Revision, nil
		}
		made, err := a.cfg.Store.Commit(ctx, head.Revision, bulkhead.Revision{Author: p.author(), Message: why, Change: change})
		switch {
		case err == nil:
			return made.Number, nil
		case errors.Is(err, bulkhead.Conflict) && try < commitTries:
		default:
			return 0, refused(p, at, head, &change, err)
		}
	}
}

// refused turns the registry's refusal into an answer. An object was checked
// alone before, so what is left lies between objects, and its text names the
// others: a tenant's token does not get it.
func refused(p *principal, at place, head bulkhead.State, change *bulkhead.Change, err error) error {
	if len(bulkhead.FieldErrors(err)) == 0 {
		return err
	}
	if p.scope == registry.ScopeTenant {
		return errIssues(http.StatusUnprocessableEntity, []issue{{Detail: "is not possible beside what others have: ask the operator"}})
	}
	issues := at.issues(err)
	for i := range issues {
		if pointer, ok := at.collision(head, change, issues[i].Field); ok {
			issues[i].Pointer, issues[i].Field = pointer, ""
		}
	}
	return errIssues(http.StatusUnprocessableEntity, issues)
}

// validated is err, of an object that was checked alone, as an answer.
func validated(object string, at place, err error) error {
	if err == nil {
		return nil
	}
	var errs []error
	for _, fe := range bulkhead.FieldErrors(err) {
		c := *fe
		c.Field = object + "." + fe.Field
		errs = append(errs, &c)
	}
	return errIssues(http.StatusUnprocessableEntity, at.issues(errors.Join(errs...)))
}

// same compares two objects by the form in which they are stored.
func same(a, b any) bool {
	ja, errA := json.Marshal(a)
	jb, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(ja, jb)
}

func objectName(kind, id string) string { return fmt.Sprintf("%s[%s]", kind, id) }

// unprintable reports whether a revision's message may not hold r.
func unprintable(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' }
