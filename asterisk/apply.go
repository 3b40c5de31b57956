package asterisk

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Caches keeps the objects that one Asterisk remembers equal to the snapshot:
// it expires those that changed, and Asterisk asks for them again when it needs
// them. Without it they would stay as they are: the shipped caches have no
// lifetime, so that no outage can empty them.
//
// It runs where the Asterisk's questions are answered, so that an object is
// only expired when its successor can be had.
type Caches struct {
	node    bulkhead.NodeID
	ami     AMI
	live    *route.Live
	log     *slog.Logger
	expired prometheus.Counter
	failed  prometheus.Counter
	behind  prometheus.Gauge
}

// NewCaches prepares to keep a node's caches; ami is the user of
// manager_cache.conf.
func NewCaches(node bulkhead.NodeID, ami AMI, live *route.Live, log *slog.Logger, reg prometheus.Registerer) (*Caches, error) {
	if node == "" || ami.Addr == "" || ami.User == "" || ami.Secret == "" {
		return nil, fmt.Errorf("caches of Asterisk %q: an address of AMI, a user and a secret are needed: %w", node, bulkhead.Invalid)
	}
	ami.Timeout, ami.Ping = 2*time.Second, 3*time.Second
	if reg != nil {
		reg = prometheus.WrapRegistererWith(prometheus.Labels{"node": string(node)}, reg)
	}
	return &Caches{
		node: node, ami: ami, live: live, log: log.With("node", node),
		expired: register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_asterisk_cache_expired_total", Help: "Objects and whole caches of Asterisk that were expired."})),
		failed:  register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_asterisk_cache_failures_total", Help: "Tries to expire what changed that failed; they are repeated."})),
		behind:  register(reg, prometheus.NewGauge(prometheus.GaugeOpts{Name: "bulkhead_asterisk_cache_behind", Help: "1 while Asterisk may remember objects of an older revision, else 0."})),
	}, nil
}

// cacheRetry is the pause between tries.
const cacheRetry = time.Second

// cacheSettle is how long an answer from an older snapshot may be on its way
// into a cache, counted from the newer one: Asterisk waits 1 s for an answer
// (res_curl.conf), and a busy one needs a while to make an object of it.
const cacheSettle = 3 * time.Second

// Run follows the snapshots until ctx ends. The first one expires everything:
// what changed before is not known.
//
// What changed is expired at once, and once more when answers from before the
// change, which were on their way then, have all come in: Asterisk would keep
// one that it stored after the expiry for ever.
func (c *Caches) Run(ctx context.Context) error {
	var done, settled *route.Snapshot // expired up to here; and nothing older can come any more
	var settling *route.Snapshot      // what settled will be when wait is over; nil: nothing is on its way
	var wait <-chan time.Time
	var last string
	for {
		x, changed := c.live.Next()
		var err error
		if x != nil && x != done {
			c.behind.Set(1)
			if err = c.apply(ctx, done, x); err == nil {
				done = x
			}
		}
		if err == nil && settling != nil && wait == nil { // it was due
			if err = c.apply(ctx, settled, settling); err == nil {
				settled, settling = settling, nil
			}
		}
		if err != nil {
			c.failed.Inc()
			if err.Error() != last && ctx.Err() == nil {
				last = err.Error()
				c.log.Warn("what changed stays in Asterisk's caches; trying on", "error", err)
			}
			if !sleep(ctx, cacheRetry) {
				return nil
			}
			continue
		}
		last = ""
		if settling == nil && done != settled {
			settling, wait = done, time.After(cacheSettle)
		}
		if settling == nil {
			c.behind.Set(0)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wait:
			wait = nil
		case <-changed:
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// maxExpire is how many objects are expired one by one; beyond it whole caches are.
const maxExpire = 2000

// expiry is one action: an object, or with an empty one a whole cache.
type expiry struct{ cache, object string }

// apply expires what differs between two snapshots.
func (c *Caches) apply(ctx context.Context, from, to *route.Snapshot) error {
	list := changes(from, to, c.node)
	if len(list) == 0 {
		return nil
	}
	conn, err := dialAMI(ctx, c.ami)
	if err != nil {
		return err
	}
	defer conn.close()
	for i, e := range list {
		lines := []string{"Action: SorceryMemoryCacheExpire", "ActionID: " + strconv.Itoa(i), "Cache: " + e.cache}
		if e.object != "" {
			lines[0] = "Action: SorceryMemoryCacheExpireObject"
			lines = append(lines, "Object: "+e.object)
		}
		if err := conn.write(lines...); err != nil {
			return fmt.Errorf("expire %s %s: %w", e.cache, e.object, err)
		}
		if err := conn.expired(ctx, strconv.Itoa(i), e); err != nil {
			return err
		}
		c.expired.Inc()
	}
	return nil
}

// expired waits for the response to an action. An object that is not in the
// cache is as good as expired.
func (c *amiConn) expired(ctx context.Context, id string, e expiry) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m, ok := <-c.messages:
			switch {
			case !ok:
				return c.err
			case m["ActionID"] != id || m["Response"] == "":
				continue
			case m["Response"] == "Success" || e.object != "" && m["Message"] == "The provided object could not be expired from the cache":
				return nil
			}
			return fmt.Errorf("expire %s %s: Asterisk refuses (%s): check manager_cache.conf and sorcery.conf: %w", e.cache, e.object, text(m["Message"]), bulkhead.Denied)
		}
	}
}

