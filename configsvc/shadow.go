package configsvc

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Decision is what would have been done with a call, had its PBX not been told
// that the call is not ours.
type Decision struct {
	Time     time.Time               `json:"time"`
	Dialect  string                  `json:"dialect"`
	Cell     bulkhead.CellID         `json:"cell"`
	Node     bulkhead.NodeID         `json:"node"`
	Revision bulkhead.RevisionNumber `json:"revision"`
	Tenant   bulkhead.TenantID       `json:"tenant,omitempty"`
	Managed  bool                    `json:"managed,omitempty"` // false: a node that defers such calls keeps it anyhow

	// Which call it was: the PBX's own name of the leg, or where the question
	// does not tell that, its SIP Call-ID. At most 256 bytes each.
	Leg       string `json:"leg,omitempty"`
	SIPCallID string `json:"sip_call_id,omitempty"`
	Number    string `json:"number"` // as dialled

	Actions []PlanStep `json:"actions"`
}

// maxShadowText bounds what a caller wrote into a Decision, in bytes.
const maxShadowText = 256

// NewDecision puts a plan for a call into words that can be kept. Time,
// Dialect and Node are the server's to fill in.
func NewDecision(p *route.Plan, leg, sipCallID, number string) *Decision {
	return &Decision{
		Cell: p.Cell, Revision: p.Revision, Tenant: p.Tenant, Managed: p.Managed,
		Leg: bounded(leg), SIPCallID: bounded(sipCallID), Number: bounded(number), Actions: planSteps(p.Actions),
	}
}

func bounded(s string) string { return s[:min(len(s), maxShadowText)] }

// The files of a Shadow. The older one goes when the newer one is full.
const (
	shadowNew = "decisions.ndjson"
	shadowOld = "decisions.1.ndjson"
)

const (
	shadowQueue = 4096     // decisions that may wait for the disk
	shadowPiece = 16 << 10 // bytes after which a piece is written
)

// Shadow keeps decisions on disk, one JSON object a line, in two files of at
// most half its size each. A decision that finds the queue full, or that the
// disk does not take, is dropped and counted: no PBX waits for it.
type Shadow struct {
	dir     string
	half    int64
	log     *slog.Logger
	queue   chan *Decision
	file    *os.File
	size    int64
	failing bool

	kept, dropped prometheus.Counter
}

// OpenShadow makes the folder and goes on with the files that are there. size
// is in bytes, 64 KiB to 16 GiB.
func OpenShadow(dir string, size int64, log *slog.Logger, reg prometheus.Registerer) (*Shadow, error) {
	if size < 64<<10 || size > 16<<30 {
		return nil, fmt.Errorf("shadow: %d bytes are not within 64 KiB and 16 GiB: %w", size, bulkhead.Invalid)
	}
	s := &Shadow{
		dir: dir, half: size / 2, log: log, queue: make(chan *Decision, shadowQueue),
		kept:    prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_configsvc_shadow_kept_total", Help: "Decisions of a shadow that were written to disk."}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "bulkhead_configsvc_shadow_dropped_total", Help: "Decisions of a shadow that were not kept: the disk was too slow, or refused them."}),
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("shadow: make the folder of decisions: %w", err)
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	reg.MustRegister(s.kept, s.dropped)
	return s, nil
}

// open opens the newer file. A line that a crash has torn is ended, so that
// the next one stands alone.
func (s *Shadow) open() error {
	f, err := os.OpenFile(filepath.Join(s.dir, shadowNew), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("shadow: open the decisions: %w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return errors.Join(fmt.Errorf("shadow: open the decisions: %w", err), f.Close())
	}
	if last := make([]byte, 1); size > 0 {
		if _, err := f.ReadAt(last, size-1); err == nil && last[0] != '\n' {
			n, _ := f.WriteString("\n") // else the next write says why not
			size += int64(n)
		}
	}
	s.file, s.size = f, size
	return nil
}

// add hands a decision over to Run. It never waits.
func (s *Shadow) add(d *Decision) {
	select {
	case s.queue <- d:
	default:
		s.dropped.Inc()
	}
}

// Run writes decisions until ctx ends, and then those that still wait.
func (s *Shadow) Run(ctx context.Context) error {
	defer func() { s.file.Close() }()
	var b bytes.Buffer
	for {
		select {
		case d := <-s.queue:
			s.write(&b, d)
		case <-ctx.Done():
			for len(s.queue) > 0 {
				s.write(&b, <-s.queue)
			}
			return nil
		}
	}
}

// write writes a decision and whatever else waits, in one piece.
func (s *Shadow) write(b *bytes.Buffer, d *Decision) {
	b.Reset()
	n := 0
	for {
		line, err := json.Marshal(d)
		if err == nil {
			b.Write(append(line, '\n'))
			n++
		}
		if len(s.queue) == 0 || b.Len() > shadowPiece {
			break
		}
		d = <-s.queue
	}
	err := s.rotate(int64(b.Len()))
	if err == nil {
		var wrote int
		wrote, err = s.file.Write(b.Bytes())
		s.size += int64(wrote)
	}
	if err != nil {
		s.dropped.Add(float64(n))
		if !s.failing {
			s.log.Error("the shadow's decisions are not kept", "dir", s.dir, "error", err)
		}
	} else {
		s.kept.Add(float64(n))
	}
	s.failing = err != nil
}

// rotate makes room for n bytes.
func (s *Shadow) rotate(n int64) error {
	if s.size == 0 || s.size+n <= s.half {
		return nil
	}
	if err := os.Rename(filepath.Join(s.dir, shadowNew), filepath.Join(s.dir, shadowOld)); err != nil {
		return err
	}
	full := s.file
	if err := s.open(); err != nil {
		return err
	}
	return full.Close()
}

// maxShadowLine is the longest line that a reader takes, in bytes.
const maxShadowLine = 1 << 20

// ReadShadow calls fn with the decisions in a folder, the oldest first, also
// while they are written. It returns how many lines are none: at most one for
// each crash. A folder without decisions is bulkhead.NotFound.
func ReadShadow(dir string, fn func(Decision)) (torn int, err error) {
	// The newer one first: what a rotation in between renames is then read
	// twice rather than not at all.
	var files []*os.File
	for _, name := range []string{shadowNew, shadowOld} {
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("shadow: %w", err)
		}
		defer f.Close()
		files = append([]*os.File{f}, files...)
	}
	if len(files) == 0 {
		return 0, fmt.Errorf("shadow: no decisions in %s: %w; they are written by configsvc --shadow", dir, bulkhead.NotFound)
	}
	for _, f := range files {
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, maxShadowLine)
		for lines.Scan() {
			var d Decision
			if len(lines.Bytes()) == 0 {
				continue
			}
			if json.Unmarshal(lines.Bytes(), &d) != nil || len(d.Actions) == 0 {
				torn++
				continue
			}
			fn(d)
		}
		if err := lines.Err(); err != nil {
			return torn, fmt.Errorf("shadow: read %s: %w", f.Name(), err)
		}
	}
	return torn, nil
}
