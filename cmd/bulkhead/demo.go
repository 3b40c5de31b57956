package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// The demo's traffic: a few calls a second, each some seconds long.
const (
	demoCallsPerSecond = 4
	demoMinTalk        = 2 * time.Second
	demoMaxTalk        = 6 * time.Second
	demoAnswerWithin   = 10 * time.Second
	demoMaxCalls       = 100 // at once; more are not started
	demoWarnAfter      = 25  // attempts to register
)

// demo plays the outside world for the tenants of a state: their phones, the
// carrier that brings calls to their numbers, and the one that takes theirs.
type demo struct {
	sbc     string // ip:port
	log     *slog.Logger
	media   *siptest.MediaEngine
	groups  []*siptest.Phones
	tenants []*demoTenant
	calls   sync.WaitGroup
	running atomic.Int64
	placed  atomic.Int64
	failed  atomic.Int64
}

type demoTenant struct {
	*bulkhead.Tenant
	carrier *siptest.Phone // calls from the tenant's source network; nil where that cannot be bound
	phones  []*siptest.Phone

	registered atomic.Bool
}

// newDemo binds the sockets of everybody outside. trunk is where the tenants'
// trunks lead, or empty.
func newDemo(s bulkhead.State, sbc, trunk string, log *slog.Logger) (_ *demo, err error) {
	d := &demo{sbc: sbc, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.media, err = siptest.NewMediaEngine(siptest.MediaConfig{IP: "127.0.0.1", Logger: log}); err != nil {
		return nil, fmt.Errorf("demo media: %w", err)
	}
	if trunk != "" {
		far, err := d.group(siptest.PhonesConfig{Listen: trunk})
		if err != nil {
			return nil, fmt.Errorf("demo carrier: %w", err)
		}
		if _, err := far.Add(siptest.PhoneConfig{User: "*", Domain: "carrier.example", OnInvite: answerSoon}); err != nil {
			return nil, fmt.Errorf("demo carrier: %w", err)
		}
	}
	phones, err := d.group(siptest.PhonesConfig{Proxy: sbc})
	if err != nil {
		return nil, fmt.Errorf("demo phones: %w", err)
	}
	for _, id := range slices.Sorted(maps.Keys(s.Tenants)) {
		t := &demoTenant{Tenant: s.Tenants[id]}
		for _, u := range t.Users {
			p, err := phones.Add(siptest.PhoneConfig{User: u.Extension, Domain: t.Realm(), Name: u.Name, HA1: u.HA1, OnInvite: answerSoon})
			if err != nil {
				return nil, fmt.Errorf("demo phone %s@%s: %w", u.Extension, t.Realm(), err)
			}
			t.phones = append(t.phones, p)
		}
		t.carrier = d.carrierOf(t.Tenant)
		d.tenants = append(d.tenants, t)
	}
	return d, nil
}

// carrierOf makes a caller inside the tenant's source network. Only Linux
// answers on all of 127.0.0.0/8; elsewhere there are no such calls.
func (d *demo) carrierOf(t *bulkhead.Tenant) *siptest.Phone {
	for _, n := range t.Sources {
		a := n.Addr()
		if n.Bits() < a.BitLen() {
			a = a.Next()
		}
		if !a.IsLoopback() {
			continue
		}
		g, err := d.group(siptest.PhonesConfig{Listen: netip.AddrPortFrom(a, 0).String(), Proxy: d.sbc})
		if err != nil {
			d.log.Warn("demo: no inbound calls for a tenant", "tenant", t.ID, "source", n.String(), "error", err)
			continue
		}
		p, err := g.Add(siptest.PhoneConfig{User: "15550100", Domain: "carrier.example"})
		if err == nil {
			return p
		}
	}
	return nil
}

func (d *demo) group(cfg siptest.PhonesConfig) (*siptest.Phones, error) {
	cfg.Media, cfg.Logger = d.media, d.log
	g, err := siptest.NewPhones(cfg)
	if err != nil {
		return nil, err
	}
	d.groups = append(d.groups, g)
	return g, nil
}

// answerSoon is how every phone of the demo behaves: one in ten is busy.
func answerSoon(*siptest.Incoming) siptest.Behaviour {
	if rand.IntN(10) == 0 {
		return siptest.Behaviour{Code: 486}
	}
	return siptest.Behaviour{Delay: time.Duration(100+rand.IntN(900)) * time.Millisecond}
}

// Run registers the phones and places calls until ctx ends. A tenant takes
// part when its phones are registered.
func (d *demo) Run(ctx context.Context) (err error) {
	defer func() {
		d.calls.Wait()
		err = errors.Join(err, d.close())
	}()
	for _, t := range d.tenants {
		d.calls.Go(func() { d.register(ctx, t) })
	}
	tick := time.NewTicker(time.Second / demoCallsPerSecond)
	defer tick.Stop()
	for n := 0; len(d.tenants) > 0; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		t := d.tenants[n%len(d.tenants)] // every tenant has its turn
		if d.running.Load() >= demoMaxCalls || !t.registered.Load() {
			continue
		}
		d.running.Add(1)
		d.calls.Go(func() {
			defer d.running.Add(-1)
			d.call(ctx, t)
		})
	}
	<-ctx.Done()
	return nil
}

