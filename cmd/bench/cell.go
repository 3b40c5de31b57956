package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/dispatcher"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// cell is a Kamailio in front of media nodes, each a process of its own. Its
// tenants are those of sbcTables: 0 of the standard pool, 1 of the other one.
type cell struct {
	*sbc

	live   *route.Live
	nodes  []*node
	groups []*testenv.CPUGroup // in which nodes are confined
}

// startCell starts one with so many nodes in the standard pool and in that of
// the dialers. With tell they tell how busy they are: they need a control group
// each, or what they tell is how busy this machine is.
func startCell(ctx context.Context, standard, dialers int, tell bool) (_ *cell, err error) {
	c := &cell{live: &route.Live{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	change := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1"}},
		SBCs:  []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: benchSBC}},
		Pools: []bulkhead.Pool{
			{ID: "standard", Cell: "c1", Profile: bulkhead.ProfileStandard, Placement: bulkhead.Spread},
			{ID: "dialers", Cell: "c1", Profile: bulkhead.ProfileHighVolume, Placement: bulkhead.Spread},
		},
		Tenants: []bulkhead.Tenant{sbcTenant(0), sbcTenant(1)},
	}
	change.Tenants[1].Profile = bulkhead.ProfileHighVolume
	for i := range standard + dialers {
		n := &node{nodeConfig: nodeConfig{ID: bulkhead.NodeID(fmt.Sprintf("fs%d", i+1))}}
		if n.SIP, err = freeUDP(); err != nil {
			return nil, err
		}
		if tell {
			if n.Load, err = freeTCP(); err != nil {
				return nil, err
			}
		}
		pool := bulkhead.PoolID("standard")
		if i >= standard {
			pool = "dialers"
		}
		change.Nodes = append(change.Nodes, bulkhead.Node{ID: n.ID, Pool: pool, SIP: n.SIP, Agent: n.Load})
		c.nodes = append(c.nodes, n)
		if err := n.start(); err != nil {
			return nil, err
		}
	}
	c.live.Store(route.New(bulkhead.State{}.Apply(&change)))
	tables, err := route.MakeTables(c.live.Load(), "sbc1")
	if err != nil {
		return nil, err
	}
	if c.sbc, err = startSBC(ctx, "", "", time.Second, kamailio.Memory(len(tables.Rows))); err != nil {
		return nil, err
	}
	return c, c.client.Apply(ctx, tables)
}

func (c *cell) stop() error {
	for _, n := range c.nodes {
		n.child.kill()
	}
	var errs []error
	for _, g := range c.groups {
		errs = append(errs, g.Remove())
	}
	if c.sbc != nil {
		errs = append(errs, c.sbc.stop())
	}
	return errors.Join(errs...)
}

// confine gives nodes so many CPUs together, in a control group, as if they
// were on a host of their own.
func (c *cell) confine(cpus float64, nodes ...*node) (*testenv.CPUGroup, error) {
	g, err := testenv.NewCPUGroup(cpus)
	if err != nil {
		return nil, fmt.Errorf("this needs root and the CPU controller of control groups: %w", err)
	}
	c.groups = append(c.groups, g)
	for _, n := range nodes {
		if err := g.Add(n.child.cmd.Process.Pid); err != nil {
			return nil, err
		}
		n.confined = true
	}
	return g, nil
}

