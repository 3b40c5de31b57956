package spool

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// Spool is the writing side of a log. Its methods may be called by any number
// of goroutines.
type Spool struct {
	dir  string
	o    Options
	log  *slog.Logger
	m    *metrics
	lock *os.File
	io   disk
	room *semaphore.Weighted // bytes of queue

	wake    chan struct{} // something is pending
	reclaim chan struct{} // somebody was refused for lack of room
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed when the syncer has ended

	mu       sync.Mutex
	pending  *batch
	queued   int64  // bytes taken and not yet durable
	disk     int64  // bytes of segments that are still needed
	full     bool   // the last append was refused for MaxBytes
	slowest  string // what holds the oldest segment, for messages
	closed   bool
	closeErr error // set before done is closed

	active // owned by the syncer
}

// batch is what one flush writes.
type batch struct {
	buf    []byte // frames without their sums
	ends   []int  // where each frame ends in buf
	calls  []call
	weight int64 // of room, to be given back
}

// call is one Append or Enqueue.
type call struct {
	last int // number of records in the batch when it was added
	done func(error)
}

// Open makes this process the writer of dir, which is created if need be. It
// repairs what a crash left behind and starts a new segment. It returns
// ErrLocked while another writer lives. Close must be called.
func Open(dir string, o Options) (*Spool, error) { return openOn(dir, o, realDisk()) }

func openOn(dir string, o Options, d disk) (*Spool, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("create spool: %w", err)
	}
	lock, err := takeLock(filepath.Join(dir, "writer"+lockExt), "writer")
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	s := &Spool{
		dir: dir, o: o, log: logger(o.Logger).With("spool", dir), lock: lock, io: d,
		room:    semaphore.NewWeighted(o.QueueBytes),
		wake:    make(chan struct{}, 1),
		reclaim: make(chan struct{}, 1),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
		pending: &batch{},
		active:  active{spare: &batch{}, apart: map[uint64]bool{}},
	}
	if s.m, err = newMetrics(o.Registerer); err == nil {
		err = s.begin()
	}
	if err != nil {
		s.m.Unregister()
		lock.Close()
		return nil, fmt.Errorf("open spool %s: %w", dir, err)
	}
	go s.run()
	return s, nil
}

// Append stores the payloads, in this order, and returns when they are
// durable. It waits while the queue is full. Payloads may be used again when
// it returns.
//
// On an error some or all of them may nevertheless have been stored: on
// ErrFull for MaxBytes, ErrTooLarge and ErrClosed none was; when ctx ends they
// may still become durable; when the disk failed, the first ones may be.
func (s *Spool) Append(ctx context.Context, payloads ...[]byte) error {
	if len(payloads) == 0 {
		return nil
	}
	size, err := s.measure(payloads)
	if err != nil {
		return err
	}
	weight := min(size, s.o.QueueBytes)
	if err := s.room.Acquire(ctx, weight); err != nil {
		return fmt.Errorf("append to spool %s: wait for the disk: %w", s.dir, err)
	}
	res := make(chan error, 1)
	if err := s.add(payloads, size, weight, func(err error) { res <- err }); err != nil {
		return err
	}
	select {
	case err := <-res:
		return err
	case <-ctx.Done():
		return fmt.Errorf("append to spool %s: not known to be durable: %w", s.dir, ctx.Err())
	}
}

// Enqueue takes the payload and returns at once: nil when it will be written,
// ErrFull when QueueBytes or MaxBytes are reached, ErrTooLarge or ErrClosed.
// Only after nil, done is called once, in the order of the calls, with nil
// when the record is durable. It runs on the goroutine that writes, so it must
// not wait, nor call Append or Close; it may be nil. The payload may be used
// again when Enqueue returns.
func (s *Spool) Enqueue(payload []byte, done func(error)) error {
	payloads := [][]byte{payload}
	size, err := s.measure(payloads)
	if err != nil {
		return err
	}
	if !s.room.TryAcquire(size) {
		s.m.refused.WithLabelValues(reasonQueue).Inc()
		return fmt.Errorf("append to spool %s: %w: %d bytes already wait for the disk", s.dir, ErrFull, s.o.QueueBytes)
	}
	if done == nil {
		done = func(error) {}
	}
	return s.add(payloads, size, size, done)
}

// measure returns the bytes that payloads need on disk.
func (s *Spool) measure(payloads [][]byte) (int64, error) {
	var size int64
	for _, p := range payloads {
		if len(p) > s.o.MaxRecord {
			return 0, fmt.Errorf("append to spool %s: %w: %d bytes, the limit is %d", s.dir, ErrTooLarge, len(p), s.o.MaxRecord)
		}
		size += frameBytes + int64(len(p))
	}
	return size, nil
}

// add puts payloads into the pending batch. It owns weight of room, which the
// syncer gives back, or add itself on an error.
func (s *Spool) add(payloads [][]byte, size, weight int64, done func(error)) error {
	s.mu.Lock()
	if err := s.admit(size, len(payloads)); err != nil {
		s.mu.Unlock()
		s.room.Release(weight)
		return err
	}
	now := time.Now()
	b := s.pending
	for _, p := range payloads {
		b.buf = beginFrame(b.buf, p, now)
		b.ends = append(b.ends, len(b.buf))
	}
	b.calls = append(b.calls, call{last: len(b.ends), done: done})
	b.weight += weight
	s.queued += size
	s.mu.Unlock()
	poke(s.wake)
	return nil
}

// admit decides under mu whether size more bytes may be taken.
func (s *Spool) admit(size int64, records int) error {
	if s.closed {
		return fmt.Errorf("append to spool %s: %w", s.dir, ErrClosed)
	}
	used := s.disk + s.queued
	full := used+size > s.o.MaxBytes
	if full != s.full {
		s.full = full
		if full {
			s.log.Warn("spool is full, records are refused", "bytes", used, "limit", s.o.MaxBytes, "held_by", s.slowest)
		} else {
			s.log.Info("spool has room again", "bytes", used, "limit", s.o.MaxBytes)
		}
	}
	if !full {
		return nil
	}
	poke(s.reclaim)
	s.m.refused.WithLabelValues(reasonDisk).Add(float64(records))
	return fmt.Errorf("append to spool %s: %w: %d of %d bytes are held by %s; let it catch up, or delete its ack file to retire it",
		s.dir, ErrFull, used, s.o.MaxBytes, s.slowest)
}

// Close writes what is queued, ends the syncer and gives the folder free. It
// waits for the disk for at most 5 s; after that it returns an error and the
// folder stays locked until the disk answers or the process ends. It may be
// called more than once.
func (s *Spool) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	s.mu.Unlock()
	limit := time.NewTimer(closeWait)
	defer limit.Stop()
	select {
	case <-s.done:
		return s.closeErr
	case <-limit.C:
		s.mu.Lock()
		defer s.mu.Unlock()
		return fmt.Errorf("close spool %s: the disk did not answer for %v; %d bytes may be lost", s.dir, closeWait, s.queued)
	}
}

// poke wakes the owner of c, or finds that it is already to be woken.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// diskError makes ErrFull of a file system without room.
func diskError(err error) error {
	if noSpace(err) {
		return fmt.Errorf("%w: free space on its file system: %w", ErrFull, err)
	}
	return err
}
