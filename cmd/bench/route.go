package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/bulkhead-voip/bulkhead/route"
)

// routeDecide compares the time of a decision among many tenants with that
// among few. The bar is on the same 100 hot tenants in both; drawing over all
// tenants, where most look-ups miss the processor's caches, is reported beside it.
func routeDecide(ctx context.Context) ([]figure, error) {
	const few, many, decisions, runs = 100, 100_000, 200_000, 9
	small, large := route.New(state(few)), route.New(state(many))
	hot, cold := calls(few, 4096), calls(many, 1<<17)
	var nsSmall, nsLarge, nsAll []float64
	for range runs {
		for _, m := range []struct {
			into  *[]float64
			x     *route.Snapshot
			calls []route.Call
		}{{&nsSmall, small, hot}, {&nsLarge, large, hot}, {&nsAll, large, cold}} {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			ns, err := timeDecide(m.x, m.calls, decisions)
			if err != nil {
				return nil, err
			}
			*m.into = append(*m.into, ns)
		}
	}
	base, hotNS, allNS := median(nsSmall), median(nsLarge), median(nsAll)
	return []figure{
		{name: "route_decide", value: hotNS, unit: "ns", ratio: hotNS / base, bar: bar{"<=", 1.5}},
		{name: "route_decide_all", value: allNS, unit: "ns", ratio: allNS / base},
	}, nil
}

// calls draws n calls over the first tenants: by domain and source, by number
// and source, and between users.
func calls(tenants, n int) []route.Call {
	rnd := rand.New(rand.NewPCG(1, 2))
	out := make([]route.Call, n)
	for i := range out {
		t := rnd.IntN(tenants)
		c := route.Call{SBC: "sbc1", Source: tenantSource(t)}
		switch i % 3 {
		case 0:
			c.Domain, c.Number = tenantDomain(t), tenantNumber(t, 0)
		case 1:
			c.Domain, c.Number = "127.0.0.1", "+"+tenantNumber(t, 1)
		case 2:
			c.Domain, c.Number, c.User = tenantDomain(t), "102", "101"
		}
		out[i] = c
	}
	return out
}

func timeDecide(x *route.Snapshot, calls []route.Call, n int) (nsPerCall float64, err error) {
	start := time.Now()
	for i := range n {
		p := route.Decide(x, calls[i%len(calls)])
		if _, ok := p.Actions[0].(route.Dial); !ok {
			return 0, fmt.Errorf("call %+v was decided as %+v, not as a call to a user", calls[i%len(calls)], p.Actions[0])
		}
	}
	return float64(time.Since(start).Nanoseconds()) / float64(n), nil
}
