package freeswitchtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

const (
	// maxClients bounds the event socket connections at one time.
	maxClients = 64
	// stopGrace bounds the hanging up of live calls at a clean stop.
	stopGrace = 5 * time.Second
	// byeTime bounds the wait for the answer to a BYE, which nobody waits for but
	// the stop.
	byeTime = 5 * time.Second
	// byeGrace bounds that wait at a stop.
	byeGrace = 500 * time.Millisecond
)

// Node is a media node. New binds its sockets; Run serves until its context
// ends, and must be called to free them.
type Node struct {
	cfg       Config
	log       *slog.Logger
	profile   string // the sofia profile
	globals   map[string]string
	started   time.Time
	hub       *hub
	sessions  *sessions
	stack     *siptest.Stack
	media     *siptest.MediaEngine
	esl       net.Listener
	directory directoryCache

	mu      sync.Mutex
	calls   map[*call]context.CancelFunc
	clients int
	serving bool          // Run has begun, and not begun to stop
	stopped chan struct{} // closed when the stop begins

	callsWG, background sync.WaitGroup
}

// New checks the configuration and binds the sockets. Errors are of kind
// bulkhead.Invalid, or tell which address could not be bound.
func New(cfg Config) (*Node, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("media node %s: %w", cfg.ID, err)
	}
	n := &Node{
		cfg: cfg, log: cfg.Logger.With("node", cfg.ID), profile: "internal", started: time.Now(),
		sessions: newSessions(cfg.MaxSessions, cfg.MaxSessionsPerSecond), calls: map[*call]context.CancelFunc{}, stopped: make(chan struct{}),
	}
	var err error
	if n.esl, err = net.Listen("tcp", cfg.ESLListen); err != nil {
		return nil, fmt.Errorf("media node %s: listen for event socket clients: %w", cfg.ID, err)
	}
	if n.media, err = siptest.NewMediaEngine(siptest.MediaConfig{IP: cfg.RTPIP, Logger: cfg.Logger}); err != nil {
		return nil, errors.Join(fmt.Errorf("media node %s: %w", cfg.ID, err), n.esl.Close())
	}
	n.stack, err = siptest.NewStack(siptest.StackConfig{
		Listen: cfg.Listen, T1: cfg.SIPT1, UserAgent: "FreeSWITCH", Logger: cfg.Logger,
		OnInvite: n.invite, OnRequest: n.request,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("media node %s: %w", cfg.ID, err), n.media.Close(), n.esl.Close())
	}
	ip := n.stack.Addr().Addr().String()
	n.hub = newHub(cfg.ID, ip)
	n.globals = map[string]string{"hostname": cfg.ID, "switchname": cfg.ID, "core_uuid": n.hub.core, "local_ip_v4": ip}
	return n, nil
}

// Addr is the SIP address.
func (n *Node) Addr() netip.AddrPort { return n.stack.Addr() }

// ESLAddr is the event socket's address.
func (n *Node) ESLAddr() string { return n.esl.Addr().String() }

// CoreUUID names this run of the node; it is new with each New.
func (n *Node) CoreUUID() string { return n.hub.core }

// Sessions returns the number of legs that exist.
func (n *Node) Sessions() int { return n.sessions.counts().active }

// Ended returns the number of legs that began and ended since the start.
func (n *Node) Ended() int64 {
	c := n.sessions.counts()
	return int64(c.total - c.active)
}

// Run serves until ctx ends. Then it does what a clean stop of FreeSWITCH does
// (capture esl/shutdown.txt): SHUTDOWN, each live call ended with
// SYSTEM_SHUTDOWN, a notice to each event socket client. It returns after at
// most 15 s; an error means that something did not end in time.
func (n *Node) Run(ctx context.Context) error {
	n.setServing(true)
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { n.accept(life) })
	wg.Go(func() { n.heartbeats(ctx) })
	<-ctx.Done()

	close(n.stopped)
	n.setServing(false)
	var f fields
	f.add("Event-Info", "System Shutting Down")
	n.hub.fire("SHUTDOWN", place{"switch_core.c", "switch_core_destroy", "3033"}, f, "", nil)
	errs := n.endCalls()
	stop() // clients get their notice
	if err := n.esl.Close(); err != nil {
		errs = append(errs, fmt.Errorf("close the event socket: %w", err))
	}
	wg.Wait()
	errs = append(errs, n.stack.Close(), n.media.Close())
	n.background.Wait() // the stack's end ended what they waited for
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop media node %s: %w", n.cfg.ID, err)
	}
	return nil
}

func (n *Node) setServing(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.serving = on
}

