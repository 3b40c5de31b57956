package spool

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// filled returns a folder with closed segments and the records in it.
func filled(t *testing.T, n int) (string, []Record) {
	t.Helper()
	dir := t.TempDir()
	s := open(t, dir, small())
	appendAll(t, s, numbered(0, n)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, scanAll(t, dir)
}

func TestTornTailIsCut(t *testing.T) {
	dir, recs := filled(t, 10)
	last := recs[len(recs)-1]
	path := segmentPath(dir, last.Segment, false)
	edit(t, path, func(b []byte) []byte { return append(b, b[last.Offset:last.Offset+50]...) })

	r := openReader(t, dir, "one")
	got, _ := drain(t, r) // while no writer lives
	if diff := cmp.Diff(numbered(0, 10), got); diff != "" {
		t.Fatal(diff)
	}
	s := open(t, dir, small())
	if n := testutil.ToFloat64(s.m.truncated); n != 50 {
		t.Fatalf("cut %v bytes, want 50", n)
	}
	appendAll(t, s, "next")
	if got, _ := drain(t, r); !cmp.Equal([]string{"next"}, got) {
		t.Fatalf("after the crash: %q", got)
	}
	if q := files(t, dir, "*"+quarantineExt); len(q) != 0 {
		t.Fatalf("quarantined: %v", q)
	}
}

func TestHalfWrittenHeaderIsCut(t *testing.T) {
	for _, n := range []int{0, 1, 15} {
		dir, recs := filled(t, 3)
		torn := recs[0].Segment + 1
		if err := os.WriteFile(segmentPath(dir, torn, false), segmentHeader(torn)[:n], fileMode); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, small())
		appendAll(t, s, "next")
		got, _ := drain(t, openReader(t, dir, "one"))
		if diff := cmp.Diff(append(numbered(0, 3), "next"), got); diff != "" {
			t.Fatal(diff)
		}
	}
}

// TestDamage spoils one place in each of the first, a middle and the last
// segment, and expects all records but the spoilt one.
func TestDamage(t *testing.T) {
	dir, recs := filled(t, 100)
	nums := []uint64{recs[0].Segment, recs[50].Segment, recs[len(recs)-1].Segment}
	want := numbered(0, 100)
	for _, num := range nums {
		i := slices.IndexFunc(recs, func(r Record) bool { return r.Segment == num }) + 1 // its second record
		edit(t, segmentPath(dir, num, false), func(b []byte) []byte {
			b[recs[i].Offset+frameBytes+3] ^= 0x40
			return b
		})
		want = slices.DeleteFunc(want, func(p string) bool { return p == string(recs[i].Payload) })
	}
	spoilt, err := os.ReadFile(segmentPath(dir, nums[2], false))
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, small())
	if b, err := os.ReadFile(segmentPath(dir, nums[2], true)); err != nil || !bytes.Equal(b, spoilt) {
		t.Fatalf("the last segment was not set apart as it was: %v", err)
	}
	appendAll(t, s, "next")
	r := openReader(t, dir, "one")
	got, last := drain(t, r)
	if diff := cmp.Diff(append(want, "next"), got); diff != "" {
		t.Fatal(diff)
	}
	if q := files(t, dir, "*"+segmentExt+quarantineExt); len(q) != len(nums) {
		t.Fatalf("quarantined %v, want %v", q, nums)
	}
	if n := testutil.ToFloat64(r.m.skipped); n != float64(len(nums)*(frameBytes+len(want[0]))) {
		t.Fatalf("skipped %v bytes", n)
	}
	if err := last.Ack(); err != nil {
		t.Fatal(err)
	}
	until(t, "the count", func() bool { return testutil.ToFloat64(s.m.quarantined) == float64(len(nums)) })
	until(t, "good segments freed", func() bool { return len(files(t, dir, "*"+segmentExt)) == 1 })
	if q := files(t, dir, "*"+segmentExt+quarantineExt); len(q) != len(nums) {
		t.Fatalf("quarantine was freed: %v", q)
	}
}

func TestDamagedHeaderLosesNothing(t *testing.T) {
	dir, recs := filled(t, 60)
	edit(t, segmentPath(dir, recs[0].Segment, false), func(b []byte) []byte { b[2] ^= 1; return b })
	open(t, dir, small())
	got, _ := drain(t, openReader(t, dir, "one"))
	if diff := cmp.Diff(numbered(0, 60), got); diff != "" {
		t.Fatal(diff)
	}
	if q := files(t, dir, "*"+quarantineExt); len(q) != 1 {
		t.Fatalf("quarantined: %v", q)
	}
}

