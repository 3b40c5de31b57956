package asterisk_test

import (
	"bytes"
	"os"
	"path/filepath"
	"time"

	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// celRecords reads Asterisk's channel event log until it tells of n legs.
func (l *lab) celRecords(n int) map[string]cdr.Record {
	l.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		out := map[string]cdr.Record{}
		b, err := os.ReadFile(filepath.Join(l.Dir, "var/cel-custom/bulkhead.csv"))
		if err != nil {
			l.t.Fatal(err)
		}
		log := asterisk.NewCELLog("c1", "ast1")
		for row := range bytes.Lines(b) {
			r, ok, err := log.Row(bytes.TrimRight(row, "\n"))
			if err != nil {
				l.t.Fatalf("%v: %s", err, row)
			}
			if ok {
				out[r.ID.String()] = r
			}
		}
		if len(out) >= n {
			return out
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("the channel event log tells of %d legs, want %d:\n%s", len(out), n, b)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// checkCEL holds what the channel event log tells against what ARI told of the
// same legs: nobody has to listen for the log to know it.
func (l *lab) checkCEL(heard map[string]cdr.Record) {
	l.t.Helper()
	logged := l.celRecords(len(heard))
	if len(logged) != len(heard) {
		l.t.Errorf("the channel event log tells of %d legs, ARI of %d", len(logged), len(heard))
	}
	close := func(a, b time.Time, within time.Duration) bool {
		return a.IsZero() == b.IsZero() && a.Sub(b).Abs() <= within
	}
	for id, h := range heard {
		r := logged[id]
		// Both have the time of the same message; ARI prints its milliseconds.
		if !r.Answer.Truncate(time.Millisecond).Equal(h.Answer) || !close(r.Start, h.Start, 100*time.Millisecond) || !close(r.End, h.End, 200*time.Millisecond) {
			l.t.Errorf("leg %s: log %s, %s, %s; ARI %s, %s, %s", h.Leg, r.Start, r.Answer, r.End, h.Start, h.Answer, h.End)
		}
		if r.Leg != h.Leg || r.Call != h.Call || r.Direction != h.Direction || r.Caller != h.Caller || r.Q850 != h.Q850 || r.HangupBy != h.HangupBy ||
			r.SIPCode != h.SIPCode && r.SIPCode != 0 || r.Attrs["account_code"] != h.Attrs["account_code"] || r.Attrs["endpoint"] != h.Attrs["endpoint"] || r.Attrs["context"] != h.Attrs["context"] {
			l.t.Errorf("leg %s: log %+v\nARI %+v", h.Leg, r, h)
		}
		if h.Direction == cdr.Inbound && r.Callee != h.Callee {
			l.t.Errorf("leg %s: callee %q in the log, %q by ARI", h.Leg, r.Callee, h.Callee)
		}
		if m := cdr.Merge(r, h); m.Source != cdr.SourceARI || !m.Answer.Equal(h.Answer) || !m.End.Equal(h.End) || m.SIPCode != h.SIPCode {
			l.t.Errorf("leg %s: both together are %+v", h.Leg, m)
		}
	}
}
