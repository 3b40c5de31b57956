package dispatcher_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/dispatcher"
	"github.com/bulkhead-voip/bulkhead/route"
)

func TestWaitsForTheFirstRevision(t *testing.T) {
	run(t, testConfig(), func(t *testing.T, w *world) {
		after(time.Minute)
		if s := w.Status(); s.Phase != dispatcher.Waiting || s.Converged {
			t.Errorf("status is %+v, want waiting", s)
		}
		if err := w.Ready(); !errors.Is(err, bulkhead.Unavailable) {
			t.Errorf("Ready returned %v, want %v", err, bulkhead.Unavailable)
		}
		w.store(1, "a")
		after(time.Second)
		w.converged(t, 1)
	})
}

func TestRightTablesAreNotWrittenAgain(t *testing.T) {
	run(t, testConfig(), func(t *testing.T, w *world) {
		x := route.New(state(7, "a", "b"))
		held, err := route.MakeTables(x, "sbc1")
		if err != nil {
			t.Fatal(err)
		}
		w.proxy.holds = held
		w.live.Store(x)
		after(time.Minute)
		w.converged(t, 7)
		if applies, verifies, _, _ := w.proxy.seen(); len(applies) != 0 || verifies < 10 || verifies > 13 {
			t.Errorf("%d applies and %d read-backs in a minute, want 0 and one each 5 s", len(applies), verifies)
		}
	})
}

func TestBurstCoalesces(t *testing.T) {
	run(t, testConfig(), func(t *testing.T, w *world) {
		w.store(1, "a")
		after(time.Second)
		w.proxy.takes = 50 * time.Millisecond
		begin := time.Now()
		for r := range 100 {
			w.store(bulkhead.RevisionNumber(2+r), "a", fmt.Sprintf("b%d", r))
			after(time.Millisecond)
		}
		for !w.Status().Converged {
			after(time.Millisecond)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("converged %s after the burst began, want 1s at most", took)
		}
		w.converged(t, 101)
		applies, _, most, _ := w.proxy.seen()
		if len(applies) > 4 {
			t.Errorf("100 changes in 100 ms led to applies of %v, want 3 at most after the first", applies)
		}
		if most != 1 {
			t.Errorf("%d calls in flight at once, want 1", most)
		}
	})
}

func TestSteadyChangesKeepTheInterval(t *testing.T) {
	cfg := testConfig()
	cfg.MinInterval = time.Second
	run(t, cfg, func(t *testing.T, w *world) {
		for r := range 200 {
			w.store(bulkhead.RevisionNumber(1+r), "a")
			after(50 * time.Millisecond)
		}
		applies, _, _, _ := w.proxy.seen()
		if len(applies) < 9 || len(applies) > 11 {
			t.Errorf("%d applies in 10 s of steady change, want one a second", len(applies))
		}
		if !slices.IsSorted(applies) {
			t.Errorf("applied %v: an older revision came after a newer one", applies)
		}
	})
}

