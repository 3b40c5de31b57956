package freeswitchtest

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// newOutbound makes the B leg of a call, with the variables and their order of
// capture esl/json-bridge.txt, CHANNEL_CREATE of the outbound leg. Nil means
// that a limit of sessions is reached.
func newOutbound(a *leg, t dialTarget) *leg {
	l := newLeg(a.n, true)
	if !a.n.sessions.begin(l) {
		return nil
	}
	l.callUUID = a.uuid
	p := &l.prof
	p.direction, p.logical = "outbound", "outbound"
	p.username, p.ani, p.addr, p.context = a.prof.username, a.prof.ani, a.prof.addr, a.prof.context
	p.origName, p.origCID = a.prof.cidName, a.prof.cid
	p.cidName, p.cid = a.prof.cidName, a.prof.cid
	for _, from := range []fields{a.vars, t.vars} { // the dial string wins
		for name, dst := range map[string]*string{
			"effective_caller_id_name": &p.cidName, "origination_caller_id_name": &p.cidName,
			"effective_caller_id_number": &p.cid, "origination_caller_id_number": &p.cid,
		} {
			if v, ok := from.get(name); ok {
				*dst = v
			}
		}
	}
	p.calleeName, p.callee = "Outbound Call", t.user
	p.dest = t.user
	p.channel = "sofia/" + t.profile + "/" + t.user + "@" + t.host
	l.otherType, l.other = "originator", a.prof
	l.other.t = times{} // as captured: the originator's times are 0
	l.sent = [2]string{p.cidName, p.cid}
	l.inherit(a, t)
	return l
}

// inherit sets what the B leg has from the start.
func (l *leg) inherit(a *leg, t dialTarget) {
	v := &l.vars
	ip := l.n.stack.Addr().Addr().String()
	v.set("direction", "outbound")
	v.set("is_outbound", "true")
	v.set("uuid", l.uuid)
	v.set("session_id", strconv.Itoa(l.session))
	v.set("sip_local_network_addr", ip)
	v.set("sip_profile_name", t.profile)
	v.set("text_media_flow", "disabled")
	v.set("channel_name", l.prof.channel)
	v.set("sip_destination_url", "sip:"+t.user+"@"+t.host)
	// X- headers of A go to B unless A says otherwise (sip_h_X-Tenant is in the
	// captured B leg).
	if copyThem, ok := a.vars.get("sip_copy_custom_headers"); !ok || copyThem != "false" {
		for _, f := range a.vars {
			if strings.HasPrefix(f.name, "sip_h_X-") {
				v.set(f.name, f.value)
			}
		}
	}
	if cid, ok := a.vars.get("sip_cid_type"); ok {
		v.set("sip_cid_type", cid)
	}
	hops, _ := a.vars.get("max_forwards")
	n, _ := strconv.Atoi(hops) // it was a number when it came
	v.set("max_forwards", strconv.Itoa(n-1))
	v.set("originator_codec", codecSpec(a.codec))
	v.set("originator", a.uuid)
	v.set("signal_bond", a.uuid)
	if sdp, ok := a.vars.get("switch_r_sdp"); ok {
		v.set("switch_m_sdp", sdp)
	}
	v.set("call_uuid", a.uuid)
	if list, ok := a.vars.get("export_vars"); ok {
		v.set("export_vars", list)
		for _, name := range strings.Split(list, ",") {
			if val, ok := a.vars.get(name); ok {
				v.set(name, val)
			}
		}
	}
	for _, f := range t.vars {
		v.set(f.name, f.value)
	}
	v.set("originate_early_media", "true")
	v.set("originating_leg_uuid", a.uuid)
	v.set("originate_endpoint", "sofia")
}

// describeOffer sets what the leg offers, and to whom.
func (l *leg) describeOffer(t dialTarget, codec siptest.Codec) {
	v := &l.vars
	l.localSDP = describe(l.media.Addr(), codec, 101, true)
	v.set("rtp_use_codec_string", codecSpec(codec))
	l.setLocalMedia()
	v.set("audio_media_flow", "sendrecv")
	v.set("video_media_flow", "inactive")
	v.set("rtp_local_sdp_str", string(l.localSDP))
	v.set("sip_outgoing_contact_uri", "<sip:mod_sofia@"+l.n.stack.Addr().String()+">")
	v.set("sip_req_uri", t.user+"@"+t.host)
	v.set("sip_to_host", t.host)
	v.set("sip_from_host", l.n.stack.Addr().Addr().String())
	l.setProfile()
}

