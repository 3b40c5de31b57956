package bulkhead

import (
	"regexp"
	"slices"
	"sync"
	"time"
	_ "time/tzdata" // hosts without zone files must not see other hours
)

var zoneForm = regexp.MustCompile(`^[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$`)

// Schedule leads to one of two targets, by the time in the tenant's zone.
type Schedule struct {
	Name       string      `json:"name"`                 // form of an id; unique in its tenant
	Hours      []Hours     `json:"hours,omitempty"`      // weekly
	Exceptions []Exception `json:"exceptions,omitempty"` // dates that have hours of their own
	Open       Target      `json:"open"`
	Closed     Target      `json:"closed"`
}

// Hours are open hours on days of the week.
type Hours struct {
	Days []string `json:"days"` // mon tue wed thu fri sat sun
	From string   `json:"from"` // HH:MM, 00:00 to 23:59
	// To is HH:MM, up to 24:00, and not open any more. What is not after From
	// is on the day after.
	To string `json:"to"`
}

// Exception replaces the weekly hours of one date.
type Exception struct {
	Date string `json:"date"` // YYYY-MM-DD
	// From and To as in Hours; both empty: closed all day.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// IsOpen reports whether the schedule is open at a time, whose location is the
// tenant's zone. What counts is what a clock on the wall shows: an hour that
// daylight saving skips is never, one that it repeats is there twice.
func (s *Schedule) IsOpen(at time.Time) bool {
	now := 60*at.Hour() + at.Minute()
	if s.openOn(at, now) {
		return true
	}
	// Hours of yesterday may last until today. The date is counted, since a day
	// may have 23 or 25 hours.
	y, m, d := at.Date()
	return s.openOn(time.Date(y, m, d-1, 12, 0, 0, 0, time.UTC), now+24*60)
}

// openOn reports whether hours that begin on a day hold a time, in minutes
// after the midnight with which that day begins.
func (s *Schedule) openOn(day time.Time, minutes int) bool {
	y, m, d := day.Date()
	date, excepted := [3]int{y, int(m), d}, false
	for i := range s.Exceptions {
		x := &s.Exceptions[i]
		if dateOf(x.Date) != date {
			continue
		}
		excepted = true
		if x.From != "" && holds(x.From, x.To, minutes) {
			return true
		}
	}
	if excepted {
		return false
	}
	for i := range s.Hours {
		h := &s.Hours[i]
		if slices.Contains(h.Days, weekdays[day.Weekday()]) && holds(h.From, h.To, minutes) {
			return true
		}
	}
	return false
}

func holds(from, to string, minutes int) bool {
	start, end := minutesOf(from), minutesOf(to)
	if end <= start {
		end += 24 * 60
	}
	return start <= minutes && minutes < end
}

// minutesOf reads HH:MM, which Validate has checked.
func minutesOf(s string) int {
	if len(s) != len("HH:MM") {
		return 0
	}
	return 60*number(s[:2]) + number(s[3:])
}

// dateOf reads YYYY-MM-DD, which Validate has checked.
func dateOf(s string) [3]int {
	if len(s) != len(time.DateOnly) {
		return [3]int{}
	}
	return [3]int{number(s[:4]), number(s[5:7]), number(s[8:])}
}

func number(digits string) int {
	n := 0
	for _, c := range []byte(digits) {
		n = 10*n + int(c-'0')
	}
	return n
}

var weekdays = [7]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// zones caches what time.LoadLocation finds: as many as there are zones.
var zones sync.Map

// Zone returns a time zone by its IANA name; empty: UTC. Its errors are
// FieldErrors of kind Invalid about the field time_zone.
func Zone(name string) (*time.Location, error) {
	if name == "" || name == "UTC" {
		return time.UTC, nil
	}
	if z, ok := zones.Load(name); ok {
		if z, ok := z.(*time.Location); ok {
			return z, nil
		}
	}
	if !zoneForm.MatchString(name) || name == "Local" { // which is another on each host
		return nil, invalid("time_zone", "%q is not a time zone such as Europe/Berlin", name)
	}
	z, err := time.LoadLocation(name)
	if err != nil {
		return nil, invalid("time_zone", "%q is not a time zone that is known here, such as Europe/Berlin", name)
	}
	zones.Store(name, z)
	return z, nil
}
