package bulkhead

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

var (
	usernameForm  = regexp.MustCompile(`^[A-Za-z0-9._+@-]{1,64}$`)
	passwordForm  = regexp.MustCompile(`^[A-Za-z0-9.,_+@!#*=~^-]{1,64}$`)
	headerForm    = regexp.MustCompile(`^X-[A-Za-z0-9-]{1,60}$`)
	headerValue   = regexp.MustCompile(`^[A-Za-z0-9 .:@+/_=-]{1,128}$`)
	emergencyForm = regexp.MustCompile(`^[0-9]{2,8}$`)
	soundForm     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)*(\.[a-z0-9]{2,4})?$`)
	handoverForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$`)
	hourForm      = regexp.MustCompile(`^([01][0-9]|2[0-3]):[0-5][0-9]$`)
)

// Limits of a tenant's lists.
const (
	maxMembers    = 32
	maxHours      = 64
	maxExceptions = 400
	maxNamed      = 1000 // groups, schedules, announcements, handovers
	maxRules      = 16
)

func (t *Tenant) validPolicies() error {
	errs := []error{t.validDialling()}
	if _, err := Zone(t.TimeZone); err != nil {
		errs = append(errs, err)
	}
	for i, n := range t.Emergency {
		if !emergencyForm.MatchString(n) {
			errs = append(errs, invalid(fmt.Sprintf("emergency[%d]", i), "%q is not 2 to 8 digits", n))
		}
	}
	for i, c := range t.Allow {
		errs = append(errs, validID(fmt.Sprintf("allow[%d]", i), c))
	}
	for i, c := range t.FailoverCauses {
		errs = append(errs, within(fmt.Sprintf("failover_causes[%d]", i), c, 1, 127))
	}
	for _, l := range []struct {
		field string
		n     int
	}{{"emergency", len(t.Emergency)}, {"allow", len(t.Allow)}, {"failover_causes", len(t.FailoverCauses)}} {
		if l.n > maxClasses {
			errs = append(errs, invalid(l.field, "has %d entries: up to %d are taken", l.n, maxClasses))
		}
	}
	errs = append(errs, t.validCallerID())
	switch t.Record {
	case "", RecordNone, RecordInbound, RecordOutbound, RecordAll:
	default:
		errs = append(errs, invalid("record", "%q is not one of none, inbound, outbound, all", t.Record))
	}
	return errors.Join(errs...)
}

func (t *Tenant) validDialling() error {
	d := t.Dialling
	var errs []error
	for _, f := range []struct {
		name, value string
		longest     int
		zero        bool // may begin with 0
	}{
		{"country", d.Country, 3, false}, {"area", d.Area, 5, false}, {"national_prefix", d.NationalPrefix, 3, true},
		{"international_prefix", d.InternationalPrefix, 5, true}, {"outside_prefix", d.OutsidePrefix, 2, true},
	} {
		switch {
		case f.value == "":
		case len(f.value) > f.longest || !prefixForm.MatchString(f.value) || !f.zero && f.value[0] == '0':
			errs = append(errs, invalid("dialling."+f.name, "%q is not 1 to %d digits, the first of which is no 0 in country and area", f.value, f.longest))
		case d.Country == "" && f.name != "outside_prefix":
			errs = append(errs, invalid("dialling.country", "is missing beside %s", f.name))
		}
	}
	if d.InternationalPrefix != "" && d.InternationalPrefix == d.NationalPrefix {
		errs = append(errs, invalid("dialling.international_prefix", "is the national prefix too: nothing tells the two"))
	}
	return errors.Join(errs...)
}

func (t *Tenant) validCallerID() error {
	p := t.CallerID
	switch p.Mode {
	case "", CallerIDOwn, CallerIDFixed, CallerIDAnonymous:
	default:
		return invalid("caller_id.mode", "%q is not one of own, fixed, anonymous", p.Mode)
	}
	switch {
	case p.Number != "" && !numberForm.MatchString(p.Number):
		return invalid("caller_id.number", "%q is not an E.164 number without '+'", p.Number)
	case p.Mode == CallerIDFixed && p.Number == "":
		return invalid("caller_id.number", "is missing: it is what mode fixed shows")
	case p.Mode == CallerIDAnonymous && p.Number != "":
		return invalid("caller_id.number", "is never shown in mode anonymous: leave it out")
	case p.Number != "" && p.Mode != CallerIDFixed && !slices.ContainsFunc(t.Numbers, func(n Number) bool { return n.Number == p.Number }):
		return invalid("caller_id.number", "%s is no number of tenant %q: mode own shows no other", p.Number, t.ID)
	}
	return nil
}

