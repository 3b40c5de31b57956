package spool

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// childEnv makes this test binary a child that is killed: "<mode> <folder>".
const childEnv = "BULKHEAD_SPOOL_TEST_CHILD"

func TestMain(m *testing.M) {
	mode, dir, ok := strings.Cut(os.Getenv(childEnv), " ")
	if !ok {
		goleak.VerifyTestMain(m)
		return
	}
	run := map[string]func(string) error{"write": childWrite, "read": childRead, "nospace": childNoSpace}[mode]
	if err := run(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// child returns a command that runs this test binary in a mode.
func child(t *testing.T, mode, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+mode+" "+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// small makes many segments of few records.
func small() Options {
	o := DefaultOptions()
	o.SegmentBytes, o.MaxBytes, o.MaxRecord, o.QueueBytes = 4096, 1<<20, 2048, 64<<10
	return o
}

func open(t testing.TB, dir string, o Options) *Spool {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func openReader(t testing.TB, dir, name string) *Reader {
	t.Helper()
	r, err := OpenReader(dir, name, ReaderOptions{Poll: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close reader: %v", err)
		}
	})
	return r
}

func appendAll(t testing.TB, s *Spool, payloads ...string) {
	t.Helper()
	for _, p := range payloads {
		if err := s.Append(t.Context(), []byte(p)); err != nil {
			t.Fatal(err)
		}
	}
}

// numbered returns n payloads that tell their place.
func numbered(from, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("record %06d %s", from+i, strings.Repeat("x", 100)))
	}
	return out
}

// drain reads up to the last record that is on disk now, and returns what came
// and the last batch.
func drain(t testing.TB, r *Reader) (payloads []string, last Batch) {
	t.Helper()
	var end Position
	for _, rec := range scanAll(t, r.dir) {
		end = Position{Segment: rec.Segment, Offset: rec.end()}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for r.next.Before(end) {
		b, err := r.Read(ctx, 7)
		if err != nil {
			t.Fatal(err)
		}
		last = b
		for _, p := range b.Payloads {
			payloads = append(payloads, string(p))
		}
	}
	return payloads, last
}

func scanAll(t testing.TB, dir string) []Record {
	t.Helper()
	var recs []Record
	if _, err := Scan(dir, func(r Record) error { recs = append(recs, r); return nil }); err != nil {
		t.Fatal(err)
	}
	return recs
}

// files returns the names in dir that match a pattern.
func files(t testing.TB, dir, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// until waits for a condition for up to 10 s.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited too long for: %s", what)
		}
	}
}

// edit changes a file in place.
func edit(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), fileMode); err != nil {
		t.Fatal(err)
	}
}
