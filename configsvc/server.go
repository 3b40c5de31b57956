package configsvc

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Dialect answers a question in the words of one PBX. It appends the answer
// to dst and says in a word what it was, for the metric. It must answer
// whatever body holds, and must not keep body or dst. The empty node means
// that the asker did not prove to be one: the answer is the dialect's own denial.
type Dialect func(x *route.Snapshot, node bulkhead.NodeID, body, dst []byte) (answer []byte, outcome string)

// Config says where and to whom a Server answers.
type Config struct {
	Listen string // ip:port for the PBXs; port 0 takes a free one

	// Token is the password that nodes send by HTTP Basic; the user name is
	// the node's id. At least 16 bytes.
	Token string

	MaxBody int64 // bytes of a question, 1 KiB to 1 MiB
}

// DefaultConfig returns what a node-local or small installation needs, but
// for the token.
func DefaultConfig() Config {
	return Config{Listen: "127.0.0.1:8080", MaxBody: 64 << 10}
}

// Validate checks the configuration; its errors are bulkhead.Invalid.
func (c *Config) Validate() error {
	switch {
	case len(c.Token) < 16:
		return fmt.Errorf("configsvc: the node token has %d bytes: at least 16 are needed: %w", len(c.Token), bulkhead.Invalid)
	case c.MaxBody < 1<<10 || c.MaxBody > 1<<20:
		return fmt.Errorf("configsvc: max_body %d is not within 1024 and 1048576: %w", c.MaxBody, bulkhead.Invalid)
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
	token    [sha256.Size]byte
	live     *route.Live
	log      *slog.Logger
	metrics  *metrics
	listener net.Listener
	http     *http.Server
	buffers  sync.Pool
}

// New binds the listener, so that Addr is known before Run. live may still be
// empty; until it holds a snapshot every question gets a 503, on which the PBX
// goes to its second URL or its static configuration.
func New(cfg Config, live *route.Live, freeswitch Dialect, log *slog.Logger, reg prometheus.Registerer) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("configsvc: listen for PBXs on %s: %w", cfg.Listen, err)
	}
	s := &Server{
		cfg: cfg, token: sha256.Sum256([]byte(cfg.Token)), live: live, log: log,
		metrics: newMetrics(reg), listener: l,
		buffers: sync.Pool{New: func() any { return new(buffers) }},
	}
	r := chi.NewRouter()
	r.Post("/freeswitch/xml", s.answer("freeswitch", "text/xml; charset=utf-8", freeswitch))
	s.http = &http.Server{
		Handler: r, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
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
	return nil
}

// buffers are reused between questions.
type buffers struct {
	question []byte
	answer   []byte
}

func (s *Server) answer(dialect, contentType string, answer Dialect) http.HandlerFunc {
	seconds := s.metrics.seconds.WithLabelValues(dialect)
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		b := s.buffers.Get().(*buffers) //nolint:forcetypeassert // the pool holds nothing else
		defer s.buffers.Put(b)
		var err error
		b.question, err = readBody(r, b.question[:0], s.cfg.MaxBody)
		if err != nil {
			s.metrics.answers.WithLabelValues(dialect, "bad request").Inc()
			status := http.StatusBadRequest
			if errors.Is(err, errTooLong) {
				status = http.StatusRequestEntityTooLarge
			}
			http.Error(w, "the question could not be read: "+err.Error(), status)
			return
		}
		x := s.live.Load()
		if x == nil {
			s.metrics.answers.WithLabelValues(dialect, "no revision").Inc()
			http.Error(w, "no revision loaded yet", http.StatusServiceUnavailable)
			return
		}
		node := s.node(x, r)
		var outcome string
		b.answer, outcome = answer(x, node, b.question, b.answer[:0])
		w.Header()["Content-Type"] = []string{contentType}
		if _, err := w.Write(b.answer); err != nil {
			s.log.Debug("configsvc: answer not sent", "node", node, "error", err)
		}
		s.metrics.answers.WithLabelValues(dialect, outcome).Inc()
		seconds.Observe(time.Since(start).Seconds())
	}
}

// node returns the node that the request proved to come from, or "".
func (s *Server) node(x *route.Snapshot, r *http.Request) bulkhead.NodeID {
	user, password, ok := r.BasicAuth()
	if !ok {
		return ""
	}
	sum := sha256.Sum256([]byte(password))
	if subtle.ConstantTimeCompare(sum[:], s.token[:]) != 1 || x.Node(bulkhead.NodeID(user)) == nil {
		return ""
	}
	return bulkhead.NodeID(user)
}

var errTooLong = errors.New("body too long")

// readBody reads a body of at most limit bytes into buf.
func readBody(r *http.Request, buf []byte, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return buf, errTooLong
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
