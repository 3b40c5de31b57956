package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
)

const (
	gapSeconds = 5   // BULKHEAD_CHAOS_GAP
	gapCalls   = 200 // BULKHEAD_CHAOS_GAP_CALLS
)

// TestChaosGap takes the bridge away in the middle of many calls, a third of
// which are transferred, and brings it back: one record for every A leg, and
// each says who told of it.
func TestChaosGap(t *testing.T) {
	away := time.Duration(fromEnv(t, "BULKHEAD_CHAOS_GAP", gapSeconds)) * time.Second
	calls := fromEnv(t, "BULKHEAD_CHAOS_GAP_CALLS", gapCalls)
	// Calls begin over twice the time that the bridge is away, and last up to
	// half of it: there are all kinds, before, in, behind and across the gap.
	p := startPipeline(t, 0, generatorConfig{
		Legs: 2 * calls, Rate: max(1, calls*int(time.Second)/int(away)), Seed: uint64(fromEnv(t, "BULKHEAD_CHAOS_SEED", chaosSeed)),
		Talk: away / 2, Transfers: 3,
	})
	eventually(t, time.Minute, "calls before the gap", func() string {
		if n := p.generator.ended(t); n < calls/4 {
			return fmt.Sprintf("%d legs have ended", n)
		}
		return ""
	})
	p.bridge.kill()
	pauseFor(away)
	p.bridge.start()
	waitReady(t, p.admin, 30*time.Second)
	<-p.generator.done
	p.alive()
	truth := p.generator.ledger(t)
	rows := p.settle(truth)
	if wrong := compare(t, truth, rows); wrong > 0 {
		t.Errorf("%d of %d legs are wrong", wrong, len(truth))
	}
	inbound, told := 0, legsTold(rows)
	for _, records := range rows {
		for i := range records {
			if records[i].Direction == cdr.Inbound {
				inbound++
			}
		}
	}
	t.Logf("%v away, %d A legs of %d calls; legs by who told of them: %v", away, inbound, calls, told)
	if inbound != calls {
		t.Errorf("%d A legs of %d calls", inbound, calls)
	}
	for _, s := range []cdr.Source{cdr.SourceESL, cdr.SourceHTTP, cdr.SourceFile, cdr.SourceReconciled, cdr.SourceSynthesised} {
		if told[s] == 0 {
			t.Errorf("no record is marked %s", s)
		}
	}
}

// legsTold counts the records that each source told of.
func legsTold(rows map[string][]cdrpipe.Row) map[cdr.Source]int {
	told := map[cdr.Source]int{}
	for _, records := range rows {
		for i := range records {
			for _, s := range records[i].Reporters() {
				told[s]++
			}
		}
	}
	return told
}
