package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// machine is the model of one spool with one reader, over crashes and damage.
// A crash is a copy of the folder, taken while nothing is under way, to whose
// end something unfinished is added; all goes on with the copy.
type machine struct {
	root string
	dir  string
	runs int

	s *Spool
	r *Reader

	payloads []string     // by number: all that was ever appended or half appended
	acked    map[int]bool // acknowledged by Append
	spoilt   map[int]bool // damaged: may be lost

	batch     Batch // read and not acknowledged
	batchLast int
	last      int // last record delivered in this run of the reader
	confirmed int // last record that the reader acknowledged
	delivered map[int]bool
}

func (m *machine) payload(rt *rapid.T) []byte {
	n := len(m.payloads)
	body := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(rt, "body")
	if rapid.IntRange(0, 4).Draw(rt, "nested") == 0 { // looks like a segment
		body = append(segmentHeader(uint64(n%5)), beginFrame(nil, body, time.Now())...)
		sealFrame(body[headerBytes:], uint64(n%5), headerBytes)
	}
	p := fmt.Sprintf("%d:%s", n, body)
	m.payloads = append(m.payloads, p)
	return []byte(p)
}

// Append stores one to some records in one call or many.
func (m *machine) Append(rt *rapid.T) {
	n := rapid.IntRange(1, 12).Draw(rt, "records")
	first := len(m.payloads)
	var all [][]byte
	for range n {
		all = append(all, m.payload(rt))
	}
	if rapid.Bool().Draw(rt, "together") {
		if err := m.s.Append(context.Background(), all...); err != nil {
			rt.Fatal(err)
		}
	} else {
		res := make(chan error, n)
		for _, p := range all {
			if err := m.s.Enqueue(p, func(err error) { res <- err }); err != nil {
				rt.Fatal(err)
			}
		}
		for range n {
			if err := <-res; err != nil {
				rt.Fatal(err)
			}
		}
	}
	for i := range n {
		m.acked[first+i] = true
	}
}

// read takes what comes within the limit of time and checks it.
func (m *machine) read(rt *rapid.T, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	b, err := m.r.Read(ctx, rapid.IntRange(1, 20).Draw(rt, "limit"))
	if errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if err != nil {
		rt.Fatal(err)
	}
	for _, p := range b.Payloads {
		var n int
		num, _, _ := strings.Cut(string(p), ":")
		if _, err := fmt.Sscan(num, &n); err != nil || n >= len(m.payloads) || m.payloads[n] != string(p) {
			rt.Fatalf("invented: %q", p)
		}
		if n <= m.last {
			rt.Fatalf("record %d after %d; the reader had acknowledged up to %d", n, m.last, m.confirmed)
		}
		for i := m.last + 1; i < n; i++ {
			if m.acked[i] && !m.spoilt[i] {
				rt.Fatalf("record %d is missing between %d and %d", i, m.last, n)
			}
		}
		m.last = n
		m.delivered[n] = true
	}
	m.batch, m.batchLast = b, m.last
	return true
}

// Read reads, without an acknowledgement.
func (m *machine) Read(rt *rapid.T) { m.read(rt, 3*time.Millisecond) }

// Ack acknowledges the last batch.
func (m *machine) Ack(rt *rapid.T) {
	if len(m.batch.Payloads) == 0 {
		rt.Skip("nothing to acknowledge")
	}
	if err := m.batch.Ack(); err != nil {
		rt.Fatal(err)
	}
	m.confirmed = m.batchLast
}

// Crash kills writer and reader in the middle of an append.
func (m *machine) Crash(rt *rapid.T) {
	m.stop(rt, func() {
		if rapid.Bool().Draw(rt, "damaged") {
			m.damage(rt)
		}
		m.tear(rt)
	})
}

// Restart ends and starts both in good order.
func (m *machine) Restart(rt *rapid.T) { m.stop(rt, func() {}) }

// RestartReader kills only the reader.
func (m *machine) RestartReader(rt *rapid.T) {
	if err := m.r.Close(); err != nil {
		rt.Fatal(err)
	}
	m.openReader(rt)
}

func (m *machine) stop(rt *rapid.T, meanwhile func()) {
	from := m.dir
	m.runs++
	m.dir = filepath.Join(m.root, fmt.Sprint(m.runs))
	if err := copyDir(from, m.dir); err != nil {
		rt.Fatal(err)
	}
	if err := errors.Join(m.r.Close(), m.s.Close(), os.RemoveAll(from)); err != nil {
		rt.Fatal(err)
	}
	meanwhile()
	m.start(rt)
}

