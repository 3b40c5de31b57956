package configsvc

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/api"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// History is what the registry remembers of the past.
type History interface {
	// Log returns the revisions from the given one on, oldest first. It may
	// return fewer than limit although there are more.
	Log(ctx context.Context, from bulkhead.RevisionNumber, limit int) ([]bulkhead.Revision, error)
	// State returns the state at a revision, or bulkhead.NotFound.
	State(ctx context.Context, n bulkhead.RevisionNumber) (bulkhead.State, error)
}

// Tokens keeps the tokens of the admin API.
type Tokens interface {
	// Create makes a token of t's scope and returns its secret, which is
	// never seen again.
	Create(ctx context.Context, t registry.Token) (secret string, made registry.Token, err error)
	// Authenticate returns the token of a secret, or bulkhead.Denied.
	Authenticate(ctx context.Context, secret string) (registry.Token, error)
	// Revoke ends a token, or returns bulkhead.NotFound.
	Revoke(ctx context.Context, id string) error
	List(ctx context.Context) ([]registry.Token, error)
}

// Audit keeps who wrote what, for good.
type Audit interface {
	Append(ctx context.Context, e registry.AuditEntry) error
	// Entries returns entries whose number is above after, oldest first.
	Entries(ctx context.Context, after int64, limit int) ([]registry.AuditEntry, error)
}

// AdminConfig says what an Admin works on. All of it is needed but Feed and Bootstrap.
type AdminConfig struct {
	Store   registry.Store
	History History
	Tokens  Tokens
	Audit   Audit

	// Feed serves GET /v1/feed and does its own authentication; nil: the path
	// is not served.
	Feed http.Handler

	// Bootstrap is the secret of a token of scope admin that Tokens does not
	// know: the one with which the first token is made. At least 16 bytes, or
	// empty for none.
	Bootstrap string

	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Validate checks the configuration; its errors are bulkhead.Invalid.
func (c *AdminConfig) Validate() error {
	switch {
	case c.Store == nil, c.History == nil, c.Tokens == nil, c.Audit == nil, c.Logger == nil, c.Registerer == nil:
		return fmt.Errorf("configsvc: the admin API needs a store, its history, tokens, an audit log, a logger and a registerer: %w", bulkhead.Invalid)
	case c.Bootstrap != "" && len(c.Bootstrap) < 16:
		return fmt.Errorf("configsvc: the admin token has %d bytes: at least 16 are needed: %w", len(c.Bootstrap), bulkhead.Invalid)
	}
	return nil
}

// Limits of what one request may hold.
const (
	MaxBody      = 10 << 20 // bytes of a tenant or of a bulk request
	maxSmallBody = 64 << 10 // bytes of anything else
	maxAsking    = 4
)

// Admin is the admin API: it reads and writes the registry for people and
// programs. It keeps nothing but the answers to repeated bulk requests, so
// several may serve one store.
type Admin struct {
	cfg       AdminConfig
	bootstrap [sha256.Size]byte
	log       *slog.Logger
	metrics   *adminMetrics
	router    *chi.Mux
	repeats   *repeats
	// heavy is held by whoever replays history or reads a bulk request, so
	// that the memory of one such at a time is taken.
	heavy chan struct{}
	// asking is held by who has a call explained of what is, maxAsking at a time.
	asking chan struct{}
	now    func() time.Time
}

// NewAdmin makes the API. It starts nothing.
func NewAdmin(cfg AdminConfig) (*Admin, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	a := &Admin{
		cfg: cfg, bootstrap: sha256.Sum256([]byte(cfg.Bootstrap)), log: cfg.Logger,
		metrics: newAdminMetrics(cfg.Registerer), repeats: newRepeats(),
		heavy: make(chan struct{}, 1), asking: make(chan struct{}, maxAsking), now: time.Now,
	}
	a.router = chi.NewRouter()
	a.router.Use(a.measure)
	a.router.NotFound(func(w http.ResponseWriter, _ *http.Request) { answerOf(errHidden()).write(w) })
	a.router.MethodNotAllowed(a.methodNotAllowed)
	a.router.Get("/v1/openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(api.OpenAPI) // whoever has left misses it
	})
	if cfg.Feed != nil {
		a.router.Get(registry.FeedPath, cfg.Feed.ServeHTTP)
	}
	a.router.Group(a.routes)
	return a, nil
}

// Handler serves every path below /v1 that the OpenAPI description names.
func (a *Admin) Handler() http.Handler { return a.router }

// routes are those that need a token.
func (a *Admin) routes(r chi.Router) {
	routesOf(a, r, cells())
	routesOf(a, r, pools())
	routesOf(a, r, nodes())
	routesOf(a, r, sbcs())
	routesOf(a, r, tenants())
	entriesOf(a, r, users())
	entriesOf(a, r, numbers())
	entriesOf(a, r, trunks())
	listOf(a, r, domains())
	listOf(a, r, sources())

	r.Post("/v1/route/explain", a.handle(guard{tenantReads: true, reads: true}, a.explain))

	var admin guard
	r.Post("/v1/apply", a.handle(admin, a.apply))
	r.Post("/v1/rollback", a.handle(admin, a.rollback))
	r.Get("/v1/revisions", a.handle(admin, a.listRevisions))
	r.Get("/v1/revisions/{revision}", a.handle(admin, a.showRevision))
	r.Get("/v1/diff", a.handle(admin, a.diff))
	r.Get("/v1/tokens", a.handle(admin, a.listTokens))
	r.Post("/v1/tokens", a.handle(admin, a.createToken))
	r.Delete("/v1/tokens/{token}", a.handle(admin, a.revokeToken))
	r.Get("/v1/audit", a.handle(admin, a.listAudit))
}

type adminMetrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	audit    prometheus.Counter
}

func newAdminMetrics(reg prometheus.Registerer) *adminMetrics {
	m := &adminMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_api_requests_total",
			Help: "Requests to the admin API, by method, route and status.",
		}, []string{"method", "route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bulkhead_api_request_seconds",
			Help: "Time that the admin API took for a request, by method.",
		}, []string{"method"}),
		audit: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_api_audit_failures_total",
			Help: "Writes that could not be put into the audit log; each is in the program's log instead.",
		}),
	}
	reg.MustRegister(m.requests, m.seconds, m.audit)
	return m
}
