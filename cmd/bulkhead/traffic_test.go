package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// placed is one line of the test's own ledger: what a caller saw.
type placed struct {
	callID   string
	tenant   int
	begun    time.Time
	answered time.Time // zero: refused
	ended    time.Time
	status   int    // final status; 0: no answer at all
	node     string // ip:port of the node that answered
	err      error
}

// traffic places calls to the tenants' numbers, from addresses of their own
// source networks, until it is stopped. It keeps the ledger.
type traffic struct {
	t        *testing.T
	carriers []*siptest.Phone
	talk     time.Duration

	mu     sync.Mutex
	ledger []placed
	wg     sync.WaitGroup
	stop   context.CancelFunc
}

// newTraffic binds a carrier for each of the first tenants.
func (c *testCell) newTraffic(tenants int, talk time.Duration) *traffic {
	c.t.Helper()
	tr := &traffic{t: c.t, talk: talk}
	for i := range tenants {
		tr.carriers = append(tr.carriers, c.carrier(sourceOf(i)))
	}
	return tr
}

// carrier makes a caller at an address.
func (c *testCell) carrier(source string) *siptest.Phone {
	c.t.Helper()
	p, err := siptest.NewPhone(siptest.PhonesConfig{Listen: source + ":0", Proxy: c.sip}, siptest.PhoneConfig{User: "15550100", Domain: "carrier.example"})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { p.Close() })
	return p
}

// start places rate calls a second, round the tenants.
func (tr *traffic) start(rate int) {
	ctx, cancel := context.WithCancel(tr.t.Context())
	tr.stop = cancel
	tr.wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			tenant := n % len(tr.carriers)
			tr.wg.Go(func() { tr.add(tr.place(tenant, fmt.Sprintf("%s-%d", tr.t.Name(), n))) })
		}
	})
}

// finish stops placing, lets the running calls end and returns the ledger.
func (tr *traffic) finish() []placed {
	tr.stop()
	tr.wg.Wait()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.ledger
}

func (tr *traffic) add(p placed) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.ledger = append(tr.ledger, p)
}

// count returns how many calls were answered, and how many were not, so far.
func (tr *traffic) count() (answered, refused int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, p := range tr.ledger {
		if p.answered.IsZero() {
			refused++
		} else {
			answered++
		}
	}
	return answered, refused
}

func (tr *traffic) place(tenant int, callID string) placed {
	return place(tr.carriers[tenant], tenant, "+"+numberOf(tenant)+"@"+domainOf(tenant), callID, tr.talk)
}

// place makes one call. It does not end with the test's context: a call that
// was begun is hung up.
func place(from *siptest.Phone, tenant int, target, callID string, talk time.Duration) placed {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	p := placed{callID: callID, tenant: tenant, begun: time.Now()}
	call, err := from.Dial(ctx, target, siptest.DialOptions{CallID: callID})
	if err != nil {
		p.ended, p.err = time.Now(), err
		if status := (*siptest.StatusError)(nil); errors.As(err, &status) {
			p.status = status.Code
		}
		return p
	}
	p.answered, p.status, p.node = time.Now(), 200, nodeOf(call)
	select {
	case <-call.Done():
		p.err = errors.New("the far end hung up")
	case <-time.After(talk):
		p.err = call.Hangup(ctx)
	}
	p.ended = time.Now()
	return p
}

// nodeOf returns the ip:port of the node that answered a call.
func nodeOf(call *siptest.Call) string {
	addr, err := siptest.URIAddr(call.Dialog().Response().Contact().Address)
	if err != nil {
		return err.Error()
	}
	return addr.String()
}
