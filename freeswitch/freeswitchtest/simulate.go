package freeswitchtest

import (
	"context"
	"fmt"
	"time"
)

// SimulatedCall is a call that happens in events and records alone: no SIP, no
// RTP. It is for load that no SIP stack of a test machine could carry.
type SimulatedCall struct {
	Caller, Callee string
	// TransferTo is where the dialplan transfers the A leg before it has a B
	// leg; empty: nowhere.
	TransferTo string
	// Variables are set on the A leg and exported to the B leg.
	Variables map[string]string
	// Ring is the time until the answer, Talk from there to the end. Negative
	// Talk: the callee is busy.
	Ring, Talk time.Duration
}

// SimulatedLeg is what truly happened to one leg: the ledger's line. Times are
// microseconds since 1970, 0 for what did not happen.
type SimulatedLeg struct {
	UUID     string `json:"uuid"`
	Call     string `json:"call"` // uuid of the A leg
	Outbound bool   `json:"outbound"`
	Created  int64  `json:"created"`
	Answered int64  `json:"answered"`
	Hangup   int64  `json:"hangup"`
	Cause    string `json:"cause"`
	// Tenant is for who makes the call to say; empty: not known.
	Tenant string `json:"tenant,omitempty"`
	// Posted: the record was posted, and the answer was 2xx.
	Posted bool `json:"posted,omitempty"`
}

// Simulate runs one call in the order of capture
// esl/event-order-bridged-call.txt (busy: esl/json-bridge-busy.txt) and returns
// its legs when both have ended. When ctx ends earlier, the call is hung up.
// It returns nothing when a session limit is reached.
func (n *Node) Simulate(ctx context.Context, c SimulatedCall) []SimulatedLeg {
	a := n.simulatedLeg(c, nil)
	if a == nil {
		return nil
	}
	a.created()
	a.state = "CS_EXECUTE"
	if c.TransferTo != "" {
		a.transfer(c.TransferTo)
	}
	b := n.simulatedLeg(c, a)
	if b == nil {
		a.hungUp("SWITCH_CONGESTION")
		a.finished("send_refuse", nil)
		return []SimulatedLeg{a.line(a)}
	}
	b.created()
	b.state = "CS_CONSUME_MEDIA"
	pause(ctx, c.Ring)
	if c.Talk < 0 {
		b.hungUp("USER_BUSY")
		b.vars.set("sip_term_status", "486")
		b.finished("recv_refuse", nil)
		a.hungUp("USER_BUSY")
		a.finished("send_refuse", nil)
		return []SimulatedLeg{a.line(a), b.line(a)}
	}
	for _, l := range []*leg{b, a} {
		l.prof.t.progress = nowMicro()
		l.progressed()
		l.prof.t.answered = nowMicro()
		l.answered()
	}
	a.prof.t.bridged, b.prof.t.bridged = nowMicro(), nowMicro()
	a.partner, b.partner = b.uuid, a.uuid
	a.bridged(b)
	pause(ctx, c.Talk)
	a.hungUp(causeNormal)
	b.hungUp(causeNormal)
	a.unbridged(b)
	b.finished("send_bye", nil)
	a.finished("recv_bye", nil)
	return []SimulatedLeg{a.line(a), b.line(a)}
}

// transfer gives the leg a new profile, as the application of that name does
// (capture xml_curl/dialplan-transfer-2-after-transfer.txt). What a REFER does
// no capture shows.
func (l *leg) transfer(to string) {
	p := &l.prof
	p.rdnis, p.dest, p.index, p.t.profile = p.dest, to, 2, nowMicro()
	p.transferSource = fmt.Sprintf("%d:%s:bl_xfer:%s/%s/XML", p.t.profile/1e6, newUUID(), to, p.context)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(max(0, d)):
	}
}

// simulatedLeg begins a leg; a is the A leg of an outbound one. Nil: a limit
// of sessions is reached.
func (n *Node) simulatedLeg(c SimulatedCall, a *leg) *leg {
	l := newLeg(n, a != nil)
	if !n.sessions.begin(l) {
		return nil
	}
	p := &l.prof
	p.direction, p.logical = l.direction(), l.direction()
	p.cid, p.cidName, p.username, p.ani = c.Caller, c.Caller, c.Caller, c.Caller
	p.origCID, p.origName = c.Caller, c.Caller
	p.addr, p.dest, p.context = "127.0.0.1", c.Callee, n.cfg.Context
	p.channel = "sofia/" + n.profile + "/" + c.Callee
	v := &l.vars
	v.set("direction", l.direction())
	v.set("uuid", l.uuid)
	v.set("sip_from_user", c.Caller)
	v.set("sip_to_user", c.Callee)
	v.set("sip_call_id", l.uuid+"@simulated")
	if a != nil {
		l.otherType, l.other = "originator", a.prof
		a.otherType, a.other = "originatee", l.prof
		v.set("originator", a.uuid)
		v.set("originating_leg_uuid", a.uuid)
	}
	for name, value := range c.Variables {
		v.set(name, value)
	}
	v.set("call_uuid", l.callUUID)
	return l
}

// line is the ledger's line of a leg.
func (l *leg) line(a *leg) SimulatedLeg {
	t := l.prof.t
	return SimulatedLeg{
		UUID: l.uuid, Call: a.uuid, Outbound: l.outbound, Created: t.created, Answered: t.answered, Hangup: t.hangup, Cause: string(l.why),
		Posted: l.posted,
	}
}
