package asterisk

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

var testIdentity = identity{cell: "c1", node: "ast1", tenantVar: "TENANT"}

// golden reads the records that were written down by hand, and adds what they
// leave out.
func golden(t testing.TB, name string, source cdr.Source) []cdr.Record {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "records", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var want []cdr.Record
	if err := dec.Decode(&want); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		r := &want[i]
		r.Schema, r.Kind, r.Source, r.Cell, r.Node = cdr.SchemaVersion, cdr.Leg, source, "c1", "ast1"
		r.ID = cdr.NewID("c1", "ast1", r.Leg)
	}
	return want
}

func capture(t testing.TB, name string) []byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", "captures", name))
	if err != nil || len(names) == 0 {
		t.Fatalf("no capture %s: %v", name, err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// track applies captured events and returns what was emitted.
func track(t testing.TB, tr *tracker, lines []byte) []cdr.Event {
	t.Helper()
	var out []cdr.Event
	for line := range bytes.Lines(lines) {
		e, bad, err := decodeEvent(line)
		if err != nil || bad != "" {
			t.Fatalf("%s%v", bad, err)
		}
		tr.apply(&e, func(ev cdr.Event) { out = append(out, ev) })
	}
	return out
}

func closed(events []cdr.Event) []cdr.Record {
	var out []cdr.Record
	for _, ev := range events {
		if ev.Type == cdr.Closed {
			out = append(out, ev.Record)
		}
	}
	return out
}

func TestGoldenARI(t *testing.T) {
	for _, name := range []string{"ari-01", "ari-02", "ari-03", "ari-04", "ari-05", "ari-06", "ari-08", "ari-09", "ari-10", "ari-13", "ari-14", "ari-15", "chan-websocket-1"} {
		t.Run(name, func(t *testing.T) {
			tr := newTracker(testIdentity, 1000)
			events := track(t, tr, capture(t, name+"-*.jsonl"))
			if d := cmp.Diff(golden(t, name, cdr.SourceARI), closed(events)); d != "" {
				t.Error(d)
			}
			if len(tr.legs) != 0 {
				t.Errorf("%d legs are remembered after their end", len(tr.legs))
			}
			checkOrder(t, events)
		})
	}
	t.Run("ari-11", func(t *testing.T) { // one call through a gap
		tr := newTracker(testIdentity, 1000)
		events := track(t, tr, capture(t, "ari-11-disconnect-before.jsonl"))
		live, _, unanswered := tr.seed([]channel{{ID: "1795397105.30", Name: "PJSIP/acme-1001-00000000", State: "Up"}})
		if !slices.Equal(live, []string{"1795397105.30"}) || len(unanswered) != 0 {
			t.Errorf("live %v, %d unanswered", live, len(unanswered))
		}
		events = append(events, track(t, tr, capture(t, "ari-11-disconnect-after-reconnect.jsonl"))...)
		if d := cmp.Diff(golden(t, "ari-11", cdr.SourceARI), closed(events)); d != "" {
			t.Error(d)
		}
	})
}

// checkOrder: a leg opens first, is answered at most once, and closes last and
// once; and what is known of it before its end is enough to say whose it was.
func checkOrder(t *testing.T, events []cdr.Event) {
	t.Helper()
	state := map[string]cdr.EventType{}
	latest := map[string]cdr.Record{}
	for _, ev := range events {
		leg := ev.Record.Leg
		was := state[leg]
		ok := was == "" && ev.Type == cdr.Opened ||
			was == cdr.Opened && ev.Type != "" ||
			was == cdr.Answered && (ev.Type == cdr.Closed || ev.Type == cdr.Opened)
		if was == cdr.Answered && ev.Type == cdr.Opened {
			ev.Type = cdr.Answered
		}
		if !ok {
			t.Errorf("leg %s: %s after %q", leg, ev.Type, was)
		}
		if ev.Type == cdr.Closed {
			if r := latest[leg]; r.Tenant != ev.Record.Tenant && ev.Record.Callee != "9001" && ev.Record.Callee != "9000" && ev.Record.Callee != "1006" {
				t.Errorf("leg %s: tenant %q was not told before the end", leg, ev.Record.Tenant)
			}
		}
		state[leg], latest[leg] = ev.Type, ev.Record
	}
	for leg, s := range state {
		if s != cdr.Closed {
			t.Errorf("leg %s ends as %s", leg, s)
		}
	}
}

// amiMessages reads a captured AMI stream.
func amiMessages(t testing.TB, b []byte) []message {
	t.Helper()
	r := &amiReader{bufio.NewReaderSize(bytes.NewReader(b), maxLine)}
	if _, err := r.line(); err != nil {
		t.Fatal(err)
	}
	var out []message
	for {
		m, err := r.next()
		if err != nil {
			return out
		}
		out = append(out, m)
	}
}

func TestGoldenAMI(t *testing.T) {
	for _, name := range []string{"ami-01", "ami-02", "ami-03", "ami-04", "ami-05", "ami-06", "ami-07", "ami-08", "ami-09", "ami-10", "ami-15"} {
		t.Run(name, func(t *testing.T) {
			f := newAMIFeed(AMI{}, testIdentity, discard(), newMetrics(nil, "ast1"))
			var rows assembler
			for _, m := range amiMessages(t, capture(t, name+"-*.txt")) {
				if m["Event"] == "Cdr" {
					f.row(m, &rows)
				}
			}
			f.flush(&rows)
			want := golden(t, name, cdr.SourceAMI)
			if d := cmp.Diff(want, closed(f.take()), cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestSourcesAgree: both sources of a leg give it one id, and joined in either
// order they are one record, which says what ARI said.
func TestSourcesAgree(t *testing.T) {
	for _, n := range []string{"01", "02", "03", "04", "05", "06", "08", "09", "10", "15"} {
		ari := map[cdr.ID]cdr.Record{}
		for _, r := range golden(t, "ari-"+n, cdr.SourceARI) {
			ari[r.ID] = r
		}
		for _, a := range golden(t, "ami-"+n, cdr.SourceAMI) {
			r, ok := ari[a.ID]
			if !ok {
				t.Errorf("%s: leg %s of AMI is none of ARI", n, a.Leg)
				continue
			}
			one, other := cdr.Merge(r, a), cdr.Merge(a, r)
			if d := cmp.Diff(one, other); d != "" {
				t.Errorf("%s: %s", n, d)
			}
			if !one.Answer.Equal(r.Answer) || !one.End.Equal(r.End) || one.SIPCode != r.SIPCode || one.Cause != r.Cause {
				t.Errorf("%s: joined %+v", n, one)
			}
			if d := r.Billed() - a.Billed(); d.Abs() >= 2e9 {
				t.Errorf("%s: billed %v and %v", n, r.Billed(), a.Billed())
			}
		}
	}
}

// TestTapsAreNoLegs: what only carries a copy of the media has no record, from
// neither source.
func TestTapsAreNoLegs(t *testing.T) {
	tr := newTracker(testIdentity, 1000)
	seen := map[string]bool{}
	for line := range bytes.Lines(capture(t, "ari-external-media.txt")) {
		i := bytes.Index(line, []byte("event {"))
		if i < 0 {
			continue
		}
		e, _, err := decodeEvent(line[i+len("event "):])
		if err != nil {
			t.Fatal(err)
		}
		if e.Channel != nil {
			seen[technology(e.Channel.Name)] = true
		}
		tr.apply(&e, func(ev cdr.Event) { t.Errorf("%s of %s", ev.Type, e.Channel.Name) })
	}
	for _, tech := range []string{"Snoop", "UnicastRTP", "AudioSocket", "WebSocket"} {
		if !seen[tech] {
			t.Errorf("the capture has no %s channel", tech)
		}
	}
	f := newAMIFeed(AMI{}, testIdentity, discard(), newMetrics(nil, "ast1"))
	var rows assembler
	want := ""
	for i, name := range slices.Sorted(maps.Keys(seen)) {
		id := fmt.Sprintf("1795397567.%d", i)
		if name == "PJSIP" {
			want = id
		}
		f.row(message{"UniqueID": id, "Channel": name + "/x-1", "Disposition": "ANSWERED"}, &rows)
	}
	f.flush(&rows)
	if got := closed(f.take()); len(got) != 1 || got[0].Leg != want {
		t.Errorf("records %+v, want one of %q", got, want)
	}
}

func TestReaderOfAMI(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		_, _ = server.Write([]byte("Asterisk Call Manager/11.0.0\r\nEvent: A\r\nK:\r\nK2: a: b\r\nno colon\r\n\r\n\r\n\r\nEvent: B\r\n\r\nEvent: torn"))
	}()
	r := newAMIReader(client)
	if l, err := r.line(); err != nil || l != "Asterisk Call Manager/11.0.0" {
		t.Fatalf("%q, %v", l, err)
	}
	a, err := r.next()
	if err != nil || a["Event"] != "A" || a["K"] != "" || a["K2"] != "a: b" || len(a) != 3 {
		t.Errorf("%v, %v", a, err)
	}
	if b, err := r.next(); err != nil || b["Event"] != "B" {
		t.Errorf("%v, %v", b, err)
	}
	if m, err := r.next(); err == nil {
		t.Errorf("a torn message is read: %v", m)
	}
}
