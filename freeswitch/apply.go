package freeswitch

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Caches keeps the directory users that one FreeSWITCH remembers (those that
// were answered with cacheable) equal to the snapshot: when a revision changes
// users, it empties the switch's cache, and FreeSWITCH asks again. It empties
// all of it: that is what captures show of xml_flush_cache.
//
// It runs where the switch's questions are answered, so that what is asked
// again is answered from the new revision.
type Caches struct {
	node    bulkhead.NodeID
	esl     Config
	live    *route.Live
	log     *slog.Logger
	flushed prometheus.Counter
	failed  prometheus.Counter
	behind  prometheus.Gauge
}

// NewCaches prepares to keep a node's cache.
func NewCaches(node bulkhead.NodeID, esl Config, live *route.Live, log *slog.Logger, reg prometheus.Registerer) (*Caches, error) {
	if node == "" {
		return nil, fmt.Errorf("cache of a FreeSWITCH: no node is named: %w", bulkhead.Invalid)
	}
	if err := esl.validate(); err != nil {
		return nil, err
	}
	esl.DialTimeout, esl.AuthTimeout, esl.CommandTimeout = flushTimeout, flushTimeout, flushTimeout
	if reg != nil {
		reg = prometheus.WrapRegistererWith(prometheus.Labels{"node": string(node)}, reg)
	}
	return &Caches{
		node: node, esl: esl, live: live, log: log.With("node", node),
		flushed: register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_freeswitch_cache_flushes_total", Help: "Times that a FreeSWITCH's directory cache was emptied."})),
		failed:  register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_freeswitch_cache_failures_total", Help: "Tries to empty a FreeSWITCH's directory cache that failed; they are repeated."})),
		behind:  register(reg, prometheus.NewGauge(prometheus.GaugeOpts{Name: "bulkhead_freeswitch_cache_behind", Help: "1 while a FreeSWITCH may remember users of an older revision, else 0."})),
	}, nil
}

const (
	flushTimeout = time.Second            // to connect, to be let in, and for the command
	flushRetry   = 500 * time.Millisecond // between tries
	// flushSettle is when the cache is emptied once more: an answer from the
	// snapshot before may have been on its way when it was emptied first.
	// configsvc answers within a quarter of a second.
	flushSettle = 600 * time.Millisecond
)

// Run follows the snapshots until ctx ends. The first one empties the cache:
// what changed before is not known.
func (c *Caches) Run(ctx context.Context) error {
	settled := time.NewTimer(time.Hour)
	settled.Stop()
	defer settled.Stop()
	var done *route.Snapshot
	var last string
	flush := func() bool {
		c.behind.Set(1)
		err := c.flush(ctx)
		if err == nil {
			c.flushed.Inc()
			c.behind.Set(0)
			last = ""
			return true
		}
		c.failed.Inc()
		if err.Error() != last && ctx.Err() == nil {
			last = err.Error()
			c.log.Warn("users that changed stay in the switch's cache; trying on", "error", err)
		}
		return false
	}
	for {
		x, changed := c.live.Next()
		retry := (<-chan time.Time)(nil)
		switch {
		case x == nil || x == done:
		case !usersChanged(done, x, c.node):
			done = x
		case flush():
			done = x
			settled.Reset(flushSettle)
		default:
			retry = time.After(flushRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-retry:
		case <-settled.C:
			if !flush() {
				done = nil // from the start again
			}
		}
	}
}

func (c *Caches) flush(ctx context.Context) error {
	conn, err := Dial(ctx, c.esl)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.API(ctx, "xml_flush_cache")
	return err
}

// usersChanged reports whether the node may remember a user of one snapshot
// who is not so in the next. Snapshots share what is the same, so that most
// tenants are compared by address.
func usersChanged(from, to *route.Snapshot, node bulkhead.NodeID) bool {
	n := to.Node(node)
	if from == nil {
		return n != nil && n.Cacheable > 0
	}
	old := from.Node(node)
	if (old == nil || old.Cacheable == 0) && (n == nil || n.Cacheable == 0) {
		return false
	}
	cell := to.CellOf(node)
	if cell != from.CellOf(node) || sbcOf(from, cell) != sbcOf(to, cell) || old == nil || n == nil || old.Cacheable != n.Cacheable {
		return true
	}
	for t := range to.Tenants() {
		if before := from.Tenant(t.ID); before != t && (t.Cell == cell || before != nil && before.Cell == cell) && !sameUsers(before, t) {
			return true
		}
	}
	for t := range from.Tenants() {
		if t.Cell == cell && to.Tenant(t.ID) == nil {
			return true
		}
	}
	return false
}

// sameUsers compares what the directory shows of two versions of a tenant.
func sameUsers(a, b *bulkhead.Tenant) bool {
	return a != nil && a.Cell == b.Cell && a.IsManaged() == b.IsManaged() && slices.Equal(a.Domains, b.Domains) &&
		slices.EqualFunc(a.Users, b.Users, func(a, b bulkhead.User) bool {
			return a.Extension == b.Extension && a.HA1 == b.HA1 && a.CallerID == b.CallerID && a.Devices == b.Devices
		})
}
