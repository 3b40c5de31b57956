package eventbridge

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/google/renameio/v2"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

const (
	journalVersion = 1
	journalFile    = "legs.jsonl"
	lockFile       = "legs.lock"
	compactAt      = 1 << 20 // bytes; below it a journal is never rewritten
	compactGrowth  = 4       // times the size after the last rewrite
	lineLegs       = 200     // legs in one line
)

// head is the first line of a journal.
type head struct {
	Version int             `json:"version"`
	Cell    bulkhead.CellID `json:"cell"`
}

// line is a change of what is known of one node.
type line struct {
	Node   bulkhead.NodeID `json:"node"`
	Heard  time.Time       `json:"heard,omitzero"`
	Offset time.Duration   `json:"offset,omitempty"` // of the node's clock, with Heard
	Core   string          `json:"core,omitempty"`
	Open   []cdr.Record    `json:"open,omitempty"`   // legs that began, or of which more is known
	Gone   []string        `json:"gone,omitempty"`   // legs whose record is durable
	Gap    *cdr.Gap        `json:"gap,omitempty"`    // a gap was opened
	Healed bool            `json:"healed,omitempty"` // the gap was closed
}

// onlyGone reports whether the line says no more than that legs are gone.
func (ln *line) onlyGone() bool {
	return ln.Heard.IsZero() && ln.Offset == 0 && ln.Core == "" && len(ln.Open) == 0 && ln.Gap == nil && !ln.Healed
}

// appendTo appends the line to b, the same as encoding/json would and much
// faster: every call takes a few of them.
func (ln *line) appendTo(b []byte) (_ []byte, err error) {
	b = cdr.AppendString(append(b, `{"node":`...), string(ln.Node))
	if !ln.Heard.IsZero() {
		if b, err = ln.Heard.AppendText(append(b, `,"heard":"`...)); err != nil {
			return nil, err
		}
		b = append(b, '"')
	}
	if ln.Offset != 0 {
		b = strconv.AppendInt(append(b, `,"offset":`...), int64(ln.Offset), 10)
	}
	if ln.Core != "" {
		b = cdr.AppendString(append(b, `,"core":`...), ln.Core)
	}
	for i := range ln.Open {
		b = append(b, separator(i, `,"open":[`)...)
		if b, err = ln.Open[i].AppendJSON(b); err != nil {
			return nil, err
		}
	}
	if len(ln.Open) > 0 {
		b = append(b, ']')
	}
	for i, name := range ln.Gone {
		b = cdr.AppendString(append(b, separator(i, `,"gone":[`)...), name)
	}
	if len(ln.Gone) > 0 {
		b = append(b, ']')
	}
	if ln.Gap != nil {
		gap, err := json.Marshal(ln.Gap)
		if err != nil {
			return nil, err
		}
		b = append(append(b, `,"gap":`...), gap...)
	}
	if ln.Healed {
		b = append(b, `,"healed":true`...)
	}
	return append(b, '}', '\n'), nil
}

// separator returns what stands before element i of a list.
func separator(i int, first string) string {
	if i == 0 {
		return first
	}
	return ","
}

func (n *node) replay(ln *line) {
	if !ln.Heard.IsZero() {
		n.heard, n.journaled = ln.Heard, true
		n.offset = cmp.Or(ln.Offset, n.offset)
	}
	if ln.Core != "" {
		n.core = ln.Core
	}
	for _, name := range ln.Gone {
		delete(n.open, name)
	}
	for _, r := range ln.Open {
		n.open[r.Leg] = leg{record: r}
	}
	if ln.Gap != nil {
		n.gap = ln.Gap
	}
	if ln.Healed {
		n.gap = nil
	}
}

// journal remembers on disk which legs are open and when each node was last
// heard. Its lines reach the page cache, which outlives the process, but are
// not synced: after a power cut the last seconds may be missing.
type journal struct {
	dir   string
	cell  bulkhead.CellID
	lock  *os.File
	file  *os.File // nil: it could not be opened after a rewrite
	size  int64
	base  int64 // size after the last rewrite
	dirty bool  // a write failed; nothing is appended before a rewrite
	buf   []byte
}

// openJournal locks the folder, reads the journal and rewrites it. Lines that
// cannot be read, such as a torn last one, are passed over and logged.
func openJournal(dir string, cell bulkhead.CellID, log *slog.Logger) (*journal, map[bulkhead.NodeID]*node, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, nil, fmt.Errorf("make the journal's folder: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, nil, err
	}
	j := &journal{dir: dir, cell: cell, lock: lock}
	nodes, bad, err := j.load()
	if err == nil {
		err = j.rewrite(nodes)
	}
	if err != nil {
		return nil, nil, errors.Join(err, j.close())
	}
	if bad > 0 {
		log.Warn("journal of open legs had lines that could not be read", "lines", bad, "dir", dir)
	}
	return j, nodes, nil
}

