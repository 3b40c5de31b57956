package stream

import (
	"math/rand/v2"
	"testing"
	"time"
)

func newStore() *store { return &store{seen: map[string]int{}} }

func TestArrives(t *testing.T) {
	_, c := rig(t)
	w, s := newWriter(t, c, "w1"), newStore()
	w.start()
	read(t, c, "main", "a", 70, s, nil)
	for range 20 {
		w.append(100)
	}
	w.arrived(s)
	trimmed(t, c)
	if records, deliveries := s.count(); records != 2000 || deliveries != 2000 {
		t.Errorf("%d deliveries of %d records without any fault", deliveries, records)
	}
}

// feed appends while faults happen.
func (w *writer) feed(batches int, fault func(i int)) {
	for i := range batches {
		w.append(40)
		fault(i)
	}
}

// TestRedisKilled kills the server ten times in mid-stream. Half of the times
// the end of its file is cut too, as after a power cut.
func TestRedisKilled(t *testing.T) {
	r, c := rig(t)
	w, s := newWriter(t, c, "w1"), newStore()
	w.start()
	read(t, c, "main", "a", 30, s, nil)
	w.feed(100, func(i int) {
		if i%10 != 9 {
			return
		}
		r.Kill()
		if i%20 == 9 {
			r.Forget(rand.Int64N(40_000))
		}
		w.append(30)
		r.Start()
	})
	w.arrived(s)
	trimmed(t, c)
}

// TestFlushed empties the server in mid-stream.
func TestFlushed(t *testing.T) {
	_, c := rig(t)
	w, s := newWriter(t, c, "w1"), newStore()
	w.start()
	read(t, c, "main", "a", 30, s, nil)
	w.feed(100, func(i int) {
		switch i % 20 {
		case 5:
			do(t, func() error { return c.FlushAll(t.Context()).Err() })
		case 10: // what a careless hand or an evicting policy does
			do(t, func() error { return c.Del(t.Context(), keys(testStream).stream()).Err() })
		case 15:
			do(t, func() error { return c.XTrimMaxLen(t.Context(), keys(testStream).stream(), 3).Err() })
		case 19:
			do(t, func() error { return c.Del(t.Context(), keys(testStream).acked("main")).Err() })
		}
	})
	w.arrived(s)
	trimmed(t, c)
}

// TestRedisStalled stops the server for longer than a call may take.
func TestRedisStalled(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for 6 s")
	}
	r, c := rig(t)
	w, s := newWriter(t, c, "w1"), newStore()
	w.start()
	read(t, c, "main", "a", 30, s, nil)
	w.append(500)
	r.Pause()
	defer r.Resume()
	until(t, "the forwarder to say so", func() string {
		w.append(1)
		if w.f.Ready() == nil {
			return "it is ready"
		}
		return ""
	})
	r.Resume()
	w.append(500)
	w.arrived(s)
	if err := w.f.Ready(); err != nil {
		t.Error(err)
	}
}

// TestRandomFaults lets everything fail in a random order: two spools, two
// consumers.
func TestRandomFaults(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 4))
	r, c := rig(t)
	s := newStore()
	writers := []*writer{newWriter(t, c, "w1"), newWriter(t, c, "w2")}
	for _, w := range writers {
		w.cfg.MaxLen = 400
		w.start()
	}
	drop := func() func() bool {
		own := rand.New(rand.NewPCG(rng.Uint64(), 5))
		return func() bool { return own.IntN(4) == 0 }
	}
	readers := map[string]*reading{}
	for _, name := range []string{"a", "b"} {
		readers[name] = read(t, c, "main", name, 25, s, drop())
	}
	faults := []func(){
		func() { r.Kill(); r.Start() },
		func() { r.Kill(); r.Forget(rng.Int64N(60_000)); r.Start() },
		func() { do(t, func() error { return c.FlushAll(t.Context()).Err() }) },
		func() { do(t, func() error { return c.Del(t.Context(), keys(testStream).stream()).Err() }) },
		func() {
			do(t, func() error { return c.XTrimMaxLen(t.Context(), keys(testStream).stream(), rng.Int64N(20)).Err() })
		},
		func() { _ = c.XGroupDestroy(t.Context(), keys(testStream).stream(), "main").Err() }, // it may be gone already
		func() { r.Pause(); pause(t.Context(), time.Duration(rng.IntN(50))*time.Millisecond); r.Resume() },
		func() { w := writers[rng.IntN(2)]; w.kill(); w.append(rng.IntN(50)); w.start() },
		func() {
			name := []string{"a", "b"}[rng.IntN(2)]
			readers[name].stop()
			readers[name] = read(t, c, "main", name, 1+rng.IntN(50), s, drop())
		},
	}
	for range 60 {
		for range 1 + rng.IntN(8) {
			writers[rng.IntN(2)].append(1 + rng.IntN(40))
		}
		faults[rng.IntN(len(faults))]()
	}
	// Nothing fails any more; what was left unacknowledged comes again.
	for name, x := range readers {
		x.stop()
		read(t, c, "main", name, 25, s, nil)
	}
	for _, w := range writers {
		w.arrived(s)
	}
	trimmed(t, c)
	records, deliveries := s.count()
	t.Logf("%d records, %d deliveries", records, deliveries)
}
