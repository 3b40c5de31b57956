package route_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
)

// world is a random valid state and what calls about it are made of.
type world struct {
	state   bulkhead.State
	sbcs    []bulkhead.SBCID
	nets    []netip.Prefix
	domains []string
	numbers []string
	users   []string
}

// The bits of random addresses come from few values, so that networks meet.
var (
	octets = []byte{0, 1, 15, 16, 127, 128, 255}
	bits4  = []int{8, 9, 12, 15, 16, 17, 20, 21, 23, 24, 25, 27, 28, 29, 30, 31, 32}
	bits6  = []int{32, 40, 44, 47, 48, 56, 60, 63, 64, 128}
)

func drawAddr(t *rapid.T) netip.Addr {
	octet := func() byte { return rapid.SampledFrom(octets).Draw(t, "octet") }
	if rapid.IntRange(0, 2).Draw(t, "family") > 0 {
		return netip.AddrFrom4([4]byte{rapid.SampledFrom([]byte{10, 11, 192}).Draw(t, "first"), octet(), octet(), octet()})
	}
	a := [16]byte{0x20, 0x01, 0x0d, rapid.SampledFrom([]byte{0xb8, 0xb9}).Draw(t, "fourth")}
	for i := 4; i < 16; i++ {
		if i < 8 || i > 13 {
			a[i] = octet()
		}
	}
	return netip.AddrFrom16(a)
}

func drawNetwork(t *rapid.T) netip.Prefix {
	a := drawAddr(t)
	lengths := bits4
	if a.Is6() {
		lengths = bits6
	}
	return netip.PrefixFrom(a, rapid.SampledFrom(lengths).Draw(t, "bits")).Masked()
}

func drawWorld(t *rapid.T) *world {
	w := &world{}
	var c bulkhead.Change
	profiles := []bulkhead.ProfileID{"standard", "high_volume"}
	port := 7000
	for i := range rapid.IntRange(1, 3).Draw(t, "cells") {
		cell := bulkhead.CellID(fmt.Sprintf("c%d", i))
		c.Cells = append(c.Cells, bulkhead.Cell{ID: cell})
		for j, profile := range profiles {
			p := bulkhead.Pool{ID: bulkhead.PoolID(fmt.Sprintf("p%d-%d", i, j)), Cell: cell, Profile: profile}
			p.Placement = rapid.SampledFrom([]bulkhead.Placement{"", bulkhead.Sticky, bulkhead.Spread}).Draw(t, "placement")
			if j == 1 && rapid.Bool().Draw(t, "backup") {
				p.Backup = bulkhead.PoolID(fmt.Sprintf("p%d-0", i))
			}
			c.Pools = append(c.Pools, p)
			for range rapid.IntRange(0, 4).Draw(t, "nodes") {
				port++
				c.Nodes = append(c.Nodes, bulkhead.Node{
					ID: bulkhead.NodeID(fmt.Sprintf("n%d", port)), Pool: p.ID, SIP: fmt.Sprintf("127.0.0.1:%d", port),
					Drain: rapid.IntRange(0, 3).Draw(t, "drain") == 0, Weight: rapid.IntRange(0, 100).Draw(t, "weight"),
				})
			}
		}
		for j := range rapid.IntRange(1, 2).Draw(t, "sbcs") {
			port++
			id := bulkhead.SBCID(fmt.Sprintf("s%d-%d", i, j))
			host := rapid.SampledFrom([]string{"127.0.0.1", fmt.Sprintf("127.0.%d.2", i), "[2001:db8:ffff::1]"}).Draw(t, "host")
			names := rapid.SampledFrom([][]string{nil, {"sip.shared.example"}, {fmt.Sprintf("sip.c%d.example", i)}}).Draw(t, "names")
			c.SBCs = append(c.SBCs, bulkhead.SBC{ID: id, Cell: cell, SIP: fmt.Sprintf("%s:%d", host, port), Names: names})
			w.sbcs = append(w.sbcs, id)
			w.domains = append(append(w.domains, host), names...)
		}
	}
	for i := range rapid.IntRange(0, 10).Draw(t, "tenants") {
		cell := rapid.SampledFrom(c.Cells).Draw(t, "cell").ID
		c.Tenants = append(c.Tenants, w.drawTenant(t, i, cell, rapid.SampledFrom(profiles).Draw(t, "profile")))
	}
	w.state = bulkhead.State{}.Apply(&c)
	w.drawSources(t)
	if err := w.state.Validate(); err != nil {
		t.Fatalf("the generator made an invalid state: %v", err)
	}
	return w
}

