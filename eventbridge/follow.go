package eventbridge

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// Follow is a log file to which a node's switch appends rows that tell of its
// legs, one row a line: the channel event log of Asterisk. It is read from
// where reading ended, through restarts of the bridge; rows of which the
// records were durable already may be read once more.
//
// When the file is rotated, the rest of the old one is read before the new one
// begins, as long as it lies beside it, uncompressed, under a name that begins
// with the file's own. A file that is copied and truncated is followed too.
type Follow struct {
	Node bulkhead.NodeID
	Path string
	Rows Rows // for this file alone
}

// Rows makes records of the rows of a log. A leg may have several, in order.
type Rows interface {
	// Row takes one row without its line end. ok: r is the record of a leg that
	// has ended.
	Row(row []byte) (r cdr.Record, ok bool, err error)
	// State returns what is remembered of rows that made no record yet, and
	// Restore takes it back.
	State() ([]byte, error)
	Restore(state []byte) error
}

const (
	followEvery  = time.Second
	followSave   = 10 * time.Second // between two notes of the position
	followSettle = 2 * time.Second  // a rotated file must be unchanged for so long
	followChunk  = 256 << 10        // bytes read at once
	followRow    = 64 << 10         // bytes of one row
	followHead   = 256              // bytes of a file's begin by which it is known
)

// position is up to where a log is read.
type position struct {
	// Head is what the file begins with, hashed, and HeadBytes how much of it:
	// rotating a file changes its name, copying it its inode, but neither this.
	Head      string `json:"head,omitempty"`
	HeadBytes int    `json:"head_bytes,omitempty"` // 0: of no file anything was read
	Offset    int64  `json:"offset"`               // of the first row that was not read
	// At is when the position was written down. If its file is not found any
	// more, files that were not changed since are done with.
	At time.Time `json:"at"`
}

// noted is a position as it is written down, with what Rows remembers there.
type noted struct {
	position
	Rows json.RawMessage `json:"rows"`
}

// follower reads one log.
type follower struct {
	Follow
	bridge *Bridge
	log    *slog.Logger
	note   string // file of the position
	pos    position
	saved  position // what note says
	ahead  bool     // Rows has read on, but what it told is not durable
	failed string   // what the last error said; it is logged when it changes
	torn   bool     // the last row could not be read
}

func newFollower(b *Bridge, w Follow) *follower {
	return &follower{
		Follow: w, bridge: b, log: b.log.With("node", w.Node, "file", w.Path),
		note: filepath.Join(b.cfg.Journal, "follow-"+url.PathEscape(string(w.Node))+".json"),
	}
}

