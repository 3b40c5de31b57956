package freeswitchtest

import (
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// talk joins the legs after the B leg's 200 and waits until one ends; the
// order of events is that of capture esl/event-order-bridged-call.txt.
func (c *call) talk(at *attempt, d *siptest.Dialog) {
	a, b := c.a, at.b
	b.setResponse(d.Response())
	remote, codec, err := at.answerOf(d.RemoteSDP())
	if err != nil {
		c.log.Info("bridge: the answer has no usable codec", "err", err)
		c.n.bye(d, causeIncompatible)
		at.end(causeIncompatible, "send_bye", nil)
		c.bridgeFailed(b, causeIncompatible)
		return
	}
	at.startB(remote, codec, d.RemoteSDP())
	b.prof.t.answered = nowMicro()
	b.answered()
	b.vars.set("endpoint_disposition", "ANSWER")
	b.vars.set("call_uuid", b.callUUID)
	a.prof.calleeName, a.prof.callee = b.prof.calleeName, b.prof.callee
	if !c.answer() { // cancelled in the very moment
		c.n.bye(d, a.why)
		at.end(a.why, "send_bye", nil)
		return
	}
	c.join(at)
	select {
	case <-c.ad.Done():
	case <-d.Done():
	case <-a.killed:
	case <-b.killed:
	}
	if c.gone() {
		c.callerLeft(at, d)
		return
	}
	c.calleeLeft(at, d)
}

// join connects the media and fires CHANNEL_BRIDGE.
func (c *call) join(at *attempt) {
	a, b := c.a, at.b
	siptest.Bridge(a.media, b.media)
	v := &a.vars
	v.set("originate_disposition", "SUCCESS")
	v.set("DIALSTATUS", "SUCCESS")
	v.set("originate_causes", b.uuid+";NONE")
	v.set("signal_bond", b.uuid)
	v.unset("originate_signal_bond")
	now := nowMicro()
	a.otherType, a.other = "originatee", b.prof
	a.other.logical = "inbound" // as captured
	a.prof.t.bridged, b.prof.t.bridged = now, now
	a.partner, b.partner = b.uuid, a.uuid
	a.sent = [2]string{b.prof.calleeName, b.prof.callee}
	a.bridged(b)
	b.state = "CS_EXCHANGE_MEDIA"
	a.n.sessions.show(b.uuid, b.row())

	v.set("bridge_to", b.uuid)
	v.set("last_bridge_to", b.uuid)
	v.set("bridge_channel", b.prof.channel)
	v.set("bridge_uuid", b.uuid)
	v.set("signal_bond", b.uuid)
	c.acked()
	v.set("last_sent_callee_id_name", b.prof.calleeName)
	v.set("last_sent_callee_id_number", b.prof.callee)

	w := &b.vars
	w.set("last_bridge_to", a.uuid)
	w.set("bridge_channel", a.prof.channel)
	w.set("bridge_uuid", a.uuid)
	w.set("signal_bond", a.uuid)
	w.set("last_sent_callee_id_name", b.prof.cidName)
	w.set("last_sent_callee_id_number", b.prof.cid)
}

// callerLeft ends the B leg after A has gone; A has fired its CHANNEL_HANGUP.
func (c *call) callerLeft(at *attempt, d *siptest.Dialog) {
	a, b := c.a, at.b
	why := a.why
	if c.disposition == "recv_bye" {
		b.vars.set("sip_hangup_phrase", "OK")
		b.vars.set("last_bridge_hangup_cause", string(why))
		b.vars.set("last_bridge_proto_specific_hangup_cause", "sip:200")
	}
	b.hungUp(why)
	c.n.bye(d, why)
	c.unbridge(b, why)
	at.end(why, "send_bye", func() { b.afterBridge(why) })
}

// calleeLeft handles the B leg's end (no capture; the mirror of callerLeft).
// hangup_after_bridge decides what becomes of A; without it the dialplan goes
// on.
func (c *call) calleeLeft(at *attempt, d *siptest.Dialog) {
	a, b := c.a, at.b
	why, disposition := causeNormal, "send_bye"
	select {
	case <-b.killed:
		why = b.killWhy
		c.n.bye(d, why)
	default:
	}
	byRemote := d.RemoteBye() != nil
	if byRemote {
		b.setTerm(200, why)
	}
	b.hungUp(why)
	if byRemote {
		disposition = ""
		b.vars.set("sip_hangup_disposition", "recv_bye")
		a.vars.set("sip_hangup_phrase", "OK")
		a.vars.set("last_bridge_hangup_cause", string(why))
		a.vars.set("last_bridge_proto_specific_hangup_cause", "sip:200")
	}
	c.lastRole()
	if after, ok := a.vars.get("hangup_after_bridge"); ok && after == "true" {
		c.hangup(why)
	}
	c.unbridge(b, why)
	at.end(why, disposition, func() { b.afterBridge(why) })
	a.otherType, a.partner = "", ""
	if a.why != "" {
		a.otherType = "originatee"
	}
}

// unbridge fires CHANNEL_UNBRIDGE.
func (c *call) unbridge(b *leg, why cause) {
	v := &c.a.vars
	v.unset("bridge_to")
	if c.disposition == "recv_bye" {
		v.set("sip_hangup_disposition", "recv_bye")
	}
	v.set("bridge_hangup_cause", string(why))
	c.a.unbridged(b)
}

// afterBridge is set last: the leg is a call of its own again.
func (l *leg) afterBridge(why cause) {
	l.vars.set("bridge_hangup_cause", string(why))
	l.callUUID = l.uuid
	l.vars.set("call_uuid", l.uuid)
}
