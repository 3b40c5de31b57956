package main

import (
	"context"
	"encoding/csv"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// sippCall is one line of SIPp's injection file.
type sippCall struct{ source, user, domain, caller string }

// sipp places calls with a real SIPp, each from its own source address, and
// returns the scenario's counters of its last statistics line.
func sipp(ctx context.Context, t *testing.T, target string, calls []sippCall, rate int) map[string]string {
	t.Helper()
	bin := testenv.Need(t, "sipp", "sip-tester")
	dir := t.TempDir()
	var lines strings.Builder
	lines.WriteString("SEQUENTIAL\n")
	for _, c := range calls {
		fmt.Fprintf(&lines, "%s;%s;%s;%s;\n", c.source, c.user, c.domain, c.caller)
	}
	inf := filepath.Join(dir, "calls.csv")
	if err := os.WriteFile(inf, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	scenario, err := filepath.Abs("testdata/uac.xml")
	if err != nil {
		t.Fatal(err)
	}
	stat := filepath.Join(dir, "stat.csv")
	cmd := exec.CommandContext(ctx, bin, target, "-sf", scenario, "-inf", inf, "-t", "ui", "-ip_field", "0",
		"-p", strconv.Itoa(freePort(t)), "-mi", "127.0.0.1", "-mp", strconv.Itoa(freePort(t)&^1), "-rtp_echo",
		"-r", strconv.Itoa(rate), "-m", strconv.Itoa(len(calls)), "-l", strconv.Itoa(len(calls)),
		"-max_socket", "1000", "-nostdin", "-trace_stat", "-stf", stat, "-fd", "1", "-trace_err", "-error_file", filepath.Join(dir, "errors"),
		// Two workers of a Kamailio may turn a 180 and its 200 round.
		"-pause_msg_ign", "-timeout", "120s")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		errors, _ := os.ReadFile(filepath.Join(dir, "errors"))
		t.Errorf("sipp: %v\n%s\n%s", err, tail(string(errors), 30), tail(string(out), 40))
	}
	f, err := os.Open(stat)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.Comma, r.FieldsPerRecord = ';', -1
	rows, err := r.ReadAll()
	if err != nil || len(rows) < 2 {
		t.Fatalf("sipp statistics: %d lines, %v", len(rows), err)
	}
	last := map[string]string{}
	for i, name := range rows[0] {
		if i < len(rows[len(rows)-1]) {
			last[name] = rows[len(rows)-1][i]
		}
	}
	return last
}

// records returns what the store has, by the real command.
func (c *testCell) records(args ...string) []cdrpipe.Row {
	c.t.Helper()
	return decodeLines[cdrpipe.Row](c.t, tool(c.t, append([]string{"cdr", "--json", "--data", c.data}, args...)...))
}

// TestCallsThroughKamailio is the whole path with real parts: SIPp calls the
// numbers of thirty tenants, Kamailio finds tenant and node, the node asks
// configsvc and rings the user through Kamailio again, and every leg is in
// the store once.
func TestCallsThroughKamailio(t *testing.T) {
	const tenants, calls, rate = 30, 300, 20
	c := startCell(t, tenants)
	heard := make(chan siptest.Stats, calls)
	c.phones(heard)
	var in []sippCall
	for i := range calls {
		n := i % tenants
		in = append(in, sippCall{sourceOf(n), "+" + numberOf(n), domainOf(n), fmt.Sprintf("1555%06d", i)})
	}
	stats := sipp(t.Context(), t, c.sip, in, rate)
	if got := stats["SuccessfulCall(C)"]; got != strconv.Itoa(calls) {
		t.Fatalf("SIPp: %s of %d calls succeeded, %s failed", got, calls, stats["FailedCall(C)"])
	}
	for range calls {
		select {
		case st := <-heard:
			// SIPp echoes: what the phone hears is its own tone, so audio went
			// both ways and reached both ends.
			if st.Sent < 50 || st.Received < st.Sent/2 {
				t.Errorf("a called phone sent %d RTP packets and got %d back", st.Sent, st.Received)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a called phone did not see its call end")
		}
	}
	var rows []cdrpipe.Row
	eventually(t, 20*time.Second, "records of every leg", func() string {
		rows = c.records()
		if len(rows) < 2*calls {
			return fmt.Sprintf("%d of %d", len(rows), 2*calls)
		}
		return ""
	})
	// Nothing more may follow: ask again when the pipeline has been idle.
	settled := time.Now().Add(2 * time.Second)
	eventually(t, 10*time.Second, "an idle pipeline", func() string {
		if time.Now().Before(settled) {
			return "not yet"
		}
		return ""
	})
	rows = c.records()
	if len(rows) != 2*calls {
		t.Errorf("%d records, want one a leg and no other: %d", len(rows), 2*calls)
	}
	c.checkLegs(rows, calls)
}

// checkLegs holds the records of answered calls against what was placed.
func (c *testCell) checkLegs(rows []cdrpipe.Row, calls int) {
	t := c.t
	t.Helper()
	byCaller, placed := map[string][]cdrpipe.Row{}, map[int]bool{}
	ids := map[cdr.ID]bool{}
	for _, r := range rows {
		if ids[r.ID] {
			t.Errorf("record %s is there twice", r.ID)
		}
		ids[r.ID] = true
		byCaller[r.Call] = append(byCaller[r.Call], r)
	}
	if len(byCaller) != calls {
		t.Errorf("%d calls in the store, want %d", len(byCaller), calls)
	}
	fine := 0 // records whose times are not whole seconds
	for _, r := range rows {
		if r.Start.Truncate(time.Millisecond).Nanosecond() != 0 && r.End.Truncate(time.Millisecond).Nanosecond() != 0 {
			fine++
		}
	}
	if fine < len(rows)*9/10 {
		t.Errorf("only %d of %d records have times finer than a second", fine, len(rows))
	}
	for call, legs := range byCaller {
		if len(legs) != 2 || legs[0].Direction == legs[1].Direction {
			t.Errorf("call %s has legs %+v, want an inbound and an outbound one", call, legs)
			continue
		}
		for i := range legs {
			c.checkLeg(&legs[i])
		}
		// The caller's number says which of the placed calls it was.
		n, err := strconv.Atoi(strings.TrimPrefix(legs[0].Caller, "1555"))
		if err != nil || n >= calls || placed[n] {
			t.Errorf("call %s is by %s, which is none of the callers, or was seen before", call, legs[0].Caller)
			continue
		}
		placed[n] = true
		for _, l := range legs {
			if want := tenantOf(n % c.tenants); string(l.Tenant) != want || l.Caller != legs[0].Caller {
				t.Errorf("leg %s of call %d is of tenant %s and caller %s, want %s and %s", l.Leg, n, l.Tenant, l.Caller, want, legs[0].Caller)
			}
		}
	}
}

func (c *testCell) checkLeg(r *cdrpipe.Row) {
	t := c.t
	t.Helper()
	bad := func(what string, got, want any) {
		t.Errorf("leg %s (%s) of %s: %s is %v, want %v", r.Leg, r.Direction, r.Tenant, what, got, want)
	}
	n, err := strconv.Atoi(strings.TrimPrefix(string(r.Tenant), "t"))
	if err != nil || n >= c.tenants {
		bad("tenant", r.Tenant, "one of ours")
		return
	}
	node := c.nodes[string(r.Node)]
	if node.pool == "" || node.pool != poolOf(n) || string(r.Pool) != poolOf(n) {
		bad("node and pool", fmt.Sprint(r.Node, " ", r.Pool), poolOf(n))
	}
	if r.Kind != cdr.Leg || r.Source != cdr.SourceESL {
		bad("kind and source", fmt.Sprint(r.Kind, " ", r.Source), "leg esl")
	}
	if r.SBC != "sbc1" || r.Cell != "c1" || r.Revision == 0 {
		bad("sbc, cell, revision", fmt.Sprint(r.SBC, " ", r.Cell, " ", r.Revision), "sbc1 c1 and above 0")
	}
	callee := "+" + numberOf(n)
	if r.Direction == cdr.Outbound {
		callee = "101"
	}
	if r.Callee != callee || !strings.HasPrefix(r.Caller, "1555") {
		bad("caller and callee", r.Caller+" "+r.Callee, "1555... "+callee)
	}
	if r.SIPCode != 200 || r.Q850 != 16 {
		bad("SIP code and Q.850 cause", fmt.Sprint(r.SIPCode, " ", r.Q850), "200 16")
	}
	if !r.Start.Before(r.End) || r.Answer.Before(r.Start) || r.End.Before(r.Answer) {
		bad("times", fmt.Sprint(r.Start, r.Answer, r.End), "start <= answer <= end")
	}
	if b := r.Billed(); b < 1500*time.Millisecond || b > 20*time.Second || r.BilledMS != b.Milliseconds() {
		bad("billed time", b, "about 2 s")
	}
	if r.RTPIn == nil || r.RTPOut == nil || *r.RTPIn < 50 || *r.RTPOut < 50 {
		bad("RTP packets", fmt.Sprint(r.RTPIn, r.RTPOut), "some both ways")
	}
}
