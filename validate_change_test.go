package bulkhead

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// drawClaim draws a change of few names, so that they collide often.
func drawClaim(t *rapid.T) Change {
	var c Change
	cell := rapid.SampledFrom([]CellID{"cell1", "cell1", "cell1", "cell2"})
	profile := rapid.SampledFrom([]ProfileID{ProfileStandard, ProfileStandard, ProfileHighVolume, ProfileAI})
	name := rapid.SampledFrom([]string{"a.example", "b.example", "c.example", "d.example", "e.example", "127.0.0.1", "sbc.example", "Bad Name"})
	source := rapid.SampledFrom(nets("10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "10.1.2.0/24", "192.0.2.0/24", "192.0.2.128/25",
		"2001:db8::/32", "2001:db8:1::/48", "2001:db8:1:1::/64", "2001:db8:2::/48", "2001:db8:1:1::1/128"))
	rare := func(what string) bool { return rapid.IntRange(0, 7).Draw(t, what) == 0 }
	for range rapid.IntRange(0, 3).Draw(t, "tenants") {
		n := TenantID(rapid.SampledFrom([]string{"t1", "t2", "t3", "t4", "t5"}).Draw(t, "tenant"))
		tn := Tenant{ID: n, Cell: cell.Draw(t, "cell"), Profile: profile.Draw(t, "profile")}
		tn.Domains = rapid.SliceOfN(name, 0, 2).Draw(t, "domains")
		tn.Domains = append(tn.Domains, string(n)+".example")
		tn.Sources = rapid.SliceOfN(source, 0, 2).Draw(t, "sources")
		if rare("odd source") {
			tn.Sources = append(tn.Sources, netip.Prefix{}, netip.PrefixFrom(netip.MustParseAddr("10.1.1.9"), 24))
		}
		tn.Users = []User{{Extension: "1", HA1: someHA1}}
		if rare("registers") {
			tn.Trunks = []Trunk{{Name: "k", Host: "k.example", Port: 5060, Username: "u", Password: "p", Register: true}}
		}
		for range rapid.IntRange(0, 2).Draw(t, "numbers") {
			tn.Numbers = append(tn.Numbers, Number{Number: fmt.Sprint(rapid.IntRange(490, 494).Draw(t, "number")), User: "1"})
		}
		c.Tenants = append(c.Tenants, tn)
	}
	for range rapid.IntRange(0, 2).Draw(t, "deletions") {
		c.Delete.Tenants = append(c.Delete.Tenants, TenantID(rapid.SampledFrom([]string{"t1", "t2", "t3", "t4", "acme"}).Draw(t, "gone")))
	}
	if rare("cell") {
		c.Cells = []Cell{{ID: cell.Draw(t, "cell id"), MaxTenants: rapid.IntRange(0, 4).Draw(t, "max")}}
	}
	if rare("pool") {
		p := Pool{ID: PoolID(rapid.SampledFrom([]string{"standard", "bulk", "more"}).Draw(t, "pool id")), Cell: cell.Draw(t, "pool's cell"), Profile: profile.Draw(t, "pool's profile")}
		c.Pools = []Pool{p}
	}
	if rare("node") {
		kind := rapid.SampledFrom([]NodeKind{"", "", Asterisk}).Draw(t, "kind")
		c.Nodes = []Node{{ID: "fs1", Pool: "standard", Kind: kind, SIP: fmt.Sprintf("127.0.0.1:508%d", rapid.IntRange(0, 3).Draw(t, "port"))}}
	}
	if rare("sbc") {
		c.SBCs = []SBC{{ID: "sbc2", Cell: cell.Draw(t, "sbc's cell"), SIP: "127.0.0.2:5060", Names: []string{name.Draw(t, "sbc's name")}}}
	}
	if rare("frame gone") {
		c.Delete.Cells = rapid.SliceOfN(cell, 0, 1).Draw(t, "cells gone")
		c.Delete.Pools = rapid.SliceOfN(rapid.SampledFrom([]PoolID{"standard", "bulk", "more"}), 0, 1).Draw(t, "pools gone")
		c.Delete.Nodes = rapid.SliceOfN(rapid.SampledFrom([]NodeID{"fs1", "as1"}), 0, 2).Draw(t, "nodes gone")
		c.Delete.SBCs = rapid.SliceOfN(rapid.SampledFrom([]SBCID{"sbc1", "sbc2"}), 0, 1).Draw(t, "sbcs gone")
	}
	return c
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestClaimsValidate: word for word what a validation of everything says.
func TestClaimsValidate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := validState()
		claims := NewClaims(s)
		for range rapid.IntRange(1, 30).Draw(t, "changes") {
			c := drawClaim(t)
			after := s.Apply(&c)
			want := after.Validate()
			got := claims.Validate(&c)
			if errorText(got) != errorText(want) {
				t.Fatalf("a change is judged differently\ngot  %v\nwant %v", got, want)
			}
			if want != nil {
				continue
			}
			claims.Apply(&c)
			s = after
			if d := s.Diff(claims.state); !d.IsZero() {
				t.Fatalf("the state went astray: %+v", d)
			}
			sameClaims(t, claims, NewClaims(s))
		}
	})
}

