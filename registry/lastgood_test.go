package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead"
)

// exampleState is a state of n tenants at a revision.
func exampleState(n int, revision bulkhead.RevisionNumber) bulkhead.State {
	c := example(n)
	s := bulkhead.State{}.Apply(&c)
	s.Revision = revision
	return s
}

func openLastGood(t *testing.T, dir string) *LastGood {
	t.Helper()
	g, err := OpenLastGood(dir)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func save(t *testing.T, g *LastGood, s bulkhead.State) {
	t.Helper()
	if err := g.Save(s, nil); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v: it holds secrets", e.Name(), info.Mode())
		}
		out = append(out, e.Name())
	}
	return out
}

func TestLastGood(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	g := openLastGood(t, dir)
	if _, _, err := g.Load(); !errors.Is(err, bulkhead.NotFound) {
		t.Fatalf("an empty folder: %v", err)
	}
	for i := range 5 {
		if i == 3 {
			g = openLastGood(t, dir) // generations go on
		}
		want := exampleState(700+i, bulkhead.RevisionNumber(10+i))
		save(t, g, want)
		got, saved, err := g.Load()
		if err != nil || saved.Generation != uint64(i+1) || got.Revision != want.Revision || time.Since(saved.Time) > time.Minute || len(saved.Quarantined) > 0 {
			t.Fatalf("loaded revision %d, %+v, %v", got.Revision, saved, err)
		}
		same(t, "loaded", got, want)
	}
	if got := names(t, dir); !slices.Equal(got, []string{generationName(4), generationName(5)}) {
		t.Errorf("the folder holds %v", got)
	}
	save(t, g, bulkhead.State{Revision: 99})
	if got, _, err := g.Load(); err != nil || got.Revision != 99 || countObjects(got) != 0 {
		t.Errorf("an empty state came back as %+v, %v", got, err)
	}
}

