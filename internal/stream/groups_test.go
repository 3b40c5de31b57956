package stream

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

// TestConsumerDies: what a consumer took and never acknowledged is taken over,
// and until then the spool keeps it, though later records are acknowledged.
func TestConsumerDies(t *testing.T) {
	_, c := rig(t)
	w, s := newWriter(t, c, "w1"), newStore()
	w.start()
	w.append(200)
	dead := newConsumer(t, c, "main", "dead")
	b, err := dead.Read(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	read(t, c, "main", "alive", 20, s, nil)
	until(t, "the other records", func() string {
		if n, _ := s.count(); n < 190 {
			return fmt.Sprint(n)
		}
		return ""
	})
	if n, _ := s.count(); n == 190 && w.reader.Acked() != (spool.Position{}) {
		t.Errorf("the spool is acknowledged up to %v, and its first 10 records are not", w.reader.Acked())
	}
	w.arrived(s)
	if err := b.Ack(); err != nil { // it was not dead, only slow: no harm
		t.Fatal(err)
	}
	w.append(10)
	w.arrived(s)
	trimmed(t, c)
}

// TestTwoConsumers share the work.
func TestTwoConsumers(t *testing.T) {
	_, c := rig(t)
	w, s := newWriter(t, c, "w1"), newStore()
	w.start()
	other := newStore()
	read(t, c, "main", "a", 7, s, nil)
	read(t, c, "main", "b", 13, other, nil)
	for range 50 {
		w.append(40)
	}
	until(t, "all", func() string {
		n, _ := s.count()
		m, _ := other.count()
		if n+m != 2000 {
			return fmt.Sprint(n, m)
		}
		return ""
	})
	if n, m := len(s.seen), len(other.seen); n == 0 || m == 0 {
		t.Errorf("one of them did all the work: %d, %d", n, m)
	}
	s.mu.Lock()
	for p := range other.seen {
		s.seen[p]++
	}
	s.mu.Unlock()
	w.arrived(s)
	if records, deliveries := s.count(); records != deliveries {
		t.Errorf("%d deliveries of %d records", deliveries, records)
	}
}

// TestSlowestGroup: a second group that stands still keeps its entries in the
// stream, and with them its limit; the spool keeps the rest. The first group's
// acknowledgement frees the spool, for only that was asked for.
func TestSlowestGroup(t *testing.T) {
	_, c := rig(t)
	w, s, second := newWriter(t, c, "w1"), newStore(), newStore()
	w.cfg.MaxLen = 300
	reg := prometheus.NewRegistry()
	w.cfg.Registerer = reg
	slow := newConsumer(t, c, "second", "a")
	do(t, func() error { return slow.join(t.Context()) })
	w.start()
	read(t, c, "main", "a", 20, s, nil)
	for range 10 {
		w.append(100)
	}
	until(t, "the limit", func() string {
		if n := testutil.ToFloat64(w.f.m.refused.WithLabelValues(reasonFull)); n < 3 {
			return fmt.Sprint(n, " refusals")
		}
		return ""
	})
	length, err := c.XLen(t.Context(), keys(testStream).stream()).Result()
	if err != nil || length > 300 || length <= 250 {
		t.Errorf("the stream holds %d entries, %v", length, err)
	}
	if n, _ := s.count(); int64(n) != length {
		t.Errorf("the first group has %d records, of %d entries", n, length)
	}
	want := fmt.Sprintf(`
# HELP bulkhead_stream_entries Entries in the Redis Stream.
# TYPE bulkhead_stream_entries gauge
bulkhead_stream_entries %d
`, length)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "bulkhead_stream_entries"); err != nil {
		t.Error(err)
	}
	got := 0
	for got < 120 { // in part, and acknowledged late
		b, err := slow.Read(t.Context(), 30)
		if err != nil {
			t.Fatal(err)
		}
		second.add(b.Payloads)
		if got += len(b.Payloads); got == 60 {
			if err := b.Ack(); err != nil {
				t.Fatal(err)
			}
		}
	}
	pending, err := c.XPending(t.Context(), keys(testStream).stream(), "second").Result()
	if err != nil {
		t.Fatal(err)
	}
	oldest, err := c.XRangeN(t.Context(), keys(testStream).stream(), "-", "+", 1).Result()
	if err != nil || len(oldest) != 1 || oldest[0].ID != pending.Lower {
		t.Errorf("the stream begins with %v (%v), the slowest group needs %s", oldest, err, pending.Lower)
	}
	read(t, c, "second", "b", 50, second, nil)
	w.arrived(s)
	w.arrived(second)
	trimmed(t, c)
}

