package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	segmentMagic = "BHSPOOL1"
	headerBytes  = 16
	frameBytes   = 16
	readChunk    = 256 << 10 // bytes read ahead
	timeBits     = 53        // microseconds until the year 2255
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Position is a place between two records.
type Position struct {
	Segment uint64 // number of the segment; 0 is before the first
	Offset  int64  // bytes from the begin of its file
}

// String returns segment:offset; strings sort as their positions do.
func (p Position) String() string { return fmt.Sprintf("%020d:%010d", p.Segment, p.Offset) }

// ParsePosition reads what String writes, leading zeros left out or not.
func ParsePosition(s string) (Position, error) {
	segment, offset, _ := strings.Cut(s, ":")
	num, err := strconv.ParseUint(segment, 10, 64)
	if err != nil {
		return Position{}, fmt.Errorf("position %.50q is not segment:offset", s)
	}
	off, err := strconv.ParseUint(offset, 10, 63)
	if err != nil {
		return Position{}, fmt.Errorf("position %.50q is not segment:offset", s)
	}
	return Position{Segment: num, Offset: int64(off)}, nil
}

// Before reports whether p comes before q.
func (p Position) Before(q Position) bool {
	if p.Segment != q.Segment {
		return p.Segment < q.Segment
	}
	return p.Offset < q.Offset
}

// Record is one record as it lies on disk.
type Record struct {
	Position           // of its frame
	Time     time.Time // of the append, by the writer's clock, to the microsecond
	Payload  []byte
}

func (r Record) end() int64 { return r.Offset + frameBytes + int64(len(r.Payload)) }

func segmentHeader(num uint64) []byte {
	return binary.LittleEndian.AppendUint64([]byte(segmentMagic), num)
}

// beginFrame appends a frame whose sum is still missing: the syncer knows its
// place only when it writes.
func beginFrame(b, payload []byte, now time.Time) []byte {
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint64(b, uint64(max(0, now.UnixMicro())))
	return append(b, payload...)
}

func sealFrame(frame []byte, num uint64, off int64) {
	binary.LittleEndian.PutUint32(frame, frameSum(frame, num, off))
}

// frameSum sums where the frame is and what it holds.
func frameSum(frame []byte, num uint64, off int64) uint32 {
	place := make([]byte, 0, 16)
	place = binary.LittleEndian.AppendUint64(place, num)
	place = binary.LittleEndian.AppendUint64(place, uint64(off))
	return crc32.Update(crc32.Update(0, castagnoli, place), castagnoli, frame[4:])
}

// frameLength returns the length of the frame that begins with head, or false
// if no frame begins so. The payload is not looked at.
func frameLength(head []byte) (int, bool) {
	n := binary.LittleEndian.Uint32(head[4:])
	if n > recordLimit || binary.LittleEndian.Uint64(head[8:])>>timeBits != 0 {
		return 0, false
	}
	return frameBytes + int(n), true
}

// parseFrame returns the record at the begin of b, if a whole and true one is
// there. The payload shares b.
func parseFrame(b []byte, num uint64, off int64) (Record, bool) {
	if len(b) < frameBytes {
		return Record{}, false
	}
	n, ok := frameLength(b)
	if !ok || n > len(b) || frameSum(b[:n], num, off) != binary.LittleEndian.Uint32(b) {
		return Record{}, false
	}
	return Record{
		Position: Position{Segment: num, Offset: off},
		Time:     time.UnixMicro(int64(binary.LittleEndian.Uint64(b[8:]))).UTC(),
		Payload:  b[frameBytes:n:n],
	}, true
}

// outcome says what was found at an offset.
type outcome int

const (
	found   outcome = iota // a record
	atEnd                  // exactly the end of the file, or beyond it
	garbled                // bytes that are not, or not yet, a whole record
)

// segmentReader reads one segment, which may grow meanwhile.
type segmentReader struct {
	num  uint64
	src  io.ReaderAt
	size func() (int64, error)
	win  []byte // what was read ahead; never written to again, payloads share it
	base int64  // offset of win
	file *os.File
}

func newSegmentReader(num uint64, src io.ReaderAt, size func() (int64, error)) *segmentReader {
	return &segmentReader{num: num, src: src, size: size}
}

