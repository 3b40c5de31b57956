package eventbridge

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

// TestLegsOfAGapAreMarked: what a gap concerned says so, and by whom it was
// found again.
func TestLegsOfAGapAreMarked(t *testing.T) {
	n, fx := newNode("fs1", "c1"), &effects{}
	n.maxLegs = 10
	again := connected(9, "core", "a", "new")
	again.Found = []cdr.Record{{Leg: "a", Callee: "2000"}, {Leg: "new", Start: at(5), Caller: "3000", Callee: "2000"}}
	for _, it := range []any{
		connected(0, "core"), event(cdr.Opened, 1, "a"), event(cdr.Opened, 1, "early"), "lost",
		event(cdr.Closed, 8, "early"), again, listed(14, "a", "new"), event(cdr.Closed, 20, "a"), event(cdr.Closed, 21, "new"),
		event(cdr.Opened, 22, "after"), event(cdr.Closed, 23, "after"),
	} {
		switch v := it.(type) {
		case cdr.Event:
			n.apply(&item{event: v}, at(0), fx)
		case string:
			n.apply(&item{lost: v}, at(0), fx)
		}
	}
	gap := fx.entries[0].Gap.ID
	got := map[string]*cdr.Record{}
	for _, e := range fx.entries {
		if e.Record != nil {
			got[e.Record.Leg] = e.Record
		}
	}
	found := []cdr.Source{cdr.SourceESL, cdr.SourceReconciled}
	for leg, want := range map[string]struct {
		gap     string
		sources []cdr.Source
	}{"a": {gap, found}, "new": {gap, found}, "early": {gap, nil}, "after": {"", nil}} {
		r := got[leg]
		if r == nil || r.Source != cdr.SourceESL || r.Gap != want.gap || cmp.Diff(want.sources, r.Sources) != "" {
			t.Errorf("%s: %+v", leg, r)
		}
	}
	if r := got["new"]; r.Caller != "3000" || r.Prov[cdr.SourceReconciled]&cdr.FieldCaller == 0 || !r.Start.Equal(at(21)) {
		t.Errorf("what only the list told: %+v", r)
	}
}

// TestTimesWithoutAClock: an answer without a time is put on the node's clock.
func TestTimesWithoutAClock(t *testing.T) {
	n, fx := newNode("fs1", "c1"), &effects{}
	n.maxLegs = 10
	ours := at(0)
	receive := func(sec int, ev cdr.Event) {
		n.apply(&item{event: ev, at: ours.Add(time.Duration(sec) * time.Second), offset: time.Hour, timed: true}, at(0), fx)
	}
	receive(0, cdr.Event{Type: cdr.Connected})
	receive(1, heartbeat(3601))
	n.apply(&item{lost: "x"}, ours, fx)
	receive(9, cdr.Event{Type: cdr.Connected})
	g := fx.entries[len(fx.entries)-1].Gap
	if !g.From.Equal(at(3601)) || !g.To.Equal(at(3609)) {
		t.Errorf("gap %v to %v, want the node's clock", g.From.Sub(epoch), g.To.Sub(epoch))
	}
	receive(10, event(cdr.Closed, 3610, "a"))
	if r := fx.entries[len(fx.entries)-1].Record; r.ClockOffset != time.Hour {
		t.Errorf("clock offset %v", r.ClockOffset)
	}
	// A bridge that starts anew knows the offset before the first event.
	if m := newNode("fs1", "c1"); true {
		m.replay(&line{Node: "fs1", Heard: at(1), Offset: time.Hour})
		m.apply(&item{event: cdr.Event{Type: cdr.Connected}, at: ours}, ours, fx)
		if !m.heard.Equal(at(3600)) {
			t.Errorf("heard %v", m.heard.Sub(epoch))
		}
	}
}

func TestClock(t *testing.T) {
	var c clock
	now := at(0)
	if _, ok := c.offset(); ok {
		t.Error("an offset is known before any event")
	}
	sample := func(d time.Duration, after time.Duration, want time.Duration) {
		t.Helper()
		now = now.Add(after)
		c.sample(d, now)
		if got, ok := c.offset(); !ok || got != want {
			t.Errorf("offset %v %v, want %v", got, ok, want)
		}
	}
	// The event that came fastest tells best.
	sample(2*time.Second-40*time.Millisecond, 0, 1960*time.Millisecond)
	sample(2*time.Second-time.Millisecond, time.Second, 1999*time.Millisecond)
	sample(2*time.Second-3*time.Second, time.Second, 1999*time.Millisecond)
	// Set forward: seen at once. Set back: seen when the old samples are gone.
	sample(5*time.Second, time.Second, 5*time.Second)
	sample(-time.Second, time.Second, 5*time.Second)
	sample(-time.Second, clockWindow, 5*time.Second)
	sample(-time.Second, clockWindow+time.Second, -time.Second)
	// After a long silence nothing old counts.
	sample(-9*time.Second, time.Hour, -9*time.Second)
}