// dispatch runs the dispatcher service of the SBC as it is shipped, and
// returns when all nodes take calls. One that is new bears no node a grudge.
// An agent looks every few seconds which group it is in; until then it tells
// the load of the whole machine.
func (c *cell) dispatch(ctx context.Context) (stop func(), err error) {
	log := slog.New(slog.DiscardHandler)
	watch, err := dispatcher.NewWatch(dispatcher.WatchConfig{SBC: "sbc1", Untaken: c.client}, c.live, dispatcher.UDPPinger{}, log, prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	cfg := dispatcher.DefaultConfig()
	cfg.SBC, cfg.States = "sbc1", watch
	keeper, err := dispatcher.New(cfg, c.live, c.client, log, prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = watch.Run(ctx) }) // both end with ctx, and without an error
	running.Go(func() { _ = keeper.Run(ctx) })
	stop = func() { cancel(); running.Wait() }
	err = until(ctx, 30*time.Second, func() error {
		if s := keeper.Status(); !s.Converged {
			return fmt.Errorf("the SBC does not hold the tables: %s", s.LastError)
		}
		for _, n := range watch.Nodes() {
			if n.Weight < 100 || n.OptionsSeconds == 0 || (n.Agent != "none" && n.Load == nil) {
				return fmt.Errorf("node %s takes no calls: %+v", n.Node, n)
			}
			if n.Load != nil && !n.Load.Group && slices.ContainsFunc(c.nodes, func(o *node) bool { return o.ID == n.Node && o.confined }) {
				return fmt.Errorf("node %s does not tell the load of its group yet", n.Node)
			}
		}
		return nil
	})
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// until waits until ok returns nil, and fails with what it last returned.
func until(ctx context.Context, within time.Duration, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", within, err)
		case <-tick.C:
		}
	}
}

// called is what a caller saw of a call.
type called struct {
	begun time.Time
	setup time.Duration // until it was answered
	err   error         // it was not
	node  string        // ip:port that answered
}

// cellCallers place calls for one tenant at a steady rate.
type cellCallers struct {
	phone  *siptest.Phone
	stop   context.CancelFunc
	placed sync.WaitGroup

	mu    sync.Mutex
	calls []called
	begun map[string]time.Time // by Call-ID
}

// begunBy returns when a call was begun.
func (k *cellCallers) begunBy(id string) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.begun[id]
}

// call places rate calls a second for a tenant until they are finished.
// Each is hung up at once.
func (c *cell) call(ctx context.Context, tenant, rate int, name string) (*cellCallers, error) {
	return placeCalls(ctx, c.addr, tenant, rate, name)
}

// newCaller makes what calls an SBC for a tenant.
func newCaller(addr string, tenant int) (*siptest.Phone, error) {
	return siptest.NewPhone(siptest.PhonesConfig{Listen: netip.AddrPortFrom(sbcSource(tenant), 0).String(), Proxy: addr},
		siptest.PhoneConfig{User: "4930987", Domain: "carrier.example"})
}

// placeCalls is call for the SBC at addr.
func placeCalls(ctx context.Context, addr string, tenant, rate int, name string) (*cellCallers, error) {
	phone, err := newCaller(addr, tenant)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	k := &cellCallers{phone: phone, stop: cancel, begun: map[string]time.Time{}}
	k.placed.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			k.placed.Go(func() { k.place("sip:4930123@"+tenantDomain(tenant), fmt.Sprintf("%s-%d", name, i)) })
		}
	})
	return k, nil
}

// place makes one call. It does not end with the context of call: a call that
// was begun is seen through.
func (k *cellCallers) place(target, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p := called{begun: time.Now()}
	k.mu.Lock()
	k.begun[id] = p.begun
	k.mu.Unlock()
	call, err := k.phone.Dial(ctx, target, siptest.DialOptions{CallID: id, Tone: -1})
	p.setup, p.err = time.Since(p.begun), err
	if err == nil {
		if addr, err := siptest.URIAddr(call.Dialog().Response().Contact().Address); err == nil {
			p.node = addr.String()
		}
	}
	k.mu.Lock()
	k.calls = append(k.calls, p)
	k.mu.Unlock()
	if err == nil {
		end, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = call.Hangup(end) // its node may be gone
	}
}

// soFar returns the calls that were answered or refused already.
func (k *cellCallers) soFar() []called {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls[:len(k.calls):len(k.calls)]
}

// finish places no more calls, waits for those that were begun, and returns all.
func (k *cellCallers) finish() ([]called, error) {
	k.stop()
	k.placed.Wait()
	return k.calls, k.phone.Close()
}

// failed counts the calls that were not answered.
func failed(calls []called) (n int) {
	for _, p := range calls {
		if p.err != nil {
			n++
		}
	}
	return n
}

func freeTCP() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close() //nolint:errcheck // nobody connected
	return l.Addr().String(), nil
}
