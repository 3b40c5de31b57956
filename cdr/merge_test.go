package cdr

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
)

// genTime draws the zero time or one of few, so that equal ones are frequent.
func genTime(t *rapid.T, label string) time.Time {
	us := rapid.SampledFrom([]int64{0, 1, 1_700_000_000_000_000, 1_700_000_000_000_001, 1_700_000_060_123_456}).Draw(t, label)
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func genText(t *rapid.T, label string) string {
	return rapid.SampledFrom([]string{"", "a", "b", "\u00e9\x00\n<"}).Draw(t, label)
}

var sources = []Source{SourceESL, SourceARI, SourceHTTP, SourceFile, SourceAMI, SourceSBC, SourceReconciled, SourceSynthesised, "other", ""}

func genNumber[T any](t *rapid.T, label string, g *rapid.Generator[T]) *T {
	if !rapid.Bool().Draw(t, label+" known") {
		return nil
	}
	v := g.Draw(t, label)
	return &v
}

// genRecord draws what one source may report of leg l. Every field is drawn
// by its type, so that a field that is added is drawn too.
func genRecord(t *rapid.T) Record {
	var r Record
	v := reflect.ValueOf(&r).Elem()
	for i := range v.NumField() {
		name, f := v.Type().Field(i).Name, v.Field(i)
		switch p := f.Addr().Interface().(type) {
		case *ID, *[]Source, *map[Source]Fields:
		case *Source:
			*p = rapid.SampledFrom(sources).Draw(t, name)
		case *Kind:
			*p = Leg
		case *time.Time:
			*p = genTime(t, name)
		case *time.Duration:
			*p = time.Duration(rapid.Int64Range(-2, 2).Draw(t, name))
		case **int64:
			*p = genNumber(t, name, rapid.Int64Range(0, 3))
		case **float64:
			*p = genNumber(t, name, rapid.SampledFrom([]float64{0, 1, 4.5}))
		case *map[string]string:
			*p = rapid.MapOfN(rapid.StringMatching("[a-f][a-f]"), rapid.SampledFrom([]string{"", "x", "y"}), 0, 30).Draw(t, name)
			if len(*p) == 0 {
				*p = nil
			}
		case *int:
			*p = rapid.IntRange(0, 3).Draw(t, name)
		default:
			switch f.Kind() {
			case reflect.String:
				f.SetString(genText(t, name))
			case reflect.Uint64:
				f.SetUint(uint64(rapid.IntRange(0, 2).Draw(t, name)))
			default:
				t.Fatalf("field %s has a type that this test does not draw", name)
			}
		}
	}
	r.Schema, r.Cell, r.Node, r.Leg = SchemaVersion, "c1", "n1", "l"
	r.ID = NewID(r.Cell, string(r.Node), r.Leg)
	return r
}

// TestMergeIsASemilattice joins any number of reports, each any number of
// times, in two orders and groupings.
func TestMergeIsASemilattice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		reports := rapid.SliceOfN(rapid.Custom(genRecord), 1, 6).Draw(t, "reports")
		if rapid.Bool().Draw(t, "near") { // reports that differ in one field are the hard case
			r := reports[0]
			r.End, r.Source = genTime(t, "near end"), rapid.SampledFrom(sources).Draw(t, "near source")
			reports = append(reports, r)
		}
		if rapid.Bool().Draw(t, "restated") {
			reports = append(reports, Restate(reports[0], SourceSynthesised))
		}
		for _, r := range reports {
			if d := cmp.Diff(r, Merge(r, r)); d != "" {
				t.Fatalf("not idempotent: %s", d)
			}
		}
		want := reports[0]
		for _, r := range reports[1:] {
			want = Merge(want, r)
		}
		// In another order, some of them twice, joined as a tree.
		pile := slices.Clone(reports)
		for range rapid.IntRange(0, 4).Draw(t, "repeats") {
			pile = append(pile, rapid.SampledFrom(reports).Draw(t, "repeat"))
		}
		for len(pile) > 1 {
			i := rapid.IntRange(0, len(pile)-1).Draw(t, "left")
			a := pile[i]
			pile = slices.Delete(pile, i, i+1)
			j := rapid.IntRange(0, len(pile)-1).Draw(t, "right")
			pile[j] = Merge(a, pile[j])
		}
		if d := cmp.Diff(want, pile[0]); d != "" {
			t.Fatalf("order or grouping matters: %s", d)
		}
		for _, r := range reports { // absorption
			if d := cmp.Diff(want, Merge(r, want)); d != "" {
				t.Fatalf("a report that was joined before changes the result: %s", d)
			}
		}
		survives(t, want)
	})
}

