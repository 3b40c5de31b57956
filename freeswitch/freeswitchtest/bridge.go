package freeswitchtest

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// ringTime is FreeSWITCH's default originate_timeout.
const ringTime = 60 * time.Second

// attempt is the B leg of one bridge.
type attempt struct {
	c      *call
	b      *leg
	callID string
	stop   context.CancelFunc
	prov   chan *sip.Response
	final  chan outcome
	given  chan struct{} // closed when nobody waits for final any more
}

// outcome is the end of the B leg's INVITE.
type outcome struct {
	d   *siptest.Dialog
	err error
}

// bridge is the application: it calls the target and joins it with the A leg
// until one of them hangs up.
func (c *call) bridge(data string) {
	a := c.a
	a.vars.set("originate_disposition", "failure")
	a.vars.set("DIALSTATUS", "INVALIDARGS")
	t, ok := parseDial(data)
	if !ok {
		c.log.Error("bridge: a dial string that this node does not know", "data", clip(data, 200))
		c.bridgeFailed(nil, causeOutOfOrder)
		return
	}
	if !c.chooseCodec() {
		c.bridgeFailed(nil, causeIncompatible)
		return
	}
	if hops, _ := a.vars.get("max_forwards"); hops == "0" || hops == "" {
		c.bridgeFailed(nil, "EXCHANGE_ROUTING_ERROR")
		return
	}
	b := newOutbound(a, t)
	if b == nil { // source: sofia_outgoing_channel's default cause
		c.log.Warn("bridge: the limit of sessions is reached")
		c.bridgeFailed(nil, causeOutOfOrder)
		return
	}
	at := &attempt{c: c, b: b, prov: make(chan *sip.Response, 8), final: make(chan outcome), given: make(chan struct{})}
	if why := at.start(t); why != "" {
		at.end(why, "", nil)
		c.bridgeFailed(b, why)
		return
	}
	if d := at.wait(); d != nil {
		c.talk(at, d)
	}
}

// chooseCodec obeys absolute_codec_string while A's codec may still change. A
// real one would transcode; this node needs one codec on both legs.
func (c *call) chooseCodec() bool {
	a := c.a
	list, ok := a.vars.get("absolute_codec_string")
	if !ok {
		return true
	}
	var accept []siptest.Codec
	for _, name := range strings.Split(list, ",") {
		switch name, _, _ = strings.Cut(strings.TrimSpace(name), "@"); strings.ToUpper(name) {
		case "PCMU":
			accept = append(accept, siptest.PCMU)
		case "PCMA":
			accept = append(accept, siptest.PCMA)
		}
	}
	for _, codec := range accept {
		if codec == a.codec {
			return true
		}
	}
	remote, err := siptest.ParseSDP(c.inc.Request().Body())
	if err != nil || a.localSDP != nil || len(accept) == 0 {
		return false
	}
	codec, err := remote.Choose(accept...)
	if err != nil {
		return false
	}
	a.setCodec(codec, remote)
	return true
}

