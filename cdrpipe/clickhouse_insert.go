package cdrpipe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/ext"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

// report is one report of one leg.
type report struct {
	day    day
	hash   string // 16 bytes
	record cdr.Record
	json   []byte
	raw    []byte
}

// day is days since 1970, as ClickHouse's Date; 0: not known.
type day uint16

// dayEdge is how far two reports of a leg may disagree about its start and
// still be found by each other at midnight. Sources that cut to seconds
// disagree by one.
const dayEdge = 10 * time.Minute

// dayOf is the day of a start, in UTC; 0 if it is unknown, or no day that a
// column can hold.
func dayOf(start time.Time) day {
	s := start.Unix()
	if start.IsZero() || s < 0 || s >= 1<<16*86400 {
		return 0
	}
	return day(s / 86400)
}

func (d day) time() time.Time { return time.Unix(int64(d)*86400, 0).UTC() }

func (d day) String() string { return "'" + d.time().Format(time.DateOnly) + "'" }

// leg is what is known of one leg: reports that differ.
type leg struct {
	id      cdr.ID
	reports []*report
}

func (l *leg) add(r *report) {
	for _, o := range l.reports {
		if o.hash == r.hash {
			if len(o.raw) == 0 {
				o.raw = r.raw
			}
			return
		}
	}
	l.reports = append(l.reports, r)
}

// merged is the row that all reports make, and its day.
func (l *leg) merged() (Row, day) {
	var m *cdr.Record
	for _, r := range l.reports {
		if m == nil {
			m = &r.record
			continue
		}
		next := cdr.Merge(*m, r.record)
		m = &next
	}
	return newRow(*m), dayOf(m.Start)
}

// Insert implements Warehouse. An insert that fails half way leaves reports,
// which the next attempt finds.
func (c *ClickHouse) Insert(ctx context.Context, entries []cdr.Entry) error {
	legs, err := reportsOf(entries)
	if err == nil && len(legs) > 0 {
		err = c.putReports(ctx, legs)
		if err == nil {
			err = c.putRows(ctx, legs)
		}
	}
	if gaps := mergedGaps(entries); err == nil && len(gaps) > 0 {
		err = c.putGaps(ctx, gaps)
	}
	if err != nil {
		return fmt.Errorf("store %d call records: %w", len(entries), c.cfg.explain(err))
	}
	return nil
}

// reportsOf returns the legs of a batch in the order of their ids, in which
// the tables have them too.
func reportsOf(entries []cdr.Entry) ([]*leg, error) {
	byID := make(map[cdr.ID]*leg, len(entries))
	legs := make([]*leg, 0, len(entries))
	for _, e := range entries {
		if e = normal(e); e.Record == nil {
			continue
		}
		r, err := newReport(e)
		if err != nil {
			return nil, err
		}
		l := byID[r.record.ID]
		if l == nil {
			l = &leg{id: r.record.ID}
			byID[l.id] = l
			legs = append(legs, l)
		}
		l.add(r)
	}
	slices.SortFunc(legs, func(a, b *leg) int { return bytes.Compare(a.id[:], b.id[:]) })
	return legs, nil
}

func newReport(e cdr.Entry) (*report, error) {
	b, err := e.Record.AppendJSON(make([]byte, 0, 1024))
	if err != nil {
		return nil, fmt.Errorf("encode record %s: %w", e.Record.ID, err)
	}
	sum := sha256.Sum256(b) // of the id too
	return &report{day: dayOf(e.Record.Start), hash: string(sum[:16]), record: *e.Record, json: b, raw: e.Raw}, nil
}

