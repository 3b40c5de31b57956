package asterisk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

const (
	replacedHold = 10 * time.Second // before an application that another listener took is taken back
	resolveLimit = 10 * time.Second // for the answer times of all legs that were up before us
	relistAfter  = 5 * time.Second  // from Connected to Listed
	checkEvery   = 10 * time.Second // that the application is still ours
)

// Source hears the call events of one Asterisk: those of ARI, to which it
// connects, and, if Config.AMI names an address, the Cdr events of AMI as a
// second report of the same legs.
type Source struct {
	cfg Config
	log *slog.Logger
	m   *metrics
	ami *amiFeed // nil: not used

	run      sync.Mutex // one Run at a time
	tracker  *tracker
	packer   cdr.Packer
	replaced time.Time // when another listener took the application
}

// NewSource returns a source that connects to Asterisk. Its metrics are
// registered with reg under the label node; reg may be nil. A wrong
// configuration is bulkhead.Invalid.
func NewSource(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Source, error) {
	return newSource(cfg, true, log, reg)
}

func newSource(cfg Config, dials bool, log *slog.Logger, reg prometheus.Registerer) (*Source, error) {
	if err := cfg.validate(dials); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	id := identity{cell: cfg.Cell, node: cfg.Node, tenantVar: cfg.TenantVar}
	s := &Source{cfg: cfg, log: log.With("node", cfg.Node), m: newMetrics(reg, cfg.Node), tracker: newTracker(id, cfg.MaxLegs)}
	if cfg.AMI.Addr != "" {
		s.ami = newAMIFeed(cfg.AMI, id, s.log, s.m)
	}
	return s, nil
}

// Node returns the node that the source listens to.
func (s *Source) Node() bulkhead.NodeID { return s.cfg.Node }

// Run is one connection: it opens the WebSocket, sets the event filter, asks
// when Asterisk was started and for the live channels, asks for those that are
// up already when that was, emits cdr.Connected and then everything as it
// comes; some seconds later cdr.Listed, since Asterisk makes the list from a
// cache that lags behind its events.
//
// An event before Connected may be of a leg that Connected lists. A leg of
// which both ARI and AMI tell is closed twice, with one id: cdr.Merge joins
// them. AMI is a help and no condition: while it is away the rest goes on, and
// while ARI is away it is heard for amiLinger, so that what it tells in a gap
// is emitted by the next Run.
//
// emit is called from one goroutine. Run returns nil when ctx ends, else the
// error that ended the connection: ErrReplaced, ErrQueueFull, or one that wraps
// bulkhead.Denied for a wrong password. Asterisk keeps nothing for a listener
// that is away, so every return means a gap.
func (s *Source) Run(ctx context.Context, emit func(cdr.Event)) error {
	return s.connection(ctx, emit, s.dial)
}

// errAppGone ends a connection whose application Asterisk has forgotten. When
// a listener comes back at once, Asterisk may clear away after the one before
// only then, and take the application from both: the connection stays open and
// brings nothing any more.
var errAppGone = fmt.Errorf("the application of this connection is not known to Asterisk any more: %w", bulkhead.Unavailable)

// opener makes a connection. While that takes long it may emit what AMI tells.
type opener func(context.Context, func(cdr.Event)) (*session, error)

// Close ends at once what a Run that failed has left: AMI is heard a little
// longer. Without Close that ends by itself, after amiLinger. It must not be
// called during a Run.
func (s *Source) Close() {
	s.run.Lock()
	defer s.run.Unlock()
	s.ami.stop()
}

// session is one connection to ARI.
type session struct {
	socket *socket
	caller caller
	done   func()
}

// connection runs one connection made by open.
func (s *Source) connection(ctx context.Context, emit func(cdr.Event), open opener) error {
	s.run.Lock()
	defer s.run.Unlock()
	if s.ami != nil {
		s.ami.resume()
		defer s.ami.pause(ctx, func(ev cdr.Event) { s.emit(ev, emit) })
	}
	err := s.hear(ctx, emit, open)
	if ctx.Err() != nil {
		return nil
	}
	switch {
	case errors.Is(err, ErrReplaced):
		s.replaced = time.Now()
		s.m.replaced.Inc()
		s.log.Error("another listener took the ARI application; give every event bridge one of its own", "app", s.cfg.ARI.App)
	case errors.Is(err, ErrQueueFull):
		s.m.overflows.Inc()
	}
	return fmt.Errorf("events of node %s: %w", s.cfg.Node, err)
}

