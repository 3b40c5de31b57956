package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

const (
	ackRate  = 5000 // events a second, offered whatever happens
	ackEvery = time.Millisecond
	ackRun   = 2 * time.Second
	ackRuns  = 5
)

// ack compares the time from an event read to its record durable with that of
// the barest loop that can promise the same: append whatever waits, fdatasync.
func ack(ctx context.Context) ([]figure, error) {
	dir, err := os.MkdirTemp(".", ".bench-ack") // the disk that the work is on, not a tmpfs
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var ours, base, p50 []float64
	for i := range ackRuns {
		a, err := bridgeLatencies(ctx, filepath.Join(dir, "bridge"+strconv.Itoa(i)))
		if err != nil {
			return nil, err
		}
		b, err := bareLatencies(filepath.Join(dir, "bare"+strconv.Itoa(i)))
		if err != nil {
			return nil, err
		}
		ours, base, p50 = append(ours, percentile(a, 99)), append(base, percentile(b, 99)), append(p50, percentile(a, 50))
	}
	p99, bare := median(ours), median(base)
	return []figure{
		{name: "ack", value: p99 * 1e6, unit: "us", ratio: p99 / bare, bar: bar{"<=", 1.5}},
		{name: "ack_p50", value: median(p50) * 1e6, unit: "us"},
		{name: "ack_baseline", value: bare * 1e6, unit: "us"},
	}, nil
}

// percentile returns the p-th percentile of v in seconds; v is sorted in place.
func percentile(v []time.Duration, p int) float64 {
	slices.Sort(v)
	return v[min(len(v)-1, len(v)*p/100)].Seconds()
}

// offer calls event for each event of an open loop, in order, at its time.
func offer(event func(n int)) {
	start := time.Now()
	tick := time.NewTicker(ackEvery)
	defer tick.Stop()
	for n := 0; n < int(ackRate*ackRun.Seconds()); {
		<-tick.C
		due := int(time.Since(start).Seconds() * ackRate)
		for ; n < min(due, int(ackRate*ackRun.Seconds())); n++ {
			event(n)
		}
	}
}

// clockedStream notes when each record became durable.
type clockedStream struct {
	*spool.Spool
	mu      sync.Mutex
	durable map[int]time.Time
	done    chan struct{}
}

func (s *clockedStream) Append(ctx context.Context, payloads ...[]byte) error {
	if err := s.Spool.Append(ctx, payloads...); err != nil {
		return err
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range payloads {
		_, rest, _ := bytes.Cut(p, []byte(`"leg":"`))
		digits, _, _ := bytes.Cut(rest, []byte(`"`))
		if n, err := strconv.Atoi(string(digits)); err == nil {
			s.durable[n] = now
		}
	}
	if len(s.durable) == int(ackRate*ackRun.Seconds()) {
		close(s.done)
	}
	return nil
}

// loopSource emits the open loop's events and notes when each was read.
type loopSource struct{ read []time.Time }

func (*loopSource) Node() bulkhead.NodeID { return benchNode }

func (l *loopSource) Run(ctx context.Context, emit func(cdr.Event)) error {
	emit(cdr.Event{Type: cdr.Connected, Time: time.Now(), Core: "bench"})
	offer(func(n int) {
		now := time.Now()
		l.read[n] = now
		emit(cdr.Event{Type: cdr.Closed, Time: now, Record: ackRecord(n, now)})
	})
	<-ctx.Done()
	return nil
}

func ackRecord(n int, now time.Time) cdr.Record {
	leg := strconv.Itoa(n)
	return cdr.Record{
		Schema: cdr.SchemaVersion, ID: cdr.NewID("c1", benchNode, leg), Kind: cdr.Leg, Source: cdr.SourceESL, Cell: "c1", Node: benchNode,
		SBC: "sbc1", Pool: "std", Tenant: "t000001", Revision: 1, Leg: leg, Call: leg, SIPCallID: "bench", Direction: cdr.Inbound,
		Caller: "15550100", Callee: "4930123456", Start: now.Add(-3 * time.Second), Answer: now.Add(-2 * time.Second), End: now,
		SIPCode: 200, Q850: 16, Cause: "NORMAL_CLEARING", Codec: "PCMA",
	}
}

func bridgeLatencies(ctx context.Context, dir string) ([]time.Duration, error) {
	sp, err := spool.Open(filepath.Join(dir, "spool"), spool.DefaultOptions())
	if err != nil {
		return nil, err
	}
	defer sp.Close()
	total := int(ackRate * ackRun.Seconds())
	stream := &clockedStream{Spool: sp, durable: make(map[int]time.Time, total), done: make(chan struct{})}
	cfg := eventbridge.DefaultConfig()
	cfg.Cell, cfg.Stream, cfg.Journal = "c1", stream, filepath.Join(dir, "journal")
	b, err := eventbridge.New(cfg)
	if err != nil {
		return nil, err
	}
	source := &loopSource{read: make([]time.Time, total)}
	if err := b.SetSources([]eventbridge.Source{source}); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	select {
	case <-stream.done:
	case <-time.After(ackRun + 20*time.Second):
		err = errors.New("not every record became durable")
	}
	stop()
	if err := errors.Join(err, <-ended); err != nil {
		return nil, err
	}
	out := make([]time.Duration, total)
	for n := range out {
		out[n] = stream.durable[n].Sub(source.read[n])
	}
	return out, nil
}

// bareLatencies measures the group-commit loop alone, with payloads as long
// as the bridge's.
func bareLatencies(file string) ([]time.Duration, error) {
	payload, err := cdr.Encode(recordEntry())
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	total := int(ackRate * ackRun.Seconds())
	offered, latencies := make(chan time.Time, total), make([]time.Duration, 0, total)
	failed := make(chan error, 1)
	go func() {
		var buf []byte
		var waiting []time.Time
		for len(latencies) < total {
			buf, waiting = buf[:0], append(waiting[:0], <-offered)
			buf = append(buf, payload...)
			for more := true; more; {
				select {
				case at := <-offered:
					waiting, buf = append(waiting, at), append(buf, payload...)
				default:
					more = false
				}
			}
			if _, err := f.Write(buf); err != nil {
				failed <- err
				return
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				failed <- fmt.Errorf("fdatasync: %w", err)
				return
			}
			now := time.Now()
			for _, at := range waiting {
				latencies = append(latencies, now.Sub(at))
			}
		}
		failed <- nil
	}()
	offer(func(int) { offered <- time.Now() })
	return latencies, <-failed
}

func recordEntry() cdr.Entry {
	r := ackRecord(1, time.Now())
	return cdr.Entry{Record: &r}
}