func sameClaims(t *rapid.T, got, want *Claims) {
	flat := func(c *Claims) string {
		return fmt.Sprint(c.domains, c.numbers, c.perCell, c.perPool, c.pools, c.sbcs, slices.Concat(c.networks.chunks...), c.networks.lengths, c.asterisks, c.registrars)
	}
	if flat(got) != flat(want) {
		t.Fatalf("the claims went astray\ngot  %s\nwant %s", flat(got), flat(want))
	}
}

// TestNetworkIndex grows and shrinks over many chunks.
func TestNetworkIndex(t *testing.T) {
	prefix := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
	}
	const all = 8 * chunkSize
	var x networkIndex
	for i := range all {
		x.insert(claimedNetwork{prefix(i * 7919 % all), TenantID(fmt.Sprint(i * 7919 % all))})
	}
	owners := func(p string) int {
		n := 0
		x.overlapping(netip.MustParsePrefix(p), func(TenantID) { n++ })
		return n
	}
	if n := owners("10.0.0.0/8"); n != all {
		t.Fatalf("%d networks are in 10.0.0.0/8, want %d", n, all)
	}
	if n := owners("10.3.0.0/16"); n != 256 {
		t.Fatalf("%d networks are in 10.3.0.0/16, want 256", n)
	}
	if n := owners("10.3.4.5/32"); n != 1 {
		t.Fatalf("10.3.4.5 is in %d networks, want 1", n)
	}
	for _, c := range x.chunks {
		if len(c) == 0 || len(c) > chunkSize || !slices.IsSortedFunc(c, compareNetworks) {
			t.Fatalf("a chunk holds %d networks, or they are not in order", len(c))
		}
	}
	for i := range all {
		x.remove(claimedNetwork{prefix(i), TenantID(fmt.Sprint(i))})
	}
	if len(x.chunks) != 0 || owners("0.0.0.0/0") != 0 {
		t.Fatalf("%d chunks are left", len(x.chunks))
	}
}

func benchmarkClaims(b *testing.B, tenants int) {
	s := validState()
	c := Change{Cells: []Cell{{ID: "cell1", MaxTenants: 200000}}}
	for i := range tenants {
		id := fmt.Sprintf("t%06d", i)
		c.Tenants = append(c.Tenants, Tenant{
			ID: TenantID(id), Cell: "cell1", Profile: ProfileStandard, Domains: []string{id + ".example", "sip." + id + ".example"},
			Sources: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32)},
			Users:   []User{{Extension: "1001", HA1: someHA1}}, Numbers: []Number{{Number: fmt.Sprintf("49%06d", i), User: "1001"}},
		})
	}
	s = s.Apply(&c)
	claims := NewClaims(s)
	one := Change{Tenants: []Tenant{c.Tenants[tenants/2]}}
	one.Tenants[0].Name = "Changed"
	for b.Loop() {
		if err := claims.Validate(&one); err != nil {
			b.Fatal(err)
		}
		claims.Apply(&one)
	}
}

func BenchmarkClaimsOneOf1000(b *testing.B)   { benchmarkClaims(b, 1000) }
func BenchmarkClaimsOneOf100000(b *testing.B) { benchmarkClaims(b, 100000) }