// dial opens the WebSocket.
func (s *Source) dial(ctx context.Context, emit func(cdr.Event)) (*session, error) {
	hold := time.NewTimer(time.Until(s.replaced.Add(replacedHold)))
	defer hold.Stop()
	for waiting := true; waiting; {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.ami.ready():
			s.emitAMI(emit)
		case <-hold.C:
			waiting = false
		}
	}
	h := newOverHTTP(s.cfg.ARI)
	limited, cancel := context.WithTimeout(ctx, s.cfg.ARI.Timeout)
	defer cancel()
	ws, resp, err := websocket.Dial(limited, h.url("/events", url.Values{"app": {s.cfg.ARI.App}, "subscribeAll": {"true"}}),
		&websocket.DialOptions{HTTPClient: h.client, HTTPHeader: h.authorization()})
	if err != nil {
		h.close()
		if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
			return nil, statusError(http.MethodGet, "/events", resp.StatusCode, http.StatusText(resp.StatusCode))
		}
		return nil, fmt.Errorf("connect to %s: %w: %w", s.cfg.ARI.URL, bulkhead.Unavailable, err)
	}
	return &session{socket: newSocket(ctx, ws, s.cfg.QueueBytes, s.cfg.ARI.Ping), caller: h, done: h.close}, nil
}

// hear is one connection, from open to the error that ends it.
func (s *Source) hear(ctx context.Context, emit func(cdr.Event), open opener) error {
	conn, err := open(ctx, emit)
	if err != nil {
		return err
	}
	defer conn.done()
	defer conn.socket.close()
	defer s.m.connected.Set(0)
	// A request does not outlive the connection that it is made for.
	requests := conn.socket.ctx
	if err := s.begin(requests, conn, emit); err != nil {
		return s.last(conn, s.reason(conn, err), emit)
	}
	s.m.connected.Set(1)
	relist := time.NewTimer(relistAfter)
	defer relist.Stop()
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	for {
		if err := s.drain(conn, emit); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-conn.socket.wake:
		case <-s.ami.ready():
			s.emitAMI(emit)
		case <-check.C:
			if err := checkApp(requests, conn.caller, s.cfg.ARI.App); err != nil {
				return s.last(conn, s.reason(conn, err), emit)
			}
		case <-relist.C:
			if err := s.relist(requests, conn, emit); err != nil {
				return s.last(conn, s.reason(conn, err), emit)
			}
		}
	}
}

// reason prefers what ended the socket to what a request made of it.
func (s *Source) reason(conn *session, err error) error {
	conn.socket.mu.Lock()
	defer conn.socket.mu.Unlock()
	if conn.socket.err != nil {
		return conn.socket.err
	}
	return err
}

// last handles what has arrived although a request failed.
func (s *Source) last(conn *session, err error, emit func(cdr.Event)) error {
	conn.socket.end(err)
	for {
		if errors.Is(s.early(conn, emit), ErrReplaced) || s.drain(conn, emit) != nil {
			return err
		}
	}
}

// begin prepares a new connection and emits Connected.
func (s *Source) begin(ctx context.Context, conn *session, emit func(cdr.Event)) error {
	s.tracker.open()
	switch err := setFilter(ctx, conn.caller, s.cfg.ARI.App); {
	case errors.Is(err, bulkhead.Denied):
		s.m.unfiltered.Inc()
		s.log.Warn("the ARI user may not set an event filter (read_only=yes), so Asterisk sends every event", "error", err)
	case errors.Is(err, bulkhead.NotFound):
		return fmt.Errorf("%w: %w", errAppGone, err)
	case err != nil:
		return err
	}
	core, err := start(ctx, conn.caller)
	if err != nil {
		return err
	}
	list, err := s.channels(ctx, conn)
	if err != nil {
		return err
	}
	// What has arrived by now tells more than the list: when legs were answered.
	// In one stream with the list it is also older than it.
	if err := s.early(conn, emit); err != nil {
		return err
	}
	if _, separate := conn.caller.(*overHTTP); separate {
		if err := s.drain(conn, emit); err != nil {
			return err
		}
	}
	live, found, unanswered := s.tracker.seed(list)
	if err := s.resolve(ctx, conn, unanswered); err != nil {
		return err
	}
	s.emitAMI(emit)
	emit(cdr.Event{Type: cdr.Connected, Core: core, Live: live, Found: found})
	s.m.events.WithLabelValues(string(cdr.Connected)).Inc()
	return s.early(conn, emit)
}

