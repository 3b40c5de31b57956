package siptest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
)

// errTimeout ends a client transaction without a final response (timer B or F).
var errTimeout = fmt.Errorf("no final response came in time: %w", bulkhead.Unavailable)

// clientTx is a client transaction (RFC 3261 section 17.1, RFC 6026).
type clientTx struct {
	e      *endpoint
	key    string
	req    *sip.Request
	raw    []byte
	dst    netip.AddrPort
	invite bool

	// on gets each response, 2xx of an INVITE also when repeated, or the error
	// that ended the transaction. It is called from the reader's or a timer's
	// goroutine and must not block.
	on func(*sip.Response, error)

	mu           sync.Mutex
	state        txState
	provisional  bool
	cancelWanted bool
	cancelSent   bool
	hushed       bool
	retry        *time.Timer
	interval     time.Duration
	end          *time.Timer
	ackRaw       []byte
}

// start sends req, whose topmost Via must be this endpoint's, to dst.
func (e *endpoint) start(req *sip.Request, dst netip.AddrPort, on func(*sip.Response, error)) (*clientTx, error) {
	branch, _ := req.Via().Params.Get("branch")
	tx := &clientTx{
		e: e, key: clientKey(branch, req.Method), req: req, raw: []byte(req.String()), dst: dst,
		invite: req.Method == sip.INVITE, on: on, interval: e.timers.t1,
	}
	e.mu.Lock()
	switch {
	case e.closed:
		e.mu.Unlock()
		return nil, errClosed
	case len(e.clients) >= maxTransactions:
		e.mu.Unlock()
		return nil, fmt.Errorf("send %s: %d transactions are open: %w", req.Method, maxTransactions, bulkhead.Unavailable)
	}
	e.clients[tx.key] = tx
	e.mu.Unlock()

	tx.mu.Lock()
	tx.end = time.AfterFunc(e.timers.transactionTimeout(), func() { tx.fail(errTimeout) }) // B, F
	tx.retry = time.AfterFunc(tx.interval, tx.repeat)                                      // A, E
	tx.mu.Unlock()
	if err := e.write(tx.raw, dst); err != nil {
		tx.terminate()
		return nil, err
	}
	return tx, nil
}

func (t *clientTx) repeat() {
	t.mu.Lock()
	if t.state != txProceeding || t.hushed || (t.invite && t.provisional) {
		t.mu.Unlock()
		return
	}
	t.interval *= 2
	if !t.invite {
		t.interval = min(t.interval, t.e.timers.t2)
	}
	t.retry.Reset(t.interval)
	t.mu.Unlock()
	_ = t.e.write(t.raw, t.dst) // repeated again later
}

func (t *clientTx) receive(res *sip.Response) {
	t.mu.Lock()
	switch {
	case t.state == txCompleted && t.invite && res.StatusCode >= 300:
		raw := t.ackRaw
		t.mu.Unlock()
		_ = t.e.write(raw, t.dst) // the response will be repeated again
		return
	case t.state == txAccepted && res.IsSuccess():
		t.mu.Unlock()
		t.on(res, nil)
		return
	case t.state != txProceeding:
		t.mu.Unlock()
		return
	case res.IsProvisional():
		t.gotProvisional()
		t.mu.Unlock()
		t.on(res, nil)
		return
	}
	t.stopTimers()
	var ack []byte
	switch {
	case !t.invite:
		t.state = txCompleted
		t.end = time.AfterFunc(t.e.timers.t4, t.terminate) // K
	case res.IsSuccess():
		t.state = txAccepted
		t.end = time.AfterFunc(t.e.timers.transactionTimeout(), t.terminate) // M
	default:
		t.state = txCompleted
		t.end = time.AfterFunc(t.e.timers.transactionTimeout(), t.terminate) // D
		t.ackRaw = []byte(ackNon2xx(t.req, res).String())
		ack = t.ackRaw
	}
	t.mu.Unlock()
	if ack != nil {
		_ = t.e.write(ack, t.dst) // sent again when the response is repeated
	}
	t.on(res, nil)
}

// gotProvisional is called with the lock held.
func (t *clientTx) gotProvisional() {
	first := !t.provisional
	t.provisional = true
	if !t.invite || !first {
		return
	}
	t.retry.Stop()
	t.end.Stop()
	if t.cancelWanted {
		t.sendCancel()
	}
}

