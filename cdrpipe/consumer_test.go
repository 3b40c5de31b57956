package cdrpipe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// memStream is a Stream that keeps its place like a spool does: Read goes on,
// and a new reader begins behind the last acknowledged payload.
type memStream struct {
	mu       sync.Mutex
	payloads [][]byte
	next     int
	acked    int
	ackFails int
	readErrs int
	limits   []int // that Read was asked for
}

func (s *memStream) Read(ctx context.Context, limit int) (Batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits = append(s.limits, limit)
	if s.readErrs > 0 {
		s.readErrs--
		return Batch{}, errors.New("disk trouble")
	}
	if s.next == len(s.payloads) {
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return Batch{}, ctx.Err()
	}
	end := min(s.next+limit, len(s.payloads))
	b := Batch{Payloads: s.payloads[s.next:end], Ack: func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ackFails > 0 {
			s.ackFails--
			return errors.New("ack trouble")
		}
		s.acked = max(s.acked, end)
		return nil
	}}
	s.next = end
	return b, nil
}

func (s *memStream) add(t *testing.T, entries ...cdr.Entry) {
	t.Helper()
	for _, e := range entries {
		b, err := cdr.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		s.payloads = append(s.payloads, b)
	}
}

func (s *memStream) ackedNow() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked
}

// flaky fails its first attempts, sometimes after it stored the batch.
type flaky struct {
	Warehouse
	mu    sync.Mutex
	fails int
	late  bool // the answer is lost, not the insert
	hook  func()
}

func (f *flaky) Insert(ctx context.Context, entries []cdr.Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hook != nil {
		f.hook()
	}
	if f.fails > 0 {
		f.fails--
		if f.late {
			if err := f.Warehouse.Insert(ctx, entries); err != nil {
				return err
			}
		}
		return errors.New("warehouse away")
	}
	return f.Warehouse.Insert(ctx, entries)
}

// nowhere is a Warehouse that takes anything, for tests with false time.
type nowhere struct {
	Warehouse
	mu   sync.Mutex
	rows int
}

func (n *nowhere) Insert(_ context.Context, entries []cdr.Entry) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rows += len(entries)
	return nil
}

func start(t *testing.T, s Stream, w Warehouse, reg prometheus.Registerer) (c *Consumer, stop func()) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Stream, cfg.Warehouse, cfg.BatchSize, cfg.Registerer = s, w, 7, reg
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return c, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

