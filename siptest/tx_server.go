package siptest

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
)

type txState int

const (
	txProceeding txState = iota // no final response yet
	txAccepted                  // 2xx to an INVITE; the user repeats it (RFC 6026)
	txCompleted                 // final response sent or got, repeats are answered
	txConfirmed                 // ACK of a non-2xx seen
	txTerminated
)

// serverTx is a server transaction (RFC 3261 section 17.2, RFC 6026).
type serverTx struct {
	e      *endpoint
	key    string
	req    *sip.Request
	src    netip.AddrPort // where the request came from
	dst    netip.AddrPort // where responses go
	invite bool
	toTag  string // of every response that this side makes

	canceled chan struct{} // closed by a CANCEL

	mu       sync.Mutex
	state    txState
	cancels  func()
	wasCan   bool
	last     []byte // last response
	retry    *time.Timer
	interval time.Duration
	end      *time.Timer
}

func newServerTx(e *endpoint, key string, req *sip.Request, src netip.AddrPort) *serverTx {
	return &serverTx{
		e: e, key: key, req: req, src: src, dst: replyTo(req.Via(), src),
		invite: req.Method == sip.INVITE, toTag: newTag(), canceled: make(chan struct{}),
	}
}

// response makes a response of this side, with the transaction's To tag.
func (t *serverTx) response(code int, reason string, body []byte, headers ...sip.Header) *sip.Response {
	res := sip.NewResponseFromRequest(t.req, code, reason, body)
	if to := res.To(); to != nil && code != sip.StatusTrying && tagOf(t.req.To().Params) == "" {
		to.Params.Add("tag", t.toTag)
	}
	for _, h := range headers {
		res.AppendHeader(h)
	}
	return res
}

// reply responds without a body. A failure to send is logged only: the other
// side repeats its request.
func (t *serverTx) reply(code int, reason string, headers ...sip.Header) {
	if err := t.respond(t.response(code, reason, nil, headers...)); err != nil {
		t.e.log.Debug("respond", "code", code, "err", err)
	}
}

func (t *serverTx) stateless(code int, reason string) {
	if err := t.e.write([]byte(t.response(code, reason, nil).String()), t.dst); err != nil {
		t.e.log.Debug("respond", "code", code, "err", err)
	}
}

// respond sends res and moves on. After a 2xx to an INVITE only further 2xx
// are sent; any other response after a final one is an error.
func (t *serverTx) respond(res *sip.Response) error {
	raw := []byte(res.String())
	t.mu.Lock()
	switch {
	case t.state == txAccepted && res.IsSuccess():
	case t.state != txProceeding:
		t.mu.Unlock()
		return fmt.Errorf("respond %d: the transaction has its final response: %w", res.StatusCode, bulkhead.Conflict)
	case res.IsProvisional():
		t.last = raw
	case t.invite && res.IsSuccess():
		t.state = txAccepted
		t.end = time.AfterFunc(t.e.timers.transactionTimeout(), t.terminate) // L
	default:
		t.complete(raw)
	}
	t.mu.Unlock()
	return t.e.write(raw, t.dst)
}

// complete is called with the lock held.
func (t *serverTx) complete(raw []byte) {
	t.state, t.last = txCompleted, raw
	t.end = time.AfterFunc(t.e.timers.transactionTimeout(), t.terminate) // H, J
	if t.invite {
		t.interval = t.e.timers.t1
		t.retry = time.AfterFunc(t.interval, t.repeat) // G
	}
}

func (t *serverTx) repeat() {
	t.mu.Lock()
	if t.state != txCompleted {
		t.mu.Unlock()
		return
	}
	t.interval = min(2*t.interval, t.e.timers.t2)
	t.retry.Reset(t.interval)
	raw := t.last
	t.mu.Unlock()
	_ = t.e.write(raw, t.dst) // repeated again later
}

// retransmit answers a repeated request.
func (t *serverTx) retransmit() {
	t.mu.Lock()
	raw := t.last
	if t.state != txProceeding && t.state != txCompleted {
		raw = nil
	}
	t.mu.Unlock()
	if raw != nil {
		_ = t.e.write(raw, t.dst) // the request will be repeated again
	}
}

// ack reports whether the ACK belonged to this transaction.
func (t *serverTx) ack() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch t.state {
	case txCompleted:
		t.state = txConfirmed
		t.stopTimers()
		t.end = time.AfterFunc(t.e.timers.t4, t.terminate) // I
		return true
	case txConfirmed:
		return true
	}
	return false
}

// onCancel registers f to run, in the reader's goroutine, when a CANCEL comes
// before the final response. It reports false if the CANCEL was there first;
// f is not called then.
func (t *serverTx) onCancel(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wasCan {
		return false
	}
	t.cancels = f
	return true
}

func (t *serverTx) cancel() {
	t.mu.Lock()
	if t.wasCan || t.state != txProceeding {
		t.mu.Unlock()
		return
	}
	t.wasCan = true
	f := t.cancels
	t.mu.Unlock()
	close(t.canceled)
	if f != nil {
		f()
	}
}

// stopTimers is called with the lock held.
func (t *serverTx) stopTimers() {
	if t.retry != nil {
		t.retry.Stop()
	}
	if t.end != nil {
		t.end.Stop()
	}
}

func (t *serverTx) terminate() {
	t.mu.Lock()
	t.state = txTerminated
	t.stopTimers()
	t.mu.Unlock()
	t.e.dropServer(t.key, t)
}
