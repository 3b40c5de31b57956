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
	maxAttr    = 256  // bytes of an attribute's name and of its value
	gapLegs    = 500  // legs named in one gap entry; a longer list takes several entries of the same id
)

// effects is what has to be written because of some events, in this order:
// the lines of before, the entries, and once those are durable the lines of after.
type effects struct {
	before  []line
	entries []cdr.Entry
	after   []line

	place map[string]int // of legs in the last line of before
}

// began remembers what is known of an open leg, the last of several times.
func (fx *effects) began(node bulkhead.NodeID, heard time.Time, r cdr.Record) {
	last := len(fx.before) - 1
	if last < 0 || fx.before[last].Node != node || len(fx.before[last].Open) == lineLegs {
		last++
		fx.before, fx.place = append(fx.before, line{Node: node}), map[string]int{}
	}
	ln := &fx.before[last]
	if ln.Heard.IsZero() {
		ln.Heard = heard
	}
	if i, ok := fx.place[r.Leg]; ok {
		ln.Open[i] = r
		return
	}
	fx.place[r.Leg] = len(ln.Open)
	ln.Open = append(ln.Open, r)
}

// gone remembers that a leg's record is durable by then.
func (fx *effects) gone(node bulkhead.NodeID, leg string) {
	if last := len(fx.after) - 1; last >= 0 {
		if ln := &fx.after[last]; ln.Node == node && ln.onlyGone() && len(ln.Gone) < lineLegs {
			ln.Gone = append(ln.Gone, leg)
			return
		}
	}
	fx.after = append(fx.after, line{Node: node, Gone: []string{leg}})
}

// leg is an open leg and the connection on which it was last seen.
type leg struct {
	record     cdr.Record
	connection int
	listed     bool // on that connection only in a list, which may lag behind its end
	reported   bool // a second source's record of its end is durable
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
	settled    *cdr.Gap            // the gap that this connection closed
	ended      map[string]struct{} // legs that ended on this connection, while a list may lag behind
	lagsUntil  time.Time           // by our clock
	offset     time.Duration       // of the node's clock, ahead of ours
	rules      *Rules              // find the tenant where the switch does not say it; nil: there are none

	gaps      int // opened since the start of the bridge
	untracked int // legs that were not remembered, because maxLegs were open
	invalid   int // events without a usable leg name
}

func newNode(id bulkhead.NodeID, cell bulkhead.CellID) *node {
	return &node{id: id, cell: cell, open: map[string]leg{}}
}

// listLag is how long after a connection a list of legs may name one that
// ended on it.
const listLag = time.Minute

// apply takes one item in its turn.
func (n *node) apply(it *item, now time.Time, fx *effects) {
	if it.lost != "" {
		n.lost(it.lost, now, fx)
		return
	}
	if it.timed {
		n.offset = it.offset
	}
	if it.at.IsZero() {
		it.at = now
	}
	ev := &it.event
	if ev.Time = normalTime(ev.Time); ev.Time.IsZero() {
		ev.Time = normalTime(it.at.Add(n.offset))
	}
	switch ev.Type {
	case cdr.Connected:
		n.lagsUntil = it.at.Add(listLag)
		n.connected(ev, fx)
	case cdr.Listed:
		n.relisted(ev, fx)
	case cdr.Opened, cdr.Answered:
		n.began(ev, fx)
	case cdr.Closed:
		if n.listed && it.at.After(n.lagsUntil) {
			n.ended = nil
		} else if !isSecond(ev.Record.Source) {
			n.noteEnd(ev.Record.Leg)
		}
		n.closed(ev, fx)
	}
	n.heard = ev.Time
}

// noteEnd remembers that a leg ended, so that a late list cannot revive it.
func (n *node) noteEnd(leg string) {
	if n.ended == nil {
		n.ended = map[string]struct{}{}
	}
	n.ended[leg] = struct{}{}
}

