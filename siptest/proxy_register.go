package siptest

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
)

// Bounds of the location table.
const (
	maxContacts = 10      // of one address of record
	maxBindings = 1 << 17 // in all
)

// register is the registrar (RFC 3261 section 10.3).
func (p *Proxy) register(tx *serverTx) {
	to, from := tx.req.To().Address, tx.req.From().Address
	q := Request{
		Method: sip.REGISTER, Source: tx.src, Domain: domainOf(to), User: to.User,
		FromDomain: domainOf(from), FromUser: from.User,
	}
	v := p.cfg.Router.Route(q)
	if v.Refuse == nil && v.Challenge != nil {
		if !p.authenticate(tx, &v) {
			return
		}
		q.AuthUser = v.Challenge.User
		v = p.cfg.Router.Route(q)
	}
	switch {
	case v.Refuse != nil:
		tx.reply(v.Refuse.Code, v.Refuse.Reason)
		return
	case v.AOR == "":
		tx.reply(sip.StatusForbidden, "Forbidden")
		return
	}
	now := time.Now()
	if code, reason := p.locations.update(v.AOR, tx.req, tx.src, now); code != 0 {
		tx.reply(code, reason)
		return
	}
	var bound []sip.Header
	for _, b := range p.locations.lookup(v.AOR, now) {
		c := b.contact.Clone()
		c.Params.Add("expires", strconv.Itoa(int(b.expires.Sub(now).Round(time.Second)/time.Second)))
		bound = append(bound, c)
	}
	tx.reply(sip.StatusOK, "OK", bound...)
}

// binding is one Contact of an address of record.
type binding struct {
	contact *sip.ContactHeader // without parameters
	addr    netip.AddrPort     // where its REGISTER came from, and where calls go
	callID  string
	seq     uint32
	expires time.Time
}

// locations is the location table, bounded and in memory only.
type locations struct {
	max time.Duration

	mu    sync.Mutex
	table map[string][]binding // latest first
	n     int
}

func newLocations(maxExpires time.Duration) *locations {
	return &locations{max: maxExpires, table: map[string][]binding{}}
}

// lookup returns the live bindings, the latest first.
func (l *locations) lookup(aor string, now time.Time) []binding {
	l.mu.Lock()
	defer l.mu.Unlock()
	var live []binding
	for _, b := range l.table[aor] {
		if b.expires.After(now) {
			live = append(live, b)
		}
	}
	return live
}

func (l *locations) size(now time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire(now)
	return l.n
}

// sweep removes the expired bindings each 10 s until ctx ends.
func (l *locations) sweep(ctx context.Context) {
	t := time.NewTicker(10 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			l.mu.Lock()
			l.expire(now)
			l.mu.Unlock()
		}
	}
}

// expire is called with the lock held.
func (l *locations) expire(now time.Time) {
	for aor, bs := range l.table {
		l.put(aor, slices.DeleteFunc(bs, func(b binding) bool { return !b.expires.After(now) }), len(bs))
	}
}

// put is called with the lock held.
func (l *locations) put(aor string, bs []binding, before int) {
	l.n += len(bs) - before
	if len(bs) == 0 {
		delete(l.table, aor)
		return
	}
	l.table[aor] = bs
}

// update applies a REGISTER; all of it or, with a status to answer, nothing.
func (l *locations) update(aor string, req *sip.Request, src netip.AddrPort, now time.Time) (code int, reason string) {
	contacts := req.GetHeaders("Contact")
	if len(contacts) > maxContacts {
		return sip.StatusForbidden, "Too Many Contacts"
	}
	callID, seq := req.CallID().Value(), req.CSeq().SeqNo
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.table[aor])
	bs := slices.Clone(l.table[aor])
	for _, h := range contacts {
		c, ok := h.(*sip.ContactHeader)
		if !ok {
			return sip.StatusBadRequest, "Bad Contact"
		}
		life, err := l.life(req, c)
		if err != nil || (c.Address.Wildcard && (life != 0 || len(contacts) > 1)) {
			return sip.StatusBadRequest, "Bad Expires"
		}
		same := func(b binding) bool { return c.Address.Wildcard || sameContact(b.contact.Address, c.Address) }
		for _, b := range bs {
			if same(b) && b.callID == callID && b.seq >= seq {
				return sip.StatusInternalServerError, "CSeq Too Low"
			}
		}
		bs = slices.DeleteFunc(bs, same)
		if life > 0 {
			contact := &sip.ContactHeader{Address: *c.Address.Clone()}
			bs = slices.Insert(bs, 0, binding{contact: contact, addr: src, callID: callID, seq: seq, expires: now.Add(life)})
		}
	}
	if len(bs) > maxContacts {
		bs = bs[:maxContacts] // the oldest goes: it is the likeliest to be dead
	}
	if l.n+len(bs)-before > maxBindings {
		return sip.StatusServiceUnavailable, "Location Table Full"
	}
	l.put(aor, bs, before)
	return 0, ""
}

// life reads how long a Contact is to be bound: its expires parameter, else
// the Expires header, else an hour, at most the registrar's bound.
func (l *locations) life(req *sip.Request, c *sip.ContactHeader) (time.Duration, error) {
	v, ok := c.Params.Get("expires")
	if !ok {
		v = header(req, "Expires")
	}
	if v == "" {
		return min(time.Hour, l.max), nil
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return 0, bulkhead.Invalid
	}
	return min(time.Duration(n)*time.Second, l.max), nil
}

func sameContact(a, b sip.Uri) bool {
	return a.User == b.User && domainOf(a) == domainOf(b) && a.Port == b.Port
}
