package eventbridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// Sweep is a folder into which a node's switch writes call records that it
// could not post: the err-log-dir of mod_json_cdr, which never looks at them
// again. Files named *.cdr.json are taken, one level of folders below too,
// since the switch makes some when it rotates.
type Sweep struct {
	Node bulkhead.NodeID
	Dir  string
	// Done is where files go whose record is durable, made if missing; on the
	// same file system. Empty: they are deleted.
	Done string
}

const (
	sweepEvery  = time.Second
	sweepSettle = 2 * time.Second  // a file must be unchanged for so long
	sweepTorn   = 30 * time.Second // so long, if it is not whole: the switch died over it
	sweepSuffix = ".cdr.json"
	sweepBatch  = 128           // files that are made durable together
	sweepBytes  = 512 << 10     // what they hold, one more at the most
	undecodable = "undecodable" // folder within Sweep.Dir for what could not be read
)

// sighting is a file as it was seen, and since when it looks so.
type sighting struct {
	size  int64
	mtime time.Time
	since time.Time
}

// sweeper takes the files of one folder.
type sweeper struct {
	Sweep
	bridge *Bridge
	log    *slog.Logger
	seen   map[string]sighting
	failed string // what the last error said; it is logged when it changes
}

func newSweeper(b *Bridge, w Sweep) *sweeper {
	return &sweeper{Sweep: w, bridge: b, log: b.log.With("node", w.Node, "dir", w.Dir), seen: map[string]sighting{}}
}

func (s *sweeper) run(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		err := s.sweep(ctx, time.Now())
		if ctx.Err() != nil {
			return // which explains the error
		}
		s.note(err)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (s *sweeper) note(err error) {
	text := ""
	if err != nil {
		text = err.Error()
		s.bridge.metrics.sweepErrors.WithLabelValues(string(s.Node)).Inc()
	}
	if text != s.failed && text != "" {
		s.log.Error("folder of call records is not swept", "error", text)
	}
	s.failed = text
}

// sweep looks at every file once. It stops at the first ones that cannot be
// stored, since the next ones could not either.
func (s *sweeper) sweep(ctx context.Context, now time.Time) error {
	files, err := s.files()
	if err != nil {
		return err
	}
	seen := make(map[string]sighting, len(files))
	var ready []string
	for path, info := range files {
		was, known := s.seen[path]
		is := sighting{size: info.Size(), mtime: info.ModTime(), since: now}
		if known && was.size == is.size && was.mtime.Equal(is.mtime) {
			is.since = was.since
		}
		seen[path] = is
		if now.Sub(is.since) >= sweepSettle {
			ready = append(ready, path)
		}
	}
	s.seen = seen
	var batch []found
	size := 0
	for _, path := range ready {
		if ctx.Err() != nil {
			return nil
		}
		f, ok, err := s.open(path, now.Sub(seen[path].since) >= sweepTorn)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		batch = append(batch, f)
		if size += f.bytes; len(batch) == sweepBatch || size >= sweepBytes {
			if err := s.store(ctx, batch); err != nil {
				return err
			}
			batch, size = nil, 0
		}
	}
	return s.store(ctx, batch)
}

// files lists what may be taken.
func (s *sweeper) files() (map[string]fs.FileInfo, error) {
	out := map[string]fs.FileInfo{}
	err := filepath.WalkDir(s.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			deep := path != s.Dir && filepath.Dir(path) != filepath.Clean(s.Dir)
			if deep || path != s.Dir && (d.Name() == undecodable || filepath.Clean(path) == filepath.Clean(s.Done)) {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || !strings.HasSuffix(d.Name(), sweepSuffix) {
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		out[path] = info
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for call records in %s: %w", s.Dir, err)
	}
	return out, nil
}

// found is a file that is to be stored.
type found struct {
	path string
	told
}

// open reads one file that was not changed for a while; false: there is
// nothing to store. One that is not whole is left for later, or, if it is
// torn, taken as far as it goes.
func (s *sweeper) open(path string, torn bool) (found, bool, error) {
	leg := strings.TrimPrefix(strings.TrimSuffix(filepath.Base(path), sweepSuffix), "a_")
	info, err := os.Lstat(path)
	if err != nil {
		return found{}, false, err
	}
	if info.Size() > maxCDRBody {
		return found{}, false, s.apart(path, fmt.Errorf("it has more than %d bytes", maxCDRBody))
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return found{}, false, fmt.Errorf("read call record: %w", err)
	}
	t, err := s.bridge.read(s.Node, cdr.SourceFile, leg, body)
	if err != nil {
		return found{}, false, fmt.Errorf("store the call record in %s: %w", path, err)
	}
	return found{path: path, told: t}, t.bad == nil || torn, nil
}

// store makes the batch durable, and then takes its files away: those that
// were torn are set apart.
func (s *sweeper) store(ctx context.Context, batch []found) error {
	if len(batch) == 0 {
		return nil
	}
	all := make([]told, len(batch))
	for i := range batch {
		all[i] = batch[i].told
	}
	if err := s.bridge.keep(ctx, all...); err != nil {
		return fmt.Errorf("store the call record in %s and %d more: %w", batch[0].path, len(batch)-1, err)
	}
	for i := range batch {
		if err := s.done(&batch[i]); err != nil {
			return err
		}
	}
	return nil
}

// done takes away a file whose record is durable.
func (s *sweeper) done(f *found) error {
	if f.bad != nil {
		return s.apart(f.path, f.bad)
	}
	if s.Done == "" {
		if err := os.Remove(f.path); err != nil {
			return fmt.Errorf("delete a call record that is stored: %w", err)
		}
		return nil
	}
	return move(f.path, s.Done)
}

// apart puts a file where it is not looked at again. It is never deleted.
func (s *sweeper) apart(path string, why error) error {
	s.log.Warn("call record set apart", "file", filepath.Base(path), "error", brief(why))
	return move(path, filepath.Join(s.Dir, undecodable))
}

func move(path, dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make the folder for call records that are done: %w", err)
	}
	to := filepath.Join(dir, filepath.Base(path))
	for i := 1; ; i++ { // nothing that lies there is replaced
		if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
			break
		}
		to = filepath.Join(dir, fmt.Sprintf("%s.%d", filepath.Base(path), i))
	}
	if err := os.Rename(path, to); err != nil {
		return fmt.Errorf("move a call record that is done: %w", err)
	}
	return nil
}
