package configsvc

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Config says where, to whom and how a Server answers.
type Config struct {
	Listen string      // ip:port for the PBXs; port 0 takes a free one
	TLS    *tls.Config // nil: plain HTTP, for loopback and management networks

	// IsNode reports whether password is one of a node's, which it sends by
	// HTTP Basic with its id as the user. It is asked for each question, of
	// nodes that are in x, and by many goroutines.
	IsNode func(x *route.Snapshot, node bulkhead.NodeID, password string) bool
	// IsSBC is the same for SBCs that are in x; nil: nobody is one.
	IsSBC func(x *route.Snapshot, sbc bulkhead.SBCID, password string) bool

	MaxBody      int64 // bytes of a question, 1 KiB to 1 MiB
	ConnsPerPeer int   // connections that one address may hold, 1 to 100000

	// TenantRate is how many questions a second one tenant gets answered
	// without waiting, 1 to 1000000; half of them may come at once. Those
	// beyond wait for their turn, up to Deadline; if that is not enough, they
	// are refused with 503, on which a PBX goes to its next URL.
	TenantRate int

	// Deadline bounds the time from a question read to its answer, 1 ms to 2 s.
	// An answer is made from memory and waits for nobody but its own tenant's
	// turn, so this is what bounds that wait. There is no second, older copy to
	// fall back to: the snapshot in memory is the last known good.
	Deadline time.Duration

	// UrgentDeadline is how long the answer to what a PBX asks one at a time may
	// take once the question was read, such as a FreeSWITCH's REGISTERs, where one
	// slow answer holds up all others: 1 ms to 2 s. Such a question never waits for
	// its tenant's turn, however many there are. An answer that is later all the
	// same is sent, since nothing better would come of it, and counted; a Shadow's
	// are not.
	UrgentDeadline time.Duration

	// Age returns for how long the snapshot has not been confirmed to be the
	// newest; nil: it always is.
	Age func() time.Duration
	// Answers from a snapshot older than StaleAfter carry the header
	// X-Bulkhead-Stale, its age in seconds. Beyond MaxStale they are refused
	// with 503; 0: they go on for as long as it takes.
	StaleAfter, MaxStale time.Duration

	// Shadow: every question is answered with its dialect's "not mine", at
	// once and from whatever there is, and what would have been done is kept
	// here. nil: the answers are real. Its Run is the caller's to run.
	Shadow *Shadow
}

// DefaultConfig returns what a node-local or small installation needs, but
// for IsNode.
func DefaultConfig() Config {
	return Config{
		Listen: "127.0.0.1:8080", MaxBody: 64 << 10, ConnsPerPeer: 2000,
		TenantRate: 1000, Deadline: 250 * time.Millisecond, UrgentDeadline: 50 * time.Millisecond, StaleAfter: 10 * time.Second,
	}
}

// Validate checks the configuration; its errors are bulkhead.Invalid.
func (c *Config) Validate() error {
	bad := func(field string, value any, want string) error {
		return fmt.Errorf("configsvc: %s %v is not %s: %w", field, value, want, bulkhead.Invalid)
	}
	switch {
	case c.IsNode == nil:
		return fmt.Errorf("configsvc: nothing says who the nodes are: %w", bulkhead.Invalid)
	case c.MaxBody < 1<<10 || c.MaxBody > 1<<20:
		return bad("max_body", c.MaxBody, "within 1024 and 1048576")
	case c.ConnsPerPeer < 1 || c.ConnsPerPeer > 100_000:
		return bad("conns_per_peer", c.ConnsPerPeer, "within 1 and 100000")
	case c.TenantRate < 1 || c.TenantRate > 1_000_000:
		return bad("tenant_rate", c.TenantRate, "within 1 and 1000000")
	case c.Deadline < time.Millisecond || c.Deadline > writeTimeout:
		return bad("deadline", c.Deadline, "within 1ms and 2s")
	case c.UrgentDeadline < time.Millisecond || c.UrgentDeadline > writeTimeout:
		return bad("urgent_deadline", c.UrgentDeadline, "within 1ms and 2s")
	case c.StaleAfter < time.Second:
		return bad("stale_after", c.StaleAfter, "1s or more")
	case c.MaxStale != 0 && c.MaxStale < c.StaleAfter:
		return bad("max_stale", c.MaxStale, "0 or at least stale_after")
	}
	return nil
}

// The times that a PBX connection may take. A PBX on the same host or network
// needs milliseconds; these only free what a broken peer holds.
const (
	readTimeout     = 2 * time.Second
	writeTimeout    = 2 * time.Second
	idleTimeout     = 60 * time.Second
	shutdownTimeout = 2 * time.Second
	maxHeader       = 16 << 10
)

