package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdrpipe"
)

const (
	kpiTenants = 1000
	kpiFill    = 30 * time.Second // of generating rows
	kpiRows    = 50_000           // in one insert, all of one day
	kpiRuns    = 9
)

// kpiMonth is the month whose days the rows are of.
var kpiMonth = time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)

// kpiQuery measures how long the KPIs of one tenant and month take, among as
// many rows of a month as can be made in the time.
func kpiQuery(ctx context.Context) ([]figure, error) {
	dir, err := os.MkdirTemp(".", ".bench-kpi")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s, err := startStores(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer s.close()
	w, err := s.open(ctx, "kpi")
	if err != nil {
		return nil, err
	}
	defer w.Close()
	days := int(kpiMonth.AddDate(0, 1, 0).Sub(kpiMonth) / (24 * time.Hour))
	rows := 0
	for start := time.Now(); time.Since(start) < kpiFill; rows += kpiRows {
		if err := clickHouseExec(ctx, s, kpiInsert(rows, rows/kpiRows%days)); err != nil {
			return nil, err
		}
	}
	var took []float64
	for i := range kpiRuns + 1 {
		q := cdrpipe.KPIQuery{Since: kpiMonth, Until: kpiMonth.AddDate(0, 1, 0), Tenant: tenantName(i * 7)}
		start := time.Now()
		k, err := w.KPIs(ctx, q)
		if err != nil {
			return nil, err
		}
		if len(k) != 1 || k[0].Attempts == 0 {
			return nil, fmt.Errorf("tenant %s has %+v", q.Tenant, k)
		}
		if i > 0 { // the first one warms up
			took = append(took, float64(time.Since(start).Microseconds())/1000)
		}
	}
	return []figure{
		{name: "kpi_query", value: median(took), unit: "ms"},
		{name: "kpi_query_rows", value: float64(rows), unit: "rows"},
	}, nil
}

// kpiInsert makes rows of one day: calls of two legs, nine in ten answered.
func kpiInsert(first, day int) string {
	return fmt.Sprintf(`INSERT INTO kpi.cdr (day, id, reports, time_us, schema, kind, source, sources, cell, node, pool, tenant, leg, call, direction,
		caller, callee, start_us, ring_us, answer_us, end_us, billed_ms, sip_code, q850, cause, codec)
	SELECT toDate('%[1]s') + %[2]d, sipHash128(n), 2, start, 1, 'leg', 'esl', ['esl', 'http'], 'c1', concat('fs', toString(1 + call %% 4)), 'std',
		concat('t', leftPad(toString(call %% %[3]d), 6, '0')), toString(n), toString(call * 2), if(n %% 2 = 0, 'inbound', 'outbound'),
		toString(4930000000 + n %% 1000000), toString(4940000000 + n %% 1000000), start, start + 1500000, if(ok, start + 6000000, NULL), start + 6000000 + talk,
		if(ok, toInt64(talk / 1000), 0), if(ok, 200, 486), if(ok, 16, 17), if(ok, 'NORMAL_CLEARING', 'USER_BUSY'), 'PCMA'
	FROM (SELECT number + %[4]d AS n, intDiv(n, 2) AS call, call %% 10 != 0 AS ok, toInt64(call %% 300000000) AS talk,
		toInt64(%[5]d + (n * 7919) %% 86000 * 1000000) AS start FROM numbers(%[6]d))`,
		kpiMonth.Format(time.DateOnly), day, kpiTenants, first, kpiMonth.AddDate(0, 0, day).UnixMicro(), kpiRows)
}

// clickHouseExec runs a statement that returns nothing.
func clickHouseExec(ctx context.Context, s *stores, sql string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.clickhouse.HTTP+"/", strings.NewReader(sql))
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("clickhouse says %s: %.300s", res.Status, said)
	}
	return err
}
