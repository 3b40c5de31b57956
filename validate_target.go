package bulkhead

import (
	"errors"
	"fmt"
	"strconv"
)

// Bounds of what a target may lead to.
const (
	// MaxTargetDepth is how many targets may follow one another.
	MaxTargetDepth = 8
	// MaxTargetSteps is how many legs and other steps a target may come to.
	MaxTargetSteps = 64
)

// targets checks a tenant's targets.
type targets struct {
	t             *Tenant
	users         map[string]*User
	groups        map[string]*Group
	schedules     map[string]*Schedule
	numbers       map[string]*Number
	announcements map[string]bool
	pbx           map[string]bool
	known         map[Target]reach
	sizes         sizes
	errs          []error
}

// reach is what a target comes to.
type reach struct {
	depth, steps int
	bytes        int  // of an answer, at most
	open         bool // it is being looked at: who comes by again goes in a circle
	loop         bool
}

func (t *Tenant) validTargets() error {
	v := &targets{
		t: t, users: make(map[string]*User, len(t.Users)), groups: map[string]*Group{}, schedules: map[string]*Schedule{},
		numbers: make(map[string]*Number, len(t.Numbers)), announcements: map[string]bool{}, pbx: map[string]bool{}, known: map[Target]reach{}, sizes: sizesOf(t),
	}
	for i := range t.Users {
		v.users[t.Users[i].Extension] = &t.Users[i]
	}
	for i := range t.Numbers {
		v.numbers[t.Numbers[i].Number] = &t.Numbers[i]
	}
	v.names()
	for i := range t.Numbers {
		if n := &t.Numbers[i]; n.User != "" {
			v.check(fmt.Sprintf("numbers[%d].user", i), MakeTarget(ToUser, n.User))
		} else if n.Target != "" {
			v.check(fmt.Sprintf("numbers[%d].target", i), n.Target)
		}
	}
	for i := range t.Users {
		if f := t.Users[i].Forward; f != nil {
			at := fmt.Sprintf("users[%d].forward.", i)
			v.optional(at+"always", f.Always)
			v.optional(at+"busy", f.Busy)
			v.optional(at+"no_answer", f.NoAnswer)
			v.optional(at+"unavailable", f.Unavailable)
		}
	}
	for i := range t.Groups {
		v.group(fmt.Sprintf("groups[%d].", i), &t.Groups[i])
	}
	for i := range t.Schedules {
		at := fmt.Sprintf("schedules[%d].", i)
		v.check(at+"open", t.Schedules[i].Open)
		v.check(at+"closed", t.Schedules[i].Closed)
	}
	return errors.Join(v.errs...)
}

// names checks everything that is named.
func (v *targets) names() {
	t := v.t
	for _, l := range []struct {
		field string
		n     int
	}{{"groups", len(t.Groups)}, {"schedules", len(t.Schedules)}, {"announcements", len(t.Announcements)}, {"pbx", len(t.PBX)}} {
		if l.n > maxNamed {
			v.fail(invalid(l.field, "has %d entries: up to %d are taken", l.n, maxNamed))
		}
	}
	for i := range t.Groups {
		g := &t.Groups[i]
		v.name(fmt.Sprintf("groups[%d].name", i), g.Name, v.groups[g.Name] != nil)
		v.groups[g.Name] = g
	}
	for i := range t.Schedules {
		s := &t.Schedules[i]
		v.name(fmt.Sprintf("schedules[%d].name", i), s.Name, v.schedules[s.Name] != nil)
		v.schedules[s.Name] = s
		v.fail(s.valid(func(f string) string { return fmt.Sprintf("schedules[%d].%s", i, f) }))
	}
	for i, a := range t.Announcements {
		v.name(fmt.Sprintf("announcements[%d].name", i), a.Name, v.announcements[a.Name])
		v.announcements[a.Name] = true
		if len(a.File) > 128 || !soundForm.MatchString(a.File) {
			v.fail(invalid(fmt.Sprintf("announcements[%d].file", i), "%q is not a path below the folder of sounds, such as acme/closed.wav", a.File))
		}
	}
	for i, h := range t.PBX {
		v.name(fmt.Sprintf("pbx[%d].name", i), h.Name, v.pbx[h.Name])
		v.pbx[h.Name] = true
		switch h.Kind {
		case HandoverContext, HandoverQueue, HandoverIVR, HandoverConference:
		default:
			v.fail(invalid(fmt.Sprintf("pbx[%d].kind", i), "%q is not one of context, queue, ivr, conference", h.Kind))
		}
		if !handoverForm.MatchString(h.Value) {
			v.fail(invalid(fmt.Sprintf("pbx[%d].value", i), "%q is not 1 to 64 of letters, digits and - _ . @", h.Value))
		}
	}
}

func (v *targets) fail(err error) { v.errs = append(v.errs, err) }

func (v *targets) name(field, name string, twice bool) {
	v.fail(validID(field, name))
	if twice {
		v.fail(conflict(field, "%q is there twice in tenant %q", name, v.t.ID))
	}
}