func TestFailingApplyIsRetried(t *testing.T) {
	for name, f := range map[string]fault{"away": away, "half": half, "lost": lost, "hang": hang, "lie": lie} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Timeout = time.Second
			run(t, cfg, func(t *testing.T, w *world) {
				w.store(1, "a")
				after(time.Second)
				if f == lie {
					w.proxy.script(f, none, f, none, f)
				} else {
					w.proxy.script(f, f, f)
				}
				w.store(2, "a", "b")
				after(300 * time.Millisecond)
				if s := w.Status(); s.Converged || s.Wanted != 2 {
					t.Errorf("status is %+v, want revision 2 not converged", s)
				}
				if f != hang {
					if err := w.Ready(); !errors.Is(err, bulkhead.Unavailable) {
						t.Errorf("Ready returned %v, want %v", err, bulkhead.Unavailable)
					}
				}
				after(10 * time.Second)
				w.converged(t, 2)
				want := `
# HELP bulkhead_dispatcher_apply_failures_total Applies that failed, or whose tables were not those read back.
# TYPE bulkhead_dispatcher_apply_failures_total counter
bulkhead_dispatcher_apply_failures_total{sbc="sbc1"} 3
# HELP bulkhead_dispatcher_drift_total Times that tables which had been read back right were found changed.
# TYPE bulkhead_dispatcher_drift_total counter
bulkhead_dispatcher_drift_total{sbc="sbc1"} 0
# HELP bulkhead_dispatcher_converged 1 while the SBC is known to hold the tables of the newest revision, else 0.
# TYPE bulkhead_dispatcher_converged gauge
bulkhead_dispatcher_converged{sbc="sbc1"} 1
# HELP bulkhead_dispatcher_applied_revision Revision of the tables that the SBC took last.
# TYPE bulkhead_dispatcher_applied_revision gauge
bulkhead_dispatcher_applied_revision{sbc="sbc1"} 2
`
				if err := testutil.GatherAndCompare(w.reg, strings.NewReader(want), "bulkhead_dispatcher_apply_failures_total",
					"bulkhead_dispatcher_drift_total", "bulkhead_dispatcher_converged", "bulkhead_dispatcher_applied_revision"); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestAwayIsLoggedOnceAndPausesAreCapped(t *testing.T) {
	run(t, testConfig(), func(t *testing.T, w *world) {
		w.proxy.script(slices.Repeat([]fault{away}, 10000)...)
		w.store(1, "a")
		after(10 * time.Minute)
		if n := strings.Count(w.log.String(), "does not hold the newest"); n != 1 {
			t.Errorf("%d warnings in ten minutes of the same failure, want 1:\n%s", n, w.log)
		}
		_, verifies, _, _ := w.proxy.seen()
		if verifies < 240 || verifies > 400 {
			t.Errorf("%d attempts in ten minutes, want about one every 2 s", verifies)
		}
		// One attempt may be under way.
		if s := w.Status(); s.Failures != verifies && s.Failures != verifies-1 {
			t.Errorf("status has %d failures, want %d", s.Failures, verifies)
		}
		w.proxy.script()
		after(3 * time.Second)
		w.converged(t, 1)
	})
}

func TestDriftIsRepaired(t *testing.T) {
	run(t, testConfig(), func(t *testing.T, w *world) {
		w.store(1, "a", "b")
		after(time.Second)
		w.converged(t, 1)
		since := w.Status().Since
		w.proxy.lose("t:b")
		w.proxy.script(none, lie) // the first repair does not take: still one drift
		after(7 * time.Second)
		w.converged(t, 1)
		s := w.Status()
		if !s.Since.After(since) {
			t.Errorf("converged since %s, as if nothing had been", s.Since)
		}
		if s.DifferenceCount != 1 || len(s.Differences) != 1 || !strings.HasPrefix(s.Differences[0], "t:b: ") {
			t.Errorf("last differences are %d %q, want the one row t:b", s.DifferenceCount, s.Differences)
		}
		if !strings.Contains(w.log.String(), "tables of the SBC have changed") || !strings.Contains(w.log.String(), "t:b: ") {
			t.Errorf("the log does not tell of the drift:\n%s", w.log)
		}
		want := `
# HELP bulkhead_dispatcher_drift_total Times that tables which had been read back right were found changed.
# TYPE bulkhead_dispatcher_drift_total counter
bulkhead_dispatcher_drift_total{sbc="sbc1"} 1
`
		if err := testutil.GatherAndCompare(w.reg, strings.NewReader(want), "bulkhead_dispatcher_drift_total"); err != nil {
			t.Error(err)
		}
	})
}

func TestRestartedSBCGetsItsTables(t *testing.T) {
	run(t, testConfig(), func(t *testing.T, w *world) {
		w.store(1, "a", "b")
		after(time.Second)
		w.proxy.lose("") // all rows
		w.proxy.script(away, away)
		after(8 * time.Second)
		w.converged(t, 1)
	})
}

func TestContextEndsAtOnce(t *testing.T) {
	for name, prepare := range map[string]func(w *world){
		"no revision": func(*world) {},
		"at rest":     func(w *world) { w.store(1, "a"); after(time.Second) },
		"hanging":     func(w *world) { w.proxy.script(none, hang); w.store(1, "a"); after(time.Second) },
		"pausing":     func(w *world) { w.proxy.script(away); w.store(1, "a"); after(20 * time.Millisecond) },
		"interval":    func(w *world) { w.store(1, "a"); after(40 * time.Millisecond); w.store(2, "a"); synctest.Wait() },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, testConfig(), func(t *testing.T, w *world) {
				prepare(w)
				failures := w.Status().Failures
				begin := time.Now()
				if err := w.stop(); err != nil {
					t.Errorf("Run returned %v, want nil", err)
				}
				if took := time.Since(begin); took != 0 {
					t.Errorf("Run ended after %s, want at once", took)
				}
				if s := w.Status(); s.Phase != dispatcher.Stopped || s.Converged || s.Failures != failures {
					t.Errorf("status is %+v, want stopped, not converged, %d failures", s, failures)
				}
			})
		})
	}
}