// Server answers the PBXs.
type Server struct {
	cfg      Config
	live     *route.Live
	log      *slog.Logger
	metrics  *metrics
	pacer    *pacer
	listener net.Listener
	http     *http.Server
	buffers  sync.Pool
}

// New binds the listener, so that Addr is known before Run. live may still be
// empty; until it holds a snapshot every question gets a 503, on which the PBX
// goes to its second URL or its static configuration.
func New(cfg Config, live *route.Live, dialects []Dialect, log *slog.Logger, reg prometheus.Registerer) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, live: live, log: log, metrics: newMetrics(reg), pacer: newPacer(cfg.TenantRate),
		buffers: sync.Pool{New: func() any { return new(buffers) }},
	}
	r := router{rest: chi.NewRouter()}
	for _, d := range dialects {
		if err := d.validate(); err != nil {
			return nil, err
		}
		if cfg.Shadow != nil && d.Shadow == nil {
			return nil, fmt.Errorf("configsvc: dialect %q has no words for a shadow: %w", d.Name, bulkhead.Invalid)
		}
		r.add(&d, s.answer(d))
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("configsvc: listen for PBXs on %s: %w", cfg.Listen, err)
	}
	s.listener = newPeerListener(l, cfg.ConnsPerPeer, s.metrics.refused.WithLabelValues(refusedPeer))
	if cfg.TLS != nil {
		s.listener = tls.NewListener(s.listener, cfg.TLS)
	}
	s.http = &http.Server{
		Handler: &r, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Addr returns the address that PBXs reach.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run answers until ctx ends, then lets running answers finish.
func (s *Server) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if err := s.http.Shutdown(stop); err != nil {
			s.http.Close()
		}
	}()
	s.log.Info("configsvc answers", "addr", s.Addr().String())
	err := s.http.Serve(s.listener)
	if errors.Is(err, http.ErrServerClosed) {
		<-done
		return nil
	}
	return fmt.Errorf("configsvc: serve PBXs on %s: %w", s.Addr(), err)
}

// Ready reports whether questions get real answers.
func (s *Server) Ready() error {
	if s.live.Load() == nil {
		return fmt.Errorf("configsvc: no revision loaded yet: %w", bulkhead.Unavailable)
	}
	if age := s.age(); s.cfg.MaxStale > 0 && age > s.cfg.MaxStale {
		return fmt.Errorf("configsvc: nobody confirmed the loaded revision for %s, and answers end at %s: %w", age.Round(time.Second), s.cfg.MaxStale, bulkhead.Unavailable)
	}
	return nil
}

func (s *Server) age() time.Duration {
	if s.cfg.Age == nil {
		return 0
	}
	return s.cfg.Age()
}

// buffers are reused between questions.
type buffers struct {
	question []byte
	answer   []byte
}

func (s *Server) answer(d Dialect) http.HandlerFunc {
	seconds, stale := s.metrics.seconds.WithLabelValues(d.Name), s.metrics.stale.WithLabelValues(d.Name)
	answers, late := newOutcomes(s.metrics.answers, d.Name), s.metrics.late.WithLabelValues(d.Name)
	usual := []string{d.ContentType}
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		b := s.buffers.Get().(*buffers) //nolint:forcetypeassert // the pool holds nothing else
		defer s.buffers.Put(b)
		var err error
		b.question, err = readBody(r, b.question[:0], s.cfg.MaxBody)
		if err != nil {
			status := http.StatusBadRequest
			if errors.Is(err, errTooLong) {
				status = http.StatusRequestEntityTooLarge
			}
			s.refuse(w, refusedBody, status, "the question could not be read: "+err.Error())
			return
		}
		read := time.Now()
		x := s.live.Load()
		if s.cfg.Shadow != nil {
			s.shadow(w, r, &d, x, b)
			seconds.Observe(time.Since(start).Seconds())
			return
		}
		if x == nil {
			s.refuse(w, refusedEmpty, http.StatusServiceUnavailable, "no revision loaded yet")
			return
		}
		age := s.age()
		if s.cfg.MaxStale > 0 && age > s.cfg.MaxStale {
			s.refuse(w, refusedStale, http.StatusServiceUnavailable, "the loaded revision is too old")
			return
		}
		q := s.question(&d, x, r, b.question)
		var res Result
		b.answer, res = d.Answer(x, q, b.answer[:0])
		if !s.wait(r.Context(), q.Node, &res, start) {
			s.refuse(w, refusedTenant, http.StatusServiceUnavailable, "the tenant asks more than its share")
			return
		}
		if res.Urgent && time.Since(read) > s.cfg.UrgentDeadline {
			late.Inc()
		}
		h := w.Header()
		h["Content-Type"] = usual
		if res.ContentType != "" {
			h["Content-Type"] = []string{res.ContentType}
		}
		if age > s.cfg.StaleAfter {
			h["X-Bulkhead-Stale"] = []string{strconv.Itoa(int(age / time.Second))}
			stale.Inc()
		}
		if res.Status != 0 {
			w.WriteHeader(res.Status)
		}
		if _, err := w.Write(b.answer); err != nil {
			s.log.Debug("configsvc: answer not sent", "node", q.Node, "error", err)
		}
		answers.inc(res.Outcome)
		seconds.Observe(time.Since(start).Seconds())
	}
}

