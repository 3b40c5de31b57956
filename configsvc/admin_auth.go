package configsvc

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// principal is who asks.
type principal struct {
	id     string // of the token
	scope  registry.Scope
	tenant bulkhead.TenantID // of scope tenant
}

// author is how a revision names the principal.
func (p *principal) author() string { return "token " + p.id }

// seesSecrets reports whether the principal gets digest secrets. They are as
// good as passwords, so a tenant's own token sets but never reads them.
func (p *principal) seesSecrets() bool { return p.scope == registry.ScopeAdmin }

// guard says what a tenant's token may do on a route. Admin tokens may do
// everything, and read tokens every GET, without the users' digest secrets. A
// node's or SBC's token opens nothing here: it is for the feed.
//
// reads is set on a route that writes nothing although its method is not GET.
type guard struct{ tenantReads, tenantWrites, reads bool }

// admit decides from the token and the path alone, before anything is looked
// up: what exists cannot show in the answer or in its time.
func (g guard) admit(r *http.Request, p *principal) error {
	get := g.reads || r.Method == http.MethodGet
	switch p.scope {
	case registry.ScopeAdmin:
		return nil
	case registry.ScopeRead:
		if get {
			return nil
		}
		return errForbidden("the token is for reading only")
	case registry.ScopeTenant:
		if chi.URLParam(r, "tenant") != "" && param(r, "tenant") != string(p.tenant) {
			return errHidden()
		}
		if get && g.tenantReads || !get && g.tenantWrites {
			return nil
		}
		return errForbidden("a tenant's token may not do this: it reads its tenant, and writes users and where numbers lead")
	}
	return errForbidden("the token opens nothing of this API")
}

// maxSecret is more than any token has.
const maxSecret = 256

// authenticate finds out who asks.
func (a *Admin) authenticate(r *http.Request) (*principal, error) {
	refused := newProblem(http.StatusUnauthorized, "unauthorized", "send a token that is good: Authorization: Bearer TOKEN")
	kind, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(kind, "Bearer") || secret == "" || len(secret) > maxSecret {
		return nil, refused
	}
	sum := sha256.Sum256([]byte(secret))
	if a.cfg.Bootstrap != "" && subtle.ConstantTimeCompare(sum[:], a.bootstrap[:]) == 1 {
		return &principal{id: "bootstrap", scope: registry.ScopeAdmin}, nil
	}
	t, err := a.cfg.Tokens.Authenticate(r.Context(), secret)
	switch {
	case errors.Is(err, bulkhead.Denied):
		return nil, refused
	case err != nil:
		return nil, err
	}
	return &principal{id: t.ID, scope: t.Scope, tenant: t.Tenant}, nil
}

// Admits reports whether a request comes with a token that may have what other
// parts serve beside the API: an admin's, or to look at it a reader's.
func (a *Admin) Admits(r *http.Request) bool {
	p, err := a.authenticate(r)
	return err == nil && (p.scope == registry.ScopeAdmin || p.scope == registry.ScopeRead && r.Method == http.MethodGet)
}

// answer is what a handler answers.
type answer struct {
	status   int
	body     any // encoded as JSON; nil: none
	kind     string
	revision bulkhead.RevisionNumber // what the body shows; the ETag when tagged is set
	tagged   bool
	location string
	note     string // for the audit log
	problem  *problem
}

func ok(body any) *answer { return &answer{status: http.StatusOK, body: body} }

func answerOf(p *problem) *answer {
	return &answer{status: p.Status, body: p, kind: "application/problem+json", problem: p}
}