func cacheName(object string) string { return "bulkhead_" + object }

// everything is all caches.
func everything() []expiry {
	list := []expiry{{cache: cacheName("identify")}}
	for _, o := range cachedObjects {
		list = append(list, expiry{cache: cacheName(o)})
	}
	return list
}

// changes returns what a node remembers of one snapshot that is not so in the
// next. Snapshots share what is the same, so that tenants are compared by address.
func changes(from, to *route.Snapshot, node bulkhead.NodeID) []expiry {
	if from == nil {
		return everything()
	}
	a, b := &scope{x: from, cell: from.CellOf(node)}, &scope{x: to, cell: to.CellOf(node)}
	if a.cell != b.cell {
		return everything()
	}
	var list []expiry
	seen := map[bulkhead.TenantID]bool{}
	for _, s := range []*scope{a, b} {
		for t := range s.x.Tenants() {
			if t.Cell != a.cell || seen[t.ID] || from.Tenant(t.ID) == to.Tenant(t.ID) {
				continue
			}
			seen[t.ID] = true
			list = appendTenant(list, from.Tenant(t.ID), to.Tenant(t.ID))
		}
	}
	sbcs := false
	for _, s := range []*scope{a, b} {
		for _, sbc := range s.sbcs() {
			if old, new := from.SBC(sbc.ID), to.SBC(sbc.ID); old == nil || new == nil || old.SIP != new.SIP || old.Cell != new.Cell {
				list = append(list, expiry{cacheName("endpoint"), sbcPrefix + string(sbc.ID)})
				sbcs = true
			}
		}
	}
	if len(list) > maxExpire {
		return everything()
	}
	if sbcs || len(seen) > 0 {
		list = append(list, expiry{cache: cacheName("identify")}) // it is kept whole
	}
	return list
}

// appendTenant adds the objects that a tenant has, or had.
func appendTenant(list []expiry, versions ...*bulkhead.Tenant) []expiry {
	seen := map[expiry]bool{}
	add := func(object string, caches ...string) {
		for _, c := range caches {
			if e := (expiry{cacheName(c), object}); !seen[e] {
				seen[e] = true
				list = append(list, e)
			}
		}
	}
	for _, t := range versions {
		if t == nil || len(t.Domains) == 0 {
			continue
		}
		for i := range t.Users {
			add(userName(t.Users[i].Extension, t.Realm()), "endpoint", "auth", "aor")
		}
		for i := range t.Trunks {
			add(trunkName(t.ID, t.Trunks[i].Name), "endpoint", "auth")
		}
		add(string(t.ID)+sourceSuffix, "endpoint")
		for _, d := range t.Domains[1:] {
			add(d, "domain_alias")
		}
	}
	return list
}
