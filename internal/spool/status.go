package spool

import (
	"errors"
	"io/fs"
	"time"
)

// SegmentStatus is one segment on disk.
type SegmentStatus struct {
	Number      uint64
	File        string // its path
	Bytes       int64
	Quarantined bool // found damaged; it is never deleted
}

// ReaderStatus is one reader that ever registered.
type ReaderStatus struct {
	Name   string
	Acked  Position // all before it is acknowledged
	Bad    bool     // its file cannot be understood; it counts as having read nothing
	Behind int64    // bytes on disk that it has not acknowledged, headers of segments not counted
	// Oldest is when the first record was appended that it has not
	// acknowledged; zero: there is none.
	Oldest time.Time
}

// Status is what lies in a folder.
type Status struct {
	Segments []SegmentStatus // oldest first
	Readers  []ReaderStatus  // by name
}

// Look returns what lies in dir, without a lock: the writer and the readers
// may go on meanwhile. Of their latest steps some may be in it and some not.
func Look(dir string) (Status, error) {
	// Positions first: a segment that is freed between the two was done with.
	acks, err := listAcks(dir)
	if err != nil {
		return Status{}, err
	}
	segs, err := listSegments(dir)
	if err != nil {
		return Status{}, err
	}
	var s Status
	var kept []segmentFile
	for _, g := range segs {
		size, err := g.fileSize(dir)
		if errors.Is(err, fs.ErrNotExist) { // set apart since it was listed, or freed
			g.quarantined = true
			size, err = g.fileSize(dir)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Status{}, err
		}
		kept = append(kept, g)
		s.Segments = append(s.Segments, SegmentStatus{Number: g.num, File: g.path(dir), Bytes: size, Quarantined: g.quarantined})
	}
	for _, a := range acks {
		r := ReaderStatus{Name: a.name, Acked: a.pos, Bad: a.bad}
		for _, g := range s.Segments {
			switch {
			case g.Number > a.pos.Segment:
				r.Behind += max(0, g.Bytes-headerBytes)
			case g.Number == a.pos.Segment:
				r.Behind += max(0, g.Bytes-max(headerBytes, a.pos.Offset))
			}
		}
		r.Oldest = oldest(dir, kept, a.pos)
		s.Readers = append(s.Readers, r)
	}
	return s, nil
}

// oldest returns when the first record behind pos was appended, or zero.
func oldest(dir string, segs []segmentFile, pos Position) time.Time {
	var at time.Time
	for _, g := range segs {
		if g.num < pos.Segment {
			continue
		}
		var off int64
		if g.num == pos.Segment {
			off = pos.Offset
		}
		r, err := openSegment(dir, g.num)
		if err != nil {
			continue // freed by hand; the time is only an estimate then
		}
		_, _, _, err = r.walk(off, func(rec Record) error {
			at = rec.Time
			return errStop
		})
		r.close()
		if errors.Is(err, errStop) {
			return at
		}
	}
	return time.Time{}
}

// errStop ends a walk early.
var errStop = errors.New("stop")
