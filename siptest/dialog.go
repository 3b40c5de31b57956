package siptest

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
)

// Dialog is an established call in either role (RFC 3261 section 12). It is
// safe for concurrent use.
type Dialog struct {
	s        *Stack
	key      string
	invite   *sip.Request  // that began it
	response *sip.Response // 2xx that established it
	local    *sip.FromHeader
	remote   *sip.ToHeader
	routes   []sip.Uri
	localSDP []byte
	caller   bool

	acked chan struct{} // closed when the ACK of the 2xx was sent or came
	done  chan struct{}

	mu     sync.Mutex
	target sip.Uri // remote target
	cseq   uint32  // of this side's last request
	rseq   uint32  // of the other side's last request
	ended  bool
	isAck  bool
	bye    *sip.Request
	ack    *sip.Request
}

// newDialog makes the dialog of an INVITE and its 2xx.
func newDialog(s *Stack, invite *sip.Request, res *sip.Response, caller bool) (*Dialog, error) {
	d := &Dialog{s: s, invite: invite, response: res, caller: caller, acked: make(chan struct{}), done: make(chan struct{})}
	var peer *sip.ContactHeader
	var record []sip.Header
	if caller {
		d.local = sip.HeaderClone(invite.From()).(*sip.FromHeader)
		d.remote = sip.HeaderClone(res.To()).(*sip.ToHeader)
		d.cseq, d.localSDP = invite.CSeq().SeqNo, invite.Body()
		peer, record = res.Contact(), res.GetHeaders("Record-Route")
	} else {
		local, remote := res.To().AsFrom(), invite.From().AsTo()
		d.local, d.remote = &local, &remote
		d.rseq, d.localSDP = invite.CSeq().SeqNo, res.Body()
		peer, record = invite.Contact(), invite.GetHeaders("Record-Route")
	}
	if peer == nil || peer.Address.Host == "" {
		return nil, fmt.Errorf("the other side's message has no Contact, so that the call cannot be continued: %w", bulkhead.Invalid)
	}
	d.target = *peer.Address.Clone()
	for i := range record {
		j := i
		if caller { // RFC 3261 section 12.1.2: in reverse
			j = len(record) - 1 - i
		}
		if rr, ok := record[j].(*sip.RecordRouteHeader); ok {
			d.routes = append(d.routes, *rr.Address.Clone())
		}
	}
	d.key = dialogKey(invite.CallID().Value(), tagOf(d.local.Params), tagOf(d.remote.Params))
	return d, nil
}

// CallID returns the Call-ID.
func (d *Dialog) CallID() string { return d.invite.CallID().Value() }

// Invite returns the request that began the dialog; read only.
func (d *Dialog) Invite() *sip.Request { return d.invite }

// Response returns the 2xx that established the dialog; read only.
func (d *Dialog) Response() *sip.Response { return d.response }

// RemoteSDP returns the other side's session description of the INVITE
// exchange.
func (d *Dialog) RemoteSDP() []byte {
	if d.caller {
		return d.response.Body()
	}
	return d.invite.Body()
}

// Done is closed when the dialog has ended, by whichever side.
func (d *Dialog) Done() <-chan struct{} { return d.done }

// Acked is closed when the 2xx was acknowledged.
func (d *Dialog) Acked() <-chan struct{} { return d.acked }

// RemoteBye returns the other side's BYE, or nil while there was none.
func (d *Dialog) RemoteBye() *sip.Request {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bye
}

// Bye ends the call: it sends a BYE with the given headers and waits for the
// answer. The dialog is over in any case when it returns. A dialog that has
// ended already is no error. The called side waits for the ACK first, at most
// 64*T1 (RFC 3261 section 15).
func (d *Dialog) Bye(ctx context.Context, headers ...sip.Header) error {
	if !d.caller {
		select {
		case <-d.acked:
		case <-d.done:
			return nil
		case <-ctx.Done():
			// Better an early BYE than a call that nobody ends.
		}
	}
	d.mu.Lock()
	if d.ended {
		d.mu.Unlock()
		return nil
	}
	d.ended = true
	d.mu.Unlock()
	defer d.finish()
	req := d.newRequest(sip.BYE)
	for _, h := range headers {
		req.AppendHeader(h)
	}
	dst, err := nextHop(req)
	if err != nil {
		return fmt.Errorf("hang up call %s: %w", d.CallID(), err)
	}
	if ctx.Err() != nil { // still say goodbye, and do not wait
		_, err := d.s.e.start(req, dst, func(*sip.Response, error) {})
		return err
	}
	res, err := d.s.e.do(ctx, req, dst)
	if err != nil {
		return fmt.Errorf("hang up call %s: %w", d.CallID(), err)
	}
	if !res.IsSuccess() && res.StatusCode != sip.StatusCallTransactionDoesNotExists {
		return fmt.Errorf("hang up call %s: %w", d.CallID(), statusError(res))
	}
	return nil
}

// Do sends another request within the dialog, such as an INFO, and returns its
// final response. It adds Via, Route, From, To, Call-ID, CSeq and Contact.
func (d *Dialog) Do(ctx context.Context, method sip.RequestMethod, body []byte, headers ...sip.Header) (*sip.Response, error) {
	if method == sip.INVITE || method == sip.ACK || method == sip.BYE {
		return nil, fmt.Errorf("send %s within call %s: not by this method: %w", method, d.CallID(), bulkhead.Invalid)
	}
	req := d.newRequest(method)
	for _, h := range headers {
		req.AppendHeader(h)
	}
	req.SetBody(body)
	dst, err := nextHop(req)
	if err != nil {
		return nil, err
	}
	return d.s.e.do(ctx, req, dst)
}

