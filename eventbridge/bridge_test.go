package eventbridge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

func TestBridgeManyNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memStream{}
		const nodes, legs = 5, 400
		var sources []Source
		for n := range nodes {
			events := []cdr.Event{connected(0, "core")}
			for i := range legs {
				name := fmt.Sprintf("n%d-%d", n, i)
				events = append(events, event(cdr.Opened, i, name), event(cdr.Answered, i, name), event(cdr.Closed, i+1, name))
			}
			sources = append(sources, scripted(bulkhead.NodeID(fmt.Sprintf("fs%d", n)), events))
		}
		reg := prometheus.NewPedanticRegistry()
		cfg := testConfig(t, s)
		cfg.Registerer = reg
		b, stop := launch(t, cfg, sources...)
		defer stop()
		time.Sleep(time.Second)
		st := s.stored()
		if len(st.legs) != nodes*legs || len(st.gaps) != 0 || len(s.payloads) != nodes*legs {
			t.Errorf("%d legs, %d gaps, %d payloads", len(st.legs), len(st.gaps), len(s.payloads))
		}
		for _, r := range st.legs {
			if r.Source != cdr.SourceESL || r.Cell != "c1" || r.Node == "" || r.ID != cdr.NewID("c1", string(r.Node), r.Leg) {
				t.Errorf("record %+v", r)
			}
		}
		if err := b.Ready(); err != nil {
			t.Errorf("Ready = %v", err)
		}
		want := `
# HELP bulkhead_eventbridge_connected 1 if the node is heard, else 0.
# TYPE bulkhead_eventbridge_connected gauge
bulkhead_eventbridge_connected{node="fs0"} 1
bulkhead_eventbridge_connected{node="fs1"} 1
bulkhead_eventbridge_connected{node="fs2"} 1
bulkhead_eventbridge_connected{node="fs3"} 1
bulkhead_eventbridge_connected{node="fs4"} 1
# HELP bulkhead_eventbridge_heard_age_seconds Time since anything, a heartbeat at least, was heard; absent before the first event.
# TYPE bulkhead_eventbridge_heard_age_seconds gauge
bulkhead_eventbridge_heard_age_seconds{node="fs0"} 1
bulkhead_eventbridge_heard_age_seconds{node="fs1"} 1
bulkhead_eventbridge_heard_age_seconds{node="fs2"} 1
bulkhead_eventbridge_heard_age_seconds{node="fs3"} 1
bulkhead_eventbridge_heard_age_seconds{node="fs4"} 1
`
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "bulkhead_eventbridge_connected", "bulkhead_eventbridge_heard_age_seconds"); err != nil {
			t.Error(err)
		}
		if n := testutil.ToFloat64(b.metrics.events.WithLabelValues("fs0", "closed")); n != legs {
			t.Errorf("events_total of closed = %v", n)
		}
		stop()
		if left, err := reg.Gather(); err != nil || len(left) != 0 {
			t.Errorf("metrics stay registered after Run: %d, %v", len(left), err)
		}
	})
}

func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries []time.Time
		src := &fakeSource{id: "fs1", run: func(_ context.Context, _ int, emit func(cdr.Event)) error {
			tries = append(tries, time.Now())
			if len(tries) == 1 {
				emit(connected(0, "core"))
				emit(event(cdr.Opened, 1, "a"))
			}
			return errEOF
		}}
		s := &memStream{}
		b, stop := launch(t, testConfig(t, s), src)
		defer stop()
		time.Sleep(4 * time.Second)
		if err := b.Ready(); err != nil {
			t.Errorf("Ready tells of 4 s of loss already: %v", err)
		}
		time.Sleep(6 * time.Second)
		if err := b.Ready(); !errors.Is(err, bulkhead.Unavailable) || !strings.Contains(err.Error(), "fs1") || !strings.Contains(err.Error(), errEOF.Error()) {
			t.Errorf("Ready after 10 s = %v", err)
		}
		time.Sleep(5 * time.Minute)
		stop()
		if d := tries[1].Sub(tries[0]); d < reconnectMin/2 || d > 2*reconnectMin {
			t.Errorf("first wait is %v", d)
		}
		for i := 1; i < len(tries); i++ {
			if d := tries[i].Sub(tries[i-1]); d > reconnectMax {
				t.Errorf("wait %d is %v", i, d)
			}
		}
		if len(tries) > 400 {
			t.Errorf("%d attempts in 5 minutes", len(tries))
		}
		g := s.stored().onlyGap(t)
		if !g.From.Equal(at(1)) || !g.To.IsZero() || !strings.Contains(g.Reason, errEOF.Error()) {
			t.Errorf("gap %+v", g)
		}
	})
}

func TestGivesUpLegsOfADeadNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dead atomic.Bool
		dead.Store(true)
		src := &fakeSource{id: "fs1", run: func(ctx context.Context, n int, emit func(cdr.Event)) error {
			if n == 1 {
				emit(connected(0, "core"))
				emit(event(cdr.Opened, 1, "a"))
				emit(event(cdr.Opened, 1, "b"))
			}
			if dead.Load() {
				return errEOF
			}
			emit(connected(5000, "core", "b")) // it was the network
			emit(event(cdr.Closed, 5001, "b"))
			<-ctx.Done()
			return nil
		}}
		s := &memStream{}
		cfg := testConfig(t, s)
		b, stop := launch(t, cfg, src)
		defer stop()
		time.Sleep(cfg.GiveUp - 10*time.Second)
		if n := len(s.stored().legs); n != 0 {
			t.Errorf("%d records before GiveUp", n)
		}
		time.Sleep(20 * time.Second)
		st := s.stored()
		if g := st.onlyGap(t); !g.To.IsZero() || len(g.Legs) != 2 || st.legs["a"].Gap != g.ID || st.legs["b"].Source != cdr.SourceSynthesised {
			t.Errorf("after GiveUp: %+v", st)
		}
		if open := b.Status().Sources[0].OpenLegs; open != 0 {
			t.Errorf("%d legs open after GiveUp", open)
		}
		dead.Store(false)
		time.Sleep(5 * time.Second)
		st = s.stored()
		if g := st.onlyGap(t); !g.To.Equal(at(5000)) || st.legs["a"].Source != cdr.SourceSynthesised || st.legs["b"].Source != cdr.SourceESL {
			t.Errorf("after it came back: %+v", st)
		}
	})
}

func TestSilenceIsLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &fakeSource{id: "fs1", run: func(ctx context.Context, n int, emit func(cdr.Event)) error {
			emit(connected(100*n, "core"))
			for i := range 3 {
				select {
				case <-time.After(20 * time.Second):
					emit(heartbeat(100*n + 20*(i+1)))
				case <-ctx.Done():
				}
			}
			<-ctx.Done() // a dead host sends nothing, not even an end
			return errors.New("some error of a canceled read")
		}}
		s := &memStream{}
		b, stop := launch(t, testConfig(t, s), src)
		defer stop()
		time.Sleep(129 * time.Second)
		if n := len(s.stored().gaps); n != 0 || b.Status().Sources[0].Connected != true {
			t.Errorf("%d gaps before it was silent for long enough", n)
		}
		time.Sleep(2 * time.Second)
		g := s.stored().onlyGap(t)
		if !g.From.Equal(at(160)) || !g.To.Equal(at(200)) || !strings.Contains(g.Reason, "nothing heard for 1m10s") {
			t.Errorf("gap %+v", g)
		}
	})
}

