package bulkhead

import (
	"regexp"
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
	if !zoneForm.MatchString(name) {
		return nil, invalid("time_zone", "%q is not a time zone such as Europe/Berlin", name)
	}
	z, err := time.LoadLocation(name)
	if err != nil {
		return nil, invalid("time_zone", "%q is not a time zone that is known here, such as Europe/Berlin", name)
	}
	zones.Store(name, z)
	return z, nil
}
