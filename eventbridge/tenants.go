package eventbridge

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// Rule says whose a leg is. Attr is the name of an attribute (see
// cdr.Record.Attrs), or caller or callee.
type Rule struct {
	Tenant bulkhead.TenantID
	Attr   string
	Value  string
	Prefix bool // Value is how the attribute begins; else it is all of it
}

// The attributes that every record has a place for.
const (
	attrCaller = "caller"
	attrCallee = "callee"
	attrDomain = "domain"
)

// Rules find the tenant of a leg whose switch does not name one. However many
// there are, a leg costs one look-up for each attribute that rules name, and
// one for each length of prefix.
type Rules struct {
	exact  []exactRules
	prefix []prefixRules
}

type exactRules struct {
	attr    string
	tenants map[string]bulkhead.TenantID
}

type prefixRules struct {
	attr    string
	lengths []int // longest first
	tenants map[string]bulkhead.TenantID
}

// NewRules checks and indexes rules. Two of different tenants that match the
// same are bulkhead.Conflict, an empty tenant, attribute or value is
// bulkhead.Invalid.
//
// Their order does not matter. When a leg matches several: whole values win
// over prefixes, a longer prefix over a shorter one, and attributes count in
// the order variables (by name), account_code, domain, context, profile,
// callee, caller. Domains are compared without regard to case, numbers
// without a leading "+".
func NewRules(rules []Rule) (*Rules, error) {
	exact, prefix := map[string]map[string]bulkhead.TenantID{}, map[string]map[string]bulkhead.TenantID{}
	for i, r := range rules {
		if r.Tenant == "" || r.Attr == "" || r.Value == "" {
			return nil, fmt.Errorf("tenant rule %d: it lacks a tenant, an attribute or a value: %w", i, bulkhead.Invalid)
		}
		into, value := exact, canonical(r.Attr, r.Value)
		if r.Prefix {
			into = prefix
		}
		if into[r.Attr] == nil {
			into[r.Attr] = map[string]bulkhead.TenantID{}
		}
		if other, ok := into[r.Attr][value]; ok && other != r.Tenant {
			return nil, fmt.Errorf("tenant rules: %s %q is claimed by %s and by %s: %w", r.Attr, r.Value, other, r.Tenant, bulkhead.Conflict)
		}
		into[r.Attr][value] = r.Tenant
	}
	out := &Rules{}
	for _, attr := range slices.SortedFunc(maps.Keys(exact), byWeight) {
		out.exact = append(out.exact, exactRules{attr, exact[attr]})
	}
	for _, attr := range slices.SortedFunc(maps.Keys(prefix), byWeight) {
		p := prefixRules{attr: attr, tenants: prefix[attr]}
		for v := range p.tenants {
			p.lengths = append(p.lengths, len(v))
		}
		slices.Sort(p.lengths)
		p.lengths = slices.Compact(p.lengths)
		slices.Reverse(p.lengths)
		out.prefix = append(out.prefix, p)
	}
	return out, nil
}

// byWeight orders attributes: the more they say about the tenant the earlier.
func byWeight(a, b string) int {
	weight := func(attr string) int {
		if strings.HasPrefix(attr, cdr.AttrVar) {
			return 0
		}
		return 1 + slices.Index([]string{"account_code", attrDomain, "context", "profile", attrCallee, attrCaller}, attr)
	}
	return cmp.Or(cmp.Compare(weight(a), weight(b)), cmp.Compare(a, b))
}

func canonical(attr, value string) string {
	switch attr {
	case attrDomain:
		return strings.ToLower(value)
	case attrCaller, attrCallee:
		return strings.TrimPrefix(value, "+")
	}
	return value
}