// TestTwoGroupsFree: the spool is freed when all groups that count have
// acknowledged.
func TestTwoGroupsFree(t *testing.T) {
	_, c := rig(t)
	w, s, second := newWriter(t, c, "w1"), newStore(), newStore()
	w.cfg.Groups = []string{"main", "second"}
	w.start()
	read(t, c, "main", "a", 20, s, nil)
	w.append(500)
	until(t, "the first group", func() string {
		if n, _ := s.count(); n < 500 {
			return fmt.Sprint(n)
		}
		return ""
	})
	looks := time.Now().Add(10 * w.cfg.Every)
	until(t, "some looks", func() string {
		if got := w.reader.Acked(); got != (spool.Position{}) {
			t.Fatalf("the spool is acknowledged up to %v, and the second group has nothing", got)
		}
		if time.Now().Before(looks) {
			return "not yet"
		}
		return ""
	})
	read(t, c, "second", "a", 20, second, nil)
	w.arrived(second)
}

// TestOutOfMemory: at maxmemory the rest stays in the spool, what is in the
// stream is read and acknowledged nevertheless, and then the rest follows.
func TestOutOfMemory(t *testing.T) {
	_, c := rig(t, "--maxmemory", "2500kb", "--maxmemory-policy", "noeviction")
	w, s := newWriter(t, c, "w1"), newStore()
	w.start()
	for range 100 {
		w.append(100)
	}
	until(t, "out of memory", func() string {
		if testutil.ToFloat64(w.f.m.refused.WithLabelValues(reasonMemory)) == 0 {
			return "all fits"
		}
		return ""
	})
	read(t, c, "main", "a", 100, s, nil)
	w.arrived(s)
	trimmed(t, c)
	if n := testutil.ToFloat64(w.f.m.sent) - testutil.ToFloat64(w.f.m.resent); n != 10_000 {
		t.Errorf("%v records were sent", n)
	}
}

// TestForwarderRestarts: a forwarder that was killed is followed by one that
// knows nothing of it, while nobody reads and then while somebody does.
func TestForwarderRestarts(t *testing.T) {
	_, c := rig(t)
	w, s := newWriter(t, c, "w1"), newStore()
	w.start()
	w.feed(20, func(i int) {
		if i == 10 {
			read(t, c, "main", "a", 30, s, nil)
		}
		if i%5 == 4 {
			w.kill()
			w.append(10)
			w.start()
		}
	})
	w.arrived(s)
	trimmed(t, c)
}

// TestSameName: two that by mistake send under one name disturb each other,
// and lose nothing.
func TestSameName(t *testing.T) {
	_, c := rig(t)
	a, b, s := newWriter(t, c, "w1"), newWriter(t, c, "w1"), newStore()
	b.name = "w1b" // of its records
	a.start()
	b.start()
	read(t, c, "main", "a", 30, s, nil)
	for range 10 {
		a.append(20)
		b.append(20)
	}
	b.kill()
	a.arrived(s)
	a.kill()
	b.start()
	b.arrived(s)
}

// TestAckOrder acknowledges runs in a random order, some twice and some
// overlapping, against a model: the place is the end of the unbroken run from
// the session's begin.
func TestAckOrder(t *testing.T) {
	_, c := rig(t)
	key := keys(testStream)
	at := func(n int) spool.Position {
		return spool.Position{Segment: uint64(1 + n/10), Offset: int64(16 + n%10*100)}
	}
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 6))
		writer, n := fmt.Sprint("w", seed), 60
		do(t, func() error { return c.HSet(t.Context(), key.acked("main"), writer, "s "+placeString(at(0))).Err() })
		done := make([]bool, n)
		for range 120 {
			from := rng.IntN(n)
			to := min(n, from+1+rng.IntN(4))
			session := "s"
			if rng.IntN(5) == 0 {
				session = "old" // of an earlier session: nothing counts
			} else {
				for i := from; i < to; i++ {
					done[i] = true
				}
			}
			do(t, func() error {
				return ackScript.Run(t.Context(), c, []string{key.stream(), key.acked("main")},
					"main", 1, "1-1", writer, session, placeString(at(from)), placeString(at(to))).Err()
			})
			prefix := 0
			for prefix < n && done[prefix] {
				prefix++
			}
			want := "s " + placeString(at(prefix))
			for i := prefix; i < n; i++ {
				if done[i] {
					j := i
					for j < n && done[j] {
						j++
					}
					want += " " + placeString(at(i)) + "-" + placeString(at(j))
					i = j
				}
			}
			got, err := c.HGet(t.Context(), key.acked("main"), writer).Result()
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Fatalf("seed %d: %v\n%s", seed, err, diff)
			}
		}
	}
}
