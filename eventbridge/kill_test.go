package eventbridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

var _ Stream = (*spool.Spool)(nil)

// crashPoint is what a kill would leave at some moment.
type crashPoint struct {
	journal  []byte
	payloads int
}

// TestCrashAtEveryPoint takes a picture of journal and stream before and after
// every append and starts a new bridge from each picture.
func TestCrashAtEveryPoint(t *testing.T) {
	events := []cdr.Event{connected(0, "core")}
	for i := range 12 {
		events = append(events, event(cdr.Opened, 2*i+1, fmt.Sprint(i)), event(cdr.Answered, 2*i+1, fmt.Sprint(i)))
		if i >= 3 {
			events = append(events, event(cdr.Closed, 2*i+2, fmt.Sprint(i-3)))
		}
	}
	points, s := record(t, events)
	for n, p := range points {
		synctest.Test(t, func(t *testing.T) {
			before := fold(s.payloads[:p.payloads])
			next := &memStream{payloads: s.payloads[:p.payloads:p.payloads]}
			cfg := testConfig(t, next)
			if err := os.WriteFile(filepath.Join(cfg.Journal, journalFile), p.journal, 0o600); err != nil {
				t.Fatal(err)
			}
			nodes, bad, err := readJournal(strings.NewReader(string(p.journal)), cfg.Cell)
			if err != nil || bad != 0 {
				t.Fatalf("journal at point %d: %d bad lines, %v", n, bad, err)
			}
			_, stop := launch(t, cfg, scripted("fs1", []cdr.Event{connected(1000, "core")}))
			time.Sleep(time.Second)
			stop()
			after := next.stored()
			for leg, r := range before.legs {
				if after.legs[leg].Source != r.Source || !after.legs[leg].End.Equal(r.End) {
					t.Errorf("point %d: durable record of leg %s became %+v", n, leg, after.legs[leg])
				}
			}
			if nodes["fs1"] == nil {
				return // killed before the first event was stored
			}
			gap := after.onlyGap(t)
			for _, ev := range events {
				r, ok := after.legs[ev.Record.Leg]
				if ev.Record.Leg == "" || ev.Time.After(gap.From) {
					continue
				}
				switch {
				case !ok:
					t.Errorf("point %d: leg %s began before the gap and is unknown", n, ev.Record.Leg)
				case ev.Type == cdr.Closed && r.Source != cdr.SourceESL:
					t.Errorf("point %d: leg %s ended before the gap and is %s", n, r.Leg, r.Source)
				case r.Source == cdr.SourceSynthesised && r.Gap != gap.ID:
					t.Errorf("point %d: leg %s names gap %q", n, r.Leg, r.Gap)
				}
			}
		})
	}
	t.Logf("%d points", len(points))
}

// record runs a bridge over the events, one at a time.
func record(t *testing.T, events []cdr.Event) (points []crashPoint, s *memStream) {
	s = &memStream{}
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig(t, s)
		snap := func() {
			b, err := os.ReadFile(filepath.Join(cfg.Journal, journalFile))
			if err != nil {
				t.Error(err)
			}
			points = append(points, crashPoint{b, len(s.payloads)})
		}
		s.before = snap
		// The journal is not yet written when Append returns: that picture
		// is the one before, with more payloads.
		src := &fakeSource{id: "fs1", run: func(ctx context.Context, _ int, emit func(cdr.Event)) error {
			for _, ev := range events {
				emit(ev)
				time.Sleep(10 * time.Millisecond) // the bubble's time: the event is through
				snap()
			}
			<-ctx.Done()
			return nil
		}}
		_, stop := launch(t, cfg, src)
		time.Sleep(10 * time.Second)
		stop()
	})
	for _, p := range points {
		if p.payloads < len(s.payloads) {
			points = append(points, crashPoint{p.journal, p.payloads + 1})
		}
	}
	return points, s
}

