package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

const (
	overloadRuns = 10
	overloadRate = 20
	overloadCPUs = 0.3 // of each node
)

// overloadMoved burns a node's CPU, in a control group of its own, and times
// the last new call that still goes there.
func overloadMoved(ctx context.Context) (_ []figure, err error) {
	c, err := startCell(ctx, 2, 0, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	group, err := c.confine(overloadCPUs, c.nodes[0])
	if err != nil {
		return nil, err
	}
	if _, err := c.confine(overloadCPUs, c.nodes[1]); err != nil {
		return nil, err
	}
	var seconds []float64
	placed, lost := 0, 0
	for i := range overloadRuns {
		last, calls, err := c.overload(ctx, group, fmt.Sprintf("overload-%d", i))
		if err != nil {
			return nil, fmt.Errorf("run %d: %w", i, err)
		}
		seconds = append(seconds, last.Seconds())
		placed += len(calls)
		lost += failed(calls)
	}
	return []figure{
		{name: "overload_moved_p50", value: median(seconds), unit: "s"},
		{name: "overload_moved_p99", value: p99(seconds), unit: "s"},
		{name: "overload_moved_failed", value: float64(lost), unit: fmt.Sprintf("of_%d_calls", placed)},
	}, nil
}

// overload burns the CPU of the first node's group, and returns when, after
// that, the last call that it answered was begun, and all calls of the run.
func (c *cell) overload(ctx context.Context, group *testenv.CPUGroup, name string) (last time.Duration, calls []called, err error) {
	stop, err := c.dispatch(ctx)
	if err != nil {
		return 0, nil, err
	}
	defer stop()
	k, err := c.call(ctx, 0, overloadRate, name)
	if err != nil {
		return 0, nil, err
	}
	defer func() {
		var e error
		calls, e = k.finish()
		err = errors.Join(err, e)
	}()
	victim := c.nodes[0].SIP
	if err := until(ctx, 10*time.Second, func() error { return k.answeredBy(victim, 5) }); err != nil {
		return 0, nil, err
	}
	spike := time.Now()
	end, err := burn(group)
	if err != nil {
		return 0, nil, err
	}
	defer end()
	err = until(ctx, 30*time.Second, func() error {
		for _, p := range k.soFar() {
			if p.node == victim {
				last = max(last, p.begun.Sub(spike))
			}
		}
		if quiet := time.Since(spike) - last; quiet < lossQuiet {
			return fmt.Errorf("the node was sent a call %s ago", quiet)
		}
		return nil
	})
	return last, nil, err
}

// burn uses up the CPU of a control group until the returned function is
// called.
func burn(group *testenv.CPUGroup) (stop func(), err error) {
	var burning []*child
	stop = func() {
		for _, b := range burning {
			b.kill()
		}
	}
	for range 2 {
		b, err := startChild(exec.Command("sh", "-c", "read go; while :; do :; done"))
		if err != nil {
			stop()
			return nil, err
		}
		burning = append(burning, b)
		err = group.Add(b.cmd.Process.Pid)
		if err == nil {
			_, err = fmt.Fprintln(b.in) // not before it is in the group
		}
		if err != nil {
			stop()
			return nil, err
		}
	}
	return stop, nil
}