// TestLastGoodDamaged cuts the newest file at many places and changes bytes
// of it: the one before is used, and the damaged one is kept aside.
func TestLastGoodDamaged(t *testing.T) {
	dir := t.TempDir()
	g := openLastGood(t, dir)
	save(t, g, exampleState(3, 1))
	save(t, g, exampleState(4, 2))
	newest := filepath.Join(dir, generationName(2))
	whole, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, b []byte) {
		t.Helper()
		if err := os.WriteFile(newest, b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, saved, err := openLastGood(t, dir).Load()
		if err != nil || got.Revision != 1 || len(got.Tenants) != 3 || !slices.Equal(saved.Quarantined, []string{generationName(2)}) {
			t.Fatalf("%s: revision %d with %d tenants, %+v, %v", what, got.Revision, len(got.Tenants), saved, err)
		}
		if kept, err := os.ReadFile(newest + quarantined); err != nil || !bytes.Equal(kept, b) {
			t.Fatalf("%s: not kept aside: %v", what, err)
		}
	}
	for n := 0; n < len(whole)-1; n += 1 + len(whole)/60 {
		try(fmt.Sprintf("cut at %d of %d", n, len(whole)), whole[:n])
		b := bytes.Clone(whole)
		b[n] ^= 0x11
		try(fmt.Sprintf("byte %d of %d changed", n, len(whole)), b)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	try("a line left out", slices.Concat(append(slices.Clone(lines[:1]), lines[2:]...)...))
	try("something behind the end", slices.Concat(whole, []byte("{}\n")))
	try("a file of another generation", must2(os.ReadFile(filepath.Join(dir, generationName(1)))))

	// After a restart generations still go on, and the folder stays bounded.
	again := openLastGood(t, dir)
	for i := range 3 * quarantineKept {
		save(t, again, exampleState(2, 50))
		if err := os.WriteFile(filepath.Join(dir, generationName(uint64(3+i))), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := again.Load(); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(names(t, dir)); n > generationsKept+quarantineKept {
		t.Errorf("the folder holds %d files", n)
	}
}

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestLastGoodOfNewerVersion(t *testing.T) {
	dir := t.TempDir()
	g := openLastGood(t, dir)
	save(t, g, exampleState(1, 1))
	newer := filepath.Join(dir, generationName(2))
	if err := os.WriteFile(newer, []byte(`{"format":"bulkhead snapshot 2"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, saved, err := g.Load()
	if err != nil || got.Revision != 1 || len(saved.Quarantined) != 0 {
		t.Errorf("revision %d, %+v, %v", got.Revision, saved, err)
	}
	if _, err := os.Stat(newer); err != nil {
		t.Errorf("the newer file is gone: %v", err)
	}
	// A field that a newer version added is no reason to serve nothing.
	var b bytes.Buffer
	w := newSnapshotWriter(&b)
	w.line(map[string]any{"format": snapshotFormat, "revision": 7, "objects": 1, "new": true})
	w.line(map[string]any{"put": map[string]any{"cells": []any{map[string]any{"id": "cell1", "colour": "red"}}}})
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	if f, err := readSnapshot(&b); err != nil || f.state.Cells["cell1"] == nil {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestLastGoodHalfWritten: what a crash left of a save is not read, and goes.
func TestLastGoodHalfWritten(t *testing.T) {
	dir := t.TempDir()
	save(t, openLastGood(t, dir), exampleState(1, 1))
	if err := os.WriteFile(filepath.Join(dir, "."+generationName(2)+"123"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _, err := openLastGood(t, dir).Load(); err != nil || got.Revision != 1 {
		t.Errorf("revision %d, %v", got.Revision, err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{generationName(1)}) {
		t.Errorf("the folder holds %v", got)
	}
}

// TestFollowerFromDisk: a start with everything else dead.
func TestFollowerFromDisk(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		g := openLastGood(t, dir)
		save(t, g, exampleState(3, 1))
		save(t, g, exampleState(3, 2))
		if err := os.Truncate(filepath.Join(dir, generationName(2)), 500); err != nil {
			t.Fatal(err)
		}
		s := &flaky{revisions: make(chan []bulkhead.Revision), err: bulkhead.Unavailable}
		metrics := prometheus.NewRegistry()
		f := &Follower{Store: s, Apply: whole(s.apply), LastGood: g, Metrics: metrics}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx) }()
		s.expect(t, "the store is dead", 1)
		st := f.Status()
		if st.Source != FromDisk || st.Revision != 1 || st.Following || st.Saved.IsZero() || st.Err == "" || !slices.Equal(st.Quarantined, []string{generationName(2)}) {
			t.Errorf("the status is %+v", st)
		}
		want := `
# HELP bulkhead_registry_following 1 while the registry answers and its newest revision is in force here.
# TYPE bulkhead_registry_following gauge
bulkhead_registry_following 0
# HELP bulkhead_registry_from_disk 1 while what is in force is the last known good from disk.
# TYPE bulkhead_registry_from_disk gauge
bulkhead_registry_from_disk 1
# HELP bulkhead_registry_lastgood_quarantined_total Files of the last known good configuration that were torn or tampered with.
# TYPE bulkhead_registry_lastgood_quarantined_total counter
bulkhead_registry_lastgood_quarantined_total 1
`
		if err := testutil.GatherAndCompare(metrics, strings.NewReader(want), "bulkhead_registry_following", "bulkhead_registry_from_disk", "bulkhead_registry_lastgood_quarantined_total"); err != nil {
			t.Error(err)
		}
		s.set(5, nil, nil)
		time.Sleep(2 * maxPause)
		s.expect(t, "the store is back", 1, 5)
		if st := f.Status(); st.Source != FromStore || st.Revision != 5 || !st.Following || st.Err != "" || !st.Saved.IsZero() {
			t.Errorf("the status is %+v", st)
		}
		s.revisions <- []bulkhead.Revision{revision(6)}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ended with %v", err)
		}
		if got, saved, err := g.Load(); err != nil || got.Revision != s.applied[len(s.applied)-1] || saved.Generation < 3 {
			t.Errorf("kept is revision %d, %+v, %v; applied were %v", got.Revision, saved, err, s.applied)
		}
	})
}

// TestFollowerSavesWithPauses: saving does not grow with the number of changes.
func TestFollowerSavesWithPauses(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		g := openLastGood(t, dir)
		s := &flaky{revisions: make(chan []bulkhead.Revision)}
		f := &Follower{Store: s, Apply: whole(s.apply), LastGood: g}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx) }()
		for i := range bulkhead.RevisionNumber(100) {
			s.revisions <- []bulkhead.Revision{revision(i + 1)}
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(2 * minSavePause)
		got, saved, err := g.Load()
		if err != nil || got.Revision != 100 || saved.Generation > 9 {
			t.Errorf("revision %d, generation %d, %v", got.Revision, saved.Generation, err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// FuzzReadSnapshot: whatever is on disk, it is read whole or refused.
func FuzzReadSnapshot(f *testing.F) {
	var b bytes.Buffer
	w := newSnapshotWriter(&b)
	w.state(snapshotHeader{Generation: 3, Saved: time.Unix(0, 0)}, exampleState(2, 5))
	if err := w.end(); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(`{"format":"bulkhead snapshot 1"}` + "\n" + `{"sha256":"x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := readSnapshot(bytes.NewReader(data))
		if err != nil {
			if s != nil || !errors.Is(err, bulkhead.Invalid) && !errors.Is(err, errNewer) {
				t.Fatalf("%v, %v", s, err)
			}
			return
		}
		if countObjects(s.state) != s.Objects {
			t.Fatalf("%d objects of %d", countObjects(s.state), s.Objects)
		}
	})
}
