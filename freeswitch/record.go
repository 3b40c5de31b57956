package freeswitch

import (
	"cmp"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// origin says where an event was heard, for what the event itself cannot say.
type origin struct {
	node bulkhead.NodeID
	cell bulkhead.CellID
	// sbcAt tells an SBC of the cell by its address; nil: none is known.
	sbcAt  func(netip.AddrPort) (bulkhead.SBCID, bool)
	source cdr.Source // who tells; empty: the event socket
	vars   []string   // variables that go into the attributes
}

// record maps a channel event to a record. What has not happened yet is empty.
//
//   - Leg is Unique-ID. Call is the A leg's uuid: an outbound leg names it in
//     originating_leg_uuid or originator; call_uuid does not do, since it is
//     the B leg's own once the legs were bridged (captures: json-bridge).
//   - Caller is the From user: that is what the SBC compared with the digest.
//     Caller-Caller-ID-Number may come from P-Asserted-Identity; it is taken
//     where no From is known, which is so on an outbound leg that was never
//     answered. Callee is what was dialled on this leg.
//   - Times are those of the channel (Caller-Channel-*), which survive a
//     transfer; the profile's begin anew with each. Ring is the first of
//     progress and progress with media.
//   - RTP counts are rtp_audio_in/out_packet_count, which count media packets
//     and no RTCP. A leg without media does not have them.
//   - Loss, jitter and MOS are there only where the switch measured them, which
//     it does from the eleventh packet on; before that it writes MOS 4.50 and
//     zeros (captures: json-bridge). RTPLost is its flaw_total: missing sequence
//     numbers, and two more for each flaw that follows another. JitterMS is the
//     square root of its jitter_max_variance: the largest standard deviation of
//     the packets' spacing, which it knows in whole milliseconds. Its MOS looks
//     at loss alone, and is 4.5 at most.
//   - Tenant, pool, SBC and revision are what the dialplan answer exported.
//     Node and cell are those that we connected to, so that the id of a leg
//     does not hang on a variable.
func (o origin) record(e *Event) cdr.Record {
	r := cdr.Record{
		Schema: cdr.SchemaVersion, Kind: cdr.Leg, Source: cmp.Or(o.source, cdr.SourceESL),
		ID:   cdr.NewID(o.cell, string(o.node), text(e.Leg)),
		Cell: o.cell, Node: o.node,
		SBC: bulkhead.SBCID(e.SBC), Pool: bulkhead.PoolID(e.Pool), Tenant: bulkhead.TenantID(e.Tenant),
		Revision: bulkhead.RevisionNumber(max(0, number(e.Revision))),

		Leg: text(e.Leg), Call: text(e.call()), SIPCallID: text(e.SIPCallID),
		Direction: e.direction(),
		Caller:    text(first(e.FromUser, e.CallerID)),
		Callee:    text(e.Destination),

		Start: moment(e.Created), Ring: moment(e.Progress), Answer: moment(e.Answered), End: moment(e.HungUp),
		Codec:  text(e.ReadCodec),
		RTPIn:  count(e.PacketsIn),
		RTPOut: count(e.PacketsOut),
	}
	r.Attrs = o.attrs(e)
	if media := moment(e.ProgressMedia); !media.IsZero() && (r.Ring.IsZero() || media.Before(r.Ring)) {
		r.Ring = media
	}
	o.locate(e, &r)
	return r
}

// close adds what only the end of a leg tells.
func (o origin) close(e *Event) cdr.Record {
	r := o.record(e)
	if r.End.IsZero() {
		r.End = moment(e.Timestamp)
	}
	r.Cause = text(e.Cause)
	if q := number(e.Q850); q > 0 && q < 128 {
		r.Q850 = int(q)
	}
	r.SIPCode = e.sipCode(!r.Answer.IsZero())
	r.HangupBy = e.hangupBy()
	if r.RTPIn != nil && *r.RTPIn > 0 && number(strings.Replace(e.Spacing, ".", "", 1)) > 0 {
		r.RTPLost = count(e.Flaws)
		if v := measured(e.Variance, math.MaxInt64); v != nil {
			*v = math.Round(math.Sqrt(*v)*1000) / 1000
			r.JitterMS = v
		}
		if m := measured(e.MOS, 5); m != nil && *m >= 1 {
			r.MOS = m
		}
	}
	e.quarantine(&r)
	return r
}

// measured reads a number from 0 to limit; nil when it is none.
func measured(s string, limit float64) *float64 {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f <= limit) {
		return nil
	}
	return &f
}

// hangupBy reads sip_hangup_disposition: recv_bye, send_bye, recv_cancel,
// send_cancel, recv_refuse, send_refuse (sofia_on_hangup of mod_sofia.c).
func (e *Event) hangupBy() string {
	switch {
	case strings.HasPrefix(e.Disposition, "recv_"):
		return cdr.HangupPeer
	case strings.HasPrefix(e.Disposition, "send_"):
		return cdr.HangupSwitch
	}
	return ""
}

