package eventbridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// victimEnv makes the test binary a bridge process that is there to be killed.
const victimEnv = "BULKHEAD_EVENTBRIDGE_VICTIM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimEnv); dir != "" {
		fmt.Fprintln(os.Stderr, runVictim(dir))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(sec int) time.Time { return epoch.Add(time.Duration(sec) * time.Second) }

func event(typ cdr.EventType, sec int, leg string) cdr.Event {
	ev := cdr.Event{Type: typ, Time: at(sec), Record: cdr.Record{Leg: leg, Call: leg, Start: at(sec)}}
	if typ == cdr.Closed {
		ev.Record.End, ev.Record.Cause, ev.Record.Source = at(sec), "NORMAL_CLEARING", cdr.SourceESL
	}
	return ev
}

func connected(sec int, core string, live ...string) cdr.Event {
	return cdr.Event{Type: cdr.Connected, Time: at(sec), Core: core, Live: live}
}

func listed(sec int, live ...string) cdr.Event {
	return cdr.Event{Type: cdr.Listed, Time: at(sec), Live: live}
}

func heartbeat(sec int) cdr.Event { return cdr.Event{Type: cdr.Heartbeat, Time: at(sec)} }

// fakeSource runs a function for each connection.
type fakeSource struct {
	id  bulkhead.NodeID
	n   atomic.Int64
	run func(ctx context.Context, n int, emit func(cdr.Event)) error
}

func (s *fakeSource) Node() bulkhead.NodeID { return s.id }

func (s *fakeSource) Run(ctx context.Context, emit func(cdr.Event)) error {
	return s.run(ctx, int(s.n.Add(1)), emit)
}

var errEOF = errors.New("connection closed by the switch")

// scripted emits one list of events a connection, which then breaks; after
// the last list it stays.
func scripted(id bulkhead.NodeID, connections ...[]cdr.Event) *fakeSource {
	return &fakeSource{id: id, run: func(ctx context.Context, n int, emit func(cdr.Event)) error {
		if n > len(connections) {
			<-ctx.Done()
			return nil
		}
		for _, ev := range connections[n-1] {
			emit(ev)
		}
		if n < len(connections) {
			return errEOF
		}
		<-ctx.Done()
		return nil
	}}
}

// memStream keeps payloads in memory.
type memStream struct {
	mu       sync.Mutex
	payloads [][]byte
	fail     error
	before   func()
}

func (s *memStream) Append(_ context.Context, payloads ...[]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.before != nil {
		s.before()
	}
	if s.fail != nil {
		return s.fail
	}
	for _, p := range payloads {
		s.payloads = append(s.payloads, bytes.Clone(p))
	}
	return nil
}

func (s *memStream) setFail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// stored is what a store makes of the stream: one record a leg, one gap an id.
type stored struct {
	legs map[string]cdr.Record
	gaps map[string]cdr.Gap
	raw  int // payloads that are no entries
}

func (s *memStream) stored() stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fold(s.payloads)
}

func fold(payloads [][]byte) stored {
	st := stored{legs: map[string]cdr.Record{}, gaps: map[string]cdr.Gap{}}
	for _, p := range payloads {
		e, err := cdr.Decode(p)
		if err != nil {
			st.raw++
			continue
		}
		if r := e.Record; r != nil {
			if old, ok := st.legs[r.Leg]; ok {
				*r = cdr.Merge(old, *r)
			}
			st.legs[r.Leg] = *r
		}
		if g := e.Gap; g != nil {
			old := st.gaps[g.ID]
			g.Legs = append(old.Legs, g.Legs...)
			if g.To.Before(old.To) {
				g.To = old.To
			}
			st.gaps[g.ID] = *g
		}
	}
	return st
}

// onlyGap returns the one gap that is there.
func (s stored) onlyGap(t *testing.T) cdr.Gap {
	t.Helper()
	if len(s.gaps) != 1 {
		t.Fatalf("%d gaps, want one: %+v", len(s.gaps), s.gaps)
	}
	for _, g := range s.gaps {
		return g
	}
	return cdr.Gap{}
}

func testConfig(t testing.TB, s Stream) Config {
	cfg := DefaultConfig()
	cfg.Cell, cfg.Stream, cfg.Journal = "c1", s, t.TempDir()
	return cfg
}

// launch runs a bridge; stop ends it and checks that it ended well.
func launch(t *testing.T, cfg Config, sources ...Source) (b *Bridge, stop func()) {
	t.Helper()
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.SetSources(sources); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	return b, sync.OnceFunc(func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}
