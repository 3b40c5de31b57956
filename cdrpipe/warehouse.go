package cdrpipe

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// Warehouse keeps records and gaps. Its methods may be called by several
// goroutines.
type Warehouse interface {
	// Insert stores entries durably, all or, on an error, possibly some of
	// them. It is idempotent: for every id there is one row, and it holds
	// what cdr.Merge or MergeGap makes of all reports, whatever their order.
	Insert(ctx context.Context, entries []cdr.Entry) error
	// Quarantine stores payloads that are no entries, durably, one row for
	// equal payloads.
	Quarantine(ctx context.Context, payloads []Undecodable) error
	// Records returns records in the order of Row.Cursor, at most f.Limit.
	Records(ctx context.Context, f Filter) ([]Row, error)
	// Export returns records in the order in which they were stored, at most
	// e.Limit, and the position behind the last of them. Who goes on from
	// there gets every record at least once, however late it was stored, and
	// again, with the same id, when a better report changed it.
	Export(ctx context.Context, e Export) ([]Row, Position, error)
	// KPIs returns the counts that q asks for, in the order of time, tenant,
	// pool and node. The error is bulkhead.Invalid if they are more than
	// MaxLimit.
	KPIs(ctx context.Context, q KPIQuery) ([]KPI, error)
	// Raw returns the raw events of a record that are still kept, as Entry.Raw
	// had them, the oldest first.
	Raw(ctx context.Context, id cdr.ID) ([][]byte, error)
	// Gaps returns gaps that touch the time from since on, those that are
	// open included, the newest first, at most limit.
	Gaps(ctx context.Context, since time.Time, limit int) ([]cdr.Gap, error)
	// Summary returns what happened from since on, by Row.Time, in the order
	// of tenant and pool.
	Summary(ctx context.Context, since time.Time) ([]TenantSummary, error)
	// Counts returns the rows of all kinds.
	Counts(ctx context.Context) (Counts, error)
}

// Undecodable is a payload of the stream that is no entry.
type Undecodable struct {
	Payload []byte
	Reason  string
}

// Counts are numbers of rows.
type Counts struct {
	Records    int64 `json:"records"`
	Gaps       int64 `json:"gaps"`
	Quarantine int64 `json:"quarantine"`
}

// MaxLimit is the most rows that one question may ask for.
const MaxLimit = 10_000

// Filter chooses records. A zero field does not restrict; Limit must be 1 to
// MaxLimit.
type Filter struct {
	Tenant bulkhead.TenantID
	Kind   cdr.Kind
	Since  time.Time // Row.Time at or after it
	Until  time.Time // Row.Time before it
	Call   string
	After  Cursor // rows behind this one
	Limit  int
}

// Row is a record as the warehouse returns it.
type Row struct {
	cdr.Record
	BilledMS int64 `json:"billed_ms"` // Record.Billed in milliseconds, rounded down
}

func newRow(r cdr.Record) Row { return Row{Record: r, BilledMS: r.Billed().Milliseconds()} }

// Time is what rows are ordered and filtered by: the first time known of the
// leg, that is its start but for a leg that a bridge first saw while it ran.
// It is zero if no time at all is known.
func (r *Row) Time() time.Time { return timeOf(&r.Record) }

// Cursor returns the place of the row.
func (r *Row) Cursor() Cursor { return Cursor{Time: r.Time(), ID: r.ID} }