func TestConsumerStoresThenAcks(t *testing.T) {
	w, s, reg := openTemp(t), &memStream{readErrs: 1, ackFails: 1}, prometheus.NewPedanticRegistry()
	for i := range 40 {
		s.add(t, entry(fullRecord(i)))
		if i%10 == 0 {
			s.payloads = append(s.payloads, fmt.Appendf(nil, "not an entry %d", i))
		}
	}
	s.add(t, cdr.Entry{Gap: &cdr.Gap{ID: "g", Node: "fs1", From: at(0), Reason: "lost"}})
	f := &flaky{Warehouse: w, fails: 2, late: true}
	f.hook = func() {
		rows, err := w.Counts(context.Background())
		if acked := s.ackedNow(); err != nil || int64(acked) > rows.Records+rows.Quarantine {
			t.Errorf("%d payloads are acknowledged with %+v stored, %v", acked, rows, err)
		}
	}
	_, stop := start(t, s, f, reg)
	defer stop()
	eventually(t, "all acknowledged", func() bool { return s.ackedNow() == len(s.payloads) })
	want := `
# HELP bulkhead_cdrpipe_quarantined_total Payloads that are no entries and were set apart.
# TYPE bulkhead_cdrpipe_quarantined_total counter
bulkhead_cdrpipe_quarantined_total 4
# HELP bulkhead_cdrpipe_rows_total Entries stored in the warehouse, repeated ones included, by kind: leg, refused, failover, gap.
# TYPE bulkhead_cdrpipe_rows_total counter
bulkhead_cdrpipe_rows_total{kind="gap"} 1
bulkhead_cdrpipe_rows_total{kind="leg"} 40
# HELP bulkhead_cdrpipe_retries_total Failed attempts to read, store or acknowledge, each of which is repeated.
# TYPE bulkhead_cdrpipe_retries_total counter
bulkhead_cdrpipe_retries_total 4
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want),
		"bulkhead_cdrpipe_quarantined_total", "bulkhead_cdrpipe_rows_total", "bulkhead_cdrpipe_retries_total"); err != nil {
		t.Error(err)
	}
	stop()
	c, err := w.Counts(t.Context())
	if err != nil || c != (Counts{Records: 40, Gaps: 1, Quarantine: 4}) {
		t.Errorf("Counts = %+v, %v", c, err)
	}
	if left, err := reg.Gather(); err != nil || len(left) != 0 {
		t.Errorf("metrics stay registered after Run: %d, %v", len(left), err)
	}
}

// TestConsumerKilled ends a consumer between every Insert and its Ack, and
// starts the next one behind the last acknowledged payload.
func TestConsumerKilled(t *testing.T) {
	w, s := openTemp(t), &memStream{}
	for i := range 30 {
		s.add(t, entry(fullRecord(i)), entry(synthesised(fullRecord(i))))
	}
	for crash := 0; s.ackedNow() < len(s.payloads); crash++ {
		s.next = s.acked
		for n := range 3 {
			b, err := s.Read(t.Context(), 5+crash%4) // other cuts than before
			if err != nil {
				t.Fatal(err)
			}
			entries, _ := decode(b.Payloads)
			insert(t, w, entries...)
			if n == 0 { // the others are stored, but the kill comes before Ack
				if err := b.Ack(); err != nil {
					t.Fatal(err)
				}
			}
			if s.next == len(s.payloads) {
				break
			}
		}
	}
	rows := all(t, w)
	if len(rows) != 30 {
		t.Errorf("%d rows, want 30", len(rows))
	}
	for _, r := range rows {
		if r.Source != cdr.SourceESL || r.BilledMS != 2000 {
			t.Errorf("row %+v", r)
		}
	}
}

func TestConsumerNeverSkips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := &memStream{}, &nowhere{}
		for i := range 20 {
			s.add(t, entry(fullRecord(i)))
		}
		f := &flaky{Warehouse: n, fails: 1 << 30}
		c, stop := start(t, s, f, nil)
		time.Sleep(4 * time.Second) // of the bubble's false time
		if err := c.Ready(); err != nil {
			t.Errorf("Ready tells of 4 s of trouble already: %v", err)
		}
		time.Sleep(time.Hour)
		if err := c.Ready(); !errors.Is(err, bulkhead.Unavailable) || !strings.Contains(err.Error(), "warehouse away") {
			t.Errorf("Ready after an hour = %v", err)
		}
		if s.ackedNow() != 0 || n.rows != 0 {
			t.Errorf("%d acknowledged, %d stored while the warehouse was away", s.ackedNow(), n.rows)
		}
		f.mu.Lock()
		tried := 1<<30 - f.fails
		f.fails = 0
		f.mu.Unlock()
		if tried < 3600/8 || tried > 3600 {
			t.Errorf("%d attempts in an hour", tried)
		}
		time.Sleep(6 * time.Second)
		if s.ackedNow() != 20 || n.rows != 20 || c.Ready() != nil {
			t.Errorf("afterwards %d acknowledged, %d stored, %v", s.ackedNow(), n.rows, c.Ready())
		}
		stop()
	})
}

// TestConsumerBeginsSmall: who is ended again and again must get a batch done
// in between.
func TestConsumerBeginsSmall(t *testing.T) {
	s, n := &memStream{}, &nowhere{}
	for i := range 5 * firstBatch {
		s.add(t, entry(fullRecord(i)))
	}
	cfg := DefaultConfig()
	cfg.Stream, cfg.Warehouse, cfg.BatchSize = s, n, 3*firstBatch
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	eventually(t, "all stored", func() bool { return s.ackedNow() == 5*firstBatch })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if want := []int{firstBatch, 2 * firstBatch, 3 * firstBatch}; len(s.limits) < 3 || !slices.Equal(s.limits[:3], want) {
		t.Errorf("batches of up to %v, want %v", s.limits, want)
	}
}

func TestConfigValidate(t *testing.T) {
	_, err := New(Config{})
	if got := len(bulkhead.FieldErrors(err)); got != 4 || !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("New of an empty config: %d fields, %v", got, err)
	}
}
