package spool

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// watched is a disk that knows at any time what of the spool is durable.
type watched struct {
	mu     sync.Mutex
	synced map[string]int64 // file name: all below this offset is durable
	dirty  map[string]int64 // file name: end of what was written since
	named  map[string]bool  // names that are durable
}

func newWatched() *watched {
	return &watched{synced: map[string]int64{}, dirty: map[string]int64{}, named: map[string]bool{}}
}

func (w *watched) disk() disk {
	under := realDisk()
	return disk{
		write: func(f *os.File, b []byte, off int64) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.dirty[filepath.Base(f.Name())] = off + int64(len(b))
			return under.write(f, b, off)
		},
		sync: func(f *os.File) error {
			err := under.sync(f)
			w.mu.Lock()
			defer w.mu.Unlock()
			name := filepath.Base(f.Name())
			w.synced[name] = max(w.synced[name], w.dirty[name])
			return err
		},
		syncDir: func(dir string) error {
			names, err := os.ReadDir(dir)
			if err == nil {
				err = under.syncDir(dir)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, e := range names {
				w.named[e.Name()] = true
			}
			return err
		},
		free: under.free,
	}
}

// check wants everything that was written to any segment to be durable, and
// returns how many segments there are. It is called when an append has been
// answered and no other is under way.
func (w *watched) check(t *testing.T, dir string) int {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	segments := files(t, dir, "*"+segmentExt)
	for _, path := range segments {
		name := filepath.Base(path)
		if end := w.dirty[name]; end == 0 || w.synced[name] < end {
			t.Errorf("answered, and of %s only %d of %d bytes are durable", name, w.synced[name], end)
		}
		if !w.named[name] {
			t.Errorf("answered, and the name %s is not durable", name)
		}
	}
	return len(segments)
}

// TestAnswerComesAfterSync wants no append to be answered before its bytes,
// and the name of the segment that they are in, are durable: across several
// segments, by Append and by Enqueue, which answers on the writing goroutine.
func TestAnswerComesAfterSync(t *testing.T) {
	dir, w := t.TempDir(), newWatched()
	s, err := openOn(dir, small(), w.disk())
	if err != nil {
		t.Fatal(err)
	}
	w.check(t, dir) // the first segment
	segments := 0
	for _, p := range numbered(0, 60) {
		if err := s.Append(t.Context(), []byte(p)); err != nil {
			t.Fatal(err)
		}
		segments = w.check(t, dir)
	}
	if segments < 2 {
		t.Fatalf("%d segments: the test needs a new one under way", segments)
	}
	answered := make(chan error, 60)
	for _, p := range numbered(60, 60) {
		if err := s.Enqueue([]byte(p), func(err error) {
			w.check(t, dir) // nothing else writes meanwhile
			answered <- err
		}); err != nil {
			t.Fatal(err)
		}
	}
	for range 60 {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range scanAll(t, dir) {
		got = append(got, string(r.Payload))
	}
	if want := numbered(0, 120); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%d records came back, want %d in their order", len(got), len(want))
	}
}

// TestFailedSyncIsAnswered wants the caller to hear of a sync that failed, of
// the bytes as well as of the name.
func TestFailedSyncIsAnswered(t *testing.T) {
	for _, what := range []string{"bytes", "name"} {
		t.Run(what, func(t *testing.T) {
			var broken bool // read and written with mu
			var mu sync.Mutex
			fail := func() error {
				mu.Lock()
				defer mu.Unlock()
				if broken {
					return os.ErrInvalid
				}
				return nil
			}
			d := realDisk()
			if what == "bytes" {
				d.sync = func(*os.File) error { return fail() }
			} else {
				d.syncDir = func(string) error { return fail() }
			}
			s, err := openOn(t.TempDir(), small(), d)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close() //nolint:errcheck // the disk is broken
			mu.Lock()
			broken = true
			mu.Unlock()
			var failed bool
			for _, p := range numbered(0, 60) { // enough to need another segment
				failed = failed || s.Append(t.Context(), []byte(p)) != nil
			}
			if !failed {
				t.Error("every append was answered well")
			}
		})
	}
}