func TestSecondSourceInAGap(t *testing.T) {
	s := &memStream{}
	cfg := testConfig(t, s)
	cfg.DecodeCDR = decodeLine
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	fx := &effects{}
	n := newNode("fs1", "c1")
	n.maxLegs = 10
	b.rec.nodes["fs1"] = n
	play := func(ev cdr.Event) { n.apply(&item{event: ev}, at(0), fx) }
	play(connected(0, "core"))
	play(event(cdr.Opened, 1, "a"))
	play(event(cdr.Opened, 1, "b"))
	n.apply(&item{lost: "x"}, at(0), fx)
	if err := b.take(t.Context(), "fs1", cdr.SourceHTTP, "", []byte("a 5")); err != nil {
		t.Fatal(err)
	}
	play(connected(9, "core"))
	var synthesised []string
	var gap *cdr.Gap
	for _, e := range fx.entries {
		if e.Record != nil {
			synthesised = append(synthesised, e.Record.Leg)
		} else {
			gap = e.Gap
		}
	}
	if d := cmp.Diff([]string{"b"}, synthesised); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"a", "b"}, gap.Legs); d != "" {
		t.Error(d)
	}
	if r := s.stored().legs["a"]; r.Source != cdr.SourceHTTP || r.Gap != gap.ID {
		t.Errorf("record %+v", r)
	}
}

// TestSecondReportOfTheSameStream: AMI's Cdr comes with the events of its
// Asterisk, before or after the leg's own end, in whole seconds.
func TestSecondReportOfTheSameStream(t *testing.T) {
	ami := func(sec int, leg string) cdr.Event {
		ev := event(cdr.Closed, sec, leg)
		ev.Record.Source, ev.Record.Start, ev.Record.Callee = cdr.SourceAMI, at(0), "2000"
		return ev
	}
	ari := func(typ cdr.EventType, sec int, leg string) cdr.Event {
		ev := event(typ, sec, leg)
		ev.Record.Source, ev.Record.Start = cdr.SourceARI, at(0).Add(123*time.Millisecond)
		return ev
	}
	n, fx := newNode("ast1", "c1"), &effects{}
	n.maxLegs = 10
	for _, it := range []any{
		connected(0, "core"), ari(cdr.Opened, 0, "a"), ari(cdr.Opened, 0, "b"), ari(cdr.Opened, 0, "c"),
		ami(5, "a"), ari(cdr.Closed, 6, "a"), ari(cdr.Closed, 6, "b"), ami(7, "b"), ami(8, "c"), "lost", connected(20, "core"),
	} {
		switch v := it.(type) {
		case cdr.Event:
			n.apply(&item{event: v}, at(0), fx)
		case string:
			n.apply(&item{lost: v}, at(0), fx)
		}
	}
	got, reports := map[string]cdr.Record{}, map[string]int{}
	for _, e := range fx.entries {
		if r := e.Record; r != nil {
			got[r.Leg] = cdr.Merge(*r, got[r.Leg])
			reports[r.Leg]++
		}
	}
	for leg, want := range map[string]struct {
		sources []cdr.Source
		reports int
	}{
		"a": {[]cdr.Source{cdr.SourceAMI, cdr.SourceARI}, 2},
		"b": {[]cdr.Source{cdr.SourceAMI, cdr.SourceARI}, 2},
		"c": {[]cdr.Source{cdr.SourceAMI}, 1},
	} {
		r := got[leg]
		if d := cmp.Diff(want.sources, r.Reporters()); d != "" || reports[leg] != want.reports || r.Start.Nanosecond() == 0 || r.Callee != "2000" {
			t.Errorf("%s: %d reports, %+v", leg, reports[leg], r)
		}
	}
	if len(n.open) != 0 {
		t.Errorf("still open: %v", n.open)
	}
}
