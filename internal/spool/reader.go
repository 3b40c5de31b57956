package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const batchBytes = 4 << 20 // bytes; a batch ends when its payloads exceed this

// Reader follows a log under a name. One goroutine at a time may call Read;
// Batch.Ack and Close may be called by others.
type Reader struct {
	dir    string
	name   string
	poll   time.Duration
	log    *slog.Logger
	m      *readerMetrics
	lock   *os.File
	closed chan struct{}

	ackMu sync.Mutex // guards acked, and Ack against Close
	acked Position

	readMu  sync.Mutex // guards the rest
	next    Position
	cur     *segmentReader // the segment of next, or nil
	suspect suspect
}

// suspect remembers bytes at the end of the segment that is written to: a
// write under way, the rest of a crash, or damage.
type suspect struct {
	off     int64
	size    int64 // of the file when it was searched
	resumes int64 // where records go on, or 0
}

// Batch is a run of records in the order of their appends.
type Batch struct {
	// Payloads has at least one element. They belong to the caller.
	Payloads [][]byte
	// From is where the first record lies and To the place behind the last:
	// together they name the content of the batch for ever.
	From, To Position

	r *Reader
}

// OpenReader registers name (a-z, 0-9, - and _, up to 64) as a reader of dir,
// or takes up its work behind the last acknowledged batch. A new reader begins
// with the oldest record on disk. From its first registration on, the writer
// keeps all records that this name has not acknowledged, until <name>.ack is
// deleted. It returns ErrLocked while another reader of that name lives. The
// folder need not exist yet. Close must be called.
func OpenReader(dir, name string, o ReaderOptions) (*Reader, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if !validName(name) {
		return nil, fmt.Errorf("open spool reader: name %q must be 1 to 64 of a-z, 0-9, - and _", name)
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("create spool: %w", err)
	}
	lock, err := takeLock(ackPath(dir, name)+lockExt, "reader "+name)
	if err != nil {
		return nil, fmt.Errorf("open spool reader: %w", err)
	}
	r := &Reader{
		dir: dir, name: name, poll: cmp.Or(o.Poll, pollEvery), lock: lock,
		log:    logger(o.Logger).With("spool", dir, "reader", name),
		closed: make(chan struct{}),
	}
	if r.m, err = newReaderMetrics(o.Registerer, name); err == nil {
		err = r.restore()
	}
	if err != nil {
		r.m.Unregister()
		lock.Close()
		return nil, fmt.Errorf("open spool reader %s in %s: %w", name, dir, err)
	}
	return r, nil
}