func (f *follower) run(ctx context.Context) {
	f.restore()
	t := time.NewTicker(followEvery)
	defer t.Stop()
	for {
		err := f.pass(ctx)
		if time.Since(f.saved.At) >= followSave || ctx.Err() != nil {
			err = errors.Join(err, f.save())
		}
		f.tell(err)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (f *follower) tell(err error) {
	text := ""
	if err != nil {
		text = err.Error()
		f.bridge.metrics.sweepErrors.WithLabelValues(string(f.Node)).Inc()
	}
	if text != f.failed && text != "" {
		f.log.Error("log of the switch is not followed", "error", text)
	}
	f.failed = text
}

// restore reads the position. Without one the log is read from its begin.
func (f *follower) restore() {
	b, err := os.ReadFile(f.note)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var n noted
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err == nil {
		err = f.Rows.Restore(n.Rows)
	}
	if err != nil {
		f.log.Error("how far the log was read is not known any more; it is read from its begin", "error", err)
		return
	}
	f.pos, f.saved = n.position, n.position
}

// save writes the position down. Everything before it is durable.
func (f *follower) save() error {
	if f.pos == f.saved || f.ahead {
		return nil
	}
	n := noted{position: f.pos}
	n.At = time.Now().UTC()
	var b []byte
	var err error
	if n.Rows, err = f.Rows.State(); err == nil {
		b, err = json.Marshal(n)
	}
	if err == nil {
		err = renameio.WriteFile(f.note, b, 0o640)
	}
	if err != nil {
		return fmt.Errorf("note how far the log is read: %w", err)
	}
	f.pos, f.saved = n.position, n.position
	return nil
}

// part is a file that is to be read from a place on.
type part struct {
	path string
	from int64
	live bool // the switch appends to it
}

// pass reads whatever is there.
func (f *follower) pass(ctx context.Context) error {
	parts, err := f.parts()
	if err != nil {
		return err
	}
	for _, p := range parts {
		done, err := f.read(ctx, p)
		if err != nil || !done || ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// parts returns what is to be read, the oldest first: the file itself, or,
// where it is another one than before, the rest of the old one, what was
// rotated since, and it.
func (f *follower) parts() ([]part, error) {
	now := part{path: f.Path, live: true}
	if f.known(f.Path) {
		now.from = f.pos.Offset
		return []part{now}, nil
	}
	rotated, err := f.rotated()
	if err != nil {
		return nil, err
	}
	if f.pos.HeadBytes > 0 {
		if i := slices.IndexFunc(rotated, func(p part) bool { return f.known(p.path) }); i >= 0 {
			rotated = rotated[i:]
			rotated[0].from = f.pos.Offset
			return append(rotated, now), nil
		}
		if _, err := os.Stat(f.Path); errors.Is(err, fs.ErrNotExist) {
			return nil, nil // it was moved away, and the switch did not write since
		}
		f.bridge.metrics.followLost.WithLabelValues(string(f.Node)).Inc()
		f.log.Error("the log was replaced or truncated, and the one before is not beside it, so the last rows of that may be lost; let logrotate rename it, with delaycompress")
		f.pos = position{At: f.pos.At}
		if rotated, err = f.rotated(); err != nil {
			return nil, err
		}
	}
	return append(rotated, now), nil
}

// rotated lists what the log was before, the oldest first. While nothing was
// read, what was not changed since the last position is left out.
func (f *follower) rotated() ([]part, error) {
	dir, base := filepath.Split(f.Path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for rotated files of a log: %w", err)
	}
	var out []part
	changed := map[string]time.Time{}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, base) || name == base || !e.Type().IsRegular() ||
			slices.Contains([]string{".gz", ".xz", ".bz2", ".zst"}, filepath.Ext(name)) {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for rotated files of a log: %w", err)
		}
		if f.pos.HeadBytes > 0 || info.ModTime().After(f.pos.At) {
			p := part{path: dir + name}
			out, changed[p.path] = append(out, p), info.ModTime()
		}
	}
	slices.SortFunc(out, func(a, b part) int {
		return cmp.Or(changed[a.path].Compare(changed[b.path]), cmp.Compare(b.path, a.path))
	})
	return out, nil
}

// known tells whether the file at path is the one of the position.
func (f *follower) known(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false // reading it will tell why
	}
	defer file.Close()
	return f.is(file)
}

// is tells whether a file is the one of the position. One that is shorter is
// not: it was truncated.
func (f *follower) is(file *os.File) bool {
	if f.pos.HeadBytes == 0 {
		return false
	}
	info, err := file.Stat()
	if err != nil || info.Size() < f.pos.Offset {
		return false
	}
	head, err := headOf(file, f.pos.HeadBytes)
	return err == nil && head == f.pos.Head
}

func headOf(file *os.File, n int) (string, error) {
	b := make([]byte, n)
	if _, err := file.ReadAt(b, 0); err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// read reads the rows of a part. done: the next part's turn has come. Of a
// rotated file that is so once nothing was appended for a while, since a row
// that was being written when it was renamed may still come.
func (f *follower) read(ctx context.Context, p part) (done bool, err error) {
	file, err := os.Open(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("follow a log: %w", err)
	}
	defer file.Close()
	if p.from > 0 && !f.is(file) {
		return false, nil // it was rotated just now
	}
	buf := make([]byte, followChunk)
	for ctx.Err() == nil {
		n, err := file.ReadAt(buf, p.from)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, fmt.Errorf("follow a log: %w", err)
		}
		info, err := file.Stat()
		if err != nil {
			return false, fmt.Errorf("follow a log: %w", err)
		}
		settled := !p.live && time.Since(info.ModTime()) >= followSettle
		whole := bytes.LastIndexByte(buf[:n], '\n') + 1
		if whole == 0 {
			if n == 0 || n <= followRow && !settled {
				return settled, nil
			}
			whole = n // no row is so long, or nobody will finish it
		}
		f.ahead = true
		if err := f.take(ctx, buf[:whole]); err != nil {
			return false, err // ctx has ended
		}
		f.ahead = false
		p.from += int64(whole)
		head := int(min(p.from, followHead))
		if f.pos.Head, err = headOf(file, head); err != nil {
			return false, fmt.Errorf("follow a log: %w", err)
		}
		f.pos.HeadBytes, f.pos.Offset = head, p.from
	}
	return false, nil
}

// take makes durable what some rows tell. What is no row is kept raw.
func (f *follower) take(ctx context.Context, rows []byte) error {
	m := f.bridge.metrics
	var entries []cdr.Entry
	var undecoded [][]byte
	for row := range bytes.SplitSeq(rows, []byte("\n")) {
		if len(row) == 0 {
			continue
		}
		r, ended, err := f.Rows.Row(row)
		if err == nil && ended {
			var ok bool
			if r, ok = f.bridge.rec.complete(f.Node, r); !ok {
				err = fmt.Errorf("it names no leg: %w", bulkhead.Invalid)
			}
		}
		switch {
		case err != nil:
			m.cdrUndecoded.WithLabelValues(string(f.Node), string(cdr.SourceFile)).Inc()
			if !f.torn {
				f.log.Warn("row of the switch's log cannot be read, nor those that follow at once", "bytes", len(row), "error", brief(err))
			}
			undecoded = append(undecoded, append(fmt.Appendf(nil, "undecodable row of the log of node %q: ", clip(f.Node, 64)), row[:min(len(row), followRow)]...))
		case ended:
			e := cdr.Entry{Record: &r}
			if f.bridge.cfg.KeepRaw {
				e.Raw = f.bridge.pack(row)
			}
			entries = append(entries, e)
		}
		f.torn = err != nil
	}
	if len(undecoded) > 0 {
		if err := f.bridge.rec.appendBatch(ctx, undecoded); err != nil {
			return err
		}
	}
	if err := f.bridge.rec.append(ctx, entries); err != nil {
		return err
	}
	for _, e := range entries {
		m.cdrRecords.WithLabelValues(string(f.Node), string(cdr.SourceFile)).Inc()
		f.bridge.account(e.Record)
		f.bridge.rec.reported(f.Node, e.Record)
	}
	return nil
}
