package route

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"slices"
)

// table is a map from strings that is never changed: edit makes another one,
// which shares with it whatever is the same.
//
// It is a hash table in 256 pages, each a slice of short buckets. A look-up
// reads a bucket's head, one entry and its key, as much memory as in Go's map.
// A change copies the list of pages, one page and one bucket, some 30 KB among
// 500,000 keys, and a page that is full grows alone: no change touches all
// keys. A trie of a smaller fan-out would copy less, but a look-up would miss
// the processor's caches at each of its levels.
//
// The zero table is empty.
type table[V any] struct {
	seed  maphash.Seed
	pages *[pageCount]page[V]
	len   int
}

const (
	pageCount = 256 // the hash's first 8 bits
	// bucketLen is how many keys a page's buckets hold on average before they
	// are doubled.
	bucketLen = 4
)

type page[V any] struct {
	buckets []bucket[V] // as many as a power of two
	len     int
}

type bucket[V any] struct {
	// tags holds one byte of the hash of each of the first eight entries, the
	// first lowest. It finds the entry without a loop over them, whose end the
	// processor could not foresee.
	tags    uint64
	entries []entry[V] // never written to once a table has them
}

type entry[V any] struct {
	key   string
	value V
}

// tagOf takes the bits of a hash that choose neither page nor, among fewer
// than 2^40 buckets, the bucket.
func tagOf(hash uint64) uint64 { return hash >> 48 & 0xff }

const everyByte = 0x0101010101010101

// index returns the place of a key, or -1.
func (b *bucket[V]) index(hash uint64, key string) int {
	// A byte of d is 0 where the tag is the same. The lowest such byte is
	// found for sure; above it there may be a false one, which is no harm.
	d := b.tags ^ tagOf(hash)*everyByte
	for m := (d - everyByte) &^ d & (0x80 * everyByte); m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m) / 8
		if i >= len(b.entries) {
			break
		}
		if b.entries[i].key == key {
			return i
		}
	}
	for i := 8; i < len(b.entries); i++ {
		if b.entries[i].key == key {
			return i
		}
	}
	return -1
}

// add appends an entry to a copy of the entries.
func (b *bucket[V]) add(hash uint64, n entry[V]) {
	if i := len(b.entries); i < 8 {
		b.tags |= tagOf(hash) << (8 * i)
	}
	c := make([]entry[V], len(b.entries)+1)
	c[copy(c, b.entries)] = n
	b.entries = c
}

// find returns the value of a key, which must not be written to, or nil.
func (t *table[V]) find(key string) *V {
	if t.len == 0 {
		return nil
	}
	h := maphash.String(t.seed, key)
	p := &t.pages[h>>56]
	if len(p.buckets) == 0 {
		return nil
	}
	b := &p.buckets[h&uint64(len(p.buckets)-1)]
	if i := b.index(h, key); i >= 0 {
		return &b.entries[i].value
	}
	return nil
}

// all yields the keys and values in no order.
func (t *table[V]) all() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		if t.len == 0 {
			return
		}
		for _, p := range t.pages {
			for _, b := range p.buckets {
				for i := range b.entries {
					if !yield(b.entries[i].key, b.entries[i].value) {
						return
					}
				}
			}
		}
	}
}

// tableEdit makes a new table out of one. It is for one goroutine, and over
// with done.
type tableEdit[V any] struct {
	seed    maphash.Seed
	pages   [pageCount]page[V]
	mine    [pageCount]bool // pages that no table has yet
	len     int
	buckets int // of a new page
}

// edit begins a change; expect is how many keys a table that is still empty will have.
func (t *table[V]) edit(expect int) *tableEdit[V] {
	e := &tableEdit[V]{seed: t.seed, len: t.len, buckets: 1}
	if t.pages != nil {
		e.pages = *t.pages
	} else {
		e.seed = maphash.MakeSeed()
	}
	for e.buckets*bucketLen*pageCount < expect {
		e.buckets *= 2
	}
	return e
}

func (e *tableEdit[V]) done() table[V] {
	return table[V]{seed: e.seed, pages: &e.pages, len: e.len}
}

// bucket returns a hash's page and bucket, to be written to.
func (e *tableEdit[V]) bucket(h uint64) (*page[V], *bucket[V]) {
	i := h >> 56
	p := &e.pages[i]
	switch {
	case len(p.buckets) == 0:
		p.buckets = make([]bucket[V], e.buckets)
	case !e.mine[i]:
		p.buckets = slices.Clone(p.buckets)
	}
	e.mine[i] = true
	return p, &p.buckets[h&uint64(len(p.buckets)-1)]
}

func (e *tableEdit[V]) set(key string, value V) {
	h := maphash.String(e.seed, key)
	p, b := e.bucket(h)
	n := entry[V]{key, value}
	if i := b.index(h, key); i >= 0 {
		b.entries = slices.Clone(b.entries)
		b.entries[i] = n
		return
	}
	b.add(h, n)
	e.len++
	if p.len++; p.len > bucketLen*len(p.buckets) {
		e.grow(p)
	}
}

func (e *tableEdit[V]) remove(key string) {
	h := maphash.String(e.seed, key)
	p, b := e.bucket(h)
	i := b.index(h, key)
	if i < 0 {
		return
	}
	p.len--
	e.len--
	e.fill(b, slices.Concat(b.entries[:i], b.entries[i+1:]))
}

// fill makes a bucket of entries that are its own.
func (e *tableEdit[V]) fill(b *bucket[V], entries []entry[V]) {
	*b = bucket[V]{entries: entries}
	for i := range min(len(entries), 8) {
		b.tags |= tagOf(maphash.String(e.seed, entries[i].key)) << (8 * i)
	}
}

// grow doubles a page's buckets: each is parted by one more bit of the hash.
func (e *tableEdit[V]) grow(p *page[V]) {
	old := p.buckets
	p.buckets = make([]bucket[V], 2*len(old))
	for i := range old {
		var part [2][]entry[V]
		for _, n := range old[i].entries {
			side := maphash.String(e.seed, n.key) / uint64(len(old)) & 1
			part[side] = append(part[side], n)
		}
		e.fill(&p.buckets[i], part[0])
		e.fill(&p.buckets[i+len(old)], part[1])
	}
}