// restore finds the position, and registers the reader if it is new.
func (r *Reader) restore() error {
	path := ackPath(r.dir, r.name)
	// Left by a crash in the middle of an Ack; the lock makes them ours.
	if left, err := filepath.Glob(filepath.Join(r.dir, "."+r.name+ackExt+"*")); err == nil {
		for _, f := range left {
			if strings.Trim(strings.TrimPrefix(filepath.Base(f), "."+r.name+ackExt), "0123456789") == "" {
				_ = os.Remove(f) // it costs only its bytes
			}
		}
	}
	b, err := os.ReadFile(path)
	if err == nil {
		if r.acked, err = decodeAck(b); err == nil {
			r.next = r.acked
			return nil
		}
		r.log.Error("position cannot be understood, the reader begins again with the oldest record", "err", err)
		if err := os.Rename(path, path+quarantineExt); err != nil {
			return fmt.Errorf("set damaged position apart: %w", err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read position: %w", err)
	}
	return writeAck(r.dir, r.name, Position{})
}

// Read waits until there is at least one record behind those that it returned
// before, and returns up to limit of them. It returns the error of ctx,
// ErrClosed, or that of the disk; all of them leave the reader where it was.
func (r *Reader) Read(ctx context.Context, limit int) (Batch, error) {
	if limit < 1 {
		return Batch{}, fmt.Errorf("read spool: limit is %d, it must be at least 1", limit)
	}
	r.readMu.Lock()
	defer r.readMu.Unlock()
	timer := time.NewTimer(r.poll)
	defer timer.Stop()
	for {
		select {
		case <-r.closed:
			return Batch{}, fmt.Errorf("read spool %s: %w", r.dir, ErrClosed)
		default:
		}
		b, err := r.look(limit)
		if err != nil {
			return Batch{}, fmt.Errorf("read spool %s: %w", r.dir, err)
		}
		if len(b.Payloads) > 0 {
			r.m.records.Add(float64(len(b.Payloads)))
			return b, nil
		}
		timer.Reset(r.poll)
		select {
		case <-ctx.Done():
			return Batch{}, fmt.Errorf("read spool %s: %w", r.dir, ctx.Err())
		case <-r.closed:
		case <-timer.C:
		}
	}
}

// look returns what can be had without waiting.
func (r *Reader) look(limit int) (Batch, error) {
	for {
		if r.cur == nil {
			if ok, err := r.enter(); err != nil || !ok {
				return Batch{}, err
			}
		}
		b, err := r.collect(limit)
		if err != nil || len(b.Payloads) > 0 {
			return b, err
		}
		moved, err := r.stuck()
		if err != nil || !moved {
			return Batch{}, err
		}
	}
}

// enter opens the segment of next, or the first one behind it if that was
// freed. It returns false if there is none.
func (r *Reader) enter() (bool, error) {
	segs, err := listSegments(r.dir)
	if err != nil {
		return false, err
	}
	for _, g := range segs {
		if g.num < r.next.Segment {
			continue
		}
		cur, err := openSegment(r.dir, g.num)
		if errors.Is(err, fs.ErrNotExist) {
			continue // freed since it was listed
		}
		if err != nil {
			return false, err
		}
		if g.num > r.next.Segment {
			r.next = Position{Segment: g.num}
		}
		r.cur, r.suspect = cur, suspect{}
		return true, nil
	}
	return false, nil
}

// leave goes on to the segment behind the current one.
func (r *Reader) leave() {
	_ = r.cur.close() // it was only read
	r.next = Position{Segment: r.next.Segment + 1}
	r.cur = nil
}

// collect returns the records at next, as far as they are whole.
func (r *Reader) collect(limit int) (Batch, error) {
	if r.next.Offset < headerBytes {
		out, err := r.cur.header()
		if err != nil || out == atEnd {
			return Batch{}, err
		}
		if out == garbled {
			r.skip(headerBytes)
		}
		r.next.Offset = headerBytes
	}
	b := Batch{From: r.next, r: r}
	for size := 0; len(b.Payloads) < limit && size < batchBytes; {
		rec, out, err := r.cur.next(r.next.Offset)
		if err != nil && len(b.Payloads) == 0 {
			return Batch{}, err
		}
		if err != nil || out != found {
			break // the next look meets it again
		}
		b.Payloads = append(b.Payloads, rec.Payload)
		size += len(rec.Payload)
		r.next.Offset = rec.end()
	}
	b.To = r.next
	return b, nil
}

// stuck decides what it means that there is no record at next: the end for
// now, the end of the segment, or damage. It returns true if the reader moved
// or there is more to read.
func (r *Reader) stuck() (bool, error) {
	segs, err := listSegments(r.dir)
	if err != nil {
		return false, err
	}
	// A segment with a successor was cut and synced before that was created;
	// so only now, after the listing, the file shows its last state.
	sealed := len(segs) > 0 && segs[len(segs)-1].num > r.next.Segment
	r.cur.forget()
	if r.next.Offset < headerBytes {
		if out, err := r.cur.header(); err != nil || out != atEnd {
			return err == nil, err
		}
		if sealed { // it ended before it began
			r.leave()
		}
		return sealed, nil
	}
	_, out, err := r.cur.next(r.next.Offset)
	switch {
	case err != nil:
		return false, err
	case out == found:
		return true, nil
	case out == atEnd && sealed:
		r.leave()
		return true, nil
	case out == atEnd:
		return false, nil
	case !sealed:
		return r.doubt()
	}
	to, _, err := r.cur.resync(r.next.Offset)
	if err != nil {
		return false, err
	}
	r.skip(to)
	return true, nil
}

// doubt looks at bytes in the segment that is written to which are no record.
// Only if records go on behind them, and they still do so at the next look,
// the bytes are damage: a write under way would have been finished.
func (r *Reader) doubt() (bool, error) {
	off := r.next.Offset
	size, err := r.cur.size()
	if err != nil {
		return false, fmt.Errorf("read segment: %w", err)
	}
	if r.suspect.off == off && r.suspect.resumes > 0 {
		r.skip(r.suspect.resumes)
		return true, nil
	}
	if r.suspect.off == off && r.suspect.size == size {
		return false, nil // searched already; a crash left it so
	}
	to, ok, err := r.cur.resync(off)
	if err != nil {
		return false, err
	}
	r.suspect = suspect{off: off, size: size}
	if ok {
		r.suspect.resumes = to
	}
	r.cur.forget()
	return false, nil
}

// skip passes over damage and sets the segment apart.
func (r *Reader) skip(to int64) {
	r.m.skipped.Add(float64(to - r.next.Offset))
	r.log.Error("spool is damaged, bytes are passed over",
		"segment", r.next.Segment, "offset", r.next.Offset, "bytes", to-r.next.Offset)
	r.next.Offset = to
	r.suspect = suspect{}
	if err := quarantine(r.dir, r.next.Segment); err != nil {
		r.log.Error("damaged segment keeps its name and will be freed as if it were good", "err", err)
	}
}

// Ack stores durably that this reader is done with the batch and all before
// it, as Reader.Ack does.
func (b Batch) Ack() error {
	if b.r == nil {
		return nil
	}
	return b.r.Ack(b.To)
}

// All yields every payload with the place behind it. Any of these places may
// be given to Reader.Ack and Reader.Seek.
func (b Batch) All() iter.Seq2[Position, []byte] {
	return func(yield func(Position, []byte) bool) {
		behind := b.From
		for _, p := range b.Payloads {
			behind.Offset += frameBytes + int64(len(p))
			if !yield(behind, p) {
				return
			}
		}
	}
}

// Ack stores durably that this reader is done with everything before p, a
// place that a batch of this log gave. What lies behind comes again after
// OpenReader. However much was read since, only this moves the place; one that
// is not behind the last Ack changes nothing. It returns ErrClosed after
// Close; after any error the records may come again.
func (r *Reader) Ack(p Position) error {
	r.ackMu.Lock()
	defer r.ackMu.Unlock()
	select {
	case <-r.closed:
		return fmt.Errorf("acknowledge spool %s: %w", r.dir, ErrClosed)
	default:
	}
	if !r.acked.Before(p) {
		return nil
	}
	if err := writeAck(r.dir, r.name, p); err != nil {
		return err
	}
	r.acked = p
	return nil
}

// Acked returns the place behind everything that was acknowledged.
func (r *Reader) Acked() Position {
	r.ackMu.Lock()
	defer r.ackMu.Unlock()
	return r.acked
}

// Seek lets the next Read go on behind p, a place that a batch of this log
// gave, or the zero Position. It acknowledges nothing. What was freed is
// passed over, so to miss nothing p must not be before Acked. It waits for a
// Read that is under way.
func (r *Reader) Seek(p Position) {
	r.readMu.Lock()
	defer r.readMu.Unlock()
	if r.cur != nil {
		_ = r.cur.close() // it was only read
		r.cur = nil
	}
	r.next = p
}

// Close ends a Read that waits and gives the name free. It acknowledges
// nothing. It may be called more than once.
func (r *Reader) Close() error {
	r.ackMu.Lock()
	select {
	case <-r.closed:
		r.ackMu.Unlock()
		return nil
	default:
	}
	close(r.closed)
	r.ackMu.Unlock()

	r.readMu.Lock()
	defer r.readMu.Unlock()
	var err error
	if r.cur != nil {
		err = r.cur.close()
		r.cur = nil
	}
	r.m.Unregister()
	if err = errors.Join(err, r.lock.Close()); err != nil {
		return fmt.Errorf("close spool reader %s: %w", r.name, err)
	}
	return nil
}

// Scan calls fn for every record in dir, oldest first, those in quarantine
// included, without a lock and without acknowledging anything. It returns how
// many damaged bytes it passed over, and the first error of fn or the disk.
// What is appended or freed meanwhile may or may not be seen.
func Scan(dir string, fn func(Record) error) (skipped int64, err error) {
	return ScanFrom(dir, Position{}, fn)
}

// ScanFrom is Scan without the records before a place between two records.
func ScanFrom(dir string, from Position, fn func(Record) error) (skipped int64, err error) {
	segs, err := listSegments(dir)
	if err != nil {
		return 0, err
	}
	for i, s := range segs {
		if s.num < from.Segment {
			continue
		}
		g, err := openSegment(dir, s.num)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return skipped, err
		}
		var off int64
		if s.num == from.Segment {
			off = from.Offset
		}
		_, n, tail, err := g.walk(off, fn)
		skipped += n
		if i < len(segs)-1 {
			skipped += tail // in the last one it may be a write under way
		}
		if err := errors.Join(err, g.close()); err != nil {
			return skipped, fmt.Errorf("scan spool %s: %w", dir, err)
		}
	}
	return skipped, nil
}
