package cdrpipe

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

// The table minute exists so that a summary over a day does not read a day's
// records. It is changed by differences: a report that replaces another takes
// that one's share back.

const minuteUS = 60_000_000

// minuteOf rounds down, also before 1970.
func minuteOf(us int64) int64 {
	m := us / minuteUS
	if us%minuteUS < 0 {
		m--
	}
	return m
}

type sumKey struct {
	minute       int64
	tenant, pool string
}

// sum is a row of minute, or a difference to one.
type sum struct {
	legs, calls, answered, refused, failovers, gapped, billedMS int64

	lastUS    int64
	lastCause string
}

type sums map[sumKey]sum

// add counts a record in, n = 1, or out, n = -1. What was counted out can
// still be the last cause; it is a hint to people, not a count.
func (s sums) add(r *cdr.Record, n int64) {
	key := sumKey{minuteOf(micros(timeOf(r))), string(r.Tenant), string(r.Pool)}
	v := s[key]
	switch r.Kind {
	case cdr.Leg:
		v.legs += n
		if r.Call == r.Leg {
			v.calls += n
			v.billedMS += n * r.Billed().Milliseconds()
			if !r.Answer.IsZero() {
				v.answered += n
			}
		}
	case cdr.Refused:
		v.refused += n
	case cdr.Failover:
		v.failovers += n
	}
	if r.Source == cdr.SourceSynthesised {
		v.gapped += n
	}
	last := micros(r.End)
	if last == 0 {
		last = micros(timeOf(r))
	}
	if n > 0 && (last > v.lastUS || last == v.lastUS && r.Cause > v.lastCause) {
		v.lastUS, v.lastCause = last, r.Cause
	}
	s[key] = v
}

const putSum = `INSERT INTO minute (minute, tenant, pool, legs, calls, answered, refused, failovers, gapped, billed_ms, last_us, last_cause)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
	legs = legs + excluded.legs, calls = calls + excluded.calls, answered = answered + excluded.answered,
	refused = refused + excluded.refused, failovers = failovers + excluded.failovers, gapped = gapped + excluded.gapped,
	billed_ms = billed_ms + excluded.billed_ms,
	last_cause = CASE WHEN (excluded.last_us, excluded.last_cause) > (last_us, last_cause) THEN excluded.last_cause ELSE last_cause END,
	last_us = max(last_us, excluded.last_us)`

func (s sums) put(ctx context.Context, tx *sql.Tx) error {
	for k, v := range s {
		_, err := tx.ExecContext(ctx, putSum, k.minute, k.tenant, k.pool,
			v.legs, v.calls, v.answered, v.refused, v.failovers, v.gapped, v.billedMS, v.lastUS, v.lastCause)
		if err != nil {
			return err
		}
	}
	return nil
}

// Whole minutes come from the table minute, the rest of the first one from the
// records. The bare column beside the only max() is of the row that holds the
// maximum: SQLite promises that. A row of zeros is what is left of a record
// that a better report gave another tenant, pool or minute.
const summary = `SELECT tenant, pool, sum(legs), sum(calls), sum(answered), sum(refused), sum(failovers), sum(gapped), sum(billed_ms), max(last_us), last_cause
FROM (
	SELECT tenant, pool, legs, calls, answered, refused, failovers, gapped, billed_ms, last_us, last_cause
	FROM minute WHERE minute >= ?1 AND legs + refused + failovers > 0
	UNION ALL
	SELECT tenant, pool, kind = 'leg', kind = 'leg' AND call = leg, kind = 'leg' AND call = leg AND answer_us IS NOT NULL,
		kind = 'refused', kind = 'failover', source = 'synthesised',
		CASE WHEN kind = 'leg' AND call = leg THEN billed_ms ELSE 0 END, coalesce(end_us, time_us), cause
	FROM cdr WHERE time_us >= ?2 AND time_us < ?3
) GROUP BY tenant, pool ORDER BY tenant, pool`

// Summary implements Warehouse.
func (s *SQLite) Summary(ctx context.Context, since time.Time) ([]TenantSummary, error) {
	from := micros(since)
	first := minuteOf(from + minuteUS - 1)
	rows, err := s.read.QueryContext(ctx, summary, first, from, first*minuteUS)
	if err != nil {
		return nil, fmt.Errorf("sum up call records: %w", err)
	}
	out, err := collect(rows, func(scan func(...any) error) (TenantSummary, error) {
		var t TenantSummary
		var last int64
		err := scan(&t.Tenant, &t.Pool, &t.Legs, &t.Calls, &t.Answered, &t.Refused, &t.Failovers, &t.Gapped, &t.BilledMS, &last, &t.LastCause)
		t.Billed, t.Last = time.Duration(t.BilledMS)*time.Millisecond, fromMicros(last)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("sum up call records: %w", err)
	}
	return out, nil
}