// runVictim is a bridge process: a node that opens and ends legs without
// pause, a real spool, and a file that tells the truth before each event.
func runVictim(dir string) error {
	truth, err := os.OpenFile(filepath.Join(dir, "truth"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	s, err := spool.Open(filepath.Join(dir, "spool"), spool.DefaultOptions())
	if err != nil {
		return err
	}
	cfg := DefaultConfig()
	cfg.Cell, cfg.Stream, cfg.Journal = "c1", s, filepath.Join(dir, "journal")
	b, err := New(cfg)
	if err != nil {
		return err
	}
	src := &fakeSource{id: "fs1", run: func(ctx context.Context, _ int, emit func(cdr.Event)) error {
		emit(connected(0, "core"))
		for i := 1; ctx.Err() == nil; i++ {
			if _, err := fmt.Fprintln(truth, i); err != nil {
				return err
			}
			emit(event(cdr.Opened, 2*i, fmt.Sprint(i)))
			if i > 20 {
				emit(event(cdr.Closed, 2*i+1, fmt.Sprint(i-20)))
			}
			<-time.After(200 * time.Microsecond)
		}
		return nil
	}}
	if err := b.SetSources([]Source{src}); err != nil {
		return err
	}
	return b.Run(context.Background())
}

func TestKilledProcess(t *testing.T) {
	for round := range 4 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			dir := t.TempDir()
			last := killVictim(t, dir, time.Duration(100+rand.IntN(200))*time.Millisecond)

			// Even legs that still were open live on, odd ones ended unseen.
			var live []string
			ends := []cdr.Event{{}}
			for i := max(1, last-19); i <= last; i++ { // the one before may or may not have ended
				if i%2 == 0 {
					live = append(live, fmt.Sprint(i))
					ends = append(ends, event(cdr.Closed, 1_000_001, fmt.Sprint(i)))
				}
			}
			ends[0] = connected(1_000_000, "core", live...)
			before := readSpool(t, dir)
			s, err := spool.Open(filepath.Join(dir, "spool"), spool.DefaultOptions())
			if err != nil {
				t.Fatal(err)
			}
			cfg := testConfig(t, s)
			cfg.Journal = filepath.Join(dir, "journal")
			b, stop := launch(t, cfg, scripted("fs1", ends))
			waitFor(t, "the new bridge is through", func() bool {
				st := b.Status().Sources
				return len(st) == 1 && st[0].Connected && st[0].Queued == 0 && st[0].OpenLegs == 0 && st[0].Gap == nil
			})
			stop()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			checkKill(t, last, before, readSpool(t, dir))
		})
	}
}

func checkKill(t *testing.T, last int, before, after stored) {
	t.Helper()
	gap := after.onlyGap(t)
	named := map[string]bool{}
	for _, leg := range gap.Legs {
		named[leg] = true
	}
	for leg, r := range before.legs {
		if after.legs[leg].Source != cdr.SourceESL || !after.legs[leg].End.Equal(r.End) {
			t.Errorf("durable record of leg %s became %+v", leg, after.legs[leg])
		}
	}
	full, synthesised := 0, 0
	for i := 1; i <= last; i++ {
		name := fmt.Sprint(i)
		r, ok := after.legs[name]
		began, ended := at(2*i), at(2*(i+20)+1)
		switch {
		case !ok && !began.After(gap.From):
			t.Errorf("leg %d began before the gap (from %v) and is unknown", i, gap.From.Sub(epoch))
		case ok && r.Source == cdr.SourceESL:
			full++
		case ok:
			synthesised++
			if !ended.After(gap.From) {
				t.Errorf("leg %d ended before the gap and is %s", i, r.Source)
			}
			if !named[name] || r.Gap != gap.ID || !r.End.IsZero() || r.Start.IsZero() {
				t.Errorf("leg %d, named %v: %+v", i, named[name], r)
			}
		}
	}
	if !gap.To.Equal(at(1_000_000)) || gap.Reason != "bridge restarted" {
		t.Errorf("gap %+v", gap)
	}
	t.Logf("%d legs: %d durable before the kill, %d full at the end, %d synthesised; gap from %v",
		last, len(before.legs), full, synthesised, gap.From.Sub(epoch))
	if len(before.legs) == 0 || synthesised == 0 {
		t.Error("the kill hit nothing")
	}
}

// killVictim runs a bridge process, kills it, and returns the last leg it began.
func killVictim(t *testing.T, dir string, life time.Duration) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the victim stores records", func() bool { return lastLeg(t, dir) > 60 })
	<-time.After(life) // the moment of the kill is to be any
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("the victim ended itself: %v\n%s", err, &stderr)
	}
	return lastLeg(t, dir)
}

func lastLeg(t *testing.T, dir string) (last int) {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "truth"))
	if err != nil {
		return 0
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if _, err := fmt.Sscan(sc.Text(), &last); err != nil {
			t.Fatal(err)
		}
	}
	return last
}

// readSpool reads all records under a reader's name of its own.
func readSpool(t *testing.T, dir string) stored {
	t.Helper()
	r, err := spool.OpenReader(filepath.Join(dir, "spool"), fmt.Sprintf("r%d", rand.Uint32()), spool.ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	var payloads [][]byte
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		b, err := r.Read(ctx, 10_000)
		cancel()
		if err != nil {
			return fold(payloads)
		}
		for _, p := range b.Payloads {
			payloads = append(payloads, append([]byte{}, p...))
		}
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}
