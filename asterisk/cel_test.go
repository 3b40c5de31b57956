package asterisk

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// celRecords reads rows and returns the records of the legs that ended.
func celRecords(t testing.TB, c *CELLog, rows []byte) []cdr.Record {
	t.Helper()
	var out []cdr.Record
	for row := range bytes.Lines(rows) {
		r, ok, err := c.Row(bytes.TrimRight(row, "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			out = append(out, r)
		}
	}
	return out
}

func TestGoldenCEL(t *testing.T) {
	c := NewCELLog("c1", "ast1")
	got := celRecords(t, c, capture(t, "cel-01-*.csv")) // taken with conf/cel_custom.conf from Asterisk 22.10.1
	if d := cmp.Diff(golden(t, "cel-01", cdr.SourceFile), got); d != "" {
		t.Error(d)
	}
	if len(c.legs) != 0 {
		t.Errorf("%d legs are remembered after their end", len(c.legs))
	}
}

// TestCELLogGoesOn: a decoder that begins again from what another one wrote
// down, after any row, makes the same records.
func TestCELLogGoesOn(t *testing.T) {
	rows := bytes.SplitAfter(capture(t, "cel-01-*.csv"), []byte("\n"))
	want := celRecords(t, NewCELLog("c1", "ast1"), bytes.Join(rows, nil))
	for cut := range rows {
		first, second := NewCELLog("c1", "ast1"), NewCELLog("c1", "ast1")
		got := celRecords(t, first, bytes.Join(rows[:cut], nil))
		state, err := first.State()
		if err != nil {
			t.Fatal(err)
		}
		if err := second.Restore(state); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, append(got, celRecords(t, second, bytes.Join(rows[cut:], nil))...)); d != "" {
			t.Fatalf("cut after %d rows: %s", cut, d)
		}
	}
}

// TestCELLogWithoutBegin: of a leg whose first rows are gone nothing is said
// that is not known.
func TestCELLogWithoutBegin(t *testing.T) {
	got := celRecords(t, NewCELLog("c1", "ast1"), []byte(`"HANGUP","1795691249.786543","1795691247.16","1795691247.16","PJSIP/acme-0000000a","acct-acme","8001","2003","phones","","{""hangupcause"":16,""hangupsource"":""dialplan/builtin"",""dialstatus"":""NOANSWER""}"`))
	if len(got) != 1 {
		t.Fatalf("%d records", len(got))
	}
	if r := got[0]; r.SIPCode != 0 || !r.Answer.IsZero() || r.Start.Unix() != 1795691247 || r.End.UnixMicro() != 1795691249786543 || r.Q850 != 16 {
		t.Errorf("%+v", r)
	}
}

func TestCELLogRefuses(t *testing.T) {
	good := `"CHAN_START","1795691243.630674","1795691243.0","1795691243.0","PJSIP/acme-00000000","acct-acme","8001","1001","phones","",""`
	for name, row := range map[string]string{
		"nothing":       ``,
		"half":          good[:len(good)/2],
		"two in one":    good[:40] + good,
		"a column more": good + `,"x"`,
		"no id":         strings.ReplaceAll(good, `"1795691243.0"`, `""`),
		"a dateformat":  strings.Replace(good, "1795691243.630674", "2026-11-26 11:07:23", 1),
	} {
		if _, ok, err := NewCELLog("c1", "ast1").Row([]byte(row)); ok || !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%s: %t %v", name, ok, err)
		}
	}
}

// TestCELLogIsBounded: what a crash left open does not stay for ever, and what
// began last is kept.
func TestCELLogIsBounded(t *testing.T) {
	c := NewCELLog("c1", "ast1")
	c.max = 10
	for i := range 25 {
		row := fmt.Sprintf(`"CHAN_START","%d.5","%d.1","%[2]d.1","PJSIP/a-1","","1","2","c","",""`, 1795691000+i, 1795691000+i)
		celRecords(t, c, []byte(row))
	}
	last := c.legs["1795691024.1"]
	if len(c.legs) > 10 || last == nil || !last.Begun {
		t.Errorf("%d legs, the last is %+v", len(c.legs), last)
	}
}
