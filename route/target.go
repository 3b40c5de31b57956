package route

import (
	"strconv"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
)

// tooFar ends a plan that State.Validate would not have let in.
var tooFar = Reject{Status: 482, Cause: 25, Reason: "targets lead too far"}

// to returns what a target comes to. depth counts the targets up to it.
func (d *decision) to(t bulkhead.Target, depth int, by *bulkhead.User) []Action {
	if depth > bulkhead.MaxTargetDepth || d.steps >= bulkhead.MaxTargetSteps {
		return d.one(tooFar)
	}
	if d.tracing {
		d.note("on to %s", t)
	}
	k := &d.h.tenant
	kind, value := t.Parse()
	switch kind {
	case bulkhead.ToUser:
		if u := d.h.user(value); u != nil {
			return d.user(u, depth)
		}
	case bulkhead.ToGroup:
		if g := named(k.Groups, func(g *bulkhead.Group) string { return g.Name }, value); g != nil {
			return d.group(g, depth, by)
		}
	case bulkhead.ToSchedule:
		if s := named(k.Schedules, func(s *bulkhead.Schedule) string { return s.Name }, value); s != nil {
			return d.schedule(s, depth, by)
		}
	case bulkhead.ToNumber:
		digits := strings.TrimPrefix(value, "+")
		if n := d.h.own(d.x, digits); n != nil {
			return d.number(n, depth)
		}
		return d.outside(digits, by)
	case bulkhead.ToAnnouncement:
		if a := named(k.Announcements, func(a *bulkhead.Announcement) string { return a.Name }, value); a != nil {
			return d.one(Play{File: a.File})
		}
	case bulkhead.ToVoicemail:
		if d.h.user(value) != nil {
			return d.one(Voicemail{Box: value, Realm: d.h.realm})
		}
	case bulkhead.ToPBX:
		if h := named(k.PBX, func(h *bulkhead.Handover) string { return h.Name }, value); h != nil {
			return d.one(Handover{Kind: h.Kind, Value: h.Value, Number: d.safeNumber()})
		}
	case bulkhead.ToReject:
		if n, err := strconv.Atoi(value); err == nil && n >= 400 && n <= 699 {
			return d.one(Reject{Status: n, Cause: causeOf(n), Reason: "as configured"})
		}
	}
	return d.one(UnknownNumber) // State.Validate does not let it come to this
}

// safeNumber is what was dialled, if it is a number or an extension: nothing
// else of what a caller sent goes on.
func (d *decision) safeNumber() string {
	if u := d.h.user(d.c.Number); u != nil {
		return u.Extension
	}
	return digits(d.c.Number)
}

func (d *decision) number(n *bulkhead.Number, depth int) []Action {
	if n.Target == "" {
		if u := d.h.user(n.User); u != nil {
			return d.user(u, depth)
		}
		return d.one(UnknownNumber)
	}
	return d.to(n.Target, depth+1, nil)
}

// user rings a user, or goes where he sends his calls.
func (d *decision) user(u *bulkhead.User, depth int) []Action {
	var none bulkhead.Forward
	f := u.Forward
	if f == nil {
		f = &none
	}
	if f.Always != "" {
		if d.tracing {
			d.note("user %s forwards all calls", u.Extension)
		}
		return d.to(f.Always, depth+1, u)
	}
	if u.DoNotDisturb {
		if d.tracing {
			d.note("user %s does not want to be disturbed: as busy", u.Extension)
		}
		switch {
		case f.Busy != "":
			return d.to(f.Busy, depth+1, u)
		case u.Voicemail:
			return d.one(Voicemail{Box: u.Extension, Realm: d.h.realm})
		}
		return d.one(DoNotDisturb)
	}
	d.steps++
	if d.tracing {
		d.note("rings user %s", u.Extension)
	}
	dial := Dial{Legs: []Leg{d.ring(u)}}
	if *f == none && !u.Voicemail {
		return []Action{dial}
	}
	dial.Timeout = f.After
	if dial.Timeout == 0 {
		dial.Timeout = bulkhead.DefaultRing
	}
	for _, after := range []struct {
		to   bulkhead.Target
		into *[]Action
		why  string
	}{{f.Busy, &dial.Busy, "busy"}, {f.NoAnswer, &dial.NoAnswer, "no answer"}, {f.Unavailable, &dial.Unavailable, "not reachable"}} {
		if after.to != "" {
			if d.tracing {
				d.note("user %s, when %s:", u.Extension, after.why)
			}
			*after.into = d.to(after.to, depth+1, u)
		}
	}
	if u.Voicemail {
		if d.tracing {
			d.note("user %s, when nothing else is said: voicemail", u.Extension)
		}
		dial.Otherwise = d.one(Voicemail{Box: u.Extension, Realm: d.h.realm})
	}
	return []Action{dial}
}

