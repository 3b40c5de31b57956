package configsvc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/api"
	"github.com/bulkhead-voip/bulkhead/registry"
)

const bootstrap = "bootstrap-0123456789"

// fakeTokens keeps tokens in memory.
type fakeTokens struct {
	mu  sync.Mutex
	all map[string]registry.Token // by secret
	err error
}

func (f *fakeTokens) Create(_ context.Context, t registry.Token) (string, registry.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t.ID, t.Created = fmt.Sprintf("t%d", len(f.all)+1), time.Unix(1700000000, 0).UTC()
	secret := "bh_" + t.ID + "_secretsecret"
	f.all[secret] = t
	return secret, t, nil
}

func (f *fakeTokens) Authenticate(_ context.Context, secret string) (registry.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.all[secret]
	if f.err != nil {
		return t, f.err
	}
	if !ok || !t.Revoked.IsZero() {
		return registry.Token{}, fmt.Errorf("token: %w", bulkhead.Denied)
	}
	return t, nil
}

func (f *fakeTokens) Revoke(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s, t := range f.all {
		if t.ID == id {
			t.Revoked = time.Unix(1700000001, 0).UTC()
			f.all[s] = t
			return nil
		}
	}
	return fmt.Errorf("token %q: %w", id, bulkhead.NotFound)
}

func (f *fakeTokens) KeepKeys(ctx context.Context, _ *registry.Keyring) error {
	<-ctx.Done()
	return nil
}

func (f *fakeTokens) List(context.Context) ([]registry.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []registry.Token
	for _, t := range f.all {
		out = append(out, t)
	}
	return out, nil
}

// fakeAudit keeps entries in memory.
type fakeAudit struct {
	mu  sync.Mutex
	all []registry.AuditEntry
}

func (f *fakeAudit) Append(_ context.Context, e registry.AuditEntry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.Number = int64(len(f.all) + 1)
	f.all = append(f.all, e)
	return nil
}

func (f *fakeAudit) Entries(_ context.Context, after int64, limit int) ([]registry.AuditEntry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	from := min(int(after), len(f.all))
	return slices.Clone(f.all[from:min(from+limit, len(f.all))]), nil
}

type adminTest struct {
	*Admin

	t      *testing.T
	store  registry.Store
	tokens *fakeTokens
	audit  *fakeAudit
	doc    *openapi3.T
	log    *lockedLog
	secret map[string]string // by name: admin, read, acme, bravo, node
}

