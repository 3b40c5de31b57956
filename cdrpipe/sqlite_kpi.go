package cdrpipe

import (
	"context"
	"fmt"
	"strings"
)

// KPIs implements Warehouse.
func (s *SQLite) KPIs(ctx context.Context, q KPIQuery) ([]KPI, error) {
	if err := q.Validate(); err != nil {
		return nil, err
	}
	var terms []string
	var values []any
	add := func(term string, v any) {
		terms = append(terms, term)
		values = append(values, v)
	}
	if !q.Since.IsZero() {
		add("time_us >= ?", micros(q.Since))
	}
	if !q.Until.IsZero() {
		add("time_us < ?", micros(q.Until))
	}
	for column, v := range map[string]string{"tenant": string(q.Tenant), "pool": string(q.Pool), "node": string(q.Node)} {
		if v != "" {
			add(column+" = ?", v)
		}
	}
	where := ""
	if len(terms) > 0 {
		where = " WHERE " + strings.Join(terms, " AND ")
	}
	us := q.Bucket.Microseconds()
	key := q.kpiKey(fmt.Sprintf("(time_us - ((time_us %% %d) + %d) %% %d)", us, us, us)) // rounds down, also before 1970
	out, err := s.kpiCounts(ctx, key, where, values)
	if err != nil {
		return nil, fmt.Errorf("compute KPIs: %w", err)
	}
	if len(out) > MaxLimit {
		return nil, tooMany()
	}
	if err := s.kpiDelays(ctx, key, where, values, out); err != nil {
		return nil, fmt.Errorf("compute KPIs: %w", err)
	}
	for i := range out {
		out[i].derive()
	}
	return out, nil
}

func (s *SQLite) kpiCounts(ctx context.Context, key, where string, values []any) ([]KPI, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT "+key+", "+strings.Join(kpiCounts(), ", ")+" FROM cdr"+where+
		" GROUP BY "+kpiGroups+" ORDER BY "+kpiGroups+fmt.Sprintf(" LIMIT %d", MaxLimit+1), values...)
	if err != nil {
		return nil, err
	}
	return collect(rows, func(scan func(...any) error) (KPI, error) {
		var k KPI
		var bucket int64
		err := scan(append([]any{&bucket, &k.Tenant, &k.Pool, &k.Node}, k.counts()...)...)
		k.Time = fromMicros(bucket)
		return k, err
	})
}

// kpiDelays adds the percentiles. A percentile is the value at the place
// floor(level * n) of the sorted values, counted from 0, as ClickHouse's
// quantileExact has it.
func (s *SQLite) kpiDelays(ctx context.Context, key, where string, values []any, out []KPI) error {
	and := " WHERE "
	if where != "" {
		and = where + " AND "
	}
	rows, err := s.read.QueryContext(ctx, `SELECT `+kpiGroups+`, max(n),
		max(CASE WHEN place = CAST(0.5 * n AS INTEGER) + 1 THEN pdd END), max(CASE WHEN place = CAST(0.95 * n AS INTEGER) + 1 THEN pdd END)
	FROM (
		SELECT *, row_number() OVER (PARTITION BY `+kpiGroups+` ORDER BY pdd) AS place, count(*) OVER (PARTITION BY `+kpiGroups+`) AS n
		FROM (SELECT `+key+`, max(0, `+sqlPDD+`) AS pdd FROM cdr`+and+sqlHasPDD+`)
	) GROUP BY `+kpiGroups, values...)
	if err != nil {
		return err
	}
	index := map[KPI]*KPI{}
	for i := range out {
		index[KPI{Time: out[i].Time, Tenant: out[i].Tenant, Pool: out[i].Pool, Node: out[i].Node}] = &out[i]
	}
	_, err = collect(rows, func(scan func(...any) error) (struct{}, error) {
		var k KPI
		var bucket, n, p50, p95 int64
		err := scan(&bucket, &k.Tenant, &k.Pool, &k.Node, &n, &p50, &p95)
		k.Time = fromMicros(bucket)
		if to := index[k]; err == nil && to != nil { // a row may have come between the two questions
			to.setPDD(n, p50, p95)
		}
		return struct{}{}, err
	})
	return err
}
