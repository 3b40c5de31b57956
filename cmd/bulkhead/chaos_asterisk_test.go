package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// The size of a chaos run with a real Asterisk; make chaos sets it.
const (
	realChaosLegs = 300 // BULKHEAD_CHAOS_REAL_LEGS
	realChaosRate = 20  // legs a second, BULKHEAD_CHAOS_REAL_RATE
)

// TestChaosRealAsterisk runs phone -> real Asterisk -> phone, and what
// Asterisk tells of it through the pipeline into ClickHouse, while all but
// Asterisk and the phones is killed, stopped and cut off and its log rotated.
// The ledger is kept by the phones, in a process of their own. What the bridge
// did not hear is in Asterisk's channel event log.
func TestChaosRealAsterisk(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute and more")
	}
	asterisktest.Need(t)
	legs, rate := fromEnv(t, "BULKHEAD_CHAOS_REAL_LEGS", realChaosLegs), fromEnv(t, "BULKHEAD_CHAOS_REAL_RATE", realChaosRate)
	seed := uint64(fromEnv(t, "BULKHEAD_CHAOS_SEED", chaosSeed))
	phones := fmt.Sprintf("127.0.9.1:%d", freePort(t))
	pbx := asterisktest.Start(t, asterisktest.Options{Phones: netip.MustParseAddrPort(phones)})
	log := filepath.Join(pbx.Dir, "var/cel-custom/bulkhead.csv")
	m := newRealMonkey(t, pbx, log, seed, generatorConfig{Seed: seed, SIP: &sipTraffic{
		Switch: pbx.SIP.String(), Phones: phones, Calls: int(float64(legs) / sipLegsPerCall), Rate: float64(rate) / sipLegsPerCall,
	}})
	for done := false; !done; {
		select {
		case <-m.generator.done:
			done = true
		default:
			if m.rnd.IntN(10) == 0 {
				m.aside["rotate log"]++
				if err := os.Rename(log, fmt.Sprintf("%s.%d", log, m.aside["rotate log"])); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
			m.act()
		}
	}
	m.alive()
	truth := m.generator.sipLedger(t)
	rows := m.settleSIP(truth)
	wrong, stored := compareSIP(t, truth, rows)
	t.Logf("Asterisk %s, seed %d: %d calls, %d legs, %s, %d wrong", pbx.Version, seed, len(truth), stored, m, wrong)
	want, least := leastFaults, 0
	if legs >= 5000 {
		want, least = 50, 5000*95/100
	}
	if m.total() < want || stored < least {
		t.Errorf("only %d legs and %d things done, want %d and %d", stored, m.total(), least, want)
	}
	m.noGapOpen()
}

// newRealMonkey starts the pipeline beside one real Asterisk.
func newRealMonkey(t *testing.T, pbx *asterisktest.Daemon, log string, seed uint64, cfg generatorConfig) *monkey {
	t.Helper()
	m := newMonkey(&pipeline{t: t}, seed, 9)
	m.redis = testenv.StartRedis(t)
	m.clickhouse = testenv.ClickHouse(t)
	dir := t.TempDir()
	ari, redis, ch := newWire(t, "ari", pbx.Params.HTTP), newWire(t, "redis", m.redis.Socket), newWire(t, "clickhouse", m.clickhouse.Native)
	m.wires = []*wire{ari, redis, ch}
	file := filepath.Join(dir, "nodes.yaml")
	nodes := fmt.Sprintf("cell: chaos\nnodes:\n  - id: ast1\n    kind: asterisk\n    address: %s\n    user: bulkhead\n    password: %s\n    cel_file: %s\n", ari.addr(), pbx.Params.Password, log)
	if err := os.WriteFile(file, []byte(nodes), 0o600); err != nil {
		t.Fatal(err)
	}
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }
	admin := local()
	m.bridge = spawn(t, "eventbridge", "--nodes", file, "--data", filepath.Join(dir, "bridge"), "--listen", local(), "--admin", admin, "--redis", "redis://"+redis.addr())
	m.pipe = spawn(t, "cdrpipe", "--data", filepath.Join(dir, "pipe"), "--cell", "chaos", "--admin", local(), "--redis", "redis://"+redis.addr(),
		"--warehouse", "clickhouse://default@"+ch.addr()+"/chaos")
	waitReady(t, admin, 30*time.Second)
	cfg.Ledger = filepath.Join(dir, "ledger")
	m.generator = startGenerator(t, cfg)
	return m
}

// settleSIP waits until every leg of the ledger is in the store with its end,
// and returns the records by the caller's number.
func (m *monkey) settleSIP(truth map[string]sipTruth) map[string][]cdrpipe.Row {
	m.t.Helper()
	var rows map[string][]cdrpipe.Row
	eventually(m.t, 3*time.Minute, "records of every leg", func() string {
		byLeg, err := m.records()
		if err != nil {
			return err.Error()
		}
		rows = map[string][]cdrpipe.Row{}
		for _, records := range byLeg {
			for _, r := range records {
				if !r.End.IsZero() {
					rows[r.Caller] = append(rows[r.Caller], r)
				}
			}
		}
		missing := 0
		for caller, want := range truth {
			missing += max(0, 1+max(0, want.Outbound)-len(rows[caller]))
		}
		if missing > 0 {
			pauseFor(500 * time.Millisecond) // the store has work to do
			return fmt.Sprintf("%d legs of %d calls are missing", missing, len(truth))
		}
		return ""
	})
	return rows
}

// compareSIP holds the store against what the phones saw, and returns the
// number of differences and of records.
func compareSIP(t *testing.T, truth map[string]sipTruth, rows map[string][]cdrpipe.Row) (wrong, stored int) {
	t.Helper()
	bad := func(format string, args ...any) {
		if wrong++; wrong <= 10 {
			t.Errorf(format, args...)
		}
	}
	// Asterisk's clock is read in one thread and its messages sent in another.
	const slack = 500 * time.Millisecond
	sources, failed := map[cdr.Source]int{}, 0
	for caller, want := range truth {
		var legs [2]int // inbound, outbound
		answered := 0
		for _, r := range rows[caller] {
			stored++
			sources[r.Source]++
			which := 0
			if r.Direction == cdr.Outbound {
				which = 1
			}
			legs[which]++
			if r.Answer.IsZero() {
				continue
			}
			answered++
			if b := r.Billed(); b < want.Min-slack || b > want.Max+slack {
				bad("call of %s to %s: billed %v, want %v to %v: %+v", caller, want.Number, b, want.Min, want.Max, r.Record)
			}
		}
		if want.Outbound < 0 {
			failed++
			continue
		}
		wantAnswered := 0
		if want.Answered {
			wantAnswered = 1 + min(1, want.Outbound)
		}
		if legs != [2]int{1, want.Outbound} || answered != wantAnswered {
			bad("call of %s to %s: %v legs in and out, %d answered, want [1 %d] and %d: %+v", caller, want.Number, legs, answered, want.Outbound, wantAnswered, rows[caller])
		}
	}
	for caller := range rows {
		if _, ok := truth[caller]; !ok {
			bad("there is a record of caller %q, who never called", caller)
		}
	}
	if failed > len(truth)/50 {
		t.Errorf("%d of %d calls did not go as they should: that says nothing of records", failed, len(truth))
	}
	t.Logf("records by source: %v", sources)
	return wrong, stored
}