// TestQueueLimit lets the stream hang while a node sends more than its queue
// holds: nothing may be lost without a gap that says so.
func TestQueueLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memStream{fail: errors.New("disk full")}
		const sent = 1000
		alive := []string{}
		src := &fakeSource{id: "fs1", run: func(ctx context.Context, n int, emit func(cdr.Event)) error {
			if n == 1 {
				emit(connected(0, "core"))
				for i := range sent {
					start := time.Now()
					emit(event(cdr.Opened, 2*i, fmt.Sprint(i)))
					emit(event(cdr.Closed, 2*i+1, fmt.Sprint(i)))
					if time.Since(start) > 0 {
						t.Error("emit waited")
					}
				}
			} else {
				emit(connected(10*sent, "core", alive...))
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		other := scripted("fs2", []cdr.Event{connected(0, "core"), event(cdr.Closed, 1, "of fs2")})
		cfg := testConfig(t, s)
		cfg.QueueEvents = 100
		b, stop := launch(t, cfg, src, other)
		defer stop()
		time.Sleep(30 * time.Second)
		st := b.Status()
		// The recorder holds what it took first, so the queue has room for a second connection.
		if got := st.Sources[0]; got.Dropped == 0 || got.Queued > cfg.QueueEvents+2 || src.n.Load() > 2 {
			t.Errorf("with a full queue: %+v, %d connections", got, src.n.Load())
		}
		if err := b.Ready(); err == nil || !strings.Contains(err.Error(), "disk full") || st.Error != "disk full" {
			t.Errorf("Ready = %v, status error %q", err, st.Error)
		}
		s.setFail(nil)
		time.Sleep(30 * time.Second)
		end := s.stored()
		g := end.onlyGap(t)
		if !strings.Contains(g.Reason, "queue limit") || !strings.Contains(g.Reason, "discarded") || !g.To.Equal(at(10*sent)) {
			t.Errorf("gap %+v", g)
		}
		if end.legs["of fs2"].Source != cdr.SourceESL {
			t.Error("the other node's record is missing")
		}
		for i := range sent {
			if at(2*i + 1).After(g.From) {
				break // the gap explains it
			}
			if end.legs[fmt.Sprint(i)].Source != cdr.SourceESL {
				t.Errorf("leg %d ended before the gap and has no record", i)
			}
		}
		dropped := int(testutil.ToFloat64(b.metrics.dropped.WithLabelValues("fs1")))
		if got := b.Status().Sources[0]; !got.Connected || got.Dropped != uint64(dropped) || dropped < sent {
			t.Errorf("afterwards %+v, %d in the metric", got, dropped)
		}
		if err := b.Ready(); err != nil {
			t.Errorf("Ready afterwards = %v", err)
		}
	})
}

func TestSourcesComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memStream{}
		one := scripted("fs1", []cdr.Event{connected(0, "core"), event(cdr.Opened, 1, "a")})
		two := scripted("fs2", []cdr.Event{connected(0, "core")})
		b, stop := launch(t, testConfig(t, s), one)
		defer stop()
		set := func(sources ...Source) {
			t.Helper()
			if err := b.SetSources(sources); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
		}
		time.Sleep(time.Second)
		set(one, two)
		if one.n.Load() != 1 || two.n.Load() != 1 {
			t.Errorf("connections %d, %d: the same source was disturbed", one.n.Load(), two.n.Load())
		}
		if err := b.SetSources([]Source{one, scripted("fs1")}); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("two sources of a node: %v", err)
		}
		moved := scripted("fs1", []cdr.Event{connected(5, "core", "a"), event(cdr.Closed, 6, "a")})
		set(moved, two)
		g := s.stored().onlyGap(t)
		if moved.n.Load() != 1 || s.stored().legs["a"].Source != cdr.SourceESL || len(g.Legs) != 0 || !g.To.Equal(at(5)) {
			t.Errorf("after the address changed: %+v", s.stored())
		}
		set(two)
		time.Sleep(time.Minute)
		st := b.Status()
		if len(s.stored().gaps) != 2 || st.Sources[0].Wanted || st.Sources[0].Gap == nil || b.Ready() != nil {
			t.Errorf("after the node was taken out: %+v, ready %v", st, b.Ready())
		}
		set(scripted("fs1", []cdr.Event{connected(99, "core")}), two)
		if st = b.Status(); st.Sources[0].Gap != nil || !st.Sources[0].Connected {
			t.Errorf("after it came back: %+v", st)
		}
	})
}

