package freeswitchtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// call is one call: an A leg, and a B leg while there is one. Its goroutine is
// the only one that touches them.
type call struct {
	n   *Node
	log *slog.Logger
	inc *siptest.Incoming
	a   *leg
	ad  *siptest.Dialog // once A is answered

	stack       int    // extensions executed in one another
	code        int    // status to refuse A with; 0: by the cause
	reason      string // its phrase
	disposition string // sip_hangup_disposition of A
}

// run is the life of a call. ctx ends at the node's stop; a fetch of the
// dialplan is then given up.
func (c *call) run(ctx context.Context) {
	a := c.a
	if err := a.negotiate(c.inc.Request().Body()); err != nil {
		c.log.Info("no codec in common", "err", err)
		a.vars.set("endpoint_disposition", "CODEC NEGOTIATION ERROR")
		a.created()
		if errors.Is(err, bulkhead.Invalid) || errors.Is(err, bulkhead.Conflict) {
			c.hangup(causeIncompatible)
		} else { // no RTP port
			c.hangup(causeOutOfOrder)
		}
		c.finish()
		return
	}
	a.created()
	actions := c.route(ctx, &a.prof)
	switch {
	case c.gone():
	case len(actions) == 0:
		c.hangup(causeNoRoute) // capture failures/xml_curl-answers.txt number 4040
	default:
		c.execute(ctx, actions)
	}
	c.hangup(causeNormal) // the dialplan is at its end
	c.finish()
}

// route asks for the dialplan and finds the call's actions in it. A CANCEL
// does not end the request (fact 14, capture
// failures/cancel-while-http-request-runs.txt).
func (c *call) route(ctx context.Context, prof *profile) []action {
	a := c.a
	form := encodeForm(a.dialplanForm(prof))
	doc := c.n.ask(ctx, form)
	if doc == nil {
		var err error
		if doc, err = parseXML(preprocess([]byte(c.n.cfg.StaticXML), c.n.globals)); err != nil {
			c.log.Error("static dialplan", "err", err)
			return nil
		}
	}
	value := func(name string) string {
		if name == "destination_number" {
			return prof.dest
		}
		return a.value(name)
	}
	h := hunt{context: prof.context, value: value, inline: func(act action) { c.app(ctx, act) }}
	actions := h.find(doc)
	if h.match != nil {
		a.vars.setArray("DP_MATCH", h.match)
	}
	a.vars.set("call_uuid", a.callUUID)
	a.state = "CS_EXECUTE"
	if len(actions) == 0 && !prof.copied {
		a.state = "CS_ROUTING"
	}
	return actions
}

func (c *call) execute(ctx context.Context, actions []action) {
	for _, act := range actions {
		if c.gone() {
			return
		}
		c.app(ctx, act)
	}
}

// maxStack is how deep extensions may be executed in one another (source:
// SWITCH_MAX_STACKS, 32).
const maxStack = 32

// executeExtension asks for the dialplan once more and runs what it says in
// place. The Caller-* fields stay as they were, the Hunt-* fields have the new
// destination and context (capture xml_curl/dialplan-transfer-3-execute_extension.txt).
func (c *call) executeExtension(ctx context.Context, data string) {
	part := strings.Fields(data)
	if len(part) == 0 || c.stack >= maxStack {
		c.log.Error("execute_extension: no extension, or too many in one another", "data", clip(data, 80))
		return
	}
	prof := c.a.prof
	prof.dest, prof.copied = part[0], true
	if len(part) > 2 {
		prof.context = part[2]
	}
	c.stack++
	c.execute(ctx, c.route(ctx, &prof))
	c.stack--
}

// app runs one application (captures: xml_curl/dialplan-*.txt).
func (c *call) app(ctx context.Context, act action) {
	a := c.a
	data := expand(act.data, a.value)
	a.app, a.data = act.app, data
	a.vars.unset("current_application_data")
	a.vars.setIf("current_application_data", data)
	a.vars.set("current_application", act.app)
	switch act.app {
	case "set":
		c.set(data)
	case "unset":
		a.vars.unset(data)
	case "export":
		if name := c.set(data); name != "" {
			list, _ := a.vars.get("export_vars")
			a.vars.set("export_vars", joinExport(list, name))
		}
	case "answer":
		c.answer()
	case "ring_ready":
		c.ringing()
	case "pre_answer":
		c.preAnswer()
	case "sleep":
		c.pause(milliseconds(data))
	case "playback":
		c.playback(data)
	case "echo":
		if c.answer() {
			siptest.Bridge(a.media, a.media)
			c.pause(forever)
			a.media.Unbridge()
		}
	case "park":
		c.pause(forever)
	case "bridge":
		c.bridge(data)
	case "execute_extension":
		c.executeExtension(ctx, data)
	case "hangup":
		why := cause(data)
		if why == "" {
			why = causeNormal
		}
		c.hangup(why)
	case "respond":
		c.respond(data)
	case "log", "info", "noop":
	default: // source: switch_core_session.c
		c.log.Error("invalid application", "app", clip(act.app, 80))
		c.hangup(causeOutOfOrder)
	}
}

