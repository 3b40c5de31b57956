package main

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// router lets siptest's proxy decide as a Kamailio with Bulkhead's tables does.
type router struct {
	sbc  bulkhead.SBCID
	live *route.Live
	sets atomic.Pointer[indexedSets]
}

// indexedSets are the dispatcher sets of one snapshot, and whose they are.
type indexedSets struct {
	of   *route.Snapshot
	rows []route.Row // in the order of their keys
	byID map[int]route.Set
}

// maxTries is how many nodes of a set a call is offered to, as kamailio.cfg has it.
const maxTries = 5

func (r *router) Peer(src netip.AddrPort) (string, bool) {
	id, ok := r.live.Load().Peer(src)
	return string(id), ok
}

func (r *router) Route(q siptest.Request) siptest.Verdict {
	x := r.live.Load()
	v := siptest.Verdict{Revision: strconv.FormatUint(uint64(x.Revision()), 10)}
	switch {
	case q.Method == "REGISTER":
		r.register(x, q, &v)
	case q.Node != "":
		r.toUser(x, q, &v)
	default:
		r.invite(x, q, &v)
	}
	return v
}

// own returns the tenant of a domain if it lives in the SBC's cell.
func (r *router) own(x *route.Snapshot, domain string) *bulkhead.Tenant {
	t, sbc := x.TenantByDomain(domain), x.SBC(r.sbc)
	if t == nil || sbc == nil || t.Cell != sbc.Cell {
		return nil
	}
	return t
}

func (r *router) register(x *route.Snapshot, q siptest.Request, v *siptest.Verdict) {
	t := r.own(x, q.Domain)
	switch {
	case t == nil:
		v.Refuse = refusal(route.UnknownDomain)
	case q.AuthUser != q.User:
		v.Tenant, v.Challenge = string(t.ID), challenge(t, q.User)
	default:
		v.Tenant, v.AOR = string(t.ID), aor(t, q.User)
	}
}

// toUser routes what a node sends back to the SBC: the leg to a phone.
func (r *router) toUser(x *route.Snapshot, q siptest.Request, v *siptest.Verdict) {
	t := r.own(x, q.Domain)
	switch {
	case t == nil:
		v.Refuse = refusal(route.UnknownDomain)
	case x.User(t.ID, q.User) == nil:
		v.Tenant, v.Refuse = string(t.ID), refusal(route.UnknownNumber)
	default:
		v.Tenant, v.AOR = string(t.ID), aor(t, q.User)
	}
}

func (r *router) invite(x *route.Snapshot, q siptest.Request, v *siptest.Verdict) {
	p := route.Decide(x, route.Call{SBC: r.sbc, Domain: q.Domain, Source: q.Source.Addr(), Number: q.User, User: q.AuthUser})
	refused, _ := p.Actions[0].(route.Reject) // a plan of nobody's call holds nothing else
	if t := r.own(x, q.Domain); t != nil && slices.Contains(t.Domains, q.FromDomain) && q.AuthUser == "" {
		// Who says that he is a user must prove it: to be let in at all, or,
		// inside a network of the tenant, to be allowed what users are.
		if p.Tenant == "" && refused == route.UnlistedSource || p.Tenant == t.ID && t.User(q.FromUser) != nil {
			v.Tenant, v.Challenge = string(t.ID), challenge(t, q.FromUser)
			return
		}
	}
	if p.Tenant == "" {
		v.Refuse = refusal(refused)
		return
	}
	v.Tenant = string(p.Tenant)
	v.Targets = r.targets(x, p.Tenant)
	v.Headers = []siptest.Header{
		{Name: "X-Bulkhead-Tenant", Value: string(p.Tenant)},
		{Name: "X-Bulkhead-SBC", Value: string(r.sbc)},
		{Name: "X-Bulkhead-Revision", Value: v.Revision},
	}
	if q.AuthUser != "" {
		v.Headers = append(v.Headers, siptest.Header{Name: "X-Bulkhead-User", Value: q.AuthUser})
	}
}

// targets returns a tenant's nodes in the order in which to try them: those
// of its set, and then of the backup pool's.
func (r *router) targets(x *route.Snapshot, id bulkhead.TenantID) []siptest.Target {
	idx := r.index(x)
	key := "t:" + string(id)
	i, ok := slices.BinarySearchFunc(idx.rows, key, func(row route.Row, key string) int { return strings.Compare(row.Key, key) })
	if !ok {
		return nil
	}
	// SET|ALGORITHM|POOL|REALM|BACKUP SET and more
	f := strings.Split(idx.rows[i].Value, "|")
	var out []siptest.Target
	for _, field := range []int{0, 4} {
		if set, err := strconv.Atoi(f[field]); err == nil { // 0: no backup, and no such set
			out = append(out, inOrder(idx.byID[set])...)
		}
	}
	return out
}

// index returns the dispatcher sets of a snapshot.
func (r *router) index(x *route.Snapshot) *indexedSets {
	if idx := r.sets.Load(); idx != nil && idx.of == x {
		return idx
	}
	idx := &indexedSets{of: x, byID: map[int]route.Set{}}
	if tables, err := route.MakeTables(x, r.sbc); err == nil {
		idx.rows = tables.Rows
		for _, s := range tables.Sets {
			idx.byID[s.ID] = s
		}
	}
	r.sets.Store(idx)
	return idx
}

// inOrder returns a set's nodes as ds_select_dst orders them.
func inOrder(s route.Set) []siptest.Target {
	order := slices.DeleteFunc(slices.Clone(s.Targets), func(t route.Target) bool { return t.Disabled || t.Down })
	if s.Algorithm == route.ByWeight {
		byWeight(order)
	}
	out := make([]siptest.Target, 0, len(order))
	for _, t := range order[:min(len(order), maxTries)] {
		if ap, err := netip.ParseAddrPort(strings.TrimPrefix(t.URI, "sip:")); err == nil {
			out = append(out, siptest.Target{Node: string(t.Node), Addr: ap})
		}
	}
	return out
}

// byWeight shuffles targets so that each place goes to one of the rest in
// proportion to its weight.
func byWeight(t []route.Target) {
	for i := range t {
		total := 0
		for _, x := range t[i:] {
			total += x.Weight
		}
		if total <= 0 {
			return
		}
		n := rand.IntN(total)
		for j := i; j < len(t); j++ {
			if n -= t[j].Weight; n < 0 {
				t[i], t[j] = t[j], t[i]
				break
			}
		}
	}
}

func challenge(t *bulkhead.Tenant, user string) *siptest.Challenge {
	c := &siptest.Challenge{Realm: t.Realm(), User: user}
	if u := t.User(user); u != nil {
		c.HA1 = u.HA1
	}
	return c
}

func aor(t *bulkhead.Tenant, user string) string { return "sip:" + user + "@" + string(t.ID) }

func refusal(r route.Reject) *siptest.Refusal {
	return &siptest.Refusal{Code: r.Status, Reason: r.Reason}
}