// putReports stores the reports of a batch. That some of them are there
// already changes nothing.
func (c *ClickHouse) putReports(ctx context.Context, legs []*leg) error {
	return c.insert(ctx, "report", "day, id, hash, record, raw", func(b driver.Batch) error {
		for _, l := range legs {
			for _, r := range l.reports {
				if err := b.Append(r.day.time(), l.id[:], r.hash, r.json, r.raw); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// insert sends one block. A batch of the driver is of no use after an error;
// who tries again makes another.
func (c *ClickHouse) insert(ctx context.Context, table, columns string, fill func(driver.Batch) error) error {
	b, err := c.conn.PrepareBatch(ctx, "INSERT INTO "+c.table(table)+" ("+columns+")")
	if err != nil {
		return fmt.Errorf("insert into %s: %w", table, err)
	}
	if err := fill(b); err != nil {
		return errors.Join(fmt.Errorf("insert into %s: %w", table, err), b.Abort())
	}
	if err := b.Send(); err != nil {
		return fmt.Errorf("insert into %s: %w", table, err)
	}
	return nil
}

// putRows finds the other reports of a batch's legs and writes the rows that
// all of them make. It runs behind putReports: of two writers that report the
// same leg at once, at least one sees both reports.
func (c *ClickHouse) putRows(ctx context.Context, legs []*leg) error {
	days := daysOf(legs)
	found, err := c.otherReports(ctx, legs, days)
	if err != nil {
		return fmt.Errorf("read earlier reports: %w", err)
	}
	for _, r := range found {
		i, ok := slices.BinarySearchFunc(legs, r.record.ID, func(l *leg, id cdr.ID) int { return bytes.Compare(l.id[:], id[:]) })
		if ok {
			legs[i].add(r)
			days[r.day] = true
		}
	}
	have, err := c.presentRows(ctx, legs, days)
	if err != nil {
		return fmt.Errorf("read present rows: %w", err)
	}
	var rows []versioned
	for _, l := range legs {
		rows = append(rows, l.rows(have[l.id])...)
	}
	if len(rows) == 0 {
		return nil
	}
	return c.insert(ctx, "cdr", clickHouseInsertColumns, func(b driver.Batch) error {
		for i := range rows {
			if err := b.Append(rows[i].args()...); err != nil {
				return err
			}
		}
		return nil
	})
}

// daysOf lists the days on which other reports of the legs may be: their own,
// the next to them at midnight, and the unknown one.
func daysOf(legs []*leg) map[day]bool {
	days := map[day]bool{0: true}
	for _, l := range legs {
		for _, r := range l.reports {
			if r.day != 0 {
				days[dayOf(r.record.Start.Add(-dayEdge))], days[r.day], days[dayOf(r.record.Start.Add(dayEdge))] = true, true, true
			}
		}
	}
	return days
}

func dayList(days map[day]bool) string {
	var b strings.Builder
	for i, d := range slices.Sorted(maps.Keys(days)) {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(d.String())
	}
	return b.String()
}

// otherReports reads the reports of the legs that the batch does not hold. A
// leg without a start is looked for on every day: the index by_id knows where.
func (c *ClickHouse) otherReports(ctx context.Context, legs []*leg, days map[day]bool) ([]*report, error) {
	hashes, err := ext.NewTable("batch_hashes", ext.Column("hash", "FixedString(16)"))
	if err != nil {
		return nil, err
	}
	var loose []*leg
	for _, l := range legs {
		dated := true
		for _, r := range l.reports {
			if err := hashes.Append(r.hash); err != nil {
				return nil, err
			}
			dated = dated && r.day != 0
		}
		if !dated {
			loose = append(loose, l)
		}
	}
	ids, err := idTable(legs)
	if err != nil {
		return nil, err
	}
	const which = "id IN (SELECT id FROM batch_ids) AND hash NOT IN (SELECT hash FROM batch_hashes)"
	found, err := c.readReports(clickhouse.Context(ctx, clickhouse.WithExternalTable(ids, hashes)), "day IN ("+dayList(days)+") AND "+which)
	if err != nil || len(loose) == 0 {
		return found, err
	}
	if ids, err = idTable(loose); err != nil {
		return nil, err
	}
	more, err := c.readReports(clickhouse.Context(ctx, clickhouse.WithExternalTable(ids, hashes)), which)
	return append(found, more...), err
}

func idTable(legs []*leg) (*ext.Table, error) {
	t, err := ext.NewTable("batch_ids", ext.Column("id", "FixedString(16)"))
	if err != nil {
		return nil, err
	}
	for _, l := range legs {
		if err := t.Append(l.id[:]); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (c *ClickHouse) readReports(ctx context.Context, where string) ([]*report, error) {
	rows, err := c.conn.Query(ctx, "SELECT record FROM "+c.table("report")+" WHERE "+where)
	if err != nil {
		return nil, err
	}
	return collectDriver(rows, func(scan func(...any) error) (*report, error) {
		var b []byte
		if err := scan(&b); err != nil {
			return nil, err
		}
		var r cdr.Record
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("a stored report is damaged: %w", err)
		}
		return newReport(normal(cdr.Entry{Record: &r}))
	})
}

// present is a row of a leg that queries see.
type present struct {
	day     day
	reports uint16
}

func (c *ClickHouse) presentRows(ctx context.Context, legs []*leg, days map[day]bool) (map[cdr.ID][]present, error) {
	ids, err := idTable(legs)
	if err != nil {
		return nil, err
	}
	rows, err := c.conn.Query(clickhouse.Context(ctx, clickhouse.WithExternalTable(ids)),
		"SELECT id, toUInt16(day), reports FROM "+c.table("cdr")+" FINAL WHERE day IN ("+dayList(days)+") AND id IN (SELECT id FROM batch_ids)")
	if err != nil {
		return nil, err
	}
	have := map[cdr.ID][]present{}
	_, err = collectDriver(rows, func(scan func(...any) error) (struct{}, error) {
		var id string
		var p present
		var d uint16
		err := scan(&id, &d, &p.reports)
		if err == nil {
			p.day = day(d)
			k := cdr.ID([]byte(id))
			have[k] = append(have[k], p)
		}
		return struct{}{}, err
	})
	return have, err
}

// versioned is a row of the table cdr.
type versioned struct {
	*Row
	day     day
	reports uint16
	gone    uint8
}

// rows are the rows to write of a leg: none if they are there already.
func (l *leg) rows(have []present) []versioned {
	row, d := l.merged()
	n := uint16(min(len(l.reports), 1<<16-1))
	if len(have) == 1 && have[0] == (present{d, n}) {
		return nil
	}
	out := []versioned{{&row, d, n, 0}}
	for _, r := range l.reports {
		if !slices.ContainsFunc(out, func(v versioned) bool { return v.day == r.day }) {
			out = append(out, versioned{&row, r.day, n, 1})
		}
	}
	return out
}

const clickHouseColumns = `schema, kind, source, sources, prov, cell, node, sbc, pool, tenant, revision, leg, call, sip_call_id,
	direction, caller, callee, start_us, ring_us, answer_us, end_us, billed_ms, sip_code, q850, cause, codec, hangup_by,
	rtp_in, rtp_out, rtp_lost, jitter_ms, mos, clock_offset_ns, attrs, gap`

const clickHouseInsertColumns = "day, id, reports, gone, time_us, " + clickHouseColumns

func (v *versioned) args() []any {
	r := v.Row
	var sources []string
	for _, s := range r.Reporters() {
		sources = append(sources, string(s))
	}
	attrs := r.Attrs
	if attrs == nil {
		attrs = map[string]string{}
	}
	return []any{
		v.day.time(), r.ID[:], v.reports, v.gone, micros(r.Time()),
		int64(r.Schema), string(r.Kind), string(r.Source), sources, provTexts(&r.Record), string(r.Cell), string(r.Node), string(r.SBC),
		string(r.Pool), string(r.Tenant), uint64(r.Revision), r.Leg, r.Call, r.SIPCallID,
		string(r.Direction), r.Caller, r.Callee, nullMicros(r.Start), nullMicros(r.Ring), nullMicros(r.Answer), nullMicros(r.End), r.BilledMS,
		int64(r.SIPCode), int64(r.Q850), r.Cause, r.Codec, r.HangupBy,
		r.RTPIn, r.RTPOut, r.RTPLost, r.JitterMS, r.MOS, int64(r.ClockOffset), attrs, r.Gap,
	}
}

func nullMicros(t time.Time) *int64 {
	us := micros(t)
	if us == 0 {
		return nil
	}
	return &us
}

func (c *ClickHouse) putGaps(ctx context.Context, gaps []cdr.Gap) error {
	return c.insert(ctx, "gap", "id, cell, node, from_us, to_us, reason, legs", func(b driver.Batch) error {
		for i := range gaps {
			g := &gaps[i]
			legs := append([]string{}, g.Legs...)
			if err := b.Append(g.ID, string(g.Cell), string(g.Node), micros(g.From), micros(g.To), g.Reason, legs); err != nil {
				return err
			}
		}
		return nil
	})
}

// Quarantine implements Warehouse.
func (c *ClickHouse) Quarantine(ctx context.Context, payloads []Undecodable) error {
	err := c.insert(ctx, "quarantine", "id, reason, payload", func(b driver.Batch) error {
		for _, u := range payloads {
			sum := sha256.Sum256(u.Payload)
			if err := b.Append(string(sum[:]), u.Reason, string(u.Payload)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store %d undecodable payloads: %w", len(payloads), c.cfg.explain(err))
	}
	return nil
}
