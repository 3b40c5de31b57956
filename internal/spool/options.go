package spool

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	// ErrFull means that the record was not taken: the log has MaxBytes of
	// records that some reader has not acknowledged, the queue of Enqueue has
	// QueueBytes, or the file system has no room. It may be tried again.
	ErrFull = errors.New("spool is full")
	// ErrLocked means that another living writer, or reader of the same name,
	// holds the folder.
	ErrLocked = errors.New("spool is in use")
	// ErrClosed means that Close was called.
	ErrClosed = errors.New("spool is closed")
	// ErrTooLarge means that a payload is longer than MaxRecord.
	ErrTooLarge = errors.New("record is too large for the spool")
)

const (
	segmentLimit = 128 << 20              // bytes; a search behind damage reads a segment into memory
	recordLimit  = 16 << 20               // bytes; a longer length in a frame is damage
	closeWait    = 5 * time.Second        // how long Close waits for a disk that hangs
	tidyEvery    = time.Second            // how often the writer looks at the ack files
	tidyGap      = 50 * time.Millisecond  // the least time between two looks
	pollEvery    = 25 * time.Millisecond  // how often an idle reader looks
	pollMax      = 250 * time.Millisecond // the longest Poll that Validate accepts
)

// Options of a writer. Start from DefaultOptions.
type Options struct {
	// SegmentBytes is the size at which a segment is ended, 4 KiB to 128 MiB.
	SegmentBytes int64
	// MaxBytes bounds all segments that some reader still needs, together;
	// at least twice SegmentBytes.
	MaxBytes int64
	// MaxRecord bounds one payload, 1 byte to 16 MiB; it must fit a segment.
	MaxRecord int
	// QueueBytes bounds what waits in memory for the disk; at least one record.
	QueueBytes int64
	// Logger may be nil.
	Logger *slog.Logger
	// Registerer may be nil. Two spools in one registry need a label each,
	// see prometheus.WrapRegistererWith.
	Registerer prometheus.Registerer
}

// DefaultOptions returns 8 MiB segments, 1 GiB in all, 1 MiB a record and
// 16 MiB of queue.
func DefaultOptions() Options {
	return Options{
		SegmentBytes: 8 << 20,
		MaxBytes:     1 << 30,
		MaxRecord:    1 << 20,
		QueueBytes:   16 << 20,
	}
}

// Validate names every field that is out of its range.
func (o Options) Validate() error {
	var errs []error
	check := func(field string, value, low, high int64) {
		if value < low || value > high {
			errs = append(errs, fmt.Errorf("spool: %s is %d, it must be %d to %d", field, value, low, high))
		}
	}
	check("SegmentBytes", o.SegmentBytes, 4<<10, segmentLimit)
	check("MaxBytes", o.MaxBytes, 2*o.SegmentBytes, 1<<50)
	check("MaxRecord", int64(o.MaxRecord), 1, min(recordLimit, o.SegmentBytes-headerBytes-frameBytes))
	check("QueueBytes", o.QueueBytes, int64(o.MaxRecord)+frameBytes, 1<<40)
	return errors.Join(errs...)
}

// ReaderOptions of a reader. The zero value is good.
type ReaderOptions struct {
	// Poll is how often an idle Read looks for records, up to 250 ms;
	// 0 means 25 ms.
	Poll time.Duration
	// Logger may be nil.
	Logger *slog.Logger
	// Registerer may be nil. The metrics carry the label reader.
	Registerer prometheus.Registerer
}

// Validate names the field that is out of its range.
func (o ReaderOptions) Validate() error {
	if o.Poll < 0 || o.Poll > pollMax {
		return fmt.Errorf("spool: Poll is %v, it must be 0 to %v", o.Poll, pollMax)
	}
	return nil
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