func (d *decision) ring(u *bulkhead.User) DialUser {
	return DialUser{Extension: u.Extension, Realm: d.h.realm, SBC: d.sbc}
}

func (d *decision) group(g *bulkhead.Group, depth int, by *bulkhead.User) []Action {
	dial := Dial{Sequential: g.Ring == bulkhead.Sequential, Timeout: g.Timeout}
	if dial.Timeout == 0 {
		dial.Timeout = bulkhead.DefaultRing
	}
	for _, m := range g.Members {
		if d.steps >= bulkhead.MaxTargetSteps {
			break
		}
		kind, value := m.Parse()
		if kind == bulkhead.ToNumber {
			if k, refusal := d.trunkTo(strings.TrimPrefix(value, "+")); refusal == nil {
				d.steps++
				dial.Legs = append(dial.Legs, d.trunkLeg(k, strings.TrimPrefix(value, "+"), by))
			} else if d.tracing {
				d.note("group %s passes %s over: %s", g.Name, m, refusal.Reason)
			}
			continue
		}
		u := d.h.user(value)
		switch {
		case u == nil:
		case u.DoNotDisturb:
			if d.tracing {
				d.note("group %s passes user %s over, who does not want to be disturbed", g.Name, value)
			}
		default:
			d.steps++
			dial.Legs = append(dial.Legs, d.ring(u))
		}
	}
	if d.tracing {
		d.note("group %s rings %d of %d members, sequential: %v, for %d s", g.Name, len(dial.Legs), len(g.Members), dial.Sequential, dial.Timeout)
	}
	if g.Then != "" {
		if d.tracing {
			d.note("group %s, when nobody answered:", g.Name)
		}
		dial.Otherwise = d.to(g.Then, depth+1, by)
	}
	switch {
	case len(dial.Legs) > 0:
		return []Action{dial}
	case g.Then != "":
		return dial.Otherwise
	}
	return d.one(NobodyRings)
}

func (d *decision) schedule(s *bulkhead.Schedule, depth int, by *bulkhead.User) []Action {
	zone, err := bulkhead.Zone(d.h.tenant.TimeZone)
	if err != nil && d.tracing {
		d.note("time zone %s is not known here: UTC is taken", d.h.tenant.TimeZone)
	}
	if err != nil {
		zone, _ = bulkhead.Zone("")
	}
	at := d.c.Time.In(zone)
	open := s.IsOpen(at)
	if d.tracing {
		d.note("schedule %s is open on %s: %v", s.Name, at.Format("Mon 2006-01-02 15:04 MST"), open)
	}
	if open {
		return d.to(s.Open, depth+1, by)
	}
	return d.to(s.Closed, depth+1, by)
}

// causeOf is the Q.850 cause of a SIP status (RFC 3398 section 8.2.6.1).
func causeOf(status int) int {
	switch status {
	case 402, 403, 407, 603:
		return 21
	case 404, 485, 604:
		return 1
	case 408, 504:
		return 102
	case 410:
		return 22
	case 480:
		return 18
	case 484:
		return 28
	case 486, 600:
		return 17
	case 488, 606:
		return 31
	case 501:
		return 79
	case 502:
		return 38
	case 400, 481, 500, 503:
		return 41
	}
	return 127
}
