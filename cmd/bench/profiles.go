package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

const (
	profileRuns   = 9 // of each kind
	profileRate   = 60
	profileRun    = 2500 * time.Millisecond
	stormRate     = 60
	stormCPUs     = 0.2 // of the pool that the storm is in
	standardCPUs  = 0.6
	profileSettle = 700 * time.Millisecond
)

// profilesApart compares how long the set-up of the standard pool's calls takes
// with and without a storm in the high_volume pool, whose CPU is used up. Both
// pools have a control group of their own, as nodes have hosts, and one SBC.
func profilesApart(ctx context.Context) (_ []figure, err error) {
	c, err := startCell(ctx, 2, 2, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	if _, err := c.confine(standardCPUs, c.nodes[:2]...); err != nil {
		return nil, err
	}
	high, err := c.confine(stormCPUs, c.nodes[2:]...)
	if err != nil {
		return nil, err
	}
	stop, err := c.dispatch(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	var with, without, storm []float64
	for i := range profileRuns + 1 {
		y, err := c.setups(ctx, fmt.Sprintf("calm-%d", i))
		if err != nil {
			return nil, err
		}
		x, s, err := c.besideStorm(ctx, high, fmt.Sprintf("storm-%d", i))
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first pair warms up
			with, without, storm = append(with, x), append(without, y), append(storm, s)
		}
	}
	x, y := median(with), median(without)
	return []figure{
		{name: "profiles_apart", value: x, unit: "ms_setup_p99", ratio: x / y, bar: bar{"<=", 1.25}},
		{name: "profiles_apart_calm", value: y, unit: "ms_setup_p99"},
		{name: "profiles_apart_storm", value: median(storm), unit: "ms_setup_p99"},
	}, nil
}

// setups returns the 99th percentile, in milliseconds, of the time until a call
// to the standard pool is answered.
func (c *cell) setups(ctx context.Context, name string) (float64, error) {
	k, err := c.call(ctx, 0, profileRate, name)
	if err != nil {
		return 0, err
	}
	rest := time.NewTimer(profileRun)
	defer rest.Stop()
	select {
	case <-ctx.Done():
	case <-rest.C:
	}
	calls, err := k.finish()
	if err != nil {
		return 0, err
	}
	if n := failed(calls); n > 0 {
		return 0, fmt.Errorf("%d of %d calls to the standard pool failed", n, len(calls))
	}
	return p99(setupTimes(calls)), ctx.Err()
}

// besideStorm is setups while the other pool is overloaded by calls and by
// whatever else its hosts do, and how its own calls fare.
func (c *cell) besideStorm(ctx context.Context, group *testenv.CPUGroup, name string) (setup, storm float64, err error) {
	end, err := burn(group)
	if err != nil {
		return 0, 0, err
	}
	defer end()
	k, err := c.call(ctx, 1, stormRate, name+"-high")
	if err != nil {
		return 0, 0, err
	}
	rest := time.NewTimer(profileSettle)
	defer rest.Stop()
	<-rest.C
	setup, err = c.setups(ctx, name)
	calls, e := k.finish()
	return setup, p99(setupTimes(calls)), errors.Join(err, e)
}

// setupTimes returns how long each call took until it was answered, in milliseconds.
func setupTimes(calls []called) []float64 {
	var ms []float64
	for _, p := range calls {
		ms = append(ms, p.setup.Seconds()*1000)
	}
	return ms
}
