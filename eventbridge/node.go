package eventbridge

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// CauseGap is the Cause of a synthesised record: the leg ended while its node
// was not heard, so that its end and real cause are not known.
const CauseGap = "ended in gap"

const (
	maxLegName = 256  // bytes; a Channel-UUID has 36
	maxText    = 2048 // bytes of any other text in a record
	gapLegs    = 500  // legs named in one gap entry; a longer list takes several entries of the same id
)

// effects is what has to be written because of some events, in this order:
// the lines of before, the entries, and once those are durable the lines of after.
type effects struct {
	before  []line
	entries []cdr.Entry
	after   []line
}

// leg is an open leg and the connection on which it was last seen.
type leg struct {
	record     cdr.Record
	connection int
}

// node is what the recorder knows of one media node.
type node struct {
	id      bulkhead.NodeID
	cell    bulkhead.CellID
	maxLegs int

	core       string
	heard      time.Time // of the last event, by the node's clock; zero: never heard
	journaled  bool      // the journal says when it was heard
	open       map[string]leg
	gap        *cdr.Gap // the open gap; nil: none
	gapSince   time.Time
	connection int                 // counts connections, so that legs of an earlier one are told apart
	listed     bool                // the legs were listed on this connection
	ended      map[string]struct{} // legs that ended on this connection before the listing

	gaps      int // opened since the start of the bridge
	untracked int // legs that were not remembered, because maxLegs were open
	invalid   int // events without a usable leg name
}

func newNode(id bulkhead.NodeID, cell bulkhead.CellID) *node {
	return &node{id: id, cell: cell, open: map[string]leg{}}
}

// apply takes one item in its turn.
func (n *node) apply(it *item, now time.Time, fx *effects) {
	if it.lost != "" {
		n.lost(it.lost, now, fx)
		return
	}
	ev := &it.event
	if ev.Time = normalTime(ev.Time); ev.Time.IsZero() {
		ev.Time = now.UTC().Truncate(time.Microsecond)
	}
	switch ev.Type {
	case cdr.Connected:
		n.connected(ev, fx)
	case cdr.Opened, cdr.Answered:
		n.began(ev, fx)
	case cdr.Closed:
		n.closed(ev, fx)
	}
	n.heard = ev.Time
}

// lost opens a gap, unless one is open or the node was never heard.
func (n *node) lost(reason string, now time.Time, fx *effects) {
	n.connection++
	n.listed, n.ended = false, nil
	if n.gap != nil || n.heard.IsZero() {
		return
	}
	n.gap = &cdr.Gap{
		ID:     cdr.NewID(n.cell, string(n.id), "gap:"+n.heard.Format(time.RFC3339Nano)).String(),
		Cell:   n.cell,
		Node:   n.id,
		From:   n.heard,
		Reason: reason,
	}
	n.gapSince = now
	n.gaps++
	g := *n.gap
	fx.entries = append(fx.entries, cdr.Entry{Gap: &g})
	fx.after = append(fx.after, line{Node: n.id, Gap: &g})
}

func (n *node) began(ev *cdr.Event, fx *effects) {
	r, ok := n.normal(ev.Record)
	if !ok {
		return
	}
	old, known := n.open[r.Leg]
	if !known && len(n.open) >= n.maxLegs {
		n.untracked++
		return
	}
	if known {
		r = overlay(old.record, r)
	}
	n.open[r.Leg] = leg{record: r, connection: n.connection}
	ln := line{Node: n.id, Open: []cdr.Record{r}}
	if !n.journaled { // else a kill before the first line of after would leave legs without a time
		ln.Heard, n.journaled = ev.Time, true
	}
	fx.before = append(fx.before, ln)
}

func (n *node) closed(ev *cdr.Event, fx *effects) {
	r, ok := n.normal(ev.Record)
	if !ok {
		return
	}
	fx.entries = append(fx.entries, cdr.Entry{Record: &r})
	if !n.listed {
		if n.ended == nil {
			n.ended = map[string]struct{}{}
		}
		n.ended[r.Leg] = struct{}{}
	}
	if _, known := n.open[r.Leg]; known {
		delete(n.open, r.Leg)
		fx.after = append(fx.after, line{Node: n.id, Gone: []string{r.Leg}})
	}
}

// connected closes the gap and settles the legs that were open before it.
// Only legs of earlier connections can have ended in the gap: one that began
// on this connection may be missing in the list because the switch makes the
// list from a table that lags behind its events.
func (n *node) connected(ev *cdr.Event, fx *effects) {
	if n.listed {
		return
	}
	n.listed = true
	live := make(map[string]struct{}, len(ev.Live))
	for _, name := range ev.Live {
		live[name] = struct{}{}
	}
	restarted := n.core != "" && ev.Core != "" && n.core != ev.Core
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(n.open)) {
		l := n.open[name]
		if _, on := live[name]; l.connection < n.connection && (restarted || !on) {
			gone = append(gone, name)
			continue
		}
		l.connection = n.connection
		n.open[name] = l
	}
	ln := line{Node: n.id, Heard: ev.Time, Core: ev.Core, Healed: true}
	if n.gap != nil {
		n.gap.To = ev.Time
		if ev.Time.Before(n.gap.From) { // the node's clock was set back
			n.gap.To = n.gap.From
		}
		ln.Gone = n.end(gone, fx)
		n.gap = nil
	}
	ln.Open = n.adopt(ev.Live)
	if ev.Core != "" {
		n.core = ev.Core
	}
	n.ended = nil
	fx.after = append(fx.after, ln)
}