// openSegment opens a segment under whichever of its names it has. The error
// is fs.ErrNotExist if it was freed.
func openSegment(dir string, num uint64) (*segmentReader, error) {
	f, err := os.Open(segmentPath(dir, num, false))
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.Open(segmentPath(dir, num, true))
	}
	if err != nil {
		return nil, fmt.Errorf("open segment: %w", err)
	}
	size := func() (int64, error) {
		st, err := f.Stat()
		if err != nil {
			return 0, err
		}
		return st.Size(), nil
	}
	g := newSegmentReader(num, f, size)
	g.file = f
	return g, nil
}

func (g *segmentReader) close() error {
	if g.file == nil {
		return nil
	}
	return g.file.Close()
}

// forget drops what was read ahead, so that the next call looks at the file.
func (g *segmentReader) forget() { g.win = nil }

// bytes returns n bytes from off on, fewer at the end of the file.
func (g *segmentReader) bytes(off int64, n int) ([]byte, error) {
	if off >= g.base && off+int64(n) <= g.base+int64(len(g.win)) {
		return g.win[off-g.base:][:n], nil
	}
	size, err := g.size()
	if err != nil {
		return nil, fmt.Errorf("read segment %d: %w", g.num, err)
	}
	if off >= size {
		return nil, nil
	}
	buf := make([]byte, min(int64(max(n, readChunk)), size-off))
	m, err := g.src.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read segment %d: %w", g.num, err)
	}
	g.base, g.win = off, buf[:m]
	return g.win[:min(n, m)], nil
}

// header looks at the begin of the segment: found, atEnd while it is not
// whole, or garbled.
func (g *segmentReader) header() (outcome, error) {
	b, err := g.bytes(0, headerBytes)
	switch {
	case err != nil:
		return atEnd, err
	case len(b) < headerBytes:
		return atEnd, nil
	case string(b) != string(segmentHeader(g.num)):
		return garbled, nil
	}
	return found, nil
}

// next looks at the record at off.
func (g *segmentReader) next(off int64) (Record, outcome, error) {
	head, err := g.bytes(off, frameBytes)
	if err != nil {
		return Record{}, garbled, err
	}
	if len(head) == 0 {
		return Record{}, atEnd, nil
	}
	if len(head) < frameBytes {
		return Record{}, garbled, nil
	}
	n, ok := frameLength(head)
	if !ok {
		return Record{}, garbled, nil
	}
	b, err := g.bytes(off, n)
	if err != nil {
		return Record{}, garbled, err
	}
	rec, ok := parseFrame(b, g.num, off)
	if !ok {
		return Record{}, garbled, nil
	}
	return rec, found, nil
}

// resync searches the first record behind off. Without one it returns the end
// of the file and false.
func (g *segmentReader) resync(off int64) (int64, bool, error) {
	size, err := g.size()
	if err != nil {
		return 0, false, fmt.Errorf("read segment %d: %w", g.num, err)
	}
	if size <= off+frameBytes {
		return max(off, size), false, nil
	}
	g.forget()
	rest, err := g.bytes(off, int(min(size-off, segmentLimit+recordLimit)))
	if err != nil {
		return 0, false, err
	}
	for i := 1; i+frameBytes <= len(rest); i++ {
		if _, ok := parseFrame(rest[i:], g.num, off+int64(i)); ok {
			return off + int64(i), true, nil
		}
	}
	return max(off, size), false, nil
}

// walk calls fn for each record from off on, over damage, and returns the end
// of the last record, the bytes skipped before it, and the bytes behind it
// that are no record.
func (g *segmentReader) walk(off int64, fn func(Record) error) (end, skipped, tail int64, err error) {
	end = max(off, headerBytes)
	h, err := g.header()
	if err != nil || h == atEnd {
		return 0, 0, 0, err
	}
	if h == garbled && off < headerBytes {
		skipped = headerBytes
	}
	for {
		rec, out, err := g.next(end)
		if err != nil || out == atEnd {
			return end, skipped, 0, err
		}
		if out == found {
			if err := fn(rec); err != nil {
				return end, skipped, 0, err
			}
			end = rec.end()
			continue
		}
		to, ok, err := g.resync(end)
		if err != nil || !ok {
			return end, skipped, to - end, err
		}
		skipped += to - end
		end = to
	}
}