func (s *Source) channels(ctx context.Context, conn *session) ([]channel, error) {
	body, err := conn.caller.call(ctx, http.MethodGet, "/channels", nil, nil)
	if err != nil {
		return nil, err
	}
	return decodeChannels(body)
}

// resolve asks when the legs were answered that were up before we listened.
// It stops after resolveLimit: the rest stays unknown to ARI.
func (s *Source) resolve(ctx context.Context, conn *session, legs []*leg) error {
	limited, cancel := context.WithTimeout(ctx, resolveLimit)
	defer cancel()
	for _, l := range legs {
		at, err := answeredAt(limited, conn.caller, l.record.Leg)
		switch {
		case err == nil && !at.IsZero():
			l.record.Answer = at
			s.m.resolved.WithLabelValues("asked").Inc()
		case err == nil, errors.Is(err, bulkhead.NotFound), errors.Is(err, bulkhead.Invalid), limited.Err() != nil && ctx.Err() == nil:
			s.m.resolved.WithLabelValues("unknown").Inc()
		default:
			return err
		}
	}
	return nil
}

// relist emits the live legs once more.
func (s *Source) relist(ctx context.Context, conn *session, emit func(cdr.Event)) error {
	list, err := s.channels(ctx, conn)
	if err != nil {
		return err
	}
	if err := s.early(conn, emit); err != nil {
		return err
	}
	var live []string
	for i := range list {
		if isLeg(list[i].Name) && list[i].ID != "" {
			live = append(live, list[i].ID)
		}
	}
	emit(cdr.Event{Type: cdr.Listed, Live: live})
	return nil
}

// early handles what a request over the WebSocket put aside.
func (s *Source) early(conn *session, emit func(cdr.Event)) error {
	o, ok := conn.caller.(*overSocket)
	if !ok {
		return nil
	}
	messages := o.early
	o.early, o.held = nil, 0
	return s.messages(messages, emit)
}

// drain handles everything that has arrived.
func (s *Source) drain(conn *session, emit func(cdr.Event)) error {
	messages, alive, err := conn.socket.take()
	if err != nil {
		return err
	}
	if err := s.messages(messages, emit); err != nil {
		return err
	}
	if alive {
		s.emit(cdr.Event{Type: cdr.Heartbeat}, emit)
	}
	return nil
}

func (s *Source) messages(messages [][]byte, emit func(cdr.Event)) error {
	for _, m := range messages {
		e, bad, err := decodeEvent(m)
		if err != nil {
			s.m.ignored.WithLabelValues("undecodable").Inc()
			s.log.Warn("event left out", "error", err)
			continue
		}
		if bad != "" {
			s.m.badFields.Inc()
			s.log.Warn("a field of an event has an unexpected form and is left empty", "type", e.Type, "field", bad)
		}
		if e.Type == typeReplaced && (e.Application == "" || e.Application == s.cfg.ARI.App) {
			return ErrReplaced
		}
		before := s.tracker.untracked
		s.tracker.apply(&e, func(ev cdr.Event) {
			if ev.Type == cdr.Closed {
				ev.Raw = s.packer.Pack(m)
			}
			s.emit(ev, emit)
		})
		s.m.untracked.Add(float64(s.tracker.untracked - before))
	}
	return nil
}

func (s *Source) emit(ev cdr.Event, emit func(cdr.Event)) {
	s.m.events.WithLabelValues(string(ev.Type)).Inc()
	emit(ev)
}

// emitAMI emits what AMI has told since the last time.
func (s *Source) emitAMI(emit func(cdr.Event)) {
	for _, ev := range s.ami.take() {
		s.emit(ev, emit)
	}
}
