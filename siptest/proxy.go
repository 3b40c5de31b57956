package siptest

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
)

// trustedPrefix, in lower case, is the header prefix by which an SBC tells the
// nodes what it knows. Nothing that is proxied keeps such a header of its
// sender's.
const trustedPrefix = "x-bulkhead-"

// ProxyConfig is the configuration of a Proxy.
type ProxyConfig struct {
	// Listen is one numeric ip:port; Via, Record-Route and all sending use it.
	Listen string
	// Name is the SBC's id in events.
	Name string
	// Router decides; required.
	Router Router
	// OnEvent gets every refusal of a call and every failover. It is called
	// inline and must not block. Nil drops them.
	OnEvent func(Event)
	// T1 as in StackConfig.
	T1 time.Duration
	// Failover is how long a node may stay silent before the next one is tried;
	// a phone gets four times as long. 0: 2 s.
	Failover time.Duration
	// Ring is how long a call may ring (timer C, RFC 3261 section 16.6). 0: 3 min.
	Ring time.Duration
	// NonceLife is how long a digest nonce is taken. 0: 5 min.
	NonceLife time.Duration
	// MaxExpires bounds registrations. 0: 1 hour.
	MaxExpires time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

// Proxy is a registrar and stateful, record-routing proxy: the SBC in pure Go.
type Proxy struct {
	cfg       ProxyConfig
	e         *endpoint
	nonces    *nonces
	locations *locations
}

// NewProxy binds the socket; Run serves.
func NewProxy(cfg ProxyConfig) (*Proxy, error) {
	if cfg.Router == nil {
		return nil, fmt.Errorf("proxy %s: no router: %w", cfg.Name, bulkhead.Invalid)
	}
	defaults := []struct {
		d *time.Duration
		v time.Duration
	}{{&cfg.Failover, 2 * time.Second}, {&cfg.Ring, 3 * time.Minute}, {&cfg.NonceLife, 5 * time.Minute}, {&cfg.MaxExpires, time.Hour}}
	for _, f := range defaults {
		if *f.d <= 0 {
			*f.d = f.v
		}
	}
	if cfg.OnEvent == nil {
		cfg.OnEvent = func(Event) {}
	}
	n, err := newNonces(cfg.NonceLife)
	if err != nil {
		return nil, err
	}
	e, err := listen(cfg.Listen, cfg.T1, cfg.Logger)
	if err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, e: e, nonces: n, locations: newLocations(cfg.MaxExpires)}
	e.onRequest, e.onAck = p.request, p.ack
	return p, nil
}

// Addr is the address that the proxy listens on and sends from.
func (p *Proxy) Addr() netip.AddrPort { return p.e.addr }

// Registrations returns the number of Contacts that are bound now.
func (p *Proxy) Registrations() int { return p.locations.size(time.Now()) }

// Run serves until ctx ends, and then closes the socket and joins everything
// within 5 s. It returns nil after a clean end.
func (p *Proxy) Run(ctx context.Context) error {
	swept := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	closed := make(chan error, 1)
	go func() { // ends with Run, through cancel
		defer close(swept)
		p.locations.sweep(ctx)
		closed <- p.e.close()
	}()
	err := p.e.serve()
	cancel()
	<-swept
	if err == nil {
		err = <-closed
	}
	return err
}

// Close frees the socket of a proxy that was never run; a Run ends.
func (p *Proxy) Close() error { return p.e.close() }

// request gets everything but ACK and CANCEL.
func (p *Proxy) request(tx *serverTx) {
	req := tx.req
	if mf := req.MaxForwards(); mf != nil && mf.Val() == 0 {
		tx.reply(483, "Too Many Hops")
		return
	}
	switch {
	case tagOf(req.To().Params) != "":
		p.inDialog(tx)
	case req.Method == sip.INVITE:
		p.invite(tx)
	case req.Method == sip.REGISTER:
		p.register(tx)
	case req.Method == sip.OPTIONS:
		tx.reply(sip.StatusOK, "OK", sip.NewHeader("Allow", allow))
	default:
		tx.reply(sip.StatusMethodNotAllowed, "Method Not Allowed", sip.NewHeader("Allow", allow+", REGISTER"))
	}
}

// question is what the router is asked about a request of an INVITE.
func (p *Proxy) question(tx *serverTx) Request {
	from := tx.req.From()
	q := Request{
		Method: tx.req.Method, Source: tx.src, Domain: domainOf(tx.req.Recipient), User: tx.req.Recipient.User,
		FromDomain: domainOf(from.Address), FromUser: from.Address.User,
	}
	q.Node, _ = p.cfg.Router.Peer(tx.src)
	return q
}

func domainOf(u sip.Uri) string { return strings.ToLower(strings.Trim(u.Host, "[]")) }

