package freeswitchtest

import (
	"strconv"
	"time"
)

// The events of a leg, with the states of capture
// esl/event-order-bridged-call.txt and the fields of esl/json-bridge.txt,
// esl/json-bridge-busy.txt and esl/plain-calls.txt.

func (l *leg) created() {
	l.emit("CHANNEL_CREATE", place{"switch_core_state_machine.c", "switch_core_session_run", "626"}, "2", nil)
}

// runningNumber is the Channel-State-Number of a leg that runs.
func (l *leg) runningNumber() string {
	if l.outbound {
		return "7" // CS_CONSUME_MEDIA
	}
	return "4" // CS_EXECUTE
}

func (l *leg) progressed() {
	l.emit("CHANNEL_PROGRESS", place{"switch_channel.c", "switch_channel_perform_mark_ring_ready_value", "3507"}, l.runningNumber(), nil)
	l.callState = "RINGING"
}

// progressedMedia has no capture; its form is that of CHANNEL_PROGRESS.
func (l *leg) progressedMedia() {
	l.emit("CHANNEL_PROGRESS_MEDIA", place{"switch_channel.c", "switch_channel_perform_mark_pre_answered", "0"}, l.runningNumber(), nil)
	l.callState = "EARLY"
}

func (l *leg) answered() {
	l.answer = "answered"
	l.emit("CHANNEL_ANSWER", place{"switch_channel.c", "switch_channel_perform_mark_answered", "3848"}, l.runningNumber(), nil)
	l.callState = "ACTIVE"
}

func bridgeIDs(a, b *leg) fields {
	var f fields
	f.add("Bridge-A-Unique-ID", a.uuid)
	f.add("Bridge-B-Unique-ID", b.uuid)
	return f
}

func (l *leg) bridged(b *leg) {
	l.emit("CHANNEL_BRIDGE", place{"switch_ivr_bridge.c", "switch_ivr_multi_threaded_bridge", "1689"}, "4", bridgeIDs(l, b))
}

func (l *leg) unbridged(b *leg) {
	l.emit("CHANNEL_UNBRIDGE", place{"switch_ivr_bridge.c", "switch_ivr_multi_threaded_bridge", "1879"}, "10", bridgeIDs(l, b))
}

// hungUp marks the leg as hung up; the state stays what it was.
func (l *leg) hungUp(why cause) {
	if l.why != "" {
		return
	}
	l.why, l.answer = why, "hangup"
	l.emit("CHANNEL_HANGUP", place{"switch_channel.c", "switch_channel_perform_hangup", "3447"}, "10", nil)
	l.prof.t.hangup = nowMicro()
}

// finished fires the last two events. disposition is sip_hangup_disposition,
// which stands after the times unless the other side hung up, in which case
// the caller has set it before. tail runs before the event, for variables that
// stand last.
func (l *leg) finished(disposition string, tail func()) {
	l.state, l.callState = "CS_REPORTING", "HANGUP"
	l.setTimes()
	l.vars.setIf("sip_hangup_disposition", disposition)
	if l.mediaUp {
		l.setCounts()
	}
	if tail != nil {
		tail()
	}
	l.postCDR()
	// Hangup-Cause twice: fact 30.
	l.emit("CHANNEL_HANGUP_COMPLETE", place{"switch_core_state_machine.c", "switch_core_session_reporting_state", "943"}, "11",
		fields{{name: "Hangup-Cause", value: string(l.why)}})
	l.emit("CHANNEL_DESTROY", place{"switch_core_session.c", "switch_core_session_perform_destroy", "1588"}, "12", nil)
	l.n.sessions.end(l)
}

