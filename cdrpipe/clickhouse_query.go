package cdrpipe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// named is a parameter that the server itself puts in.
func named(name string, value any) driver.NamedValue { return clickhouse.Named(name, value) }

// collectDriver reads all rows and closes them.
func collectDriver[T any](rows driver.Rows, scan func(func(...any) error) (T, error)) (out []T, err error) {
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		v, err := scan(rows.Scan)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// conditions gathers a WHERE clause. Texts go to the server as parameters.
type conditions struct {
	terms  []string
	params []any
}

func (w *conditions) add(term string) { w.terms = append(w.terms, term) }

func (w *conditions) text(column, value string) {
	if value != "" {
		name := "p_" + column
		w.add(column + " = {" + name + ":String}")
		w.params = append(w.params, named(name, value))
	}
}

// between restricts to rows whose time is in [since, until); a zero time is no
// bound. The day lets the server leave out whole partitions; rows without a
// start are in that of 1970.
func (w *conditions) between(since, until time.Time) {
	if !since.IsZero() {
		w.add(fmt.Sprintf("(day >= %s OR day = toDate(0)) AND time_us >= %d", dayOf(since), micros(since)))
	}
	if !until.IsZero() {
		w.add(fmt.Sprintf("time_us < %d", micros(until)))
		if d := dayOf(until); d > 0 {
			w.add("day <= " + d.String())
		}
	}
}

func (w *conditions) sql() string {
	if len(w.terms) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.terms, " AND ")
}

