package cdrpipe

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)

func at(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }

// fullRecord is an answered leg of 2 s billed, number i.
func fullRecord(i int) cdr.Record {
	leg := fmt.Sprintf("leg-%04d", i)
	in, out, lost, jitter, mos := int64(i), int64(2*i), int64(0), 1.25, 4.5-float64(i)/1000
	return cdr.Record{
		Schema: cdr.SchemaVersion, ID: cdr.NewID("c1", "fs1", leg), Kind: cdr.Leg, Source: cdr.SourceESL,
		Cell: "c1", Node: "fs1", SBC: "sbc1", Pool: "p1", Tenant: bulkhead.TenantID(fmt.Sprintf("t%d", i%3)), Revision: 7,
		Leg: leg, Call: leg, SIPCallID: leg + "@x", Direction: cdr.Inbound, Caller: "1001", Callee: "1002",
		Start: at(10 * i), Ring: at(10*i + 1), Answer: at(10*i + 2), End: at(10*i + 2002),
		SIPCode: 200, Q850: 16, Cause: "NORMAL_CLEARING", Codec: "PCMU",
		HangupBy: cdr.HangupPeer, RTPIn: &in, RTPOut: &out, RTPLost: &lost, JitterMS: &jitter, MOS: &mos,
		ClockOffset: -1500 * time.Microsecond, Attrs: map[string]string{"domain": "a.example", "var:x": "'\\\"\t\u20ac"},
	}
}

func synthesised(r cdr.Record) cdr.Record {
	r.Source, r.Gap, r.Cause, r.End, r.RTPIn, r.RTPOut = cdr.SourceSynthesised, "gap1", "ended in gap", time.Time{}, nil, nil
	return r
}

func entry(r cdr.Record) cdr.Entry { return cdr.Entry{Record: &r} }

// testWarehouse is the conformance suite: what every Warehouse must do. open
// makes an empty one that ends with the test.
func testWarehouse(t *testing.T, open func(t *testing.T) Warehouse) {
	t.Run("EveryFieldComesBack", func(t *testing.T) { suiteFields(t, open(t)) })
	t.Run("OneRowALeg", func(t *testing.T) { suiteOneRow(t, open) })
	t.Run("AnyOrderAnyCut", func(t *testing.T) { suiteAnyOrder(t, open) })
	t.Run("Gaps", func(t *testing.T) { suiteGaps(t, open(t)) })
	t.Run("Filters", func(t *testing.T) { suiteFilters(t, open(t)) })
	t.Run("Pages", func(t *testing.T) { suitePages(t, open(t)) })
	t.Run("Summary", func(t *testing.T) { suiteSummary(t, open(t)) })
	t.Run("SummarySince", func(t *testing.T) { suiteSummarySince(t, open(t)) })
	t.Run("Quarantine", func(t *testing.T) { suiteQuarantine(t, open(t)) })
	t.Run("StartsDisagree", func(t *testing.T) { suiteStarts(t, open) })
	t.Run("Hostile", func(t *testing.T) { suiteHostile(t, open(t)) })
	t.Run("Export", func(t *testing.T) { suiteExport(t, open(t)) })
	t.Run("ExportWhileStoring", func(t *testing.T) { suiteExportLive(t, open(t)) })
	t.Run("Raw", func(t *testing.T) { suiteRaw(t, open(t)) })
	t.Run("KPIs", func(t *testing.T) { suiteKPIs(t, open(t)) })
	t.Run("KPIsByCounting", func(t *testing.T) { suiteKPIsCounted(t, open(t)) })
	t.Run("TwoWriters", func(t *testing.T) { suiteTwoWriters(t, open(t)) })
}

