package asterisktest_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
)

// memory is a stream that keeps its entries as a warehouse would: one record a
// leg.
type memory struct {
	mu   sync.Mutex
	legs map[string]cdr.Record
	gaps map[string]cdr.Gap
}

func (m *memory) Append(_ context.Context, payloads ...[]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range payloads {
		e, err := cdr.Decode(p)
		if err != nil {
			return err
		}
		if e.Gap != nil {
			m.gaps[e.Gap.ID] = *e.Gap
			continue
		}
		r := *e.Record
		if old, ok := m.legs[r.Leg]; ok {
			r = cdr.Merge(old, r)
		}
		m.legs[r.Leg] = r
	}
	return nil
}

func (m *memory) counts() (legs, gaps int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.legs), len(m.gaps)
}

// TestThroughBridge: the event bridge itself makes one record a leg of what a
// source tells, through a lost connection.
func TestThroughBridge(t *testing.T) {
	server := serve(t, asterisktest.ServerConfig{Queue: 65536})
	src, err := asterisk.NewSource(server.Config(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(src.Close)
	stream := &memory{legs: map[string]cdr.Record{}, gaps: map[string]cdr.Gap{}}
	cfg := eventbridge.DefaultConfig()
	cfg.Cell, cfg.Stream, cfg.Journal = "c1", stream, t.TempDir()
	b, err := eventbridge.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.SetSources([]eventbridge.Source{src}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- b.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	until(t, "a connection", func() bool { ari, ami := server.Listeners(); return ari == 1 && ami == 1 && b.Ready() == nil })

	l := &ledger{legs: map[string]asterisktest.Leg{}}
	generated := make(chan error, 1)
	go func() {
		generated <- server.Generate(t.Context(), asterisktest.Load{Calls: 600, Rate: 300, Ring: 100 * time.Millisecond, Talk: 2 * time.Second, Seed: 3, Ledger: l.add})
	}()
	until(t, "calls", func() bool { legs, _ := stream.counts(); return legs > 100 })
	server.Cut()
	if err := <-generated; err != nil {
		t.Fatal(err)
	}
	legs := l.all()
	until(t, "the gap and the calls", func() bool {
		n, gaps := stream.counts()
		return gaps > 0 && len(server.Live()) == 0 && b.Status().Sources[0].OpenLegs == 0 && n >= len(legs)*8/10
	})
	stop()
	missing, vague := 0, 0
	for id, want := range legs {
		r, ok := stream.legs[id]
		switch {
		case !ok:
			missing++ // it began and ended in the gap
		case r.End.IsZero() != (r.Source == cdr.SourceSynthesised):
			t.Errorf("leg %s: %+v", id, r)
		case r.Source == cdr.SourceSynthesised, r.Source == cdr.SourceAMI, r.Prov[cdr.SourceAMI] != 0:
			vague++
			if r.Gap == "" && r.Source == cdr.SourceSynthesised {
				t.Errorf("leg %s ended in no gap: %+v", id, r)
			}
		case !isOf(&r, &want) || !r.Answer.Equal(want.Answer):
			t.Errorf("leg %s: %+v, was %+v", id, r, want)
		}
	}
	for id := range stream.legs {
		if _, ok := legs[id]; !ok {
			t.Errorf("a record of no leg: %s", id)
		}
	}
	t.Logf("%d legs, %d vague, %d never heard of, %d gaps", len(legs), vague, missing, len(stream.gaps))
}

// TestTwoBridges: two bridges hear one Asterisk, each as an application of its
// own, and write into one store. Each is away for a while, never both: every
// leg is there, once, although there is no second source.
func TestTwoBridges(t *testing.T) {
	server := serve(t, asterisktest.ServerConfig{Queue: 65536})
	stream := &memory{legs: map[string]cdr.Record{}, gaps: map[string]cdr.Gap{}}
	type side struct {
		journal string
		cfg     asterisk.Config
		bridge  *eventbridge.Bridge
		stop    func()
	}
	start := func(s *side) {
		t.Helper()
		src, err := asterisk.NewSource(s.cfg, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		cfg := eventbridge.DefaultConfig()
		cfg.Cell, cfg.Stream, cfg.Journal = "c1", stream, s.journal
		if s.bridge, err = eventbridge.New(cfg); err != nil {
			t.Fatal(err)
		}
		if err := s.bridge.SetSources([]eventbridge.Source{src}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ran := make(chan error, 1)
		go func() { ran <- s.bridge.Run(ctx) }()
		s.stop = sync.OnceFunc(func() {
			cancel()
			if err := <-ran; err != nil {
				t.Error(err)
			}
			src.Close()
		})
		t.Cleanup(s.stop)
		until(t, "a connection", func() bool { st := s.bridge.Status().Sources; return len(st) == 1 && st[0].Connected })
	}
	var sides [2]*side
	for i := range sides {
		sides[i] = &side{journal: t.TempDir(), cfg: server.Config()}
		sides[i].cfg.AMI.Addr, sides[i].cfg.ARI.App = "", []string{"first", "second"}[i]
		start(sides[i])
	}
	l := &ledger{legs: map[string]asterisktest.Leg{}}
	enough, generated := make(chan struct{}), make(chan error, 1)
	go func() {
		for seed := uint64(1); ; seed++ {
			select {
			case <-enough:
				generated <- nil
				return
			default:
			}
			if err := server.Generate(t.Context(), asterisktest.Load{Calls: 60, Rate: 200, Ring: 50 * time.Millisecond, Talk: time.Second, Seed: seed, Ledger: l.add}); err != nil {
				generated <- err
				return
			}
		}
	}()
	more := func() {
		n, _ := stream.counts()
		until(t, "more calls", func() bool { now, _ := stream.counts(); return now > n+100 })
	}
	for _, s := range sides {
		more()
		s.stop()
		more()
		start(s)
	}
	close(enough)
	if err := <-generated; err != nil {
		t.Fatal(err)
	}
	legs := l.all()
	until(t, "every leg", func() bool {
		stream.mu.Lock()
		defer stream.mu.Unlock()
		whole := 0
		for _, r := range stream.legs {
			if !r.End.IsZero() {
				whole++
			}
		}
		return whole >= len(legs)
	})
	for _, s := range sides {
		s.stop()
	}
	for id, want := range legs {
		if r := stream.legs[id]; !isOf(&r, &want) || !r.Answer.Equal(want.Answer) {
			t.Errorf("leg %s: %+v, was %+v", id, r, want)
		}
	}
	if len(stream.legs) != len(legs) {
		t.Errorf("%d records of %d legs", len(stream.legs), len(legs))
	}
}
