package stream

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

// keys of a stream.
type keys string

func (k keys) stream() string            { return "{" + string(k) + "}:stream" }
func (k keys) sent() string              { return "{" + string(k) + "}:sent" }
func (k keys) acked(group string) string { return "{" + string(k) + "}:acked:" + group }

// validName accepts what can stand in a key, in a hash tag and between blanks.
func validName(s string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:"
	return s != "" && len(s) <= 128 && strings.Trim(s, allowed) == ""
}

// The fields of an entry.
const (
	fieldPayload = "p"
	fieldOrigin  = "o" // see origin
)

// origin says where the record of an entry comes from. The record lies between
// from and to, and nothing else does.
type origin struct {
	writer, session string
	from, to        spool.Position
}

// place writes a position short. Scripts compare places as pairs of numbers.
func place(b []byte, p spool.Position) []byte {
	b = strconv.AppendUint(b, p.Segment, 10)
	b = append(b, ':')
	return strconv.AppendInt(b, p.Offset, 10)
}

func placeString(p spool.Position) string { return string(place(nil, p)) }

// appendTo writes "<writer> <session> <from> <to>".
func (o origin) appendTo(b []byte) []byte {
	b = append(append(b, o.writer...), ' ')
	b = append(append(b, o.session...), ' ')
	b = append(place(b, o.from), ' ')
	return place(b, o.to)
}

// parseOrigin reads what appendTo writes.
func parseOrigin(s string) (origin, error) {
	f := strings.Split(s, " ")
	if len(f) != 4 || !validName(f[0]) || !validName(f[1]) {
		return origin{}, fmt.Errorf("origin %.200q of an entry is not: writer, session, from, to", s)
	}
	from, err := spool.ParsePosition(f[2])
	if err != nil {
		return origin{}, fmt.Errorf("origin of an entry: %w", err)
	}
	to, err := spool.ParsePosition(f[3])
	if err != nil {
		return origin{}, fmt.Errorf("origin of an entry: %w", err)
	}
	if !from.Before(to) {
		return origin{}, fmt.Errorf("origin %.200q of an entry ends before it begins", s)
	}
	return origin{writer: f[0], session: f[1], from: from, to: to}, nil
}

// parseSession reads "<session> <place>[ ...]", as sent and acked hold it. What
// cannot be read belongs to no session.
func parseSession(s string) (session string, at spool.Position) {
	f := strings.Fields(s)
	if len(f) < 2 {
		return "", spool.Position{}
	}
	at, err := spool.ParsePosition(f[1])
	if err != nil {
		return "", spool.Position{}
	}
	return f[0], at
}

// entryID is the id of an entry of a stream.
type entryID struct{ ms, seq uint64 }

func (a entryID) before(b entryID) bool {
	return a.ms < b.ms || a.ms == b.ms && a.seq < b.seq
}

func parseID(s string) (entryID, error) {
	ms, seq, _ := strings.Cut(s, "-")
	a, err := strconv.ParseUint(ms, 10, 64)
	if err != nil {
		return entryID{}, fmt.Errorf("id %.50q of an entry is not milliseconds-number", s)
	}
	b, err := strconv.ParseUint(seq, 10, 64)
	if err != nil {
		return entryID{}, fmt.Errorf("id %.50q of an entry is not milliseconds-number", s)
	}
	return entryID{a, b}, nil
}

// join makes as few runs as it can of the origins of a batch: one whose from
// is where another of its writer and session ended continues that one.
func join(runs []origin, o origin) []origin {
	for i := len(runs) - 1; i >= 0; i-- {
		r := &runs[i]
		if r.writer == o.writer && r.session == o.session && r.to == o.from {
			r.to = o.to
			return runs
		}
	}
	return append(runs, o)
}
