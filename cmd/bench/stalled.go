package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
	"github.com/bulkhead-voip/bulkhead/route"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

const (
	stalledRuns    = 9
	stalledRate    = 80 // calls a second, of two legs each: with their ends 480 events
	stalledRun     = 1800 * time.Millisecond
	stalledTenants = 1000
)

// setupStalled compares how long callers wait for the answer while Redis and
// ClickHouse are stopped with how long they wait while both are well: phone,
// media node, configsvc, media node, phone, with the node's events going
// through the whole pipeline. What waited has arrived before the next calls.
func setupStalled(ctx context.Context) ([]figure, error) {
	dir, err := os.MkdirTemp(".", ".bench-stalled")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	s, err := startStores(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer s.close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	c, err := startCalls(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { stop(); c.end() }()
	source, err := freeswitch.NewSource(freeswitch.SourceConfig{
		Node: benchNode, Cell: "c1", ESL: freeswitch.Config{Addr: c.node.ESLAddr(), Password: benchToken}, KeepRaw: true,
	}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, err
	}
	p, err := startPipeline(ctx, s, dir, "stalled", newTally(), source)
	if err != nil {
		return nil, err
	}
	var healthy, stalled []float64
	for run := range stalledRuns + 1 {
		a, err := c.measure(ctx, p)
		if err != nil {
			return nil, errors.Join(err, p.end())
		}
		if err := s.signal(syscall.SIGSTOP); err != nil {
			return nil, errors.Join(err, p.end())
		}
		b, err := c.setups(ctx)
		err = errors.Join(err, s.signal(syscall.SIGCONT))
		if err == nil {
			err = c.arrived(ctx, p)
		}
		if err != nil {
			return nil, errors.Join(err, p.end())
		}
		if run > 0 { // the first pair warms up
			healthy, stalled = append(healthy, percentile(a, 99)), append(stalled, percentile(b, 99))
		}
	}
	h, st := median(healthy), median(stalled)
	return []figure{
		{name: "setup_stalled", value: st * 1e3, unit: "ms", ratio: st / h, bar: bar{"<=", 1.10}},
		{name: "setup_healthy", value: h * 1e3, unit: "ms"},
	}, p.end()
}

// callers are phones on both sides of a media node, which stand for the SBC too.
type callers struct {
	node   *freeswitchtest.Node
	ran    chan error // of the node
	phones *siptest.Phones
	caller *siptest.Phone
	legs   int // that were made
}

// startCalls starts a node that asks a configsvc for every call.
func startCalls(ctx context.Context) (_ *callers, err error) {
	live := &route.Live{}
	dialects, err := startConfigsvc(ctx, live)
	if err != nil {
		return nil, err
	}
	c := &callers{ran: make(chan error, 1)}
	c.node, err = freeswitchtest.New(freeswitchtest.Config{
		ID: benchNode, ESLPassword: benchToken, MaxSessions: 10_000, MaxSessionsPerSecond: 10_000, Context: "bulkhead",
		XMLURLs: []string{"http://" + dialects + "/freeswitch/xml"}, XMLUser: benchNode, XMLPassword: benchToken, XMLTimeout: 5 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	go func() { c.ran <- c.node.Run(ctx) }()
	if c.phones, err = siptest.NewPhones(siptest.PhonesConfig{Listen: "127.0.0.1:0"}); err != nil {
		return nil, err
	}
	domain, _, err := net.SplitHostPort(c.node.Addr().String())
	if err != nil {
		return nil, err
	}
	if c.caller, err = c.phones.Add(siptest.PhoneConfig{User: "*", Domain: domain}); err != nil {
		return nil, err
	}
	x := state(stalledTenants)
	x = x.Apply(&bulkhead.Change{SBCs: []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: c.phones.Addr().String()}}})
	live.Store(route.New(x))
	return c, nil
}

// end closes the phones, and waits for the node, whose context has ended.
func (c *callers) end() {
	_ = c.phones.Close()
	<-c.ran
}

// setups places calls at their rate and returns how long each waited for its
// answer.
func (c *callers) setups(ctx context.Context) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	total := int(stalledRate * stalledRun.Seconds())
	took, errs := make([]time.Duration, total), make([]error, total)
	tick := time.NewTicker(time.Second / stalledRate)
	defer tick.Stop()
	var calls sync.WaitGroup
	for i := range total {
		<-tick.C
		calls.Go(func() { took[i], errs[i] = c.call(ctx, i%stalledTenants, c.node.Addr()) })
	}
	calls.Wait()
	c.legs += 2 * total
	return took, errors.Join(errs...)
}

func (c *callers) call(ctx context.Context, tenant int, node netip.AddrPort) (time.Duration, error) {
	start := time.Now()
	call, err := c.caller.Dial(ctx, fmt.Sprintf("sip:%s@%s", tenantNumber(tenant, 0), node), siptest.DialOptions{Tone: -1, Headers: []sip.Header{
		sip.NewHeader("X-Bulkhead-Tenant", string(tenantName(tenant))), sip.NewHeader("X-Bulkhead-SBC", "sbc1"), sip.NewHeader("X-Bulkhead-Revision", "1"),
	}})
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	return took, call.Hangup(ctx)
}

// measure is setups, and waits until the records of all calls are stored.
func (c *callers) measure(ctx context.Context, p *pipeline) ([]time.Duration, error) {
	took, err := c.setups(ctx)
	if err != nil {
		return nil, err
	}
	return took, c.arrived(ctx, p)
}

func (c *callers) arrived(ctx context.Context, p *pipeline) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := p.stored.wait(ctx, c.legs); err != nil {
		return fmt.Errorf("wait for the records of the calls: %w", err)
	}
	return nil
}