// Vars names the channel variables that rules look at, in order; a source has
// to put them among the attributes.
func (x *Rules) Vars() []string {
	var out []string
	for _, e := range x.exact {
		if v, ok := strings.CutPrefix(e.attr, cdr.AttrVar); ok {
			out = append(out, v)
		}
	}
	for _, p := range x.prefix {
		if v, ok := strings.CutPrefix(p.attr, cdr.AttrVar); ok {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Tenant returns the tenant of a leg, empty when no rule matches.
func (x *Rules) Tenant(r *cdr.Record) bulkhead.TenantID {
	for i := range x.exact {
		e := &x.exact[i]
		if v := attribute(r, e.attr); v != "" {
			if t, ok := e.tenants[v]; ok {
				return t
			}
		}
	}
	for i := range x.prefix {
		p := &x.prefix[i]
		v := attribute(r, p.attr)
		for _, n := range p.lengths {
			if n > len(v) {
				continue
			}
			if t, ok := p.tenants[v[:n]]; ok {
				return t
			}
		}
	}
	return ""
}

func attribute(r *cdr.Record, attr string) string {
	switch attr {
	case attrCaller:
		return canonical(attr, r.Caller)
	case attrCallee:
		return canonical(attr, r.Callee)
	}
	return canonical(attr, r.Attrs[attr])
}

// maxUnmatched bounds how many kinds of unmatched legs are listed.
const maxUnmatched = 500

// Unmatched is one kind of leg that no tenant was found for: those of one node
// with the same attributes.
type Unmatched struct {
	Node      bulkhead.NodeID   `json:"node"`
	Direction cdr.Direction     `json:"direction,omitempty"`
	Attrs     map[string]string `json:"attrs,omitempty"`
	Legs      uint64            `json:"legs"`
	First     time.Time         `json:"first"` // by the bridge's clock
	Last      time.Time         `json:"last"`
	// The last such leg.
	Leg    string `json:"leg"`
	Caller string `json:"caller,omitempty"`
	Callee string `json:"callee,omitempty"`
}

// unmatched counts the legs without a tenant since the bridge started.
type unmatched struct {
	mu    sync.Mutex
	kinds map[string]*Unmatched
	legs  uint64
	other uint64 // legs of further kinds than are listed

	// The last legs that were counted: of most there are two reports.
	recent, before map[cdr.ID]struct{}
}

// unmatchedRecent is how many legs are remembered at least.
const unmatchedRecent = 32768

// add counts a leg; false: it was counted before.
func (u *unmatched) add(r *cdr.Record, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, again := u.recent[r.ID]; again {
		return false
	}
	if _, again := u.before[r.ID]; again {
		return false
	}
	if u.recent == nil || len(u.recent) >= unmatchedRecent {
		u.recent, u.before = map[cdr.ID]struct{}{}, u.recent
	}
	u.recent[r.ID] = struct{}{}
	u.legs++
	var names [cdr.MaxAttrs]string
	told := names[:0]
	for name := range r.Attrs {
		if !strings.HasPrefix(name, cdr.AttrBad) {
			told = append(told, name)
		}
	}
	slices.Sort(told)
	var room [1024]byte
	id := append(append(append(room[:0], r.Node...), 0), r.Direction...)
	for _, name := range told {
		id = append(append(append(append(id, 0), name...), 0), r.Attrs[name]...)
	}
	k := u.kinds[string(id)]
	if k == nil {
		if len(u.kinds) >= maxUnmatched {
			u.other++
			return true
		}
		if u.kinds == nil {
			u.kinds = map[string]*Unmatched{}
		}
		attrs := make(map[string]string, len(told))
		for _, name := range told {
			attrs[name] = r.Attrs[name]
		}
		k = &Unmatched{Node: r.Node, Direction: r.Direction, Attrs: attrs, First: now.UTC()}
		u.kinds[string(id)] = k
	}
	k.Legs++
	k.Last, k.Leg, k.Caller, k.Callee = now.UTC(), r.Leg, r.Caller, r.Callee
	return true
}

// UnmatchedList is what GET /v1/unmatched answers: the kinds of leg without a
// tenant since the bridge started, those with the most legs first.
type UnmatchedList struct {
	Legs  uint64      `json:"legs"`  // in all
	Other uint64      `json:"other"` // of them, of kinds that are not listed because there are too many
	Kinds []Unmatched `json:"kinds"`
}

// Unmatched returns the legs that no tenant was found for.
func (b *Bridge) Unmatched() UnmatchedList {
	u := &b.unmatched
	u.mu.Lock()
	defer u.mu.Unlock()
	out := UnmatchedList{Legs: u.legs, Other: u.other, Kinds: make([]Unmatched, 0, len(u.kinds))}
	for _, k := range u.kinds {
		out.Kinds = append(out.Kinds, *k)
	}
	slices.SortFunc(out.Kinds, func(a, b Unmatched) int { return cmp.Or(cmp.Compare(b.Legs, a.Legs), cmp.Compare(a.Leg, b.Leg)) })
	return out
}