func timeOf(r *cdr.Record) time.Time {
	for _, t := range []time.Time{r.Start, r.Ring, r.Answer, r.End} {
		if !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

// Cursor is a place in the order of rows: by time, then id. The zero Cursor
// is before all.
type Cursor struct {
	Time time.Time
	ID   cdr.ID
}

// IsZero reports whether the cursor is before all rows.
func (c Cursor) IsZero() bool { return c == Cursor{} }

// String writes the cursor for ParseCursor; empty if it is zero.
func (c Cursor) String() string {
	if c.IsZero() {
		return ""
	}
	return fmt.Sprintf("%d-%s", micros(c.Time), c.ID)
}

// ParseCursor reads what Cursor.String wrote. The error is bulkhead.Invalid.
func ParseCursor(s string) (Cursor, error) {
	if s == "" {
		return Cursor{}, nil
	}
	us, id, err := parsePlace(s)
	if err != nil {
		return Cursor{}, fmt.Errorf("cursor %.60q is not one of ours; take it from the answer before: %w", s, bulkhead.Invalid)
	}
	return Cursor{Time: fromMicros(us), ID: id}, nil
}

// TenantSummary sums up a tenant in a pool. Refusals that no tenant could be
// found for have neither.
type TenantSummary struct {
	Tenant    bulkhead.TenantID `json:"tenant"`
	Pool      bulkhead.PoolID   `json:"pool"`
	Legs      int64             `json:"legs"`
	Calls     int64             `json:"calls"`     // A legs
	Answered  int64             `json:"answered"`  // A legs that were answered
	Refused   int64             `json:"refused"`   // by an SBC
	Failovers int64             `json:"failovers"` // attempts on a node that failed
	Gapped    int64             `json:"gapped"`    // legs whose end was not seen
	Billed    time.Duration     `json:"-"`         // of A legs
	BilledMS  int64             `json:"billed_ms"` // Billed in milliseconds
	LastCause string            `json:"last_cause"`
	Last      time.Time         `json:"last,omitzero"` // end, or else Row.Time, of the newest record
}

// MergeGap joins two reports of one gap: what a bridge wrote at its begin, at
// its end, or again after it was killed in between. It is commutative,
// associative and idempotent.
func MergeGap(a, b cdr.Gap) cdr.Gap {
	g := a
	g.Cell, g.Node = max(a.Cell, b.Cell), max(a.Node, b.Node)
	if b.From.Before(a.From) {
		g.From = b.From
	}
	if b.To.After(a.To) {
		g.To = b.To
	}
	g.Reason = max(a.Reason, b.Reason)
	g.Legs = slices.Compact(slices.Sorted(slices.Values(slices.Concat(a.Legs, b.Legs))))
	return g
}

// normal brings an entry to the form in which it is stored and compared:
// times in UTC, cut to microseconds, and everything as a merge leaves it.
func normal(e cdr.Entry) cdr.Entry {
	var out cdr.Entry
	if e.Record != nil {
		r := cdr.Merge(*e.Record, *e.Record)
		for _, t := range []*time.Time{&r.Start, &r.Ring, &r.Answer, &r.End} {
			*t = fromMicros(micros(*t))
		}
		out.Record, out.Raw = &r, e.Raw
	}
	if e.Gap != nil {
		g := *e.Gap
		g.From, g.To = fromMicros(micros(g.From)), fromMicros(micros(g.To))
		g = MergeGap(g, g) // sorts the legs
		out.Gap = &g
	}
	return out
}

// micros is t in microseconds since 1970; 0 stands for the zero time.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// merged joins the entries of a batch, so that each id is written once.
func merged(entries []cdr.Entry) ([]Row, []cdr.Gap) {
	records := map[cdr.ID]cdr.Record{}
	for _, e := range entries {
		if e = normal(e); e.Record == nil {
			continue
		}
		r := *e.Record
		if old, ok := records[r.ID]; ok {
			r = cdr.Merge(old, r)
		}
		records[r.ID] = r
	}
	rows := make([]Row, 0, len(records))
	for _, r := range records {
		rows = append(rows, newRow(r))
	}
	slices.SortFunc(rows, func(a, b Row) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return rows, mergedGaps(entries)
}

// provTexts is Record.Prov for a store, and provOf back.
func provTexts(r *cdr.Record) map[string]string {
	texts := make(map[string]string, len(r.Prov))
	for source, fields := range r.Prov {
		texts[string(source)] = fields.String()
	}
	return texts
}

func provOf(texts map[string]string) map[cdr.Source]cdr.Fields {
	if len(texts) == 0 {
		return nil
	}
	prov := make(map[cdr.Source]cdr.Fields, len(texts))
	for source, text := range texts {
		var f cdr.Fields
		_ = f.UnmarshalText([]byte(text)) // it never fails
		prov[cdr.Source(source)] = f
	}
	return prov
}

func mergedGaps(entries []cdr.Entry) []cdr.Gap {
	gaps := map[string]cdr.Gap{}
	for _, e := range entries {
		if e.Gap == nil {
			continue
		}
		g := *normal(cdr.Entry{Gap: e.Gap}).Gap
		if old, ok := gaps[g.ID]; ok {
			g = MergeGap(old, g)
		}
		gaps[g.ID] = g
	}
	return slices.SortedFunc(maps.Values(gaps), func(a, b cdr.Gap) int { return cmp.Compare(a.ID, b.ID) })
}