// start sends the INVITE; a cause means that it could not.
func (at *attempt) start(t dialTarget) cause {
	c, b := at.c, at.b
	var err error
	if b.media, err = c.n.media.Open(); err != nil {
		c.log.Error("bridge: open media", "err", err)
		b.created()
		return causeOutOfOrder
	}
	b.describeOffer(t, c.a.codec)
	inv, err := b.invitation(t)
	b.created()
	if err != nil { // what sofia makes of a name that it cannot resolve: 503
		c.log.Error("bridge", "err", err)
		return causeTempFailure
	}
	b.state = "CS_CONSUME_MEDIA"
	at.callID = inv.CallID
	v := &c.a.vars
	v.set("originate_signal_bond", b.uuid)
	v.set("originated_legs", b.uuid+";"+b.prof.calleeName+";"+b.prof.callee)
	inv.OnProvisional = func(res *sip.Response) {
		select {
		case at.prov <- res:
		default: // more than anybody needs
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	at.stop = cancel
	c.n.background.Go(func() {
		d, err := c.n.stack.Invite(ctx, inv)
		select {
		case at.final <- outcome{d, err}:
		case <-at.given:
			if d != nil { // answered in the very moment of the CANCEL
				c.n.bye(d, causeCancel)
			}
		}
	})
	return ""
}

// wait relays the B leg's progress to A until the final response. It returns
// the dialog, or nil when the bridge is over.
func (at *attempt) wait() *siptest.Dialog {
	c, b := at.c, at.b
	defer at.stop()
	timer := time.NewTimer(at.timeout())
	defer timer.Stop()
	canceled, over := c.endings()
	for {
		select {
		case res := <-at.prov:
			at.progress(res)
			continue
		case o := <-at.final:
			at.drain()
			if o.err == nil {
				return o.d
			}
			at.refused(o.err)
			return nil
		case <-canceled:
		case <-over:
		case <-c.a.killed:
		case <-b.killed:
		case <-timer.C:
			at.giveUp(causeNoAnswer)
			c.bridgeFailed(b, causeNoAnswer)
			return nil
		}
		if !c.gone() { // the B leg was killed
			at.giveUp(b.killWhy)
			c.bridgeFailed(b, b.killWhy)
			return nil
		}
		at.giveUp(c.a.why)
		return nil
	}
}

// drain handles the provisional responses that came before the final one.
func (at *attempt) drain() {
	for {
		select {
		case res := <-at.prov:
			at.progress(res)
		default:
			return
		}
	}
}

// timeout is how long the B leg may ring.
func (at *attempt) timeout() time.Duration {
	for _, from := range []struct {
		vars fields
		name string
	}{{at.b.vars, "leg_timeout"}, {at.b.vars, "originate_timeout"}, {at.c.a.vars, "originate_timeout"}, {at.c.a.vars, "call_timeout"}} {
		if v, ok := from.vars.get(from.name); ok {
			if n, err := strconv.Atoi(v); err == nil && n > 0 && n < 86400 {
				return time.Duration(n) * time.Second
			}
		}
	}
	return ringTime
}

// progress relays 180, and 183 with a description as early media. A 183
// without one counts as ringing.
func (at *attempt) progress(res *sip.Response) {
	c, a, b := at.c, at.c.a, at.b
	b.setResponse(res)
	if len(res.Body()) > 0 && b.prof.t.progressMedia == 0 {
		if remote, codec, err := at.answerOf(res.Body()); err == nil {
			at.startB(remote, codec, res.Body())
			b.prof.t.progressMedia = nowMicro()
			b.progressedMedia()
			a.prof.calleeName, a.prof.callee = b.prof.calleeName, b.prof.callee
			c.preAnswer()
			siptest.Bridge(a.media, b.media)
			return
		}
	}
	if b.prof.t.progress == 0 && b.prof.t.progressMedia == 0 {
		b.prof.t.progress = nowMicro()
		b.other.t.progress = b.prof.t.progress
		b.progressed()
	}
	a.prof.calleeName, a.prof.callee = b.prof.calleeName, b.prof.callee
	c.ringing()
}

// answerOf reads the B leg's description; it must have the codec offered.
func (at *attempt) answerOf(body []byte) (siptest.SDP, siptest.Codec, error) {
	remote, err := siptest.ParseSDP(body)
	if err != nil {
		return remote, 0, err
	}
	codec, err := remote.Choose(at.c.a.codec)
	return remote, codec, err
}

// startB begins the B leg's media.
func (at *attempt) startB(remote siptest.SDP, codec siptest.Codec, body []byte) {
	b := at.b
	b.vars.set("switch_r_sdp", string(body))
	b.setCodec(codec, remote)
	b.setLocalMedia()
	b.startMedia(remote)
	at.c.a.vars.set("switch_m_sdp", string(body))
}

// refused ends a bridge whose B leg did not answer with a success.
func (at *attempt) refused(err error) {
	c, b := at.c, at.b
	code, text, why := 503, "Service Unavailable", causeTempFailure
	var status *siptest.StatusError
	var res *sip.Response
	switch {
	case errors.As(err, &status):
		code, text, res = status.Code, status.Reason, status.Response
		why = sipCause(code)
	case errors.Is(err, context.Canceled): // the node's stop
		at.giveUp(causeShutdown)
		c.bridgeFailed(b, causeShutdown)
		return
	default:
		// No final response: sofia makes a 408 of it itself.
		c.log.Info("bridge: no answer to the INVITE", "err", err)
		code, text, why = 408, "Request Timeout", causeTimer
	}
	b.setRefusal(at.callID, res, code, text)
	v := &c.a.vars
	v.set("sip_invite_failure_status", strconv.Itoa(code))
	v.set("sip_invite_failure_phrase", text)
	v.set("sip_hangup_phrase", text)
	v.set("last_bridge_hangup_cause", string(why))
	v.set("last_bridge_proto_specific_hangup_cause", "sip:"+strconv.Itoa(code))
	at.end(why, "", nil)
	c.bridgeFailed(b, why)
}

// giveUp cancels the B leg's INVITE.
func (at *attempt) giveUp(why cause) {
	at.stop()
	close(at.given)
	b := at.b
	b.hungUp(why)
	b.vars.set("sip_invite_failure_status", "487") // source: mod_sofia.c
	b.vars.set("sip_invite_failure_phrase", "CANCEL")
	at.end(why, "send_cancel", nil)
}

// end hangs the B leg up, if it is not yet, and fires its last events.
func (at *attempt) end(why cause, disposition string, tail func()) {
	b := at.b
	b.hungUp(why)
	at.c.a.media.Unbridge()
	if b.media != nil {
		if err := b.media.Close(); err != nil {
			at.c.log.Debug("close media", "err", err)
		}
	}
	b.finished(disposition, tail)
}

// bridgeFailed does to the A leg what a failed bridge does (capture
// esl/json-bridge-busy.txt): it is hung up with the cause unless
// continue_on_fail is true or lists it, by name or number (source:
// switch_channel.c, switch_channel_handle_cause).
func (c *call) bridgeFailed(b *leg, why cause) {
	v := &c.a.vars
	v.set("originate_disposition", string(why))
	v.set("DIALSTATUS", why.dialStatus())
	if b != nil {
		v.set("originate_causes", b.uuid+";"+string(why))
	}
	v.set("originate_failed_cause", string(why))
	if list, ok := v.get("continue_on_fail"); ok {
		for _, on := range strings.Split(list, ",") {
			if on == "true" || strings.EqualFold(on, string(why)) || on == strconv.Itoa(why.q850()) {
				return
			}
		}
	}
	c.hangup(why)
}