// write sends the answer. Nothing of it may be kept by a cache: it holds
// secrets, and what it shows belongs to who asked.
func (x *answer) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if x.tagged {
		h.Set("ETag", etag(x.revision))
	}
	if x.location != "" {
		h.Set("Location", x.location)
	}
	switch x.status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "1")
	}
	if x.body == nil {
		w.WriteHeader(x.status)
		return
	}
	body, err := json.Marshal(x.body)
	if err != nil { // the types are ours, and all of them encode
		answerOf(newProblem(http.StatusInternalServerError, "internal", "the answer could not be encoded")).write(w)
		return
	}
	kind := x.kind
	if kind == "" {
		kind = "application/json"
	}
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(x.status)
	_, _ = w.Write(append(body, '\n')) // whoever has left misses it
}

type handler func(r *http.Request, p *principal) (*answer, error)

// handle makes a route of h: it finds out who asks and whether he may, and
// puts every write into the audit log, also one that was refused.
func (a *Admin) handle(g guard, h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, err := a.authenticate(r)
		if err != nil {
			answerOf(a.problemFor(r, err)).write(w)
			return
		}
		var x *answer
		if err = g.admit(r, p); err == nil {
			x, err = h(r, p)
		}
		if err != nil {
			x = answerOf(a.problemFor(r, err))
		}
		if r.Method != http.MethodGet && !g.reads {
			a.audit(r, p, x)
		}
		x.write(w)
	}
}

const (
	auditTimeout = 5 * time.Second
	maxAuditText = 512 // bytes of a path or a detail
)

func (a *Admin) audit(r *http.Request, p *principal, x *answer) {
	e := registry.AuditEntry{
		Time: a.now().UTC().Truncate(time.Microsecond), Token: p.id, Method: r.Method,
		Path: clip(r.URL.Path, maxAuditText), Status: x.status,
	}
	if x.problem != nil {
		e.Detail = clip(x.problem.summary(), maxAuditText)
	} else {
		e.Revision, e.Detail = x.revision, x.note
	}
	// What was done is done, whether the asker still waits or not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), auditTimeout)
	defer cancel()
	if err := a.cfg.Audit.Append(ctx, e); err != nil {
		a.metrics.audit.Inc()
		a.log.Error("configsvc: audit log", "token", e.Token, "method", e.Method, "path", e.Path, "status", e.Status, "revision", e.Revision, "error", err)
	}
}

var apiMethods = []string{http.MethodGet, http.MethodPut, http.MethodPatch, http.MethodPost, http.MethodDelete}

func (a *Admin) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if r.URL.RawPath != "" {
		path = r.URL.RawPath
	}
	var allowed []string
	for _, m := range apiMethods {
		if a.router.Match(chi.NewRouteContext(), m, path) {
			allowed = append(allowed, m)
		}
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	answerOf(newProblem(http.StatusMethodNotAllowed, "method", "the path takes %s", strings.Join(allowed, ", "))).write(w)
}

// measure counts requests, but for those of the feed, which do not end and
// count themselves. Labels come from the routes, never from a request.
func (a *Admin) measure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == registry.FeedPath {
			next.ServeHTTP(w, r)
			return
		}
		start, s := time.Now(), &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(s, r)
		method, route := r.Method, ""
		if !slices.Contains(apiMethods, method) {
			method = "other"
		}
		if c := chi.RouteContext(r.Context()); c != nil {
			route = c.RoutePattern()
		}
		if s.status == http.StatusMethodNotAllowed || strings.HasSuffix(route, "*") {
			route = ""
		}
		a.metrics.requests.WithLabelValues(method, route, strconv.Itoa(s.status)).Inc()
		a.metrics.seconds.WithLabelValues(method).Observe(time.Since(start).Seconds())
	})
}

type statusWriter struct {
	http.ResponseWriter

	status int
}

func (s *statusWriter) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// param returns a part of the path. The router hands it out as it was
// escaped when anything in the path was.
func param(r *http.Request, name string) string {
	v := chi.URLParam(r, name)
	if r.URL.RawPath == "" {
		return v
	}
	if plain, err := url.PathUnescape(v); err == nil {
		return plain
	}
	return v
}

func etag(n bulkhead.RevisionNumber) string { return fmt.Sprintf(`"%d"`, n) }