// register tries until the SBC knows the tenant; its tables may still be on
// their way.
func (d *demo) register(ctx context.Context, t *demoTenant) {
	for _, p := range t.phones {
		for try := 1; ; try++ {
			err := p.Register(ctx)
			if err == nil {
				break
			}
			if try == demoWarnAfter {
				d.log.Warn("demo: no calls of a tenant, its phone cannot register", "tenant", t.ID, "user", p.User(), "error", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	t.registered.Store(true)
}

// call places one call of a tenant, of a kind drawn at random.
func (d *demo) call(ctx context.Context, t *demoTenant) {
	caller, target := d.draw(t)
	if caller == nil {
		return
	}
	d.placed.Add(1)
	dial, cancel := context.WithTimeout(ctx, demoAnswerWithin)
	defer cancel()
	call, err := caller.Dial(dial, target, siptest.DialOptions{})
	if err != nil {
		d.failed.Add(1)
		d.log.Debug("demo: call refused", "tenant", t.ID, "target", target, "error", err)
		return
	}
	talk := demoMinTalk + rand.N(demoMaxTalk-demoMinTalk)
	select {
	case <-ctx.Done():
	case <-call.Done():
		return
	case <-time.After(talk):
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := call.Hangup(bye); err != nil {
		d.log.Debug("demo: hang up", "error", err)
	}
}

// draw chooses who calls what.
func (d *demo) draw(t *demoTenant) (caller *siptest.Phone, target string) {
	user := func() *siptest.Phone {
		if len(t.phones) == 0 {
			return nil
		}
		return t.phones[rand.IntN(len(t.phones))]
	}
	switch n := rand.IntN(100); {
	case n < 45 && t.carrier != nil && len(t.Numbers) > 0:
		return t.carrier, "+" + t.Numbers[rand.IntN(len(t.Numbers))].Number + "@" + t.Realm()
	case n < 50 && t.carrier != nil:
		return t.carrier, "999999" + strconv.Itoa(rand.IntN(10)) + "@" + t.Realm() // nobody's number
	case n < 75 && len(t.Trunks) > 0:
		return user(), "+441632960" + strconv.Itoa(100+rand.IntN(900)) // in a range kept for drama
	}
	from, to := user(), user()
	if from == nil {
		return nil, ""
	}
	return from, to.User()
}

func (d *demo) close() error {
	var errs []error
	for _, g := range d.groups {
		errs = append(errs, g.Close())
	}
	if d.media != nil {
		errs = append(errs, d.media.Close())
	}
	return errors.Join(errs...)
}
