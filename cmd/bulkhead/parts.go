package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/registry"
	"github.com/bulkhead-voip/bulkhead/route"
)

// serviceFlags are the flags that every service has.
type serviceFlags struct {
	Data     string `help:"Folder that holds everything Bulkhead keeps." default:"data" type:"path" placeholder:"DIR"`
	Admin    string `help:"Address of the admin API, health and metrics." placeholder:"IP:PORT"`
	LogLevel string `help:"debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`
}

func (f *serviceFlags) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(f.LogLevel)) // the flag's enum admits nothing else
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// parts is what the services of one process share. It alone knows which of
// them are embedded and which are distributed.
type parts struct {
	data  dataDir
	log   *slog.Logger
	reg   *prometheus.Registry
	live  *route.Live
	store backend      // nil: the registry is followed through the feed
	redis *redisStream // nil: records go from the spool to the store
	admin *chi.Mux     // behind the admin token

	follower atomic.Pointer[registry.Follower] // nil: nothing is followed
	keys     registry.Keyring                  // of nodes and SBCs
	shared   *sharedTokens                     // nil: they count for nothing here

	api  atomic.Pointer[configsvc.Admin] // does its own authentication; nil: not in this process
	addr net.Addr                        // of the admin listener
}

// openParts makes the data folder and binds the admin listener.
func openParts(g *group, f *serviceFlags, log *slog.Logger) (*parts, error) {
	p := &parts{
		data: dataDir(f.Data), log: log, live: &route.Live{},
		reg: prometheus.NewRegistry(), admin: chi.NewRouter(),
	}
	p.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := p.data.open(); err != nil {
		return nil, err
	}
	token, err := p.data.secret(adminToken)
	if err != nil {
		return nil, err
	}
	return p, p.serveAdmin(g, f.Admin, token)
}

// serveAdmin serves health and metrics to anybody who reaches the listener,
// and the rooms' own routes to who holds the admin token, or, where the
// registry is, a token of it that admits him.
func (p *parts) serveAdmin(g *group, addr, token string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for the admin API on %s: %w; choose another with --admin", addr, err)
	}
	p.addr = l.Addr()
	want := sha256.Sum256([]byte(token))
	r := chi.NewRouter()
	r.Get("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	r.Get("/readyz", func(w http.ResponseWriter, _ *http.Request) { ready(w, g.notReady(), p.following()) })
	r.Handle("/metrics", promhttp.HandlerFor(p.reg, promhttp.HandlerOpts{}))
	r.Mount("/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		api := p.api.Load()
		if api != nil && !p.admin.Match(chi.NewRouteContext(), r.Method, r.URL.Path) {
			api.Handler().ServeHTTP(w, r)
			return
		}
		got := sha256.Sum256([]byte(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")))
		if subtle.ConstantTimeCompare(got[:], want[:]) != 1 && (api == nil || !api.Admits(r)) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			problem(w, http.StatusUnauthorized, "send the admin token: Authorization: Bearer TOKEN, from secrets/"+adminToken+" in the data folder")
			return
		}
		p.admin.ServeHTTP(w, r)
	}))
	srv := &http.Server{Handler: r, ReadTimeout: time.Minute, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	g.run(services, "admin API", func(ctx context.Context) error { return serve(ctx, srv, l) })
	return nil
}

// serve runs an HTTP server until ctx ends; what is being answered then has a
// second.
func serve(ctx context.Context, srv *http.Server, l net.Listener) error {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(end) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-ended
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ready says what is not ready, and where the registry stands: who serves from
// the last known good configuration is ready.
func ready(w http.ResponseWriter, bad map[string]string, registry *following) {
	w.Header().Set("Content-Type", "application/json")
	if len(bad) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	said := map[string]any{"ready": len(bad) == 0, "not_ready": bad}
	if registry != nil {
		said["registry"] = registry
	}
	_ = json.NewEncoder(w).Encode(said) // whoever has left misses it
}

// problem writes an error as RFC 9457 has it.
func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(status), "status": status, "detail": detail})
}

// serveAPI adds the API that changes the registry, and the feed, to the admin
// listener, if this process has the store. It returns the feed, or nil.
func (p *parts) serveAPI(g *group) (http.Handler, error) {
	if p.store == nil {
		return nil, nil //nolint:nilnil // there is none
	}
	token, err := p.data.secret(adminToken)
	if err != nil {
		return nil, err
	}
	feed, err := registry.NewFeed(registry.FeedOptions{Store: p.store, Tokens: p.store.Tokens(), Log: p.log.With("service", "feed"), Metrics: p.reg})
	if err != nil {
		return nil, err
	}
	g.run(services, "feed server", feed.Run)
	api, err := configsvc.NewAdmin(configsvc.AdminConfig{
		Store: p.store, History: p.store, Tokens: p.store.Tokens(), Audit: p.store.Audit(), Feed: feed,
		Bootstrap: token, Logger: p.log.With("service", "admin API"), Registerer: p.reg,
	})
	if err != nil {
		return nil, err
	}
	p.api.Store(api)
	return feed, nil
}

// mount puts a room's routes into the admin API. A room's router holds whole
// paths, so several rooms can be tried in turn.
func (p *parts) mount(paths []string, h http.Handler) {
	for _, path := range paths {
		p.admin.Handle(path, h)
	}
}
