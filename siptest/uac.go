package siptest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
)

// Invitation is a call to make.
type Invitation struct {
	URI      sip.Uri        // Request-URI
	To       sip.Uri        // zero: URI
	From     sip.Uri        // caller
	FromName string         // display name, or empty
	Contact  string         // user part of the Contact; empty: From's
	CallID   string         // empty: a random one
	Dest     netip.AddrPort // next hop; zero: topmost Route, else URI
	Route    []sip.Uri      // preloaded route
	Body     []byte         // session description
	Headers  []sip.Header   // further headers
	Auth     *Credentials   // answer to 401 and 407; nil: they are final
	// OnProvisional gets the provisional responses but 100. It must not block.
	OnProvisional func(*sip.Response)
}

// inviteResult is a final outcome of one INVITE transaction.
type inviteResult struct {
	d   *Dialog
	res *sip.Response
	err error
}

// Invite makes a call and waits for its final response. A refusal is a
// *StatusError. If ctx ends first the call is cancelled and ctx's error
// returned at once; should the answer cross the CANCEL, the call is ended with
// a BYE.
func (s *Stack) Invite(ctx context.Context, inv Invitation) (*Dialog, error) {
	req := s.newInvite(inv)
	dst := inv.Dest
	if !dst.IsValid() {
		var err error
		if dst, err = nextHop(req); err != nil {
			return nil, err
		}
	}
	for tries := 0; ; tries++ {
		d, res, err := s.inviteOnce(ctx, req, dst, inv.OnProvisional)
		if err != nil || d != nil {
			return d, err
		}
		if inv.Auth == nil || tries == 2 || (res.StatusCode != 401 && res.StatusCode != 407) {
			return nil, statusError(res)
		}
		// A second challenge counts only if it says that the nonce was stale.
		next := req.Clone()
		stale, err := inv.Auth.authorize(next, res)
		if err != nil {
			return nil, errors.Join(statusError(res), err)
		}
		if tries > 0 && !stale {
			return nil, statusError(res)
		}
		s.renew(next)
		req = next
	}
}

// renew makes a clone a new transaction of the same call.
func (s *Stack) renew(req *sip.Request) {
	req.CSeq().SeqNo++
	req.RemoveHeader("Via")
	req.PrependHeader(newVia(s.e.addr))
}

func (s *Stack) newInvite(inv Invitation) *sip.Request {
	req := sip.NewRequest(sip.INVITE, *inv.URI.Clone())
	for _, r := range inv.Route {
		req.AppendHeader(&sip.RouteHeader{Address: *r.Clone()})
	}
	from := &sip.FromHeader{DisplayName: inv.FromName, Address: *inv.From.Clone()}
	if from.Address.Host == "" {
		from.Address = addrURI(inv.From.User, s.e.addr)
	}
	from.Params.Add("tag", newTag())
	req.AppendHeader(from)
	to := inv.To
	if to.Host == "" {
		to = inv.URI
	}
	to = *to.Clone()
	to.UriParams = nil
	req.AppendHeader(&sip.ToHeader{Address: to})
	if inv.CallID != "" {
		id := sip.CallIDHeader(inv.CallID)
		req.AppendHeader(&id)
	}
	contact := inv.Contact
	if contact == "" {
		contact = inv.From.User
	}
	req.AppendHeader(s.contact(contact))
	req.AppendHeader(sip.NewHeader("Allow", allow))
	req.AppendHeader(sip.NewHeader("User-Agent", s.cfg.UserAgent))
	for _, h := range inv.Headers {
		req.AppendHeader(sip.HeaderClone(h))
	}
	if inv.Body != nil {
		req.AppendHeader(sip.NewHeader("Content-Type", "application/sdp"))
		req.SetBody(inv.Body)
	}
	s.complete(req)
	return req
}

// attempt is the user's side of one INVITE transaction.
type attempt struct {
	s     *Stack
	req   *sip.Request
	final chan inviteResult // one final outcome
	prov  func(*sip.Response)

	mu        sync.Mutex
	abandoned bool
	dialogs   map[string]*Dialog // by To tag: a proxy may deliver several 2xx
}

func (s *Stack) inviteOnce(ctx context.Context, req *sip.Request, dst netip.AddrPort, prov func(*sip.Response)) (*Dialog, *sip.Response, error) {
	a := &attempt{s: s, req: req, final: make(chan inviteResult, 1), prov: prov, dialogs: map[string]*Dialog{}}
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("call %s: %w", req.Recipient.String(), err)
	}
	tx, err := s.e.start(req, dst, a.on)
	if err != nil {
		return nil, nil, err
	}
	select {
	case r := <-a.final:
		if r.err != nil {
			return nil, nil, fmt.Errorf("call %s through %s: %w", req.Recipient.String(), dst, r.err)
		}
		return r.d, r.res, nil
	case <-ctx.Done():
	}
	tx.cancel()
	a.mu.Lock()
	a.abandoned = true
	a.mu.Unlock()
	select {
	case r := <-a.final: // the answer was there before a.abandoned was
		if r.d != nil {
			a.hangUp(r.d)
		}
	default:
	}
	return nil, nil, fmt.Errorf("call %s through %s: %w", req.Recipient.String(), dst, ctx.Err())
}

// on runs in the reader's goroutine, so that the dialog is known before the
// next message, which may be its BYE.
func (a *attempt) on(res *sip.Response, err error) {
	switch {
	case err != nil:
		a.deliver(inviteResult{err: err})
	case res.IsSuccess():
		a.success(res)
	case !res.IsProvisional():
		a.deliver(inviteResult{res: res})
	case a.prov != nil && res.StatusCode != sip.StatusTrying:
		a.prov(res)
	}
}

func (a *attempt) success(res *sip.Response) {
	tag := tagOf(res.To().Params)
	a.mu.Lock()
	d, seen := a.dialogs[tag]
	first := len(a.dialogs) == 0
	abandoned := a.abandoned
	a.mu.Unlock()
	if !seen {
		var err error
		if d, err = newDialog(a.s, a.req, res, true); err != nil {
			a.deliver(inviteResult{err: err})
			return
		}
		a.mu.Lock()
		a.dialogs[tag] = d
		a.mu.Unlock()
		a.s.addDialog(d)
	}
	if err := d.sendAck(); err != nil {
		a.s.e.log.Debug("send ACK", "err", err)
	}
	switch {
	case seen:
	case !first || abandoned:
		a.hangUp(d)
	default:
		a.deliver(inviteResult{d: d})
	}
}

// deliver hands the first outcome to the waiting caller.
func (a *attempt) deliver(r inviteResult) {
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case a.final <- r:
	default:
	}
	if a.abandoned && r.d != nil {
		a.hangUp(r.d)
	}
}

// hangUp ends a call that nobody wants any more, without waiting.
func (a *attempt) hangUp(d *Dialog) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Bye(ctx); err != nil && !errors.Is(err, bulkhead.Unavailable) {
		a.s.e.log.Debug("end an unwanted call", "call", d.CallID(), "err", err)
	}
}
