package stream

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

// Source is a spool as a Forwarder reads it; spool.Reader is one.
type Source interface {
	// Read waits for records behind those that it returned before, and
	// returns up to limit of them.
	Read(ctx context.Context, limit int) (spool.Batch, error)
	// Seek lets Read go on behind p.
	Seek(p spool.Position)
	// Ack stores durably that all before p is done with.
	Ack(p spool.Position) error
	// Acked returns the place of the last Ack.
	Acked() spool.Position
}

// ForwarderConfig of a Forwarder. Start from DefaultForwarderConfig.
type ForwarderConfig struct {
	Client *Client
	Stream string // name of the stream: letters, digits and -_.: up to 128
	Writer string // name of this spool among all that write to the stream
	Source Source
	// Groups must all have acknowledged a record before Source is told to
	// free it.
	Groups []string
	// BatchSize is how many records go to Redis in one call, 1 to 10000.
	BatchSize int
	// MaxLen is the most entries that the stream may hold; at least BatchSize.
	MaxLen int64
	// Every is how often Redis is asked how far the groups are, up to 10 s.
	Every time.Duration

	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

// DefaultForwarderConfig returns 500 records a call, 100000 entries in the
// stream (about 100 MB of Redis's memory with records of 1 kB) and a look
// every 200 ms.
func DefaultForwarderConfig() ForwarderConfig {
	return ForwarderConfig{BatchSize: 500, MaxLen: 100_000, Every: 200 * time.Millisecond}
}

// Validate names every field that is out of its range.
func (c *ForwarderConfig) Validate() error {
	var errs []error
	check := func(ok bool, field, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("stream forwarder: %s %s", field, want))
		}
	}
	check(c.Client != nil, "Client", "must be set")
	check(c.Source != nil, "Source", "must be set")
	check(validName(c.Stream), "Stream", "must be 1 to 128 letters, digits and -_.:")
	check(validName(c.Writer), "Writer", "must be 1 to 128 letters, digits and -_.:")
	check(len(c.Groups) > 0, "Groups", "must name at least one group")
	for _, g := range c.Groups {
		check(validName(g), "Groups", "must be 1 to 128 letters, digits and -_.: each")
	}
	check(c.BatchSize >= 1 && c.BatchSize <= 10_000, "BatchSize", "must be 1 to 10000")
	check(c.MaxLen >= int64(c.BatchSize), "MaxLen", "must be at least BatchSize")
	check(c.Every > 0 && c.Every <= 10*time.Second, "Every", "must be above zero and up to 10 s")
	return errors.Join(errs...)
}

const (
	retryMin     = 50 * time.Millisecond
	retryMax     = 2 * time.Second
	unreadyAfter = 5 * time.Second // of failing
)

// Forwarder sends the records of a spool to a stream, and acknowledges them at
// the spool when the groups have acknowledged them at the stream. See the
// package's documentation for how it finds out what Redis lost.
type Forwarder struct {
	cfg ForwarderConfig
	log *slog.Logger
	m   *forwarderMetrics
	link

	mu      sync.Mutex
	failure error // of the present attempts; nil: none failed
	since   time.Time
}

// NewForwarder returns a Forwarder. Nothing is connected yet.
func NewForwarder(cfg ForwarderConfig) (*Forwarder, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m, err := newForwarderMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	log := cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)).With("stream", cfg.Stream, "writer", cfg.Writer)
	return &Forwarder{cfg: cfg, log: log, m: m, link: link{doubt: true}}, nil
}

// Run sends until ctx ends, and returns nil then, at most 7 s later. What was
// not acknowledged by then is sent again by the next Forwarder. It may be
// called once.
func (f *Forwarder) Run(ctx context.Context) error {
	defer f.m.Unregister()
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = retryMin, retryMax
	for ctx.Err() == nil {
		err := f.step(ctx)
		if err != nil && ctx.Err() != nil {
			break // the end of ctx explains it
		}
		f.note(err)
		if err == nil {
			wait.Reset()
			continue
		}
		f.m.failures.Inc()
		pause(ctx, min(wait.NextBackOff(), retryMax))
	}
	if f.doubt {
		return nil
	}
	// Free what arrived meanwhile, so that less comes twice.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := f.look(end); err != nil {
		f.log.Info("what was last acknowledged is not known at the end, some records will be sent again", "err", err)
	}
	return nil
}

// step does what is next: find out where Redis is, look how far the groups
// are, or send a batch.
func (f *Forwarder) step(ctx context.Context) error {
	if f.doubt {
		if err := f.open(ctx); err != nil {
			return err
		}
	}
	if !time.Now().Before(f.nextLook) {
		return f.look(ctx)
	}
	if f.waiting {
		pause(ctx, time.Until(f.nextLook))
		return nil
	}
	if len(f.batch.Payloads) == 0 {
		until, cancel := context.WithDeadline(ctx, f.nextLook)
		b, err := f.cfg.Source.Read(until, f.cfg.BatchSize)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return nil
		}
		if err != nil {
			return err
		}
		f.batch = b
	}
	return f.send(ctx)
}

// note logs when the state changes, not at every attempt.
func (f *Forwarder) note(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && f.full {
		err = fmt.Errorf("stream %s holds its %d entries, and more records wait in the spool: group %v is to acknowledge them", f.cfg.Stream, f.cfg.MaxLen, f.cfg.Groups)
	}
	switch {
	case errors.Is(err, ErrDenied) && !errors.Is(f.failure, ErrDenied):
		f.log.Error("records are refused and wait in the spool until somebody mends it", "err", err)
		if f.failure == nil {
			f.since = time.Now()
		}
		f.failure = err
	case err != nil && f.failure == nil:
		f.log.Error("records are not sent and wait in the spool", "err", err)
		f.failure, f.since = err, time.Now()
	case err != nil:
		f.failure = err
	case f.failure != nil:
		f.log.Info("records are sent again", "after", time.Since(f.since))
		f.failure = nil
		f.m.reconnects.Inc()
	}
}

// Ready returns nil unless nothing could be sent for 5 s, or Redis refuses us.
func (f *Forwarder) Ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure == nil || time.Since(f.since) <= unreadyAfter && !errors.Is(f.failure, ErrDenied) {
		return nil
	}
	return fmt.Errorf("records have not been sent since %s and wait in the spool: %w", f.since.UTC().Format(time.RFC3339), f.failure)
}

// newSession draws the name of a session.
func newSession() string { return rand.Text()[:16] }

// pause waits for a time or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
