package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
	"github.com/bulkhead-voip/bulkhead/internal/stream"
)

// The program's own figures for a ClickHouse.
const (
	pipelineBatch    = 20_000
	pipelineInterval = time.Second
	pipelineGroup    = "cdrpipe"
)

// pipeline is everything from an event source to rows in a ClickHouse, put
// together as the program does it, in this process.
type pipeline struct {
	store   *cdrpipe.ClickHouse
	durable *tally // records in the spool
	stored  *tally // in the warehouse

	stop  context.CancelFunc
	ended chan error
	parts int
	close []func() error
}

// tally counts, and lets somebody wait for a number.
type tally struct {
	mu      sync.Mutex
	n       int
	marks   []mark        // every change
	changed chan struct{} // closed at every change
}

// mark is what a tally had counted at a time.
type mark struct {
	at time.Time
	n  int
}

func newTally() *tally { return &tally{changed: make(chan struct{})} }

func (t *tally) add(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n += n
	t.marks = append(t.marks, mark{time.Now(), t.n})
	close(t.changed)
	t.changed = make(chan struct{})
}

// rate is what was counted a second from the first change at least start
// behind the very first to the last one before end; 0: there were not two.
func (t *tally) rate(start time.Duration, end time.Time) float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var first, last mark
	for _, m := range t.marks {
		if first.at.IsZero() && m.at.Sub(t.marks[0].at) >= start {
			first = m
		}
		if m.at.Before(end) {
			last = m
		}
	}
	if first.at.IsZero() || !last.at.After(first.at) {
		return 0
	}
	return float64(last.n-first.n) / last.at.Sub(first.at).Seconds()
}

func (t *tally) wait(ctx context.Context, want int) error {
	for {
		t.mu.Lock()
		n, changed := t.n, t.changed
		t.mu.Unlock()
		if n >= want {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d: %w", n, want, ctx.Err())
		}
	}
}

// countedSpool counts what became durable.
type countedSpool struct {
	*spool.Spool
	*tally
}

func (s countedSpool) Append(ctx context.Context, payloads ...[]byte) error {
	err := s.Spool.Append(ctx, payloads...)
	if err == nil {
		s.add(len(payloads))
	}
	return err
}

// countedWarehouse counts what was stored.
type countedWarehouse struct {
	cdrpipe.Warehouse
	*tally
}

func (w countedWarehouse) Insert(ctx context.Context, entries []cdr.Entry) error {
	err := w.Warehouse.Insert(ctx, entries)
	if err == nil {
		w.add(len(entries))
	}
	return err
}

// startPipeline runs one with files below dir. name is that of its stream and
// of its database; durable counts the records in its spool.
func startPipeline(ctx context.Context, s *stores, dir, name string, durable *tally, sources ...eventbridge.Source) (_ *pipeline, err error) {
	p := &pipeline{durable: durable, stored: newTally(), ended: make(chan error, 3)}
	ctx, p.stop = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.end())
		}
	}()
	sp, err := spool.Open(filepath.Join(dir, "spool"), spool.DefaultOptions())
	if err != nil {
		return nil, err
	}
	p.close = append(p.close, sp.Close)
	reader, err := spool.OpenReader(filepath.Join(dir, "spool"), pipelineGroup, spool.ReaderOptions{})
	if err != nil {
		return nil, err
	}
	p.close = append(p.close, reader.Close)
	client, err := redisClient(s)
	if err != nil {
		return nil, err
	}
	p.close = append(p.close, client.Close)
	if p.store, err = s.open(ctx, name); err != nil {
		return nil, err
	}
	p.close = append(p.close, p.store.Close)

	bridge, err := p.bridge(countedSpool{sp, p.durable}, dir, sources)
	if err != nil {
		return nil, err
	}
	forward := stream.DefaultForwarderConfig()
	forward.Client, forward.Stream, forward.Writer, forward.Groups, forward.Source = client, name, "bench", []string{pipelineGroup}, reader
	forwarder, err := stream.NewForwarder(forward)
	if err != nil {
		return nil, errors.Join(err, bridge.Close())
	}
	read := stream.DefaultConsumerConfig()
	read.Client, read.Stream, read.Group, read.Consumer = client, name, pipelineGroup, "bench"
	consumer, err := stream.NewConsumer(read)
	if err != nil {
		return nil, errors.Join(err, bridge.Close())
	}
	p.close = append(p.close, consumer.Close)
	move := cdrpipe.DefaultConfig()
	move.Stream, move.Warehouse = pipelineStream{consumer}, countedWarehouse{p.store, p.stored}
	move.BatchSize, move.Interval = pipelineBatch, pipelineInterval
	mover, err := cdrpipe.New(move)
	if err != nil {
		return nil, errors.Join(err, bridge.Close())
	}
	for _, run := range []func(context.Context) error{bridge.Run, forwarder.Run, mover.Run} {
		p.parts++
		go func() { p.ended <- run(ctx) }()
	}
	return p, nil
}

func (p *pipeline) bridge(s eventbridge.Stream, dir string, sources []eventbridge.Source) (*eventbridge.Bridge, error) {
	cfg := eventbridge.DefaultConfig()
	cfg.Cell, cfg.Stream, cfg.Journal = "c1", s, filepath.Join(dir, "journal")
	b, err := eventbridge.New(cfg)
	if err != nil {
		return nil, err
	}
	if err := b.SetSources(sources); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func redisClient(s *stores) (*stream.Client, error) {
	o, err := stream.ParseURL("unix://" + s.socket())
	if err != nil {
		return nil, err
	}
	return stream.NewClient(o)
}

// pipelineStream fits the stream in Redis to cdrpipe.
type pipelineStream struct{ *stream.Consumer }

func (s pipelineStream) Read(ctx context.Context, limit int) (cdrpipe.Batch, error) {
	b, err := s.Consumer.Read(ctx, limit)
	return cdrpipe.Batch(b), err
}

// end stops all parts and waits for them.
func (p *pipeline) end() error {
	p.stop()
	var errs []error
	for range p.parts {
		errs = append(errs, <-p.ended)
	}
	for i := len(p.close) - 1; i >= 0; i-- {
		errs = append(errs, p.close[i]())
	}
	return errors.Join(errs...)
}
