package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
)

// TestFeedStep: cut down to a cell and applied there, a change leads where
// cutting down the whole state leads.
func TestFeedStep(t *testing.T) {
	cells := []bulkhead.CellID{"", "a", "b"}
	rapid.Check(t, func(t *rapid.T) {
		draw := func() bulkhead.Change {
			c := drawChange(t)
			for i := range c.Pools {
				c.Pools[i].Cell = rapid.SampledFrom(cells).Draw(t, "pool's cell")
			}
			for i := range c.Nodes {
				c.Nodes[i].Pool = bulkhead.PoolID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "node's pool"))
			}
			for i := range c.SBCs {
				c.SBCs[i].Cell = rapid.SampledFrom(cells).Draw(t, "sbc's cell")
			}
			for i := range c.Tenants {
				c.Tenants[i].Cell = rapid.SampledFrom(cells).Draw(t, "tenant's cell")
			}
			return c
		}
		first := draw()
		state := bulkhead.State{}.Apply(&first)
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			c := draw()
			after := state.Apply(&c)
			s := feedStep{revision: &bulkhead.Revision{Change: c}, before: state, after: after, was: map[bulkhead.TenantID]bulkhead.CellID{}}
			for id, tn := range state.Tenants {
				s.was[id] = tn.Cell
			}
			for _, cell := range []bulkhead.CellID{"a", "b", "z"} {
				got := cellState(state, cell).Apply(s.change(cell))
				if d := cellState(after, cell).Diff(got); !d.IsZero() {
					t.Fatalf("cell %q: %+v", cell, d)
				}
			}
			state = after
		}
	})
}

// feedText is a feed as a server sends it.
func feedText(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	for text, err := range encodeSnapshot(position{exampleState(2, 5), "abcd"}) {
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	now := time.Unix(1, 0)
	for _, l := range []feedLine{
		{Type: lineHeartbeat, Revision: 5},
		{Type: lineChange, Revision: 6, Line: "ef", Time: &now, Change: &bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(4)}}},
		{Type: lineHeartbeat, Revision: 6},
	} {
		text, err := encodeLine(l)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	return b.Bytes()
}

func TestFeedReader(t *testing.T) {
	whole := string(feedText(t))
	f := newFeedReader(strings.NewReader(whole), mark{})
	var got []string
	for {
		e, err := f.next()
		if err != nil {
			if !errors.Is(err, bulkhead.Unavailable) {
				t.Error(err)
			}
			break
		}
		switch {
		case e.snapshot != nil:
			same(t, "snapshot", e.snapshot.state, exampleState(2, 5))
			got = append(got, fmt.Sprint("snapshot ", e.snapshot.state.Revision))
		case e.revision != nil:
			got = append(got, fmt.Sprint("revision ", e.revision.Number, e.revision.Parent))
		default:
			got = append(got, "nothing")
		}
	}
	if want := "snapshot 5,nothing,revision 6 5,nothing"; strings.Join(got, ",") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	end := strings.Index(whole, `{"type":"end"`)
	for name, text := range map[string]string{
		"no JSON":                  "<html>\n",
		"a gap":                    strings.Replace(whole, `"revision":6`, `"revision":7`, 1),
		"an object is missing":     strings.Replace(whole, `"objects":8`, `"objects":9`, 1),
		"a change in a snapshot":   whole[:end] + `{"type":"change","revision":6,"change":{}}` + "\n" + whole[end:],
		"a snapshot in a snapshot": whole[:end] + whole,
		"objects that delete":      whole[:end] + `{"type":"objects","change":{"delete":{"cells":["cell1"]}}}` + "\n" + whole[end:],
		"another revision":         `{"type":"heartbeat","revision":9}` + "\n",
		"an end without a begin":   `{"type":"end"}` + "\n",
		"a change of nothing":      `{"type":"change","revision":1}` + "\n",
	} {
		f := newFeedReader(strings.NewReader(text), mark{})
		var err error
		for err == nil {
			_, err = f.next()
		}
		if !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What a newer server adds is passed over.
	f = newFeedReader(strings.NewReader(`{"type":"weather","revision":3,"rain":true}`+"\n"+whole), mark{})
	if e, err := f.next(); err != nil || e.snapshot == nil {
		t.Errorf("%+v, %v", e, err)
	}
}

// FuzzFeedReader: whatever a feed says, what comes of it is one line of
// revisions, and a snapshot is whole.
func FuzzFeedReader(f *testing.F) {
	f.Add(feedText(f))
	f.Add([]byte(`{"type":"snapshot","revision":1}` + "\n" + `{"type":"end","revision":1}` + "\n" + `{"type":"change","revision":2,"change":{}}`))
	f.Add([]byte(`{"type":"keys","keys":[{"token":"aaaaaaaaaa","node":"fs1","cell":"cell1","hash":"AAEC"},{"hash":null}]}` + "\n" + `{"type":"keys","keys":[]}` + "\n" + `{"type":"keys"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var ring Keyring
		r := newFeedReader(bytes.NewReader(data), mark{})
		var at bulkhead.RevisionNumber
		for {
			e, err := r.next()
			if err != nil {
				return
			}
			switch {
			case e.keys != nil:
				ring.told("", *e.keys)
				if _, ok := ring.Find(""); ok {
					t.Fatal("nothing is somebody's secret")
				}
			case e.snapshot != nil:
				at = e.snapshot.state.Revision
			case e.revision != nil:
				if e.revision.Number != at+1 || e.revision.Parent != at {
					t.Fatalf("revision %d on %d after %d", e.revision.Number, e.revision.Parent, at)
				}
				at = e.revision.Number
				if _, err := json.Marshal(e.revision); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
