package asterisk

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// row is one Cdr event of AMI. Asterisk writes one for every Dial of a channel
// and may write more, all with the channel's UniqueID.
type row struct {
	uniqueID, linkedID           string
	sequence                     int64
	channel                      string
	source, destination, context string
	account, tenant              string
	disposition                  string

	// Asterisk prints times by its own time zone and does not say which: these
	// are what it printed, as if that were UTC.
	start, answer, end time.Time
	sent               time.Time // the event's Timestamp, in UTC; needs timestampevents=yes

	bad []badField
}

// badField is a value that cannot be taken over as it came.
type badField struct{ field, value string }

// errNoLeg says that a Cdr event is of a channel that is no call leg.
var errNoLeg = errors.New("the channel is no call leg")

// decodeRow reads a Cdr event. Without a UniqueID it is bulkhead.Invalid.
func decodeRow(m message) (row, error) {
	r := row{
		uniqueID: m["UniqueID"], linkedID: m["LinkedID"], channel: m["Channel"],
		source: m["Source"], destination: m["Destination"], context: m["DestinationContext"],
		account: m["AccountCode"], tenant: m["Tenant"], disposition: m["Disposition"],
		start: printed(m["StartTime"]), answer: printed(m["AnswerTime"]), end: printed(m["EndTime"]),
		sent: epoch(m["Timestamp"]),
	}
	if r.uniqueID == "" || len(r.uniqueID) > maxName {
		return row{}, fmt.Errorf("decode AMI Cdr event: it has no usable UniqueID: %w", bulkhead.Invalid)
	}
	if !isLeg(r.channel) {
		return row{}, errNoLeg
	}
	var err error
	r.sequence, err = strconv.ParseInt(m["Sequence"], 10, 64) // absent without the mapping: then the order is that of the stream
	bad := func(field, value string, is bool) {
		if is && value != "" {
			r.bad = append(r.bad, badField{field, value})
		}
	}
	bad("sequence", m["Sequence"], err != nil)
	bad("start", m["StartTime"], r.start.IsZero())
	bad("answer", m["AnswerTime"], r.answer.IsZero())
	bad("end", m["EndTime"], r.end.IsZero())
	bad("sent", m["Timestamp"], r.sent.IsZero())
	for _, f := range [...]badField{
		{"leg", r.uniqueID}, {"call", r.linkedID}, {"caller", r.source}, {"callee", r.destination}, {"cause", r.disposition},
		{"endpoint", endpoint(r.channel)}, {"context", r.context}, {"account_code", r.account},
	} {
		bad(f.field, f.value, text(f.value) != f.value)
	}
	return r, nil
}

// printed reads a time such as 2026-11-23 01:12:35.
func printed(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04:05", s)
	if err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}

// begun is the second in which a channel was made, out of its UniqueID, which
// is [system name-]epoch.number unless somebody chose another.
func begun(uniqueID string) time.Time {
	s := uniqueID[strings.LastIndexByte(uniqueID, '-')+1:]
	seconds, _, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil || n < 1e9 || n > 253402300799 {
		return time.Time{}
	}
	return time.Unix(n, 0).UTC()
}

// merge makes one record of the rows of one channel. The order of the rows
// does not matter. It is answered if any of them is.
func (i *identity) merge(rows []row, zone *time.Location) cdr.Record {
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Or(cmp.Compare(a.sequence, b.sequence), a.start.Compare(b.start)) })
	first, last := rows[0], rows[len(rows)-1]
	r := i.blank(first.uniqueID, cdr.SourceAMI)
	var sent time.Time
	for _, row := range rows {
		if row.linkedID != "" && len(row.linkedID) <= maxName {
			r.Call = text(row.linkedID)
		}
		r.Caller = text(cmp.Or(r.Caller, row.source))
		r.Callee = text(cmp.Or(r.Callee, row.destination))
		if !row.start.IsZero() && (r.Start.IsZero() || row.start.Before(r.Start)) {
			r.Start = row.start
		}
		if !row.answer.IsZero() && (r.Answer.IsZero() || row.answer.Before(r.Answer)) {
			r.Answer = row.answer
		}
		if row.end.After(r.End) {
			r.End, sent = row.end, row.sent
		}
		if row.disposition == "ANSWERED" {
			r.Cause = row.disposition
		}
		setTenant(&r, row.tenant)
		setAttr(&r, "account_code", row.account)
		for _, b := range row.bad {
			setBad(&r, b.field, b.value)
		}
	}
	setAttr(&r, "context", first.context)
	setAttr(&r, "endpoint", endpoint(first.channel))
	r.Cause = text(cmp.Or(r.Cause, last.disposition))
	switch r.Cause {
	case "ANSWERED":
		r.SIPCode = 200
	case "BUSY":
		r.SIPCode = 486
	case "CONGESTION":
		r.SIPCode = 503
	default: // what else was on the wire does not show: NO ANSWER is 487, 480 or 603
		r.Answer = time.Time{}
	}
	inUTC(&r, zone, sent)
	return r
}

// inUTC turns the times of r from what Asterisk printed into UTC. Without a
// zone the begin is compared with the UniqueID, and the end with the time that
// the event was sent, which is right after: if summer time begins or ends
// during a call, they differ.
func inUTC(r *cdr.Record, zone *time.Location, sent time.Time) {
	if zone != nil {
		for _, t := range []*time.Time{&r.Start, &r.Answer, &r.End} {
			if !t.IsZero() {
				*t = time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, zone).UTC()
			}
		}
		return
	}
	atStart, okStart := offset(r.Start, begun(r.Leg))
	atEnd, okEnd := offset(r.End, sent)
	if !okStart {
		atStart = atEnd
	}
	if !okEnd {
		atEnd = atStart
	}
	shift := func(t time.Time, by time.Duration) time.Time {
		if t.IsZero() {
			return t
		}
		return t.Add(-by)
	}
	r.Start, r.End = shift(r.Start, atStart), shift(r.End, atEnd)
	answer := shift(r.Answer, atStart)
	if other := shift(r.Answer, atEnd); answer.After(r.End) || answer.Before(r.Start) {
		answer = other
	}
	r.Answer = answer
}

// offset is how far what was printed is ahead of UTC, in quarters of an hour,
// and whether that can be told.
func offset(local, utc time.Time) (time.Duration, bool) {
	if local.IsZero() || utc.IsZero() {
		return 0, false
	}
	d := local.Sub(utc)
	rounded := d.Round(15 * time.Minute)
	if rounded.Abs() > 15*time.Hour || (d-rounded).Abs() > time.Minute {
		return 0, false
	}
	return rounded, true
}
