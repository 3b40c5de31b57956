package stream

import (
	"context"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

// BenchmarkForward sends records of 1 kB from a spool to a Redis that syncs
// every second.
func BenchmarkForward(b *testing.B) { forward(b, false) }

// BenchmarkForwardAcked also reads, acknowledges and trims them, and frees the
// spool.
func BenchmarkForwardAcked(b *testing.B) { forward(b, true) }

func forward(b *testing.B, acked bool) {
	_, c := rig(b)
	dir := b.TempDir()
	o := spool.DefaultOptions()
	o.MaxBytes = 1 << 40
	s, err := spool.Open(dir, o)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	r, err := spool.OpenReader(dir, "one", spool.ReaderOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	payloads := make([][]byte, 1000)
	for i := range payloads {
		payloads[i] = make([]byte, 1000)
	}
	for n := 0; n < b.N; n += len(payloads) {
		if err := s.Append(b.Context(), payloads[:min(len(payloads), b.N-n)]...); err != nil {
			b.Fatal(err)
		}
	}
	cfg := DefaultForwarderConfig()
	cfg.Client, cfg.Stream, cfg.Writer, cfg.Groups, cfg.Source = c, testStream, "bench", []string{"main"}, r
	cfg.MaxLen = 1 << 30
	f, err := NewForwarder(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(1000)
	b.ReportAllocs()
	b.ResetTimer()
	start := time.Now()
	got := newStore()
	if acked {
		read(b, c, "main", "a", 1000, got, nil)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	for {
		n, err := c.HGet(b.Context(), keys(testStream).sent(), "bench").Result()
		_, at := parseSession(n)
		if st, lookErr := spool.Look(dir); err == nil && lookErr == nil {
			last := st.Segments[len(st.Segments)-1]
			end := spool.Position{Segment: last.Number, Offset: last.Bytes}
			if !at.Before(end) && (!acked || st.Readers[0].Behind == 0) {
				break
			}
		}
		pause(b.Context(), 5*time.Millisecond)
	}
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "records/s")
	b.StopTimer()
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
