package asterisktest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
)

// ServerConfig is the configuration of a Server.
type ServerConfig struct {
	// HTTP and AMI are the addresses to listen on. Empty: 127.0.0.1:0.
	HTTP, AMI string
	// User, Password and Secret are those of ARI and AMI. Empty: bulkhead,
	// test-password-1 and test-secret-2.
	User, Password, Secret string
	// OutboundURL is where the server connects to by itself, as Asterisk 22 does
	// with websocket_client.conf. Empty: nowhere.
	OutboundURL string
	// App is the application of that connection. Empty: bulkhead-events.
	App string
	// Name begins the ids of channels, as systemname in asterisk.conf does: several
	// servers make different ones then. Empty: none does.
	Name string
	// CELFile is the channel event log (conf/cel_custom.conf). Empty: none is kept.
	CELFile string
	// Location is the time zone in which AMI prints times. Nil: UTC.
	Location *time.Location
	// Queue is how many messages wait for a client that does not read, before it
	// is dropped. A real one gives it 100 ms (capture ari-12). 0: 4096.
	Queue int
}

// Server is a fake Asterisk. NewServer binds its sockets; Run serves until its
// context ends, and must be called to free them. Generate makes calls.
type Server struct {
	cfg  ServerConfig
	http net.Listener
	ami  net.Listener

	mu       sync.Mutex
	started  time.Time
	entity   string
	sequence int64 // of channels
	rows     int64 // of CDRs
	channels map[string]*channelState
	apps     map[string]*application
	clients  map[*client]struct{}
	managers map[*manager]struct{}
	outbound *outbox
	epoch    int // counts crashes

	stats    Stats
	handlers sync.WaitGroup // of clients
}

// Stats counts what a Server did.
type Stats struct {
	Events  int64 // that were made
	Unheard int64 // that no ARI client got, because none was there
	Dropped int64 // clients that did not read

	Unlogged int64 // rows of the channel event log that could not be written
}

// channelState is a live channel.
type channelState struct {
	channelObject
	answered time.Time
}

// application is a Stasis application: the client that holds it, and its event filter.
type application struct {
	client  *client
	allowed []string // empty: all
}

// NewServer binds the sockets. The error says which could not be bound.
func NewServer(cfg ServerConfig) (*Server, error) {
	set := func(s *string, to string) {
		if *s == "" {
			*s = to
		}
	}
	set(&cfg.HTTP, "127.0.0.1:0")
	set(&cfg.AMI, "127.0.0.1:0")
	set(&cfg.User, "bulkhead")
	set(&cfg.Password, "test-password-1")
	set(&cfg.Secret, "test-secret-2")
	set(&cfg.App, "bulkhead-events")
	if cfg.Location == nil {
		cfg.Location = time.UTC
	}
	if cfg.Queue <= 0 {
		cfg.Queue = 4096
	}
	s := &Server{
		cfg: cfg, started: time.Now(), entity: "02:00:00:" + strings.ToLower(rand.Text()[:8]),
		channels: map[string]*channelState{}, apps: map[string]*application{},
		clients: map[*client]struct{}{}, managers: map[*manager]struct{}{},
	}
	var err error
	if s.http, err = net.Listen("tcp", cfg.HTTP); err != nil {
		return nil, fmt.Errorf("listen for ARI on %s: %w: %w", cfg.HTTP, bulkhead.Unavailable, err)
	}
	if s.ami, err = net.Listen("tcp", cfg.AMI); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for AMI on %s: %w: %w", cfg.AMI, bulkhead.Unavailable, err), s.http.Close())
	}
	if cfg.OutboundURL != "" {
		s.outbound = newOutbox(s)
	}
	return s, nil
}

// Config is how to reach the server, through both of its interfaces.
func (s *Server) Config() asterisk.Config {
	return asterisk.Config{
		Node: "ast1", Cell: "c1",
		ARI: asterisk.ARI{URL: "http://" + s.http.Addr().String() + "/ari", User: s.cfg.User, Password: s.cfg.Password},
		AMI: asterisk.AMI{Addr: s.ami.Addr().String(), User: s.cfg.User, Secret: s.cfg.Secret},
	}
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer s.handlers.Wait()
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	web := &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	wg.Go(func() { s.serveAMI(ctx, &wg) })
	if s.outbound != nil {
		wg.Go(func() { s.outbound.run(ctx) })
	}
	stop := context.AfterFunc(ctx, func() {
		_ = web.Close()
		_ = s.ami.Close()
		s.Cut()
	})
	defer stop()
	err := web.Serve(s.http)
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(err, s.ami.Close())
}

// Cut ends every connection, as a broken network does. Calls go on.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		c.cut()
	}
	for m := range s.managers {
		m.cut()
	}
	if s.outbound != nil {
		s.outbound.cut()
	}
}

