package configsvc

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

// compare holds the decision against the records. They tell who was called
// and how it ended, but not what a PBX played itself, nor which way to a
// carrier it took: what they do not tell is not known, rather than the same.
func (c *shadowCall) compare() (Verdict, string) {
	d, a := &c.decision, c.caller
	switch {
	case !d.Managed:
		return Unmanaged, ""
	case a == nil:
		return NotKnown, "no record of the call"
	case a.Gap != "" || a.Source == cdr.SourceSynthesised:
		return NotKnown, "the node was not heard all the time"
	case a.Tenant != "" && a.Tenant != d.Tenant:
		return Different, fmt.Sprintf("tenant %s, was recorded as %s's", d.Tenant, a.Tenant)
	}
	if i := slices.IndexFunc(d.Actions, func(s PlanStep) bool { return s.Do == "dial" }); i >= 0 {
		return c.dial(&d.Actions[i])
	}
	first := &d.Actions[0]
	if first.Do == "reject" {
		return c.reject(first)
	}
	return c.own(first)
}

// reject compares a call that would have been rejected.
func (c *shadowCall) reject(step *PlanStep) (Verdict, string) {
	would := fmt.Sprintf("would be rejected with %d (%s)", step.Status, step.Reason)
	a := c.caller
	switch {
	case len(c.called) > 0:
		return Different, would + ", called " + c.list()
	case !a.Answer.IsZero():
		return Different, would + ", was answered"
	case cancelled(a):
		return NotKnown, would + ", the caller gave up"
	case a.SIPCode == step.Status || a.Q850 == step.Cause && a.Q850 != 0:
		return Same, ""
	case a.SIPCode == 0 && a.Q850 == 0:
		return NotKnown, would + ", ended without a code"
	}
	return Different, would + ", " + ended(a)
}

// own compares a call that the PBX would have answered itself.
func (c *shadowCall) own(step *PlanStep) (Verdict, string) {
	would := strings.TrimSpace("would go to " + step.Do + " " + step.Name)
	a := c.caller
	switch {
	case step.Do == "handover":
		return NotKnown, would + ", which is yours"
	case len(c.called) > 0:
		return Different, would + ", called " + c.list()
	case !a.Answer.IsZero():
		return NotKnown, would + ", the node answered by itself: with what is not recorded"
	case cancelled(a):
		return NotKnown, would + ", the caller gave up"
	}
	return Different, would + ", " + ended(a)
}

// dial compares a call that would have rung somebody.
func (c *shadowCall) dial(step *PlanStep) (Verdict, string) {
	would := "would call " + names(step.Legs)
	a := c.caller
	if len(c.called) == 0 {
		switch {
		case !a.Answer.IsZero():
			return Different, would + ", the node answered by itself"
		case cancelled(a):
			return NotKnown, would + ", the caller gave up"
		case len(step.Legs) > 0 && step.Legs[0].Do == "user" && (a.SIPCode == 480 || a.Q850 == 20):
			return NotKnown, would + ", nobody could be rung"
		}
		return Different, would + ", " + ended(a)
	}
	if slices.ContainsFunc(c.called, func(r cdr.Record) bool { return r.Callee == "" }) {
		return NotKnown, would + ", a record does not tell who was called"
	}
	everybody := everyLeg(nil, step, 0)
	rang := false
	for i := range c.called {
		leg := &c.called[i]
		at := slices.IndexFunc(everybody, func(s *PlanStep) bool { return is(s, leg.Callee) })
		if at < 0 {
			return Different, would + ", called " + c.list()
		}
		rang = rang || slices.ContainsFunc(step.Legs, func(s PlanStep) bool { return is(&s, leg.Callee) })
		if how := showed(everybody[at], leg.Caller); how != "" {
			return Different, how
		}
	}
	if !rang {
		return Different, would + " first, called " + c.list()
	}
	answered := slices.ContainsFunc(c.called, func(r cdr.Record) bool { return !r.Answer.IsZero() })
	after := followed(step, &c.called[len(c.called)-1])
	switch {
	case answered || cancelled(a):
	case !a.Answer.IsZero() && len(after) == 0:
		return Different, would + " and nobody else, the node answered by itself"
	case a.Answer.IsZero() && len(after) > 0 && (after[0].Do == "voicemail" || after[0].Do == "play"):
		return Different, would + ", then go to " + after[0].Do + " " + after[0].Name + ", " + ended(a)
	}
	return Same, ""
}

