package cdrpipe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// Batch is a run of payloads in the order of the stream.
type Batch struct {
	Payloads [][]byte
	// Ack tells the stream durably that this batch and all before it are
	// done. A batch that was not acknowledged comes again after a restart.
	Ack func() error
}

// Stream is read by one Consumer at a time.
type Stream interface {
	// Read waits until there is a payload behind those that it returned
	// before, and returns up to limit. An error leaves the place where it was.
	Read(ctx context.Context, limit int) (Batch, error)
}

// Config of a Consumer. Start from DefaultConfig.
type Config struct {
	Stream    Stream
	Warehouse Warehouse
	BatchSize int           // most entries in one Insert, 1 to 100000
	Timeout   time.Duration // of one attempt of the warehouse

	// Interval is the least time from one batch to the next where a batch is
	// not full: a warehouse may want few and large inserts. 0: none.
	Interval time.Duration

	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

// DefaultConfig returns 1000 entries a batch and 30 s an attempt.
func DefaultConfig() Config { return Config{BatchSize: 1000, Timeout: 30 * time.Second} }

// Validate names every field that is out of its range.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, field, want string) {
		if !ok {
			errs = append(errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: "cdrpipe." + field, Msg: want})
		}
	}
	check(c.Stream != nil, "Stream", "must be set")
	check(c.Warehouse != nil, "Warehouse", "must be set")
	check(c.BatchSize >= 1 && c.BatchSize <= 100_000, "BatchSize", "must be 1 to 100000")
	check(c.Timeout > 0, "Timeout", "must be above zero")
	check(c.Interval >= 0, "Interval", "must not be below zero")
	return errors.Join(errs...)
}

const (
	retryMin     = 100 * time.Millisecond
	retryMax     = 2 * time.Second
	unreadyAfter = 5 * time.Second // of failing

	// firstBatch is how many entries the first Insert of a Run has at the most;
	// each later one may have twice as many, up to BatchSize. A process that is
	// ended again and again gets on all the same.
	firstBatch = 500
)

// Consumer moves entries from a stream into a warehouse.
type Consumer struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	mu           sync.Mutex
	failure      error // of the present attempts; nil: none failed
	failingSince time.Time
}

// New returns a Consumer. The error is bulkhead.Invalid for a bad config.
func New(cfg Config) (*Consumer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	return &Consumer{cfg: cfg, log: cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)), metrics: m}, nil
}

// Run moves entries until ctx ends, and returns nil then. A batch that is
// under way at that time comes again in the next Run. It may be called once.
func (c *Consumer) Run(ctx context.Context) error {
	defer c.metrics.Unregister()
	for limit := min(firstBatch, c.cfg.BatchSize); ctx.Err() == nil; limit = min(2*limit, c.cfg.BatchSize) {
		var b Batch
		if !c.try(ctx, "read the stream", func() (err error) {
			b, err = c.cfg.Stream.Read(ctx, limit)
			return err
		}) {
			break
		}
		next := time.Now().Add(c.cfg.Interval)
		if !c.move(ctx, b) || len(b.Payloads) < limit && !wait(ctx, time.Until(next)) {
			break
		}
	}
	return nil
}

// wait returns false if ctx ends before.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// move stores a batch and acknowledges it; false: ctx ended before.
func (c *Consumer) move(ctx context.Context, b Batch) bool {
	start := time.Now()
	entries, bad := decode(b.Payloads)
	stored := (len(entries) == 0 || c.try(ctx, "insert into the warehouse", func() error {
		return c.limited(ctx, func(ctx context.Context) error { return c.cfg.Warehouse.Insert(ctx, entries) })
	})) && (len(bad) == 0 || c.try(ctx, "quarantine payloads", func() error {
		return c.limited(ctx, func(ctx context.Context) error { return c.cfg.Warehouse.Quarantine(ctx, bad) })
	}))
	if !stored {
		return false
	}
	if len(bad) > 0 {
		c.log.Error("payloads of the stream are no call records; see the table quarantine", "count", len(bad), "reason", bad[0].Reason)
	}
	c.measure(entries, len(bad), time.Since(start))
	return c.try(ctx, "acknowledge a batch", b.Ack)
}

func (c *Consumer) limited(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	return do(ctx)
}

func decode(payloads [][]byte) (entries []cdr.Entry, bad []Undecodable) {
	for _, p := range payloads {
		e, err := cdr.Decode(p)
		if err != nil {
			bad = append(bad, Undecodable{Payload: p, Reason: err.Error()})
			continue
		}
		entries = append(entries, e)
	}
	return entries, bad
}

func (c *Consumer) measure(entries []cdr.Entry, bad int, took time.Duration) {
	c.metrics.batch.Observe(took.Seconds())
	c.metrics.quarantined.Add(float64(bad))
	for i := range entries {
		r := entries[i].Record
		if r == nil {
			c.metrics.rows.WithLabelValues("gap").Inc()
			continue
		}
		c.metrics.rows.WithLabelValues(kindLabel(r.Kind)).Inc()
		if !r.End.IsZero() {
			c.metrics.lag.Set(time.Since(r.End).Seconds())
		}
	}
}

// try does it until it succeeds, or returns false when ctx ends.
func (c *Consumer) try(ctx context.Context, what string, do func() error) bool {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = retryMin, retryMax
	for {
		err := do()
		if err != nil && ctx.Err() != nil {
			return false // the end of ctx explains it
		}
		c.note(what, err)
		if err == nil {
			return true
		}
		c.metrics.retries.Inc()
		if !wait(ctx, min(pause.NextBackOff(), retryMax)) {
			return false
		}
	}
}

// note logs when the state changes, not at every attempt.
func (c *Consumer) note(what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case errors.Is(err, bulkhead.Denied) && !errors.Is(c.failure, bulkhead.Denied):
		c.log.Error("call records are refused and wait in the stream until somebody mends it", "tried", what, "error", err)
		c.failure = fmt.Errorf("%s: %w", what, err)
		if c.failingSince.IsZero() {
			c.failingSince = time.Now()
		}
	case err != nil && c.failure == nil:
		c.log.Error("call records do not reach the warehouse and wait in the stream", "tried", what, "error", err)
		c.failure, c.failingSince = fmt.Errorf("%s: %w", what, err), time.Now()
	case err != nil:
		c.failure = fmt.Errorf("%s: %w", what, err)
	case c.failure != nil:
		c.log.Info("call records reach the warehouse again", "after", time.Since(c.failingSince))
		c.failure, c.failingSince = nil, time.Time{}
	}
}

// Ready returns nil unless attempts have been failing for 5 s, or were refused.
// The error is bulkhead.Unavailable, and bulkhead.Denied in the second case.
func (c *Consumer) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil || time.Since(c.failingSince) <= unreadyAfter && !errors.Is(c.failure, bulkhead.Denied) {
		return nil
	}
	return fmt.Errorf("call records have not reached the warehouse since %s: %w: %w",
		c.failingSince.UTC().Format(time.RFC3339), c.failure, bulkhead.Unavailable)
}
