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

// add makes somebody the owner of networks, which nobody else's overlap.
func (e *networksEdit[T]) add(all []netip.Prefix, owner T) {
	for _, p := range widest(all) {
		switch {
		case p.Addr().Is4():
			e.four.add(spanOf(key4(p.Addr()), p.Bits(), owner))
		case p.Bits() <= 64:
			e.six.add(spanOf(key6(p.Addr()), p.Bits(), owner))
		default:
			b := p.Addr().As16()
			e.host().set(string(b[:]), owner)
		}
	}
}

// remove takes away what add was given.
func (e *networksEdit[T]) remove(all []netip.Prefix) {
	var none T
	for _, p := range widest(all) {
		switch {
		case p.Addr().Is4():
			e.four.remove(spanOf(key4(p.Addr()), p.Bits(), none))
		case p.Bits() <= 64:
			e.six.remove(spanOf(key6(p.Addr()), p.Bits(), none))
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
// It is a trie by the numbers' bytes whose leaves hold up to leafLen spans,
// sorted: of few and compact nodes, so that most of a look-up finds them in
// the processor's caches, and little is copied for a change.
type spans[K number, T any] struct{ root spanNode[K, T] }

// number is what addresses are to spans.
type number interface{ uint32 | uint64 }

// leafLen is how many spans a leaf holds before it is parted by the next byte.
const leafLen = 32

// spanNode is a leaf, or a node with kids. The zero node is a leaf without spans.
type spanNode[K number, T any] struct {
	kids *spanKids[K, T] // nil: this is a leaf

	// Of a leaf, never written to. A span that reaches over several kids of a
	// node is in each.
	first []K
	rest  []spanRest[K, T]
}

func (n *spanNode[K, T]) empty() bool { return n.kids == nil && len(n.first) == 0 }

type spanKids[K number, T any] struct {
	at   [256]spanNode[K, T] // by the next byte
	used int                 // those that are not empty
	by   *editor             // who may write to them; nil: nobody
}

type spanRest[K number, T any] struct {
	last  K
	owner T
}

// editor tells edits apart by its address.
type editor struct{ _ byte }

type span[K number, T any] struct {
	first K
	spanRest[K, T]
}

// spanOf returns the span of the numbers that begin with the same bits as first.
func spanOf[K number, T any](first K, bits int, owner T) span[K, T] {
	return span[K, T]{first, spanRest[K, T]{last: first | ^K(0)>>bits, owner: owner}}
}

// topByte is how far a number's first byte is from the right.
func topByte[K number]() int { return bits.Len64(uint64(^K(0))) - 8 }

func (s *spans[K, T]) lookup(k K) (owner T) {
	n := &s.root
	for b := k; n.kids != nil; b <<= 8 {
		n = &n.kids.at[b>>topByte[K]()]
	}
	// The last span that begins at k or before, without branches for the
	// processor to guess wrong.
	at, first := 0, n.first
	for length := len(first); length > 1; {
		half := length / 2
		if first[at+half] <= k {
			at += half
		}
		length -= half
	}
	if at < len(first) && first[at] <= k && k <= n.rest[at].last {
		return n.rest[at].owner
	}
	return owner
}

type spansEdit[K number, T any] struct {
	spans[K, T]
	by *editor
}

func (s *spans[K, T]) edit() spansEdit[K, T] { return spansEdit[K, T]{*s, &editor{}} }

func (e *spansEdit[K, T]) add(s span[K, T])    { e.put(&e.root, topByte[K](), s) }
func (e *spansEdit[K, T]) remove(s span[K, T]) { e.cut(&e.root, topByte[K](), s) }

// put adds a span to n, whose kids go by the byte that is shift bits from the right.
func (e *spansEdit[K, T]) put(n *spanNode[K, T], shift int, s span[K, T]) {
	if n.kids != nil {
		e.each(n, shift, s, e.put)
		return
	}
	i, ok := slices.BinarySearch(n.first, s.first)
	switch {
	case ok:
		n.rest = slices.Concat(n.rest[:i], []spanRest[K, T]{s.spanRest}, n.rest[i+1:])
	case len(n.first) < leafLen || shift < 0:
		n.first = slices.Concat(n.first[:i], []K{s.first}, n.first[i:])
		n.rest = slices.Concat(n.rest[:i], []spanRest[K, T]{s.spanRest}, n.rest[i:])
	default:
		parted := spanNode[K, T]{kids: &spanKids[K, T]{by: e.by}}
		for i, first := range n.first {
			e.each(&parted, shift, span[K, T]{first, n.rest[i]}, e.put)
		}
		e.each(&parted, shift, s, e.put)
		*n = parted
	}
}

// cut takes a span away. A node with kids stays one until none is left.
func (e *spansEdit[K, T]) cut(n *spanNode[K, T], shift int, s span[K, T]) {
	if n.kids != nil {
		if e.each(n, shift, s, e.cut); n.kids.used == 0 {
			*n = spanNode[K, T]{}
		}
		return
	}
	if i, ok := slices.BinarySearch(n.first, s.first); ok {
		n.first = slices.Concat(n.first[:i], n.first[i+1:])
		n.rest = slices.Concat(n.rest[:i], n.rest[i+1:])
	}
}

// each does something to the kids that a span reaches over.
func (e *spansEdit[K, T]) each(n *spanNode[K, T], shift int, s span[K, T], do func(*spanNode[K, T], int, span[K, T])) {
	if n.kids.by != e.by {
		n.kids = &spanKids[K, T]{at: n.kids.at, used: n.kids.used, by: e.by}
	}
	from, to := 0, 255
	// Of a span that reaches beyond this node, all kids are within it.
	if s.first>>shift>>8 == s.last>>shift>>8 {
		from, to = int(s.first>>shift&255), int(s.last>>shift&255)
	}
	for b := from; b <= to; b++ {
		kid := &n.kids.at[b]
		had := !kid.empty()
		do(kid, shift-8, s)
		switch has := !kid.empty(); {
		case has && !had:
			n.kids.used++
		case had && !has:
			n.kids.used--
		}
	}
}