// Records implements Warehouse.
func (c *ClickHouse) Records(ctx context.Context, f Filter) ([]Row, error) {
	if f.Limit < 1 || f.Limit > MaxLimit {
		return nil, fmt.Errorf("read call records: the limit is %d, it must be 1 to %d: %w", f.Limit, MaxLimit, bulkhead.Invalid)
	}
	var w conditions
	w.between(f.Since, f.Until)
	w.text("tenant", string(f.Tenant))
	w.text("kind", string(f.Kind))
	w.text("call", f.Call)
	if !f.After.IsZero() {
		w.between(f.After.Time, time.Time{})
		w.add(fmt.Sprintf("(time_us, id) > (%d, toFixedString(unhex('%s'), 16))", micros(f.After.Time), f.After.ID))
	}
	rows, err := c.conn.Query(ctx, fmt.Sprintf("SELECT id, seq, %s FROM %s FINAL%s ORDER BY time_us, id LIMIT %d",
		clickHouseColumns, c.table("cdr"), w.sql(), f.Limit), w.params...)
	if err != nil {
		return nil, fmt.Errorf("read call records: %w", err)
	}
	out, err := collectDriver(rows, func(scan func(...any) error) (Row, error) {
		r, _, err := scanClickHouse(scan)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("read call records: %w", err)
	}
	return out, nil
}

func scanClickHouse(scan func(...any) error) (Row, int64, error) {
	var (
		r                        Row
		id                       string
		texts                    [11]string
		schema, code, q850, seq  int64
		offset                   int64
		revision                 uint64
		sources                  []string
		prov                     map[string]string
		start, ring, answer, end *int64
	)
	err := scan(&id, &seq, &schema, &texts[0], &texts[1], &sources, &prov, &texts[2], &texts[3], &texts[4], &texts[5], &texts[6], &revision, &r.Leg, &r.Call, &r.SIPCallID,
		&texts[7], &r.Caller, &r.Callee, &start, &ring, &answer, &end, &r.BilledMS, &code, &q850, &r.Cause, &r.Codec, &r.HangupBy,
		&r.RTPIn, &r.RTPOut, &r.RTPLost, &r.JitterMS, &r.MOS, &offset, &r.Attrs, &r.Gap)
	if err != nil {
		return Row{}, 0, err
	}
	r.ID = cdr.ID([]byte(id))
	r.Schema, r.SIPCode, r.Q850, r.ClockOffset = int(schema), int(code), int(q850), time.Duration(offset)
	r.Kind, r.Source = cdr.Kind(texts[0]), cdr.Source(texts[1])
	r.Cell, r.Node, r.SBC = bulkhead.CellID(texts[2]), bulkhead.NodeID(texts[3]), bulkhead.SBCID(texts[4])
	r.Pool, r.Tenant, r.Direction = bulkhead.PoolID(texts[5]), bulkhead.TenantID(texts[6]), cdr.Direction(texts[7])
	r.Revision = bulkhead.RevisionNumber(revision)
	if r.Prov = provOf(prov); len(sources) > 1 {
		for _, s := range sources {
			r.Sources = append(r.Sources, cdr.Source(s))
		}
	}
	for to, us := range map[*time.Time]*int64{&r.Start: start, &r.Ring: ring, &r.Answer: answer, &r.End: end} {
		if us != nil {
			*to = fromMicros(*us)
		}
	}
	if len(r.Attrs) == 0 {
		r.Attrs = nil
	}
	return r, seq, nil
}

// Export implements Warehouse. The server's clock numbers each block before it
// becomes visible, so a block that is still being written may get a number
// below one that can be seen. The export ends before the begin of the oldest
// insert that runs.
func (c *ClickHouse) Export(ctx context.Context, e Export) ([]Row, Position, error) {
	if e.Limit < 1 || e.Limit > MaxLimit {
		return nil, e.After, fmt.Errorf("export call records: the limit is %d, it must be 1 to %d: %w", e.Limit, MaxLimit, bulkhead.Invalid)
	}
	var horizon int64
	// elapsed counts from when the server began the insert, before it numbered
	// anything; and it ends when the rows are visible.
	err := c.conn.QueryRow(ctx, "SELECT toUnixTimestamp64Micro(now64(6)) - toInt64(1e6 * maxOrDefaultIf(elapsed, query_kind = 'Insert' AND Settings['log_comment'] = {c:String})) FROM system.processes",
		named("c", c.cfg.comment())).Scan(&horizon)
	if err != nil {
		return nil, e.After, fmt.Errorf("export call records: ask which inserts run: %w", err)
	}
	var w conditions
	w.add(fmt.Sprintf("seq >= %d AND seq < %d AND (seq, id) > (%d, toFixedString(unhex('%s'), 16))",
		e.After.Seq, horizon-c.cfg.ExportLag.Microseconds(), e.After.Seq, e.After.ID))
	w.text("tenant", string(e.Tenant))
	w.text("kind", string(e.Kind))
	next := e.After
	rows, err := c.conn.Query(ctx, fmt.Sprintf("SELECT id, seq, %s FROM %s FINAL%s ORDER BY seq, id LIMIT %d",
		clickHouseColumns, c.table("cdr"), w.sql(), e.Limit), w.params...)
	if err != nil {
		return nil, e.After, fmt.Errorf("export call records: %w", err)
	}
	out, err := collectDriver(rows, func(scan func(...any) error) (Row, error) {
		r, seq, err := scanClickHouse(scan)
		next = Position{Seq: seq, ID: r.ID}
		return r, err
	})
	if err != nil {
		return nil, e.After, fmt.Errorf("export call records: %w", err)
	}
	return out, next, nil
}

// Raw implements Warehouse.
func (c *ClickHouse) Raw(ctx context.Context, id cdr.ID) ([][]byte, error) {
	rows, err := c.conn.Query(ctx, fmt.Sprintf("SELECT raw FROM %s FINAL WHERE id = toFixedString(unhex('%s'), 16) AND raw != '' ORDER BY stored, hash", c.table("report"), id))
	if err != nil {
		return nil, fmt.Errorf("read raw events: %w", err)
	}
	out, err := collectDriver(rows, func(scan func(...any) error) (b []byte, err error) {
		err = scan(&b)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("read raw events: %w", err)
	}
	return out, nil
}

// Gaps implements Warehouse.
func (c *ClickHouse) Gaps(ctx context.Context, since time.Time, limit int) ([]cdr.Gap, error) {
	if limit < 1 || limit > MaxLimit {
		return nil, fmt.Errorf("read gaps: the limit is %d, it must be 1 to %d: %w", limit, MaxLimit, bulkhead.Invalid)
	}
	rows, err := c.conn.Query(ctx, fmt.Sprintf("SELECT id, cell, node, from_us, to_us, reason, legs FROM %s FINAL WHERE to_us = 0 OR to_us >= %d ORDER BY from_us DESC, id LIMIT %d",
		c.table("gap"), micros(since), limit))
	if err != nil {
		return nil, fmt.Errorf("read gaps: %w", err)
	}
	out, err := collectDriver(rows, func(scan func(...any) error) (cdr.Gap, error) {
		var g cdr.Gap
		var cell, node string
		var from, to int64
		err := scan(&g.ID, &cell, &node, &from, &to, &g.Reason, &g.Legs)
		g.Cell, g.Node, g.From, g.To = bulkhead.CellID(cell), bulkhead.NodeID(node), fromMicros(from), fromMicros(to)
		if slices.Sort(g.Legs); len(g.Legs) == 0 {
			g.Legs = nil
		}
		return g, err
	})
	if err != nil {
		return nil, fmt.Errorf("read gaps: %w", err)
	}
	return out, nil
}

// Counts implements Warehouse.
func (c *ClickHouse) Counts(ctx context.Context) (Counts, error) {
	var records, gaps, quarantine uint64
	err := c.conn.QueryRow(ctx, fmt.Sprintf("SELECT (SELECT count() FROM %s FINAL), (SELECT count() FROM %s FINAL), (SELECT count() FROM %s FINAL)",
		c.table("cdr"), c.table("gap"), c.table("quarantine"))).Scan(&records, &gaps, &quarantine)
	if err != nil {
		return Counts{}, fmt.Errorf("count call records: %w", err)
	}
	return Counts{Records: int64(records), Gaps: int64(gaps), Quarantine: int64(quarantine)}, nil
}
