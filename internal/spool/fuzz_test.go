package spool

import (
	"bytes"
	"testing"
	"time"
)

// segmentOf returns a good segment with the payloads.
func segmentOf(num uint64, payloads ...string) []byte {
	b := segmentHeader(num)
	for i, p := range payloads {
		off := len(b)
		b = beginFrame(b, []byte(p), time.Unix(1_700_000_000+int64(i), 0))
		sealFrame(b[off:], num, int64(off))
	}
	return b
}

// FuzzReadSegment: whatever a file holds, reading it ends, and what it yields
// is there byte by byte, in order, and accounted for.
func FuzzReadSegment(f *testing.F) {
	good := segmentOf(7, "one", "", "a longer record", "four")
	f.Add(good)
	f.Add(good[:len(good)-2])
	f.Add(good[:headerBytes])
	f.Add(good[:3])
	f.Add(segmentOf(8, "of another segment"))
	for _, at := range []int{1, headerBytes, headerBytes + 4, headerBytes + 9, headerBytes + frameBytes, len(good) - 1} {
		bad := bytes.Clone(good)
		bad[at] ^= 0x81
		f.Add(bad)
	}
	f.Add(append(bytes.Clone(good), make([]byte, 100)...))
	f.Add(append(bytes.Clone(good[:headerBytes+5]), good[headerBytes:]...))
	f.Fuzz(func(t *testing.T, data []byte) {
		src := bytes.NewReader(data)
		g := newSegmentReader(7, src, func() (int64, error) { return src.Size(), nil })
		var kept int64
		at := int64(headerBytes)
		end, skipped, tail, err := g.walk(0, func(r Record) error {
			if r.Offset < at || r.end() > int64(len(data)) {
				t.Fatalf("record at %d to %d, behind %d, in %d bytes", r.Offset, r.end(), at, len(data))
			}
			frame := beginFrame(nil, r.Payload, r.Time)
			sealFrame(frame, 7, r.Offset)
			if !bytes.Equal(frame, data[r.Offset:r.end()]) {
				t.Fatalf("record at %d is not what the file holds", r.Offset)
			}
			at = r.end()
			kept += int64(len(frame))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(data) < headerBytes {
			if end != 0 || kept != 0 {
				t.Fatalf("%d bytes out of half a header", end)
			}
			return
		}
		head := int64(headerBytes)
		if !bytes.Equal(data[:headerBytes], segmentHeader(7)) {
			head = 0 // it is among the skipped
		}
		if head+kept+skipped+tail != int64(len(data)) {
			t.Fatalf("%d bytes of records, %d skipped, %d at the end; the file has %d", kept, skipped, tail, len(data))
		}
	})
}

// FuzzDecodeAck: only what encodeAck makes is a position.
func FuzzDecodeAck(f *testing.F) {
	f.Add(encodeAck(Position{}))
	f.Add(encodeAck(Position{Segment: 12, Offset: 345}))
	f.Add(encodeAck(Position{Segment: 12, Offset: 345})[:20])
	f.Add([]byte("bulkhead-spool-ack-1 1 1 00000000\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := decodeAck(data); err == nil && !bytes.Equal(encodeAck(p), data) {
			t.Fatalf("%q was taken for %v", data, p)
		}
	})
}