// lost opens a gap, unless one is open or the node was never heard.
func (n *node) lost(reason string, now time.Time, fx *effects) {
	n.connection++
	n.listed, n.ended, n.settled = false, nil, nil
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
	n.findTenant(&r)
	if known {
		r = cdr.Update(old.record, r)
	}
	n.open[r.Leg] = leg{record: r, connection: n.connection}
	var heard time.Time
	if !n.journaled { // else a kill before the first line of after would leave legs without a time
		heard, n.journaled = ev.Time, true
	}
	fx.began(n.id, heard, r)
}

func (n *node) closed(ev *cdr.Event, fx *effects) {
	r, ok := n.normal(ev.Record)
	if !ok {
		return
	}
	old, known := n.open[r.Leg]
	second := isSecond(r.Source)
	n.findTenant(&r)
	switch {
	case known && second: // it knows nothing better than what was heard while the leg went on
		r = cdr.Merge(cdr.Restate(old.record, r.Source), r)
	case known:
		r = cdr.Update(old.record, r)
	}
	if known && n.gap != nil && old.connection < n.connection {
		r.Gap = n.gap.ID // it lived through the gap that is about to be closed
	}
	r.ClockOffset = n.offset
	bound(&r)
	fx.entries = append(fx.entries, cdr.Entry{Record: &r, Raw: ev.Raw})
	switch {
	case !known:
	case second: // the first source still has to tell; if that is missed in a gap, this is enough
		old.reported = true
		n.open[r.Leg] = old
	default:
		delete(n.open, r.Leg)
		fx.gone(n.id, r.Leg)
	}
}

// isSecond tells whether a source reports legs beside a first one, which is
// the one that knows when they end.
func isSecond(s cdr.Source) bool {
	return s == cdr.SourceAMI || s == cdr.SourceHTTP || s == cdr.SourceFile
}

// connected closes the gap and settles the legs that were open before it.
// Only legs of earlier connections can have ended in the gap: one that began
// on this connection may be missing in the list because the switch makes the
// list from a table that lags behind its events. For the same reason a leg may
// be in the list that ended in the gap; see relisted.
func (n *node) connected(ev *cdr.Event, fx *effects) {
	if n.listed {
		return
	}
	n.listed = true
	live, found := n.lists(ev)
	restarted := n.core != "" && ev.Core != "" && n.core != ev.Core
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(n.open)) {
		l := n.open[name]
		if _, on := live[name]; l.connection < n.connection && (restarted || !on) {
			gone = append(gone, name)
			continue
		}
		if l.connection < n.connection {
			l.listed = true
			if n.gap != nil { // found again: the list is one of those that tell of it
				l.record = cdr.Update(found(name), l.record)
			}
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
		ln.Gone = n.end(n.gap, gone, fx)
		n.settled, n.gap = n.gap, nil
	}
	ln.Open = n.adopt(ev.Live, found)
	if ev.Core != "" {
		n.core = ev.Core
	}
	fx.after = append(fx.after, ln)
}

// relisted corrects what connected took from a list that lagged behind: a leg
// of which nothing but that list told, and that is not in this later one,
// ended in the gap; one that is only in the later one began in it.
func (n *node) relisted(ev *cdr.Event, fx *effects) {
	if !n.listed {
		return
	}
	live, found := n.lists(ev)
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(n.open)) {
		if _, on := live[name]; n.open[name].listed && !on {
			gone = append(gone, name)
		}
	}
	ln := line{Node: n.id, Open: n.adopt(ev.Live, found)}
	switch {
	case len(gone) == 0:
	case n.settled != nil:
		ln.Gone = n.end(n.settled, gone, fx)
	default: // they ended before this node was ever listened to
		ln.Gone = gone
		for _, name := range gone {
			delete(n.open, name)
		}
	}
	n.ended, n.lagsUntil = nil, time.Time{}
	if len(ln.Open)+len(ln.Gone) > 0 {
		fx.after = append(fx.after, ln)
	}
}

