package bulkhead

import (
	"testing"
	"time"
)

var (
	weekday = []string{"mon", "tue", "wed", "thu", "fri"}
	always  = []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}
)

func TestScheduleIsOpen(t *testing.T) {
	office := Schedule{Hours: []Hours{{Days: weekday, From: "09:00", To: "17:30"}}, Exceptions: []Exception{
		{Date: "2026-12-25"}, {Date: "2026-12-24", From: "09:00", To: "12:00"}, {Date: "2026-12-24", From: "13:00", To: "14:00"}, {Date: "2026-12-26", From: "10:00", To: "11:00"},
	}}
	night := Schedule{Hours: []Hours{{Days: []string{"fri", "sat"}, From: "22:00", To: "04:00"}}, Exceptions: []Exception{{Date: "2026-12-05"}}}
	early := Schedule{Hours: []Hours{{Days: always, From: "02:30", To: "03:30"}}}
	day := Schedule{Hours: []Hours{{Days: always, From: "00:00", To: "24:00"}}}
	for _, c := range []struct {
		name string
		s    Schedule
		zone string
		at   string // UTC
		open bool
	}{
		{"monday morning", office, "Europe/Berlin", "2026-11-23T08:00:00Z", true},
		{"a minute before", office, "Europe/Berlin", "2026-11-23T07:59:59Z", false},
		{"the last minute", office, "Europe/Berlin", "2026-11-23T16:29:59Z", true},
		{"the end", office, "Europe/Berlin", "2026-11-23T16:30:00Z", false},
		{"saturday", office, "Europe/Berlin", "2026-11-21T10:00:00Z", false},
		{"still monday there, tuesday in UTC", office, "America/Los_Angeles", "2026-11-24T01:00:00Z", true},
		{"sunday in UTC, monday there", office, "Asia/Tokyo", "2026-11-22T23:30:00Z", false},
		{"monday there", office, "Asia/Tokyo", "2026-11-23T00:30:00Z", true},
		{"closed all day", office, "UTC", "2026-12-25T10:00:00Z", false},
		{"first hours of the date", office, "UTC", "2026-12-24T11:59:00Z", true},
		{"between them", office, "UTC", "2026-12-24T12:30:00Z", false},
		{"second hours of the date", office, "UTC", "2026-12-24T13:30:00Z", true},
		{"a saturday that is open", office, "UTC", "2026-12-26T10:30:00Z", true},
		{"friday night", night, "UTC", "2026-11-27T22:00:00Z", true},
		{"after its midnight", night, "UTC", "2026-11-28T03:59:00Z", true},
		{"its end", night, "UTC", "2026-11-28T04:00:00Z", false},
		{"thursday night", night, "UTC", "2026-11-27T03:00:00Z", false},
		{"friday's hours last into a closed saturday", night, "UTC", "2026-12-05T03:00:00Z", true},
		{"which does not begin any", night, "UTC", "2026-12-05T23:00:00Z", false},
		{"nor last into sunday", night, "UTC", "2026-12-06T03:00:00Z", false},

		// Spring, Berlin 2026-03-29: 01:59:59 CET is followed by 03:00:00 CEST.
		{"before the hour that is skipped", early, "Europe/Berlin", "2026-03-29T00:59:59Z", false},
		{"just after it: 03:00", early, "Europe/Berlin", "2026-03-29T01:00:00Z", true},
		{"03:30 summer time", early, "Europe/Berlin", "2026-03-29T01:30:00Z", false},
		{"office hours go by summer time", office, "Europe/Berlin", "2026-03-30T07:00:00Z", true},
		{"and no longer by winter time", office, "Europe/Berlin", "2026-03-30T15:30:00Z", false},
		{"the short day is whole: begin", day, "Europe/Berlin", "2026-03-28T23:00:00Z", true},
		{"the short day is whole: end", day, "Europe/Berlin", "2026-03-29T21:59:59Z", true},
		{"saturday's night into the short day", night, "Europe/Berlin", "2026-03-29T01:59:59Z", true},
		{"ends at 04:00 summer time", night, "Europe/Berlin", "2026-03-29T02:00:00Z", false},

		// Autumn, Berlin 2026-10-25: 02:59:59 CEST is followed by 02:00:00 CET.
		{"02:30 summer time", early, "Europe/Berlin", "2026-10-25T00:30:00Z", true},
		{"02:00 winter time is not open yet", early, "Europe/Berlin", "2026-10-25T01:00:00Z", false},
		{"02:30 winter time, again", early, "Europe/Berlin", "2026-10-25T01:30:00Z", true},
		{"03:30 winter time", early, "Europe/Berlin", "2026-10-25T02:30:00Z", false},
		{"saturday's night into the long day", night, "Europe/Berlin", "2026-10-25T02:59:59Z", true},
		{"ends at 04:00 winter time", night, "Europe/Berlin", "2026-10-25T03:00:00Z", false},
		{"the long day is whole", day, "Europe/Berlin", "2026-10-25T22:59:59Z", true},

		// America/New_York 2026-11-01 02:00 EDT -> 01:00 EST; 2026-03-08 02:00 EST -> 03:00 EDT.
		{"New York, 02:30 once only", early, "America/New_York", "2026-11-01T07:30:00Z", true},
		{"New York, 02:30 does not exist", early, "America/New_York", "2026-03-08T06:59:00Z", false},
		{"New York, 03:00 summer time", early, "America/New_York", "2026-03-08T07:00:00Z", true},
		// Half an hour: Australia/Lord_Howe.
		{"Lord Howe, summer: UTC+11", office, "Australia/Lord_Howe", "2026-01-05T22:00:00Z", true},
		{"Lord Howe, winter: UTC+10:30", office, "Australia/Lord_Howe", "2026-07-06T22:00:00Z", false},
	} {
		zone, err := Zone(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.s.IsOpen(at.In(zone)); got != c.open {
			t.Errorf("%s: at %s open is %v", c.name, at.In(zone), got)
		}
	}
}

func TestZone(t *testing.T) {
	for _, name := range []string{"Europe/Atlantis", "../etc/passwd", "/etc/localtime", "Local", "europe/berlin\n", "CET/../UTC", "${TZ}"} {
		if z, err := Zone(name); err == nil {
			t.Errorf("%q is taken for %v", name, z)
		}
	}
	for _, name := range []string{"", "UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5"} {
		if _, err := Zone(name); err != nil {
			t.Error(err)
		}
	}
}
