package asterisk

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// maxSteps bounds the steps of one answer.
const maxSteps = 99

// unrenderable is the answer to a plan that holds what must not be written.
var unrenderable = route.Reject{Status: 503, Cause: 41, Reason: "the plan cannot be written for Asterisk"}

// plan writes a route.Plan as fields that the shipped dialplan follows.
//
// Steps are numbered from 1; the field s is the first, and a letter with a
// step's number is a field of that step: a1 is what step 1 does, b1 the step
// that follows it when the callee is busy. 0 or no field: the call ends. Every
// value is made of characters that mean nothing to the dialplan, but for & and /
// in dial strings, which are made here.
type plan struct {
	dst    []byte
	tenant bulkhead.TenantID
	sbc    bulkhead.SBCID
	steps  int
	err    error
}

// renderPlan appends the answer for a plan.
func renderPlan(dst []byte, p route.Plan, limits bulkhead.Limits) ([]byte, string, *route.Reject) {
	start := len(dst)
	w := &plan{dst: append(dst, "v=1&do=run"...), tenant: p.Tenant, sbc: p.SBC}
	w.field("rev", "", strconv.FormatUint(uint64(p.Revision), 10))
	w.head(p, limits)
	first := w.list(p.Actions)
	w.field("s", "", strconv.Itoa(first))
	if w.err != nil || first == 0 {
		w = &plan{dst: append(w.dst[:start], "v=1&do=run"...)}
		w.field("s", "", strconv.Itoa(w.reject(unrenderable)))
		return append(w.dst, '\n'), "reject", &unrenderable
	}
	outcome, reject := "dial", (*route.Reject)(nil)
	switch a := p.Actions[0].(type) {
	case route.Play:
		outcome = "play"
	case route.Voicemail:
		outcome = "voicemail"
	case route.Handover:
		outcome = "handover"
	case route.Reject:
		outcome, reject = "reject", &a
	}
	return append(w.dst, '\n'), outcome, reject
}

// field appends name followed by step = value. Empty values are left out.
func (w *plan) field(name, step, value string) {
	if value == "" {
		return
	}
	w.dst = append(append(append(append(w.dst, '&'), name...), step...), '=')
	w.dst = appendEscaped(w.dst, value)
}

func (w *plan) number(name, step string, n int) {
	if n != 0 {
		w.field(name, step, strconv.Itoa(n))
	}
}

// must notes that something may not be written.
func (w *plan) must(ok bool, what string) {
	if !ok && w.err == nil {
		w.err = fmt.Errorf("%s has a form that must not get into a dialplan: %w", what, bulkhead.Invalid)
	}
}

// head writes what is true of the whole call.
func (w *plan) head(p route.Plan, limits bulkhead.Limits) {
	w.must(p.Tenant == "" || only(string(p.Tenant), 63, "-_"), "the tenant")
	w.field("t", "", string(p.Tenant))
	w.number("max", "", p.MaxDuration)
	if p.Record {
		w.field("rec", "", "1")
	}
	if p.Tap {
		w.field("tap", "", "1")
	}
	if p.Managed && !p.Emergency {
		w.number("limit", "", limits.Calls)
	}
	w.must(p.CallerID.Number == "" || only(p.CallerID.Number, 64, "+-_"), "the caller id")
	w.field("cid", "", p.CallerID.Number)
	w.field("cname", "", plainName(p.CallerID.Name))
	// Endpoints of a tenant have its codecs; an SBC's are all tenants'.
	if len(p.Codecs) > 0 && p.SBC != "" {
		w.field("codecs", "", codecNames(p.Codecs))
	}
	n := 0
	for _, h := range p.Headers {
		// The INVITE to a trunk is a new one, so that there is nothing to remove.
		if h.Action == bulkhead.RemoveHeader {
			continue
		}
		w.must(only(h.Name, 64, "-") && only(h.Value, 128, " .:@+/_=-"), "a header rule")
		n++
		w.must(n <= headerSlots, "the number of header rules")
		w.field("hn", strconv.Itoa(n), h.Name)
		w.field("hv", strconv.Itoa(n), h.Value)
	}
}

// plainName leaves out of a display name what means something to SIP or a dialplan.
func plainName(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == '�' || strings.ContainsRune("\"\\<>;,&|$[]{}()%^~`'", c) {
			return -1
		}
		return c
	}, s)
}

// list writes actions and returns the first one's step. They are written from
// the end, so that each knows what follows it.
func (w *plan) list(actions []route.Action) (first int) {
	for i := len(actions) - 1; i >= 0; i-- {
		first = w.action(actions[i], first)
	}
	return first
}

// step begins a step.
func (w *plan) step(does string, next int) (n int, id string) {
	w.steps++
	w.must(w.steps <= maxSteps, "the number of steps")
	id = strconv.Itoa(w.steps)
	w.field("a", id, does)
	w.number("g", id, next)
	return w.steps, id
}

