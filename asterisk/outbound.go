package asterisk

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// takeWait is how long a connection of Asterisk waits for a Run.
const takeWait = 5 * time.Second

// errNewer ends a connection because Asterisk has opened another one.
var errNewer = fmt.Errorf("the switch has opened another connection: %w", bulkhead.Unavailable)

// Outbound is a Source to which Asterisk connects, with an outbound WebSocket
// (Asterisk 22, websocket_client.conf with connection_type = persistent). While
// nobody listens, Asterisk keeps the events and sends them first on the next
// connection, so that a gap costs nothing that Asterisk lives through. It keeps
// them in memory without a limit, and logs a warning for each.
//
// Outbound is an http.Handler for one node: mount it at the path of the uri in
// websocket_client.conf.
type Outbound struct {
	source  *Source
	tickets chan chan *websocket.Conn // a Run that waits for a connection

	mu      sync.Mutex
	current *socket
}

// NewOutbound returns a source that Asterisk connects to. cfg.ARI holds the
// user and password that Asterisk sends, and the application that its ari.conf
// names under apps; it has no URL. The rest is as for NewSource.
func NewOutbound(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Outbound, error) {
	s, err := newSource(cfg, false, log, reg)
	if err != nil {
		return nil, err
	}
	return &Outbound{source: s, tickets: make(chan chan *websocket.Conn)}, nil
}

// Node returns the node that the source listens to.
func (o *Outbound) Node() bulkhead.NodeID { return o.source.Node() }

// Run waits for Asterisk to connect and hears one connection, as Source.Run
// does. What Asterisk has kept is emitted before Connected, whose list comes
// in the same stream. There is no ErrReplaced: the newer of two connections
// wins.
func (o *Outbound) Run(ctx context.Context, emit func(cdr.Event)) error {
	return o.source.connection(ctx, emit, o.accept)
}

// Close is as Source.Close.
func (o *Outbound) Close() { o.source.Close() }

func (o *Outbound) accept(ctx context.Context, emit func(cdr.Event)) (*session, error) {
	ticket := make(chan *websocket.Conn)
	for waiting := true; waiting; {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-o.source.ami.ready():
			o.source.emitAMI(emit)
		case o.tickets <- ticket:
			waiting = false
		}
	}
	var ws *websocket.Conn
	select {
	case ws = <-ticket:
	case <-ctx.Done():
		ws = <-ticket // the handler answers in any case
		if ws != nil {
			_ = ws.CloseNow()
		}
		return nil, ctx.Err()
	}
	if ws == nil {
		return nil, fmt.Errorf("the WebSocket that Asterisk began could not be set up: %w", bulkhead.Unavailable)
	}
	s := newSocket(ctx, ws, o.source.cfg.QueueBytes, o.source.cfg.ARI.Ping)
	o.mu.Lock()
	o.current = s
	o.mu.Unlock()
	return &session{socket: s, caller: &overSocket{socket: s, timeout: o.source.cfg.ARI.Timeout}, done: o.clear}, nil
}

func (o *Outbound) clear() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.current = nil
}

// ServeHTTP takes a WebSocket from Asterisk and hands it to Run. A connection
// that there was before ends. Asterisk is let in only once a Run waits for it,
// for what is written to a connection is not kept any more: 503 else, and
// Asterisk tries again.
func (o *Outbound) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	if !equal(user, o.source.cfg.ARI.User) || !equal(password, o.source.cfg.ARI.Password) {
		w.Header().Set("WWW-Authenticate", `Basic realm="bulkhead"`)
		http.Error(w, "wrong username or password of websocket_client.conf", http.StatusUnauthorized)
		return
	}
	o.mu.Lock()
	if o.current != nil {
		o.current.end(errNewer)
	}
	o.mu.Unlock()
	wait := time.NewTimer(takeWait)
	defer wait.Stop()
	select {
	case ticket := <-o.tickets:
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"ari"}})
		if err != nil {
			o.source.log.Warn("Asterisk's WebSocket could not be set up", "remote", r.RemoteAddr, "error", err)
			ws = nil
		}
		ticket <- ws
	case <-wait.C:
		http.Error(w, "this node is not being listened to", http.StatusServiceUnavailable)
	case <-r.Context().Done():
	}
}

// equal compares secrets without telling by its duration where they differ.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