// invitation is the INVITE of the B leg. With fs_path it goes there and the
// Request-URI stays; no Route is added (source: sofia_glue.c).
func (l *leg) invitation(t dialTarget) (siptest.Invitation, error) {
	hop := t.path
	if hop == "" {
		hop = t.host
	}
	dest, err := parseHop(hop)
	if err != nil {
		return siptest.Invitation{}, err
	}
	uri := sip.Uri{Scheme: "sip", User: t.user, Host: t.host}
	if ap, err := netip.ParseAddrPort(t.host); err == nil {
		uri.Host, uri.Port = hostOf(ap.Addr()), int(ap.Port())
	} else if host, port, ok := strings.Cut(t.host, ":"); ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return siptest.Invitation{}, fmt.Errorf("port of %q: %w", clip(t.host, 80), err)
		}
		uri.Host, uri.Port = host, int(n)
	}
	inv := siptest.Invitation{
		URI: uri, Dest: dest, Contact: "mod_sofia", CallID: newUUID(), Body: l.localSDP,
		From:     sip.Uri{Scheme: "sip", User: l.prof.cid, Host: hostOf(l.n.stack.Addr().Addr())},
		FromName: l.prof.cidName,
	}
	hops, _ := l.vars.get("max_forwards")
	n, err := strconv.ParseUint(hops, 10, 8)
	if err != nil {
		return siptest.Invitation{}, fmt.Errorf("max_forwards %q: %w", clip(hops, 20), err)
	}
	mf := sip.MaxForwardsHeader(uint32(n))
	inv.Headers = append(inv.Headers, &mf)
	if v, ok := l.vars.get("sip_cid_type"); ok && v == "pid" {
		inv.Headers = append(inv.Headers, sip.NewHeader("P-Asserted-Identity",
			fmt.Sprintf("%q <sip:%s@%s>", l.prof.cidName, l.prof.cid, hostOf(l.n.stack.Addr().Addr()))))
	}
	for _, f := range l.vars {
		if name, ok := strings.CutPrefix(f.name, "sip_h_"); ok {
			inv.Headers = append(inv.Headers, sip.NewHeader(name, f.value))
		}
	}
	return inv, nil
}

// parseHop reads ip[:port]; 5060 without one. There is no DNS here.
func parseHop(s string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap, nil
	}
	ip, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("next hop %q is no numeric address", clip(s, 80))
	}
	return netip.AddrPortFrom(ip, 5060), nil
}

func hostOf(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// setResponse sets what a response other than a refusal tells.
func (l *leg) setResponse(res *sip.Response) {
	v := &l.vars
	l.setPeer(res)
	contact := res.Contact()
	if contact != nil {
		v.set("sip_recover_contact", contact.Value())
	}
	via := fullVia(res)
	v.set("sip_full_via", via)
	v.set("sip_recover_via", via)
	v.setIf("sip_from_display", l.prof.cidName)
	v.set("sip_full_from", res.From().Value())
	v.set("sip_full_to", res.To().Value())
	l.setURI("sip_from", res.From().Address)
	l.setURI("sip_to", res.To().Address)
	if contact != nil {
		v.setIf("sip_contact_params", contact.Address.UriParams.String())
		u := contact.Address
		if u.User == "" {
			u.User = "nobody" // as captured
		}
		l.setURI("sip_contact", u)
	}
	v.setIf("sip_to_tag", tag(res.To().Params))
	v.set("sip_from_tag", tag(res.From().Params))
	v.set("sip_cseq", strconv.FormatUint(uint64(res.CSeq().SeqNo), 10))
	v.set("sip_call_id", res.CallID().Value())
}

// setPeer sets where a response came from.
func (l *leg) setPeer(res *sip.Response) {
	src, err := netip.ParseAddrPort(res.Source())
	if err != nil {
		return
	}
	v, ip, port := &l.vars, src.Addr().String(), strconv.Itoa(int(src.Port()))
	v.set("sip_local_network_addr", l.n.stack.Addr().Addr().String())
	v.set("sip_reply_host", ip)
	v.set("sip_reply_port", port)
	v.set("sip_network_ip", ip)
	v.set("sip_network_port", port)
}

// setRefusal sets what a refusal tells (capture esl/json-bridge-busy.txt).
func (l *leg) setRefusal(callID string, res *sip.Response, code int, text string) {
	v := &l.vars
	v.set("sip_call_id", callID)
	if res != nil {
		l.setPeer(res)
	}
	v.set("sip_hangup_disposition", "recv_refuse")
	v.set("sip_invite_failure_status", strconv.Itoa(code))
	v.set("sip_invite_failure_phrase", text)
	l.setTerm(code, sipCause(code))
}
