package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Controller keeps one SBC.
type Controller struct {
	cfg     Config
	live    *route.Live
	proxy   Proxy
	log     *slog.Logger
	metrics *metrics

	// What follows belongs to the goroutine of Run.
	want      *route.Snapshot // the one being brought to the SBC
	tables    route.Tables    // those of want
	refused   *route.Snapshot // a newer one that cannot be brought to it; want is kept meanwhile
	todo      step            // what want needs next: apply or verify
	states    <-chan struct{} // closed when other states than those of tables are known
	held      bool            // want was read back right once: a difference is drift
	applied   *route.Snapshot // the last that the SBC took
	lastApply time.Time
	told      string // the differences that were logged last while observing
	retry     *backoff.ExponentialBackOff

	mu       sync.Mutex
	verified *route.Snapshot // the one that the SBC was last read back to hold; nil: it does not
	status   Status
}

// step is a state of the machine: it does its work and returns the next one,
// or nil when the context has ended.
type step func(context.Context) step

// New returns a Controller that has not begun. live may be empty still. Its
// errors are a bulkhead.Invalid configuration and metrics that are registered
// already.
func New(cfg Config, live *route.Live, proxy Proxy, log *slog.Logger, reg prometheus.Registerer) (*Controller, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Controller{
		cfg: cfg, live: live, proxy: proxy, log: log.With("sbc", cfg.SBC),
		status: Status{SBC: cfg.SBC, Phase: Stopped},
		retry: &backoff.ExponentialBackOff{
			InitialInterval: cfg.RetryMin, MaxInterval: cfg.RetryMax, Multiplier: 2, RandomizationFactor: 0.2,
		},
	}
	// An SBC that outlived its dispatcher mostly holds the right tables: read
	// before writing.
	c.todo = c.verify
	var err error
	c.metrics, err = newMetrics(reg, cfg.SBC, func() bool { return c.Status().Converged })
	return c, err
}

// Run keeps the SBC until the context ends, and then returns nil as soon as
// the Proxy has left its call. It may be called once.
func (c *Controller) Run(ctx context.Context) error {
	defer c.phase(Stopped)
	defer c.doubt()
	for next := step(c.observe); next != nil && ctx.Err() == nil; {
		next = next(ctx)
	}
	return nil
}

// observe takes up the newest snapshot, or goes on with the one it has when
// that is the newest that can be used.
func (c *Controller) observe(ctx context.Context) step {
	newest, changed := c.live.Next()
	switch {
	case newest == nil, newest == c.refused && c.want == nil:
		c.phase(Waiting)
		return c.wait(ctx, 0, c.observe, changed)
	case newest == c.refused:
		return c.todo
	case newest == c.want:
		if c.refused != nil {
			c.refuse(nil, nil) // the one before is the newest again
		}
		c.shiftSets()
		return c.todo
	}
	tables, err := route.MakeTables(newest, c.cfg.SBC)
	if err == nil {
		err = c.refuseEmpty(newest, tables)
	}
	if err == nil {
		states, changed := c.nodeStates()
		c.states = changed
		tables.Sets, err = route.MakeSets(newest, c.cfg.SBC, states)
	}
	if err != nil {
		c.refuse(newest, err)
		return c.observe
	}
	c.refuse(nil, nil)
	if c.want != nil {
		c.todo = c.apply
	}
	c.want, c.tables, c.held = newest, tables, false
	return c.todo
}

// nodeStates returns what is known of the nodes.
func (c *Controller) nodeStates() (route.NodeStates, <-chan struct{}) {
	if c.cfg.States == nil {
		return nil, nil
	}
	return c.cfg.States.Next()
}

// shiftSets brings the wanted sets to what is known of the nodes. It is the
// sets alone that go to an SBC which holds the rows.
func (c *Controller) shiftSets() {
	states, changed := c.nodeStates()
	if changed == c.states {
		return
	}
	c.states = changed
	sets, err := route.MakeSets(c.want, c.cfg.SBC, states)
	if err != nil || reflect.DeepEqual(sets, c.tables.Sets) {
		return // an error would have been that of the snapshot: only states are new
	}
	c.tables.Sets = sets
	if c.applied == c.want && c.held {
		c.todo = c.shift
	} else {
		c.todo = c.apply
	}
}

// shift brings the wanted sets to an SBC that holds the rows.
func (c *Controller) shift(ctx context.Context) step {
	if c.cfg.Observe {
		return c.verify
	}
	c.phase(Applying)
	start := time.Now()
	err := c.ask(ctx, func(ctx context.Context) error { return c.proxy.ApplySets(ctx, c.tables) })
	if err != nil {
		c.doubt()
		c.held = false
		c.todo = c.apply
		return c.pause(ctx, c.metrics.applyFailures, fmt.Errorf("apply the sets of revision %d: %w", c.tables.Revision, err))
	}
	c.metrics.shiftSeconds.Observe(time.Since(start).Seconds())
	c.todo = c.verify
	// What came meanwhile is more urgent than a read-back.
	if _, changed := c.nodeStates(); changed != c.states {
		return c.observe
	}
	return c.verify
}

