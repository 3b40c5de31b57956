package siptest

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/emiago/sipgo/sip"
)

// Register binds the phone's Contact to its address of record and keeps it
// bound until Close or Unregister. A refusal is a *StatusError.
func (p *Phone) Register(ctx context.Context) error {
	granted, err := p.register(ctx, p.cfg.Expires)
	if err != nil {
		return err
	}
	p.schedule(granted)
	return nil
}

// Unregister removes the binding.
func (p *Phone) Unregister(ctx context.Context) error {
	p.schedule(0)
	_, err := p.register(ctx, 0)
	return err
}

// schedule refreshes the registration at half its life; 0 stops that.
func (p *Phone) schedule(granted time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	g := p.group
	if granted <= 0 {
		return
	}
	p.timer = time.AfterFunc(granted/2, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.closed {
			return
		}
		g.wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), granted/2)
			defer cancel()
			if err := p.Register(ctx); err != nil {
				g.stack.e.log.Warn("register again", "phone", p.aor.String(), "err", err)
			}
		})
	})
}

func (p *Phone) register(ctx context.Context, expires time.Duration) (granted time.Duration, err error) {
	p.regMu.Lock()
	defer p.regMu.Unlock()
	registrar := sip.Uri{Scheme: "sip", Host: p.aor.Host, Port: p.aor.Port}
	dst := p.group.proxy
	if !dst.IsValid() {
		if dst, err = URIAddr(registrar); err != nil {
			return 0, err
		}
	}
	req := p.newRegister(registrar, expires)
	for tries := 0; ; tries++ {
		p.seq++
		req.RemoveHeader("Via")
		req.CSeq().SeqNo = p.seq
		p.group.stack.complete(req)
		res, err := p.group.stack.e.do(ctx, req, dst)
		if err != nil {
			return 0, fmt.Errorf("register %s: %w", p.aor.String(), err)
		}
		if res.IsSuccess() {
			return p.granted(res, expires), nil
		}
		auth := p.credentials()
		if auth == nil || tries == 2 || (res.StatusCode != 401 && res.StatusCode != 407) {
			return 0, fmt.Errorf("register %s: %w", p.aor.String(), statusError(res))
		}
		next := req.Clone()
		stale, err := auth.authorize(next, res)
		if err != nil {
			return 0, fmt.Errorf("register %s: %w", p.aor.String(), err)
		}
		if tries > 0 && !stale {
			return 0, fmt.Errorf("register %s: %w", p.aor.String(), statusError(res))
		}
		req = next
	}
}

func (p *Phone) newRegister(registrar sip.Uri, expires time.Duration) *sip.Request {
	req := sip.NewRequest(sip.REGISTER, registrar)
	from := &sip.FromHeader{Address: *p.aor.Clone()}
	from.Params.Add("tag", newTag())
	req.AppendHeader(from)
	req.AppendHeader(&sip.ToHeader{Address: *p.aor.Clone()})
	id := sip.CallIDHeader(p.callID) // the same for all (RFC 3261 section 10.2)
	req.AppendHeader(&id)
	req.AppendHeader(&sip.CSeqHeader{SeqNo: p.seq, MethodName: sip.REGISTER})
	req.AppendHeader(p.group.stack.contact(p.contact))
	req.AppendHeader(sip.NewHeader("Expires", strconv.Itoa(int(expires/time.Second))))
	return req
}

// granted reads how long the registrar keeps the binding.
func (p *Phone) granted(res *sip.Response, asked time.Duration) time.Duration {
	for _, h := range res.GetHeaders("Contact") {
		c, ok := h.(*sip.ContactHeader)
		if !ok || c.Address.User != p.contact {
			continue
		}
		if v, ok := c.Params.Get("expires"); ok {
			if n, err := strconv.ParseUint(v, 10, 31); err == nil {
				return time.Duration(n) * time.Second
			}
		}
	}
	if n, err := strconv.ParseUint(header(res, "Expires"), 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	return asked
}