func (t *Tenant) validHeaders() error {
	if len(t.Headers) > maxRules {
		return invalid("headers", "has %d rules: up to %d are taken", len(t.Headers), maxRules)
	}
	var errs []error
	for i, r := range t.Headers {
		at := func(f string) string { return fmt.Sprintf("headers[%d].%s", i, f) }
		if !headerForm.MatchString(r.Name) && !slices.Contains(HeaderNames, r.Name) || strings.HasPrefix(strings.ToLower(r.Name), "x-bulkhead") {
			errs = append(errs, invalid(at("name"), "%q may not be changed: X- headers may, but for X-Bulkhead-, and %s", r.Name, strings.Join(HeaderNames, ", ")))
		}
		switch r.Action {
		case AddHeader, ReplaceHeader:
			if !headerValue.MatchString(r.Value) {
				errs = append(errs, invalid(at("value"), "%q is not 1 to 128 of letters, digits, space and . : @ + / _ = -", r.Value))
			}
		case RemoveHeader:
			if r.Value != "" {
				errs = append(errs, invalid(at("value"), "is there, but all headers of the name are removed"))
			}
		default:
			errs = append(errs, invalid(at("action"), "%q is not one of add, remove, replace", r.Action))
		}
	}
	return errors.Join(errs...)
}

func (s *Schedule) valid(at func(string) string) error {
	var errs []error
	if len(s.Hours) > maxHours || len(s.Exceptions) > maxExceptions {
		errs = append(errs, invalid(at("hours"), "there are %d, and %d exceptions: up to %d and %d are taken", len(s.Hours), len(s.Exceptions), maxHours, maxExceptions))
	}
	for i, h := range s.Hours {
		f := func(name string) string { return at(fmt.Sprintf("hours[%d].%s", i, name)) }
		if len(h.Days) == 0 || len(h.Days) > 7 {
			errs = append(errs, invalid(f("days"), "are 1 to 7 of %s", strings.Join(weekdays[:], ", ")))
		}
		for j, d := range h.Days {
			if !slices.Contains(weekdays[:], d) {
				errs = append(errs, invalid(f(fmt.Sprintf("days[%d]", j)), "%q is not one of %s", d, strings.Join(weekdays[:], ", ")))
			}
		}
		errs = append(errs, validHours(f, h.From, h.To))
	}
	dates := map[string]bool{}
	for i, x := range s.Exceptions {
		f := func(name string) string { return at(fmt.Sprintf("exceptions[%d].%s", i, name)) }
		if d, err := time.Parse(time.DateOnly, x.Date); err != nil || d.Format(time.DateOnly) != x.Date {
			errs = append(errs, invalid(f("date"), "%q is not a date such as 2026-12-24", x.Date))
		}
		if x.From != "" || x.To != "" {
			errs = append(errs, validHours(f, x.From, x.To))
		} else if dates[x.Date] {
			errs = append(errs, conflict(f("date"), "%s is there with hours too, or twice", x.Date))
		}
		dates[x.Date] = true
	}
	return errors.Join(errs...)
}

func validHours(f func(string) string, from, to string) error {
	var errs []error
	if !hourForm.MatchString(from) {
		errs = append(errs, invalid(f("from"), "%q is not HH:MM, 00:00 to 23:59", from))
	}
	if !hourForm.MatchString(to) && to != "24:00" {
		errs = append(errs, invalid(f("to"), "%q is not HH:MM, 00:00 to 24:00", to))
	}
	if from == to {
		errs = append(errs, invalid(f("to"), "is from: write 00:00 to 24:00 for the whole day"))
	}
	return errors.Join(errs...)
}
