package registry

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// FeedPath is where a server has its feed.
const FeedPath = "/v1/feed"

const (
	// feedHeartbeat is how often a feed says something when nothing changes.
	feedHeartbeat = 3 * time.Second
	// feedSilence is how long a feed may say nothing: then it is dead, whatever
	// TCP thinks.
	feedSilence = 10 * time.Second
)

// The types of a feedLine. A snapshot is a line "snapshot", any number of
// lines "objects" and a line "end"; it replaces everything before it. So do
// "keys" with all keys before it.
const (
	lineSnapshot  = "snapshot"
	lineObjects   = "objects"
	lineEnd       = "end"
	lineChange    = "change"
	lineHeartbeat = "heartbeat"
	lineKeys      = "keys"
)

// feedLine is one line of the feed.
type feedLine struct {
	Type     string                  `json:"type"`
	Revision bulkhead.RevisionNumber `json:"revision,omitempty"`
	Line     line                    `json:"line,omitempty"`    // which of the revisions of this number
	Objects  int                     `json:"objects,omitempty"` // of a whole snapshot
	Time     *time.Time              `json:"time,omitempty"`    // of a change
	Change   *bulkhead.Change        `json:"change,omitempty"`
	Keys     *[]Key                  `json:"keys,omitempty"`
}

func encodeLine(l feedLine) ([]byte, error) {
	text, err := json.Marshal(l)
	return append(text, '\n'), err
}

// feedEvent is what a feed told: a whole snapshot, a revision, all keys, or
// none of them, which is that nothing changed.
type feedEvent struct {
	snapshot *position
	revision *stored
	line     line   // of the revision
	keys     *[]Key // nil: nothing of keys
}

// feedReader reads a feed. Between two events it holds no more than the
// snapshot that it is reading.
type feedReader struct {
	lines *bufio.Scanner
	at    mark
}

// newFeedReader reads a feed that goes on from at; 0: it begins with a snapshot.
func newFeedReader(r io.Reader, at mark) *feedReader {
	return &feedReader{lines: lineScanner(r), at: at}
}

func (f *feedReader) read() (*feedLine, int, error) {
	if !f.lines.Scan() {
		if err := f.lines.Err(); err != nil {
			return nil, 0, fmt.Errorf("read the feed: %w: %w", bulkhead.Unavailable, err)
		}
		return nil, 0, fmt.Errorf("read the feed: %w: it ended", bulkhead.Unavailable)
	}
	var l feedLine
	if err := json.Unmarshal(f.lines.Bytes(), &l); err != nil {
		return nil, 0, fmt.Errorf("read the feed: %w: %w", bulkhead.Invalid, err)
	}
	return &l, len(f.lines.Bytes()), nil
}

// next waits for the next event. After an error the feed is of no more use.
func (f *feedReader) next() (feedEvent, error) {
	for {
		l, _, err := f.read()
		if err != nil {
			return feedEvent{}, err
		}
		switch l.Type {
		case lineHeartbeat:
			if l.Revision != f.at.number {
				return feedEvent{}, wrongLine("it is at revision %d, and revision %d came last", l.Revision, f.at.number)
			}
			return feedEvent{}, nil
		case lineSnapshot:
			p, err := f.snapshot(l)
			if err != nil {
				return feedEvent{}, err
			}
			f.at = mark{p.state.Revision, p.line}
			return feedEvent{snapshot: p}, nil
		case lineChange:
			r, err := f.change(l)
			return feedEvent{revision: r, line: l.Line}, err
		case lineKeys:
			if l.Keys == nil {
				return feedEvent{}, wrongLine("keys without a list")
			}
			return feedEvent{keys: l.Keys}, nil
		case lineObjects, lineEnd:
			return feedEvent{}, wrongLine("%s outside a snapshot", l.Type)
		}
		// Another type is of a newer server.
	}
}

func (f *feedReader) change(l *feedLine) (*stored, error) {
	if l.Revision != f.at.number+1 || l.Change == nil {
		return nil, wrongLine("change %d came after revision %d", l.Revision, f.at.number)
	}
	r := stored{after: f.at.line}
	r.Number, r.Parent, r.Change = l.Revision, f.at.number, *l.Change
	if l.Time != nil {
		r.Time = l.Time.UTC()
	}
	f.at = mark{l.Revision, l.Line}
	return &r, nil
}

func (f *feedReader) snapshot(first *feedLine) (*position, error) {
	var all bulkhead.Change
	for size := 0; size < maxSnapshot; {
		l, n, err := f.read()
		if err != nil {
			return nil, err
		}
		size += n
		switch {
		case l.Type == lineObjects && l.Change != nil && l.Change.Delete.IsZero():
			appendPuts(&all, l.Change)
		case l.Type == lineEnd && l.Revision == first.Revision:
			p := position{bulkhead.State{}.Apply(&all), first.Line}
			p.state.Revision = first.Revision
			if n := countObjects(p.state); n != l.Objects {
				return nil, wrongLine("a snapshot of %d objects came with %d", l.Objects, n)
			}
			return &p, nil
		case l.Type == lineObjects, l.Type == lineEnd, l.Type == lineSnapshot, l.Type == lineChange:
			return nil, wrongLine("%s %d within the snapshot of revision %d", l.Type, l.Revision, first.Revision)
		}
	}
	return nil, errors.Join(bulkhead.Invalid, errors.New("read the feed: the snapshot does not end"))
}

func wrongLine(format string, args ...any) error {
	return fmt.Errorf("read the feed: %w: "+format, append([]any{bulkhead.Invalid}, args...)...)
}
