package cdrpipe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// suiteStarts stores reports of one leg that disagree about its start, or do
// not know it, in every order: there is one row, and it is what cdr.Merge says.
func suiteStarts(t *testing.T, open func(*testing.T) Warehouse) {
	midnight := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	report := func(source cdr.Source, start time.Time) cdr.Record {
		r := fullRecord(1)
		r.Source, r.Start, r.Ring = source, start, midnight.Add(time.Second)
		r.Answer, r.End = midnight.Add(2*time.Second), midnight.Add(30*time.Hour)
		return r
	}
	timeless := fullRecord(1)
	timeless.Source, timeless.Start, timeless.Ring, timeless.Answer, timeless.End = cdr.SourceSynthesised, time.Time{}, time.Time{}, time.Time{}, time.Time{}
	for name, reports := range map[string][]cdr.Record{
		"seconds":         {report(cdr.SourceESL, midnight.Add(-time.Microsecond)), report(cdr.SourceAMI, midnight.Add(-time.Second))},
		"midnight":        {report(cdr.SourceARI, midnight), report(cdr.SourceAMI, midnight.Add(-time.Second)), report(cdr.SourceHTTP, midnight.Add(-time.Minute))},
		"better, no time": {report(cdr.SourceESL, time.Time{}), report(cdr.SourceAMI, midnight.Add(time.Hour))},
		"worse, no time":  {report(cdr.SourceFile, midnight.Add(-time.Hour)), timeless},
		"only timeless":   {timeless, timeless},
		"all": {
			report(cdr.SourceESL, midnight), timeless, report(cdr.SourceReconciled, time.Time{}), report(cdr.SourceAMI, midnight.Add(-time.Second)),
		},
	} {
		want := newRow(reports[0])
		for _, r := range reports[1:] {
			want = newRow(cdr.Merge(want.Record, r))
		}
		w := open(t)
		// Each order is another leg, so that one warehouse does for all: step
		// by step, the next report of every leg is stored, and all again.
		steps := make([][]cdr.Entry, len(reports))
		byID := map[cdr.ID]Row{}
		orders := 0
		for order := range permutations(len(reports)) {
			orders++
			leg := want
			leg.ID = cdr.NewID("c1", "fs1", fmt.Sprint(name, orders))
			byID[leg.ID] = leg
			for step, i := range order {
				r := reports[i]
				r.ID = leg.ID
				steps[step] = append(steps[step], entry(r))
			}
		}
		for _, batch := range append(steps, slices.Concat(steps...)) {
			insert(t, w, batch...)
		}
		got := map[cdr.ID]Row{}
		for _, r := range all(t, w) {
			got[r.ID] = r
		}
		if d := cmp.Diff(byID, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if c, err := w.Counts(t.Context()); err != nil || c.Records != int64(orders) {
			t.Errorf("%s: %d records, %v, want %d", name, c.Records, err, orders)
		}
		if since, err := w.Records(t.Context(), Filter{Since: want.Time(), Limit: 100}); err != nil || len(since) != orders {
			t.Errorf("%s: %d records since their own time, %v, want %d", name, len(since), err, orders)
		}
	}
}

// permutations yields every order of n things.
func permutations(n int) func(func([]int) bool) {
	return func(yield func([]int) bool) {
		order := make([]int, n)
		for i := range order {
			order[i] = i
		}
		var walk func(int) bool
		walk = func(k int) bool {
			if k == n {
				return yield(slices.Clone(order))
			}
			for i := k; i < n; i++ {
				order[k], order[i] = order[i], order[k]
				if !walk(k + 1) {
					return false
				}
				order[k], order[i] = order[i], order[k]
			}
			return true
		}
		walk(0)
	}
}

// suiteHostile puts texts of attackers in and asks with them.
func suiteHostile(t *testing.T, w Warehouse) {
	texts := []string{"'; DROP TABLE cdr; --", `\`, `\'`, "{p_tenant:String}", "?", "\x00", "\x1b[2J", "\u20ac\U0001f600", "a\nb", `"`, "`", "%", "{{db}}"}
	for i, s := range texts {
		r := fullRecord(i)
		r.Tenant, r.Call, r.Caller, r.Callee, r.Cause, r.SIPCallID, r.Gap = bulkhead.TenantID(s), s, s, s, s, s, s
		r.Attrs = map[string]string{s: s}
		insert(t, w, entry(r), cdr.Entry{Gap: &cdr.Gap{ID: s, Reason: s, Legs: []string{s}}})
	}
	if n := len(gaps(t, w, time.Time{})); n != len(texts) {
		t.Errorf("%d gaps, want %d", n, len(texts))
	}
	for i, s := range texts {
		rows, err := w.Records(t.Context(), Filter{Tenant: bulkhead.TenantID(s), Call: s, Limit: 10})
		if err != nil || len(rows) != 1 || rows[0].Caller != s || rows[0].Attrs[s] != s || rows[0].Leg != fullRecord(i).Leg {
			t.Errorf("%q: %+v, %v", s, rows, err)
		}
		kpis, err := w.KPIs(t.Context(), KPIQuery{Tenant: bulkhead.TenantID(s), By: []Dimension{ByTenant}})
		if err != nil || len(kpis) != 1 || string(kpis[0].Tenant) != s {
			t.Errorf("KPIs of %q: %+v, %v", s, kpis, err)
		}
	}
}

// exportAll goes on from p until there is nothing more.
func exportAll(t *testing.T, w Warehouse, e Export) ([]Row, Position) {
	t.Helper()
	var out []Row
	for {
		rows, next, err := w.Export(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 {
			if next != e.After {
				t.Fatalf("nothing came, and the position moved from %v to %v", e.After, next)
			}
			return out, e.After
		}
		out = append(out, rows...)
		if e.After, err = ParsePosition(next.String()); err != nil || e.After != next {
			t.Fatalf("position %v reads back as %v, %v", next, e.After, err)
		}
	}
}

func legNames(rows []Row) (names []string) {
	for _, r := range rows {
		names = append(names, r.Leg)
	}
	slices.Sort(names)
	return names
}

func suiteExport(t *testing.T, w Warehouse) {
	var want []string
	for i := range 10 {
		insert(t, w, entry(fullRecord(20-2*i)), entry(synthesised(fullRecord(21-2*i))))
		want = append(want, fullRecord(20-2*i).Leg, fullRecord(21-2*i).Leg)
	}
	slices.Sort(want)
	first, p := exportAll(t, w, Export{Limit: 3})
	if d := cmp.Diff(want, legNames(first)); d != "" {
		t.Error(d)
	}
	// A repeat changes nothing; a late record comes although its call is older
	// than all; a better report comes again.
	late := fullRecord(0)
	late.Start = at(-1_000_000_000)
	insert(t, w, entry(fullRecord(20)), entry(fullRecord(2)))
	if again, _ := exportAll(t, w, Export{After: p, Limit: 3}); len(again) != 0 {
		t.Errorf("a repeat is exported again: %v", legNames(again))
	}
	insert(t, w, entry(late))
	insert(t, w, entry(fullRecord(5)))
	rest, p := exportAll(t, w, Export{After: p, Limit: 3})
	if d := cmp.Diff([]string{late.Leg, "leg-0005"}, legNames(rest)); d != "" {
		t.Error(d)
	}
	if rest, end := exportAll(t, w, Export{After: p, Limit: 3}); len(rest) != 0 || end != p {
		t.Errorf("behind the end: %v", rest)
	}
	some, _ := exportAll(t, w, Export{Tenant: "t1", Kind: cdr.Leg, Limit: 2})
	for _, r := range some {
		if r.Tenant != "t1" {
			t.Errorf("exported %s of tenant %s", r.Leg, r.Tenant)
		}
	}
	if len(some) != 6 {
		t.Errorf("%d records of t1, want 6", len(some))
	}
	if _, _, err := w.Export(t.Context(), Export{}); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("limit 0: %v, want bulkhead.Invalid", err)
	}
}

// suiteExportLive follows an export while several writers store: every record
// is seen.
func suiteExportLive(t *testing.T, w Warehouse) {
	const writers, batches, perBatch = 3, 15, 20
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for n := range writers {
		wg.Go(func() {
			for b := range batches {
				var entries []cdr.Entry
				for i := range perBatch {
					entries = append(entries, entry(fullRecord((n*batches+b)*perBatch+i)))
				}
				if err := w.Insert(ctx, entries); err != nil {
					t.Errorf("writer %d: %v", n, err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	seen := map[string]int{}
	var p Position
	for ended := false; ; {
		select {
		case <-done:
			ended = true
		default:
		}
		rows, next := exportAll(t, w, Export{After: p, Limit: 50})
		for _, r := range rows {
			seen[r.Leg]++
		}
		if p = next; ended {
			break
		}
	}
	if len(seen) != writers*batches*perBatch {
		t.Errorf("%d records seen, want %d", len(seen), writers*batches*perBatch)
	}
	for leg, n := range seen {
		if n != 1 {
			t.Errorf("%s was exported %d times", leg, n)
		}
	}
}

func suiteKPIs(t *testing.T, w Warehouse) {
	// code 0 and no answer: unknown
	outcome := func(i, code int, pdd time.Duration) cdr.Entry {
		r := fullRecord(i)
		r.Tenant, r.Pool, r.SIPCode = "t", "p", code
		r.Ring, r.Answer, r.End = time.Time{}, time.Time{}, r.Start.Add(time.Second)
		if pdd > 0 {
			r.Ring = r.Start.Add(pdd)
		}
		if code == 200 {
			r.Answer, r.End = r.Start.Add(pdd+time.Second), r.Start.Add(pdd+61*time.Second)
		}
		return entry(r)
	}
	var entries []cdr.Entry
	for i, code := range []int{200, 200, 480, 486, 600, 603, 302, 401, 407, 404, 408, 500, 503, 504, 0} {
		entries = append(entries, outcome(i, code, 0))
	}
	for i := range 20 {
		entries = append(entries, outcome(100+i, 486, time.Duration(i+1)*100*time.Millisecond))
	}
	b := fullRecord(50) // a B leg
	b.Tenant, b.Pool, b.Call = "t", "p", fullRecord(0).Leg
	refused := cdr.Record{ID: cdr.NewID("c1", "sbc1", "r"), Kind: cdr.Refused, Source: cdr.SourceSBC, Leg: "r", Call: "r", Start: at(50), SIPCode: 503, Tenant: "t"}
	failover := cdr.Record{ID: cdr.NewID("c1", "sbc1", "f"), Kind: cdr.Failover, Source: cdr.SourceSBC, Leg: "f", Call: "f", Tenant: "t", Node: "fs1", Start: at(50), SIPCode: 503}
	insert(t, w, append(entries, entry(b), entry(refused), entry(failover))...)
	got, err := w.KPIs(t.Context(), KPIQuery{Since: epoch, Until: at(1_000_000)})
	if err != nil {
		t.Fatal(err)
	}
	f := func(v float64) *float64 { return &v }
	want := []KPI{{
		Attempts: 36, Answered: 2, Effective: 26, Ineffective: 5, Redirected: 1, Challenged: 2, Unknown: 1, Failovers: 1, Ended: 2, BilledMS: 120_000,
		SER: f(100 * 2. / 34), SEER: f(100 * 26. / 34), ISA: f(100 * 5. / 35), ASR: f(100 * 2. / 32), NER: f(100 * 26. / 32),
		Minutes: 2, ACD: f(60), PDDs: 22, PDDP50: f(1), PDDP95: f(1.9),
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	got, err = w.KPIs(t.Context(), KPIQuery{Tenant: "t", By: []Dimension{ByNode, ByTenant}, Bucket: time.Hour})
	if err != nil || len(got) != 2 || got[0].Node != "" || got[0].Attempts != 1 || got[1].Node != "fs1" || got[1].Attempts != 35 ||
		!got[0].Time.Equal(epoch.Truncate(time.Hour)) || *got[1].PDDP50 != 1 || got[0].PDDP50 != nil {
		t.Errorf("by node: %+v, %v", got, err)
	}
	if got, err := w.KPIs(t.Context(), KPIQuery{Tenant: "nobody", By: []Dimension{ByTenant}}); err != nil || len(got) != 0 {
		t.Errorf("of nobody: %+v, %v", got, err)
	}
	for _, q := range []KPIQuery{{Bucket: time.Second}, {Bucket: -time.Hour}, {By: []Dimension{"cause"}}, {By: []Dimension{ByNode, ByNode}}} {
		if _, err := w.KPIs(t.Context(), q); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%+v: %v, want bulkhead.Invalid", q, err)
		}
	}
}

// suiteKPIsCounted compares KPIs with what counting rows gives.
func suiteKPIsCounted(t *testing.T, w Warehouse) {
	rng := rand.New(rand.NewPCG(7, 7))
	var entries []cdr.Entry
	for i := range 300 {
		r := fullRecord(i)
		r.Start = epoch.Add(time.Duration(rng.IntN(7200)) * time.Second)
		r.Ring, r.Answer = r.Start.Add(time.Duration(rng.IntN(5000)-100)*time.Millisecond), time.Time{}
		if rng.IntN(2) == 0 {
			r.Answer = r.Ring.Add(time.Second)
		}
		r.End = r.Start.Add(time.Duration(rng.IntN(100)) * time.Second)
		r.SIPCode = []int{200, 404, 486, 503}[rng.IntN(4)]
		r.Pool, r.Node = bulkhead.PoolID(fmt.Sprint("p", rng.IntN(2))), bulkhead.NodeID(fmt.Sprint("fs", rng.IntN(3)))
		if rng.IntN(5) == 0 {
			r.Call = "other"
		}
		if rng.IntN(20) == 0 {
			r.Start, r.Ring = time.Time{}, time.Time{}
		}
		entries = append(entries, entry(r))
	}
	insert(t, w, entries...)
	rows := all(t, w)
	q := KPIQuery{Since: epoch.Add(time.Minute), Until: epoch.Add(time.Hour), Bucket: 15 * time.Minute, By: Dimensions()}
	got, err := w.KPIs(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(countKPIs(rows, q), got); d != "" {
		t.Error(d)
	}
	if len(got) < 20 {
		t.Errorf("only %d lines", len(got))
	}
}

// countKPIs is the definition of KPI in plain Go, over q's time, by all
// dimensions.
func countKPIs(rows []Row, q KPIQuery) []KPI {
	type sample struct {
		KPI
		delays []int64
	}
	groups := map[KPI]*sample{}
	for _, r := range rows {
		if r.Time().Before(q.Since) || !r.Time().Before(q.Until) {
			continue
		}
		key := KPI{Time: r.Time().Truncate(q.Bucket), Tenant: r.Tenant, Pool: r.Pool, Node: r.Node}
		s := groups[key]
		if s == nil {
			s = &sample{KPI: key}
			groups[key] = s
		}
		if r.Call != r.Leg {
			continue
		}
		s.Attempts++
		code := r.SIPCode
		if !r.Answer.IsZero() {
			code = 200
			s.Ended++
			s.BilledMS += r.BilledMS
		}
		switch code {
		case 200:
			s.Answered++
			s.Effective++
		case 486:
			s.Effective++
		case 503:
			s.Ineffective++
		}
		if !r.Start.IsZero() {
			s.delays = append(s.delays, r.PDD().Microseconds())
		}
	}
	var out []KPI
	for _, s := range groups {
		if n := len(s.delays); n > 0 {
			slices.Sort(s.delays)
			s.setPDD(int64(n), s.delays[n/2], s.delays[int(0.95*float64(n))])
		}
		s.derive()
		out = append(out, s.KPI)
	}
	slices.SortFunc(out, func(a, b KPI) int {
		return cmpStrings(fmt.Sprint(a.Time.UnixMicro(), a.Tenant, " ", a.Pool, " ", a.Node), fmt.Sprint(b.Time.UnixMicro(), b.Tenant, " ", b.Pool, " ", b.Node))
	})
	return out
}

func cmpStrings(a, b string) int { return slices.Compare([]byte(a), []byte(b)) }

// suiteTwoWriters lets two writers store different reports of the same legs
// at once: what both say is in the rows.
func suiteTwoWriters(t *testing.T, w Warehouse) {
	const legs = 60
	var wg sync.WaitGroup
	for _, report := range []func(cdr.Record) cdr.Record{
		func(r cdr.Record) cdr.Record { return r },
		synthesised,
		func(r cdr.Record) cdr.Record { r.Source = cdr.SourceHTTP; return r },
	} {
		wg.Go(func() {
			for i := 0; i < legs; i += 5 {
				var entries []cdr.Entry
				for j := range 5 {
					entries = append(entries, entry(report(fullRecord(i+j))))
				}
				if err := w.Insert(t.Context(), entries); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	rows := all(t, w)
	if len(rows) != legs {
		t.Fatalf("%d rows, want %d", len(rows), legs)
	}
	for i, r := range rows {
		http := fullRecord(i)
		http.Source = cdr.SourceHTTP
		want := newRow(cdr.Merge(cdr.Merge(fullRecord(i), http), synthesised(fullRecord(i))))
		if d := cmp.Diff(want, r); d != "" {
			t.Error(d)
		}
	}
}

// suiteRaw keeps the switch's own words beside the record.
func suiteRaw(t *testing.T, w Warehouse) {
	first, second := entry(fullRecord(1)), entry(fullRecord(1))
	first.Raw = []byte("\x1f\x8b\x00'\xff")
	second.Record.Source, second.Raw = cdr.SourceHTTP, []byte("second")
	for range 2 {
		insert(t, w, first)
		insert(t, w, second, entry(fullRecord(2)))
	}
	got, err := w.Raw(t.Context(), first.Record.ID)
	slices.SortFunc(got, slices.Compare)
	if err != nil || len(got) != 2 || string(got[0]) != string(first.Raw) || string(got[1]) != "second" {
		t.Errorf("raw events %q, %v", got, err)
	}
	if got, err := w.Raw(t.Context(), fullRecord(2).ID); err != nil || len(got) != 0 {
		t.Errorf("of a record without: %q, %v", got, err)
	}
}
