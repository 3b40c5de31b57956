package siptest

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
)

// maxTransactions bounds the transactions of each side that one endpoint keeps.
const maxTransactions = 1 << 16

// errClosed is the end of every transaction of an endpoint that was closed.
var errClosed = fmt.Errorf("the SIP socket is closed: %w", bulkhead.Unavailable)

// timers are the timers of RFC 3261 section 17, derived from T1.
type timers struct {
	t1, t2, t4 time.Duration
}

func newTimers(t1 time.Duration) timers {
	if t1 <= 0 {
		t1 = 500 * time.Millisecond
	}
	return timers{t1: t1, t2: 8 * t1, t4: 10 * t1}
}

// transactionTimeout is 64*T1: timers B, F, H, J, L and M.
func (t timers) transactionTimeout() time.Duration { return 64 * t.t1 }

// endpoint is one UDP socket with the transactions on it.
type endpoint struct {
	conn   *net.UDPConn
	addr   netip.AddrPort
	timers timers
	log    *slog.Logger
	parser *sip.Parser

	// onRequest gets each new request but ACK, in its own goroutine.
	onRequest func(*serverTx)
	// onAck gets an ACK of a 2xx in the reader's goroutine, so that no BYE can
	// overtake it; it must not block.
	onAck func(req *sip.Request, src netip.AddrPort)

	mu      sync.Mutex
	servers map[string]*serverTx
	clients map[string]*clientTx
	closed  bool
	done    chan struct{}
	wg      sync.WaitGroup // handlers
}

// listen binds the socket. Nothing is read before serve.
func listen(addr string, t1 time.Duration, log *slog.Logger) (*endpoint, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil || ap.Addr().IsUnspecified() {
		return nil, fmt.Errorf("listen address %q: give one numeric ip:port, because Via and Contact carry it: %w", addr, bulkhead.Invalid)
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(ap))
	if err != nil {
		return nil, fmt.Errorf("listen for SIP on udp %s: %w", addr, err)
	}
	// Best effort: bursts of a hundred calls arrive while the reader waits for a core.
	_ = conn.SetReadBuffer(4 << 20)
	local := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return &endpoint{
		conn: conn, addr: netip.AddrPortFrom(local.Addr().Unmap(), local.Port()),
		timers: newTimers(t1), log: log, parser: sip.NewParser(),
		onRequest: func(tx *serverTx) { tx.reply(sip.StatusNotImplemented, "Not Implemented") },
		onAck:     func(*sip.Request, netip.AddrPort) {},
		servers:   map[string]*serverTx{}, clients: map[string]*clientTx{},
		done: make(chan struct{}),
	}, nil
}

// serve reads until close.
func (e *endpoint) serve() error {
	buf := make([]byte, 1<<16)
	for {
		n, src, err := e.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// A UDP socket reports the errors of earlier sends here; they say
			// nothing about the next datagram.
			e.log.Debug("read SIP", "err", err)
			continue
		}
		e.receive(buf[:n], netip.AddrPortFrom(src.Addr().Unmap(), src.Port()))
	}
}

// close ends every transaction and waits at most 5 s for the handlers.
func (e *endpoint) close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	close(e.done)
	servers, clients := e.servers, e.clients
	e.servers, e.clients = map[string]*serverTx{}, map[string]*clientTx{}
	e.mu.Unlock()
	for _, tx := range servers {
		tx.terminate()
	}
	for _, tx := range clients {
		tx.fail(errClosed)
	}
	err := e.conn.Close()
	joined := make(chan struct{})
	go func() {
		e.wg.Wait()
		close(joined)
	}()
	t := time.NewTimer(5 * time.Second)
	defer t.Stop()
	select {
	case <-joined:
		return err
	case <-t.C:
		return errors.Join(err, fmt.Errorf("close SIP socket %s: a request handler still runs after 5s: %w", e.addr, bulkhead.Unavailable))
	}
}

func (e *endpoint) write(b []byte, dst netip.AddrPort) error {
	if _, err := e.conn.WriteToUDPAddrPort(b, dst); err != nil {
		return fmt.Errorf("send SIP to %s: %w", dst, err)
	}
	return nil
}

func (e *endpoint) receive(b []byte, src netip.AddrPort) {
	if len(bytes.Trim(b, "\r\n\x00")) == 0 {
		return // keep-alive
	}
	if smuggles(b) {
		e.log.Debug("a bare LF or NUL stands in the headers", "src", src)
		return
	}
	msg, err := e.parser.ParseSIP(b)
	if err != nil {
		e.log.Debug("not a SIP message", "src", src, "err", err)
		return
	}
	if !wellFormed(msg) {
		e.log.Debug("a mandatory header is missing", "src", src)
		return
	}
	msg.SetTransport("UDP")
	msg.SetSource(src.String())
	switch m := msg.(type) {
	case *sip.Response:
		e.response(m)
	case *sip.Request:
		e.request(m, src)
	}
}

func (e *endpoint) response(res *sip.Response) {
	via := res.Via()
	branch, _ := via.Params.Get("branch")
	e.mu.Lock()
	tx := e.clients[clientKey(branch, res.CSeq().MethodName)]
	e.mu.Unlock()
	if tx == nil {
		e.log.Debug("stray response", "status", res.StatusCode, "call", res.CallID().Value())
		return // RFC 6026 section 7.3: never forwarded
	}
	tx.receive(res)
}

func (e *endpoint) request(req *sip.Request, src netip.AddrPort) {
	stampVia(req.Via(), src)
	key := serverKey(req, req.Method)
	if req.Method == sip.ACK {
		e.mu.Lock()
		tx := e.servers[serverKey(req, sip.INVITE)]
		e.mu.Unlock()
		if tx == nil || !tx.ack() {
			e.onAck(req, src)
		}
		return
	}
	tx := newServerTx(e, key, req, src)
	e.mu.Lock()
	if old := e.servers[key]; old != nil {
		e.mu.Unlock()
		old.retransmit()
		return
	}
	if e.closed {
		e.mu.Unlock()
		return
	}
	if len(e.servers) >= maxTransactions {
		e.mu.Unlock()
		tx.stateless(sip.StatusServiceUnavailable, "Too Many Transactions")
		return
	}
	e.servers[key] = tx
	var invite *serverTx
	if req.Method == sip.CANCEL {
		invite = e.servers[serverKey(req, sip.INVITE)]
	} else {
		e.wg.Add(1)
	}
	e.mu.Unlock()

	switch req.Method {
	case sip.CANCEL:
		if invite == nil {
			tx.reply(sip.StatusCallTransactionDoesNotExists, "Call/Transaction Does Not Exist")
			return
		}
		tx.reply(sip.StatusOK, "OK")
		invite.cancel()
		return
	case sip.INVITE:
		tx.reply(sip.StatusTrying, "Trying")
	}
	go func() {
		defer e.wg.Done()
		e.onRequest(tx)
	}()
}

func (e *endpoint) dropServer(key string, tx *serverTx) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.servers[key] == tx {
		delete(e.servers, key)
	}
}

func (e *endpoint) dropClient(key string, tx *clientTx) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.clients[key] == tx {
		delete(e.clients, key)
	}
}