// question is what r asks in a dialect, and who proved to ask it.
func (s *Server) question(d *Dialect, x *route.Snapshot, r *http.Request, body []byte) Question {
	q := Question{Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Body: body}
	if d.BySBC {
		q.SBC = s.sbc(x, r)
	} else {
		q.Node = s.node(x, r)
	}
	return q
}

// shadow answers "not mine" and keeps what would have been done. It refuses
// and delays nothing: the PBX goes on as if nobody were here.
func (s *Server) shadow(w http.ResponseWriter, r *http.Request, d *Dialect, x *route.Snapshot, b *buffers) {
	q := s.question(d, x, r, b.question)
	var res Result
	var decided *Decision
	b.answer, res, decided = d.Shadow(x, q, b.answer[:0])
	w.Header().Set("Content-Type", cmp.Or(res.ContentType, d.ContentType))
	if res.Status != 0 {
		w.WriteHeader(res.Status)
	}
	if _, err := w.Write(b.answer); err != nil {
		s.log.Debug("configsvc: answer not sent", "node", q.Node, "error", err)
	}
	outcome := "shadow"
	switch {
	case decided != nil:
		decided.Time, decided.Dialect, decided.Node = time.Now().UTC(), d.Name, q.Node
		s.cfg.Shadow.add(decided)
	case q.Node == "" && q.SBC == "":
		outcome = "shadow, nobody proved to ask"
	}
	s.metrics.answers.WithLabelValues(d.Name, outcome).Inc()
}

func (s *Server) refuse(w http.ResponseWriter, reason string, status int, text string) {
	s.metrics.refused.WithLabelValues(reason).Inc()
	http.Error(w, text, status)
}

// wait holds an answer back until its tenant's turn; false: that would be too
// late. What belongs to no tenant waits for its node's
// turn, and what no node proved to ask for one that all such questions share.
func (s *Server) wait(ctx context.Context, node bulkhead.NodeID, res *Result, start time.Time) bool {
	if res.Urgent {
		return true
	}
	who := asker{tenant: res.Tenant}
	if res.Tenant == "" {
		who.node = node
	}
	now := time.Now()
	wait, ok := s.pacer.turn(who, now, s.cfg.Deadline-now.Sub(start))
	if !ok || wait == 0 {
		return ok
	}
	s.metrics.waited.Inc()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done(): // nobody listens any more
	}
	return true
}

// node returns the node that the request proved to come from, or "".
func (s *Server) node(x *route.Snapshot, r *http.Request) bulkhead.NodeID {
	user, password, ok := r.BasicAuth()
	node := bulkhead.NodeID(user)
	if !ok || x == nil || x.Node(node) == nil || !s.cfg.IsNode(x, node, password) {
		return ""
	}
	return node
}

// sbc returns the SBC that the request proved to come from, or "".
func (s *Server) sbc(x *route.Snapshot, r *http.Request) bulkhead.SBCID {
	user, password, ok := r.BasicAuth()
	sbc := bulkhead.SBCID(user)
	if !ok || x == nil || s.cfg.IsSBC == nil || x.SBC(sbc) == nil || !s.cfg.IsSBC(x, sbc, password) {
		return ""
	}
	return sbc
}

var errTooLong = errors.New("body too long")

// readBody reads a body of at most limit bytes into buf.
func readBody(r *http.Request, buf []byte, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return buf, errTooLong
	}
	if r.ContentLength == 0 {
		return buf, nil
	}
	if need := int(max(r.ContentLength+1, 512)); cap(buf) < need {
		buf = make([]byte, 0, need)
	}
	for {
		if len(buf) == cap(buf) {
			if int64(len(buf)) > limit {
				return buf, errTooLong
			}
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := r.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > limit {
			return buf, errTooLong
		}
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return buf, err
		}
	}
}