func (w *world) drawTenant(t *rapid.T, i int, cell bulkhead.CellID, profile bulkhead.ProfileID) bulkhead.Tenant {
	k := bulkhead.Tenant{ID: bulkhead.TenantID(fmt.Sprintf("t%d", i)), Cell: cell, Profile: profile}
	if rapid.IntRange(0, 3).Draw(t, "unmanaged") == 0 {
		k.Managed = new(bool)
	}
	for j := range rapid.IntRange(1, 3).Draw(t, "domains") {
		k.Domains = append(k.Domains, fmt.Sprintf("d%d.t%d.example", j, i))
	}
	for j := range rapid.IntRange(0, 3).Draw(t, "users") {
		// The same extensions in every tenant.
		k.Users = append(k.Users, bulkhead.User{Extension: fmt.Sprint(1001 + j), HA1: fmt.Sprintf("%032x", 1000*i+j)})
		w.users = append(w.users, fmt.Sprint(1001+j))
		if rapid.Bool().Draw(t, "number") {
			n := fmt.Sprintf("4930%d00%d", i, j)
			k.Numbers = append(k.Numbers, bulkhead.Number{Number: n, User: fmt.Sprint(1001 + j)})
			w.numbers = append(w.numbers, n)
		}
	}
	w.domains = append(w.domains, k.Domains...)
	return k
}

// drawSources gives random networks to tenants wherever nobody else has one
// that overlaps.
func (w *world) drawSources(t *rapid.T) {
	if len(w.state.Tenants) == 0 {
		return
	}
	type owned struct {
		net   netip.Prefix
		owner bulkhead.TenantID
	}
	var all []owned
	ids := make([]bulkhead.TenantID, len(w.state.Tenants))
	for i := range ids {
		ids[i] = bulkhead.TenantID(fmt.Sprintf("t%d", i))
	}
	for range rapid.IntRange(0, 25).Draw(t, "networks") {
		n := drawNetwork(t)
		owner := rapid.SampledFrom(ids).Draw(t, "owner")
		for _, o := range all {
			if o.net.Overlaps(n) {
				owner = o.owner
				break
			}
		}
		if slices.ContainsFunc(all, func(o owned) bool { return o.owner != owner && o.net.Overlaps(n) }) {
			continue
		}
		all = append(all, owned{n, owner})
		w.nets = append(w.nets, n)
		k := w.state.Tenants[owner]
		k.Sources = append(k.Sources, n)
	}
}

// drawSource draws an address in, at the edge of, or just outside a network
// of the world, or anywhere.
func (w *world) drawSource(t *rapid.T) netip.Addr {
	a := drawAddr(t)
	if len(w.nets) == 0 || rapid.IntRange(0, 3).Draw(t, "anywhere") == 0 {
		return a
	}
	n := rapid.SampledFrom(w.nets).Draw(t, "network")
	first, last := n.Addr(), lastOf(n)
	a = rapid.SampledFrom([]netip.Addr{first, last, first.Prev(), last.Next(), first.Next(), last.Prev()}).Draw(t, "edge")
	if a.Is4() && rapid.IntRange(0, 4).Draw(t, "mapped") == 0 {
		return netip.AddrFrom16(a.As16()) // as a socket for both families names it
	}
	return a
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func drawFrom(t *rapid.T, label string, of []string, or ...string) string {
	return rapid.SampledFrom(append(slices.Clone(of), or...)).Draw(t, label)
}

func (w *world) drawDomain(t *rapid.T) string {
	d := drawFrom(t, "domain", w.domains, "nobody.example", "")
	if rapid.IntRange(0, 3).Draw(t, "upper") == 0 {
		return strings.ToUpper(d)
	}
	return d
}

func (w *world) drawNumber(t *rapid.T) string {
	n := drawFrom(t, "number", append(slices.Clone(w.numbers), w.users...), "4930999", "", "0", "99999999999999999999999", "12a4", "+", "++49300000")
	if rapid.IntRange(0, 2).Draw(t, "plus") == 0 {
		return "+" + n
	}
	return n
}
