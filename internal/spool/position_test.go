package spool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePosition(t *testing.T) {
	for in, want := range map[string]Position{
		"0:0":  {},
		"7:16": {Segment: 7, Offset: 16},
		Position{Segment: 12, Offset: 34}.String(): {Segment: 12, Offset: 34},
		"18446744073709551615:9223372036854775807": {Segment: 1<<64 - 1, Offset: 1<<63 - 1},
	} {
		if got, err := ParsePosition(in); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "7", "7:", ":7", "-1:0", "1:-1", "1:2:3", "1 :2", "1:9223372036854775808", "x:y"} {
		if got, err := ParsePosition(in); err == nil {
			t.Errorf("%q became %v", in, got)
		}
	}
}

// TestReadAhead reads far ahead, goes back, and acknowledges places in the
// middle of batches, as one does who learns late what arrived.
func TestReadAhead(t *testing.T) {
	dir := t.TempDir()
	want := numbered(0, 400)
	appendAll(t, open(t, dir, small()), want...)
	r := openReader(t, dir, "one")
	var behind []Position // by record
	read := func(from int) {
		t.Helper()
		for n := from; n < len(want); {
			b, err := r.Read(t.Context(), 1+rand.IntN(60))
			if err != nil {
				t.Fatal(err)
			}
			var last Position
			for at, p := range b.All() {
				if string(p) != want[n] {
					t.Fatalf("%q, want %q", p, want[n])
				}
				if n == len(behind) {
					behind = append(behind, at)
				}
				if at != behind[n] {
					t.Fatalf("record %d ends at %v, and before at %v", n, at, behind[n])
				}
				last = at
				n++
			}
			if last != b.To {
				t.Fatalf("the last record ends at %v, the batch at %v", last, b.To)
			}
		}
	}
	read(0)
	r.Seek(Position{})
	read(0)
	for _, n := range []int{0, 123, 57, 399} {
		r.Seek(behind[n])
		read(n + 1)
	}
	for _, n := range []int{57, 12, 200} { // 12 is behind the others and changes nothing
		if err := r.Ack(behind[n]); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.Acked(); got != behind[200] {
		t.Fatalf("acknowledged %v, want %v", got, behind[200])
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Ack(behind[300]); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
	r = openReader(t, dir, "one")
	read(201)
	until(t, "freed segments", func() bool {
		segs, err := listSegments(dir)
		return err == nil && segs[0].num == behind[200].Segment
	})
	r.Seek(Position{}) // what was freed is passed over
	b, err := r.Read(t.Context(), 1)
	if err != nil || b.From.Segment != behind[200].Segment {
		t.Fatalf("%v, %v", b.From, err)
	}
}

func TestScanFromAndLook(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, small())
	openReader(t, dir, "slow")
	fast := openReader(t, dir, "fast")
	want := numbered(0, 100)
	appendAll(t, s, want...)
	recs := scanAll(t, dir)
	for _, n := range []int{0, 1, 50, 99} {
		var got []string
		skipped, err := ScanFrom(dir, recs[n].Position, func(r Record) error { got = append(got, string(r.Payload)); return nil })
		if diff := cmp.Diff(want[n:], got); err != nil || skipped != 0 || diff != "" {
			t.Fatalf("from %d: %d bytes skipped, %v\n%s", n, skipped, err, diff)
		}
	}
	if err := fast.Ack(recs[60].Position); err != nil {
		t.Fatal(err)
	}
	st, err := Look(dir)
	if err != nil {
		t.Fatal(err)
	}
	frame := int64(frameBytes + len(want[0]))
	wantReaders := []ReaderStatus{
		{Name: "fast", Acked: recs[60].Position, Behind: 40 * frame, Oldest: recs[60].Time},
		{Name: "slow", Behind: 100 * frame, Oldest: recs[0].Time},
	}
	if diff := cmp.Diff(wantReaders, st.Readers); diff != "" {
		t.Error(diff)
	}
	var bytes int64
	for i, g := range st.Segments {
		if want := segmentPath(dir, uint64(i+1), false); g.File != want {
			t.Errorf("segment %d is %s, want %s", i, g.File, want)
		}
		bytes += g.Bytes - headerBytes
	}
	if bytes != 100*frame {
		t.Errorf("segments hold %d bytes, want %d", bytes, 100*frame)
	}
	if _, err := Look(fmt.Sprint(dir, "-none")); err == nil {
		t.Error("a folder that is not there was looked at")
	}
}
