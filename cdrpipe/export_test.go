package cdrpipe

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
)

// TestCSVCells: what a spreadsheet would run is text, and telephone numbers
// are numbers.
func TestCSVCells(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"1001":                    "1001",
		"+15551234":               "+15551234",
		"+":                       "'+",
		"=1+1":                    "'=1+1",
		"+1+cmd|' /C calc'!A0":    "'+1+cmd|' /C calc'!A0",
		"-2+3":                    "'-2+3",
		"-5":                      "'-5",
		"@SUM(A1)":                "'@SUM(A1)",
		"  =1":                    "'  =1",
		"\t=1":                    "?=1",
		"\r\n=1":                  "??=1",
		"a=b":                     "a=b",
		"\x1b[2J\u202eevil\u0085": "?[2J?evil?",
		"\u20ac \U0001f600":       "\u20ac \U0001f600",
		"\xff":                    "?",
	} {
		if got := cell(in); got != want {
			t.Errorf("cell(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestWritersKeepTerminals: whatever a caller sends, no line of an export
// holds a control character, CSV reads back with as many columns as it has
// names, and JSON reads back whole.
func TestWritersKeepTerminals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := fullRecord(1)
		text := rapid.String()
		r.Caller, r.Callee, r.Cause = text.Draw(t, "caller"), text.Draw(t, "callee"), text.Draw(t, "cause")
		r.Tenant, r.Attrs = bulkhead.TenantID(text.Draw(t, "tenant")), map[string]string{text.Draw(t, "key"): text.Draw(t, "value")}
		rows := []Row{newRow(r)}
		var j, c bytes.Buffer
		if err := NewNDJSON(&j).Write(rows); err != nil {
			t.Fatal(err)
		}
		w := NewCSV(&c, true)
		if err := w.Write(rows); err != nil {
			t.Fatal(err)
		}
		for _, out := range []string{j.String(), c.String()} {
			if i := strings.IndexFunc(out, func(r rune) bool { return r != '\n' && r != ' ' && !unicode.IsPrint(r) }); i >= 0 {
				t.Fatalf("a control character at %d of %q", i, out)
			}
		}
		var back Row
		if err := json.Unmarshal(j.Bytes(), &back); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(rows[0], back); d != "" {
			t.Fatal(d)
		}
		lines, err := csv.NewReader(&c).ReadAll()
		if err != nil || len(lines) != 2 || len(lines[1]) != len(CSVColumns()) {
			t.Fatalf("%d lines, %v", len(lines), err)
		}
		for i, v := range lines[1] {
			if v != "" && strings.ContainsRune("=+-@", rune(v[0])) && !isNumber(v) && CSVColumns()[i] != "clock_offset_ns" {
				t.Fatalf("column %s is %q", CSVColumns()[i], v)
			}
		}
	})
}

func FuzzParsePosition(f *testing.F) {
	f.Add("")
	f.Add("s1767323045678901-6a7ba5a5dcb86f34ed54cfbd8eaa3c1e")
	f.Add("1767323045678901-6a7ba5a5dcb86f34ed54cfbd8eaa3c1e") // a cursor of the other kind
	f.Add("s-5-00000000000000000000000000000001")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePosition(s)
		if err != nil {
			if !errors.Is(err, bulkhead.Invalid) {
				t.Fatal(err)
			}
			return
		}
		back, err := ParsePosition(p.String())
		if err != nil || back != p {
			t.Fatalf("%q: %v reads back as %v, %v", s, p, back, err)
		}
		if c, err := ParseCursor(s); err == nil && !c.IsZero() {
			t.Fatalf("%q is a cursor of calls too", s)
		}
	})
}
