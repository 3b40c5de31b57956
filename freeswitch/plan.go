package freeswitch

import (
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// step is one application that the switch is to run; with a name, it sets a
// variable of that name to data.
type step struct{ application, name, data string }

// script is a plan, or what is left of it, in the switch's words.
type script struct {
	plan *route.Plan
	req  *Request
	// via: legs that go by way of the SBC carry its address in the variable
	// sip_route_uri instead of behind a semicolon, which separates the fields
	// of an answer to mod_curl. Both become the same proxy of the INVITE
	// (sofia_glue.c, NUTAG_PROXY).
	via    bool
	steps  []step
	reject *route.Reject // what the call is rejected with, nil if it is not
}

func (s *script) add(application, data string) {
	s.steps = append(s.steps, step{application, "", data})
}

func (s *script) set(name, value string) { s.steps = append(s.steps, step{"set", name, value}) }

// export sets a variable on the legs that the channel places, too.
func (s *script) export(name, value string) { s.steps = append(s.steps, step{"export", name, value}) }

// begin appends what holds for the whole call; false if a string of the plan
// is not on its allow-list.
func (s *script) begin(node bulkhead.NodeID) bool {
	s.exports(node)
	p := s.plan
	if _, ok := p.Actions[0].(route.Reject); ok && len(p.Actions) == 1 {
		return true
	}
	if p.MaxDuration > 0 {
		s.set("execute_on_answer", "sched_hangup +"+strconv.Itoa(p.MaxDuration)+" ALLOTTED_TIMEOUT")
	}
	if p.Tap {
		s.export(varTap, "true")
	}
	if name := displayName(p.CallerID.Name); name != "" {
		s.set("effective_caller_id_name", name)
	}
	if n := p.CallerID.Number; n != "" {
		if !isToken(n) {
			return false
		}
		s.set("effective_caller_id_number", n)
	}
	// The SBC's headers must not travel on to phones and carriers, where sofia
	// would copy them.
	s.set("sip_copy_custom_headers", "false")
	if p.SBC != "" {
		s.set(decided, "true")
	}
	s.set("hangup_after_bridge", "true")
	if len(p.Codecs) > 0 {
		for _, c := range p.Codecs {
			if !only(c, 32, "") {
				return false
			}
		}
		s.export("absolute_codec_string", strings.Join(p.Codecs, ","))
	}
	if p.Record && isID(string(p.Tenant)) {
		s.set("RECORD_ANSWER_REQ", "true")
		s.add("record_session", recordings+"/bulkhead/"+string(p.Tenant)+"/"+thisCall+".wav")
	}
	if branches(p.Actions, s.via) {
		return s.remember()
	}
	return true
}

// decided puts a header into what the switch answers the SBC with, its final
// responses included (mod_sofia.c, sofia_on_hangup). A 5xx that a carrier or
// phone gave is told by it from the switch's own, after which another node is
// asked.
const decided = "sip_rh_X-Bulkhead-Decided"

// What stands in an answer to be expanded by the switch: its own folder of
// recordings, the id of the channel, and what became of the last bridge. None
// of them can hold a caller's text.
const (
	recordings = "${recordings_dir}"
	thisCall   = "${uuid}"
	lastCause  = "${originate_failed_cause}"
)

// exports appends what the channel and the legs it places are to carry. What
// is not known or has not the form of an id is left out.
func (s *script) exports(node bulkhead.NodeID) {
	p := s.plan
	for _, v := range [...]struct{ name, value string }{
		{varTenant, string(p.Tenant)},
		{varPool, string(p.Pool)},
		{varNode, string(node)},
		{varSBC, string(p.SBC)},
		{varCell, string(p.Cell)},
	} {
		if isID(v.value) {
			s.export(v.name, v.value)
		}
	}
	s.export(varRevision, strconv.FormatUint(uint64(p.Revision), 10))
}

// actions appends a list of a plan's actions. at is where the list is in the
// plan; see position.
func (s *script) actions(list []route.Action, at position) bool {
	for i, a := range list {
		if !s.action(a, at.item(i)) {
			return false
		}
		if s.reject != nil {
			break
		}
	}
	return len(list) > 0
}

func (s *script) action(a route.Action, at position) bool {
	switch a := a.(type) {
	case route.Dial:
		return s.dial(&a, at, 0)
	case route.Play:
		if !isFile(a.File) {
			return false
		}
		s.add("answer", "")
		s.add("playback", a.File)
		return true
	case route.Voicemail:
		if !isToken(a.Box) || !isHost(a.Realm) {
			return false
		}
		s.add("answer", "")
		s.add("voicemail", "default "+a.Realm+" "+a.Box)
		return true
	case route.Handover:
		return s.handover(&a)
	case route.Reject:
		s.respond(a)
		return true
	}
	return false
}

func (s *script) handover(a *route.Handover) bool {
	if !only(a.Value, 64, "-_.@") {
		return false
	}
	switch a.Kind {
	case bulkhead.HandoverContext:
		if !isContext(a.Value) || !isDialled(a.Number) || !isContext(s.req.Context) {
			return false
		}
		// Each transfer is a new question, and variables are all that it brings:
		// those say that the call is not ours any more, and which context is.
		s.set(varHandover, a.Value)
		s.set(varContext, s.req.Context)
		s.add("transfer", a.Number+" XML "+a.Value)
	case bulkhead.HandoverQueue:
		s.add("answer", "")
		s.add("callcenter", a.Value)
	case bulkhead.HandoverIVR:
		s.add("answer", "")
		s.add("ivr", a.Value)
	case bulkhead.HandoverConference:
		s.add("answer", "")
		s.add("conference", a.Value)
	default:
		return false
	}
	return true
}

// dial appends the legs of a Dial from the given one on, and what follows when
// none of them answers.
func (s *script) dial(d *route.Dial, at position, from int) bool {
	follow := len(d.Busy)+len(d.NoAnswer)+len(d.Unavailable)+len(d.Otherwise) > 0
	if from >= len(d.Legs) {
		return false
	}
	if !d.Sequential {
		return s.bridge(d, d.Legs, follow, "true") && (!follow || s.ask(at))
	}
	for i := from; i < len(d.Legs); i++ {
		last := i == len(d.Legs)-1
		on := "true"
		if len(d.Causes) > 0 && !follow {
			on = causeList(d.Causes)
		}
		if !s.bridge(d, d.Legs[i:i+1], follow || !last, on) {
			return false
		}
		if follow && (last || len(d.Causes) > 0) || s.via && !last {
			return s.ask(at.leg(i)) // the answer goes on with the next leg, or with what happened
		}
	}
	return true
}

// bridge appends one bridge. more says that something follows if it fails,
// after the causes in on.
func (s *script) bridge(d *route.Dial, legs []route.Leg, more bool, on string) bool {
	// Without the variable FreeSWITCH goes on after some causes (switch_channel.c).
	if !more {
		on = "false"
	}
	s.set("continue_on_fail", on)
	var common []string
	if d.Timeout > 0 {
		common = append(common, "originate_timeout="+strconv.Itoa(d.Timeout))
	}
	if more || len(legs) > 1 {
		// Else the first leg with early media wins, or what comes after it is lost.
		common = append(common, "ignore_early_media=ring_ready")
	}
	var b strings.Builder
	for i, l := range legs {
		vars, to, ok := s.leg(l)
		if !ok {
			return false
		}
		switch {
		case len(legs) == 1:
			brackets(&b, '{', append(common, vars...))
		case i == 0:
			brackets(&b, '{', common)
			brackets(&b, '[', vars)
		default:
			b.WriteByte(',')
			brackets(&b, '[', vars)
		}
		b.WriteString(to)
	}
	s.add("bridge", b.String())
	return true
}

func brackets(b *strings.Builder, open byte, vars []string) {
	if len(vars) == 0 {
		return
	}
	b.WriteByte(open)
	b.WriteString(strings.Join(vars, ","))
	b.WriteByte(open + 2) // } and ] stand two behind { and [
}

// leg returns a leg's variables and its dial string.
func (s *script) leg(l route.Leg) (vars []string, to string, ok bool) {
	switch a := l.(type) {
	case route.DialUser:
		if !isToken(a.Extension) || !isHost(a.Realm) {
			return nil, "", false
		}
		switch {
		case a.SBC == "": // he is registered here: the directory says where
			return nil, "user/" + a.Extension + "@" + a.Realm, true
		case !isAddrPort(a.SBC):
			return nil, "", false
		case s.via:
			return []string{"sip_route_uri=sip:" + a.SBC}, s.profile() + a.Extension + "@" + a.Realm, true
		}
		return nil, s.profile() + a.Extension + "@" + a.Realm + ";fs_path=sip:" + a.SBC, true
	case route.DialTrunk:
		return s.trunk(&a)
	}
	return nil, "", false
}

func (s *script) trunk(a *route.DialTrunk) (vars []string, to string, ok bool) {
	host, fine := hostPort(a.Host, a.Port)
	if !fine || !isDigits(a.Number) || (a.CallerID != "" && !isDigits(a.CallerID)) {
		return nil, "", false
	}
	switch {
	case a.Anonymous: // RFC 3323 section 4.1
		vars = append(vars, "origination_caller_id_number=anonymous", "origination_caller_id_name=Anonymous", "sip_cid_type=none", "sip_h_Privacy=id")
	case a.CallerID != "": // the name, too: a user's own is not for the carrier
		vars = append(vars, "origination_caller_id_number="+a.CallerID, "origination_caller_id_name="+a.CallerID)
	}
	for _, h := range s.plan.Headers {
		// Nothing of the caller's is copied, so there is nothing to remove.
		if h.Action == bulkhead.RemoveHeader {
			continue
		}
		if !only(h.Name, 64, "-") || !only(h.Value, 128, " .:@+/_=-") {
			return nil, "", false
		}
		vars = append(vars, "sip_h_"+h.Name+"="+h.Value)
	}
	if a.Gateway {
		if !isID(string(s.plan.Tenant)) || !isID(a.Trunk) {
			return nil, "", false
		}
		return vars, "sofia/gateway/" + gatewayName(s.plan.Tenant, a.Trunk) + "/" + a.Number, true
	}
	return vars, s.profile() + a.Number + "@" + host, true
}

// profile returns the beginning of dial strings: the shipped profile, or,
// without an SBC, the operator's own that the call came in by.
func (s *script) profile() string {
	if s.plan.SBC == "" && isToken(s.req.Profile) {
		return "sofia/" + s.req.Profile + "/"
	}
	return "sofia/internal/"
}

// gatewayName names the gateway of a tenant's trunk. Ids have no dots.
func gatewayName(t bulkhead.TenantID, trunk string) string {
	return "bulkhead." + string(t) + "." + trunk
}

// respond appends the rejection of a call.
func (s *script) respond(r route.Reject) {
	if r.Status < 400 || r.Status > 699 {
		r = unrenderable
	}
	s.reject = &r
	code := strconv.Itoa(r.Status)
	s.set(varStatus, code)
	s.add("respond", code+" "+phrase(r.Status))
}

// causeList names Q.850 causes for continue_on_fail, and those of the switch's
// own that say that a gateway is of no use.
func causeList(causes []int) string {
	list := make([]string, 0, len(causes)+3)
	for _, c := range slices.Concat(causes, []int{808, 809, 811}) { // INVALID_GATEWAY, GATEWAY_DOWN, INVALID_PROFILE
		list = append(list, strconv.Itoa(c))
	}
	return strings.Join(list, ",")
}

// displayName returns what of a name may be shown: letters, digits, space and
// a few marks, at most 64 bytes.
func displayName(name string) string {
	var b strings.Builder
	for _, r := range name {
		if r == utf8.RuneError || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(" -_.", r) {
			continue
		}
		if b.Len()+utf8.RuneLen(r) > 64 {
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

// isFile tells a path below the switch's folder of sounds.
func isFile(s string) bool {
	return only(s, 255, "-_/.") && s[0] != '/' && !strings.Contains(s, "..")
}

// isDialled tells what may be dialled: an extension or a number.
func isDialled(s string) bool { return only(s, 64, "-_.+*#") }
