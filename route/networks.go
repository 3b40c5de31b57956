package route

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// networks finds the owner of the networks around an address. It is never
// changed: edit makes another one, which shares with it whatever is the same.
//
// Whoever owns one of the networks around an address owns the longest of
// them: networks of different tenants do not overlap (State.Validate). So the
// widest are enough, which lie side by side, and it is enough to find the one
// that begins last before the address.
type networks[T any] struct {
	four  spans[uint32, T]
	six   spans[uint64, T] // by the first half of the address
	hosts table[T]         // IPv6 networks longer than /64, by their 16 bytes: single addresses
}

func key4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func key6(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8])
}

// lookup returns the owner of the networks around a, or the zero T.
func (n *networks[T]) lookup(a netip.Addr) (owner T) {
	a = a.Unmap()
	switch {
	case a.Is4():
		return n.four.lookup(key4(a))
	case a.Is6():
		if n.hosts.len > 0 {
			b := a.As16()
			if t := n.hosts.find(string(b[:])); t != nil {
				return *t
			}
		}
		return n.six.lookup(key6(a))
	}
	return owner
}

// networksEdit makes new networks out of some. It is for one goroutine, and
// over with done.
type networksEdit[T any] struct {
	four   spansEdit[uint32, T]
	six    spansEdit[uint64, T]
	before table[T]
	hosts  *tableEdit[T] // nil: as before
}

func (n *networks[T]) edit() *networksEdit[T] {
	return &networksEdit[T]{four: n.four.edit(), six: n.six.edit(), before: n.hosts}
}

func (e *networksEdit[T]) done() networks[T] {
	n := networks[T]{four: e.four.spans, six: e.six.spans, hosts: e.before}
	if e.hosts != nil {
		n.hosts = e.hosts.done()
	}
	return n
}

// owned are networks and who owns them.
type owned[T any] struct {
	network netip.Prefix
	owner   T
}

// fill adds networks that do not overlap, in any order. It costs less than
// to add many one by one.
func (e *networksEdit[T]) fill(all []owned[T]) {
	slices.SortFunc(all, func(a, b owned[T]) int { return a.network.Addr().Compare(b.network.Addr()) })
	for _, o := range all {
		e.addOne(o.network, o.owner)
	}
}

// add makes somebody the owner of networks, which nobody else's overlap.
func (e *networksEdit[T]) add(all []netip.Prefix, owner T) {
	for _, p := range widest(all) {
		e.addOne(p, owner)
	}
}

func (e *networksEdit[T]) addOne(p netip.Prefix, owner T) {
	switch {
	case p.Addr().Is4():
		e.four.add(span[uint32]{key4(p.Addr()), uint8(p.Bits())}, owner)
	case p.Bits() <= 64:
		e.six.add(span[uint64]{key6(p.Addr()), uint8(p.Bits())}, owner)
	default:
		b := p.Addr().As16()
		e.host().set(string(b[:]), owner)
	}
}

// remove takes away what add was given.
func (e *networksEdit[T]) remove(all []netip.Prefix) {
	for _, p := range widest(all) {
		switch {
		case p.Addr().Is4():
			e.four.remove(span[uint32]{key4(p.Addr()), uint8(p.Bits())})
		case p.Bits() <= 64:
			e.six.remove(span[uint64]{key6(p.Addr()), uint8(p.Bits())})
		default:
			b := p.Addr().As16()
			e.host().remove(string(b[:]))
		}
	}
}

func (e *networksEdit[T]) host() *tableEdit[T] {
	if e.hosts == nil {
		e.hosts = e.before.edit(0)
	}
	return e.hosts
}