// adopt remembers legs that began unseen. Of those only the name is known
// until they end.
func (n *node) adopt(live []string) []cdr.Record {
	var out []cdr.Record
	for _, name := range live {
		_, known := n.open[name]
		_, ended := n.ended[name]
		if known || ended {
			continue
		}
		r, ok := n.normal(cdr.Record{Leg: name})
		if !ok {
			continue
		}
		if len(n.open) >= n.maxLegs {
			n.untracked++
			continue
		}
		n.open[name] = leg{record: r, connection: n.connection}
		out = append(out, r)
	}
	return out
}

// giveUp ends the legs of a node whose gap lasts too long. The gap stays open.
func (n *node) giveUp(fx *effects) {
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(n.open)) {
		if n.open[name].connection < n.connection {
			gone = append(gone, name)
		}
	}
	if len(gone) > 0 {
		fx.after = append(fx.after, line{Node: n.id, Gone: n.end(gone, fx)})
	}
}

// end writes the present gap with the legs that ended in it, and a
// synthesised record for each.
func (n *node) end(gone []string, fx *effects) []string {
	rest := gone
	for first := true; first || len(rest) > 0; first = false {
		g := *n.gap
		g.Legs = rest[:min(gapLegs, len(rest))]
		rest = rest[len(g.Legs):]
		fx.entries = append(fx.entries, cdr.Entry{Gap: &g})
	}
	for _, name := range gone {
		r := n.open[name].record
		r.Source, r.Gap, r.Cause, r.End = cdr.SourceSynthesised, n.gap.ID, CauseGap, time.Time{}
		fx.entries = append(fx.entries, cdr.Entry{Record: &r})
		delete(n.open, name)
	}
	return gone
}

// normal fills what the bridge knows better than, or as well as, the source,
// and bounds the texts. false: the record does not name its leg.
func (n *node) normal(r cdr.Record) (cdr.Record, bool) {
	if r.Leg == "" || len(r.Leg) > maxLegName {
		n.invalid++
		return r, false
	}
	r.Schema = cdr.SchemaVersion
	r.Cell, r.Node = n.cell, n.id
	r.Kind = cmp.Or(r.Kind, cdr.Leg)
	r.Source = cmp.Or(r.Source, cdr.SourceESL)
	r.Call = cmp.Or(r.Call, r.Leg)
	if r.ID == (cdr.ID{}) {
		r.ID = cdr.NewID(n.cell, string(n.id), r.Leg)
	}
	bound(&r)
	return r, true
}

// bound cuts what is longer than any honest value, so that a record always
// fits the stream, and brings times to the form that records hold.
func bound(r *cdr.Record) {
	r.Leg, r.Call = clip(r.Leg, maxLegName), clip(r.Call, maxLegName)
	r.Node, r.SBC = clip(r.Node, maxLegName), clip(r.SBC, maxLegName)
	r.Pool, r.Tenant = clip(r.Pool, maxLegName), clip(r.Tenant, maxLegName)
	for _, s := range []*string{&r.SIPCallID, &r.Caller, &r.Callee, &r.Cause, &r.Codec, &r.Gap} {
		*s = clip(*s, maxText)
	}
	for _, t := range []*time.Time{&r.Start, &r.Ring, &r.Answer, &r.End} {
		*t = normalTime(*t)
	}
}

// normalTime is t as records hold it. A year that JSON cannot hold counts as unknown.
func normalTime(t time.Time) time.Time {
	if t = t.UTC().Truncate(time.Microsecond); t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}

// overlay is the newer report of an open leg, filled up from the older one.
func overlay(older, newer cdr.Record) cdr.Record {
	r := newer
	r.SBC = cmp.Or(r.SBC, older.SBC)
	r.Pool = cmp.Or(r.Pool, older.Pool)
	r.Tenant = cmp.Or(r.Tenant, older.Tenant)
	r.Revision = cmp.Or(r.Revision, older.Revision)
	if r.Call == r.Leg {
		r.Call = older.Call
	}
	r.SIPCallID = cmp.Or(r.SIPCallID, older.SIPCallID)
	r.Direction = cmp.Or(r.Direction, older.Direction)
	r.Caller = cmp.Or(r.Caller, older.Caller)
	r.Callee = cmp.Or(r.Callee, older.Callee)
	r.Codec = cmp.Or(r.Codec, older.Codec)
	if r.Start.IsZero() {
		r.Start = older.Start
	}
	if r.Ring.IsZero() {
		r.Ring = older.Ring
	}
	if r.Answer.IsZero() {
		r.Answer = older.Answer
	}
	return r
}

// clip cuts s to at most limit bytes, at the begin of a character.
func clip[S ~string](s S, limit int) S {
	if len(s) <= limit {
		return s
	}
	return S(strings.ToValidUTF8(string(s[:limit]), ""))
}
