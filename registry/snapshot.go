package registry

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// A snapshot file is lines of JSON: a header, chunks of objects, and the
// SHA-256 of all lines before it. Nothing of it counts before the last line
// has been read and is right.

const (
	snapshotKind   = "bulkhead snapshot "
	snapshotFormat = snapshotKind + "1"
	// chunkObjects and chunkBytes are where a chunk of objects ends.
	chunkObjects = 256
	chunkBytes   = 1 << 20
	// maxLine is the longest line that is read, of a file and of the feed.
	maxLine = 128 << 20
	// maxSnapshot is how much of a snapshot is read, of a file and of the feed.
	maxSnapshot = 8 << 30
)

// errNewer says that a newer version of this program wrote a file.
var errNewer = errors.New("a newer bulkhead wrote it")

// snapshotHeader is the first line of a snapshot file.
type snapshotHeader struct {
	Format     string                  `json:"format"`
	Revision   bulkhead.RevisionNumber `json:"revision"`
	Generation uint64                  `json:"generation,omitempty"`
	Saved      time.Time               `json:"saved"`
	Objects    int                     `json:"objects"`
}

// snapshotLine is any other line; one of its fields is there.
type snapshotLine struct {
	Put    *bulkhead.Change `json:"put,omitempty"`
	Tokens []tokenRow       `json:"tokens,omitempty"`
	Keys   []Key            `json:"keys,omitempty"`
	Audit  []AuditEntry     `json:"audit,omitempty"`
	SHA256 string           `json:"sha256,omitempty"`
}

func countObjects(s bulkhead.State) int {
	return len(s.Cells) + len(s.Pools) + len(s.Nodes) + len(s.SBCs) + len(s.Tenants)
}

// chunks cuts a state into changes that put it piece by piece, the tenants
// last. A tenant is never cut.
func chunks(s bulkhead.State) iter.Seq[*bulkhead.Change] {
	return func(yield func(*bulkhead.Change) bool) {
		frame := s
		frame.Tenants = nil
		if c := frame.Change(); !c.IsZero() && !yield(&c) {
			return
		}
		var c bulkhead.Change
		size := 0
		for _, t := range s.Tenants {
			c.Tenants = append(c.Tenants, *t)
			size += 200 + 150*len(t.Users) + 50*len(t.Numbers) + 50*len(t.Sources)
			if len(c.Tenants) < chunkObjects && size < chunkBytes {
				continue
			}
			if !yield(&c) {
				return
			}
			c, size = bulkhead.Change{}, 0
		}
		if len(c.Tenants) > 0 {
			yield(&c)
		}
	}
}

// snapshotWriter writes the lines of a snapshot file.
type snapshotWriter struct {
	w   *bufio.Writer
	sum hash.Hash
	err error
}

func newSnapshotWriter(w io.Writer) *snapshotWriter {
	return &snapshotWriter{w: bufio.NewWriterSize(w, 64<<10), sum: sha256.New()}
}

func (w *snapshotWriter) line(v any) {
	if w.err != nil {
		return
	}
	text, err := json.Marshal(v)
	if err == nil {
		text = append(text, '\n')
		w.sum.Write(text)
		_, err = w.w.Write(text)
	}
	w.err = err
}

func (w *snapshotWriter) state(h snapshotHeader, s bulkhead.State) {
	h.Format, h.Revision, h.Objects = snapshotFormat, s.Revision, countObjects(s)
	w.line(h)
	for c := range chunks(s) {
		w.line(snapshotLine{Put: c})
	}
}

// end writes the checksum.
func (w *snapshotWriter) end() error {
	w.line(snapshotLine{SHA256: hex.EncodeToString(w.sum.Sum(nil))})
	return errors.Join(w.err, w.w.Flush())
}

// snapshotFile is a snapshot file that was whole.
type snapshotFile struct {
	snapshotHeader
	state  bulkhead.State
	tokens []tokenRow
	keys   []Key
	audit  []AuditEntry
}

// lineScanner cuts r into lines.
func lineScanner(r io.Reader) *bufio.Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64<<10), maxLine)
	return s
}

// readSnapshot reads a snapshot file. It returns bulkhead.Invalid for one
// that is torn, damaged, or no snapshot at all, and then nothing of it.
func readSnapshot(r io.Reader) (*snapshotFile, error) {
	lines := lineScanner(io.LimitReader(r, maxSnapshot))
	var f snapshotFile
	if !lines.Scan() {
		return nil, torn("it is empty", lines.Err())
	}
	if err := json.Unmarshal(lines.Bytes(), &f.snapshotHeader); err != nil {
		return nil, damaged("its first line", err)
	}
	if f.Format != snapshotFormat {
		if strings.HasPrefix(f.Format, snapshotKind) {
			return nil, errNewer
		}
		return nil, damaged("it is no snapshot", nil)
	}
	sum := sha256.New()
	var all bulkhead.Change
	for {
		sum.Write(lines.Bytes())
		sum.Write([]byte{'\n'})
		if !lines.Scan() {
			return nil, torn("its end is missing", lines.Err())
		}
		var l snapshotLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, damaged("a line", err)
		}
		switch {
		case l.SHA256 != "":
			if l.SHA256 != hex.EncodeToString(sum.Sum(nil)) {
				return nil, damaged("its checksum is wrong", nil)
			}
			if lines.Scan() || lines.Err() != nil {
				return nil, torn("something follows its end", lines.Err())
			}
			return f.whole(&all)
		case l.Put != nil:
			appendPuts(&all, l.Put)
		}
		f.tokens = append(f.tokens, l.Tokens...)
		f.keys = append(f.keys, l.Keys...)
		f.audit = append(f.audit, l.Audit...)
	}
}

func (f *snapshotFile) whole(all *bulkhead.Change) (*snapshotFile, error) {
	f.state = bulkhead.State{}.Apply(all)
	f.state.Revision = f.Revision
	if n := countObjects(f.state); n != f.Objects {
		return nil, damaged(fmt.Sprintf("it holds %d objects and says %d", n, f.Objects), nil)
	}
	return f, nil
}

// torn is what is said of lines that ended; a disk that did not answer says
// nothing of the file.
func torn(what string, err error) error {
	if err != nil && !errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("read the snapshot: %w: %w", bulkhead.Unavailable, err)
	}
	return damaged(what, err)
}

func damaged(what string, err error) error {
	if err == nil {
		return fmt.Errorf("the snapshot is damaged: %s: %w", what, bulkhead.Invalid)
	}
	return fmt.Errorf("the snapshot is damaged: %s: %w: %w", what, bulkhead.Invalid, err)
}

// appendPuts adds what c puts to all.
func appendPuts(all, c *bulkhead.Change) {
	all.Cells = append(all.Cells, c.Cells...)
	all.Pools = append(all.Pools, c.Pools...)
	all.Nodes = append(all.Nodes, c.Nodes...)
	all.SBCs = append(all.SBCs, c.SBCs...)
	all.Tenants = append(all.Tenants, c.Tenants...)
}
