package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead/internal/testenv"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

const (
	profileRuns   = 9 // of each kind
	profileRate   = 100
	profileRun    = 2000 * time.Millisecond
	profileTalks  = 4 // calls that last as long as a run, whose RTP is metered
	stormRate     = 60
	stormCPUs     = 0.2 // of the pool that the storm is in
	callerCPUs    = 0.3 // of those who call it
	standardCPUs  = 0.6
	profileSettle = 700 * time.Millisecond
	// overloaded is in which part of the time a pool must want more CPU than it
	// has to be overloaded.
	overloaded = 0.5
)

// profilesApart compares how long the set-up of the standard pool's calls takes
// with and without a storm in the high_volume pool, and how its RTP jitters.
//
// Both pools have a control group of their own, as nodes have hosts, and share
// one SBC. The high_volume pool is overloaded by calls and by whatever else its
// hosts do: its CPUs are used up, which the kernel counts as periods in which
// the group was throttled, and the bench fails if those are too few. Its nodes
// and those who call it run in processes and groups of the least weight: on
// hosts of their own they would take no CPU from the standard pool, nor from
// this process, which measures, and they must not do so here. What is left to
// compare is what they do share: the SBC, and the dispatcher beside it.
//
// Jitter is of when packets arrive, by the kernel: of when nodes send them. It
// has no bar, because a node's clock waits for the cores that it does share here.
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
	callers, err := c.confine(callerCPUs)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(high.Yield(), callers.Yield()); err != nil {
		return nil, err
	}
	stop, err := c.dispatch(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	var with, without, jitter, calm, hot, storm []float64
	placed, lost := 0, 0
	for i := range profileRuns + 1 {
		y, err := c.setups(ctx, fmt.Sprintf("calm-%d", i))
		if err != nil {
			return nil, err
		}
		x, s, throttled, err := c.besideStorm(ctx, high, callers, fmt.Sprintf("storm-%d", i))
		if err != nil {
			return nil, err
		}
		if i == 0 { // the first pair warms up
			continue
		}
		with, without = append(with, x.p99), append(without, y.p99)
		jitter, calm = append(jitter, x.jitter), append(calm, y.jitter)
		hot, storm = append(hot, throttled), append(storm, s.SetupP99)
		placed, lost = placed+s.Placed, lost+s.Failed
	}
	x, y := median(with), median(without)
	jx, jy := median(jitter), median(calm)
	if median(hot) < overloaded {
		return nil, fmt.Errorf("the high_volume pool was throttled in %.0f %% of the time only: that is no overload", median(hot)*100)
	}
	if want := int(stormRate * profileRuns * (profileSettle + profileRun).Seconds()); placed < want*2/3 {
		return nil, fmt.Errorf("the storm had %d calls, and not the %d that its rate makes: too little for the SBC to be in one", placed, want)
	}
	return []figure{
		{name: "profiles_apart", value: x, unit: "ms_setup_p99", ratio: x / y, bar: bar{"<=", 1.25}},
		{name: "profiles_apart_calm", value: y, unit: "ms_setup_p99"},
		{name: "profiles_apart_jitter", value: jx, unit: "us_rtp_jitter", ratio: jx / jy},
		{name: "profiles_apart_jitter_calm", value: jy, unit: "us_rtp_jitter"},
		{name: "profiles_apart_storm", value: median(storm), unit: "ms_setup_p99"},
		{name: "profiles_apart_storm_failed", value: float64(lost), unit: fmt.Sprintf("of_%d_calls", placed)},
		{name: "profiles_apart_throttled", value: median(hot) * 100, unit: "percent_of_periods"},
	}, nil
}

// heard is how calls to the standard pool fared.
type heard struct {
	p99    float64 // milliseconds until they were answered
	jitter float64 // microseconds, the median of the calls that lasted
}

// setups places calls to the standard pool for profileRun.
func (c *cell) setups(ctx context.Context, name string) (_ heard, err error) {
	talker, err := newCaller(c.addr, 0)
	if err != nil {
		return heard{}, err
	}
	defer func() { err = errors.Join(err, talker.Close()) }()
	var talks []*siptest.Call
	for i := range profileTalks {
		talk, err := talker.Dial(ctx, "sip:4930123@"+tenantDomain(0), siptest.DialOptions{CallID: fmt.Sprintf("%s-talk-%d", name, i)})
		if err != nil {
			return heard{}, err
		}
		talks = append(talks, talk)
	}
	k, err := c.call(ctx, 0, profileRate, name)
	if err != nil {
		return heard{}, err
	}
	rest := time.NewTimer(profileRun)
	defer rest.Stop()
	select {
	case <-ctx.Done():
	case <-rest.C:
	}
	calls, err := k.finish()
	if err != nil {
		return heard{}, err
	}
	var jitter []float64
	for _, talk := range talks {
		s := talk.Stats()
		if s.Received < int64(profileRun/(40*time.Millisecond)) { // half of what is sent
			return heard{}, fmt.Errorf("a call to the standard pool heard %d RTP packets", s.Received)
		}
		jitter = append(jitter, float64(s.Jitter.Microseconds()))
		if err := talk.Hangup(ctx); err != nil {
			return heard{}, err
		}
	}
	if n := failed(calls); n > 0 {
		return heard{}, fmt.Errorf("%d of %d calls to the standard pool failed", n, len(calls))
	}
	return heard{p99: p99(setupTimes(calls)), jitter: median(jitter)}, ctx.Err()
}

// besideStorm is setups while the other pool is overloaded, how its own calls
// fare, and in which part of the time it wanted more CPU than it has.
func (c *cell) besideStorm(ctx context.Context, high, callers *testenv.CPUGroup, name string) (h heard, seen stormSeen, throttled float64, err error) {
	end, err := burn(high)
	if err != nil {
		return heard{}, stormSeen{}, 0, err
	}
	defer end()
	s, err := startStorm(stormConfig{SBC: c.addr, Tenant: 1, Rate: stormRate, Name: name + "-high"}, callers)
	if err != nil {
		return heard{}, stormSeen{}, 0, err
	}
	defer s.child.kill()
	rest := time.NewTimer(profileSettle)
	defer rest.Stop()
	<-rest.C
	all, hot, err := high.Periods()
	if err != nil {
		return heard{}, stormSeen{}, 0, err
	}
	if h, err = c.setups(ctx, name); err != nil {
		return heard{}, stormSeen{}, 0, err
	}
	allThen, hotThen, err := high.Periods()
	if err != nil {
		return heard{}, stormSeen{}, 0, err
	}
	seen, err = s.end()
	return h, seen, float64(hotThen-hot) / float64(max(1, allThen-all)), err
}

// setupTimes returns how long each call took until it was answered, in milliseconds.
func setupTimes(calls []called) []float64 {
	var ms []float64
	for _, p := range calls {
		ms = append(ms, p.setup.Seconds()*1000)
	}
	return ms
}