type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func describe(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// newAdmin makes an API over a real store with the platform of the tests.
func newAdmin(t *testing.T) *adminTest {
	t.Helper()
	store, err := registry.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "registry.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	x := &adminTest{
		t: t, store: store, tokens: &fakeTokens{all: map[string]registry.Token{}}, audit: &fakeAudit{},
		doc: describe(t), log: &lockedLog{}, secret: map[string]string{"bootstrap": bootstrap},
	}
	feed, err := registry.NewFeed(registry.FeedOptions{Store: store, Tokens: x.tokens})
	if err != nil {
		t.Fatal(err)
	}
	x.Admin, err = NewAdmin(AdminConfig{
		Store: store, History: store, Tokens: x.tokens, Audit: x.audit, Feed: feed, Bootstrap: bootstrap,
		Logger: slog.New(slog.NewTextHandler(x.log, nil)), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Commit(t.Context(), 0, bulkhead.Revision{Author: "the operator", Message: "begin with zulu", Change: platform()}); err != nil {
		t.Fatal(err)
	}
	for name, tok := range map[string]registry.Token{
		"admin": {Scope: registry.ScopeAdmin}, "read": {Scope: registry.ScopeRead}, "node": {Scope: registry.ScopeNode, Node: "fs1", Cell: "c1"}, "sbc": {Scope: registry.ScopeSBC, SBC: "sbc1", Cell: "c1"},
		"acme": {Scope: registry.ScopeTenant, Tenant: "acme"}, "bravo": {Scope: registry.ScopeTenant, Tenant: "bravo"}, "gone": {Scope: registry.ScopeTenant, Tenant: "gone"},
	} {
		x.secret[name], _, _ = x.tokens.Create(t.Context(), tok) // the fake does not fail
	}
	return x
}

func platform() bulkhead.Change {
	change, _, err := func() (bulkhead.Change, place, error) {
		plan, err := planJSON([]byte(`{
			"cells": [{"id": "c1"}],
			"pools": [{"id": "p1", "cell": "c1", "profile": "standard"}],
			"nodes": [{"id": "fs1", "pool": "p1", "sip": "127.0.0.1:5080"}, {"id": "fs2", "pool": "p1", "sip": "127.0.0.2:5080"}],
			"sbcs": [{"id": "sbc1", "cell": "c1", "sip": "127.0.0.9:5060", "names": ["edge.example"]}],
			"tenants": [
				{"id": "acme", "name": "Acme", "cell": "c1", "profile": "standard", "domains": ["acme.example", "acme2.example"], "sources": ["192.0.2.0/24"],
				 "users": [{"extension": "1001", "password": "acme-secret", "caller_id": "4930100"}, {"extension": "1002", "password": "acme-secret2"}],
				 "numbers": [{"number": "4930100", "user": "1001"}, {"number": "4930101", "user": "1001"}],
				 "trunks": [{"name": "carrier", "host": "192.0.2.7", "port": 5060}]},
				{"id": "bravo", "name": "Bravissimo", "cell": "c1", "profile": "standard", "domains": ["bravo.example"], "sources": ["198.51.100.0/24"],
				 "users": [{"extension": "1001", "password": "bravo-secret", "name": "Wanda"}],
				 "numbers": [{"number": "4930200", "user": "1001"}],
				 "trunks": [{"name": "carrier", "host": "198.51.100.7", "port": 5060}]}
			]}`), false)
		if err != nil {
			return bulkhead.Change{}, place{}, err
		}
		return plan(bulkhead.State{})
	}()
	if err != nil {
		panic(err) //nolint:forbidigo // the document is above
	}
	return change
}

// got is an answer.
type got struct {
	status int
	header http.Header
	body   string
}

func (g got) json(t *testing.T) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(g.body), &m); err != nil {
		t.Fatalf("%d %q: %v", g.status, g.body, err)
	}
	return m
}

func (g got) problem(t *testing.T) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal([]byte(g.body), &p); err != nil || p.Status != g.status || !strings.HasPrefix(p.Type, "urn:bulkhead:") {
		t.Fatalf("%d %q is no problem document: %v", g.status, g.body, err)
	}
	return p
}

// send sends a request as the named token and holds the answer against the
// OpenAPI description. Headers come in pairs.
func (x *adminTest) send(method, path, token, body string, headers ...string) got {
	x.t.Helper()
	return x.sendBody(method, path, token, strings.NewReader(body), headers...)
}

func (x *adminTest) sendBody(method, path, token string, body io.Reader, headers ...string) got {
	x.t.Helper()
	req := httptest.NewRequestWithContext(x.t.Context(), method, path, body)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+x.secret[token])
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	x.Handler().ServeHTTP(w, req)
	g := got{w.Code, w.Header(), w.Body.String()}
	x.conforms(req, g)
	return g
}

func (x *adminTest) want(status int, g got) got {
	x.t.Helper()
	if g.status != status {
		x.t.Errorf("status %d, want %d: %s", g.status, status, g.body)
	}
	return g
}

// conforms holds an answer against the description.
func (x *adminTest) conforms(r *http.Request, g got) {
	x.t.Helper()
	c := chi.NewRouteContext()
	path := r.URL.EscapedPath()
	if !x.router.Match(c, r.Method, path) {
		if g.status != http.StatusNotFound && g.status != http.StatusMethodNotAllowed {
			x.t.Errorf("%s %s has no route and answers %d", r.Method, path, g.status)
		}
		return
	}
	item := x.doc.Paths.Value(c.RoutePattern())
	if item == nil || item.GetOperation(r.Method) == nil {
		x.t.Errorf("%s %s is not described", r.Method, c.RoutePattern())
		return
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{
			Request: r, Route: &routers.Route{Spec: x.doc, Path: c.RoutePattern(), PathItem: item, Method: r.Method, Operation: item.GetOperation(r.Method)},
		},
		Status: g.status, Header: g.header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	}
	in.SetBodyBytes([]byte(g.body))
	if err := openapi3filter.ValidateResponse(x.t.Context(), in); err != nil {
		x.t.Errorf("%s %s answers %d against its description: %v", r.Method, path, g.status, err)
	}
}

func (x *adminTest) head() bulkhead.State {
	x.t.Helper()
	s, err := x.store.Head(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	return s
}
