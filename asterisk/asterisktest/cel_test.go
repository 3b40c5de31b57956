package asterisktest_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
)

// TestChannelEventLog: the log that a server keeps tells of every leg of its
// ledger, without anybody who listens.
func TestChannelEventLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bulkhead.csv")
	server := serve(t, asterisktest.ServerConfig{Name: "pbx", CELFile: path})
	l := &ledger{legs: map[string]asterisktest.Leg{}}
	if err := server.Generate(t.Context(), asterisktest.Load{Calls: 300, Ring: 10 * time.Millisecond, Talk: 50 * time.Millisecond, Seed: 5, Ledger: l.add}); err != nil {
		t.Fatal(err)
	}
	rows, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	log, got := asterisk.NewCELLog("c1", "ast1"), 0
	for row := range bytes.Lines(rows) {
		r, ok, err := log.Row(bytes.TrimSpace(row))
		if err != nil {
			t.Fatalf("%v: %s", err, row)
		}
		if !ok {
			continue
		}
		got++
		want := l.legs[r.Leg]
		r.Tenant = bulkhead.TenantID(want.Tenant) // it is not in the log
		if !isOf(&r, &want) || !r.Answer.Equal(want.Answer) || !r.End.Equal(want.End) || !r.Start.Equal(want.Start) {
			t.Errorf("leg %s: %+v, was %+v", r.Leg, r, want)
		}
	}
	if got != len(l.legs) || server.Stats().Unlogged != 0 {
		t.Errorf("%d records of %d legs, %d rows not written", got, len(l.legs), server.Stats().Unlogged)
	}
}
