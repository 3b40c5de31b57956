package stream

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/internal/spool"
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
// the end of its file is cut too, as after a power cut. That takes back
// acknowledgements too, so that the consumer must ask for its own entries.
func TestRedisKilled(t *testing.T) {
	r, c := rig(t)
	w, s := newWriter(t, c, "w1"), newStore()
	w.start()
	cfg := consumerConfig(t, c, "main", "a")
	cfg.Claim = time.Hour
	readAs(t, cfg, 30, s, nil)
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

// TestNoHoles: whatever the end of its file a killed server loses, nothing is
// added behind the hole: the entries of a session that are in the stream
// follow one another without one missing.
func TestNoHoles(t *testing.T) {
	r, c := rig(t)
	w := newWriter(t, c, "w1")
	w.start()
	w.feed(80, func(i int) {
		if i%10 == 9 {
			r.Kill()
			r.Forget(rand.Int64N(30_000))
			r.Start()
		}
	})
	until(t, "all to be sent", func() string {
		v, _ := c.HGet(t.Context(), keys(testStream).sent(), "w1").Result()
		st, err := spool.Look(w.dir)
		if err != nil {
			return err.Error()
		}
		last := st.Segments[len(st.Segments)-1]
		if _, at := parseSession(v); at != (spool.Position{Segment: last.Number, Offset: last.Bytes}) {
			return at.String()
		}
		return ""
	})
	unbroken(t, c)
	s := newStore()
	read(t, c, "main", "a", 100, s, nil)
	w.arrived(s)
}

// unbroken fails if an entry is missing between two of a session.
func unbroken(t *testing.T, c *Client) {
	t.Helper()
	entries, err := c.XRange(t.Context(), keys(testStream).stream(), "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]spool.Position{} // by session
	for _, x := range entries {
		o, err := parseOrigin(x.Values[fieldOrigin].(string))
		if err != nil {
			t.Fatal(err)
		}
		if at[o.session].Before(o.from) {
			t.Fatalf("entry %s follows %v, and the one before it ended at %v", x.ID, o.from, at[o.session])
		}
		at[o.session] = o.to
	}
}

// TestRefused: Redis itself refuses what would leave a hole, though the
// forwarder saw no connection fail.
func TestRefused(t *testing.T) {
	_, c := rig(t)
	w := newWriter(t, c, "w1")
	w.cfg.Every = 10 * time.Second // it does not look meanwhile
	w.start()
	w.append(50)
	key := keys(testStream)
	length := func(want int64) {
		t.Helper()
		until(t, fmt.Sprint(want, " entries"), func() string {
			if n, err := c.XLen(t.Context(), key.stream()).Result(); n != want {
				return fmt.Sprint(n, err)
			}
			return ""
		})
	}
	length(50)
	entries, err := c.XRange(t.Context(), key.stream(), "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range entries[20:] {
		do(t, func() error { return c.XDel(t.Context(), key.stream(), x.ID).Err() })
	}
	o, err := parseOrigin(entries[19].Values[fieldOrigin].(string))
	if err != nil {
		t.Fatal(err)
	}
	do(t, func() error { return c.HSet(t.Context(), key.sent(), "w1", o.session+" "+placeString(o.to)).Err() })
	w.append(10)
	length(60)
	unbroken(t, c)
}

// TestAckForgotten: an acknowledgement that Redis took back in a crash is
// given again, by a consumer that noticed no failure.
func TestAckForgotten(t *testing.T) {
	r, c := rig(t)
	w := newWriter(t, c, "w1")
	w.start()
	w.append(10)
	own := client(t, Options{Addrs: []string{r.Socket}})
	cfg := consumerConfig(t, own, "main", "a")
	cfg.Claim = time.Hour
	x, err := NewConsumer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for got := 0; got < 10; {
		b, err := x.Read(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		got += len(b.Payloads)
		if got < 10 {
			continue
		}
		before := r.Logged()
		if err := b.Ack(); err != nil {
			t.Fatal(err)
		}
		r.Kill()
		r.Forget(r.Logged() - before)
	}
	r.Start()
	b, err := x.Read(t.Context(), 100)
	if err != nil || len(b.Payloads) != 10 {
		t.Fatalf("%d records came again, %v", len(b.Payloads), err)
	}
	if err := b.Ack(); err != nil {
		t.Fatal(err)
	}
	trimmed(t, c)
}

// TestTrimmedByHand: entries that somebody deletes before anybody read them
// are sent again, also when nothing follows them.
func TestTrimmedByHand(t *testing.T) {
	for name, spoil := range map[string]func(c *Client) error{
		"Trim":   func(c *Client) error { return c.XTrimMaxLen(t.Context(), keys(testStream).stream(), 3).Err() },
		"Delete": func(c *Client) error { return c.Del(t.Context(), keys(testStream).stream()).Err() },
		"Skip":   func(c *Client) error { return c.XGroupSetID(t.Context(), keys(testStream).stream(), "main", "$").Err() },
	} {
		t.Run(name, func(t *testing.T) {
			_, c := rig(t)
			w, s := newWriter(t, c, "w1"), newStore()
			w.start()
			w.append(300)
			until(t, "300 entries", func() string {
				if n, err := c.XLen(t.Context(), keys(testStream).stream()).Result(); n < 300 {
					return fmt.Sprint(n, err)
				}
				return ""
			})
			do(t, func() error { return spoil(c) })
			read(t, c, "main", "a", 30, s, nil)
			w.arrived(s)
			trimmed(t, c)
		})
	}
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
	t.Parallel()
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