// TestDamageUnderALivingWriter: a reader must not wait for the end of a
// segment that was damaged while it is written to.
func TestDamageUnderALivingWriter(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	appendAll(t, s, numbered(0, 5)...)
	recs := scanAll(t, dir)
	f, err := os.OpenFile(segmentPath(dir, recs[1].Segment, false), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("????"), recs[1].Offset+4); err != nil { // its length
		t.Fatal(err)
	}
	r := openReader(t, dir, "one")
	got, _ := drain(t, r)
	if diff := cmp.Diff(slices.Delete(numbered(0, 5), 1, 2), got); diff != "" {
		t.Fatal(diff)
	}
	until(t, "the writer to see the quarantine", func() bool { return testutil.ToFloat64(s.m.quarantined) == 1 })
	appendAll(t, s, "next")
	if got, _ := drain(t, r); !cmp.Equal([]string{"next"}, got) {
		t.Fatalf("got %q", got)
	}
	if n := len(files(t, dir, "*"+segmentExt)); n != 1 {
		t.Fatalf("%d good segments, want a new one for the next record", n)
	}
}

// TestNothingIsInvented: payloads that hold whole frames, even those of their
// own segment, are not taken for records behind damage.
func TestNothingIsInvented(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	appendAll(t, s, "first")
	num := scanAll(t, dir)[0].Segment
	var fake []byte
	for off := range int64(8) {
		frame := beginFrame(nil, []byte("forged"), time.Now())
		sealFrame(frame, num, headerBytes+off*64)
		fake = append(fake, frame...)
	}
	appendAll(t, s, string(fake), "last")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	recs := scanAll(t, dir)
	edit(t, segmentPath(dir, num, false), func(b []byte) []byte { b[recs[1].Offset] ^= 1; return b })
	open(t, dir, small())
	got, _ := drain(t, openReader(t, dir, "one"))
	if diff := cmp.Diff([]string{"first", "last"}, got); diff != "" {
		t.Fatal(diff)
	}
}

func TestDamagedAck(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	appendAll(t, s, numbered(0, 3)...)
	r := openReader(t, dir, "one")
	_, last := drain(t, r)
	if err := last.Ack(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	edit(t, ackPath(dir, "one"), func(b []byte) []byte { return []byte(strings.Replace(string(b), "0", "7", 1)) })
	appendAll(t, s, numbered(3, 100)...) // the writer meets it and frees nothing
	got, _ := drain(t, openReader(t, dir, "one"))
	if diff := cmp.Diff(numbered(0, 103), got); diff != "" {
		t.Fatal(diff)
	}
	if q := files(t, dir, "one.ack"+quarantineExt); len(q) != 1 {
		t.Fatalf("the damaged file is gone: %v", q)
	}
}

// TestAckBeyondTheDisk: a power cut may take back bytes that a reader already
// acknowledged. New records must not be taken for read.
func TestAckBeyondTheDisk(t *testing.T) {
	dir, recs := filled(t, 5)
	last := recs[len(recs)-1]
	if err := writeAck(dir, "one", Position{Segment: last.Segment + 1, Offset: 5000}); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, small())
	appendAll(t, s, numbered(5, 100)...)
	got, _ := drain(t, openReader(t, dir, "one"))
	if diff := cmp.Diff(numbered(5, 100), got); diff != "" {
		t.Fatal(diff)
	}
}

func TestLeftoversOfAnAckAreRemoved(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".one.ack123", ".one.ack.lock", ".one-b.ack123"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, fileMode); err != nil {
			t.Fatal(err)
		}
	}
	openReader(t, dir, "one")
	if got := files(t, dir, ".*"); len(got) != 2 {
		t.Fatalf("left: %v", got)
	}
}

// TestDiskErrorMovesOn: a segment that cannot be written is given up, the
// caller is told, and the next record goes to another segment.
func TestDiskErrorMovesOn(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	appendAll(t, s, "before")
	// The answer of an Enqueue runs on the syncer, which owns the file.
	broken := make(chan error, 1)
	if err := s.Enqueue([]byte("with"), func(error) { broken <- s.file.Close() }); err != nil {
		t.Fatal(err)
	}
	if err := <-broken; err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), []byte("lost")); err == nil {
		t.Fatal("a write to a closed file was acknowledged")
	}
	appendAll(t, s, "after")
	got, _ := drain(t, openReader(t, dir, "one"))
	if diff := cmp.Diff([]string{"before", "with", "after"}, got); diff != "" {
		t.Fatal(diff)
	}
	if n := testutil.ToFloat64(s.m.refused.WithLabelValues(reasonFailed)); n != 1 {
		t.Fatalf("counted %v", n)
	}
}
