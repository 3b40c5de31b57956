package siptest

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"
)

// silentNode is the reason of a failover from a node that says nothing.
const silentNode = "no answer from the node"

// decidedHeader is in a final response of a node that took the call: a 5xx with
// it is the far end's, not the node's own.
const decidedHeader = "X-Bulkhead-Decided"

// hop is one place that a request may go to.
type hop struct {
	uri  sip.Uri
	addr netip.AddrPort
}

// branch is one attempt at a hop.
type branch struct {
	f     *forward
	hop   hop
	id    string // of the Via
	req   *sip.Request
	tx    *clientTx
	heard bool        // any response came
	rang  bool        // one of them was a 18x or 19x
	over  bool        // has a final outcome, or was given up
	timer *time.Timer // failover, then ring
}

// forward is the response context of RFC 3261 section 16.7 for a request that
// goes to one hop at a time. Every 2xx goes back at once; of the other final
// responses, only the last hop's.
type forward struct {
	p        *Proxy
	tx       *serverTx
	base     *sip.Request
	hops     []hop
	verdict  Verdict
	toNodes  bool // the hops are media nodes: failover and its events
	failover time.Duration

	mu       sync.Mutex
	branches []*branch
	canceled bool
	answered bool // a final response went back
	accepted bool // it was a 2xx
}

func (f *forward) run() {
	if f.tx.invite && !f.tx.onCancel(f.cancel) {
		f.answer(f.tx.response(sip.StatusRequestTerminated, "Request Terminated", nil))
		return
	}
	f.next()
}

// next tries the next hop. The lock is not held.
func (f *forward) next() {
	f.mu.Lock()
	if f.answered || f.canceled {
		f.mu.Unlock()
		return
	}
	b := &branch{f: f, hop: f.hops[len(f.branches)]}
	f.branches = append(f.branches, b)
	req := f.base.Clone()
	req.Recipient = *b.hop.uri.Clone()
	via := newVia(f.p.e.addr)
	b.id, _ = via.Params.Get("branch")
	req.PrependHeader(via)
	b.req = req
	if f.tx.invite || f.toNodes {
		b.timer = time.AfterFunc(f.failover, func() { f.silent(b) })
	}
	f.mu.Unlock()

	tx, err := f.p.e.start(req, b.hop.addr, b.on)
	if err != nil {
		f.p.e.log.Debug("forward", "method", req.Method, "to", b.hop.addr, "err", err)
		f.failed(b, sip.StatusRequestTimeout, silentNode, nil)
		return
	}
	f.mu.Lock()
	b.tx = tx
	canceled := f.canceled
	f.mu.Unlock()
	if canceled {
		f.giveUp(b)
	}
}

// stop stops the branch's timer. The lock is held.
func (b *branch) stop() {
	if b.timer != nil {
		b.timer.Stop()
	}
}

// on gets the branch's responses, in the reader's or a timer's goroutine.
func (b *branch) on(res *sip.Response, err error) {
	f := b.f
	if err != nil {
		f.failed(b, sip.StatusRequestTimeout, silentNode, nil)
		return
	}
	f.mu.Lock()
	if !b.heard {
		b.heard = true
		b.stop()
	}
	if res.IsProvisional() {
		defer f.mu.Unlock()
		if b.over || f.answered || f.canceled {
			return
		}
		b.rang = b.rang || res.StatusCode >= sip.StatusRinging
		if f.tx.invite { // timer C starts anew
			b.stop()
			b.timer = time.AfterFunc(f.p.cfg.Ring, func() { f.rangOut(b) })
		}
		if res.StatusCode != sip.StatusTrying {
			f.relay(res)
		}
		return
	}
	rang := b.rang
	f.mu.Unlock()
	switch {
	case res.IsSuccess():
		f.success(b, res)
	case res.StatusCode/100 == 5 && f.toNodes && !rang && res.GetHeader(decidedHeader) == nil: // what rang or was decided is not placed a second time
		f.failed(b, res.StatusCode, "refused by the node", res)
	default:
		f.final(b, res)
	}
}

// success relays a 2xx; repeated ones too, until the ACK stops them.
func (f *forward) success(b *branch, res *sip.Response) {
	f.mu.Lock()
	if f.answered && !f.accepted {
		f.mu.Unlock()
		f.p.endOrphan(b.req, res)
		return
	}
	b.over, f.answered, f.accepted = true, true, true
	b.stop()
	var others []*branch
	for _, o := range f.branches {
		if !o.over {
			others = append(others, o)
		}
	}
	f.relay(res)
	f.mu.Unlock()
	for _, o := range others {
		f.giveUp(o)
	}
}

