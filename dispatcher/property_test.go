package dispatcher_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Whatever changes and faults there were: once the faults stop, the SBC
// comes to hold the tables of the last snapshot, and never was there more
// than one call in flight or an older revision after a newer one.
func TestAnySequenceConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			cfg := testConfig()
			cfg.Timeout = time.Second
			w, err := bear(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = w.stop() }()
			revision := bulkhead.RevisionNumber(0)
			for range rapid.IntRange(1, 40).Draw(t, "steps") {
				switch rapid.IntRange(0, 4).Draw(t, "step") {
				case 0, 1:
					revision++
					w.store(revision, "a", fmt.Sprintf("b%d", rapid.IntRange(0, 5).Draw(t, "tenant")))
				case 2:
					var s []fault
					for range rapid.IntRange(0, 6).Draw(t, "faults") {
						s = append(s, fault(rapid.IntRange(0, int(faults)-1).Draw(t, "fault")))
					}
					w.proxy.script(s...)
				case 3:
					w.proxy.lose(rapid.SampledFrom([]string{"", "t:", "d:a", "p:"}).Draw(t, "lose"))
				case 4:
					after(time.Duration(rapid.IntRange(1, 4000).Draw(t, "ms")) * time.Millisecond)
				}
			}
			if revision == 0 {
				revision++
				w.store(revision, "a")
			}
			w.proxy.script()
			after(15 * time.Second)
			s := w.Status()
			applies, _, most, holds := w.proxy.seen()
			if !s.Converged || s.Applied != revision || s.LastError != "" {
				t.Fatalf("status is %+v, want revision %d converged\n%s", s, revision, w.log)
			}
			want := tablesOf(t, w)
			if d := differences(holds, want); len(d) > 0 {
				t.Fatalf("SBC differs: %q", d)
			}
			if most > 1 || !slices.IsSorted(applies) {
				t.Fatalf("%d calls in flight, applies of %v", most, applies)
			}
		})
	})
}

func tablesOf(t *rapid.T, w *world) route.Tables {
	want, err := route.MakeTables(w.live.Load(), "sbc1")
	if err != nil {
		t.Fatal(err)
	}
	return want
}
