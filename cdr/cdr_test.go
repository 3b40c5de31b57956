package cdr

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
)

// genTime draws the zero time or one of few microseconds, so that equal ones
// are frequent.
func genTime(t *rapid.T, label string) time.Time {
	us := rapid.SampledFrom([]int64{0, 1, 1_700_000_000_000_000, 1_700_000_000_000_001, 1_700_000_060_123_456}).Draw(t, label)
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func genRecord(t *rapid.T) Record {
	text := func(label string) string {
		return rapid.SampledFrom([]string{"", "a", "b", "\u00e9\x00\n<"}).Draw(t, label)
	}
	r := Record{
		Schema: SchemaVersion, Kind: rapid.SampledFrom([]Kind{Leg, Refused, Failover}).Draw(t, "kind"),
		Source: rapid.SampledFrom([]Source{SourceESL, SourceSBC, SourceReconciled, SourceSynthesised, "other"}).Draw(t, "source"),
		Cell:   "c1", Node: bulkhead.NodeID(text("node")), Tenant: bulkhead.TenantID(text("tenant")),
		Revision: bulkhead.RevisionNumber(rapid.Uint64().Draw(t, "revision")),
		Leg:      text("leg"), Call: text("call"), Caller: text("caller"), Cause: text("cause"),
		Start: genTime(t, "start"), Answer: genTime(t, "answer"), End: genTime(t, "end"),
		SIPCode: rapid.IntRange(0, 699).Draw(t, "code"),
	}
	r.ID = NewID(r.Cell, string(r.Node), r.Leg)
	if rapid.Bool().Draw(t, "rtp") {
		n := rapid.Int64().Draw(t, "packets")
		r.RTPIn = &n
	}
	return r
}

func TestMergeIsASemilattice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := genRecord(t), genRecord(t), genRecord(t)
		if rapid.Bool().Draw(t, "near") { // reports that differ in one field are the hard case
			b = a
			b.End = genTime(t, "near end")
		}
		if d := cmp.Diff(Merge(a, a), a); d != "" {
			t.Fatalf("not idempotent: %s", d)
		}
		if d := cmp.Diff(Merge(a, b), Merge(b, a)); d != "" {
			t.Fatalf("not commutative: %s", d)
		}
		if d := cmp.Diff(Merge(Merge(a, b), c), Merge(a, Merge(b, c))); d != "" {
			t.Fatalf("not associative: %s", d)
		}
	})
}

func TestMergePrefersTheFullRecord(t *testing.T) {
	end := time.UnixMicro(1_700_000_000_000_000).UTC()
	full := Record{Source: SourceESL, End: end, Cause: "NORMAL_CLEARING"}
	synthesised := Record{Source: SourceSynthesised, Gap: "g", Cause: strings.Repeat("z", 100)}
	open := Record{Source: SourceESL, Cause: "zzz"}
	for name, worse := range map[string]Record{"synthesised": synthesised, "without end": open} {
		if got := Merge(full, worse); got.Cause != full.Cause {
			t.Errorf("%s: Merge kept %+v", name, got)
		}
		if got := Merge(worse, full); got.Cause != full.Cause {
			t.Errorf("%s, other order: Merge kept %+v", name, got)
		}
	}
}

func TestIDIsStable(t *testing.T) {
	// The value is part of the data: a change would count old calls twice.
	const want = "e2d66f373613663d3259b9be3f09f38e"
	if got := NewID("c1", "fs1", "0c8a6a5e-5ea2-4c5a-8b4a-0d6f3a1f2b3c").String(); got != want {
		t.Errorf("NewID = %s, want %s", got, want)
	}
	if NewID("c", "1fs", "x") == NewID("c1", "fs", "x") || NewID("c", "f", "sx") == NewID("c", "fs", "x") {
		t.Error("ids do not keep cell, node and leg apart")
	}
}

func TestIDText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := NewID(bulkhead.CellID(rapid.String().Draw(t, "cell")), rapid.String().Draw(t, "node"), rapid.String().Draw(t, "leg"))
		var back ID
		if err := back.UnmarshalText([]byte(id.String())); err != nil || back != id {
			t.Fatalf("%s reads back as %s, %v", id, back, err)
		}
	})
	for _, bad := range []string{"", "0", strings.Repeat("0", 31), strings.Repeat("0", 34), strings.Repeat("g", 32)} {
		var id ID
		if err := id.UnmarshalText([]byte(bad)); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("UnmarshalText(%q) = %v, want bulkhead.Invalid", bad, err)
		}
	}
}

func TestBilled(t *testing.T) {
	at := func(sec int64) time.Time { return time.Unix(sec, 0) }
	for name, c := range map[string]struct {
		r    Record
		want time.Duration
	}{
		"answered":     {Record{Answer: at(10), End: at(13)}, 3 * time.Second},
		"not answered": {Record{End: at(13)}, 0},
		"end unknown":  {Record{Answer: at(10)}, 0},
		"clock back":   {Record{Answer: at(10), End: at(9)}, 0},
	} {
		if got := c.r.Billed(); got != c.want {
			t.Errorf("%s: Billed = %v, want %v", name, got, c.want)
		}
	}
}

func TestCodecRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord(t)
		e := Entry{Record: &r}
		if rapid.Bool().Draw(t, "gap") {
			e = Entry{Gap: &Gap{ID: "g", Cell: "c1", Node: "fs1", From: genTime(t, "from"), To: genTime(t, "to"), Reason: "r", Legs: []string{"x"}}}
		}
		b, err := Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(e, back); d != "" {
			t.Fatal(d)
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	for _, bad := range []string{"", "{", "null", "{}", "[]", `{"record":{},"gap":{}}`, `{"record":{"id":"xy"}}`, `{"record":{}} trailing`} {
		if _, err := Decode([]byte(bad)); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("Decode(%q) = %v, want bulkhead.Invalid", bad, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	n := int64(5)
	for _, e := range []Entry{
		{Record: &Record{Schema: 1, ID: NewID("c", "n", "l"), Kind: Leg, Source: SourceESL, Start: time.UnixMicro(1).UTC(), RTPIn: &n}},
		{Gap: &Gap{ID: "g", Node: "n", Legs: []string{"a", "b"}}},
	} {
		b, err := json.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"record":{"start":"0001-01-01T00:00:00Z"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			if !errors.Is(err, bulkhead.Invalid) {
				t.Fatalf("error is not bulkhead.Invalid: %v", err)
			}
			return
		}
		again, err := Encode(e)
		if err != nil {
			t.Fatalf("decoded, but does not encode: %v", err)
		}
		back, err := Decode(again)
		if err != nil {
			t.Fatalf("encoded, but does not decode: %v", err)
		}
		if e.Record != nil {
			m := Merge(*e.Record, *back.Record)
			if m.ID != e.Record.ID {
				t.Fatal("merge of one record with itself changed its id")
			}
		}
	})
}
