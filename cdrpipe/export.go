package cdrpipe

import (
	"bytes"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// Export chooses records for Warehouse.Export. A zero field does not
// restrict; Limit must be 1 to MaxLimit.
type Export struct {
	Tenant bulkhead.TenantID
	Kind   cdr.Kind
	After  Position
	Limit  int
}

// Position is a place in the order in which rows were stored or changed. It
// is not a time of a call: a record that comes a week late has a position
// behind all that were there. The zero Position is before all.
type Position struct {
	Seq int64 // grows with every batch
	ID  cdr.ID
}

// IsZero reports whether the position is before all rows.
func (p Position) IsZero() bool { return p == Position{} }

// positionMark tells positions from cursors, which look alike.
const positionMark = "s"

// String writes the position for ParsePosition; empty if it is zero.
func (p Position) String() string {
	if p.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s%d-%s", positionMark, p.Seq, p.ID)
}

// ParsePosition reads what Position.String wrote. The error is
// bulkhead.Invalid.
func ParsePosition(s string) (Position, error) {
	if s == "" {
		return Position{}, nil
	}
	rest, marked := strings.CutPrefix(s, positionMark)
	seq, id, err := parsePlace(rest)
	if err != nil || !marked {
		return Position{}, fmt.Errorf("export cursor %.60q is not one of ours; take it from the export before: %w", s, bulkhead.Invalid)
	}
	return Position{Seq: seq, ID: id}, nil
}

// parsePlace reads a number, a hyphen and an id.
func parsePlace(s string) (int64, cdr.ID, error) {
	var id cdr.ID
	i := strings.LastIndexByte(s, '-')
	if i < 0 || len(s)-i-1 != hex.EncodedLen(len(id)) {
		return 0, id, strconv.ErrSyntax
	}
	n, err := strconv.ParseInt(s[:i], 10, 64)
	if err != nil {
		return 0, id, err
	}
	_, err = hex.Decode(id[:], []byte(s[i+1:]))
	return n, id, err
}

// RowWriter writes rows in some format.
type RowWriter interface {
	Write(rows []Row) error
}

// NewNDJSON returns a writer of one JSON object a line. Characters that could
// move a terminal's cursor are escaped, so nothing is lost by looking at it.
func NewNDJSON(w io.Writer) RowWriter { return ndjson{w} }

type ndjson struct{ w io.Writer }

func (n ndjson) Write(rows []Row) error {
	var b bytes.Buffer
	for i := range rows {
		line, err := json.Marshal(&rows[i])
		if err != nil {
			return fmt.Errorf("encode record %s: %w", rows[i].ID, err)
		}
		b.Write(escape(line))
		b.WriteByte('\n')
	}
	_, err := n.w.Write(b.Bytes())
	return err
}

// escape writes what encoding/json leaves of unprintable characters, which
// stand only within strings, as JSON escapes.
func escape(line []byte) []byte {
	if !bytes.ContainsFunc(line, unprintable) {
		return line
	}
	var b bytes.Buffer
	for _, r := range string(line) {
		switch {
		case !unprintable(r):
			b.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}

func unprintable(r rune) bool { return r != ' ' && !unicode.IsPrint(r) }

// CSVColumns names the columns of an export. Times are RFC 3339 in UTC with
// microseconds, and empty where unknown; so is what the switch did not
// measure, which is not zero.
func CSVColumns() []string {
	return []string{
		"id", "kind", "source", "sources", "cell", "node", "sbc", "pool", "tenant", "revision", "leg", "call", "sip_call_id",
		"direction", "caller", "callee", "start", "ring", "answer", "end", "billed_ms", "sip_code", "q850", "cause", "codec", "hangup_by",
		"rtp_in", "rtp_out", "rtp_lost", "jitter_ms", "mos", "clock_offset_ns", "gap",
	}
}

// NewCSV returns a writer of lines with the columns CSVColumns, which are the
// first line if header is set. Text that a spreadsheet would take for a
// formula gets an apostrophe before it; a telephone number with its plus sign
// stays as it is. An unprintable character becomes a question mark.
func NewCSV(w io.Writer, header bool) RowWriter { return &csvRows{w: w, header: header} }

type csvRows struct {
	w      io.Writer
	header bool // still to be written
}

func (c *csvRows) Write(rows []Row) error {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	if c.header {
		if err := w.Write(CSVColumns()); err != nil {
			return err
		}
	}
	for i := range rows {
		if err := w.Write(csvLine(&rows[i])); err != nil {
			return err
		}
	}
	w.Flush()
	if err := w.Error(); err != nil {
		return err
	}
	c.header = false
	_, err := c.w.Write(b.Bytes())
	return err
}

func csvLine(r *Row) []string {
	return []string{
		r.ID.String(), cell(r.Kind), cell(r.Source), cell(joinSources(r.Reporters())), cell(r.Cell), cell(r.Node), cell(r.SBC), cell(r.Pool), cell(r.Tenant),
		strconv.FormatUint(uint64(r.Revision), 10), cell(r.Leg), cell(r.Call), cell(r.SIPCallID),
		cell(r.Direction), cell(r.Caller), cell(r.Callee), csvTime(r.Start), csvTime(r.Ring), csvTime(r.Answer), csvTime(r.End),
		strconv.FormatInt(r.BilledMS, 10), strconv.Itoa(r.SIPCode), strconv.Itoa(r.Q850), cell(r.Cause), cell(r.Codec), cell(r.HangupBy),
		csvInt(r.RTPIn), csvInt(r.RTPOut), csvInt(r.RTPLost), csvFloat(r.JitterMS), csvFloat(r.MOS), strconv.FormatInt(int64(r.ClockOffset), 10), cell(r.Gap),
	}
}

func csvTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000000Z")
}

func csvInt(n *int64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatInt(*n, 10)
}

func csvFloat(f *float64) string {
	if f == nil {
		return ""
	}
	return strconv.FormatFloat(*f, 'g', -1, 64)
}

// cell makes text that came over the network harmless in a spreadsheet.
func cell[S ~string](text S) string {
	s := strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unprintable(r) {
			return '?'
		}
		return r
	}, string(text))
	// A formula may stand behind spaces.
	if t := strings.TrimLeft(s, " "); t != "" && strings.IndexByte("=+-@", t[0]) >= 0 && !isNumber(t) {
		return "'" + s
	}
	return s
}

// isNumber reports whether s is a telephone number: digits, perhaps with a
// plus sign before them.
func isNumber(s string) bool {
	digits := strings.TrimPrefix(s, "+")
	return digits != "" && strings.Trim(digits, "0123456789") == ""
}
