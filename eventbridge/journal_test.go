package eventbridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

func open(t *testing.T, dir string) (*journal, map[bulkhead.NodeID]*node) {
	t.Helper()
	j, nodes, err := openJournal(dir, "c1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.close() }) // the second close of a test fails, and may
	return j, nodes
}

// dump shows what a journal says.
func dump(t *testing.T, nodes map[bulkhead.NodeID]*node) string {
	t.Helper()
	var b bytes.Buffer
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		if err := nodes[id].write(&b); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func someLines() []line {
	gap := &cdr.Gap{ID: "g", Cell: "c1", Node: "fs1", From: at(3), Reason: "lost"}
	rec := func(leg string) cdr.Record { return cdr.Record{Leg: leg, Call: leg, Start: at(1)} }
	return []line{
		{Node: "fs1", Heard: at(1), Core: "core", Open: []cdr.Record{rec("a"), rec("b")}},
		{Node: "fs2", Heard: at(2), Open: []cdr.Record{rec("c")}},
		{Node: "fs1", Gone: []string{"a"}},
		{Node: "fs1", Gap: gap},
		{Node: "fs2", Heard: at(5), Gone: []string{"c"}, Gap: gap, Healed: true},
	}
}

// A line is what encoding/json reads, and would write.
func TestLineIsJSON(t *testing.T) {
	lines := someLines()
	lines = append(lines, line{Node: "<n>", Heard: at(7), Offset: -5, Core: "\u00e9\"", Gone: []string{"a", "b&"}, Open: []cdr.Record{{Leg: "x"}, {Leg: "y"}}})
	for _, ln := range lines {
		want, err := json.Marshal(&ln)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ln.appendTo(nil); err != nil || string(got) != string(want)+"\n" {
			t.Errorf("appendTo: %v\n%s\njson.Marshal:\n%s", err, got, want)
		}
	}
	late := line{Node: "n", Heard: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}
	if got, err := late.appendTo(nil); err == nil {
		t.Errorf("a year of five digits became %s", got)
	}
}

func TestJournalComesBack(t *testing.T) {
	dir := t.TempDir()
	j, nodes := open(t, dir)
	if len(nodes) != 0 {
		t.Errorf("a new journal knows %v", nodes)
	}
	if err := j.append(someLines()); err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	j, nodes = open(t, dir)
	one, two := nodes["fs1"], nodes["fs2"]
	if one.core != "core" || !one.heard.Equal(at(1)) || one.gap == nil || len(one.open) != 1 || two.gap != nil || len(two.open) != 0 || !two.heard.Equal(at(5)) {
		t.Errorf("read back: %s", dump(t, nodes))
	}
	want := dump(t, nodes)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	_, nodes = open(t, dir)
	if d := cmp.Diff(want, dump(t, nodes)); d != "" {
		t.Errorf("a rewrite changed it: %s", d)
	}
}

// TestTornJournal cuts the file at every byte: what stands before the cut
// line must be there, and nothing else.
func TestTornJournal(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	if err := j.append(someLines()); err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	for cut := range whole {
		nodes, bad, err := readJournal(bytes.NewReader(whole[:cut]), "c1")
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		keep := bytes.LastIndexByte(whole[:cut], '\n') + 1
		want, _, err := readJournal(bytes.NewReader(whole[:keep]), "c1")
		if err != nil || dump(t, want) != dump(t, nodes) || (bad == 1) != (keep < cut) {
			t.Fatalf("cut at %d: %d bad, %v", cut, bad, err)
		}
	}
	broken := bytes.Replace(whole, []byte(`{"node":"fs1","gone"`), []byte(`{"node":"fs1`), 1)
	nodes, bad, err := readJournal(bytes.NewReader(broken), "c1")
	if err != nil || bad != 1 || nodes["fs2"] == nil || len(nodes["fs1"].open) != 2 {
		t.Errorf("a bad line in the middle: %d bad, %v", bad, err)
	}
}

func TestJournalOfAnotherCell(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openJournal(dir, "c2", slog.New(slog.DiscardHandler)); !errors.Is(err, bulkhead.Conflict) {
		t.Errorf("journal of another cell: %v, want bulkhead.Conflict", err)
	}
	open(t, dir) // the failed one let go of the lock
}

// TestJournalIsBounded sends many legs through a recorder and looks at the file.
func TestJournalIsBounded(t *testing.T) {
	b, err := New(testConfig(t, &memStream{}))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	largest := int64(0)
	for i := range 200 {
		var items []item
		for k := range 50 {
			name := fmt.Sprintf("%s-%d-%d", strings.Repeat("x", 150), i, k)
			items = append(items, item{event: event(cdr.Opened, i, name)}, item{event: event(cdr.Closed, i, name)})
		}
		items = append(items, item{event: event(cdr.Opened, i, fmt.Sprintf("stays-%d", i))})
		fx := &effects{}
		b.rec.apply("fs1", items, fx)
		if err := b.rec.commit(t.Context(), fx); err != nil {
			t.Fatal(err)
		}
		largest = max(largest, b.rec.journal.size)
	}
	if largest > compactAt || b.rec.journal.base < 1000 {
		t.Errorf("the journal grew to %d bytes, %d after the last rewrite", largest, b.rec.journal.base)
	}
	f, err := os.Open(filepath.Join(b.cfg.Journal, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	nodes, bad, err := readJournal(f, "c1")
	if err != nil || bad != 0 || len(nodes["fs1"].open) != 200 {
		t.Errorf("%d bad lines, %v", bad, err)
	}
}

// TestJournalThatCannotBeWritten closes the file under the recorder: records
// go on, Ready says it, and the next rewrite repairs it.
func TestJournalThatCannotBeWritten(t *testing.T) {
	s := &memStream{}
	b, err := New(testConfig(t, s))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	run := func(items ...item) {
		t.Helper()
		fx := &effects{}
		b.rec.apply("fs1", items, fx)
		if err := b.rec.commit(t.Context(), fx); err != nil {
			t.Fatal(err)
		}
	}
	run(item{event: event(cdr.Opened, 1, "a")}, item{event: event(cdr.Opened, 1, "b")})
	dir := b.rec.journal.dir
	b.rec.journal.dir = filepath.Join(dir, "gone")
	if err := b.rec.journal.file.Close(); err != nil {
		t.Fatal(err)
	}
	run(item{event: event(cdr.Closed, 2, "a")})
	if err := b.Ready(); err == nil || !strings.Contains(err.Error(), "journal") {
		t.Errorf("Ready = %v", err)
	}
	b.rec.journal.dir = dir
	b.rec.journal.file = nil // it is closed already
	run(item{event: event(cdr.Opened, 3, "c")})
	if err := b.Ready(); err != nil {
		t.Errorf("Ready after the repair = %v", err)
	}
	if len(s.stored().legs) != 1 {
		t.Error("the record of leg a is missing")
	}
	f, err := os.Open(filepath.Join(dir, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if nodes, _, err := readJournal(f, "c1"); err != nil || len(nodes["fs1"].open) != 2 || !nodes["fs1"].heard.Equal(at(3)) {
		t.Errorf("the repaired journal: %v %s", err, dump(t, nodes))
	}
}

func FuzzReadJournal(f *testing.F) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	if err := enc.Encode(head{Version: journalVersion, Cell: "c1"}); err != nil {
		f.Fatal(err)
	}
	for _, ln := range someLines() {
		if err := enc.Encode(ln); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		nodes, _, err := readJournal(bytes.NewReader(data), "c1")
		if err != nil {
			return
		}
		fx := &effects{}
		for _, n := range nodes {
			n.maxLegs = 10
			n.lost("restart", at(0), fx)
			ev := connected(5, "core")
			n.apply(&item{event: ev}, at(0), fx)
			if err := n.write(io.Discard); err != nil {
				t.Fatalf("read, but cannot be written: %v", err)
			}
		}
		for _, e := range fx.entries {
			if _, err := cdr.Encode(e); err != nil {
				t.Fatalf("made an entry that cannot be encoded: %v", err)
			}
		}
	})
}

// TestStepTellsTheLast: of a leg of which a step heard several times, the
// journal has what was known last; of legs and nodes that take turns, each is
// where it belongs; and a line does not grow without end.
func TestStepTellsTheLast(t *testing.T) {
	fx := &effects{}
	one, two := newNode("fs1", "c1"), newNode("fs2", "c1")
	one.maxLegs, two.maxLegs = 2*lineLegs, 2*lineLegs
	hear := func(n *node, ev cdr.Event) { n.apply(&item{event: ev}, at(0), fx) }
	answer := func(sec int, leg string) cdr.Event {
		ev := event(cdr.Answered, sec, leg)
		ev.Record.Answer = at(sec)
		return ev
	}
	hear(one, event(cdr.Opened, 1, "a"))
	hear(one, event(cdr.Opened, 1, "b"))
	hear(one, answer(2, "a"))
	hear(two, event(cdr.Opened, 1, "a"))
	hear(one, answer(3, "b"))
	for i := range lineLegs + 5 {
		hear(one, event(cdr.Opened, 4, fmt.Sprint("more", i)))
		hear(one, answer(5, fmt.Sprint("more", i)))
	}
	hear(one, event(cdr.Closed, 6, "a"))
	hear(two, event(cdr.Closed, 6, "a"))
	hear(one, event(cdr.Closed, 6, "b"))
	told := map[bulkhead.NodeID]*node{"fs1": newNode("fs1", "c1"), "fs2": newNode("fs2", "c1")}
	for _, ln := range fx.before {
		if len(ln.Open) > lineLegs {
			t.Errorf("a line has %d legs", len(ln.Open))
		}
		told[ln.Node].replay(&ln)
	}
	if n := len(fx.before); n > 5 {
		t.Errorf("the step took %d lines", n)
	}
	for leg, sec := range map[string]int{"a": 2, "b": 3, "more0": 5, fmt.Sprint("more", lineLegs+4): 5} {
		if got := told["fs1"].open[leg].record.Answer; !got.Equal(at(sec)) {
			t.Errorf("the journal says that %s was answered at %v, want %v", leg, got, at(sec))
		}
	}
	if r, ok := told["fs2"].open["a"]; !ok || !r.record.Answer.IsZero() {
		t.Errorf("of the other node's leg the journal says %+v", r.record)
	}
	for _, ln := range fx.after {
		told[ln.Node].replay(&ln)
	}
	if len(told["fs1"].open) != lineLegs+5 || len(told["fs2"].open) != 0 {
		t.Errorf("%d and %d legs are open", len(told["fs1"].open), len(told["fs2"].open))
	}
}
