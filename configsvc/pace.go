package configsvc

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// pacer gives each tenant's questions their turn. A tenant's first questions
// are answered at once, burst of them; after that they get one turn an
// interval, and each waits for its own. So a tenant that floods waits for
// itself, and the time of the processors stays with the others. It is one
// number a tenant: when its next turn is (a generic cell rate algorithm).
type pacer struct {
	interval time.Duration
	burst    time.Duration // how far ahead of its turn a question may be
	start    time.Time
	seed     maphash.Seed
	shards   [64]pacerShard
}

type pacerShard struct {
	mu sync.Mutex
	// next is since start, by the asker's hash: two askers of one hash, which
	// nobody can choose without the seed, would share their turns and no more.
	next map[uint64]time.Duration
	_    [40]byte // its own cache line
}

// asker is who a turn belongs to: a tenant, or the node whose question is no tenant's.
type asker struct {
	tenant bulkhead.TenantID
	node   bulkhead.NodeID
}

// shardSize is when a shard forgets the askers that are not ahead of their turn.
const shardSize = 4096

// newPacer takes questions a second, 1 to a million; burst is half a second's.
func newPacer(rate int) *pacer {
	p := &pacer{interval: time.Second / time.Duration(rate), burst: time.Second / 2, start: time.Now(), seed: maphash.MakeSeed()}
	for i := range p.shards {
		p.shards[i].next = map[uint64]time.Duration{}
	}
	return p
}

func (p *pacer) hash(a asker) uint64 {
	if a.tenant != "" {
		return maphash.String(p.seed, string(a.tenant))
	}
	return ^maphash.String(p.seed, string(a.node))
}

// turn returns how long the next question of a has to wait; ok is false, and no
// turn is taken, if that were longer than limit. Who need not wait never comes
// too late.
func (p *pacer) turn(a asker, now time.Time, limit time.Duration) (wait time.Duration, ok bool) {
	hash := p.hash(a)
	s := &p.shards[hash%uint64(len(p.shards))]
	at := now.Sub(p.start)
	s.mu.Lock()
	defer s.mu.Unlock()
	next := max(s.next[hash], at)
	wait = max(0, next-at-p.burst)
	if wait > max(limit, 0) {
		return wait, false
	}
	if len(s.next) >= shardSize {
		for id, n := range s.next {
			if n <= at {
				delete(s.next, id)
			}
		}
	}
	s.next[hash] = next + p.interval
	return wait, true
}
