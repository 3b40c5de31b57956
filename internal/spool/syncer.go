package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

const (
	keepBuffer = 1 << 20         // bytes; a larger buffer is not kept for the next batch
	failedCalm = 5 * time.Second // without a failure, until it is said that the spool writes again
)

// disk is how bytes and names become durable; a test may look over its shoulder.
type disk struct {
	write   func(f *os.File, b []byte, off int64) error
	sync    func(f *os.File) error
	syncDir func(dir string) error
	free    func(dir string) (int64, error) // bytes that its file system can still take from us
}

func realDisk() disk {
	return disk{
		write: func(f *os.File, b []byte, off int64) error {
			_, err := f.WriteAt(b, off)
			return err
		},
		sync: fdatasync, syncDir: syncDir, free: freeBytes,
	}
}

// active is the state of the syncer, the only goroutine that writes.
type active struct {
	file    *os.File // nil after a failure, until the next flush
	num     uint64
	off     int64           // where the next frame goes; all before it is durable
	seal    bool            // start another segment before the next frame
	rotated bool            // since the last tidy
	spare   *batch          // the batch that is not pending
	apart   map[uint64]bool // quarantined segments that are already counted
	tidied  time.Time
	trouble string    // the last error of tidy that was logged
	failed  time.Time // the last flush that did; zero: none since it was last logged that the spool writes
	alarmed bool      // the last look found less than half of MaxBytes of room
}

// begin repairs the last segment and starts the next one.
func (s *Spool) begin() error {
	segs, err := listSegments(s.dir)
	if err != nil {
		return err
	}
	acks, err := listAcks(s.dir)
	if err != nil {
		return err
	}
	// A number that a reader has seen must never come back, or it would take
	// new records for read.
	for _, a := range acks {
		s.num = max(s.num, a.pos.Segment)
	}
	for _, g := range segs {
		s.num = max(s.num, g.num)
		if g.quarantined {
			s.apart[g.num] = true
		}
	}
	if n := len(segs); n > 0 && !segs[n-1].quarantined {
		if err := s.repair(segs[n-1]); err != nil {
			return err
		}
	}
	if err := s.rotate(); err != nil {
		return err
	}
	s.tidy()
	return nil
}

// repair cuts what a crash left half written at the end of the last segment.
// A segment with good records behind bad bytes was damaged otherwise and is
// set apart as it is.
func (s *Spool) repair(last segmentFile) error {
	g, err := openSegment(s.dir, last.num)
	if err != nil {
		return err
	}
	defer g.close()
	size, err := g.size()
	if err != nil {
		return fmt.Errorf("repair segment: %w", err)
	}
	end, skipped, _, err := g.walk(0, func(Record) error { return nil })
	switch {
	case err != nil:
		return err
	case skipped > 0:
		return quarantine(s.dir, last.num) // tidy counts and logs it
	case end == size:
		return nil
	}
	f, err := os.OpenFile(last.path(s.dir), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("repair segment: %w", err)
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(end), f.Sync()); err != nil {
		return fmt.Errorf("cut half-written record from segment: %w", err)
	}
	s.m.truncated.Add(float64(size - end))
	s.log.Warn("cut a half-written record from the end of the spool", "segment", last.num, "offset", end, "bytes", size-end)
	return nil
}

func (s *Spool) run() {
	defer close(s.done)
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			s.flush(s.take())
			s.end()
			return
		case <-s.wake:
			s.flush(s.take())
			if s.rotated {
				s.tidy()
			}
		case <-tick.C:
			s.tidy()
		case <-s.reclaim:
			if time.Since(s.tidied) >= tidyGap {
				s.tidy()
			}
		}
	}
}

func (s *Spool) end() {
	var err error
	if s.file != nil {
		err = s.file.Close()
	}
	s.m.Unregister()
	if err = errors.Join(err, s.lock.Close()); err != nil {
		s.closeErr = fmt.Errorf("close spool %s: %w", s.dir, err)
	}
}

// take swaps the pending batch for the spare one.
func (s *Spool) take() *batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.pending
	s.pending, s.spare = s.spare, nil
	return b
}