// refuseEmpty keeps an SBC from losing all its tenants while they exist: its
// own cell has some that are not in the tables, or it was moved from a cell
// that has some to one that has none.
func (c *Controller) refuseEmpty(x *route.Snapshot, t route.Tables) error {
	for _, r := range t.Rows {
		if strings.HasPrefix(r.Key, "t:") {
			return nil
		}
	}
	state := x.State()
	now := state.SBCs[c.cfg.SBC].Cell
	before := now
	if c.applied != nil {
		before = c.applied.State().SBCs[c.cfg.SBC].Cell
	}
	for _, tenant := range state.Tenants {
		if tenant.Cell == now {
			return fmt.Errorf("its tables have no tenant, but cell %q has: the SBC keeps its old tables: %w", now, bulkhead.Conflict)
		}
		if tenant.Cell == before {
			return fmt.Errorf("it moves the SBC from cell %q, which has tenants, to cell %q, which has none: the SBC keeps its old tables; put a tenant there first, or add another SBC to cell %q: %w", before, now, now, bulkhead.Conflict)
		}
	}
	return nil
}

// apply brings the wanted tables to the SBC, but not sooner than MinInterval
// after the last time; what comes meanwhile takes their place.
func (c *Controller) apply(ctx context.Context) step {
	if c.cfg.Observe {
		return c.verify
	}
	c.phase(Applying)
	if rest := time.Until(c.lastApply.Add(c.cfg.MinInterval)); !c.lastApply.IsZero() && rest > 0 {
		return c.wait(ctx, rest, c.observe)
	}
	c.lastApply = time.Now()
	c.doubt()
	err := c.ask(ctx, func(ctx context.Context) error { return c.proxy.Apply(ctx, c.tables) })
	if err != nil {
		return c.pause(ctx, c.metrics.applyFailures, fmt.Errorf("apply revision %d: %w", c.tables.Revision, err))
	}
	c.metrics.applySeconds.Observe(time.Since(c.lastApply).Seconds())
	c.took()
	c.todo = c.verify
	return c.verify
}

// verify reads back what the SBC holds.
func (c *Controller) verify(ctx context.Context) step {
	c.phase(Verifying)
	var differences []string
	err := c.ask(ctx, func(ctx context.Context) (err error) {
		differences, err = c.proxy.Verify(ctx, c.tables)
		return err
	})
	if err != nil {
		c.doubt()
		return c.pause(ctx, c.metrics.verifyFailures, fmt.Errorf("read back revision %d: %w", c.tables.Revision, err))
	}
	if len(differences) > 0 {
		return c.differs(ctx, differences)
	}
	c.took()
	c.converged()
	return c.rest
}

// differs decides what differences mean: tables that somebody changed, that
// the SBC did not really take, or that it never had.
func (c *Controller) differs(ctx context.Context, differences []string) step {
	c.doubt()
	c.found(differences)
	if c.cfg.Observe {
		return c.observed(differences)
	}
	fresh := c.applied != c.want
	c.todo = c.apply
	attrs := []any{"revision", c.tables.Revision, "count", len(differences), "differences", head(differences)}
	switch {
	case c.held:
		c.held = false
		c.metrics.drift.Inc()
		c.log.Warn("tables of the SBC have changed: applying them again", attrs...)
	case fresh:
		c.log.Info("SBC holds other tables", attrs...)
	default:
		c.log.Warn("SBC took the tables but holds others", attrs...)
		return c.pause(ctx, c.metrics.applyFailures, fmt.Errorf("apply revision %d: the SBC took it, but %d differences were read back, such as %q: is something else writing its tables?: %w", c.tables.Revision, len(differences), differences[0], bulkhead.Conflict))
	}
	return c.observe
}

// observed tells of differences that nothing is done about.
func (c *Controller) observed(differences []string) step {
	if text := fmt.Sprint(c.tables.Revision, differences); text != c.told {
		c.told = text
		c.log.Info("SBC holds other tables than would be written", "revision", c.tables.Revision, "count", len(differences), "differences", head(differences))
	}
	c.retry.Reset()
	c.answered()
	c.todo = c.verify
	return c.rest
}

// rest waits for a new snapshot or for the time of the next read-back.
func (c *Controller) rest(ctx context.Context) step {
	newest, changed := c.live.Next()
	_, states := c.nodeStates()
	if newest != c.want && newest != c.refused || states != c.states {
		return c.observe
	}
	c.phase(Resting)
	return c.wait(ctx, c.cfg.VerifyEvery, c.observe, changed, states)
}

// pause waits after a failure, longer after each further one. A new snapshot
// does not cut it short: what hindered the last one mostly hinders it too.
func (c *Controller) pause(ctx context.Context, failures prometheus.Counter, err error) step {
	if ctx.Err() != nil {
		return nil // the end of the context is not the SBC's failure
	}
	failures.Inc()
	c.failed(err)
	c.phase(Pausing)
	return c.wait(ctx, c.retry.NextBackOff(), c.observe)
}

// wait returns next once one of at most two channels is closed or d has
// passed; a nil channel or d of 0 never comes. It returns nil when the context
// ends.
func (c *Controller) wait(ctx context.Context, d time.Duration, next step, changed ...<-chan struct{}) step {
	var passed <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		passed = t.C
	}
	changed = append(changed, nil, nil)
	select {
	case <-ctx.Done():
		return nil
	case <-changed[0]:
	case <-changed[1]:
	case <-passed:
	}
	return next
}

// ask bounds one call of the Proxy by the timeout.
func (c *Controller) ask(ctx context.Context, call func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	err := call(bounded)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %s: %w: %w", c.cfg.Timeout, err, bulkhead.Unavailable)
	}
	return err
}