// survives checks that a merged record is the same after a journey.
func survives(t *rapid.T, r Record) {
	b, err := Encode(Entry{Record: &r})
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, *back.Record); d != "" {
		t.Fatalf("encoding changes it: %s", d)
	}
	if r.Billed() < 0 || r.PDD() < 0 {
		t.Fatalf("billed %v, PDD %v", r.Billed(), r.PDD())
	}
}

// TestMergeOfAnything joins what no source of ours would report, too.
func TestMergeOfAnything(t *testing.T) {
	odd := func(t *rapid.T) Record {
		r := genRecord(t)
		r.Sources = rapid.SliceOfN(rapid.SampledFrom(sources), 0, 3).Draw(t, "sources")
		r.Prov = rapid.MapOfN(rapid.SampledFrom(sources), rapid.Custom(func(t *rapid.T) Fields { return Fields(rapid.Uint32().Draw(t, "fields")) }), 0, 3).Draw(t, "prov")
		return r
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := odd(t), odd(t), odd(t)
		if d := cmp.Diff(Merge(a, b), Merge(b, a)); d != "" {
			t.Fatalf("not commutative: %s", d)
		}
		if d := cmp.Diff(Merge(Merge(a, b), c), Merge(a, Merge(b, c))); d != "" {
			t.Fatalf("not associative: %s", d)
		}
		m := Merge(a, a)
		if d := cmp.Diff(m, Merge(m, m)); d != "" {
			t.Fatalf("not idempotent: %s", d)
		}
	})
}

func at(us int64) time.Time { return time.UnixMicro(1_700_000_000_000_000 + us).UTC() }

func TestMergeFieldByField(t *testing.T) {
	mos := 4.2
	esl := Record{Leg: "l", Source: SourceESL, Start: at(123_456), End: at(9_500_000), Cause: "NORMAL_CLEARING", Caller: "1001"}
	http := Record{Leg: "l", Source: SourceHTTP, Start: at(123_456), End: at(9_500_000), Cause: "NORMAL_CLEARING", Caller: "+1001", MOS: &mos}
	ami := Record{Leg: "l", Source: SourceAMI, Start: at(0), Answer: at(2_000_000), End: at(9_000_000), Tenant: "acme"}
	gone := Record{Leg: "l", Source: SourceSynthesised, Start: at(123_456), Cause: "ended in gap", Gap: "g"}
	live := Record{Leg: "l", Source: SourceReconciled, Start: at(0), Callee: "2000"}
	for name, c := range map[string]struct{ a, b, want Record }{
		"a second source fills in": {esl, http, Record{
			Leg: "l", Source: SourceESL, Sources: []Source{SourceESL, SourceHTTP}, Start: at(123_456), End: at(9_500_000),
			Cause: "NORMAL_CLEARING", Caller: "1001", MOS: &mos, Prov: map[Source]Fields{SourceHTTP: FieldMOS},
		}},
		"whole seconds give way": {ami, esl, Record{
			Leg: "l", Source: SourceESL, Sources: []Source{SourceAMI, SourceESL}, Start: at(123_456), Answer: at(2_000_000), End: at(9_500_000),
			Cause: "NORMAL_CLEARING", Caller: "1001", Tenant: "acme", Prov: map[Source]Fields{SourceAMI: FieldAnswer | FieldTenant},
		}},
		"a second source after a gap": {gone, http, Record{
			Leg: "l", Source: SourceHTTP, Sources: []Source{SourceHTTP, SourceSynthesised}, Start: at(123_456), End: at(9_500_000),
			Cause: "NORMAL_CLEARING", Caller: "+1001", MOS: &mos, Gap: "g",
		}},
		"ended in a gap, seen in a list before": {gone, live, Record{
			Leg: "l", Source: SourceReconciled, Sources: []Source{SourceReconciled, SourceSynthesised}, Start: at(0), Callee: "2000",
			Cause: "ended in gap", Gap: "g", Prov: map[Source]Fields{SourceSynthesised: FieldCause},
		}},
	} {
		for _, got := range []Record{Merge(c.a, c.b), Merge(c.b, c.a)} {
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("%s (-want +got):\n%s", name, d)
			}
		}
	}
}