// followed returns what follows a dial whose last leg ended as it did.
func followed(step *PlanStep, last *cdr.Record) []PlanStep {
	list := step.Unavailable
	switch last.Q850 {
	case 17, 21:
		list = step.Busy
	case 18, 19:
		list = step.NoAnswer
	}
	if len(list) == 0 {
		return step.Otherwise
	}
	return list
}

// maxPlanDepth bounds how deep a plan that was read from disk is looked into.
const maxPlanDepth = 32

// everyLeg collects all legs that a dial may ring, those of what follows it included.
func everyLeg(out []*PlanStep, step *PlanStep, depth int) []*PlanStep {
	for i := range step.Legs {
		out = append(out, &step.Legs[i])
	}
	if depth == maxPlanDepth {
		return out
	}
	for _, list := range [][]PlanStep{step.Busy, step.NoAnswer, step.Unavailable, step.Otherwise} {
		for i := range list {
			out = everyLeg(out, &list[i], depth+1)
		}
	}
	return out
}

// is reports whether a record's callee is a leg of the plan.
func is(leg *PlanStep, callee string) bool {
	if leg.Do == "user" {
		user, _, _ := strings.Cut(callee, "@")
		return user == leg.Name
	}
	return sameNumber(leg.Number, callee)
}

// showed says how the number that a carrier saw is another one than it would
// have been; empty: it is none.
func showed(leg *PlanStep, caller string) string {
	digits := strings.Trim(caller, "+0123456789") == "" && caller != ""
	switch {
	case leg.Do != "trunk" || !digits:
	case leg.Anonymous:
		return fmt.Sprintf("would call %s anonymously, showed %s", leg.Number, caller)
	case leg.CallerID != "" && !sameNumber(leg.CallerID, caller):
		return fmt.Sprintf("would show %s, showed %s", leg.CallerID, caller)
	}
	return ""
}

// sameNumber compares a number in E.164 with one as a PBX wrote it:
// +4930123456, 004930123456 and 030123456 are one.
func sameNumber(e164, written string) bool {
	written, _, _ = strings.Cut(written, "@")
	plain := strings.TrimLeft(strings.TrimPrefix(written, "+"), "0")
	return plain == e164 || len(plain) >= 6 && strings.HasSuffix(e164, plain)
}

// cancelled reports whether the caller gave up. An Asterisk names him as the one
// who hung up also where its dialplan had no such extension, with the code that
// he got.
func cancelled(a *cdr.Record) bool {
	return a.Answer.IsZero() && (a.SIPCode == 487 || a.Cause == "ORIGINATOR_CANCEL" || a.HangupBy == cdr.HangupPeer && a.SIPCode == 0)
}

func ended(a *cdr.Record) string {
	if a.SIPCode != 0 {
		return fmt.Sprintf("ended with %d", a.SIPCode)
	}
	return fmt.Sprintf("ended with cause %d", a.Q850)
}

func names(legs []PlanStep) string {
	list := make([]string, len(legs))
	for i := range legs {
		list[i] = legs[i].Do + " " + legs[i].Name
		if legs[i].Number != "" {
			list[i] = legs[i].Number + " by " + list[i]
		}
	}
	return strings.Join(list, ", ")
}

// list names who was called.
func (c *shadowCall) list() string {
	list := make([]string, len(c.called))
	for i := range c.called {
		list[i] = c.called[i].Callee
	}
	return strings.Join(list, ", ")
}
