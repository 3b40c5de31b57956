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
