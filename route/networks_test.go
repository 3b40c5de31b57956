package route

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
)

func parsePrefixes(t *testing.T, owners map[string]bulkhead.TenantID) map[netip.Prefix]bulkhead.TenantID {
	t.Helper()
	out := map[netip.Prefix]bulkhead.TenantID{}
	for s, id := range owners {
		out[netip.MustParsePrefix(s)] = id
	}
	return out
}

func TestSourceRowsAreThose(t *testing.T) {
	got := map[string]string{}
	for _, r := range sourceRows(parsePrefixes(t, map[string]bulkhead.TenantID{
		"10.1.0.0/16":       "wide",
		"10.1.2.3/32":       "one",
		"10.1.2.0/28":       "block",
		"10.1.3.0/24":       "class",
		"10.2.240.0/20":     "twenty",
		"10.3.2.2/31":       "two",
		"2001:db8::/32":     "six",
		"2001:db8:1::/48":   "site",
		"2001:db8:1:2::/64": "lan",
		"2001:db9::1/128":   "host",
	})) {
		if old, ok := got[r.Key]; ok {
			t.Errorf("row %q is there twice: %q and %q", r.Key, old, r.Value)
		}
		got[r.Key] = r.Value
	}
	for key, want := range map[string]string{
		"s:10.1": "wide|32,28,24", "s:10.1.2.3": "one", "s:10.1.2:0": "block", "s:10.1.3": "class",
		"s:10.2": "|20", "s:10.2:15": "twenty",
		"s:10.3": "|32", "s:10.3.2.2": "two", "s:10.3.2.3": "two",
		"s:2001:db8": "six|64,48", "s:2001:db8:1": "site", "s:2001:db8:1:2": "lan",
		"s:2001:db9": "|128", "s:2001:db9:0:0:0:0:0:1": "host",
	} {
		if got[key] != want {
			t.Errorf("row %q is %q, want %q", key, got[key], want)
		}
		delete(got, key)
	}
	if len(got) > 0 {
		t.Errorf("rows too many: %v", got)
	}
}

func TestSourceRowCount(t *testing.T) {
	for net, want := range map[string]int{
		"10.0.0.0/8": 256, "10.0.0.0/9": 128, "10.1.0.0/16": 1, "10.1.0.0/17": 8 + 1, "10.1.0.0/21": 8 + 1,
		"10.1.2.0/25": 8 + 1, "10.1.2.0/29": 8 + 1, "10.1.2.3/32": 1 + 1,
		"2001:db8::/32": 1, "2001:db8::/40": 256 + 1, "2001:db8::/56": 256 + 1, "2001:db8::/64": 1 + 1,
	} {
		p := netip.MustParsePrefix(net)
		if got := len(sourceRows(map[netip.Prefix]bulkhead.TenantID{p: "a"})); got != want {
			t.Errorf("%s takes %d rows, want %d", net, got, want)
		}
	}
}

// scan finds the longest network by looking at all.
func scan(owner map[netip.Prefix]bulkhead.TenantID, a netip.Addr) bulkhead.TenantID {
	best := -1
	var found bulkhead.TenantID
	for p, t := range owner {
		if p.Contains(a) && p.Bits() > best {
			best, found = p.Bits(), t
		}
	}
	return found
}

// probe finds the owner in rows. Unlike the interpreter of whole calls it
// may use sourceKey: the keys' text is TestSourceRowsAreThose's matter.
func probe(rows map[string]string, a netip.Addr) bulkhead.TenantID {
	all := levels(a)
	gate, ok := rows[sourceKey(a, all[len(all)-1])]
	if !ok {
		return ""
	}
	owner, below, _ := strings.Cut(gate, "|")
	for _, l := range all[:len(all)-1] {
		if !strings.Contains(","+below+",", fmt.Sprintf(",%d,", l)) {
			continue
		}
		if t, ok := rows[sourceKey(a, l)]; ok {
			return bulkhead.TenantID(t)
		}
	}
	return bulkhead.TenantID(owner)
}