// endCalls hangs every call up and waits for it, at most stopGrace, and for the
// answers to its BYEs, at most byeGrace.
func (n *Node) endCalls() []error {
	n.mu.Lock()
	for c, cancel := range n.calls {
		c.a.kill(causeShutdown)
		cancel()
	}
	n.mu.Unlock()
	if !waited(&n.callsWG, stopGrace) {
		return []error{fmt.Errorf("calls are still open after %s: %w", stopGrace, bulkhead.Unavailable)}
	}
	// BYEs are sent by now. A far end that is gone too answers none, and that
	// must not hold the stop up.
	waited(&n.background, byeGrace)
	return nil
}

// waited waits for wg, and tells whether it ended in time.
func waited(wg *sync.WaitGroup, limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// request answers what is outside of a dialog and no INVITE: 200 to OPTIONS
// (by the stack), 403 to a REGISTER, since this node has no directory.
func (n *Node) request(req *sip.Request, _ netip.AddrPort) *sip.Response {
	if req.Method == sip.REGISTER {
		return sip.NewResponseFromRequest(req, sip.StatusForbidden, "Forbidden", nil)
	}
	return nil
}

// invite runs one call, in the goroutine of its INVITE.
func (n *Node) invite(inc *siptest.Incoming) {
	n.mu.Lock()
	serving := n.serving
	if serving {
		n.callsWG.Add(1)
	}
	n.mu.Unlock()
	if !serving {
		n.refuse(inc, "System Not Ready")
		return
	}
	defer n.callsWG.Done()
	a := newInbound(n, inc)
	if a == nil { // source: mod_sofia.c; no leg, no event
		n.refuse(inc, "Maximum Calls In Progress")
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := &call{n: n, inc: inc, a: a, log: n.log.With("uuid", a.uuid)}
	n.mu.Lock()
	n.calls[c] = cancel
	stopping := !n.serving
	n.mu.Unlock()
	if stopping {
		a.kill(causeShutdown)
		cancel()
	}
	c.run(ctx)
	n.mu.Lock()
	delete(n.calls, c)
	n.mu.Unlock()
}

func (n *Node) refuse(inc *siptest.Incoming, why string) {
	n.log.Warn("call refused with 503", "why", why)
	if err := inc.Reject(sip.StatusServiceUnavailable, why, sip.NewHeader("Retry-After", "300")); err != nil {
		n.log.Debug("refuse a call", "err", err)
	}
}

// accept takes event socket clients until the listener is closed, and joins
// them.
func (n *Node) accept(ctx context.Context) {
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		conn, err := n.esl.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				n.log.Error("accept an event socket client", "err", err)
			}
			return
		}
		n.mu.Lock()
		full := n.clients >= maxClients
		if !full {
			n.clients++
		}
		n.mu.Unlock()
		if full {
			n.log.Error("event socket: too many clients", "limit", maxClients)
			_ = conn.Close() // nothing was said on it
			continue
		}
		clients.Go(func() {
			n.serveClient(ctx, conn)
			n.mu.Lock()
			n.clients--
			n.mu.Unlock()
		})
	}
}

// heartbeats fires HEARTBEAT at the configured period (fact 36, capture
// esl/heartbeat-during-calls.txt).
func (n *Node) heartbeats(ctx context.Context) {
	t := time.NewTicker(n.cfg.Heartbeat)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			n.heartbeat()
		}
	}
}

func (n *Node) heartbeat() {
	c := n.sessions.counts()
	var f fields
	num := func(name string, v int) { f.add(name, strconv.Itoa(v)) }
	f.add("Event-Info", "System Ready")
	f.add("Up-Time", n.uptimeText())
	f.add("FreeSWITCH-Version", version+"~64bit")
	f.add("Uptime-msec", strconv.FormatInt(time.Since(n.started).Milliseconds(), 10))
	num("Session-Count", c.active)
	num("Max-Sessions", n.cfg.MaxSessions)
	// Not the rate but what is left of the limit, as captured.
	num("Session-Per-Sec", max(0, n.cfg.MaxSessionsPerSecond-c.current))
	num("Session-Per-Sec-Last", c.last)
	num("Session-Per-Sec-Max", c.ratePeak)
	num("Session-Per-Sec-FiveMin", c.ratePeak5)
	num("Session-Since-Startup", c.total)
	num("Session-Peak-Max", c.peak)
	num("Session-Peak-FiveMin", c.peak5)
	f.add("Idle-CPU", strconv.FormatFloat(n.cfg.IdleCPU(), 'f', 6, 64))
	n.hub.fire("HEARTBEAT", place{"switch_core.c", "send_heartbeat", "95"}, f, "", nil)
}