// copyDir copies what lasts. A segment may be freed meanwhile.
func copyDir(from, to string) error {
	if err := os.Mkdir(to, dirMode); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if errors.Is(err, fs.ErrNotExist) || strings.HasSuffix(e.Name(), lockExt) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, e.Name()), b, fileMode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// damage flips some bytes of some segment.
func (m *machine) damage(rt *rapid.T) {
	segs, err := listSegments(m.dir)
	if err != nil {
		rt.Fatal(err)
	}
	g := rapid.SampledFrom(segs).Draw(rt, "segment")
	b, err := os.ReadFile(g.path(m.dir))
	if err != nil {
		rt.Fatal(err)
	}
	if len(b) == 0 {
		return
	}
	from := rapid.IntRange(0, len(b)-1).Draw(rt, "from")
	to := min(len(b), from+rapid.IntRange(1, 400).Draw(rt, "length"))
	if _, err := Scan(m.dir, func(r Record) error {
		if r.Segment == g.num && int(r.Offset) < to && int(r.end()) > from {
			var n int
			_, err := fmt.Sscanf(string(r.Payload), "%d:", &n)
			m.spoilt[n] = true
			return err
		}
		return nil
	}); err != nil {
		rt.Fatal(err)
	}
	for i := from; i < to; i++ {
		b[i] ^= 0xa5
	}
	if err := os.WriteFile(g.path(m.dir), b, fileMode); err != nil {
		rt.Fatal(err)
	}
}

// tear adds to the last segment what a write under way would have left:
// records that were never acknowledged, cut anywhere.
func (m *machine) tear(rt *rapid.T) {
	segs, err := listSegments(m.dir)
	if err != nil {
		rt.Fatal(err)
	}
	last := segs[len(segs)-1]
	size, err := last.fileSize(m.dir)
	if err != nil {
		rt.Fatal(err)
	}
	var run []byte
	for range rapid.IntRange(0, 3).Draw(rt, "under way") {
		begin := len(run)
		run = beginFrame(run, m.payload(rt), time.Now())
		sealFrame(run[begin:], last.num, size+int64(begin))
	}
	run = run[:rapid.IntRange(0, len(run)).Draw(rt, "cut")]
	f, err := os.OpenFile(last.path(m.dir), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		rt.Fatal(err)
	}
	if _, err := f.Write(run); err != nil {
		rt.Fatal(err)
	}
	if err := f.Close(); err != nil {
		rt.Fatal(err)
	}
}

func (m *machine) openReader(rt *rapid.T) {
	var err error
	if m.r, err = OpenReader(m.dir, "one", ReaderOptions{Poll: time.Millisecond}); err != nil {
		rt.Fatal(err)
	}
	m.batch, m.last = Batch{}, m.confirmed
}

func (m *machine) start(rt *rapid.T) {
	o := small()
	o.MaxBytes = 64 << 20
	var err error
	if m.s, err = Open(m.dir, o); err != nil {
		rt.Fatal(err)
	}
	m.openReader(rt)
}

// TestCrashModel: every record whose append was acknowledged is delivered at
// least once and in order, unless its own bytes were damaged; none is
// invented; none that the reader acknowledged comes again.
func TestCrashModel(t *testing.T) {
	// The model keeps what was written, so a disk would only slow it down.
	base := "/dev/shm"
	if st, err := os.Stat(base); err != nil || !st.IsDir() {
		base = t.TempDir()
	}
	rapid.Check(t, func(rt *rapid.T) {
		root, err := os.MkdirTemp(base, "spool-model-")
		if err != nil {
			rt.Fatal(err)
		}
		m := &machine{
			root: root, dir: filepath.Join(root, "0"),
			acked: map[int]bool{}, spoilt: map[int]bool{}, delivered: map[int]bool{},
			last: -1, confirmed: -1,
		}
		m.start(rt)
		defer func() {
			if err := errors.Join(m.r.Close(), m.s.Close(), os.RemoveAll(root)); err != nil {
				rt.Error(err)
			}
		}()
		rt.Repeat(map[string]func(*rapid.T){
			"Append": m.Append, "Append again": m.Append, "Read": m.Read, "Read again": m.Read, "Ack": m.Ack,
			"Crash": m.Crash, "Restart": m.Restart, "RestartReader": m.RestartReader,
		})
		end := time.Now().Add(5 * time.Second)
		for m.missing() >= 0 && time.Now().Before(end) {
			m.read(rt, 50*time.Millisecond)
		}
		if n := m.missing(); n >= 0 {
			rt.Fatalf("record %d of %d was acknowledged and never delivered", n, len(m.payloads))
		}
	})
}

// missing returns a record that must still be delivered, or -1.
func (m *machine) missing() int {
	for n := range m.acked {
		if !m.delivered[n] && !m.spoilt[n] {
			return n
		}
	}
	return -1
}