// cancel asks the other side to give up the INVITE (RFC 3261 section 9.1): at
// once if it has answered provisionally, else as soon as it does. The final
// response, or an error after 64*T1, still comes to on.
func (t *clientTx) cancel() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.invite || t.state != txProceeding || t.cancelWanted {
		return
	}
	t.cancelWanted = true
	if t.provisional {
		t.sendCancel()
	}
}

// hush stops the repeating of a request that nobody waits for any more; late
// responses are still handled.
func (t *clientTx) hush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.retry != nil {
		t.retry.Stop()
	}
	t.hushed = true
}

// sendCancel is called with the lock held.
func (t *clientTx) sendCancel() {
	if t.cancelSent {
		return
	}
	t.cancelSent = true
	t.end = time.AfterFunc(t.e.timers.transactionTimeout(), func() { t.fail(errTimeout) })
	req := cancelOf(t.req)
	// A transaction of its own, started without this one's lock.
	time.AfterFunc(0, func() {
		if _, err := t.e.start(req, t.dst, func(*sip.Response, error) {}); err != nil && !errors.Is(err, errClosed) {
			t.e.log.Debug("send CANCEL", "err", err)
		}
	})
}

// stopTimers is called with the lock held.
func (t *clientTx) stopTimers() {
	if t.retry != nil {
		t.retry.Stop()
	}
	if t.end != nil {
		t.end.Stop()
	}
}

// fail ends the transaction; on hears err unless it had a final response.
func (t *clientTx) fail(err error) {
	t.mu.Lock()
	pending := t.state == txProceeding
	t.state = txTerminated
	t.stopTimers()
	t.mu.Unlock()
	t.e.dropClient(t.key, t)
	if pending {
		t.on(nil, err)
	}
}

// terminate ends the transaction in silence.
func (t *clientTx) terminate() {
	t.mu.Lock()
	t.state = txTerminated
	t.stopTimers()
	t.mu.Unlock()
	t.e.dropClient(t.key, t)
}

// do sends a request other than INVITE and waits for its final response.
func (e *endpoint) do(ctx context.Context, req *sip.Request, dst netip.AddrPort) (*sip.Response, error) {
	type result struct {
		res *sip.Response
		err error
	}
	final := make(chan result, 1)
	tx, err := e.start(req, dst, func(res *sip.Response, err error) {
		if err != nil || !res.IsProvisional() {
			final <- result{res, err} // once: completed transactions absorb repeats
		}
	})
	if err != nil {
		return nil, err
	}
	select {
	case r := <-final:
		if r.err != nil {
			return nil, fmt.Errorf("%s to %s: %w", req.Method, dst, r.err)
		}
		return r.res, nil
	case <-ctx.Done():
		tx.terminate()
		return nil, fmt.Errorf("%s to %s: %w", req.Method, dst, ctx.Err())
	}
}

// ackNon2xx makes the hop-by-hop ACK (RFC 3261 section 17.1.1.3).
func ackNon2xx(invite *sip.Request, res *sip.Response) *sip.Request {
	ack := sameHop(sip.ACK, invite)
	ack.RemoveHeader("To")
	ack.AppendHeader(sip.HeaderClone(res.To()))
	ack.SetBody(nil)
	return ack
}

// cancelOf makes the CANCEL of invite (RFC 3261 section 9.1).
func cancelOf(invite *sip.Request) *sip.Request {
	req := sameHop(sip.CANCEL, invite)
	req.SetBody(nil)
	return req
}

func sameHop(method sip.RequestMethod, invite *sip.Request) *sip.Request {
	req := sip.NewRequest(method, *invite.Recipient.Clone())
	req.AppendHeader(sip.HeaderClone(invite.Via()))
	for _, h := range invite.GetHeaders("Route") {
		req.AppendHeader(sip.HeaderClone(h))
	}
	mf := sip.MaxForwardsHeader(70)
	req.AppendHeader(&mf)
	req.AppendHeader(sip.HeaderClone(invite.From()))
	req.AppendHeader(sip.HeaderClone(invite.To()))
	req.AppendHeader(sip.HeaderClone(invite.CallID()))
	req.AppendHeader(&sip.CSeqHeader{SeqNo: invite.CSeq().SeqNo, MethodName: method})
	return req
}