// Networks of any lengths and different owners, one in the other: the rows
// lead to what a scan finds.
func TestLongestPrefixWins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		owner := map[netip.Prefix]bulkhead.TenantID{}
		var edges []netip.Addr
		for i := range rapid.IntRange(1, 30).Draw(t, "networks") {
			p := drawNetworkNear(t)
			owner[p] = bulkhead.TenantID(fmt.Sprintf("t%d", i))
			edges = append(edges, edgesOf(p)...)
		}
		rows := map[string]string{}
		for _, r := range sourceRows(owner) {
			if _, ok := rows[r.Key]; ok {
				t.Fatalf("row %q is there twice", r.Key)
			}
			rows[r.Key] = r.Value
		}
		for range 20 {
			edges = append(edges, drawNear(t))
		}
		for _, a := range edges {
			if got, want := probe(rows, a), scan(owner, a); got != want {
				t.Fatalf("rows lead %s to %q, want %q", a, got, want)
			}
		}
	})
}

// Owners of networks that come and go: every version finds the one that a
// scan finds, and older ones stay as they were.
func TestNetworksChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			nets networks[bulkhead.TenantID]
			of   map[bulkhead.TenantID][]netip.Prefix
		}
		now := version{of: map[bulkhead.TenantID][]netip.Prefix{}}
		versions := []version{now}
		var edges []netip.Addr
		for i := range rapid.IntRange(1, 8).Draw(t, "edits") {
			now = rapid.SampledFrom(versions[max(len(versions)-2, 0):]).Draw(t, "from")
			now.of = maps.Clone(now.of)
			edit := now.nets.edit()
			for j := range rapid.IntRange(1, 12).Draw(t, "steps") {
				if ids := slices.Sorted(maps.Keys(now.of)); len(ids) > 0 && rapid.IntRange(0, 2).Draw(t, "remove") == 0 {
					id := rapid.SampledFrom(ids).Draw(t, "owner")
					edit.remove(now.of[id])
					delete(now.of, id)
					continue
				}
				var own []netip.Prefix
				for range rapid.IntRange(0, 5).Draw(t, "networks") {
					p := drawNetworkNear(t)
					edges = append(edges, edgesOf(p)...)
					if !overlapsAny(now.of, p) {
						own = append(own, p) // twice, or one in the other, perhaps
					}
				}
				id := bulkhead.TenantID(fmt.Sprintf("t%d-%d", i, j))
				edit.add(own, id)
				now.of[id] = own
			}
			now.nets = edit.done()
			versions = append(versions, now)
		}
		for _, v := range versions {
			owner := map[netip.Prefix]bulkhead.TenantID{}
			for id, own := range v.of {
				for _, p := range own {
					owner[p] = id
				}
			}
			for _, a := range edges {
				if got, want := v.nets.lookup(a), scan(owner, a); got != want {
					t.Fatalf("lookup of %s finds %q, want %q", a, got, want)
				}
			}
			if len(owner) == 0 && (v.nets.four.root != nil || v.nets.six.root != nil || v.nets.hosts.len != 0) {
				t.Fatal("something is left of networks that are gone")
			}
		}
	})
}

// More networks than a run holds, near each other and far, narrow and wide.
func TestManyNetworks(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) {
		manyNetworks(t, 0, func(b [4]byte) netip.Addr { return netip.AddrFrom4(b) })
	})
	t.Run("IPv6", func(t *testing.T) {
		manyNetworks(t, 16, func(b [4]byte) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 0x01, b[0], b[1], b[2], b[3], 15: 1})
		})
	})
}