// setTimes sets the variables that tell when what happened, for how long.
func (l *leg) setTimes() {
	v, t := &l.vars, l.prof.t
	v.set("hangup_cause", string(l.why))
	v.set("hangup_cause_q850", strconv.Itoa(l.why.q850()))
	v.set("digits_dialed", "none")
	stamp := func(name string, us int64) {
		if us != 0 {
			v.set(name, time.UnixMicro(us).Local().Format(time.DateTime))
		}
	}
	stamp("start_stamp", t.created)
	stamp("profile_start_stamp", t.created)
	stamp("answer_stamp", t.answered)
	stamp("bridge_stamp", t.bridged)
	stamp("progress_stamp", t.progress)
	stamp("progress_media_stamp", t.progressMedia)
	stamp("end_stamp", t.hangup)
	epoch := func(name string, us int64) {
		v.set(name+"_epoch", strconv.FormatInt(us/1_000_000, 10))
		v.set(name+"_uepoch", strconv.FormatInt(us, 10))
	}
	epoch("start", t.created)
	epoch("profile_start", t.created)
	epoch("answer", t.answered)
	epoch("bridge", t.bridged)
	epoch("last_hold", 0)
	for _, n := range []string{"hold_accum_seconds", "hold_accum_usec", "hold_accum_ms"} {
		v.set(n, "0")
	}
	epoch("resurrect", 0)
	epoch("progress", t.progress)
	epoch("progress_media", t.progressMedia)
	epoch("end", t.hangup)
	v.setIf("last_app", l.app)
	v.setIf("last_arg", l.data)
	v.set("caller_id", `"`+l.prof.cidName+`" <`+l.prof.cid+">")
	l.setDurations()
}

// setDurations sets each duration in seconds, milliseconds and microseconds:
// the difference of both times, each cut to that unit.
func (l *leg) setDurations() {
	t := l.prof.t
	type span struct{ from, to int64 }
	bill, flow := span{}, span{}
	if t.answered != 0 {
		bill, flow = span{t.answered, t.hangup}, span{t.created, t.hangup}
	}
	since := func(to int64) span {
		if to == 0 {
			return span{}
		}
		return span{t.created, to}
	}
	spans := []struct {
		name string
		s    span
	}{
		{"duration", span{t.created, t.hangup}}, {"bill", bill}, {"progress", since(t.progress)}, {"answer", since(t.answered)},
		{"wait", since(t.bridged)}, {"progress_media", since(t.progressMedia)}, {"flow_bill", flow},
	}
	for _, unit := range []struct {
		name string
		us   int64
	}{{"", 1_000_000}, {"m", 1000}, {"u", 1}} {
		for _, s := range spans {
			name := s.name + unit.name + "sec"
			if s.name == "duration" {
				name = unit.name + "duration"
			}
			l.vars.set(name, strconv.FormatInt(s.s.to/unit.us-s.s.from/unit.us, 10))
		}
	}
}

// setCounts sets the RTP statistics. Bytes count 12 of header a packet
// (capture esl/plain-calls.txt: 150 packets, 25800 bytes).
func (l *leg) setCounts() {
	s := l.media.Stats()
	v := &l.vars
	set := func(name string, n int64) { v.set("rtp_audio_"+name, strconv.FormatInt(n, 10)) }
	in, out := s.Bytes+12*s.Received, s.Sent*172
	set("in_raw_bytes", in)
	set("in_media_bytes", in)
	set("in_packet_count", s.Received)
	set("in_media_packet_count", s.Received)
	for _, n := range []string{"in_skip_packet_count", "in_jitter_packet_count", "in_dtmf_packet_count",
		"in_cng_packet_count", "in_flush_packet_count", "in_largest_jb_size"} {
		set(n, 0)
	}
	for _, n := range []string{"jitter_min_variance", "jitter_max_variance", "jitter_loss_rate", "jitter_burst_rate"} {
		v.set("rtp_audio_in_"+n, "0.00")
	}
	interval := "0.00"
	if s.Received > 0 {
		interval = "20.00"
	}
	v.set("rtp_audio_in_mean_interval", interval)
	set("in_flaw_total", s.Lost)
	v.set("rtp_audio_in_quality_percentage", "100.00")
	v.set("rtp_audio_in_mos", "4.50")
	set("out_raw_bytes", out)
	set("out_media_bytes", out)
	set("out_packet_count", s.Sent)
	set("out_media_packet_count", s.Sent)
	for _, n := range []string{"out_skip_packet_count", "out_dtmf_packet_count", "out_cng_packet_count", "rtcp_packet_count", "rtcp_octet_count"} {
		set(n, 0)
	}
}
