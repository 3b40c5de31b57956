package siptest

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
)

// Incoming is an INVITE that waits for its answer.
type Incoming struct {
	s    *Stack
	tx   *serverTx
	user string // of the Contact, if not the Request-URI's
}

// Request returns the INVITE; read only.
func (i *Incoming) Request() *sip.Request { return i.tx.req }

// Source is the address that the INVITE really came from.
func (i *Incoming) Source() netip.AddrPort { return i.tx.src }

// Canceled is closed when the caller has given up. The INVITE is answered with
// 487 by then.
func (i *Incoming) Canceled() <-chan struct{} { return i.tx.canceled }

// OnCancel runs f, which must not block, when the caller gives up before the
// final response, also if that has happened already. There is one f.
func (i *Incoming) OnCancel(f func()) {
	if !i.tx.onCancel(func() { terminated(i.tx); f() }) {
		f()
	}
}

func terminated(tx *serverTx) { tx.reply(sip.StatusRequestTerminated, "Request Terminated") }

// Progress sends a provisional response, 180 or 183 for instance. body is a
// session description or nil.
func (i *Incoming) Progress(code int, reason string, body []byte, headers ...sip.Header) error {
	return i.tx.respond(i.response(code, reason, body, headers))
}

// Reject refuses the call with a status from 300 to 699. After a CANCEL it is
// an error of kind bulkhead.Conflict.
func (i *Incoming) Reject(code int, reason string, headers ...sip.Header) error {
	if code < 300 || code > 699 {
		return fmt.Errorf("reject a call with status %d: want 300 to 699: %w", code, bulkhead.Invalid)
	}
	return i.tx.respond(i.tx.response(code, reason, nil, headers...))
}

// Answer answers with 200 and the session description. It does not wait for
// the ACK: the 200 is repeated until it comes, and a call without one is ended
// after 64*T1. After a CANCEL it is an error of kind bulkhead.Conflict.
func (i *Incoming) Answer(body []byte, headers ...sip.Header) (*Dialog, error) {
	res := i.response(sip.StatusOK, "OK", body, headers)
	d, err := newDialog(i.s, i.tx.req, res, false)
	if err != nil {
		i.tx.reply(sip.StatusBadRequest, "Missing Contact")
		return nil, err
	}
	i.s.addDialog(d)
	if err := i.tx.respond(res); err != nil {
		d.end(nil)
		return nil, fmt.Errorf("answer call %s: %w", d.CallID(), err)
	}
	t := i.s.e.timers
	d.repeat2xx(i.tx, t.t1, time.Now().Add(t.transactionTimeout()))
	return d, nil
}

func (i *Incoming) response(code int, reason string, body []byte, headers []sip.Header) *sip.Response {
	user := i.user
	if user == "" {
		user = i.tx.req.Recipient.User
	}
	res := i.tx.response(code, reason, body, headers...)
	res.AppendHeader(i.s.contact(user))
	res.AppendHeader(sip.NewHeader("Allow", allow))
	res.AppendHeader(sip.NewHeader("Server", i.s.cfg.UserAgent))
	if body != nil {
		res.AppendHeader(sip.NewHeader("Content-Type", "application/sdp"))
	}
	return res
}
