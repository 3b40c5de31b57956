package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// stage orders the end of a group's services: a stage is told to end when
// everything in the stage before it has ended, so that callers can still hang
// up, and what they hung up is still recorded.
type stage int

const (
	outside  stage = iota // who uses the platform: demo calls, the table
	media                 // media nodes
	services              // everything else
	stages
)

// group runs services side by side: the first that fails ends the others.
// What was opened for them is closed afterwards, the last first.
type group struct {
	ctx      context.Context //nolint:containedctx // ends when the group's services must
	cancel   context.CancelFunc
	contexts [stages]context.Context //nolint:containedctx // one a stage
	running  [stages]sync.WaitGroup
	ended    chan struct{} // every stage was told to end, and has, or its time is over

	mu    sync.Mutex
	alive map[string]int // services that run, by name
	up    bool           // every service that there will be was started
	errs  []error
	ready []check
	close []closer
}

type check struct {
	name string
	fn   func() error
}

type closer struct {
	name string
	fn   func() error
}

// newGroup makes a group that ends with ctx, within limit.
func newGroup(ctx context.Context, limit time.Duration) *group {
	g := &group{ended: make(chan struct{}), alive: map[string]int{}}
	g.ctx, g.cancel = context.WithCancel(ctx)
	var cancels [stages]context.CancelFunc
	for s := range stages {
		g.contexts[s], cancels[s] = context.WithCancel(context.WithoutCancel(ctx))
	}
	go func() {
		defer close(g.ended)
		<-g.ctx.Done()
		deadline := time.Now().Add(limit)
		for s := range stages {
			cancels[s]()
			// A stage that is late takes no more than its share from the next.
			left := time.Until(deadline) / time.Duration(stages-s)
			waitAtMost(&g.running[s], left)
		}
	}()
	return g
}

func waitAtMost(wg *sync.WaitGroup, d time.Duration) {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(d):
	}
}

// run starts a service. When it fails, everything ends.
func (g *group) run(s stage, name string, fn func(context.Context) error) {
	g.count(name, 1)
	g.running[s].Go(func() {
		defer g.count(name, -1)
		if err := fn(g.contexts[s]); err != nil && !errors.Is(err, context.Canceled) {
			g.fail(fmt.Errorf("%s: %w", name, err))
		}
	})
}

func (g *group) count(name string, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.alive[name] += n; g.alive[name] == 0 {
		delete(g.alive, name)
	}
}

// fail ends every service because of err.
func (g *group) fail(err error) {
	g.mu.Lock()
	g.errs = append(g.errs, err)
	g.mu.Unlock()
	g.cancel()
}

// readyWhen adds a condition to Ready.
func (g *group) readyWhen(name string, fn func() error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ready = append(g.ready, check{name, fn})
}

// started says that no further service follows. Before, nothing is ready.
func (g *group) started() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.up = true
}

// onClose adds what is to be closed after every service has ended.
func (g *group) onClose(name string, fn func() error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.close = append(g.close, closer{name, fn})
}

// notReady returns the checks that fail, by name.
func (g *group) notReady() map[string]string {
	g.mu.Lock()
	checks, up := g.ready, g.up
	g.mu.Unlock()
	bad := map[string]string{}
	if !up {
		bad["start"] = "services are still being started"
	}
	for _, c := range checks {
		if err := c.fn(); err != nil {
			bad[c.name] = err.Error()
		}
	}
	return bad
}

// wait returns when every service has ended and everything is closed. What
// has not ended in time is named; nothing is closed under it then, since
// every part stands being killed.
func (g *group) wait() error {
	<-g.ended
	g.mu.Lock()
	defer g.mu.Unlock()
	if late := slices.Sorted(maps.Keys(g.alive)); len(late) > 0 {
		return errors.Join(append(g.errs, fmt.Errorf("did not end in time: %s: %w", strings.Join(late, ", "), bulkhead.Unavailable))...)
	}
	for i := len(g.close) - 1; i >= 0; i-- {
		if err := g.close[i].fn(); err != nil {
			g.errs = append(g.errs, fmt.Errorf("close %s: %w", g.close[i].name, err))
		}
	}
	return errors.Join(g.errs...)
}
