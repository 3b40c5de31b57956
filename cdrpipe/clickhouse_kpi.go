package cdrpipe

import (
	"context"
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// Summary implements Warehouse.
func (c *ClickHouse) Summary(ctx context.Context, since time.Time) ([]TenantSummary, error) {
	var w conditions
	w.between(since, time.Time{})
	const a = "kind = 'leg' AND call = leg"
	rows, err := c.conn.Query(ctx, `SELECT tenant, pool, toInt64(countIf(kind = 'leg')), toInt64(countIf(`+a+`)), toInt64(countIf(`+a+` AND answer_us IS NOT NULL)),
		toInt64(countIf(kind = 'refused')), toInt64(countIf(kind = 'failover')), toInt64(countIf(source = 'synthesised')),
		sumIf(billed_ms, `+a+`), max(coalesce(end_us, time_us)) AS last, argMax(cause, (coalesce(end_us, time_us), cause))
	FROM `+c.table("cdr")+" FINAL"+w.sql()+" GROUP BY tenant, pool ORDER BY tenant, pool", w.params...)
	if err != nil {
		return nil, fmt.Errorf("sum up call records: %w", err)
	}
	out, err := collectDriver(rows, func(scan func(...any) error) (TenantSummary, error) {
		var t TenantSummary
		var tenant, pool string
		var last int64
		err := scan(&tenant, &pool, &t.Legs, &t.Calls, &t.Answered, &t.Refused, &t.Failovers, &t.Gapped, &t.BilledMS, &last, &t.LastCause)
		t.Tenant, t.Pool = bulkhead.TenantID(tenant), bulkhead.PoolID(pool)
		t.Billed, t.Last = time.Duration(t.BilledMS)*time.Millisecond, fromMicros(last)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("sum up call records: %w", err)
	}
	return out, nil
}

// KPIs implements Warehouse.
func (c *ClickHouse) KPIs(ctx context.Context, q KPIQuery) ([]KPI, error) {
	if err := q.Validate(); err != nil {
		return nil, err
	}
	var w conditions
	w.between(q.Since, q.Until)
	w.text("tenant", string(q.Tenant))
	w.text("pool", string(q.Pool))
	w.text("node", string(q.Node))
	us := q.Bucket.Microseconds()
	key := q.kpiKey(fmt.Sprintf("(time_us - positiveModulo(time_us, %d))", us))
	selected := key
	for _, n := range kpiCounts() {
		selected += ", toInt64(" + n + ")"
	}
	const delay = "toInt64(greatest(0, coalesce(" + sqlPDD + ", 0)))"
	selected += ", toInt64(countIf(" + sqlHasPDD + ")), quantilesExactIf(0.5, 0.95)(" + delay + ", " + sqlHasPDD + ")"
	rows, err := c.conn.Query(ctx, fmt.Sprintf("SELECT %s FROM %s FINAL%s GROUP BY %s ORDER BY %s LIMIT %d",
		selected, c.table("cdr"), w.sql(), kpiGroups, kpiGroups, MaxLimit+1), w.params...)
	if err != nil {
		return nil, fmt.Errorf("compute KPIs: %w", err)
	}
	out, err := collectDriver(rows, func(scan func(...any) error) (KPI, error) {
		var k KPI
		var bucket, delays int64
		var tenant, pool, node string
		var quantiles []int64
		err := scan(append(append([]any{&bucket, &tenant, &pool, &node}, k.counts()...), &delays, &quantiles)...)
		k.Time, k.Tenant, k.Pool, k.Node = fromMicros(bucket), bulkhead.TenantID(tenant), bulkhead.PoolID(pool), bulkhead.NodeID(node)
		if err == nil && len(quantiles) == 2 {
			k.setPDD(delays, quantiles[0], quantiles[1])
		}
		return k, err
	})
	if err != nil {
		return nil, fmt.Errorf("compute KPIs: %w", err)
	}
	if len(out) > MaxLimit {
		return nil, tooMany()
	}
	for i := range out {
		out[i].derive()
	}
	return out, nil
}