// TestRestateKeepsFineTimes: what the event socket told of a leg before its
// end was missed is worth more than a list in whole seconds.
func TestRestateKeepsFineTimes(t *testing.T) {
	open := Record{Leg: "l", Source: SourceESL, Start: at(123_456), Caller: "1001"}
	gone := Restate(open, SourceSynthesised)
	if gone.Source != SourceSynthesised || gone.Prov[SourceESL] != FieldStart|FieldCaller || len(gone.Sources) > 0 {
		t.Errorf("Restate = %+v", gone)
	}
	ami := Record{Leg: "l", Source: SourceAMI, Start: at(0), End: at(9_000_000)}
	got := Merge(gone, ami)
	if !got.Start.Equal(at(123_456)) || !got.End.Equal(at(9_000_000)) || got.Source != SourceAMI {
		t.Errorf("Merge = %+v", got)
	}
}

func TestUpdatePrefersTheNewer(t *testing.T) {
	older := Record{Leg: "l", Call: "a", Source: SourceReconciled, Caller: "1", Callee: "2", Start: at(0), Gap: "g", Attrs: map[string]string{"context": "x"}}
	newer := Record{Leg: "l", Call: "l", Source: SourceESL, Caller: "0", Start: at(5), Attrs: map[string]string{"context": "b"}}
	want := Record{
		Leg: "l", Call: "a", Source: SourceESL, Sources: []Source{SourceESL, SourceReconciled}, Caller: "0", Callee: "2", Start: at(5),
		Gap: "g", Attrs: map[string]string{"context": "b"}, Prov: map[Source]Fields{SourceReconciled: FieldCall | FieldCallee},
	}
	if d := cmp.Diff(want, Update(older, newer)); d != "" {
		t.Error(d)
	}
}

// TestBilled looks at clocks that step, too: the node's clock may be set back
// in a call, and a day has 23 or 25 hours somewhere.
func TestBilled(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skipf("no time zones here: %v", err)
	}
	sec := func(s int64) time.Time { return time.Unix(s, 0) }
	local := func(month time.Month, day, hour, minute int) time.Time {
		return time.Date(2026, month, day, hour, minute, 0, 0, berlin)
	}
	for name, c := range map[string]struct {
		r    Record
		want time.Duration
	}{
		"answered":                {Record{Answer: sec(10), End: sec(13)}, 3 * time.Second},
		"not answered":            {Record{End: sec(13)}, 0},
		"end unknown":             {Record{Answer: sec(10)}, 0},
		"clock back by 1 s":       {Record{Answer: sec(10), End: sec(9)}, 0},
		"clock back by 2 s":       {Record{Start: sec(10), Ring: sec(8), Answer: sec(9), End: sec(12)}, 3 * time.Second},
		"clock on by 2 s":         {Record{Start: sec(10), Answer: sec(11), End: sec(13)}, 2 * time.Second},
		"hour left out in March":  {Record{Answer: local(time.March, 29, 1, 59), End: local(time.March, 29, 3, 1)}, 2 * time.Minute},
		"hour twice in October":   {Record{Answer: local(time.October, 25, 1, 59), End: local(time.October, 25, 3, 1)}, 122 * time.Minute},
		"over the end of a month": {Record{Answer: local(time.January, 31, 23, 59), End: local(time.February, 1, 0, 1)}, 2 * time.Minute},
	} {
		c.r.Source = SourceESL
		merged := Merge(c.r, Record{Source: SourceSynthesised})
		if got := merged.Billed(); c.r.Billed() != c.want || got != c.want {
			t.Errorf("%s: Billed = %v, merged %v, want %v", name, c.r.Billed(), got, c.want)
		}
		if merged.PDD() < 0 || merged.End.Location() != time.UTC {
			t.Errorf("%s: PDD %v, times in %v", name, merged.PDD(), merged.End.Location())
		}
	}
}