// answer answers the A leg; false means that it is gone.
func (c *call) answer() bool {
	if c.ad != nil || c.gone() {
		return c.ad != nil && c.a.why == ""
	}
	a := c.a
	c.startA()
	d, err := c.inc.Answer(a.localSDP, a.responseHeaders()...)
	if err != nil {
		c.log.Debug("answer", "err", err)
		if !c.gone() { // not a CANCEL
			c.hangup(causeOutOfOrder)
		}
		return false
	}
	c.ad = d
	a.prof.t.answered = nowMicro()
	a.answered()
	a.vars.set("endpoint_disposition", "ANSWER")
	return true
}

// startA describes A's own end and sends to the caller from now on.
func (c *call) startA() {
	a := c.a
	if a.localSDP != nil {
		return
	}
	remote, err := siptest.ParseSDP(c.inc.Request().Body())
	if err != nil {
		return // it was parsed before
	}
	a.localSDP = describe(a.media.Addr(), a.codec, a.event, false)
	for _, m := range []string{"video_media_flow", "text_media_flow"} {
		a.vars.set(m, "inactive")
	}
	a.vars.set("audio_media_flow", "sendrecv")
	a.vars.set("rtp_local_sdp_str", string(a.localSDP))
	a.setLocalMedia()
	a.startMedia(remote)
}

// acked sets what the dialog tells, after the ACK in a real one.
func (c *call) acked() {
	v, req := &c.a.vars, c.inc.Request()
	to := c.ad.Response().To()
	v.set("sip_to_tag", tag(to.Params))
	v.set("sip_from_tag", tag(req.From().Params))
	v.set("sip_cseq", fmt.Sprint(req.CSeq().SeqNo))
	v.set("sip_call_id", req.CallID().Value())
	v.set("sip_full_via", fullVia(req))
	v.setIf("sip_from_display", c.a.prof.cidName)
	v.set("sip_full_from", req.From().Value())
	v.set("sip_full_to", to.Value())
}

func (c *call) ringing() {
	a := c.a
	if c.ad != nil || a.prof.t.progress != 0 || a.prof.t.progressMedia != 0 || c.gone() {
		return
	}
	if err := c.inc.Progress(sip.StatusRinging, "Ringing", nil); err != nil {
		c.log.Debug("ring", "err", err)
		return
	}
	a.prof.t.progress = nowMicro()
	a.progressed()
}

// preAnswer gives the caller early media.
func (c *call) preAnswer() {
	a := c.a
	if c.ad != nil || a.prof.t.progressMedia != 0 || c.gone() {
		return
	}
	c.startA()
	if err := c.inc.Progress(sip.StatusSessionInProgress, "Session Progress", a.localSDP); err != nil {
		c.log.Debug("early media", "err", err)
		return
	}
	a.prof.t.progressMedia = nowMicro()
	a.vars.set("endpoint_disposition", "EARLY MEDIA")
	a.progressedMedia()
}

// respond refuses the call with a status and phrase (capture
// failures/xml_curl-answers.txt, fact 9: respond 603 Decline). The cause
// follows from the status (source: mod_sofia.c).
func (c *call) respond(data string) {
	var code int
	if _, err := fmt.Sscanf(data, "%d", &code); err != nil || code < 400 || code > 699 {
		c.log.Warn("cannot respond", "data", clip(data, 80))
		return
	}
	if len(data) > 4 {
		c.reason = data[4:]
	}
	c.code = code
	c.hangup(sipCause(code))
}

// endings are what can end the A leg.
func (c *call) endings() (canceled, over <-chan struct{}) {
	if c.ad != nil {
		return nil, c.ad.Done()
	}
	return c.inc.Canceled(), nil
}

