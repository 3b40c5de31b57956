package dispatcher_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/dispatcher"
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

// Whatever happens to nodes, to the registry and to the SBC, in simulated time:
// in every set that the SBC is given there is somebody to take calls, as long
// as its pool has a node that is not drained; what is drained takes none once
// the SBC is in step; there are few changes of a node a minute; and when it is
// quiet the SBC holds what follows from it all, and nobody dead takes calls.
func TestAnyLoadDeathDrainAndRevision(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			w, err := bearWatched(t)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = w.stop() }()
			ids := []bulkhead.NodeID{"n1", "n2", "n3", "n4", "n5"}
			for range rapid.IntRange(1, 30).Draw(t, "steps") {
				id := rapid.SampledFrom(ids).Draw(t, "node")
				switch rapid.IntRange(0, 9).Draw(t, "step") {
				case 0:
					w.sick(id, func(s *health) { s.cpu = rapid.SampledFrom([]float64{0.3, 0.9, 1}).Draw(t, "cpu") })
				case 1:
					w.sick(id, func(s *health) { s.sessions = rapid.IntRange(0, 100).Draw(t, "sessions") })
				case 2:
					w.sick(id, func(s *health) { s.mute = !s.mute })
				case 3:
					w.sick(id, func(s *health) { s.dead = !s.dead })
				case 4:
					w.revise(id, func(n *bulkhead.Node) { n.Drain = !n.Drain })
				case 5:
					w.revise(id, func(n *bulkhead.Node) {
						n.Pool = rapid.SampledFrom([]bulkhead.PoolID{"", "p1", "p2"}).Draw(t, "pool")
						n.Weight = rapid.IntRange(0, 100).Draw(t, "weight")
					})
				case 6:
					var s []fault
					for range rapid.IntRange(0, 4).Draw(t, "faults") {
						s = append(s, fault(rapid.IntRange(0, int(faults)-1).Draw(t, "fault")))
					}
					w.proxy.script(s...)
				case 7:
					swing := rapid.SampledFrom([]time.Duration{0, 300 * time.Millisecond, time.Second, 5 * time.Second, 20 * time.Second}).Draw(t, "swing")
					w.sick(id, func(s *health) { s.swing = swing })
				default:
					after(time.Duration(rapid.IntRange(1, 5000).Draw(t, "ms")) * time.Millisecond)
				}
				w.check(t)
			}
			if rapid.IntRange(0, 3).Draw(t, "long") == 0 {
				after(time.Minute)
				w.check(t)
			}
			for _, id := range ids {
				w.sick(id, func(s *health) { s.swing = 0 })
			}
			w.proxy.script()
			after(10 * time.Second)
			w.check(t)
			w.checkAtRest(t)
		})
	})
}

// health is what becomes of a node.
type health struct {
	dead, mute bool // mute: its agent alone
	cpu        float64
	sessions   int           // of 100
	swing      time.Duration // it is like that for so long, and well for as long; 0: always
}

// watchedWorld is a world whose nodes are watched.
type watchedWorld struct {
	*world
	watch *dispatcher.Watch

	mu     sync.Mutex
	health map[bulkhead.NodeID]health
	states map[bulkhead.RevisionNumber]bulkhead.State
	state  bulkhead.State
	wrong  string // about what the SBC was given
}

// bearWatched builds a watchedWorld of two pools. The caller must stop it.
func bearWatched(t *rapid.T) (*watchedWorld, error) {
	w := &watchedWorld{health: map[bulkhead.NodeID]health{}, states: map[bulkhead.RevisionNumber]bulkhead.State{}}
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1"}}, SBCs: []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: "127.0.0.1:5060"}},
		Pools: []bulkhead.Pool{
			{ID: "p1", Cell: "c1", Profile: "standard", Backup: rapid.SampledFrom([]bulkhead.PoolID{"", "p2"}).Draw(t, "backup")},
			{ID: "p2", Cell: "c1", Profile: "ai", Placement: bulkhead.Spread},
		},
		Tenants: []bulkhead.Tenant{
			{ID: "a", Cell: "c1", Profile: "standard", Domains: []string{"a.example"}},
			{ID: "b", Cell: "c1", Profile: "ai", Domains: []string{"b.example"}},
		},
	}
	for _, n := range []bulkhead.Node{{ID: "n1", Pool: "p1"}, {ID: "n2", Pool: "p1"}, {ID: "n3", Pool: "p2"}, {ID: "n4", Pool: "p2"}} {
		c.Nodes = append(c.Nodes, placed(n))
	}
	w.state = bulkhead.State{}.Apply(&c)
	w.states[w.state.Revision] = w.state
	live := &route.Live{}
	live.Store(route.New(w.state))
	var err error
	w.watch, err = dispatcher.NewWatch(dispatcher.WatchConfig{SBC: "sbc1"}, live, w, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	w.watch.AskAgentsBy(w)
	cfg := testConfig()
	cfg.Timeout = time.Second
	cfg.States = w.watch
	if w.world, err = bearOf(cfg, live, &fakeProxy{takes: 10 * time.Millisecond, took: w.given}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.watch.Run(ctx) }()
	stop := w.stop
	w.stop = func() error {
		cancel()
		return errors.Join(stop(), <-done)
	}
	return w, nil
}

// placed gives a node its addresses.
func placed(n bulkhead.Node) bulkhead.Node {
	n.SIP, n.Agent = fmt.Sprintf("127.0.0.1:700%s", n.ID[1:]), fmt.Sprintf("%s:80", n.ID)
	return n
}