func (w *plan) action(a route.Action, next int) int {
	if w.err != nil {
		return 0
	}
	switch a := a.(type) {
	case route.Dial:
		return w.dial(&a)
	case route.Play:
		// Asterisk finds the ending that suits the call.
		file := a.File
		if i := strings.LastIndexByte(file, '.'); i > 0 {
			file = file[:i]
		}
		w.must(only(file, 200, "-_/") && !strings.Contains(file, "//") && file[0] != '/', "the sound file")
		n, id := w.step("play", next)
		w.field("o", id, file)
		return n
	case route.Voicemail:
		w.must(isExtension(a.Box) && w.tenant != "", "the mailbox")
		n, id := w.step("voicemail", next)
		w.field("o", id, a.Box+"@"+string(w.tenant))
		return n
	case route.Handover:
		return w.handover(a, next)
	case route.Reject:
		return w.reject(a)
	}
	w.must(false, fmt.Sprintf("an action %T", a))
	return 0
}

func (w *plan) handover(h route.Handover, next int) int {
	w.must(only(h.Value, 64, "-_.@"), "the name of a handover")
	w.must(h.Number == "" || only(h.Number, 64, "+*#-_."), "the number of a handover")
	kind := ""
	switch h.Kind {
	case bulkhead.HandoverContext, bulkhead.HandoverIVR, bulkhead.HandoverQueue, bulkhead.HandoverConference:
		kind = string(h.Kind)
	default:
		w.must(false, "the kind of a handover")
	}
	n, id := w.step(kind, next)
	w.field("o", id, h.Value)
	if h.Kind == bulkhead.HandoverContext {
		w.field("x", id, h.Number)
	}
	return n
}

func (w *plan) reject(r route.Reject) int {
	w.must(r.Status >= 400 && r.Status <= 699, "the status of a rejection")
	n, id := w.step("reject", 0)
	w.number("o", id, r.Status)
	w.number("x", id, min(max(r.Cause, 1), 127))
	return n
}

// dial writes the legs that ring at once as one step, those that ring one after
// the other as one each.
func (w *plan) dial(d *route.Dial) int {
	w.must(len(d.Legs) > 0, "a dial without legs")
	var after [3]int // busy, no answer, unavailable
	otherwise := -1
	for i, list := range [][]route.Action{d.Busy, d.NoAnswer, d.Unavailable} {
		if len(list) == 0 {
			if otherwise < 0 {
				otherwise = w.list(d.Otherwise)
			}
			after[i] = otherwise
			continue
		}
		after[i] = w.list(list)
	}
	if !d.Sequential || len(d.Legs) == 1 {
		return w.legs(d, d.Legs, after, 0)
	}
	next := 0
	for i := len(d.Legs) - 1; i >= 0; i-- {
		next = w.legs(d, d.Legs[i:i+1], after, next)
	}
	return next
}

// legs writes a step that rings legs at once.
func (w *plan) legs(d *route.Dial, legs []route.Leg, after [3]int, sibling int) int {
	n, id := w.step("dial", 0)
	// One call shows one number to all its carriers.
	var to []string
	callerID, anonymous := "", ""
	for _, l := range legs {
		switch l := l.(type) {
		case route.DialUser:
			to = append(to, w.user(l))
		case route.DialTrunk:
			to = append(to, w.trunk(l))
			w.must(l.CallerID == "" || only(l.CallerID, 15, ""), "the caller id of a trunk")
			if callerID == "" {
				callerID = l.CallerID
			}
			if l.Anonymous {
				anonymous = "1"
			}
		default:
			w.must(false, fmt.Sprintf("a leg %T", l))
		}
	}
	w.field("o", id, strings.Join(to, "&"))
	w.field("k", id, callerID)
	w.field("y", id, anonymous)
	w.number("w", id, d.Timeout)
	w.number("b", id, after[0])
	w.number("n", id, after[1])
	w.number("u", id, after[2])
	if sibling != 0 {
		w.number("f", id, sibling)
		if len(d.Causes) == 0 {
			w.field("c", id, "any")
		}
		for _, c := range d.Causes {
			w.field("c", id+"_"+strconv.Itoa(c), "1")
		}
	}
	return n
}

// user is the dial string of a user: where he is registered on this Asterisk, or
// by way of the SBC.
func (w *plan) user(l route.DialUser) string {
	w.must(isExtension(l.Extension) && isHost(l.Realm), "a user")
	if l.SBC == "" {
		return "PJSIP/" + userName(l.Extension, l.Realm)
	}
	w.must(only(string(w.sbc), 63, "-_"), "the SBC")
	return "PJSIP/" + sbcPrefix + string(w.sbc) + "/sip:" + l.Extension + "@" + l.Realm
}

func (w *plan) trunk(l route.DialTrunk) string {
	w.must(isName(l.Trunk) && w.tenant != "" && only(l.Number, 32, "") && l.Port != 0, "a trunk")
	host := l.Host
	if a, err := netip.ParseAddr(host); err == nil {
		host = a.WithZone("").String()
	} else {
		w.must(isHost(host), "a trunk's host")
	}
	return "PJSIP/" + trunkName(w.tenant, l.Trunk) + "/sip:" + l.Number + "@" + net.JoinHostPort(host, strconv.Itoa(int(l.Port)))
}