func TestFieldsCoverTheRecord(t *testing.T) {
	names := map[string]bool{}
	for f := range reflect.TypeFor[Record]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names[name] = true
	}
	for _, n := range fieldNames {
		if !names[n] {
			t.Errorf("Fields names %q, which Record does not have", n)
		}
		delete(names, n)
	}
	// What names the leg, and what is joined by other rules.
	for _, n := range []string{"schema", "id", "kind", "source", "sources", "prov", "cell", "node", "leg", "attrs", "gap"} {
		delete(names, n)
	}
	if len(names) > 0 {
		t.Errorf("fields without provenance: %v", slices.Sorted(maps.Keys(names)))
	}
	var back Fields
	text, _ := (FieldStart | FieldMOS).MarshalText()
	if err := back.UnmarshalText([]byte(string(text) + ",field of next year")); err != nil || back != FieldStart|FieldMOS {
		t.Errorf("%q reads back as %v, %v", text, back, err)
	}
}

// TestDecodeOfEarlierVersions reads bytes as they lie in spools.
func TestDecodeOfEarlierVersions(t *testing.T) {
	for _, line := range []string{
		`{"record":{"schema":1,"id":"e2d66f373613663d3259b9be3f09f38e","kind":"leg","source":"esl","cell":"c1","node":"fs1","leg":"0c8a6a5e-5ea2-4c5a-8b4a-0d6f3a1f2b3c","call":"x","start":"2026-01-02T03:04:05.000006Z","rtp_in":5}}`,
		`{"record":{"schema":1,"id":"e2d66f373613663d3259b9be3f09f38e","kind":"leg","source":"esl","sources":["esl","http"],"prov":{"http":"mos,of_next_year"},"cell":"c1","leg":"l","call":"x","start":"2026-01-02T03:04:05Z","mos":4,"of_next_year":1}}`,
	} {
		e, err := Decode([]byte(line))
		if err != nil || e.Record.ID.String() != "e2d66f373613663d3259b9be3f09f38e" || e.Record.Start.IsZero() {
			t.Errorf("%s: %+v, %v", line, e.Record, err)
		}
		if p := e.Record.Prov[SourceHTTP]; len(e.Record.Sources) > 0 && p != FieldMOS {
			t.Errorf("%s: provenance %v", line, p)
		}
	}
}

func BenchmarkMerge(b *testing.B) {
	mos, n := 4.2, int64(150)
	esl := Record{
		Schema: 1, ID: NewID("c1", "fs1", "l"), Kind: Leg, Source: SourceESL, Cell: "c1", Node: "fs1", Tenant: "acme", Leg: "l", Call: "l",
		SIPCallID: "x", Direction: Inbound, Caller: "1001", Callee: "2000", Start: at(1), Ring: at(2), Answer: at(3), End: at(4), SIPCode: 200,
		Q850: 16, Cause: "NORMAL_CLEARING", Codec: "PCMU", RTPIn: &n, RTPOut: &n, MOS: &mos, Attrs: map[string]string{"context": "public", "profile": "internal"},
	}
	http := esl
	http.Source, http.Attrs = SourceHTTP, map[string]string{"context": "public", "profile": "internal"}
	b.Run("same", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = Merge(esl, http)
		}
	})
	http.RTPLost = &n
	b.Run("fills in", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = Merge(esl, http)
		}
	})
	m := Merge(esl, http)
	b.Run("again", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = Merge(m, http)
		}
	})
}

func TestSourcesAreKept(t *testing.T) {
	var all Record
	for _, s := range []Source{SourceFile, SourceESL, SourceHTTP, SourceESL} {
		all = Merge(all, Record{Leg: "l", Source: s, Tenant: bulkhead.TenantID(s)})
	}
	if d := cmp.Diff([]Source{SourceESL, SourceFile, SourceHTTP}, all.Reporters()); d != "" || all.Source != SourceESL || all.Tenant != "esl" {
		t.Errorf("%s %s %s", d, all.Source, all.Tenant)
	}
	if one := (&Record{Source: SourceESL}); !slices.Equal(one.Reporters(), []Source{SourceESL}) {
		t.Errorf("Reporters = %v", one.Reporters())
	}
	if b, _ := json.Marshal(Record{Source: SourceESL}); strings.Contains(string(b), "prov") || strings.Contains(string(b), "sources") {
		t.Errorf("a record of one source is longer than it must be: %s", b)
	}
}
