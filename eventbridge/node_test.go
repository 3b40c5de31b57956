package eventbridge

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// play applies items to a fresh node and says in words what was written.
func play(t *testing.T, items ...any) (n *node, words []string) {
	t.Helper()
	n = newNode("fs1", "c1")
	n.maxLegs = 4
	fx := &effects{}
	for _, it := range items {
		switch v := it.(type) {
		case cdr.Event:
			n.apply(&item{event: v}, at(0), fx)
		case string:
			n.apply(&item{lost: v}, at(0), fx)
		}
	}
	for _, e := range fx.entries {
		switch {
		case e.Gap != nil && e.Gap.To.IsZero():
			words = append(words, fmt.Sprintf("gap from %v: %s %v", e.Gap.From.Sub(epoch), e.Gap.Reason, e.Gap.Legs))
		case e.Gap != nil:
			words = append(words, fmt.Sprintf("gap %v to %v %v", e.Gap.From.Sub(epoch), e.Gap.To.Sub(epoch), e.Gap.Legs))
		default:
			words = append(words, fmt.Sprintf("%s %s", e.Record.Leg, e.Record.Source))
		}
	}
	return n, words
}

func TestNode(t *testing.T) {
	const lost = "lost"
	for name, c := range map[string]struct {
		items []any
		want  []string
		open  []string
	}{
		"a leg": {
			[]any{connected(0, "core"), event(cdr.Opened, 1, "a"), event(cdr.Answered, 2, "a"), event(cdr.Closed, 3, "a")},
			[]string{"a esl"}, nil,
		},
		"never heard, no gap": {[]any{lost, lost, connected(5, "core", "a")}, nil, []string{"a"}},
		"leg ends in the gap": {
			[]any{connected(0, "core"), event(cdr.Opened, 1, "a"), event(cdr.Opened, 2, "b"), lost, connected(9, "core", "b")},
			[]string{"gap from 2s: lost []", "gap 2s to 9s [a]", "a synthesised"},
			[]string{"b"},
		},
		"one gap however many attempts": {
			[]any{connected(0, "core"), lost, lost, lost, connected(9, "core")},
			[]string{"gap from 0s: lost []", "gap 0s to 9s []"}, nil,
		},
		"switch restarted": {
			[]any{connected(0, "core1"), event(cdr.Opened, 1, "a"), lost, connected(9, "core2", "a")},
			[]string{"gap from 1s: lost []", "gap 1s to 9s [a]", "a synthesised"},
			[]string{"a"}, // the list says so: a leg of that name exists on the new switch
		},
		"real record after a synthesised one": {
			[]any{connected(0, "core"), event(cdr.Opened, 1, "a"), lost, connected(9, "core"), event(cdr.Closed, 10, "a")},
			[]string{"gap from 1s: lost []", "gap 1s to 9s [a]", "a synthesised", "a esl"}, nil,
		},
		"list lags behind a begin": {
			[]any{heartbeat(0), lost, event(cdr.Opened, 8, "new"), connected(9, "core")},
			[]string{"gap from 0s: lost []", "gap 0s to 9s []"},
			[]string{"new"},
		},
		"list lags behind an end": {
			[]any{connected(0, "core"), event(cdr.Opened, 1, "a"), lost, event(cdr.Closed, 8, "a"), connected(9, "core", "a")},
			[]string{"gap from 1s: lost []", "a esl", "gap 1s to 9s []"}, nil,
		},
		"answered before the list": {
			[]any{connected(0, "core"), event(cdr.Opened, 1, "a"), lost, event(cdr.Answered, 8, "a"), connected(9, "core")},
			[]string{"gap from 1s: lost []", "gap 1s to 9s []"},
			[]string{"a"},
		},
		"second list on a connection settles nothing": {
			[]any{connected(0, "core"), event(cdr.Opened, 1, "a"), connected(9, "core")},
			nil,
			[]string{"a"},
		},
		"began unseen, ended unseen": {
			[]any{connected(0, "core"), lost, connected(3, "core", "x"), lost, connected(9, "core")},
			[]string{"gap from 0s: lost []", "gap 0s to 3s []", "gap from 3s: lost []", "gap 3s to 9s [x]", "x synthesised"}, nil,
		},
		"clock of the node set back": {
			[]any{connected(50, "core"), lost, connected(9, "core")},
			[]string{"gap from 50s: lost []", "gap 50s to 50s []"}, nil,
		},
		"leg of the list ended in the gap after all": {
			[]any{connected(0, "core"), event(cdr.Opened, 1, "a"), lost, connected(9, "core", "a"), listed(14)},
			[]string{"gap from 1s: lost []", "gap 1s to 9s []", "gap 1s to 9s [a]", "a synthesised"}, nil,
		},
		"leg of the list ended before anybody listened": {
			[]any{connected(0, "core", "a"), listed(5)}, nil, nil,
		},
		"leg was missing in the list": {
			[]any{connected(0, "core"), lost, connected(9, "core"), listed(14, "a")},
			[]string{"gap from 0s: lost []", "gap 0s to 9s []"},
			[]string{"a"},
		},
		"leg of the list was heard since": {
			[]any{connected(0, "core"), event(cdr.Opened, 1, "a"), lost, connected(9, "core", "a"), event(cdr.Answered, 10, "a"), listed(14)},
			[]string{"gap from 1s: lost []", "gap 1s to 9s []"},
			[]string{"a"},
		},
		"second list lags behind an end": {
			[]any{connected(0, "core"), event(cdr.Opened, 1, "a"), event(cdr.Closed, 4, "a"), listed(5, "a")},
			[]string{"a esl"}, nil,
		},
		"second list lags behind a begin": {
			[]any{connected(0, "core"), event(cdr.Opened, 4, "a"), listed(5)}, nil, []string{"a"},
		},
		"list before the connection was listed": {[]any{event(cdr.Opened, 4, "a"), listed(5, "b")}, nil, []string{"a"}},
		"no name":                               {[]any{event(cdr.Opened, 1, ""), event(cdr.Closed, 1, strings.Repeat("x", 257))}, nil, nil},
		"too many open": {
			[]any{
				event(cdr.Opened, 1, "a"), event(cdr.Opened, 1, "b"), event(cdr.Opened, 1, "c"), event(cdr.Opened, 1, "d"),
				event(cdr.Opened, 1, "e"), event(cdr.Closed, 2, "e"),
			},
			[]string{"e esl"},
			[]string{"a", "b", "c", "d"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, words := play(t, c.items...)
			if d := cmp.Diff(c.want, words); d != "" {
				t.Error(d)
			}
			var open []string
			for name := range n.open {
				open = append(open, name)
			}
			slices.Sort(open)
			if d := cmp.Diff(c.open, open); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestSynthesisedRecordHoldsWhatIsKnown(t *testing.T) {
	opened := event(cdr.Opened, 1, "a")
	opened.Record.Caller, opened.Record.Direction, opened.Record.Call = "1001", cdr.Outbound, "other"
	answered := event(cdr.Answered, 2, "a")
	answered.Record = cdr.Record{Leg: "a", Tenant: "acme", Pool: "p", Answer: at(2), SIPCode: 200}
	n, fx := newNode("fs1", "c1"), &effects{}
	n.maxLegs = 10
	for _, it := range []item{{event: opened}, {event: answered}, {lost: "x"}, {event: connected(9, "core")}} {
		n.apply(&it, at(0), fx)
	}
	got := fx.entries[len(fx.entries)-1].Record
	want := &cdr.Record{
		Schema: cdr.SchemaVersion, ID: cdr.NewID("c1", "fs1", "a"), Kind: cdr.Leg, Source: cdr.SourceSynthesised, Cell: "c1", Node: "fs1",
		Prov: map[cdr.Source]cdr.Fields{cdr.SourceESL: cdr.FieldPool | cdr.FieldTenant | cdr.FieldCall | cdr.FieldDirection |
			cdr.FieldCaller | cdr.FieldStart | cdr.FieldAnswer | cdr.FieldSIPCode},
		Tenant: "acme", Pool: "p", Leg: "a", Call: "other", Direction: cdr.Outbound, Caller: "1001",
		Start: at(1), Answer: at(2), SIPCode: 200, Cause: CauseGap, Gap: fx.entries[0].Gap.ID,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestManyLegsInAGap(t *testing.T) {
	n, fx := newNode("fs1", "c1"), &effects{}
	n.maxLegs = 2*gapLegs + 1
	for i := range 2*gapLegs + 1 {
		n.apply(&item{event: event(cdr.Opened, 1, strings.Repeat("\x01", maxLegName-5)+fmt.Sprintf("%05d", i))}, at(0), fx)
	}
	n.apply(&item{lost: "x"}, at(0), fx)
	n.apply(&item{event: connected(5, "core")}, at(0), fx)
	named, records := 0, 0
	for _, e := range fx.entries {
		b, err := cdr.Encode(e)
		if err != nil || len(b) > 1<<20 {
			t.Fatalf("an entry has %d bytes, %v", len(b), err)
		}
		if e.Gap != nil {
			named += len(e.Gap.Legs)
		} else {
			records++
		}
	}
	if named != 2*gapLegs+1 || records != 2*gapLegs+1 {
		t.Errorf("%d legs named, %d records", named, records)
	}
}

func TestNormalBounds(t *testing.T) {
	n := newNode("fs1", "c1")
	r, ok := n.normal(cdr.Record{
		Leg: "a", Caller: strings.Repeat("\u20ac", 5000), Tenant: bulkhead.TenantID(strings.Repeat("x", 5000)),
		Start: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC), End: at(1).Add(1234 * time.Nanosecond),
	})
	if !ok || len(r.Caller) > maxText || strings.ContainsRune(r.Caller, '\ufffd') || len(r.Tenant) > maxLegName ||
		!r.Start.IsZero() || !r.End.Equal(at(1).Add(time.Microsecond)) {
		t.Errorf("normal = %v %+v", ok, r)
	}
	if _, err := cdr.Encode(cdr.Entry{Record: &r}); err != nil {
		t.Error(err)
	}
}
