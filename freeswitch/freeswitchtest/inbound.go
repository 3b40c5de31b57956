package freeswitchtest

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// newInbound makes the leg of an INVITE, with the variables and their order of
// capture xml_curl/dialplan-bridge.fields.txt. Nil means that a limit of
// sessions is reached.
func newInbound(n *Node, inc *siptest.Incoming) *leg {
	l := newLeg(n, false)
	if !n.sessions.begin(l) {
		return nil
	}
	req := inc.Request()
	from := req.From()
	l.prof.direction, l.prof.logical = "inbound", "inbound"
	l.prof.addr = inc.Source().Addr().String()
	l.prof.dest = neutral(req.Recipient.User)
	l.prof.context = n.cfg.Context
	l.prof.cid, l.prof.cidName = from.Address.User, from.DisplayName
	pai := identity(headerValue(req, "P-Asserted-Identity"))
	if pai != "" { // fact 3: the caller's number is what P-Asserted-Identity says
		l.prof.cid = pai
	}
	if l.prof.cidName == "" {
		l.prof.cidName = l.prof.cid
	}
	l.prof.cid, l.prof.cidName = neutral(l.prof.cid), neutral(strings.Trim(l.prof.cidName, `"`))
	l.prof.username, l.prof.ani = l.prof.cid, l.prof.cid
	l.prof.origName, l.prof.origCID = l.prof.cidName, l.prof.cid
	l.prof.channel = neutral("sofia/" + n.profile + "/" + hostPart(from.Address))
	l.setInvite(inc, pai)
	return l
}

// setInvite sets what the INVITE tells. A value with "${" sets no variable at
// all (capture failures/preprocessing-of-http-answers.txt).
func (l *leg) setInvite(inc *siptest.Incoming, pai string) {
	req, src := inc.Request(), inc.Source()
	v := &l.vars
	set := func(name, value string) {
		if value != "" && !strings.Contains(value, "${") {
			v.set(name, value)
		}
	}
	ip, port := src.Addr().String(), strconv.Itoa(int(src.Port()))
	local := l.n.stack.Addr()
	from, to := req.From(), req.To()

	set("direction", "inbound")
	set("uuid", l.uuid)
	set("call_uuid", l.uuid)
	set("session_id", strconv.Itoa(l.session))
	l.setURI("sip_from", from.Address)
	set("video_media_flow", "disabled")
	set("text_media_flow", "disabled")
	set("channel_name", l.prof.channel)
	set("sip_call_id", req.CallID().Value())
	set("sip_local_network_addr", local.Addr().String())
	set("sip_network_ip", ip)
	set("sip_network_port", port)
	set("sip_invite_stamp", strconv.FormatInt(l.prof.t.created, 10))
	set("sip_received_ip", ip)
	set("sip_received_port", port)
	set("sip_via_protocol", "udp")
	set("sip_from_user_stripped", strings.TrimPrefix(from.Address.User, "+"))
	set("sip_from_tag", tag(from.Params))
	l.setProfile()
	set("sip_P-Asserted-Identity", pai)
	if pai != "" {
		set("sip_cid_type", "pid")
	}
	set("sip_full_via", fullVia(req))
	set("sip_from_display", strings.Trim(from.DisplayName, `"`))
	set("sip_full_from", from.Value())
	set("sip_full_to", to.Value())
	l.setURI("sip_req", req.Recipient)
	l.setURI("sip_to", to.Address)
	if c := req.Contact(); c != nil {
		l.setURI("sip_contact", c.Address)
	}
	set("sip_user_agent", headerValue(req, "User-Agent"))
	via := req.Via()
	set("sip_via_host", via.Host)
	if via.Port > 0 {
		set("sip_via_port", strconv.Itoa(via.Port))
	}
	set("max_forwards", maxForwards(req))
	for _, h := range req.Headers() {
		if name := h.Name(); len(name) > 2 && strings.EqualFold(name[:2], "X-") {
			set("sip_h_"+name, h.Value())
		}
	}
	v.setIf("switch_r_sdp", string(req.Body()))
}

func (l *leg) setProfile() {
	v := &l.vars
	name := l.n.profile
	if l.outbound {
		v.set("sofia_profile_name", name)
		v.set("recovery_profile_name", name)
		v.set("sofia_profile_url", "sip:mod_sofia@"+l.n.stack.Addr().String())
		return
	}
	v.set("sofia_profile_name", name)
	v.set("sofia_profile_url", "sip:mod_sofia@"+l.n.stack.Addr().String())
	v.set("recovery_profile_name", name)
}

// setURI sets the user, port, uri and host of an address. The order is the
// captured one; what the address lacks is left out.
func (l *leg) setURI(prefix string, u sip.Uri) {
	set := func(name, value string) {
		if value != "" && !strings.Contains(value, "${") {
			l.vars.set(prefix+name, value)
		}
	}
	set("_user", u.User)
	if u.Port > 0 {
		set("_port", strconv.Itoa(u.Port))
	}
	set("_uri", hostPart(u))
	set("_host", u.Host)
}

// negotiate chooses the codec of an INVITE's offer and opens the RTP port.
func (l *leg) negotiate(offer []byte) error {
	remote, err := siptest.ParseSDP(offer)
	if err != nil {
		return err
	}
	codec, err := remote.Choose()
	if err != nil {
		return err
	}
	if l.media, err = l.n.media.Open(); err != nil {
		return err
	}
	l.setCodec(codec, remote)
	l.vars.set("endpoint_disposition", "RECEIVED")
	return nil
}

// hostPart is user@host[:port].
func hostPart(u sip.Uri) string {
	s := u.Host
	if u.Port > 0 {
		s = fmt.Sprintf("%s:%d", u.Host, u.Port)
	}
	if u.User != "" {
		s = u.User + "@" + s
	}
	return s
}

// identity is the user part of the address of a P-Asserted-Identity.
func identity(h string) string {
	_, rest, ok := strings.Cut(h, "sip:")
	if !ok {
		return ""
	}
	user, _, ok := strings.Cut(rest, "@")
	if !ok || strings.ContainsAny(user, "<> ") {
		return ""
	}
	return user
}

// fullVia joins all Via headers, the topmost first.
func fullVia(msg interface{ GetHeaders(string) []sip.Header }) string {
	var all []string
	for _, h := range msg.GetHeaders("Via") {
		all = append(all, h.Value())
	}
	return strings.Join(all, ",")
}

func maxForwards(req *sip.Request) string {
	if mf := req.MaxForwards(); mf != nil {
		return strconv.Itoa(int(mf.Val()))
	}
	return "70"
}

func headerValue(msg interface{ GetHeader(string) sip.Header }, name string) string {
	if h := msg.GetHeader(name); h != nil {
		return h.Value()
	}
	return ""
}

func tag(p sip.HeaderParams) string {
	t, _ := p.Get("tag")
	return t
}
