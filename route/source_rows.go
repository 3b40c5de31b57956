package route

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
)

// The prefix lengths that an SBC probes, longest first. A network of another
// length stands there as several rows of the next longer one; the shortest is
// the gate, whose row names the levels below it.
var (
	levels4 = []int{32, 28, 24, 20, 16}
	levels6 = []int{128, 64, 48, 32}
)

func levels(a netip.Addr) []int {
	if a.Is6() {
		return levels6
	}
	return levels4
}

// sourceKey is the table key of a at a level, as kamailio.cfg composes it
// from the text of the source address.
func sourceKey(a netip.Addr, level int) string {
	if a.Is6() {
		b := a.As16()
		groups := make([]string, 0, 8)
		for i := 0; i < level/8; i += 2 {
			groups = append(groups, strconv.FormatUint(uint64(b[i])<<8|uint64(b[i+1]), 16))
		}
		return "s:" + strings.Join(groups, ":")
	}
	b := a.As4()
	switch level {
	case 32:
		return fmt.Sprintf("s:%d.%d.%d.%d", b[0], b[1], b[2], b[3])
	case 28:
		return fmt.Sprintf("s:%d.%d.%d:%d", b[0], b[1], b[2], b[3]>>4)
	case 24:
		return fmt.Sprintf("s:%d.%d.%d", b[0], b[1], b[2])
	case 20:
		return fmt.Sprintf("s:%d.%d:%d", b[0], b[1], b[2]>>4)
	}
	return fmt.Sprintf("s:%d.%d", b[0], b[1])
}

// sourceRows lays networks out for the SBC.
func sourceRows(owner map[netip.Prefix]bulkhead.TenantID) []Row {
	nets := make([]netip.Prefix, 0, len(owner))
	for p := range owner {
		nets = append(nets, p)
	}
	// Short before long, so that a longer network overwrites the rows of a shorter one.
	slices.SortFunc(nets, func(a, b netip.Prefix) int {
		if a.Bits() != b.Bits() {
			return a.Bits() - b.Bits()
		}
		return a.Addr().Compare(b.Addr())
	})
	type gate struct {
		owner  bulkhead.TenantID
		levels map[int]bool
	}
	gates := map[string]*gate{}
	rows := map[string]bulkhead.TenantID{}
	for _, p := range nets {
		all := levels(p.Addr())
		top := all[len(all)-1]
		level := all[0]
		for _, l := range all {
			if l >= p.Bits() {
				level = l
			}
		}
		for a := range blocks(p, level) {
			key := sourceKey(a, top)
			g := gates[key]
			if g == nil {
				g = &gate{levels: map[int]bool{}}
				gates[key] = g
			}
			if level == top {
				g.owner = owner[p]
				continue
			}
			g.levels[level] = true
			rows[sourceKey(a, level)] = owner[p]
		}
	}
	out := make([]Row, 0, len(rows)+len(gates))
	for k, t := range rows {
		out = append(out, Row{k, string(t)})
	}
	for k, g := range gates {
		var below []string
		for _, l := range []int{128, 64, 48, 32, 28, 24, 20} {
			if g.levels[l] {
				below = append(below, strconv.Itoa(l))
			}
		}
		out = append(out, Row{k, string(g.owner) + "|" + strings.Join(below, ",")})
	}
	return out
}

// blocks yields the first address of each block of length level in p.
func blocks(p netip.Prefix, level int) func(func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		a := p.Addr()
		for range 1 << (level - p.Bits()) {
			if !yield(a) {
				return
			}
			a = next(a, level)
		}
	}
}

// next returns the first address of the block of length level after a's.
func next(a netip.Addr, level int) netip.Addr {
	b := a.AsSlice()
	i := (level - 1) / 8
	step := 1 << (7 - (level-1)%8)
	for ; i >= 0; i-- {
		sum := int(b[i]) + step
		b[i] = byte(sum)
		if sum < 256 {
			break
		}
		step = 1
	}
	out, _ := netip.AddrFromSlice(b)
	return out
}