func TestRefusedRevisionKeepsTheOneBefore(t *testing.T) {
	noSBC := state(2, "a")
	noSBC.SBCs = nil
	moved := state(2, "a")
	moved.SBCs = map[bulkhead.SBCID]*bulkhead.SBC{"sbc1": {ID: "sbc1", Cell: "c2", SIP: "127.0.0.1:5060"}}
	for name, c := range map[string]struct {
		state bulkhead.State
		want  string
	}{
		"SBC unknown":                {noSBC, "not found"},
		"SBC moved to an empty cell": {moved, `which has tenants, to cell "c2", which has none`},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, testConfig(), func(t *testing.T, w *world) {
				w.store(1, "a")
				after(time.Second)
				w.live.Store(route.New(c.state))
				after(time.Minute)
				s := w.Status()
				if s.Converged || s.Applied != 1 || s.Wanted != 2 || !strings.Contains(s.Refused, c.want) {
					t.Errorf("status is %+v, want revision 1 kept and %q", s, c.want)
				}
				if err := w.Ready(); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("Ready returned %v, want %q in it", err, c.want)
				}
				if n := strings.Count(w.log.String(), "level=ERROR"); n != 1 {
					t.Errorf("%d errors logged, want 1:\n%s", n, w.log)
				}
				w.proxy.lose("t:a") // drift is repaired meanwhile
				after(10 * time.Second)
				if _, _, _, holds := w.proxy.seen(); !slices.ContainsFunc(holds.Rows, func(r route.Row) bool { return r.Key == "t:a" }) {
					t.Error("row t:a is lost")
				}
				w.store(3, "a", "b")
				after(time.Second)
				w.converged(t, 3)
			})
		})
	}
}

func TestLastTenantMayGo(t *testing.T) {
	for name, tenants := range map[string][]string{"none left": nil, "left to another cell": {"a@c2"}} {
		t.Run(name, func(t *testing.T) {
			run(t, testConfig(), func(t *testing.T, w *world) {
				w.store(1, "a")
				after(time.Second)
				w.store(2, tenants...)
				after(time.Second)
				w.converged(t, 2)
			})
		})
	}
}

func TestRoutes(t *testing.T) {
	run(t, testConfig(), func(t *testing.T, w *world) {
		w.store(3, "a")
		after(time.Second)
		rec := httptest.NewRecorder()
		w.Routes().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/v1/sbc", nil))
		if rec.Code != http.StatusOK || rec.Header().Get("Content-Type") != "application/json" {
			t.Fatalf("got %d %v", rec.Code, rec.Header())
		}
		var s dispatcher.Status
		dec := json.NewDecoder(bytes.NewReader(rec.Body.Bytes()))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&s); err != nil {
			t.Fatal(err)
		}
		if s.SBC != "sbc1" || s.Wanted != 3 || s.Applied != 3 || !s.Converged || !s.Since.Equal(w.Status().Since) {
			t.Errorf("got %s", rec.Body)
		}
	})
}

func TestManyDifferencesAreBounded(t *testing.T) {
	run(t, testConfig(), func(t *testing.T, w *world) {
		var tenants []string
		for i := range 100 {
			tenants = append(tenants, fmt.Sprintf("t%d", i))
		}
		w.store(1, tenants...)
		after(time.Second)
		w.converged(t, 1)
		if s := w.Status(); s.DifferenceCount < 200 || len(s.Differences) != 20 {
			t.Errorf("%d of %d differences kept, want 20 of over 200", len(s.Differences), s.DifferenceCount)
		}
	})
}

