package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
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
	ended    chan struct{} // every stage was told to end, and has

	mu    sync.Mutex
	up    bool // every service that there will be was started
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

func newGroup(ctx context.Context) *group {
	g := &group{ended: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancel(ctx)
	var cancels [stages]context.CancelFunc
	for s := range stages {
		g.contexts[s], cancels[s] = context.WithCancel(context.WithoutCancel(ctx))
	}
	go func() {
		defer close(g.ended)
		<-g.ctx.Done()
		for s := range stages {
			cancels[s]()
			g.running[s].Wait()
		}
	}()
	return g
}

// run starts a service. When it fails, everything ends.
func (g *group) run(s stage, name string, fn func(context.Context) error) {
	g.running[s].Go(func() {
		if err := fn(g.contexts[s]); err != nil && !errors.Is(err, context.Canceled) {
			g.fail(fmt.Errorf("%s: %w", name, err))
		}
	})
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

// wait returns when every service has ended and everything is closed.
func (g *group) wait() error {
	<-g.ended
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := len(g.close) - 1; i >= 0; i-- {
		if err := g.close[i].fn(); err != nil {
			g.errs = append(g.errs, fmt.Errorf("close %s: %w", g.close[i].name, err))
		}
	}
	return errors.Join(g.errs...)
}