func (v *targets) group(at string, g *Group) {
	if g.Ring != "" && g.Ring != Simultaneous && g.Ring != Sequential {
		v.fail(invalid(at+"ring", "%q is neither simultaneous nor sequential", g.Ring))
	}
	if len(g.Members) == 0 || len(g.Members) > maxMembers {
		v.fail(invalid(at+"members", "are %d: a group has 1 to %d", len(g.Members), maxMembers))
	}
	for i, m := range g.Members {
		field := fmt.Sprintf("%smembers[%d]", at, i)
		kind, value := m.Parse()
		switch {
		case kind != ToUser && kind != ToNumber:
			v.fail(invalid(field, "%q is neither user:EXTENSION nor number:+NUMBER: only those ring in a group", m))
		case kind == ToNumber && v.numbers[trimPlus(value)] != nil:
			v.fail(invalid(field, "%q is a number of the tenant itself: name where it leads", m))
		default:
			v.exists(field, m)
		}
	}
	if g.Timeout != 0 {
		v.fail(within(at+"timeout", g.Timeout, 5, 300))
	}
	v.optional(at+"then", g.Then)
}

func (v *targets) optional(field string, t Target) {
	if t != "" {
		v.check(field, t)
	}
}

// check finds out whether a target means something and ends.
func (v *targets) check(field string, t Target) {
	if !v.exists(field, t) {
		return
	}
	switch r := v.reach(t); {
	case r.loop:
		v.fail(invalid(field, "%q leads back to itself", t))
	case r.depth > MaxTargetDepth:
		v.fail(invalid(field, "%q leads through %d targets: %d may follow one another", t, r.depth, MaxTargetDepth))
	case r.steps > MaxTargetSteps:
		v.fail(invalid(field, "%q comes to %d steps with all that follows: %d are taken", t, r.steps, MaxTargetSteps))
	case v.sizes.base()+r.bytes > MaxAnswer && v.sizes.fits(): // else validAnswer says so, once
		v.fail(invalid(field, "%q may make an answer of %d bytes with all that follows: %d are taken; use fewer members, or fewer or shorter header rules",
			t, v.sizes.base()+r.bytes, MaxAnswer))
	}
}

func trimPlus(s string) string {
	if s != "" && s[0] == '+' {
		return s[1:]
	}
	return s
}

// exists checks what the target names.
func (v *targets) exists(field string, t Target) bool {
	kind, value := t.Parse()
	ok := false
	switch kind {
	case ToUser, ToVoicemail:
		ok = v.users[value] != nil
		if !ok {
			v.fail(invalid(field, "tenant %q has no user %q", v.t.ID, value))
			return false
		}
	case ToGroup:
		ok = v.groups[value] != nil
	case ToSchedule:
		ok = v.schedules[value] != nil
	case ToAnnouncement:
		ok = v.announcements[value]
	case ToPBX:
		ok = v.pbx[value]
	case ToNumber:
		if ok = len(value) > 1 && value[0] == '+' && numberForm.MatchString(value[1:]); !ok {
			v.fail(invalid(field, "%q is not number:+ and an E.164 number", t))
			return false
		}
	case ToReject:
		n, err := strconv.Atoi(value)
		if ok = err == nil && n >= 400 && n <= 699 && n/100 != 5 && len(value) == 3; !ok {
			v.fail(invalid(field, "%q is not reject: and a SIP status, 400 to 499 or 600 to 699: on a 5xx an SBC would ask the next node", t))
			return false
		}
	default:
		v.fail(invalid(field, "%q is not a target: write user:, group:, schedule:, number:, announcement:, voicemail:, pbx: or reject: and what is meant", t))
		return false
	}
	if !ok {
		v.fail(invalid(field, "tenant %q has no %s %q", v.t.ID, kind, value))
	}
	return ok
}

// next lists what may follow a target; own is how many steps, and how much of
// an answer, it takes itself.
func (v *targets) next(t Target) (own, bytes int, next []Target) {
	kind, value := t.Parse()
	switch kind {
	case ToUser:
		if u := v.users[value]; u != nil && u.Forward != nil {
			next = []Target{u.Forward.Always, u.Forward.Busy, u.Forward.NoAnswer, u.Forward.Unavailable}
		}
		return 1, v.sizes.user(value), next
	case ToGroup:
		if g := v.groups[value]; g != nil {
			bytes = answerDial
			for _, m := range g.Members {
				bytes += v.sizes.member(m)
			}
			return len(g.Members), bytes, []Target{g.Then}
		}
	case ToSchedule:
		if s := v.schedules[value]; s != nil {
			return 0, 0, []Target{s.Open, s.Closed}
		}
	case ToNumber:
		if n := v.numbers[trimPlus(value)]; n != nil {
			return 0, 0, []Target{n.Leads()}
		}
		return 1, v.sizes.outside(), nil
	}
	return 1, answerAction + len(v.t.Realm()), nil
}

func (v *targets) reach(t Target) reach {
	if r, ok := v.known[t]; ok {
		r.loop = r.loop || r.open
		return r
	}
	v.known[t] = reach{open: true}
	own, bytes, next := v.next(t)
	r := reach{depth: 1, steps: own, bytes: bytes}
	for _, n := range next {
		if n == "" {
			continue
		}
		after := v.reach(n)
		r.loop = r.loop || after.loop
		r.depth = max(r.depth, 1+after.depth)
		r.steps, r.bytes = min(r.steps+after.steps, 1<<20), min(r.bytes+after.bytes, 1<<30)
	}
	v.known[t] = r
	return r
}