func TestNew(t *testing.T) {
	reg := prometheus.NewRegistry()
	build := func(change func(*dispatcher.Config)) error {
		cfg := testConfig()
		change(&cfg)
		_, err := dispatcher.New(cfg, &route.Live{}, &fakeProxy{}, slog.New(slog.DiscardHandler), reg)
		return err
	}
	for field, change := range map[string]func(*dispatcher.Config){
		"sbc":          func(c *dispatcher.Config) { c.SBC = "" },
		"verify_every": func(c *dispatcher.Config) { c.VerifyEvery = time.Millisecond },
		"min_interval": func(c *dispatcher.Config) { c.MinInterval = -1 },
		"timeout":      func(c *dispatcher.Config) { c.Timeout = 0 },
		"retry_min":    func(c *dispatcher.Config) { c.RetryMin = time.Minute },
		"retry_max":    func(c *dispatcher.Config) { c.RetryMax = 0 },
	} {
		if err := build(change); !errors.Is(err, bulkhead.Invalid) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: got %v, want an Invalid that names it", field, err)
		}
	}
	if err := build(func(*dispatcher.Config) {}); err != nil {
		t.Error(err)
	}
	if err := build(func(c *dispatcher.Config) { c.SBC = "sbc2" }); err != nil {
		t.Errorf("a second SBC in the same registry: %v", err)
	}
	if err := build(func(*dispatcher.Config) {}); err == nil {
		t.Error("the same SBC twice in a registry gave no error")
	}
}

// known are node states that a test sets.
type known struct {
	mu      sync.Mutex
	states  route.NodeStates
	changed chan struct{}
}

func (k *known) Next() (route.NodeStates, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.states, k.changed
}

func (k *known) set(s route.NodeStates) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.states = s
	close(k.changed)
	k.changed = make(chan struct{})
}

// What becomes known of a node goes to the SBC at once, as sets alone; when
// that fails, everything is applied.
func TestNodeStatesMoveSetsAlone(t *testing.T) {
	cfg := testConfig()
	states := &known{}
	cfg.States = states
	run(t, cfg, func(t *testing.T, w *world) {
		states.changed = make(chan struct{}) // within the bubble
		w.store(1, "a", "b")
		after(2 * time.Second)
		w.converged(t, 1)
		holds := func(s route.NodeStates) bool {
			want, err := route.MakeSets(w.live.Load(), "sbc1", s)
			if err != nil {
				t.Fatal(err)
			}
			_, _, _, h := w.proxy.seen()
			return cmp.Equal(h.Sets, want)
		}
		dead := route.NodeStates{"n1": {Dead: true}}
		states.set(dead)
		after(50 * time.Millisecond)
		applies, _, _, _ := w.proxy.seen()
		if !holds(dead) || len(applies) != 1 || w.proxy.shifts != 1 {
			t.Errorf("50 ms after a node died: %d applies, %d shifts, sets right: %t", len(applies), w.proxy.shifts, holds(dead))
		}
		states.set(route.NodeStates{"n1": {Dead: true}})
		after(50 * time.Millisecond)
		if w.proxy.shifts != 1 {
			t.Error("the same sets were applied again")
		}
		w.proxy.script(half)
		states.set(nil)
		after(10 * time.Second)
		if applies, _, _, _ := w.proxy.seen(); !holds(nil) || len(applies) != 2 {
			t.Errorf("after a failure: %d applies, want 2, and sets right: %t", len(applies), holds(nil))
		}
		if s := w.Status(); !s.Converged {
			t.Errorf("status is %+v", s)
		}
	})
}

// Observing writes nothing and tells the differences.
func TestObserve(t *testing.T) {
	cfg := testConfig()
	cfg.Observe = true
	run(t, cfg, func(t *testing.T, w *world) {
		w.store(1, "a")
		after(time.Minute)
		w.store(2, "a", "b")
		after(time.Minute)
		applies, verifies, _, _ := w.proxy.seen()
		if len(applies) != 0 || w.proxy.shifts != 0 || verifies < 20 {
			t.Errorf("%d applies, %d shifts, %d read-backs", len(applies), w.proxy.shifts, verifies)
		}
		if s := w.Status(); s.Converged || s.DifferenceCount == 0 || s.Wanted != 2 {
			t.Errorf("status is %+v", s)
		}
	})
}