// flush makes b durable and answers its calls.
func (s *Spool) flush(b *batch) {
	var err error
	first, answered := 0, 0 // records, calls
	for first < len(b.ends) && err == nil {
		var n int
		n, err = s.writeRun(b, first)
		first += n
		answered = b.answer(answered, first, nil)
	}
	if err != nil {
		s.m.refused.WithLabelValues(reasonFailed).Add(float64(len(b.ends) - first))
		s.mu.Lock()
		s.queued -= int64(len(b.buf) - b.begin(first))
		s.mu.Unlock()
		b.answer(answered, len(b.ends), fmt.Errorf("append to spool %s: %w", s.dir, diskError(err)))
	}
	if len(b.ends) > 0 {
		s.note(err)
	}
	s.room.Release(b.weight)
	b.reset()
	s.spare = b
}

// note logs when the spool begins to fail and when it has written for a while:
// a disk that is almost full takes some records and refuses others.
func (s *Spool) note(err error) {
	switch {
	case err != nil:
		if s.failed.IsZero() {
			s.log.Error("spool cannot write, records are refused", "err", err)
		}
		s.failed = time.Now()
	case !s.failed.IsZero() && time.Since(s.failed) >= failedCalm:
		s.log.Info("spool writes again")
		s.failed = time.Time{}
	}
}

// begin returns where frame i begins in buf.
func (b *batch) begin(i int) int {
	if i == 0 {
		return 0
	}
	return b.ends[i-1]
}

// answer calls the callers, from the given one on, whose records are all
// below upto, and returns the next caller.
func (b *batch) answer(from, upto int, err error) int {
	for from < len(b.calls) && b.calls[from].last <= upto {
		b.calls[from].done(err)
		from++
	}
	return from
}

func (b *batch) reset() {
	if cap(b.buf) > keepBuffer {
		*b = batch{}
		return
	}
	clear(b.calls) // lets go of the callers
	*b = batch{buf: b.buf[:0], ends: b.ends[:0], calls: b.calls[:0]}
}

// writeRun makes as many records as fit the segment durable, from record first
// on, and returns their number.
func (s *Spool) writeRun(b *batch, first int) (int, error) {
	from := b.begin(first)
	if s.file == nil || s.seal || s.off+int64(b.ends[first]-from) > s.o.SegmentBytes {
		if err := s.rotate(); err != nil {
			return 0, err
		}
	}
	next, to := first, from
	for next < len(b.ends) && s.off+int64(b.ends[next]-from) <= s.o.SegmentBytes {
		sealFrame(b.buf[to:b.ends[next]], s.num, s.off+int64(to-from))
		to = b.ends[next]
		next++
	}
	if err := s.io.write(s.file, b.buf[from:to], s.off); err != nil {
		s.abandon()
		return 0, fmt.Errorf("write segment: %w", err)
	}
	start := time.Now()
	if err := s.io.sync(s.file); err != nil {
		s.abandon()
		return 0, fmt.Errorf("sync segment: %w", err)
	}
	s.m.fsync.Observe(time.Since(start).Seconds())
	s.m.appended.Add(float64(next - first))
	s.off += int64(to - from)
	s.account(int64(to-from), int64(to-from))
	return next - first, nil
}

// account moves bytes from the queue to the disk.
func (s *Spool) account(disk, queued int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disk += disk
	s.queued -= queued
	s.m.bytes.Set(float64(s.disk))
}

// abandon gives the segment up after a failed write or sync: what the disk
// holds of the last run is not known, and a reader may have seen it, so its
// place is never used again.
func (s *Spool) abandon() {
	// If the cut fails too, readers pass over the rest as damage.
	err := s.file.Truncate(s.off)
	if err = errors.Join(err, s.file.Close()); err != nil {
		s.log.Warn("cannot cut an unfinished write", "segment", s.num, "offset", s.off, "err", err)
	}
	s.file = nil
}

// rotate ends the segment and starts the next. Its name is durable before the
// first record in it.
func (s *Spool) rotate() error {
	if s.file != nil {
		f := s.file
		s.file = nil
		if err := f.Close(); err != nil {
			return fmt.Errorf("close segment: %w", err)
		}
	}
	s.num++ // also after a failure: a name that may exist is not tried again
	path := segmentPath(s.dir, s.num, false)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return fmt.Errorf("create segment: %w", err)
	}
	if err = s.io.write(f, segmentHeader(s.num), 0); err == nil {
		if err = s.io.sync(f); err == nil {
			err = s.io.syncDir(s.dir)
		}
	}
	if err != nil {
		return fmt.Errorf("create segment: %w", errors.Join(err, f.Close(), os.Remove(path)))
	}
	s.file, s.off, s.seal, s.rotated = f, headerBytes, false, true
	s.account(headerBytes, 0)
	return nil
}

