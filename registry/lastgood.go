package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	lastGoodPrefix = "snapshot-"
	lastGoodSuffix = ".ndjson"
	quarantined    = ".bad"
	// generationsKept and quarantineKept bound what the folder holds.
	generationsKept = 2
	quarantineKept  = 4
)

// LastGood keeps the newest state that somebody applied, and the one before
// it, in files of a folder, for the start at which nobody else answers. A
// file is there whole or not at all; each has a generation number and a
// checksum. The folder belongs to one process.
type LastGood struct {
	dir string

	mu         sync.Mutex
	generation uint64 // the highest that was ever there
}

// Saved says what LastGood.Load found.
type Saved struct {
	Generation uint64
	Time       time.Time // when it was saved
	Keys       []Key     // that were saved with the state
	// Quarantined lists the files that were torn or tampered with. They are
	// kept beside, with .bad at the end of their name, the newest four.
	Quarantined []string
}

// OpenLastGood opens the folder, or makes it, for its owner only: the files
// hold the users' digest secrets.
func OpenLastGood(dir string) (*LastGood, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the last known good configuration: %w: %w", bulkhead.Unavailable, err)
	}
	g := &LastGood{dir: dir}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open the last known good configuration: %w: %w", bulkhead.Unavailable, err)
	}
	for _, e := range entries {
		n, _, ok := generationOf(e.Name())
		if ok {
			g.generation = max(g.generation, n)
		}
		if strings.HasPrefix(e.Name(), "."+lastGoodPrefix) { // a crash left it half written
			_ = os.Remove(filepath.Join(dir, e.Name())) // it is only in the way
		}
	}
	return g, nil
}

func generationName(n uint64) string {
	return fmt.Sprintf("%s%020d%s", lastGoodPrefix, n, lastGoodSuffix)
}

// generationOf reads a file's name.
func generationOf(name string) (n uint64, bad, ok bool) {
	name, bad = strings.CutSuffix(name, quarantined)
	digits, begins := strings.CutPrefix(name, lastGoodPrefix)
	digits, ends := strings.CutSuffix(digits, lastGoodSuffix)
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, bad, begins && ends && err == nil && len(digits) == 20
}

// list returns the generations that are there, newest first.
func (g *LastGood) list(bad bool) ([]uint64, error) {
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, e := range entries {
		if n, isBad, ok := generationOf(e.Name()); ok && isBad == bad {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	slices.Reverse(out)
	return out, nil
}

// Load returns the newest state that is whole. It returns bulkhead.NotFound
// when there is none; Saved then still says what was quarantined.
func (g *LastGood) Load() (bulkhead.State, Saved, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var saved Saved
	generations, err := g.list(false)
	if err != nil {
		return bulkhead.State{}, saved, fmt.Errorf("load the last known good configuration: %w: %w", bulkhead.Unavailable, err)
	}
	defer g.prune(true, quarantineKept)
	var errs []error
	for _, n := range generations {
		name := generationName(n)
		f, err := g.read(name, n)
		if err == nil {
			saved.Generation, saved.Time, saved.Keys = n, f.Saved, f.keys
			return f.state, saved, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", name, err))
		if errors.Is(err, bulkhead.Invalid) {
			saved.Quarantined = append(saved.Quarantined, name)
			if err := os.Rename(filepath.Join(g.dir, name), filepath.Join(g.dir, name+quarantined)); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return bulkhead.State{}, saved, fmt.Errorf("load the last known good configuration from %s: %w: %w", g.dir, bulkhead.NotFound, errors.Join(errs...))
}

// revision returns that of the newest file, by its first line; 0: none.
func (g *LastGood) revision() bulkhead.RevisionNumber {
	g.mu.Lock()
	defer g.mu.Unlock()
	generations, err := g.list(false)
	if err != nil || len(generations) == 0 {
		return 0
	}
	f, err := os.Open(filepath.Join(g.dir, generationName(generations[0])))
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }() // it was only read
	var h snapshotHeader
	if lines := lineScanner(f); !lines.Scan() || json.Unmarshal(lines.Bytes(), &h) != nil {
		return 0
	}
	return h.Revision
}

func (g *LastGood) read(name string, generation uint64) (*snapshotFile, error) {
	f, err := os.Open(filepath.Join(g.dir, name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	s, err := readSnapshot(f)
	if err == nil && s.Generation != generation {
		return nil, damaged(fmt.Sprintf("it is generation %d", s.Generation), nil)
	}
	return s, err
}

// Save writes a state, and the keys with it, as the next generation. It is on
// disk when Save returns; all but the newest two generations are gone then.
func (g *LastGood) Save(s bulkhead.State, keys []Key) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.save(s, keys); err != nil {
		return fmt.Errorf("save revision %d as the last known good configuration: %w: %w", s.Revision, bulkhead.Unavailable, err)
	}
	g.prune(false, generationsKept)
	g.prune(true, quarantineKept)
	return nil
}

func (g *LastGood) save(s bulkhead.State, keys []Key) error {
	next := g.generation + 1
	f, err := renameio.NewPendingFile(filepath.Join(g.dir, generationName(next)), renameio.WithTempDir(g.dir), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }() // does nothing to a file that was put in place
	w := newSnapshotWriter(f)
	w.state(snapshotHeader{Generation: next, Saved: now()}, s)
	if len(keys) > 0 {
		w.line(snapshotLine{Keys: keys})
	}
	if err := w.end(); err != nil {
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return err
	}
	g.generation = next
	return syncFolder(g.dir)
}

// syncFolder makes a new name durable.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// prune removes all but the newest files. What cannot be removed stays.
func (g *LastGood) prune(bad bool, keep int) {
	generations, err := g.list(bad)
	if err != nil {
		return
	}
	for _, n := range generations[min(keep, len(generations)):] {
		name := generationName(n)
		if bad {
			name += quarantined
		}
		if err := os.Remove(filepath.Join(g.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}