// endOrphan ends a call that was answered when the caller had got another final
// response already: nobody but the proxy can acknowledge it and hang up.
func (p *Proxy) endOrphan(invite *sip.Request, res *sip.Response) {
	if invite.Method != sip.INVITE || tagOf(invite.To().Params) != "" {
		return
	}
	d, err := newDialog(&Stack{e: p.e}, invite, res, true)
	if err != nil {
		p.e.log.Debug("end an orphaned call", "err", err)
		return
	}
	d.routes = slices.DeleteFunc(d.routes, p.isSelf)
	if err := d.sendAck(); err != nil {
		p.e.log.Debug("end an orphaned call", "err", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // send the BYE and do not wait
	if err := d.Bye(ctx); err != nil {
		p.e.log.Debug("end an orphaned call", "err", err)
	}
}

// final relays the only final response that decides.
func (f *forward) final(b *branch, res *sip.Response) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b.over || f.answered {
		return
	}
	b.over, f.answered = true, true
	b.stop()
	f.relay(res)
}

// silent runs when the current branch has not answered at all.
func (f *forward) silent(b *branch) {
	f.mu.Lock()
	if b.heard || b.over {
		f.mu.Unlock()
		return
	}
	f.mu.Unlock()
	f.giveUp(b)
	f.failed(b, sip.StatusRequestTimeout, silentNode, nil)
}

// rangOut is timer C.
func (f *forward) rangOut(b *branch) {
	f.giveUp(b)
	f.mu.Lock()
	late := f.answered || b.over
	b.over = true
	f.mu.Unlock()
	if !late {
		f.answer(f.tx.response(sip.StatusRequestTimeout, "Request Timeout", nil))
	}
}

// failed closes a branch that brought nothing and tries the next hop, or
// answers if there is none. res is the hop's 5xx, if it gave one.
func (f *forward) failed(b *branch, code int, reason string, res *sip.Response) {
	f.mu.Lock()
	if b.over || f.answered {
		f.mu.Unlock()
		return
	}
	b.over = true
	b.stop()
	more, canceled := len(f.branches) < len(f.hops), f.canceled
	f.mu.Unlock()
	if f.toNodes && !canceled {
		ev := f.p.event("failover", f.tx, f.verdict, code, reason)
		ev.Branch, ev.Node = clean(b.id), b.hop.addr.String()
		f.p.cfg.OnEvent(ev)
	}
	switch {
	case canceled:
		f.answer(f.tx.response(sip.StatusRequestTerminated, "Request Terminated", nil))
	case more:
		f.next()
	case f.toNodes:
		f.mu.Lock()
		f.answered = true
		f.mu.Unlock()
		f.p.refuse(f.tx, f.verdict, sip.StatusServiceUnavailable, "no node")
	case res != nil:
		f.answer(res)
	case f.verdict.AOR != "":
		f.mu.Lock()
		f.answered = true
		f.mu.Unlock()
		f.p.refuse(f.tx, f.verdict, sip.StatusRequestTimeout, "no answer from the phone")
	default:
		f.answer(f.tx.response(sip.StatusRequestTimeout, "Request Timeout", nil))
	}
}

// cancel is the caller's CANCEL. Who rings answers with 487 himself; where
// nobody has answered yet there is nothing to wait for.
func (f *forward) cancel() {
	f.mu.Lock()
	f.canceled = true
	heard := false
	var open []*branch
	for _, b := range f.branches {
		if !b.over {
			b.stop()
			heard = heard || b.heard
			open = append(open, b)
		}
	}
	f.mu.Unlock()
	for _, b := range open {
		f.giveUp(b)
	}
	if !heard {
		f.answer(f.tx.response(sip.StatusRequestTerminated, "Request Terminated", nil))
	}
}

// giveUp cancels a branch; one that was silent is not asked again, but told as
// soon as it speaks.
func (f *forward) giveUp(b *branch) {
	f.mu.Lock()
	tx := b.tx
	f.mu.Unlock()
	if tx == nil {
		return
	}
	if f.tx.invite {
		tx.cancel()
	}
	tx.hush()
}

// answer sends a final response of the proxy's own, or a hop's, back once.
func (f *forward) answer(res *sip.Response) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answered {
		return
	}
	f.answered = true
	if err := f.tx.respond(res); err != nil {
		f.p.e.log.Debug("respond", "err", err)
	}
}

// relay sends a hop's response back (RFC 3261 section 16.7). The lock is held,
// so that responses keep their order.
func (f *forward) relay(res *sip.Response) {
	out := f.strip(res)
	if out == nil {
		return
	}
	if err := f.tx.respond(out); err != nil {
		f.p.e.log.Debug("relay response", "err", err)
	}
}

// strip takes the proxy's Via and the nodes' private headers off.
func (f *forward) strip(res *sip.Response) *sip.Response {
	out := res.Clone()
	out.RemoveHeader("Via")
	if out.Via() == nil {
		return nil
	}
	var private []string
	for _, h := range out.Headers() {
		if strings.HasPrefix(strings.ToLower(h.Name()), trustedPrefix) {
			private = append(private, h.Name())
		}
	}
	for _, n := range private {
		out.RemoveHeader(n)
	}
	return out
}

// refuse answers a call with the proxy's own refusal and reports it.
func (p *Proxy) refuse(tx *serverTx, v Verdict, code int, reason string) {
	ev := p.event("refused", tx, v, code, reason)
	p.cfg.OnEvent(ev)
	tx.reply(code, reason)
}

// event describes a request in the fields of Event.
func (p *Proxy) event(kind string, tx *serverTx, v Verdict, code int, reason string) Event {
	req := tx.req
	via, _ := req.Via().Params.Get("branch")
	return Event{
		Kind: kind, SBC: p.cfg.Name, CallID: clean(req.CallID().Value()),
		CSeq: strconv.FormatUint(uint64(req.CSeq().SeqNo), 10), Branch: clean(via),
		From: clean(req.From().Address.User), To: clean(req.Recipient.User), Domain: clean(domainOf(req.Recipient)),
		Src: tx.src.Addr().String(), Tenant: v.Tenant, Code: strconv.Itoa(code), Reason: clean(reason),
		Time: strconv.FormatInt(time.Now().UnixMicro(), 10), Rev: v.Revision,
	}
}