// attrs collects what tenant rules may look at.
func (o origin) attrs(e *Event) map[string]string {
	var out map[string]string
	add := func(name, value string) {
		if value == "" {
			return
		}
		if out == nil {
			out = make(map[string]string, 4)
		}
		out[name] = text(value)
	}
	add("context", e.Context)
	add("profile", e.Profile)
	add("domain", e.Domain)
	add("account_code", e.Account)
	for _, name := range o.vars {
		add(cdr.AttrVar+name, e.Var(name))
	}
	return out
}

// locate fills in the tenant of a leg that has no answer of ours: one that
// just began, or that ended in the static 503 while configsvc was away. The
// SBC's headers count only on an inbound leg whose INVITE came from an SBC of
// the cell; anybody else could have written them too.
func (o origin) locate(e *Event, r *cdr.Record) {
	if e.Tenant != "" || e.SBC != "" || r.Direction != cdr.Inbound || o.sbcAt == nil {
		return
	}
	sbc, ok := o.sbcAt(peer(e.NetworkIP, e.NetworkPort))
	if !ok {
		return
	}
	r.SBC = sbc
	if isID(e.HeaderTenant) {
		r.Tenant = bulkhead.TenantID(e.HeaderTenant)
	}
	r.Revision = bulkhead.RevisionNumber(max(0, number(e.HeaderRevision)))
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// call names the A leg of the call that the leg belongs to.
func (e *Event) call() string {
	if e.direction() == cdr.Inbound {
		return e.Leg
	}
	other := ""
	if e.OtherType == "originator" {
		other = e.OtherLeg
	}
	return first(e.OriginatingLeg, e.Originator, other, e.Leg)
}

func (e *Event) direction() cdr.Direction {
	switch e.Direction {
	case "inbound":
		return cdr.Inbound
	case "outbound":
		return cdr.Outbound
	}
	return ""
}

// count reads a packet count; nil when the switch reported none.
func count(s string) *int64 {
	if s == "" {
		return nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return nil
	}
	return &n
}

// sipCode is the final SIP status of the leg's INVITE, 200 when answered.
//
// For an inbound leg it is what the switch sent (sofia_on_hangup of
// mod_sofia.c): the code of `respond`, of which only our own answers leave a
// trace; else the other leg's code; else one by the cause. For an outbound leg
// it is what came back, or 487 when the switch gave the leg up.
func (e *Event) sipCode(answered bool) int {
	if answered {
		return 200
	}
	if e.direction() == cdr.Inbound {
		switch {
		case e.Disposition == "recv_cancel", e.Cause == "ORIGINATOR_CANCEL":
			return 487
		case status(e.Status) != 0:
			return status(e.Status)
		case status(e.BridgeProtoCause) != 0:
			return status(e.BridgeProtoCause)
		}
		return statusOf(e.Cause)
	}
	for _, s := range []string{e.TermStatus, e.ProtoCause, e.FailureStatus} {
		if code := status(s); code != 0 {
			return code
		}
	}
	return statusOf(e.Cause)
}

// status reads "486" or "sip:486"; anything but a final status that is no
// success is 0.
func status(s string) int {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "sips:"), "sip:")
	if n := number(s); n >= 300 && n <= 699 {
		return int(n)
	}
	return 0
}

// statusOf is the SIP status that FreeSWITCH sends for a hangup cause
// (hangup_cause_to_sip of mod_sofia.c, after RFC 4497 section 8.4.1). Causes
// that it does not know are 480.
func statusOf(cause string) int {
	switch cause {
	case "":
		return 0
	case "UNALLOCATED_NUMBER", "NO_ROUTE_TRANSIT_NET", "NO_ROUTE_DESTINATION":
		return 404
	case "USER_BUSY":
		return 486
	case "NO_USER_RESPONSE":
		return 408
	case "CALL_REJECTED", "DECLINE":
		return 603
	case "NUMBER_CHANGED", "REDIRECTION_TO_NEW_DESTINATION":
		return 410
	case "DESTINATION_OUT_OF_ORDER", "INVALID_PROFILE":
		return 502
	case "INVALID_NUMBER_FORMAT", "INVALID_URL", "INVALID_GATEWAY":
		return 484
	case "FACILITY_REJECTED", "FACILITY_NOT_IMPLEMENTED", "SERVICE_NOT_IMPLEMENTED":
		return 501
	case "REQUESTED_CHAN_UNAVAIL", "NORMAL_CIRCUIT_CONGESTION", "NETWORK_OUT_OF_ORDER",
		"NORMAL_TEMPORARY_FAILURE", "SWITCH_CONGESTION", "GATEWAY_DOWN", "BEARERCAPABILITY_NOTAVAIL":
		return 503
	case "OUTGOING_CALL_BARRED", "INCOMING_CALL_BARRED", "BEARERCAPABILITY_NOTAUTH":
		return 403
	case "BEARERCAPABILITY_NOTIMPL", "INCOMPATIBLE_DESTINATION":
		return 488
	case "RECOVERY_ON_TIMER_EXPIRE":
		return 504
	case "ORIGINATOR_CANCEL":
		return 487
	case "EXCHANGE_ROUTING_ERROR":
		return 483
	case "BUSY_EVERYWHERE":
		return 600
	case "DOES_NOT_EXIST_ANYWHERE":
		return 604
	case "NOT_ACCEPTABLE":
		return 606
	case "UNWANTED":
		return 607
	}
	return 480
}