// manyNetworks checks networks of IPv4's lengths and more bits.
func manyNetworks(t *testing.T, more int, addr func([4]byte) netip.Addr) {
	rnd := rand.New(rand.NewPCG(1, 2))
	draw := func(second int) (b [4]byte) {
		return [4]byte{byte(10 + rnd.IntN(3)), byte(rnd.IntN(second)), byte(rnd.IntN(256)), byte(rnd.IntN(256))}
	}
	type owned struct {
		net   netip.Prefix
		owner int
	}
	type version struct {
		nets   networks[int]
		blocks map[netip.Prefix]owned // by /24, or /16 of those that are wider
	}
	now := version{blocks: map[netip.Prefix]owned{}}
	for round := range 6 {
		before := version{now.nets, maps.Clone(now.blocks)}
		edit := now.nets.edit()
		for i := range 3000 {
			b := draw(8)
			bits, block := 24+rnd.IntN(9), 24
			if b[1] < 2 { // these are for wide ones
				bits, block = 16+rnd.IntN(8), 16
			}
			key := netip.PrefixFrom(addr(b), more+block).Masked()
			if old, ok := now.blocks[key]; ok {
				edit.remove([]netip.Prefix{old.net})
				delete(now.blocks, key)
				continue
			}
			n := owned{netip.PrefixFrom(addr(b), more+bits).Masked(), 1 + round*10000 + i}
			edit.add([]netip.Prefix{n.net}, n.owner)
			now.blocks[key] = n
		}
		now.nets = edit.done()
		for _, v := range []version{now, before} {
			for range 20000 {
				a, want := addr(draw(9)), 0
				for _, block := range []int{16, 24} {
					if n := v.blocks[netip.PrefixFrom(a, more+block).Masked()]; n.net.Contains(a) {
						want = n.owner
					}
				}
				if got := v.nets.lookup(a); got != want {
					t.Fatalf("round %d: lookup of %s finds %d, want %d", round, a, got, want)
				}
			}
		}
	}
	if (now.nets.four.root == nil || now.nets.four.root.kids == nil) && (now.nets.six.root == nil || now.nets.six.root.kids == nil) {
		t.Error("no run was parted")
	}
	edit := now.nets.edit()
	for _, n := range now.blocks {
		edit.remove([]netip.Prefix{n.net})
	}
	if empty := edit.done(); empty.four.root != nil || empty.six.root != nil {
		t.Error("something is left of networks that are gone")
	}
}

func overlapsAny(of map[bulkhead.TenantID][]netip.Prefix, p netip.Prefix) bool {
	for _, own := range of {
		if slices.ContainsFunc(own, p.Overlaps) {
			return true
		}
	}
	return false
}

func drawNetworkNear(t *rapid.T) netip.Prefix {
	a := drawNear(t)
	bits := rapid.IntRange(8, 32)
	if a.Is6() {
		bits = rapid.SampledFrom([]int{32, 40, 41, 47, 48, 56, 57, 59, 63, 64, 128})
	}
	return netip.PrefixFrom(a, bits.Draw(t, "bits")).Masked()
}

// edgesOf returns the addresses at a network's ends, inside and outside.
func edgesOf(p netip.Prefix) []netip.Addr {
	out := []netip.Addr{p.Addr()}
	for _, a := range []netip.Addr{p.Addr().Prev(), next(p.Addr(), p.Bits()), next(p.Addr(), p.Bits()).Prev()} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// drawNear draws addresses whose parts meet often.
func drawNear(t *rapid.T) netip.Addr {
	part := rapid.SampledFrom([]byte{0, 1, 7, 8, 127, 128, 254, 255})
	if rapid.Bool().Draw(t, "four") {
		return netip.AddrFrom4([4]byte{10, part.Draw(t, "b"), part.Draw(t, "c"), part.Draw(t, "d")})
	}
	b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	for i := 4; i < 9; i++ {
		b[i] = part.Draw(t, "byte")
	}
	b[15] = part.Draw(t, "last")
	return netip.AddrFrom16(b)
}

func TestLookupOfNoAddress(t *testing.T) {
	var empty networks[bulkhead.TenantID]
	if got := empty.lookup(netip.MustParseAddr("10.0.0.1")); got != "" {
		t.Errorf("no networks, but %q", got)
	}
	edit := empty.edit()
	edit.add([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, "a")
	n := edit.done()
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("::a00:1"), netip.MustParseAddr("fe80::1%eth0")} {
		if got := n.lookup(a); got != "" {
			t.Errorf("%q is %q's", a, got)
		}
	}
	if got := n.lookup(netip.MustParseAddr("::ffff:10.0.0.1")); got != "a" {
		t.Errorf("an IPv4-mapped address is %q's, want a's", got)
	}
}