func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open the journal's lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		kind := bulkhead.Unavailable
		if errors.Is(err, syscall.EWOULDBLOCK) {
			kind = bulkhead.Conflict
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w: %w; stop the other eventbridge or give this one a folder of its own",
			path, kind, err), f.Close())
	}
	return f, nil
}

func (j *journal) load() (nodes map[bulkhead.NodeID]*node, bad int, err error) {
	f, err := os.Open(filepath.Join(j.dir, journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return map[bulkhead.NodeID]*node{}, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read journal: %w", err)
	}
	defer f.Close()
	return readJournal(f, j.cell)
}

func readJournal(r io.Reader, cell bulkhead.CellID) (nodes map[bulkhead.NodeID]*node, bad int, err error) {
	nodes = map[bulkhead.NodeID]*node{}
	in := bufio.NewReader(r)
	for first := true; ; first = false {
		b, err := in.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, fmt.Errorf("read journal: %w", err)
		}
		if torn := err != nil; torn { // without its newline a line is not whole, even if it parses
			if len(b) > 0 {
				bad++
			}
			return nodes, bad, nil
		}
		if first {
			var h head
			if json.Unmarshal(b, &h) != nil || h.Version != journalVersion || h.Cell != cell {
				return nil, 0, fmt.Errorf("read journal: it begins with %.80q, not with version %d and cell %s; "+
					"use the folder of this cell, or move the file away and lose the open legs: %w", b, journalVersion, cell, bulkhead.Conflict)
			}
			continue
		}
		var ln line
		if json.Unmarshal(b, &ln) != nil || ln.Node == "" {
			bad++
			continue
		}
		if nodes[ln.Node] == nil {
			nodes[ln.Node] = newNode(ln.Node, cell)
		}
		nodes[ln.Node].replay(&ln)
	}
}

// append writes lines behind the others, in one write. After an error the
// journal is dirty and takes lines again only after a rewrite.
func (j *journal) append(lines []line) error {
	if len(lines) == 0 || j.dirty {
		return nil
	}
	j.buf = j.buf[:0]
	for i := range lines {
		var err error
		if j.buf, err = lines[i].appendTo(j.buf); err != nil {
			j.dirty = true
			return fmt.Errorf("encode journal line: %w", err)
		}
	}
	n, err := j.file.Write(j.buf)
	j.size += int64(n)
	if err != nil {
		j.dirty = true
		return fmt.Errorf("append to journal: %w", err)
	}
	return nil
}

// full reports whether the journal should be rewritten.
func (j *journal) full() bool { return j.dirty || j.size > max(compactAt, compactGrowth*j.base) }

// rewrite replaces the journal by one that says the same in the fewest lines.
func (j *journal) rewrite(nodes map[bulkhead.NodeID]*node) (err error) {
	j.dirty = true // until all went well
	path := filepath.Join(j.dir, journalFile)
	tmp, err := renameio.NewPendingFile(path, renameio.WithTempDir(j.dir), renameio.WithPermissions(0o640))
	if err != nil {
		return fmt.Errorf("rewrite journal: %w", err)
	}
	defer func() { err = errors.Join(err, tmp.Cleanup()) }()
	w := bufio.NewWriter(tmp)
	if err := json.NewEncoder(w).Encode(head{Version: journalVersion, Cell: j.cell}); err != nil {
		return fmt.Errorf("rewrite journal: %w", err)
	}
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		if err := nodes[id].write(w); err != nil {
			return fmt.Errorf("rewrite journal: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("rewrite journal: %w", err)
	}
	if err := tmp.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("rewrite journal: %w", err)
	}
	return j.reopen(path)
}

func (j *journal) reopen(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("open rewritten journal: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open rewritten journal: %w", err), f.Close())
	}
	if j.file != nil {
		err = j.file.Close()
	}
	j.file, j.size, j.base, j.dirty = f, st.Size(), st.Size(), false
	return err
}

// write writes all that is known of a node as lines.
func (n *node) write(w io.Writer) error {
	names := slices.Sorted(maps.Keys(n.open))
	ln := line{Node: n.id, Heard: n.heard, Offset: n.offset, Core: n.core, Gap: n.gap}
	var buf []byte
	for {
		var err error
		if buf, err = ln.appendTo(buf[:0]); err == nil {
			_, err = w.Write(buf)
		}
		if err != nil || len(names) == 0 {
			return err
		}
		part := names[:min(lineLegs, len(names))]
		names = names[len(part):]
		ln = line{Node: n.id}
		for _, name := range part {
			ln.Open = append(ln.Open, n.open[name].record)
		}
	}
}

// close releases the folder.
func (j *journal) close() error {
	var err error
	if j.file != nil {
		err = j.file.Close()
	}
	return errors.Join(err, j.lock.Close())
}