// lists returns the live legs as a set, and what the list says of each.
func (n *node) lists(ev *cdr.Event) (live map[string]struct{}, found func(name string) cdr.Record) {
	live = make(map[string]struct{}, len(ev.Live))
	for _, name := range ev.Live {
		live[name] = struct{}{}
	}
	told := make(map[string]*cdr.Record, len(ev.Found))
	for i := range ev.Found {
		told[ev.Found[i].Leg] = &ev.Found[i]
	}
	gap := ""
	if g := cmp.Or(n.gap, n.settled); g != nil {
		gap = g.ID
	}
	return live, func(name string) cdr.Record {
		r := cdr.Record{Leg: name}
		if t := told[name]; t != nil {
			r = *t
		}
		r.Source = cdr.SourceReconciled
		r, _ = n.normal(r)
		r.Gap = gap
		return r
	}
}

// adopt remembers legs that began unseen. Until they end only that is known of
// them which the list says.
func (n *node) adopt(live []string, found func(name string) cdr.Record) []cdr.Record {
	var out []cdr.Record
	for _, name := range live {
		_, known := n.open[name]
		_, ended := n.ended[name]
		if known || ended {
			continue
		}
		if name == "" || len(name) > maxLegName {
			n.invalid++
			continue
		}
		if len(n.open) >= n.maxLegs {
			n.untracked++
			continue
		}
		r := found(name)
		n.findTenant(&r)
		n.open[name] = leg{record: r, connection: n.connection, listed: true}
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
		fx.after = append(fx.after, line{Node: n.id, Gone: n.end(n.gap, gone, fx)})
	}
}

// end writes a gap with the legs that ended in it, and a synthesised record
// for each of which no second source told.
func (n *node) end(gap *cdr.Gap, gone []string, fx *effects) []string {
	rest := gone
	for first := true; first || len(rest) > 0; first = false {
		g := *gap
		g.Legs = rest[:min(gapLegs, len(rest))]
		rest = rest[len(g.Legs):]
		fx.entries = append(fx.entries, cdr.Entry{Gap: &g})
	}
	for _, name := range gone {
		l := n.open[name]
		delete(n.open, name)
		if l.reported {
			continue
		}
		r := l.record
		r.Cause, r.End = "", time.Time{}
		r = cdr.Restate(r, cdr.SourceSynthesised)
		r.Gap, r.Cause, r.ClockOffset = gap.ID, CauseGap, n.offset
		fx.entries = append(fx.entries, cdr.Entry{Record: &r})
	}
	return gone
}

// findTenant fills in the tenant where the switch does not say it: by the
// rules, else it is that of the call's A leg.
func (n *node) findTenant(r *cdr.Record) {
	if r.Tenant == "" && n.rules != nil {
		r.Tenant = n.rules.Tenant(r)
	}
	if r.Tenant == "" && r.Call != r.Leg {
		r.Tenant = n.open[r.Call].record.Tenant
	}
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
	for _, s := range []*string{&r.SIPCallID, &r.Caller, &r.Callee, &r.Cause, &r.Codec, &r.HangupBy, &r.Gap} {
		*s = clip(*s, maxText)
	}
	boundAttrs(r)
	for _, t := range []*time.Time{&r.Start, &r.Ring, &r.Answer, &r.End} {
		*t = normalTime(*t)
	}
}

// boundAttrs makes attributes keep their promise of cdr.Record.Attrs, in a map
// of their own if they do not.
func boundAttrs(r *cdr.Record) {
	ok := len(r.Attrs) <= cdr.MaxAttrs
	for k, v := range r.Attrs {
		ok = ok && len(k) <= maxAttr && len(v) <= maxAttr
	}
	if ok {
		return
	}
	out := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(r.Attrs)) {
		if len(out) < cdr.MaxAttrs {
			out[clip(k, maxAttr)] = clip(r.Attrs[k], maxAttr)
		}
	}
	r.Attrs = out
}

// normalTime is t as records hold it. A year that JSON cannot hold counts as unknown.
func normalTime(t time.Time) time.Time {
	if t = t.UTC().Truncate(time.Microsecond); t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}

// clip cuts s to at most limit bytes, at the begin of a character.
func clip[S ~string](s S, limit int) S {
	if len(s) <= limit {
		return s
	}
	return S(strings.ToValidUTF8(string(s[:limit]), ""))
}
