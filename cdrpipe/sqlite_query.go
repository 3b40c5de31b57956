package cdrpipe

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// Records implements Warehouse.
func (s *SQLite) Records(ctx context.Context, f Filter) ([]Row, error) {
	if f.Limit < 1 || f.Limit > MaxLimit {
		return nil, fmt.Errorf("read call records: the limit is %d, it must be 1 to %d: %w", f.Limit, MaxLimit, bulkhead.Invalid)
	}
	where, values := f.where()
	rows, err := s.read.QueryContext(ctx, "SELECT id, "+columns+" FROM cdr"+where+" ORDER BY time_us, id LIMIT ?", append(values, f.Limit)...)
	if err != nil {
		return nil, fmt.Errorf("read call records: %w", err)
	}
	out, err := collect(rows, scan)
	if err != nil {
		return nil, fmt.Errorf("read call records: %w", err)
	}
	return out, nil
}

func (f *Filter) where() (string, []any) {
	var terms []string
	var values []any
	add := func(term string, v ...any) {
		terms = append(terms, term)
		values = append(values, v...)
	}
	if f.Tenant != "" {
		add("tenant = ?", string(f.Tenant))
	}
	if f.Kind != "" {
		add("kind = ?", string(f.Kind))
	}
	if f.Call != "" {
		add("call = ?", f.Call)
	}
	if !f.Since.IsZero() {
		add("time_us >= ?", micros(f.Since))
	}
	if !f.Until.IsZero() {
		add("time_us < ?", micros(f.Until))
	}
	if !f.After.IsZero() {
		add("(time_us, id) > (?, ?)", micros(f.After.Time), f.After.ID.String())
	}
	if len(terms) == 0 {
		return "", nil
	}
	return " WHERE " + strings.Join(terms, " AND "), values
}

// Export implements Warehouse. Batches are stored one after the other, so
// what is behind a position when it is read stays behind it.
func (s *SQLite) Export(ctx context.Context, e Export) ([]Row, Position, error) {
	if e.Limit < 1 || e.Limit > MaxLimit {
		return nil, e.After, fmt.Errorf("export call records: the limit is %d, it must be 1 to %d: %w", e.Limit, MaxLimit, bulkhead.Invalid)
	}
	where, values := "WHERE (seq, id) > (?, ?)", []any{e.After.Seq, e.After.ID.String()}
	if e.Tenant != "" {
		where, values = where+" AND tenant = ?", append(values, string(e.Tenant))
	}
	if e.Kind != "" {
		where, values = where+" AND kind = ?", append(values, string(e.Kind))
	}
	next := e.After
	rows, err := s.read.QueryContext(ctx, "SELECT id, "+columns+" FROM cdr "+where+" ORDER BY seq, id LIMIT ?", append(values, e.Limit)...)
	if err != nil {
		return nil, next, fmt.Errorf("export call records: %w", err)
	}
	out, err := collect(rows, func(scan func(...any) error) (Row, error) {
		r, seq, err := scanSeq(scan)
		next = Position{Seq: seq, ID: r.ID}
		return r, err
	})
	if err != nil {
		return nil, e.After, fmt.Errorf("export call records: %w", err)
	}
	return out, next, nil
}

// collect reads all rows and closes them.
func collect[T any](rows *sql.Rows, scan func(func(...any) error) (T, error)) (out []T, err error) {
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

// Gaps implements Warehouse.
func (s *SQLite) Gaps(ctx context.Context, since time.Time, limit int) ([]cdr.Gap, error) {
	if limit < 1 || limit > MaxLimit {
		return nil, fmt.Errorf("read gaps: the limit is %d, it must be 1 to %d: %w", limit, MaxLimit, bulkhead.Invalid)
	}
	rows, err := s.read.QueryContext(ctx, "SELECT "+gapColumns+" FROM gap WHERE to_us IS NULL OR to_us >= ? ORDER BY from_us DESC, id LIMIT ?", micros(since), limit)
	if err != nil {
		return nil, fmt.Errorf("read gaps: %w", err)
	}
	out, err := collect(rows, scanGap)
	if err != nil {
		return nil, fmt.Errorf("read gaps: %w", err)
	}
	return out, nil
}

// Counts implements Warehouse.
func (s *SQLite) Counts(ctx context.Context) (Counts, error) {
	var c Counts
	err := s.read.QueryRowContext(ctx, "SELECT (SELECT count(*) FROM cdr), (SELECT count(*) FROM gap), (SELECT count(*) FROM quarantine)").
		Scan(&c.Records, &c.Gaps, &c.Quarantine)
	if err != nil {
		return Counts{}, fmt.Errorf("count call records: %w", err)
	}
	return c, nil
}
