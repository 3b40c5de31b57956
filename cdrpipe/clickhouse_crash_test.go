package cdrpipe

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

// cutter is a TCP proxy that loses answers: it hands a whole request on, and
// hangs up on the client instead of giving it the server's answer.
type cutter struct {
	net.Listener
	target string
	every  atomic.Int64 // one packet of answers in so many is lost; 0: none
	cuts   atomic.Int64

	wg sync.WaitGroup
}

func startCutter(t *testing.T, target string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l, target: target}
	c.wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			c.wg.Go(func() { c.serve(client) })
		}
	})
	t.Cleanup(func() { l.Close(); c.wg.Wait() })
	return c
}

func (c *cutter) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	defer server.Close()
	c.wg.Go(func() {
		_, _ = io.Copy(server, client)
		_ = server.(*net.TCPConn).CloseWrite()
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		if every := c.every.Load(); every > 0 && rand.Int64N(every) == 0 {
			c.cuts.Add(1)
			client.Close()
			// The server goes on with what it was asked for.
			_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.Copy(io.Discard, server)
			return
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

// ledger is a stream of reports and what must become of them.
type ledger struct {
	entries []cdr.Entry
	want    map[cdr.ID]Row
}

// newLedger makes legs of which some are reported again by other sources,
// late and out of order.
func newLedger(rng *rand.Rand, legs int) *ledger {
	l := &ledger{want: map[cdr.ID]Row{}}
	for i := range legs {
		r := fullRecord(i)
		r.Start = r.Start.Add(time.Duration(rng.IntN(3*86400)) * time.Second) // of several days
		r.Ring, r.Answer, r.End = r.Start.Add(time.Second), r.Start.Add(2*time.Second), r.Start.Add(4*time.Second)
		l.entries = append(l.entries, entry(r))
		switch rng.IntN(5) {
		case 0:
			l.entries = append(l.entries, entry(synthesised(r)))
		case 1:
			r.Source, r.Start = cdr.SourceAMI, r.Start.Truncate(time.Second)
			l.entries = append(l.entries, entry(r))
		}
	}
	rng.Shuffle(len(l.entries), func(i, j int) { l.entries[i], l.entries[j] = l.entries[j], l.entries[i] })
	rows, _ := merged(l.entries)
	for _, r := range rows {
		l.want[r.ID] = r
	}
	return l
}

// check compares the store with the ledger.
func (l *ledger) check(t *testing.T, w Warehouse) {
	t.Helper()
	got := map[cdr.ID]Row{}
	f := Filter{Limit: 1000}
	for {
		rows, err := w.Records(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if _, twice := got[r.ID]; twice {
				t.Errorf("%s is there twice", r.Leg)
			}
			got[r.ID] = r
		}
		if len(rows) < f.Limit {
			break
		}
		f.After = rows[len(rows)-1].Cursor()
	}
	if d := cmp.Diff(l.want, got); d != "" {
		t.Errorf("%d rows, want %d\n%.4000s", len(got), len(l.want), d)
	}
	var billed int64
	for _, r := range l.want {
		billed += r.BilledMS
	}
	sums, err := w.Summary(t.Context(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sums {
		billed -= s.BilledMS
	}
	if billed != 0 {
		t.Errorf("billed time is wrong by %d ms", -billed)
	}
}

// feed stores the ledger from one place on in batches of random size, as a
// consumer does: what failed comes again, cut differently. It returns how many
// batches failed.
func (l *ledger) feed(ctx context.Context, rng *rand.Rand, w Warehouse) (failed int) {
	for at := 0; at < len(l.entries) && ctx.Err() == nil; {
		n := min(1+rng.IntN(200), len(l.entries)-at)
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := w.Insert(try, l.entries[at:at+n])
		cancel()
		if err == nil {
			at += n
			continue
		}
		failed++
		select { // the server may be away
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	return failed
}

func TestClickHouseLostAnswers(t *testing.T) {
	s := startClickHouse(t)
	proxy := startCutter(t, s.Native)
	cfg := s.config()
	cfg.Addrs = []string{proxy.Addr().String()}
	w := openClickHouse(t, cfg)
	rng := rand.New(rand.NewPCG(4, 4))
	l := newLedger(rng, 2000)
	failed := 0
	for _, every := range []int64{30, 60} {
		proxy.every.Store(every)
		failed += l.feed(t.Context(), rng, w)
	}
	proxy.every.Store(0)
	if failed += l.feed(t.Context(), rng, w); failed < 20 {
		t.Errorf("only %d inserts failed: that shows little", failed)
	}
	l.check(t, w)
	t.Logf("%d answers lost, %d inserts failed", proxy.cuts.Load(), failed)
}

// TestClickHouseKilled ends the server with SIGKILL 10 times while reports are
// stored.
func TestClickHouseKilled(t *testing.T) {
	const kills = 10
	s := startClickHouse(t)
	w := openClickHouse(t, s.config())
	rng := rand.New(rand.NewPCG(20, 20))
	l := newLedger(rng, 4000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var failed, passes int
	wg.Go(func() { // over and over: a replay must not count either
		rng := rand.New(rand.NewPCG(21, 21))
		for ctx.Err() == nil {
			failed += l.feed(ctx, rng, w)
			passes++
		}
	})
	for range kills {
		<-time.After(time.Duration(20+rng.IntN(300)) * time.Millisecond)
		s.Kill()
		if err := s.Start(t.Context()); err != nil {
			t.Error(err)
			break
		}
	}
	cancel()
	wg.Wait()
	l.feed(t.Context(), rng, w)
	l.check(t, w)
	t.Logf("%d kills, %d inserts failed, %d passes begun", kills, failed, passes)
}

// TestClickHouseLateInsert lets inserts whose senders gave up take effect
// after newer ones: the row with more reports stays, and its place in the
// order of exports does not go back.
func TestClickHouseLateInsert(t *testing.T) {
	s := startClickHouse(t)
	w := openClickHouse(t, s.config())
	full, early := fullRecord(1), synthesised(fullRecord(1))
	insert(t, w, entry(full), entry(early))
	want := all(t, w)
	for _, r := range []cdr.Record{early, full} {
		row := newRow(r)
		late := versioned{Row: &row, day: dayOf(r.Start), reports: 1}
		err := w.insert(t.Context(), "cdr", clickHouseInsertColumns, func(b driver.Batch) error { return b.Append(late.args()...) })
		if err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(want, all(t, w)); d != "" {
		t.Error(d)
	}
	if err := w.conn.Exec(t.Context(), "OPTIMIZE TABLE "+w.table("cdr")+" FINAL"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, all(t, w)); d != "" {
		t.Error(d)
	}
}
