package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

const (
	enqueueBurst = 8000 // events; a quarter of what a node's queue holds
	enqueueRuns  = 41
)

// enqueue measures what handing a record to the pipeline takes of the reader of
// an event socket, while the pipeline is at work: that is all it ever waits.
func enqueue(ctx context.Context) ([]figure, error) {
	dir, err := os.MkdirTemp(".", ".bench-enqueue")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	sp, err := spool.Open(filepath.Join(dir, "spool"), spool.DefaultOptions())
	if err != nil {
		return nil, err
	}
	defer sp.Close()
	durable := newTally()
	cfg := eventbridge.DefaultConfig()
	cfg.Cell, cfg.Stream, cfg.Journal = "c1", countedSpool{sp, durable}, filepath.Join(dir, "journal")
	b, err := eventbridge.New(cfg)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	source := &burstSource{durable: durable, done: make(chan struct{})}
	if err := b.SetSources([]eventbridge.Source{source}); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	select {
	case <-source.done:
	case <-time.After(40 * time.Second):
		err = errors.New("not every record became durable")
	}
	stop()
	if err := errors.Join(err, <-ended, source.err); err != nil {
		return nil, err
	}
	return []figure{{name: "enqueue", value: median(source.ns), unit: "ns"}}, nil
}

// burstSource hands over records as fast as they are taken, in bursts.
type burstSource struct {
	durable *tally
	ns      []float64 // for one record, by burst
	err     error
	done    chan struct{}
}

func (*burstSource) Node() bulkhead.NodeID { return benchNode }

func (s *burstSource) Run(ctx context.Context, emit func(cdr.Event)) error {
	emit(cdr.Event{Type: cdr.Connected, Time: time.Now(), Core: "bench"})
	events := make([]cdr.Event, enqueueBurst)
	for run := range enqueueRuns {
		now := time.Now()
		for i := range events {
			events[i] = cdr.Event{Type: cdr.Closed, Time: now, Record: ackRecord(run*enqueueBurst+i, now)}
		}
		start := time.Now()
		for i := range events {
			emit(events[i])
		}
		s.ns = append(s.ns, float64(time.Since(start).Nanoseconds())/enqueueBurst)
		if s.err = s.durable.wait(ctx, (run+1)*enqueueBurst); s.err != nil {
			break
		}
	}
	close(s.done)
	<-ctx.Done()
	return nil
}