func (w *watchedWorld) of(id bulkhead.NodeID) health {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.health[id]
	if h.swing > 0 && time.Now().UnixNano()/int64(h.swing)%2 == 1 {
		return health{}
	}
	return h
}

func (w *watchedWorld) sick(id bulkhead.NodeID, change func(*health)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.health[id]
	change(&h)
	w.health[id] = h
}

// revise changes a node in the registry; one without a pool is not there.
func (w *watchedWorld) revise(id bulkhead.NodeID, change func(*bulkhead.Node)) {
	n := placed(bulkhead.Node{ID: id})
	if old := w.state.Nodes[id]; old != nil {
		n = *old
	}
	change(&n)
	c := bulkhead.Change{Nodes: []bulkhead.Node{n}}
	if n.Pool == "" {
		c = bulkhead.Change{Delete: bulkhead.Deletion{Nodes: []bulkhead.NodeID{id}}}
	}
	w.mu.Lock()
	w.state = w.state.Apply(&c)
	w.states[w.state.Revision] = w.state
	w.mu.Unlock()
	w.live.Store(route.New(w.state))
}

// Ping answers for a node.
func (w *watchedWorld) Ping(_ context.Context, id bulkhead.NodeID, _ string) (int, error) {
	if w.of(id).dead {
		return 0, bulkhead.Unavailable
	}
	return 200, nil
}

// RoundTrip answers for a node's agent.
func (w *watchedWorld) RoundTrip(r *http.Request) (*http.Response, error) {
	h := w.of(bulkhead.NodeID(r.URL.Hostname()))
	if h.dead || h.mute {
		return nil, bulkhead.Unavailable
	}
	body, err := json.Marshal(bulkhead.NodeLoad{CPU: h.cpu, PBX: &bulkhead.PBXLoad{Sessions: h.sessions, MaxSessions: 100}})
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(body))}, err
}

// given looks at what the SBC was given, by the revision that it is of.
func (w *watchedWorld) given(t route.Tables) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wrong == "" {
		w.wrong = wrongSets(t.Sets, w.states[t.Revision])
	}
}

// wrongSets says which set has nobody to take calls while its pool has a node
// that might, or offers calls to one that is not to have any.
func wrongSets(sets []route.Set, state bulkhead.State) string {
	might := map[bulkhead.PoolID]int{}
	for _, n := range state.Nodes {
		if !n.Drain {
			might[n.Pool]++
		}
	}
	for _, s := range sets {
		takers := 0
		for _, to := range s.Targets {
			n := state.Nodes[to.Node]
			if takes := to.Weight > 0 && !to.Disabled && !to.Down; takes {
				takers++
			}
			if n == nil || n.Pool != s.Pool && n.Pool != state.Pools[s.Pool].Backup || n.Drain && !to.Disabled {
				return fmt.Sprintf("node %s is in the set %+v, and is %+v", to.Node, s, n)
			}
		}
		if takers == 0 && might[s.Pool] > 0 {
			return fmt.Sprintf("nobody takes the calls of %+v", s)
		}
	}
	return ""
}

// check holds what is always true.
func (w *watchedWorld) check(t *rapid.T) {
	t.Helper()
	w.mu.Lock()
	wrong := w.wrong
	w.mu.Unlock()
	_, _, _, holds := w.proxy.seen()
	if wrong == "" && w.Status().Converged {
		wrong = wrongSets(holds.Sets, w.state)
	}
	if wrong != "" {
		t.Fatalf("%s; converged: %t", wrong, w.Status().Converged)
	}
	of := map[bulkhead.NodeID][]dispatcher.Decision{}
	for _, d := range w.watch.Decisions() {
		of[d.Node] = append(of[d.Node], d)
		if all := of[d.Node]; len(all) > mostChanges && d.At.Sub(all[len(all)-1-mostChanges].At) < time.Minute {
			t.Fatalf("node %s was offered other weights %d times in a minute: %v", d.Node, mostChanges+1, all)
		}
	}
}

// mostChanges of a node are made in a minute.
const mostChanges = 30

// checkAtRest holds what is true when nothing has happened for long.
func (w *watchedWorld) checkAtRest(t *rapid.T) {
	t.Helper()
	_, last := w.watch.Next()
	after(100 * time.Millisecond)
	states, changed := w.watch.Next()
	for changed != last { // a change of this moment is not at the SBC yet
		last = changed
		after(100 * time.Millisecond)
		states, changed = w.watch.Next()
	}
	_, _, most, holds := w.proxy.seen()
	want := tablesOf(t, w.world)
	var err error
	if want.Sets, err = route.MakeSets(w.live.Load(), "sbc1", states); err != nil {
		t.Fatal(err)
	}
	if d := differences(holds, want); len(d) > 0 || !w.Status().Converged || most > 1 {
		t.Fatalf("SBC differs: %q, status is %+v, %d calls in flight", d, w.Status(), most)
	}
	alive := map[bulkhead.PoolID]int{}
	for id, n := range w.state.Nodes {
		if !n.Drain && !w.of(id).dead {
			alive[n.Pool]++
		}
	}
	for _, s := range holds.Sets {
		for _, to := range s.Targets {
			if to.Weight > 0 && !to.Down && w.of(to.Node).dead && alive[w.state.Nodes[to.Node].Pool] > 0 {
				t.Fatalf("node %s is dead, and offered the calls of %+v", to.Node, s)
			}
		}
	}
}