// Crash ends every connection and forgets every channel without a word, as a
// killed Asterisk does; it is up again at once. The legs that were up are
// Lost in the ledger.
func (s *Server) Crash() {
	s.mu.Lock()
	s.epoch++
	s.started = time.Now()
	s.channels = map[string]*channelState{}
	s.apps = map[string]*application{}
	if s.outbound != nil {
		s.outbound.forget()
	}
	s.mu.Unlock()
	s.Cut()
}

// Listeners returns how many ARI and AMI clients there are.
func (s *Server) Listeners() (ari, ami int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ari = len(s.clients)
	if s.outbound != nil && s.outbound.up() {
		ari++
	}
	return ari, len(s.managers)
}

// Live returns the ids of the channels that exist, sorted.
func (s *Server) Live() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.channels))
	for id := range s.channels {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// publish sends an event to whoever listens. The lock is held, so that all
// clients see one order.
func (s *Server) publish(e *eventObject) {
	s.stats.Events++
	heard := false
	e.AsteriskID = s.entity
	for name, app := range s.apps {
		if len(app.allowed) > 0 && !slices.Contains(app.allowed, e.Type) {
			continue
		}
		e.Application = name
		b := encode(e)
		if app.client == nil {
			s.outbound.put(b)
			heard = true
			continue
		}
		heard = true
		if !app.client.send(b) {
			s.stats.Dropped++
			app.client.cut()
		}
	}
	if !heard {
		s.stats.Unheard++
	}
}

// row sends a Cdr event to the managers.
func (s *Server) row(rows []cdrRow, now time.Time) {
	var b strings.Builder
	for i := range rows {
		s.rows++
		rows[i].sequence = s.rows
		rows[i].write(&b, now, s.cfg.Location)
	}
	for m := range s.managers {
		if !m.send([]byte(b.String())) {
			s.stats.Dropped++
			m.cut()
		}
	}
}

// answer is what a request of ARI is answered with.
type answer struct {
	status int
	body   []byte
}

func refuse(status int, message string) answer {
	return answer{status, encode(map[string]string{"message": message})}
}

// rest answers one request, whatever it came over.
func (s *Server) rest(method, path string, query func(string) string, body []byte) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case method == http.MethodGet && path == "/asterisk/info":
		return answer{200, encode(map[string]any{
			"system": map[string]string{"version": "22.10.1", "entity_id": s.entity},
			"status": map[string]string{"startup_time": stamp(s.started), "last_reload_time": stamp(s.started)},
		})}
	case method == http.MethodGet && path == "/channels":
		list := make([]*channelObject, 0, len(s.channels))
		for _, c := range s.channels {
			list = append(list, &c.channelObject)
		}
		return answer{200, encode(list)}
	case method == http.MethodGet && len(parts) == 3 && parts[0] == "channels" && parts[2] == "variable":
		c := s.channels[parts[1]]
		switch {
		case c == nil:
			return refuse(404, "Channel not found")
		case query("variable") != "CDR(answer,u)" || c.answered.IsZero():
			return answer{200, encode(map[string]string{"value": ""})}
		}
		return answer{200, encode(map[string]string{"value": fmt.Sprintf("%d.%06d", c.answered.Unix(), c.answered.Nanosecond()/1000)})}
	case method == http.MethodGet && len(parts) == 2 && parts[0] == "applications":
		if s.apps[parts[1]] == nil {
			return refuse(404, "Application not found")
		}
		return answer{200, encode(map[string]string{"name": parts[1]})}
	case method == http.MethodPut && len(parts) == 3 && parts[0] == "applications" && parts[2] == "eventFilter":
		app := s.apps[parts[1]]
		if app == nil {
			return refuse(404, "Application not found")
		}
		return app.filter(body)
	}
	return refuse(404, "Resource not found")
}

// routes serves ARI.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ari/events", s.serveEvents)
	mux.HandleFunc("/ari/", func(w http.ResponseWriter, r *http.Request) {
		if !s.allowed(w, r) {
			return
		}
		var body bytes.Buffer
		if _, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, 1<<20)); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		a := s.rest(r.Method, strings.TrimPrefix(r.URL.Path, "/ari"), r.URL.Query().Get, body.Bytes())
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
		w.WriteHeader(a.status)
		_, _ = w.Write(a.body) // the asker may have gone
	})
	return mux
}

func (s *Server) allowed(w http.ResponseWriter, r *http.Request) bool {
	if user, password, _ := r.BasicAuth(); user == s.cfg.User && password == s.cfg.Password {
		return true
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="Asterisk REST Interface"`)
	w.WriteHeader(http.StatusUnauthorized)
	return false
}
