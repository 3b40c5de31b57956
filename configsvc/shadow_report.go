package configsvc

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// Verdict says how a decision and what happened go together.
type Verdict string

// The verdicts.
const (
	Same      Verdict = "same"
	Different Verdict = "different"
	NotKnown  Verdict = "not known" // the records do not tell
	Unmanaged Verdict = "unmanaged" // it would have been left alone
)

// Comparison is a decision beside the records of its call.
type Comparison struct {
	Decision Decision `json:"decision"`
	Verdict  Verdict  `json:"verdict"`
	How      string   `json:"how,omitempty"` // in words; empty when it is the same
}

// ShadowReport compares decisions with records.
type ShadowReport struct {
	calls []*shadowCall
	byLeg map[shadowKey]*shadowCall // leg, or SIP Call-ID, of the caller's own leg
	byTop map[shadowKey]*shadowCall // cdr.Record.Call of records that were found
}

// shadowKey names a leg or call on a node.
type shadowKey struct {
	node bulkhead.NodeID
	name string
	sip  bool // name is a SIP Call-ID
}

type shadowCall struct {
	decision Decision
	caller   *cdr.Record
	called   []cdr.Record
}

// maxCalled bounds the called legs that are kept of one call.
const maxCalled = 32

// NewShadowReport returns an empty report.
func NewShadowReport() *ShadowReport {
	return &ShadowReport{byLeg: map[shadowKey]*shadowCall{}, byTop: map[shadowKey]*shadowCall{}}
}

// Decide adds a decision. Of several about one leg the first counts: a PBX
// asks again whenever its own dialplan sends the call elsewhere. They must be
// added in the order of time, and before any record.
func (r *ShadowReport) Decide(d Decision) {
	key := shadowKey{node: d.Node, name: d.Leg}
	if d.Leg == "" {
		key.name, key.sip = d.SIPCallID, true
	}
	if key.name == "" || r.byLeg[key] != nil {
		return
	}
	c := &shadowCall{decision: d}
	r.calls = append(r.calls, c)
	r.byLeg[key] = c
	if !key.sip {
		r.byTop[key] = c
	}
}

// Span returns the times of the first and the last decision; false if there is none.
func (r *ShadowReport) Span() (first, last time.Time, ok bool) {
	for _, c := range r.calls {
		at := c.decision.Time
		if first.IsZero() || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	return first, last, len(r.calls) > 0
}

// Record adds a record of a leg; others are ignored. They must come in the
// order of time: the caller's leg before those that it made.
func (r *ShadowReport) Record(rec cdr.Record) {
	if rec.Kind != cdr.Leg {
		return
	}
	c := r.byLeg[shadowKey{node: rec.Node, name: rec.Leg}]
	if c == nil && rec.Direction != cdr.Outbound {
		c = r.byLeg[shadowKey{node: rec.Node, name: rec.SIPCallID, sip: true}]
	}
	if c != nil {
		c.caller = &rec
		r.byTop[shadowKey{node: rec.Node, name: rec.Call}] = c
		return
	}
	if c = r.byTop[shadowKey{node: rec.Node, name: rec.Call}]; c != nil && rec.Direction == cdr.Outbound && len(c.called) < maxCalled {
		c.called = append(c.called, rec)
	}
}

// Comparisons returns each call with its verdict, in the order of decisions.
func (r *ShadowReport) Comparisons() []Comparison {
	out := make([]Comparison, len(r.calls))
	for i, c := range r.calls {
		out[i].Decision = c.decision
		out[i].Verdict, out[i].How = c.compare()
	}
	return out
}

// TenantShadow is what a report says of one tenant; without a name, of the
// calls that are no managed tenant's.
type TenantShadow struct {
	Tenant    bulkhead.TenantID `json:"tenant"`
	Calls     int               `json:"calls"`
	Same      int               `json:"same"`
	Different int               `json:"different"`
	NotKnown  int               `json:"not_known"`
	Unmanaged int               `json:"unmanaged"`
	How       []ShadowHow       `json:"how,omitempty"` // the most frequent first
}

// ShadowHow counts calls that were different, or not known, in the same way.
type ShadowHow struct {
	Verdict Verdict `json:"verdict"`
	How     string  `json:"how"`
	Calls   int     `json:"calls"`
}

// Tenants sums comparisons up by tenant, in the order of ids. most bounds the
// ways that are named for each.
func Tenants(list []Comparison, most int) []TenantShadow {
	sums, ways := map[bulkhead.TenantID]*TenantShadow{}, map[bulkhead.TenantID]map[ShadowHow]int{}
	for i := range list {
		c := &list[i]
		id := c.Decision.Tenant
		if !c.Decision.Managed {
			id = ""
		}
		t := sums[id]
		if t == nil {
			t = &TenantShadow{Tenant: id}
			sums[id], ways[id] = t, map[ShadowHow]int{}
		}
		t.Calls++
		switch c.Verdict {
		case Same:
			t.Same++
		case Different:
			t.Different++
		case NotKnown:
			t.NotKnown++
		case Unmanaged:
			t.Unmanaged++
		}
		if c.How != "" {
			ways[id][ShadowHow{Verdict: c.Verdict, How: c.How}]++
		}
	}
	out := make([]TenantShadow, 0, len(sums))
	for _, id := range slices.Sorted(maps.Keys(sums)) {
		t := sums[id]
		for how, n := range ways[id] {
			how.Calls = n
			t.How = append(t.How, how)
		}
		slices.SortFunc(t.How, func(a, b ShadowHow) int {
			return cmp.Or(cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(b.Calls, a.Calls), cmp.Compare(a.How, b.How))
		})
		t.How = t.How[:min(len(t.How), most)]
		out = append(out, *t)
	}
	return out
}