// tidy frees what all readers are done with and brings the metrics up to date.
// It logs when its trouble changes.
func (s *Spool) tidy() {
	s.tidied, s.rotated = time.Now(), false
	trouble := ""
	if err := s.sweep(); err != nil {
		trouble = err.Error()
	}
	if trouble == s.trouble {
		return
	}
	s.trouble = trouble
	if trouble == "" {
		s.log.Info("spool can be tidied again")
	} else {
		s.log.Warn("spool cannot be tidied fully", "err", trouble)
	}
}

func (s *Spool) sweep() error {
	segs, err := listSegments(s.dir)
	if err != nil {
		return err
	}
	acks, err := listAcks(s.dir)
	if err != nil {
		return err
	}
	var trouble []error
	for _, a := range acks {
		if a.bad {
			trouble = append(trouble, fmt.Errorf("position of reader %s cannot be understood, nothing is freed; restart that reader or delete %s", a.name, ackPath(s.dir, a.name)))
		}
	}
	low, holder := slowest(acks)
	var kept []segmentFile
	var disk int64
	for _, g := range segs {
		stays, needed, err := s.settle(g, low)
		if err != nil {
			trouble = append(trouble, err)
		}
		if stays {
			kept = append(kept, g)
		}
		disk += needed
	}
	s.mu.Lock()
	s.disk, s.slowest = disk, holder
	s.mu.Unlock()
	s.m.bytes.Set(float64(disk))
	s.m.segments.Set(float64(len(kept)))
	s.m.age.Set(s.age(kept, low).Seconds())
	if err := s.watch(disk); err != nil {
		trouble = append(trouble, err)
	}
	return errors.Join(trouble...)
}

// watch raises the alarm long before a record has to be refused: when less
// than half of MaxBytes can still be taken, because of what waits or because
// the file system has no more.
func (s *Spool) watch(used int64) error {
	room := max(0, s.o.MaxBytes-used)
	free, err := s.io.free(s.dir)
	if err != nil {
		return fmt.Errorf("look at the free space: %w", err)
	}
	room = min(room, free)
	alarm := room < s.o.MaxBytes/2
	s.m.room.Set(float64(room))
	if alarm == s.alarmed {
		return nil
	}
	s.alarmed = alarm
	if alarm {
		s.m.alarm.Set(1)
		s.log.Warn("spool fills: records are refused when it is full; see why its reader does not follow, or free space on its file system",
			"room", room, "bytes", used, "limit", s.o.MaxBytes, "free", free, "held_by", s.slowest)
	} else {
		s.m.alarm.Set(0)
		s.log.Info("spool has half of its room again", "room", room)
	}
	return nil
}

// settle frees g if all readers, the slowest of which is at low, are done with
// it. It returns whether g stays on disk, and how many bytes count as needed.
func (s *Spool) settle(g segmentFile, low Position) (stays bool, needed int64, err error) {
	if g.quarantined && !s.apart[g.num] {
		s.apart[g.num] = true
		s.m.quarantined.Inc()
		s.log.Error("segment of the spool is damaged and set apart; readers pass over the damage", "file", g.path(s.dir))
	}
	if g.num == s.num && s.file != nil {
		s.seal = s.seal || g.quarantined
		return true, s.off, nil
	}
	size, err := g.fileSize(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, 0, nil // renamed or deleted since it was listed
	}
	if err != nil {
		return true, 0, err
	}
	// Without a reader low is before every segment.
	passed := !low.Before(Position{Segment: g.num, Offset: size})
	switch {
	case g.quarantined && passed:
		return true, 0, nil // it is evidence now, and no backlog
	case g.quarantined || !passed && size > headerBytes:
		return true, size, nil
	}
	if err := os.Remove(g.path(s.dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return true, size, fmt.Errorf("free segment: %w", err)
	}
	return false, 0, nil
}

// slowest returns the least position and a description of whose it is.
func slowest(acks []ack) (Position, string) {
	if len(acks) == 0 {
		return Position{}, "nobody: no reader has registered yet"
	}
	low := acks[0]
	for _, a := range acks {
		if a.pos.Before(low.pos) {
			low = a
		}
	}
	return low.pos, fmt.Sprintf("reader %s at segment %d", low.name, low.pos.Segment)
}

// age returns how long ago the first record behind pos was appended, or 0.
func (s *Spool) age(segs []segmentFile, pos Position) time.Duration {
	at := oldest(s.dir, segs, pos)
	if at.IsZero() {
		return 0
	}
	return max(0, time.Since(at))
}