// widest leaves out the networks that lie within others.
func widest(all []netip.Prefix) []netip.Prefix {
	if len(all) < 2 {
		return all
	}
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	out := sorted[:1]
	for _, p := range sorted[1:] {
		if !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// spans finds the owner of a number among spans of numbers that do not
// overlap. The zero spans is empty.
//
// It is a trie by the numbers' bytes. What a look-up reads of a large one is
// to fit into the share of the processor's caches that is left to it: a page
// keeps its spans side by side, each part of them in a list of its own.
type spans[K number, T any] struct{ root *spanPage[K, T] }

// number is what addresses are to spans.
type number interface{ uint32 | uint64 }

// runLen is how many spans with the same next byte a page holds before they
// become a page of their own. Much fewer, and the kilobyte that a page takes
// would be there for a few spans; with as many as this, a change copies about
// half a megabyte at most for each page that it touches.
const runLen = 128

// spanPage holds the spans that have the bytes before in common. One that
// reaches over several runs or pages is in each.
type spanPage[K number, T any] struct {
	kids *[256]*spanPage[K, T] // by the next byte; nil: none
	run  [257]uint32           // where the spans with a next byte begin, and those before end

	// Of each span, in order.
	first []K
	bits  []uint8
	owner []T

	by *editor // who may write to the page; nil: nobody
}

func (p *spanPage[K, T]) kid(b uint8) *spanPage[K, T] {
	if p.kids == nil {
		return nil
	}
	return p.kids[b]
}

// editor tells edits apart by its address.
type editor struct{ _ byte }

// span is the numbers that have the first bits in common with first, whose
// others are 0.
type span[K number] struct {
	first K
	bits  uint8
}

func (s span[K]) last() K { return s.first | ^K(0)>>s.bits }

// topByte is how far a number's first byte is from the right.
func topByte[K number]() int { return bits.Len64(uint64(^K(0))) - 8 }

func (s *spans[K, T]) lookup(k K) (owner T) {
	p := s.root
	if p == nil {
		return owner
	}
	rest := k
	for p.kids != nil && p.kids[rest>>topByte[K]()] != nil {
		p = p.kids[rest>>topByte[K]()]
		rest <<= 8
	}
	// The last span that begins at k or before, without branches for the
	// processor to guess wrong.
	b := rest >> topByte[K]()
	at, end := int(p.run[b]), int(p.run[b+1])
	for length := end - at; length > 1; {
		half := length / 2
		if p.first[at+half] <= k {
			at += half
		}
		length -= half
	}
	if at < end {
		if s := (span[K]{p.first[at], p.bits[at]}); s.first <= k && k <= s.last() {
			return p.owner[at]
		}
	}
	return owner
}

// spansEdit makes new spans out of some. Spans that come in order cost least.
type spansEdit[K number, T any] struct {
	spans[K, T]
	by *editor
}

func (s *spans[K, T]) edit() spansEdit[K, T] { return spansEdit[K, T]{*s, &editor{}} }

func (e *spansEdit[K, T]) add(s span[K], owner T) { e.put(&e.root, topByte[K](), s, owner) }
func (e *spansEdit[K, T]) remove(s span[K])       { e.cut(&e.root, topByte[K](), s) }

// put adds a span to a page, whose runs go by the byte that is shift bits from
// the right.
func (e *spansEdit[K, T]) put(at **spanPage[K, T], shift int, s span[K], owner T) {
	p := e.own(at)
	for b, to := s.reach(shift); b <= to; b++ {
		if p.kid(uint8(b)) != nil {
			e.put(&p.kids[b], shift-8, s, owner)
			continue
		}
		i, ok := p.search(b, s)
		switch {
		case ok:
			p.bits[i], p.owner[i] = s.bits, owner
		case shift == 0 || p.run[b+1]-p.run[b] < runLen:
			p.first, p.bits, p.owner = slices.Insert(p.first, i, s.first), slices.Insert(p.bits, i, s.bits), slices.Insert(p.owner, i, owner)
			p.moved(b, 1)
		default:
			e.part(p, b, shift)
			e.put(&p.kids[b], shift-8, s, owner)
		}
	}
}

// part makes a run a page of its own.
func (e *spansEdit[K, T]) part(p *spanPage[K, T], b, shift int) {
	if p.kids == nil {
		p.kids = new([256]*spanPage[K, T])
	}
	from, to := int(p.run[b]), int(p.run[b+1])
	for i := from; i < to; i++ {
		e.put(&p.kids[b], shift-8, span[K]{p.first[i], p.bits[i]}, p.owner[i])
	}
	p.first, p.bits, p.owner = slices.Delete(p.first, from, to), slices.Delete(p.bits, from, to), slices.Delete(p.owner, from, to)
	p.moved(b, from-to)
}

// cut takes a span away. A page stays one until none is left.
func (e *spansEdit[K, T]) cut(at **spanPage[K, T], shift int, s span[K]) {
	if *at == nil {
		return
	}
	p := e.own(at)
	for b, to := s.reach(shift); b <= to; b++ {
		if p.kid(uint8(b)) != nil {
			e.cut(&p.kids[b], shift-8, s)
		} else if i, ok := p.search(b, s); ok {
			p.first, p.bits, p.owner = slices.Delete(p.first, i, i+1), slices.Delete(p.bits, i, i+1), slices.Delete(p.owner, i, i+1)
			p.moved(b, -1)
		}
	}
	if p.kids != nil && *p.kids == [256]*spanPage[K, T]{} {
		p.kids = nil
	}
	if p.kids == nil && len(p.first) == 0 {
		*at = nil
	}
}

// own makes a page one that this edit may write to.
func (e *spansEdit[K, T]) own(at **spanPage[K, T]) *spanPage[K, T] {
	if *at == nil {
		*at = &spanPage[K, T]{by: e.by}
	}
	if p := *at; p.by != e.by {
		q := &spanPage[K, T]{run: p.run, first: slices.Clone(p.first), bits: slices.Clone(p.bits), owner: slices.Clone(p.owner), by: e.by}
		if p.kids != nil {
			kids := *p.kids
			q.kids = &kids
		}
		*at = q
	}
	return *at
}

// reach returns the first and the last run of a page that a span reaches over.
func (s span[K]) reach(shift int) (from, to int) {
	// Of a span that reaches beyond the page, all runs are within it.
	if s.first>>shift>>8 != s.last()>>shift>>8 {
		return 0, 255
	}
	return int(s.first >> shift & 255), int(s.last() >> shift & 255)
}

// search returns where a span is in a run, or would be.
func (p *spanPage[K, T]) search(b int, s span[K]) (at int, ok bool) {
	from, to := int(p.run[b]), int(p.run[b+1])
	at, ok = slices.BinarySearch(p.first[from:to], s.first)
	return from + at, ok
}

// moved tells a page that its run b has so many spans more.
func (p *spanPage[K, T]) moved(b, by int) {
	for i := b + 1; i < len(p.run); i++ {
		p.run[i] = uint32(int(p.run[i]) + by)
	}
}
