package spool

import (
	"fmt"
	"sync"
	"testing"
)

func BenchmarkAppend(b *testing.B) {
	for _, goroutines := range []int{1, 64} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			o := DefaultOptions()
			o.MaxBytes = 1 << 40
			s := open(b, b.TempDir(), o)
			payload := make([]byte, 1000)
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			var wg sync.WaitGroup
			left := make(chan struct{}, b.N)
			for range b.N {
				left <- struct{}{}
			}
			close(left)
			b.ResetTimer()
			for range goroutines {
				wg.Go(func() {
					for range left {
						if err := s.Append(b.Context(), payload); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	s := open(b, dir, DefaultOptions())
	payloads := make([][]byte, 1000)
	for i := range payloads {
		payloads[i] = make([]byte, 1000)
	}
	for range 20 {
		if err := s.Append(b.Context(), payloads...); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(20_000 * 1000)
	for b.Loop() {
		r := openReader(b, dir, "bench")
		for n := 0; n < 20_000; {
			batch, err := r.Read(b.Context(), 1000)
			if err != nil {
				b.Fatal(err)
			}
			n += len(batch.Payloads)
		}
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