func insert(t *testing.T, w Warehouse, entries ...cdr.Entry) {
	t.Helper()
	if err := w.Insert(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
}

func all(t *testing.T, w Warehouse) []Row {
	t.Helper()
	rows, err := w.Records(t.Context(), Filter{Limit: MaxLimit})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func suiteFields(t *testing.T, w Warehouse) {
	r := fullRecord(1)
	strange := cdr.Record{
		ID: cdr.NewID("c1", "fs1", "strange"), Leg: "strange", Caller: "a\x00b'\"\u20ac\n", Revision: 1<<64 - 1,
		Start: at(100).Add(999 * time.Nanosecond), // below what a record holds
	}
	early := cdr.Record{ID: cdr.NewID("c1", "fs1", "early"), Leg: "early", Kind: cdr.Leg, Source: cdr.SourceAMI, Start: time.Unix(-5, 1000).UTC(), SIPCode: -1 << 40, Q850: 1 << 40}
	late := cdr.Record{ID: cdr.NewID("c1", "fs1", "late"), Leg: "late", Start: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), Attrs: map[string]string{"": ""}}
	insert(t, w, entry(r), entry(strange), entry(early), entry(late))
	strange.Start = at(100)
	want := []Row{newRow(early), newRow(r), newRow(strange), newRow(late)}
	if d := cmp.Diff(want, all(t, w)); d != "" {
		t.Error(d)
	}
}

func suiteOneRow(t *testing.T, open func(*testing.T) Warehouse) {
	full := fullRecord(1)
	early := full
	early.End = time.Time{}
	for name, reports := range map[string][]cdr.Record{
		"twice":                  {full, full},
		"synthesised, then real": {synthesised(full), full},
		"real, then synthesised": {full, synthesised(full)},
		"without end, then full": {early, full},
		"full, then without end": {full, early},
	} {
		for cut := range 2 { // in one batch, and in one each
			t.Run(fmt.Sprintf("%s/%d", name, cut), func(t *testing.T) {
				w := open(t)
				if cut == 0 {
					insert(t, w, entry(reports[0]), entry(reports[1]))
				} else {
					insert(t, w, entry(reports[0]))
					insert(t, w, entry(reports[1]))
				}
				want := newRow(cdr.Merge(reports[0], reports[1]))
				if d := cmp.Diff([]Row{want}, all(t, w)); d != "" || want.BilledMS != 2000 {
					t.Error(d)
				}
			})
		}
	}
}

// suiteAnyOrder stores the same reports in random order, cut into random
// batches, some of them again, and compares rows with those of one batch.
func suiteAnyOrder(t *testing.T, open func(*testing.T) Warehouse) {
	var reports []cdr.Entry
	for i := range 40 {
		r := fullRecord(i)
		reports = append(reports, entry(r))
		if i%3 == 0 {
			reports = append(reports, entry(synthesised(r)))
		}
		if i%5 == 0 {
			r.Cause = "OTHER"
			reports = append(reports, entry(r))
		}
	}
	reports = append(reports,
		cdr.Entry{Gap: &cdr.Gap{ID: "gap1", Cell: "c1", Node: "fs1", From: at(0), Reason: "lost"}},
		cdr.Entry{Gap: &cdr.Gap{ID: "gap1", Cell: "c1", Node: "fs1", From: at(0), To: at(9), Reason: "lost", Legs: []string{"leg-0003"}}},
		cdr.Entry{Gap: &cdr.Gap{ID: "gap1", Cell: "c1", Node: "fs1", From: at(0), To: at(7), Reason: "lost", Legs: []string{"leg-0000"}}})
	whole := open(t)
	insert(t, whole, reports...)
	wantRows, wantGaps, wantSums := all(t, whole), gaps(t, whole, time.Time{}), counted(t, whole, time.Time{})
	if len(wantRows) != 40 || len(wantGaps) != 1 || len(wantGaps[0].Legs) != 2 || !wantGaps[0].To.Equal(at(9)) {
		t.Fatalf("one batch made %d rows, gaps %+v", len(wantRows), wantGaps)
	}
	for seed := range uint64(3) {
		w, rng := open(t), rand.New(rand.NewPCG(seed, 1))
		stream := append(slices.Clone(reports), reports[:20]...)
		rng.Shuffle(len(stream), func(i, j int) { stream[i], stream[j] = stream[j], stream[i] })
		for len(stream) > 0 {
			n := 1 + rng.IntN(min(9, len(stream)))
			insert(t, w, stream[:n]...)
			stream = stream[n:]
		}
		for range 2 {
			if d := cmp.Diff(wantRows, all(t, w)); d != "" {
				t.Errorf("seed %d: %s", seed, d)
			}
			if d := cmp.Diff(wantGaps, gaps(t, w, time.Time{})); d != "" {
				t.Errorf("seed %d: %s", seed, d)
			}
			if d := cmp.Diff(wantSums, counted(t, w, time.Time{})); d != "" {
				t.Errorf("seed %d: %s", seed, d)
			}
			insert(t, w, reports...) // the whole stream once more
		}
	}
}

func gaps(t *testing.T, w Warehouse, since time.Time) []cdr.Gap {
	t.Helper()
	g, err := w.Gaps(t.Context(), since, 100)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func suiteGaps(t *testing.T, w Warehouse) {
	old := cdr.Gap{ID: "old", Cell: "c1", Node: "fs1", From: at(0), To: at(10), Reason: "a"}
	open := cdr.Gap{ID: "open", Cell: "c1", Node: "fs2", From: at(5), Reason: "b", Legs: []string{"x", "y"}}
	recent := cdr.Gap{ID: "recent", Cell: "c1", Node: "fs1", From: at(20), To: at(30), Reason: "c"}
	insert(t, w, cdr.Entry{Gap: &recent}, cdr.Entry{Gap: &old}, cdr.Entry{Gap: &open})
	if d := cmp.Diff([]cdr.Gap{recent, open, old}, gaps(t, w, time.Time{})); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]cdr.Gap{recent, open}, gaps(t, w, at(11))); d != "" {
		t.Error(d)
	}
	if _, err := w.Gaps(t.Context(), time.Time{}, 0); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("limit 0: %v", err)
	}
}