// TestStuckSources: several sources that do not stop cost a change no more time than one.
func TestStuckSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var stuck []Source
		for n := range 10 {
			stuck = append(stuck, &fakeSource{id: bulkhead.NodeID(fmt.Sprintf("old%d", n)), run: func(context.Context, int, func(cdr.Event)) error { <-release; return nil }})
		}
		b, stop := launch(t, testConfig(t, &memStream{}), stuck...)
		defer stop()
		defer close(release)
		time.Sleep(time.Second)
		fresh := scripted("fs1", []cdr.Event{connected(0, "core")})
		if err := b.SetSources([]Source{fresh}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(stopWait + time.Second)
		if fresh.n.Load() != 1 {
			t.Error("a new node is not heard: the bridge still waits for old ones")
		}
	})
}

// TestStopAndStart also holds that what was queued at the stop is stored.
func TestStopAndStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memStream{}
		cfg := testConfig(t, s)
		_, stop := launch(t, cfg, scripted("fs1", []cdr.Event{connected(0, "core"), event(cdr.Opened, 1, "a"), event(cdr.Opened, 2, "b"), event(cdr.Closed, 3, "c")}))
		time.Sleep(time.Second)
		stop()
		if st := s.stored(); len(st.gaps) != 0 || len(st.legs) != 1 {
			t.Errorf("a stop wrote %+v", st)
		}
		_, stop = launch(t, cfg, scripted("fs1", []cdr.Event{connected(60, "core", "a"), event(cdr.Closed, 61, "a")}))
		time.Sleep(time.Second)
		stop()
		st := s.stored()
		g := st.onlyGap(t)
		if !g.From.Equal(at(3)) || !g.To.Equal(at(60)) || g.Reason != "bridge restarted" || len(g.Legs) != 1 || g.Legs[0] != "b" {
			t.Errorf("gap %+v", g)
		}
		if st.legs["a"].Source != cdr.SourceESL || st.legs["b"].Source != cdr.SourceSynthesised || st.legs["b"].Gap != g.ID || !st.legs["b"].End.IsZero() {
			t.Errorf("legs %+v", st.legs)
		}
	})
}

func TestStopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memStream{fail: errors.New("disk full")}
		cfg := testConfig(t, s)
		b, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		deaf := &fakeSource{id: "fs1", run: func(context.Context, int, func(cdr.Event)) error { <-release; return nil }}
		if err := b.SetSources([]Source{deaf, scripted("fs2", []cdr.Event{connected(0, "c"), event(cdr.Opened, 1, "a"), event(cdr.Closed, 2, "a")})}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		time.Sleep(time.Second)
		start := time.Now()
		cancel()
		err = <-done
		if d := time.Since(start); d > 2*stopWait+time.Second {
			t.Errorf("stop took %v", d)
		}
		if err == nil || !strings.Contains(err.Error(), "fs1") || !errors.Is(err, bulkhead.Unavailable) {
			t.Errorf("Run = %v, want what was not stopped and not stored", err)
		}
		close(release)
		// What was not stored is still an open leg, and named by the next bridge.
		s.setFail(nil)
		_, stop := launch(t, cfg, scripted("fs2", []cdr.Event{connected(9, "c")}))
		time.Sleep(time.Second)
		stop()
		if st := s.stored(); st.legs["a"].Source != cdr.SourceSynthesised || len(st.onlyGap(t).Legs) != 1 {
			t.Errorf("after the next start: %+v", st)
		}
	})
}

func TestConfigValidate(t *testing.T) {
	_, err := New(Config{})
	if got := len(bulkhead.FieldErrors(err)); got != 8 || !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("New of an empty config: %d fields, %v", got, err)
	}
}

func TestTwoBridges(t *testing.T) {
	cfg := testConfig(t, &memStream{})
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); !errors.Is(err, bulkhead.Conflict) {
		t.Errorf("second bridge on one journal: %v, want bulkhead.Conflict", err)
	}
	other, err := New(testConfig(t, &memStream{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []*Bridge{b, other} {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}
