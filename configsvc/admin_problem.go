package configsvc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/bulkhead-voip/bulkhead"
)

// problem is an error as RFC 9457 has it. It is itself an error.
type problem struct {
	Type   string  `json:"type"` // urn:bulkhead: and a word that does not change
	Title  string  `json:"title"`
	Status int     `json:"status"`
	Detail string  `json:"detail"`
	Errors []issue `json:"errors,omitempty"`
	// Revision and Changes belong to a failed precondition: the head, and
	// what happened to the object since the revision that was named.
	Revision bulkhead.RevisionNumber `json:"revision,omitempty"`
	Changes  []revisionView          `json:"changes,omitempty"`
}

func (p *problem) Error() string { return p.Detail }

func newProblem(status int, word, format string, args ...any) *problem {
	return &problem{Type: "urn:bulkhead:" + word, Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...)}
}

// errHidden is the one answer for an object that is not there and for one
// that the asker may not know of: to the byte the same.
func errHidden() *problem {
	return newProblem(http.StatusNotFound, "not-found", "there is no such object, or the token may not see it")
}

func errForbidden(what string) *problem {
	return newProblem(http.StatusForbidden, "forbidden", "%s", what)
}

func errBadRequest(format string, args ...any) *problem {
	return newProblem(http.StatusBadRequest, "bad-request", format, args...)
}

func errIssues(status int, issues []issue) *problem {
	p := newProblem(status, "invalid", "%d fields are wrong, nothing was changed", len(issues))
	if len(issues) == 1 {
		p.Detail = "one field is wrong, nothing was changed"
	}
	p.Errors = issues
	return p
}

// problemFor is the only place where kinds become statuses, and where the
// text of an internal error stops.
func (a *Admin) problemFor(r *http.Request, err error) *problem {
	var p *problem
	if !errors.As(err, &p) {
		p = problemOf(r.Context(), err)
		if p.Status >= http.StatusInternalServerError {
			a.log.Error("configsvc: admin API", "method", r.Method, "path", r.URL.Path, "error", err)
		}
	}
	return p
}

// summary is what the audit log keeps of a problem.
func (p *problem) summary() string {
	if len(p.Errors) == 0 {
		return p.Detail
	}
	e := p.Errors[0]
	return fmt.Sprintf("%s: %s%s %s", p.Detail, e.Pointer, e.Field, e.Detail)
}

func problemOf(ctx context.Context, err error) *problem {
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return newProblem(http.StatusRequestEntityTooLarge, "too-large", "the body is over %d bytes", tooLong.Limit)
	case errors.Is(err, bulkhead.NotFound):
		return errHidden()
	case errors.Is(err, bulkhead.Conflict):
		return newProblem(http.StatusConflict, "conflict", "others write all the time: try again")
	case errors.Is(err, bulkhead.Denied):
		return errForbidden("the token may not do this")
	case errors.Is(err, bulkhead.Invalid):
		return newProblem(http.StatusUnprocessableEntity, "invalid", "%s", clip(err.Error(), maxDetail))
	case ctx.Err() != nil:
		return newProblem(http.StatusServiceUnavailable, "unavailable", "the request ended before its answer")
	case errors.Is(err, bulkhead.Unavailable):
		return newProblem(http.StatusServiceUnavailable, "unavailable", "the registry does not answer: the same request may succeed later; a write may have happened, so read before it is repeated")
	default:
		return newProblem(http.StatusInternalServerError, "internal", "the cause is in the log")
	}
}

// maxDetail is how much of one error's text an answer repeats.
const maxDetail = 1024

func clip(s string, limit int) string {
	if len(s) <= limit {
		return strings.ToValidUTF8(s, "?")
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return strings.ToValidUTF8(s[:limit], "?") + "..."
}

// place tells where in a request's body a field of the state is: in the body
// of PUT /v1/tenants/acme, tenants[acme].domains[0] is /domains/0.
type place struct {
	object string            // tenants[acme], the object that the request is about; or empty
	inside string            // users[3], the entry of the object that the body is; or empty
	base   string            // where in the body that is; empty: the body itself
	at     map[string]string // of a bulk request: tenants[acme] -> /tenants/0
}

// pointer returns the RFC 6901 pointer of a field, or false when the field is
// not in the body.
func (p place) pointer(field string) (string, bool) {
	if p.object != "" {
		rest, ok := strings.CutPrefix(field, p.object)
		if !ok {
			return "", false
		}
		rest = strings.TrimPrefix(rest, ".")
		if p.inside == "" {
			return steps(rest), true
		}
		inner, ok := strings.CutPrefix(rest, p.inside)
		if !ok || inner != "" && inner[0] != '.' && inner[0] != '[' {
			return "", false
		}
		return p.base + steps(strings.TrimPrefix(inner, ".")), true
	}
	// An id of a bulk request may hold any character, so the end of the
	// object's name is where a known one ends.
	for i := range len(field) {
		if field[i] != ']' {
			continue
		}
		if at, ok := p.at[field[:i+1]]; ok {
			return at + steps(strings.TrimPrefix(field[i+1:], ".")), true
		}
	}
	return "", false
}

// steps turns domains[0].name into /domains/0/name. No field's name holds a
// character that a pointer must escape.
func steps(path string) string {
	if path == "" {
		return ""
	}
	return "/" + strings.TrimPrefix(strings.NewReplacer("].", "/", "]", "", "[", "/", ".", "/").Replace(path), "/")
}

// issues turns the field errors of a refused change into those of the answer.
func (p place) issues(err error) []issue {
	all := bulkhead.FieldErrors(err)
	out := make([]issue, 0, min(len(all), maxIssues))
	for _, fe := range all {
		if len(out) == maxIssues {
			out = append(out, issue{Detail: fmt.Sprintf("and %d more errors", len(all)-maxIssues)})
			break
		}
		i := issue{Detail: clip(fe.Msg, maxDetail)}
		if pointer, ok := p.pointer(fe.Field); ok {
			i.Pointer = pointer
		} else {
			i.Field = clip(fe.Field, maxDetail)
		}
		if fe.Pos != "" {
			i.Detail = clip(fe.Pos, maxDetail) + ": " + i.Detail
		}
		out = append(out, i)
	}
	return out
}