func suiteFilters(t *testing.T, w Warehouse) {
	refused := cdr.Record{ID: cdr.NewID("c1", "sbc1", "r"), Kind: cdr.Refused, Source: cdr.SourceSBC, Leg: "r", Call: "r", Start: at(35)}
	timeless := cdr.Record{ID: cdr.NewID("c1", "fs1", "seen"), Kind: cdr.Leg, Source: cdr.SourceSynthesised, Leg: "seen", Call: "seen"}
	var entries []cdr.Entry
	for i := range 9 {
		entries = append(entries, entry(fullRecord(i)))
	}
	insert(t, w, append(entries, entry(refused), entry(timeless))...)
	for name, c := range map[string]struct {
		f    Filter
		want []string
	}{
		"tenant":           {Filter{Tenant: "t1"}, []string{"leg-0001", "leg-0004", "leg-0007"}},
		"tenant and since": {Filter{Tenant: "t1", Since: at(40)}, []string{"leg-0004", "leg-0007"}},
		"until":            {Filter{Until: at(10)}, []string{"seen", "leg-0000"}},
		"kind":             {Filter{Kind: cdr.Refused}, []string{"r"}},
		"call":             {Filter{Call: "leg-0002"}, []string{"leg-0002"}},
		"range":            {Filter{Since: at(30), Until: at(50)}, []string{"leg-0003", "r", "leg-0004"}},
		"none":             {Filter{Tenant: "nobody"}, nil},
	} {
		c.f.Limit = 100
		rows, err := w.Records(t.Context(), c.f)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range rows {
			got = append(got, r.Leg)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	for _, limit := range []int{-1, 0, MaxLimit + 1} {
		if _, err := w.Records(t.Context(), Filter{Limit: limit}); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("limit %d: %v, want bulkhead.Invalid", limit, err)
		}
	}
}

// suitePages reads rows of equal time in pages: none twice, none left out.
func suitePages(t *testing.T, w Warehouse) {
	for i := range 25 {
		r := fullRecord(i)
		r.Start = at(i / 10)
		insert(t, w, entry(r))
	}
	var got []Row
	for f := (Filter{Limit: 4}); ; {
		rows, err := w.Records(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 {
			break
		}
		got = append(got, rows...)
		if f.After, err = ParseCursor(rows[len(rows)-1].Cursor().String()); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(all(t, w), got); d != "" || len(got) != 25 {
		t.Errorf("%d rows, %s", len(got), d)
	}
}

func suiteSummary(t *testing.T, w Warehouse) {
	a := fullRecord(3) // tenant t0
	b := fullRecord(6)
	b.Call, b.Direction, b.Cause = a.Leg, cdr.Outbound, "LAST" // the B leg of a
	unanswered := fullRecord(9)
	unanswered.Answer, unanswered.End, unanswered.Cause = time.Time{}, at(91), "NO_ANSWER"
	gapped := synthesised(fullRecord(12))
	other := fullRecord(1)
	other.Tenant, other.Pool = "t1", "p2"
	refused := cdr.Record{ID: cdr.NewID("c1", "sbc1", "r"), Kind: cdr.Refused, Source: cdr.SourceSBC, Leg: "r", Call: "r", Start: at(50), Cause: "unknown domain"}
	failover := cdr.Record{
		ID: cdr.NewID("c1", "sbc1", "f"), Kind: cdr.Failover, Source: cdr.SourceSBC, Leg: "f", Call: "f",
		Tenant: "t0", Pool: "p1", Start: at(50), Cause: "timeout",
	}
	before := fullRecord(0)
	insert(t, w, entry(a), entry(b), entry(unanswered), entry(gapped), entry(other), entry(refused), entry(failover), entry(before))
	got, err := w.Summary(t.Context(), at(5))
	if err != nil {
		t.Fatal(err)
	}
	want := []TenantSummary{
		{Refused: 1, LastCause: "unknown domain", Last: at(50)},
		{
			Tenant: "t0", Pool: "p1", Legs: 4, Calls: 3, Answered: 2, Failovers: 1, Gapped: 1, Billed: 2 * time.Second, BilledMS: 2000,
			LastCause: "LAST", Last: at(2062),
		},
		{
			Tenant: "t1", Pool: "p2", Legs: 1, Calls: 1, Answered: 1, Billed: 2 * time.Second, BilledMS: 2000,
			LastCause: "NORMAL_CLEARING", Last: at(2012),
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got, err := w.Summary(t.Context(), at(1_000_000)); err != nil || len(got) != 0 {
		t.Errorf("of the future: %v, %v", got, err)
	}
}

// suiteSummarySince compares summaries with what counting rows gives, for
// begins within and between minutes, after reports that moved a record.
func suiteSummarySince(t *testing.T, w Warehouse) {
	for from := 0; from < 120; from += 40 {
		var early, late []cdr.Entry
		for i := from; i < from+40; i++ {
			r := fullRecord(i)
			r.Start = epoch.Add(time.Duration(i) * 3 * time.Second)
			e := synthesised(r)
			if i%4 == 0 {
				e.Tenant, e.Pool, e.Start = "", "", time.Time{} // hardly anything was known
			}
			early = append(early, entry(e))
			if i%3 != 0 {
				late = append(late, entry(r))
			}
		}
		insert(t, w, early...)
		insert(t, w, late...)
	}
	rows := all(t, w)
	for sec := -60; sec <= 400; sec += 14 {
		since := epoch.Add(time.Duration(sec) * time.Second).Truncate(time.Second)
		if sec%4 == 0 {
			since = since.Truncate(time.Minute)
		}
		checkSummary(t, w, rows, since)
	}
	checkSummary(t, w, rows, time.Time{})
}

func checkSummary(t *testing.T, w Warehouse, rows []Row, since time.Time) {
	t.Helper()
	want := map[bulkhead.TenantID]TenantSummary{}
	for _, r := range rows {
		if !since.IsZero() && r.Time().Before(since) {
			continue
		}
		s := want[r.Tenant]
		s.Tenant, s.Pool = r.Tenant, r.Pool
		s.Legs++
		s.Calls++
		if !r.Answer.IsZero() {
			s.Answered++
		}
		if r.Source == cdr.SourceSynthesised {
			s.Gapped++
		}
		s.BilledMS += r.BilledMS
		s.Billed = time.Duration(s.BilledMS) * time.Millisecond
		want[r.Tenant] = s
	}
	got := map[bulkhead.TenantID]TenantSummary{}
	for _, s := range counted(t, w, since) {
		got[s.Tenant] = s
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("since %v: %s", since, d)
	}
}

// counted is the summary without what depends on the order of reports.
func counted(t *testing.T, w Warehouse, since time.Time) []TenantSummary {
	t.Helper()
	sums, err := w.Summary(t.Context(), since)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sums {
		sums[i].Last, sums[i].LastCause = time.Time{}, ""
	}
	return sums
}

func suiteQuarantine(t *testing.T, w Warehouse) {
	bad := []Undecodable{{Payload: []byte("{\x00\xff"), Reason: "x"}, {Payload: nil, Reason: "empty"}, {Payload: []byte("{\x00\xff"), Reason: "again"}}
	for range 2 {
		if err := w.Quarantine(t.Context(), bad); err != nil {
			t.Fatal(err)
		}
	}
	c, err := w.Counts(t.Context())
	if err != nil || c != (Counts{Quarantine: 2}) {
		t.Errorf("Counts = %+v, %v", c, err)
	}
}

func TestMergeGapIsASemilattice(t *testing.T) {
	gen := rapid.Custom(func(t *rapid.T) cdr.Gap {
		g := cdr.Gap{ID: "g", Node: "n", From: at(rapid.IntRange(0, 3).Draw(t, "from")), Reason: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "reason")}
		if n := rapid.IntRange(0, 3).Draw(t, "to"); n > 0 {
			g.To = at(10 * n)
		}
		g.Legs = rapid.SliceOfN(rapid.SampledFrom([]string{"x", "y", "z"}), 0, 3).Draw(t, "legs")
		return MergeGap(g, g)
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := gen.Draw(t, "a"), gen.Draw(t, "b"), gen.Draw(t, "c")
		if d := cmp.Diff(MergeGap(a, a), a); d != "" {
			t.Fatalf("not idempotent: %s", d)
		}
		if d := cmp.Diff(MergeGap(a, b), MergeGap(b, a)); d != "" {
			t.Fatalf("not commutative: %s", d)
		}
		if d := cmp.Diff(MergeGap(MergeGap(a, b), c), MergeGap(a, MergeGap(b, c))); d != "" {
			t.Fatalf("not associative: %s", d)
		}
	})
}

func FuzzParseCursor(f *testing.F) {
	f.Add("")
	f.Add("1767323045678901-6a7ba5a5dcb86f34ed54cfbd8eaa3c1e")
	f.Add("-5-00000000000000000000000000000001")
	f.Add("0-00000000000000000000000000000000")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCursor(s)
		if err != nil {
			if !errors.Is(err, bulkhead.Invalid) {
				t.Fatal(err)
			}
			return
		}
		back, err := ParseCursor(c.String())
		if err != nil || back != c {
			t.Fatalf("%q: %v reads back as %v, %v", s, c, back, err)
		}
	})
}