// gone reports whether the A leg has ended, and hangs it up if something ended
// it since the last look.
func (c *call) gone() bool {
	a := c.a
	if a.why != "" {
		return true
	}
	canceled, over := c.endings()
	select {
	case <-canceled:
		c.disposition = "recv_cancel"
		c.hangup(causeCancel)
	case <-over:
		if c.ad.RemoteBye() == nil { // no ACK came
			c.hangup(causeTimer)
			break
		}
		// A BYE of the caller (capture esl/json-bridge.txt, CHANNEL_HANGUP of A).
		c.beforeHangup()
		a.setTerm(200, causeNormal)
		c.lastRole()
		c.disposition = "recv_bye"
		a.hungUp(causeNormal)
		a.vars.set("sip_hangup_disposition", "recv_bye")
	case <-a.killed:
		c.hangup(a.killWhy)
	default:
		return false
	}
	return true
}

// lastRole is set once the legs were bridged.
func (c *call) lastRole() {
	if c.a.prof.t.bridged != 0 {
		c.a.vars.set("last_bridge_role", "originator")
	}
}

// setTerm sets how the other side ended the leg.
func (l *leg) setTerm(status int, why cause) {
	l.vars.set("sip_term_status", fmt.Sprint(status))
	l.vars.set("proto_specific_hangup_cause", fmt.Sprintf("sip:%d", status))
	l.vars.set("sip_term_cause", fmt.Sprint(why.q850()))
}

// forever is a pause that only the end of the call ends.
const forever = time.Duration(1<<63 - 1)

// pause waits, and reports false if the A leg ended meanwhile.
func (c *call) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	canceled, over := c.endings()
	select {
	case <-t.C:
	case <-canceled:
	case <-over:
	case <-c.a.killed:
	}
	return !c.gone()
}

// beforeHangup sets what an answered leg knows of its dialog.
func (c *call) beforeHangup() {
	if c.ad != nil {
		if _, ok := c.a.vars.get("sip_to_tag"); !ok {
			c.acked()
		}
	}
}

// hangup marks the A leg as ended from this side; finish tells the caller.
func (c *call) hangup(why cause) {
	if c.a.why != "" {
		return
	}
	c.beforeHangup()
	c.a.hungUp(why)
}

// finish tells the caller, frees the media and fires the last events. The B
// leg is gone by now.
func (c *call) finish() {
	a := c.a
	switch {
	case c.disposition != "": // the caller knows
	case c.ad != nil:
		c.disposition = "send_bye"
		c.n.bye(c.ad, a.why)
	default:
		c.disposition = "send_refuse"
		c.refuse()
	}
	if a.media != nil {
		if err := a.media.Close(); err != nil {
			c.log.Debug("close media", "err", err)
		}
	}
	if c.disposition == "recv_bye" { // set before, as captured
		c.disposition = ""
	}
	a.finished(c.disposition, nil)
}

// refuse sends the final status of a leg that was not answered: that of
// respond, or the B leg's, or one by the cause (source: mod_sofia.c,
// sofia_on_hangup; 486 and 404 as in capture failures/xml_curl-answers.txt).
func (c *call) refuse() {
	code := c.a.why.sip()
	if last, ok := c.a.vars.get("last_bridge_proto_specific_hangup_cause"); ok {
		var other int
		if _, err := fmt.Sscanf(last, "sip:%d", &other); err == nil && other >= 300 && other < 700 {
			code = other
		}
	}
	text := phrase(code)
	if c.code != 0 {
		code, text = c.code, phrase(c.code)
		if c.reason != "" {
			text = c.reason
		}
	}
	if err := c.inc.Reject(code, text, append(c.a.responseHeaders(), reasonHeader(c.a.why))...); err != nil {
		c.log.Debug("refuse", "err", err) // a CANCEL came first
	}
}

// responseHeaders are those that the channel's variables put into final
// responses (source: mod_sofia.c, SOFIA_SIP_RESPONSE_HEADER_PREFIX).
func (l *leg) responseHeaders() []sip.Header {
	var all []sip.Header
	for _, f := range l.vars {
		if name, ok := strings.CutPrefix(f.name, "sip_rh_"); ok {
			all = append(all, sip.NewHeader(name, f.value))
		}
	}
	return all
}

// reasonHeader is RFC 3326's, as mod_sofia sends it (source).
func reasonHeader(why cause) sip.Header {
	return sip.NewHeader("Reason", fmt.Sprintf("Q.850;cause=%d;text=%q", why.q850(), string(why)))
}

// bye ends a dialog without making the call wait for the answer.
func (n *Node) bye(d *siptest.Dialog, why cause) {
	n.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), byeTime)
		defer cancel()
		if err := d.Bye(ctx, reasonHeader(why)); err != nil {
			n.log.Debug("hang up", "call", d.CallID(), "err", err)
		}
	})
}