// invite handles an INVITE outside a dialog.
func (p *Proxy) invite(tx *serverTx) {
	q := p.question(tx)
	v := p.cfg.Router.Route(q)
	if v.Refuse == nil && v.Challenge != nil {
		if !p.authenticate(tx, &v) {
			return
		}
		q.AuthUser = v.Challenge.User
		if v = p.cfg.Router.Route(q); v.Refuse == nil && v.Challenge != nil {
			v.Refuse = &Refusal{sip.StatusForbidden, "Forbidden"} // the tables changed under way
		}
	}
	if v.Refuse != nil {
		p.refuse(tx, v, v.Refuse.Code, v.Refuse.Reason)
		return
	}
	f := &forward{p: p, tx: tx, verdict: v, failover: p.cfg.Failover}
	base, err := p.outgoing(tx.req)
	if err != nil {
		p.refuse(tx, v, sip.StatusBadRequest, "Bad Request")
		return
	}
	removeHeaders(base, named("route"))
	removeHeaders(base, named("proxy-authorization"))
	base.PrependHeader(&sip.RecordRouteHeader{Address: p.self()})
	if v.AOR != "" {
		f.failover *= 4 // a phone may be far away, and mostly there is no other
		for _, b := range p.locations.lookup(v.AOR, time.Now()) {
			f.hops = append(f.hops, hop{uri: b.contact.Address, addr: b.addr})
		}
		if len(f.hops) == 0 {
			p.refuse(tx, v, sip.StatusTemporarilyUnavailable, "not registered")
			return
		}
	} else {
		f.toNodes = true
		for _, t := range v.Targets {
			f.hops = append(f.hops, hop{uri: tx.req.Recipient, addr: t.Addr})
		}
		for _, h := range v.Headers {
			base.AppendHeader(sip.NewHeader(h.Name, h.Value))
		}
		if len(f.hops) == 0 {
			p.refuse(tx, v, sip.StatusServiceUnavailable, "no node")
			return
		}
	}
	f.base = base
	f.run()
}

// self is the URI of Record-Route.
func (p *Proxy) self() sip.Uri {
	u := addrURI("", p.e.addr)
	u.UriParams = sip.HeaderParams{{K: "lr"}}
	return u
}

// isSelf reports whether a Route names this proxy.
func (p *Proxy) isSelf(u sip.Uri) bool {
	ap, err := URIAddr(u)
	return err == nil && ap == p.e.addr
}

// outgoing copies a request for the next hop: without the headers that only an
// SBC may set and with one hop less to go. The Via is missing.
func (p *Proxy) outgoing(req *sip.Request) (*sip.Request, error) {
	out := req.Clone()
	removeHeaders(out, func(lower string) bool { return strings.HasPrefix(lower, trustedPrefix) })
	mf := sip.MaxForwardsHeader(70)
	if old := req.MaxForwards(); old != nil {
		if old.Val() == 0 {
			return nil, fmt.Errorf("forward %s: too many hops: %w", req.Method, bulkhead.Invalid)
		}
		mf = sip.MaxForwardsHeader(min(old.Val(), 256) - 1)
		out.ReplaceHeader(&mf)
	} else {
		out.AppendHeader(&mf)
	}
	return out, nil
}

// loose prepares a request within a dialog (RFC 3261 section 16.4 and 16.6)
// and says where it goes. false: it has no business here. From outside it may
// go only to a node: whoever writes a To tag and a Route must not make the SBC
// his relay.
func (p *Proxy) loose(req *sip.Request, src netip.AddrPort) (*sip.Request, netip.AddrPort, bool) {
	r := req.Route()
	if r == nil || !p.isSelf(r.Address) {
		return nil, netip.AddrPort{}, false
	}
	out, err := p.outgoing(req)
	if err != nil {
		return nil, netip.AddrPort{}, false
	}
	for r := out.Route(); r != nil && p.isSelf(r.Address); r = out.Route() {
		out.RemoveHeader(r.Name())
	}
	dst, err := nextHop(out)
	if err != nil || dst == p.e.addr {
		return nil, netip.AddrPort{}, false
	}
	if _, inside := p.cfg.Router.Peer(src); !inside {
		if _, toNode := p.cfg.Router.Peer(dst); !toNode {
			return nil, netip.AddrPort{}, false
		}
	}
	return out, dst, true
}

// inDialog relays a request within a dialog.
func (p *Proxy) inDialog(tx *serverTx) {
	out, dst, ok := p.loose(tx.req, tx.src)
	if !ok {
		tx.reply(sip.StatusCallTransactionDoesNotExists, "Call/Transaction Does Not Exist")
		return
	}
	f := &forward{p: p, tx: tx, base: out, hops: []hop{{uri: out.Recipient, addr: dst}}, failover: p.e.timers.transactionTimeout()}
	f.run()
}

// ack relays the ACK of a 2xx, which is no transaction.
func (p *Proxy) ack(req *sip.Request, src netip.AddrPort) {
	out, dst, ok := p.loose(req, src)
	if !ok {
		return
	}
	out.PrependHeader(newVia(p.e.addr))
	if err := p.e.write([]byte(out.String()), dst); err != nil {
		p.e.log.Debug("relay ACK", "err", err)
	}
}
