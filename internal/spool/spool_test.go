package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestAppendReadAckResume(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	want := numbered(0, 100)
	appendAll(t, s, want...)

	r := openReader(t, dir, "one")
	var got []string
	for len(got) < 40 {
		b, err := r.Read(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range b.Payloads {
			got = append(got, string(p))
		}
		if err := b.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	acked := len(got)
	if _, err := r.Read(t.Context(), 10); err != nil { // and not acknowledged
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}

	rest, last := drain(t, openReader(t, dir, "one"))
	if diff := cmp.Diff(want, append(got[:acked:acked], rest...)); diff != "" {
		t.Fatal(diff)
	}
	if err := last.Ack(); err != nil {
		t.Fatal(err)
	}
	var scanned int
	if skipped, err := Scan(dir, func(Record) error { scanned++; return nil }); err != nil || skipped != 0 {
		t.Fatalf("Scan skipped %d, error %v", skipped, err)
	}
	if scanned == 0 || scanned > 100 {
		t.Fatalf("Scan saw %d records", scanned)
	}
}

func TestBatchIsNamedByItsPositions(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	appendAll(t, s, numbered(0, 60)...)
	r := openReader(t, dir, "one")
	var at Position
	for n := 0; n < 60; {
		b, err := r.Read(t.Context(), 9)
		if err != nil {
			t.Fatal(err)
		}
		if b.From.Before(at) || !b.From.Before(b.To) || b.From.String() >= b.To.String() {
			t.Fatalf("batch from %v to %v behind %v", b.From, b.To, at)
		}
		at = b.To
		n += len(b.Payloads)
	}
}

func TestReaderOpensBeforeWriter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet", "there")
	r := openReader(t, dir, "one")
	got := make(chan string, 1)
	go func() {
		b, err := r.Read(t.Context(), 1)
		if err != nil {
			got <- err.Error()
			return
		}
		got <- string(b.Payloads[0])
	}()
	s := open(t, dir, small())
	appendAll(t, s, "hello")
	if p := <-got; p != "hello" {
		t.Fatalf("got %q", p)
	}
}

func TestEmptyAndLargestRecord(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	want := []string{"", strings.Repeat("z", 2048), ""}
	appendAll(t, s, want...)
	got, _ := drain(t, openReader(t, dir, "one"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	if err := s.Append(t.Context(), make([]byte, 2049)); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("got %v, want ErrTooLarge", err)
	}
}

func TestSecondWriterAndReaderAreRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	_, err := Open(dir, small())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Fatalf("second writer: %v, want ErrLocked with the process", err)
	}
	r := openReader(t, dir, "one")
	if _, err := OpenReader(dir, "one", ReaderOptions{}); !errors.Is(err, ErrLocked) {
		t.Fatalf("second reader: %v, want ErrLocked", err)
	}
	openReader(t, dir, "two")
	if err := errors.Join(s.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	open(t, dir, small())
	openReader(t, dir, "one")
}

func TestReaderNames(t *testing.T) {
	for _, name := range []string{"", "../x", "a/b", "A", "a.b", "-x", strings.Repeat("a", 65)} {
		if _, err := OpenReader(t.TempDir(), name, ReaderOptions{}); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
}

func TestFreedOnlyWhenEveryReaderAcked(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	appendAll(t, s, numbered(0, 200)...)
	poke(s.reclaim)
	all := len(files(t, dir, "*.seg"))
	if all < 5 {
		t.Fatalf("only %d segments", all)
	}
	one, two := openReader(t, dir, "one"), openReader(t, dir, "two")
	_, last := drain(t, one)
	if err := last.Ack(); err != nil {
		t.Fatal(err)
	}
	appendAll(t, s, numbered(200, 100)...) // rotates, so the writer has looked
	if n := len(files(t, dir, "*.seg")); n < all {
		t.Fatalf("%d segments left, reader two needs %d", n, all)
	}
	got, last := drain(t, two)
	if diff := cmp.Diff(numbered(0, 300), got); diff != "" {
		t.Fatal(diff)
	}
	if err := last.Ack(); err != nil {
		t.Fatal(err)
	}
	if _, last = drain(t, one); last.Ack() != nil {
		t.Fatal("ack")
	}
	until(t, "all but the last segment freed", func() bool { return len(files(t, dir, "*.seg")) == 1 })
}

func TestNothingIsFreedBeforeAReaderRegistered(t *testing.T) {
	dir := t.TempDir()
	o := small()
	s := open(t, dir, o)
	want := numbered(0, 200)
	appendAll(t, s, want...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, o)
	if got, _ := drain(t, openReader(t, dir, "late")); !cmp.Equal(want, got) {
		t.Fatal(cmp.Diff(want, got))
	}
}

func TestFullAndRoomAgain(t *testing.T) {
	dir := t.TempDir()
	o := small()
	o.MaxBytes = 4 * o.SegmentBytes
	reg := prometheus.NewRegistry()
	o.Registerer = reg
	s := open(t, dir, o)
	r := openReader(t, dir, "one")
	var stored []string
	var err error
	for _, p := range numbered(0, 1000) {
		if err = s.Append(t.Context(), []byte(p)); err != nil {
			break
		}
		stored = append(stored, p)
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	if err := s.Enqueue([]byte(stored[0]), nil); !errors.Is(err, ErrFull) {
		t.Fatalf("Enqueue: got %v, want ErrFull", err)
	}
	if n := testutil.ToFloat64(s.m.refused.WithLabelValues(reasonDisk)); n != 2 {
		t.Fatalf("counted %v refused records, want 2", n)
	}
	until(t, "the message to name the reader", func() bool {
		err := s.Append(t.Context(), []byte(stored[0]))
		return strings.Contains(fmt.Sprint(err), "reader one")
	})
	got, last := drain(t, r)
	if diff := cmp.Diff(stored, got); diff != "" {
		t.Fatal(diff)
	}
	if err := last.Ack(); err != nil {
		t.Fatal(err)
	}
	until(t, "room", func() bool { return s.Append(t.Context(), []byte("again")) == nil })
	if got, _ := drain(t, r); !cmp.Equal([]string{"again"}, got) {
		t.Fatalf("after room: %q", got)
	}
}

// TestAlarm raises it by what waits and by a file system that fills, each long
// before a record is refused, and takes it back.
func TestAlarm(t *testing.T) {
	dir := t.TempDir()
	o := small()
	o.MaxBytes = 8 * o.SegmentBytes
	var free atomic.Int64
	free.Store(1 << 40)
	d := realDisk()
	d.free = func(string) (int64, error) { return free.Load(), nil }
	s, err := openOn(dir, o, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r := openReader(t, dir, "one")
	alarm := func(want float64) func() bool {
		return func() bool { return testutil.ToFloat64(s.m.alarm) == want }
	}
	until(t, "no alarm", alarm(0))
	for n := 0; testutil.ToFloat64(s.m.bytes) < float64(o.MaxBytes)*5/8; n++ {
		if err := s.Append(t.Context(), fmt.Appendf(nil, "%0100d", n)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the alarm of the backlog", alarm(1))
	_, last := drain(t, r)
	if err := last.Ack(); err != nil {
		t.Fatal(err)
	}
	until(t, "its end", alarm(0))
	free.Store(o.MaxBytes/2 - 1)
	until(t, "the alarm of the file system", alarm(1))
	if room := testutil.ToFloat64(s.m.room); room != float64(o.MaxBytes/2-1) {
		t.Errorf("room of %v bytes", room)
	}
	free.Store(1 << 40)
	until(t, "its end", alarm(0))
	if err := s.Append(t.Context(), []byte("still")); err != nil {
		t.Error(err)
	}
}

func TestEnqueueNeverWaits(t *testing.T) {
	dir := t.TempDir()
	o := small()
	o.MaxRecord = 1000
	o.QueueBytes = 5 * (1000 + frameBytes)
	s := open(t, dir, o)
	hold := make(chan struct{})
	stored := make(chan error, 10)
	payload := make([]byte, 1000)
	// The first answer holds the syncer, as a disk that hangs would.
	if err := s.Enqueue(payload, func(err error) { <-hold; stored <- err }); err != nil {
		t.Fatal(err)
	}
	taken := 1
	var err error
	for ; err == nil; taken++ {
		err = s.Enqueue(payload, func(err error) { stored <- err })
	}
	taken--
	if !errors.Is(err, ErrFull) || taken != 5 {
		t.Fatalf("took %d records, then %v; want 5 and ErrFull", taken, err)
	}
	if n := testutil.ToFloat64(s.m.refused.WithLabelValues(reasonQueue)); n != 1 {
		t.Fatalf("counted %v refused records, want 1", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Append(ctx, payload); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Append while the queue is full: %v, want to wait until the deadline", err)
	}
	close(hold)
	for range taken {
		if err := <-stored; err != nil {
			t.Fatal(err)
		}
	}
}

func TestAppendOfMoreThanTheQueue(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	var all [][]byte
	for _, p := range numbered(0, 1000) {
		all = append(all, []byte(p))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 3 { // each must give the whole queue back
		if err := s.Append(ctx, all...); err != nil {
			t.Fatal(err)
		}
	}
	got, _ := drain(t, openReader(t, dir, "one"))
	if want := numbered(0, 1000); !cmp.Equal(slices.Concat(want, want, want), got) {
		t.Fatalf("%d records came, or in another order", len(got))
	}
}

func TestCloseFlushesAndRefuses(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	var mu sync.Mutex
	answered := 0
	for _, p := range numbered(0, 50) {
		err := s.Enqueue([]byte(p), func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				answered++
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if answered != 50 {
		t.Fatalf("%d of 50 were durable after Close", answered)
	}
	if err := s.Append(t.Context(), []byte("x")); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v, want ErrClosed", err)
	}
}

func TestCloseEndsAWaitingRead(t *testing.T) {
	r := openReader(t, t.TempDir(), "one")
	got := make(chan error)
	go func() {
		_, err := r.Read(t.Context(), 1)
		got <- err
	}()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v, want ErrClosed", err)
	}
}

func TestAckAfterCloseIsRefused(t *testing.T) {
	dir := t.TempDir()
	appendAll(t, open(t, dir, small()), "x")
	r := openReader(t, dir, "one")
	b, err := r.Read(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Ack(); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v, want ErrClosed", err)
	}
}

func TestAckNeverGoesBack(t *testing.T) {
	dir := t.TempDir()
	appendAll(t, open(t, dir, small()), "a", "b")
	r := openReader(t, dir, "one")
	a, err := r.Read(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Read(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Ack(), a.Ack(), r.Close()); err != nil {
		t.Fatal(err)
	}
	if got, _ := drain(t, openReader(t, dir, "one")); len(got) != 0 {
		t.Fatalf("came again: %q", got)
	}
}

func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	o := small()
	reg := prometheus.NewRegistry()
	o.Registerer = reg
	s := open(t, dir, o)
	appendAll(t, s, numbered(0, 3)...)
	if err := s.Append(t.Context(), []byte("a"), []byte("b")); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`
# HELP bulkhead_spool_appended_records_total Records made durable.
# TYPE bulkhead_spool_appended_records_total counter
bulkhead_spool_appended_records_total 5
# HELP bulkhead_spool_bytes Bytes in segments that are not yet freed, as counted against the limit.
# TYPE bulkhead_spool_bytes gauge
bulkhead_spool_bytes %d
# HELP bulkhead_spool_quarantined_total Segments found damaged and set apart.
# TYPE bulkhead_spool_quarantined_total counter
bulkhead_spool_quarantined_total 0
# HELP bulkhead_spool_refused_records_total Records that were not stored, by reason: max_bytes, queue, disk_error.
# TYPE bulkhead_spool_refused_records_total counter
bulkhead_spool_refused_records_total{reason="disk_error"} 0
bulkhead_spool_refused_records_total{reason="max_bytes"} 0
bulkhead_spool_refused_records_total{reason="queue"} 0
# HELP bulkhead_spool_segments Segments on disk, those in quarantine included.
# TYPE bulkhead_spool_segments gauge
bulkhead_spool_segments 1
`, headerBytes+5*frameBytes+3*len(numbered(0, 1)[0])+2)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want),
		"bulkhead_spool_appended_records_total", "bulkhead_spool_bytes", "bulkhead_spool_quarantined_total",
		"bulkhead_spool_refused_records_total", "bulkhead_spool_segments"); err != nil {
		t.Fatal(err)
	}
	until(t, "the age of the oldest record", func() bool { return testutil.ToFloat64(s.m.age) > 0 })

	r, err := OpenReader(dir, "one", ReaderOptions{Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	_, last := drain(t, r)
	if n := testutil.ToFloat64(r.m.records); n != 5 {
		t.Fatalf("reader counted %v", n)
	}
	if err := last.Ack(); err != nil {
		t.Fatal(err)
	}
	until(t, "age 0", func() bool { return testutil.ToFloat64(s.m.age) == 0 })
	if err := errors.Join(r.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	open(t, dir, o) // the registry takes the metrics again
}

func TestOptionsValidate(t *testing.T) {
	if err := DefaultOptions().Validate(); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*Options){
		"SegmentBytes": func(o *Options) { o.SegmentBytes = 1 },
		"MaxBytes":     func(o *Options) { o.MaxBytes = o.SegmentBytes },
		"MaxRecord":    func(o *Options) { o.MaxRecord = int(o.SegmentBytes) },
		"QueueBytes":   func(o *Options) { o.QueueBytes = 10 },
	} {
		o := DefaultOptions()
		spoil(&o)
		if _, err := Open(t.TempDir(), o); err == nil || !strings.Contains(err.Error(), field+" is") {
			t.Errorf("%s: got %v", field, err)
		}
	}
	if _, err := OpenReader(t.TempDir(), "one", ReaderOptions{Poll: time.Hour}); err == nil {
		t.Error("Poll of an hour was accepted")
	}
}
