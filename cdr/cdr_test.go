package cdr

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
)

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

// An entry of plain texts, as nearly all are, does not take the long way.
func TestPlainEntriesAreParsed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord(t)
		for i, v := 0, reflect.ValueOf(&r).Elem(); i < v.NumField(); i++ {
			if f := v.Field(i); f.Kind() == reflect.String {
				f.SetString(rapid.StringMatching("[ -!#-%'-;=?-Z]{0,5}").Draw(t, v.Type().Field(i).Name))
			}
		}
		r.Sources, r.Prov = []Source{SourceAMI, SourceARI}, map[Source]Fields{SourceAMI: FieldEnd | FieldStart, SourceFile: FieldCause}
		e := Entry{Record: &r, Raw: rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "raw")}
		b, err := Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		back, ok := parseEntry(b)
		if !ok {
			t.Fatalf("not parsed: %s", b)
		}
		if d := cmp.Diff(e, back); d != "" {
			t.Fatal(d)
		}
	})
}

// A record is the same bytes that encoding/json makes of it, whatever its
// fields hold; and what that refuses is refused.
func TestAppendJSON(t *testing.T) {
	texts := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"a<b>&\"\\/", "\x7f\x00\n\u2028", "\xff\xc0z", "\u00e9 plain"}))
	floats := rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{0, 1e-6, 9e-7, 1e20, 1e21, -1e22, math.Inf(1), math.NaN(), math.Copysign(0, -1)}))
	years := rapid.SampledFrom([]int{-1, 0, 1, 1970, 9999, 10000})
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord(t)
		for i, v := 0, reflect.ValueOf(&r).Elem(); i < v.NumField(); i++ {
			switch f, name := v.Field(i), v.Type().Field(i).Name; {
			case rapid.IntRange(0, 3).Draw(t, name+" as it is") > 0:
			case f.Kind() == reflect.String:
				f.SetString(texts.Draw(t, name))
			case f.CanUint():
				f.SetUint(rapid.Uint64().Draw(t, name))
			case f.CanInt():
				f.SetInt(rapid.Int64().Draw(t, name))
			case f.Type() == reflect.TypeFor[*float64]():
				n := floats.Draw(t, name)
				f.Set(reflect.ValueOf(&n))
			case f.Type() == reflect.TypeFor[time.Time]():
				zone := time.FixedZone("", rapid.SampledFrom([]int{0, 3600, -5400, 61, 24 * 3600}).Draw(t, name+" zone"))
				f.Set(reflect.ValueOf(time.Date(years.Draw(t, name), 2, 3, 4, 5, 6, rapid.IntRange(0, 999_999_999).Draw(t, name+" ns"), zone)))
			}
		}
		r.Attrs = rapid.MapOfN(texts, texts, 0, 3).Draw(t, "attrs")
		r.Sources = rapid.SliceOfN(rapid.SampledFrom(sources), 0, 3).Draw(t, "sources")
		r.Prov = rapid.MapOfN(rapid.SampledFrom(sources), rapid.Custom(func(t *rapid.T) Fields { return Fields(rapid.Uint32().Draw(t, "fields")) }), 0, 3).Draw(t, "prov")
		want, wantErr := json.Marshal(&r)
		got, err := r.AppendJSON(nil)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("AppendJSON: %v, json.Marshal: %v", err, wantErr)
		}
		if err == nil && string(got) != string(want) {
			t.Fatalf("AppendJSON:\n%s\njson.Marshal:\n%s", got, want)
		}
		e := Entry{Record: &r, Raw: rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "raw")}
		want, _ = json.Marshal(e)
		if got, _ := Encode(e); string(got) != string(want) {
			t.Fatalf("Encode:\n%s\njson.Marshal:\n%s", got, want)
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
		if e, ok := parseEntry(b); ok {
			var want Entry
			if err := json.Unmarshal(b, &want); err != nil {
				t.Fatalf("parsed, but it is not JSON: %v", err)
			}
			if d := cmp.Diff(want, e); d != "" {
				t.Fatalf("parsed otherwise than by encoding/json: %s", d)
			}
		}
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
