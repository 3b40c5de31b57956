package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/bulkhead-voip/bulkhead/route"
)

// lookupSource compares the time of a longest-prefix match among 200,000
// networks with that among 200, by addresses drawn from all of them.
// lookup_source_hot draws from the same 200 networks in both.
func lookupSource(ctx context.Context) ([]figure, error) {
	const few, many, lookups, runs = 100, 100_000, 500_000, 11
	small, large := route.New(fullState(few)), route.New(fullState(many))
	// As many addresses in both: to read them costs the same.
	hot, all := sources(few, 1<<17), sources(many, 1<<17)
	var nsSmall, nsHot, nsAll []float64
	for range runs {
		for _, m := range []struct {
			into  *[]float64
			x     *route.Snapshot
			addrs [][4]byte
		}{{&nsSmall, small, hot}, {&nsHot, large, hot}, {&nsAll, large, all}} {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			ns, err := timeLookup(m.x, m.addrs, lookups)
			if err != nil {
				return nil, err
			}
			*m.into = append(*m.into, ns)
		}
	}
	base, hotNS, allNS := median(nsSmall), median(nsHot), median(nsAll)
	return []figure{
		{name: "lookup_source", value: allNS, unit: "ns", ratio: allNS / base, bar: bar{"<=", 3.0}},
		{name: "lookup_source_hot", value: hotNS, unit: "ns", ratio: hotNS / base},
	}, nil
}

// sources draws n addresses in the networks of the first tenants, as a packet
// has them: as a netip.Addr each would take six times the place in the
// processor's caches, and push the index out.
func sources(tenants, n int) [][4]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	out := make([][4]byte, n)
	for i := range out {
		out[i] = fullSource(rnd.IntN(2*tenants), 32).Addr().As4()
	}
	return out
}

func timeLookup(x *route.Snapshot, addrs [][4]byte, n int) (ns float64, err error) {
	start := time.Now()
	for i := range n {
		if a := netip.AddrFrom4(addrs[i&(len(addrs)-1)]); x.TenantBySource(a) == nil {
			return 0, fmt.Errorf("nobody owns %s", a)
		}
	}
	return float64(time.Since(start).Nanoseconds()) / float64(n), nil
}
