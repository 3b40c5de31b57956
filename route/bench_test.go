package route_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// crowd is a state of n tenants in one cell; tenant i is the same in every n.
func crowd(n int) bulkhead.State {
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c", MaxTenants: 200000}},
		Pools: []bulkhead.Pool{{ID: "p0", Cell: "c", Profile: "standard"}, {ID: "p1", Cell: "c", Profile: "ai", Placement: bulkhead.Spread}},
		SBCs:  []bulkhead.SBC{{ID: "s", Cell: "c", SIP: "127.0.0.1:5060"}},
	}
	for i := range 8 {
		c.Nodes = append(c.Nodes, bulkhead.Node{ID: bulkhead.NodeID(fmt.Sprintf("n%d", i)), Pool: bulkhead.PoolID(fmt.Sprintf("p%d", i%2)), SIP: fmt.Sprintf("127.0.0.1:%d", 7000+i)})
	}
	for i := range n {
		id := fmt.Sprintf("tenant%d", i)
		k := bulkhead.Tenant{
			ID: bulkhead.TenantID(id), Cell: "c", Profile: []bulkhead.ProfileID{"standard", "ai"}[i%2], Domains: []string{id + ".example"},
			Sources: []netip.Prefix{source(i)},
			Trunks:  []bulkhead.Trunk{{Name: "t", Host: "192.0.2.1", Port: 5060}},
		}
		for u := range 3 {
			k.Users = append(k.Users, bulkhead.User{Extension: fmt.Sprint(1001 + u), HA1: ha1})
			k.Numbers = append(k.Numbers, bulkhead.Number{Number: fmt.Sprintf("49%06d%d", i, u), User: fmt.Sprint(1001 + u)})
		}
		c.Tenants = append(c.Tenants, k)
	}
	return bulkhead.State{}.Apply(&c)
}

// source is the network of tenant i: each in a /24 of its own, of six lengths.
func source(i int) netip.Prefix {
	a := netip.AddrFrom4([4]byte{byte(10 + i>>16), byte(i >> 8), byte(i), 0})
	return netip.PrefixFrom(a, []int{24, 25, 27, 28, 30, 32}[i%6])
}

// calls are calls of every sort to the first n tenants.
func calls(n int) []route.Call {
	var out []route.Call
	for i := range n {
		id := fmt.Sprintf("tenant%d", i)
		from, number := source(i).Addr(), fmt.Sprintf("49%06d1", i)
		out = append(out,
			route.Call{SBC: "s", Domain: id + ".example", Source: from, Number: "+" + number},
			route.Call{SBC: "s", Domain: "127.0.0.1", Source: from, Number: number},
			route.Call{SBC: "s", Tenant: bulkhead.TenantID(id), Number: "1002", User: "1001"},
			route.Call{SBC: "s", Tenant: bulkhead.TenantID(id), Number: "4420712345", User: "1001"},
		)
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// BenchmarkDecide draws its calls from the same 100 tenants, however many
// there are, or from all.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{100, 100000} {
		x := route.New(crowd(n))
		for name, drawn := range map[string]int{"hot": 100, "all": n} {
			if name == "all" && n == 100 {
				continue
			}
			b.Run(fmt.Sprintf("tenants=%d/drawn=%s", n, name), func(b *testing.B) {
				c := calls(drawn)
				for i := 0; b.Loop(); i++ {
					if p := route.Decide(x, c[i%len(c)]); p.Tenant == "" {
						b.Fatalf("%+v is refused: %+v", c[i%len(c)], p)
					}
				}
			})
		}
	}
}

// BenchmarkDecideNumbers: one tenant with ever more numbers.
func BenchmarkDecideNumbers(b *testing.B) {
	for _, n := range []int{1, 10000} {
		s := crowd(1)
		k := *s.Tenants["tenant0"]
		k.Numbers = nil
		for i := range n {
			k.Numbers = append(k.Numbers, bulkhead.Number{Number: fmt.Sprintf("4930%08d", i), User: "1001"})
		}
		x := route.New(s.Apply(&bulkhead.Change{Tenants: []bulkhead.Tenant{k}}))
		c := route.Call{SBC: "s", Tenant: "tenant0", Number: k.Numbers[n-1].Number}
		b.Run(fmt.Sprintf("numbers=%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, ok := route.Decide(x, c).Actions[0].(route.Dial); !ok {
					b.Fatal("the number is unknown")
				}
			}
		})
	}
}

func BenchmarkMakeTables(b *testing.B) {
	x := route.New(crowd(10000))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := route.MakeTables(x, "s"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	s := crowd(10000)
	b.ReportAllocs()
	for b.Loop() {
		route.New(s)
	}
}