// newRequest makes a request within the dialog (RFC 3261 section 12.2.1.1).
func (d *Dialog) newRequest(method sip.RequestMethod) *sip.Request {
	d.mu.Lock()
	if method != sip.ACK {
		d.cseq++
	}
	seq, target := d.cseq, *d.target.Clone()
	d.mu.Unlock()
	req := sip.NewRequest(method, target)
	req.AppendHeader(newVia(d.s.e.addr))
	for _, r := range d.routes {
		req.AppendHeader(&sip.RouteHeader{Address: *r.Clone()})
	}
	mf := sip.MaxForwardsHeader(70)
	req.AppendHeader(&mf)
	req.AppendHeader(sip.HeaderClone(d.local))
	req.AppendHeader(sip.HeaderClone(d.remote))
	req.AppendHeader(sip.HeaderClone(d.invite.CallID()))
	req.AppendHeader(&sip.CSeqHeader{SeqNo: seq, MethodName: method})
	req.AppendHeader(d.s.contact(d.contactUser()))
	req.SetBody(nil)
	return req
}

func (d *Dialog) contactUser() string {
	var c *sip.ContactHeader
	if d.caller {
		c = d.invite.Contact()
	} else {
		c = d.response.Contact()
	}
	if c == nil {
		return ""
	}
	return c.Address.User
}

// sendAck acknowledges the 2xx, again for each time that it is repeated. Every
// ACK is sent with the same CSeq as the INVITE (RFC 3261 section 13.2.2.4).
func (d *Dialog) sendAck() error {
	d.mu.Lock()
	ack := d.ack
	d.mu.Unlock()
	if ack == nil {
		ack = d.newRequest(sip.ACK)
		ack.CSeq().SeqNo = d.invite.CSeq().SeqNo
		d.mu.Lock()
		d.ack = ack
		d.mu.Unlock()
	}
	dst, err := nextHop(ack)
	if err != nil {
		return fmt.Errorf("acknowledge call %s: %w", d.CallID(), err)
	}
	if err := d.s.e.write([]byte(ack.String()), dst); err != nil {
		return err
	}
	d.confirm()
	return nil
}

func (d *Dialog) confirm() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.isAck {
		d.isAck = true
		close(d.acked)
	}
}

// request answers a request within the dialog.
func (d *Dialog) request(tx *serverTx) {
	req := tx.req
	d.mu.Lock()
	if req.CSeq().SeqNo < d.rseq {
		d.mu.Unlock()
		tx.reply(sip.StatusInternalServerError, "CSeq Too Low")
		return
	}
	d.rseq = req.CSeq().SeqNo
	if c := req.Contact(); c != nil && (req.Method == sip.INVITE || req.Method == sip.UPDATE) {
		d.target = *c.Address.Clone()
	}
	d.mu.Unlock()
	switch req.Method {
	case sip.BYE:
		d.end(req)
		tx.reply(sip.StatusOK, "OK")
	case sip.INVITE, sip.UPDATE:
		d.reoffer(tx)
	case sip.INFO, sip.OPTIONS, sip.NOTIFY:
		tx.reply(sip.StatusOK, "OK")
	default:
		tx.reply(sip.StatusMethodNotAllowed, "Method Not Allowed", sip.NewHeader("Allow", allow))
	}
}

// reoffer answers a re-INVITE or UPDATE with the session description that is
// in use; the media of this package follows the packets, not the description.
func (d *Dialog) reoffer(tx *serverTx) {
	var body []byte
	headers := []sip.Header{d.s.contact(d.contactUser()), sip.NewHeader("Allow", allow)}
	if tx.req.Method == sip.INVITE || len(tx.req.Body()) > 0 {
		body = d.localSDP
		headers = append(headers, sip.NewHeader("Content-Type", "application/sdp"))
	}
	if err := tx.respond(tx.response(sip.StatusOK, "OK", body, headers...)); err != nil {
		d.s.e.log.Debug("answer", "method", tx.req.Method, "err", err)
	}
}

// end marks the dialog as ended by the other side, or by Close if bye is nil.
func (d *Dialog) end(bye *sip.Request) {
	d.mu.Lock()
	if d.bye == nil {
		d.bye = bye
	}
	if d.ended {
		d.mu.Unlock()
		return
	}
	d.ended = true
	d.mu.Unlock()
	d.finish()
}

func (d *Dialog) finish() {
	close(d.done)
	d.s.dropDialog(d)
}

// repeat2xx sends the 2xx until its ACK comes (RFC 3261 section 13.3.1.4), and
// gives the call up after 64*T1.
func (d *Dialog) repeat2xx(tx *serverTx, interval time.Duration, until time.Time) {
	time.AfterFunc(interval, func() {
		select {
		case <-d.acked:
			return
		case <-d.done:
			return
		case <-d.s.e.done:
			return
		default:
		}
		if time.Now().After(until) {
			d.confirm()
			ctx, cancel := context.WithCancel(context.Background())
			cancel() // send it and do not wait
			if err := d.Bye(ctx); err != nil {
				d.s.e.log.Debug("no ACK came", "call", d.CallID(), "err", err)
			}
			return
		}
		if err := tx.respond(d.response); err != nil {
			return
		}
		d.repeat2xx(tx, min(2*interval, d.s.e.timers.t2), until)
	})
}

// LocalAddr is the address of the dialog's stack.
func (d *Dialog) LocalAddr() netip.AddrPort { return d.s.e.addr }
