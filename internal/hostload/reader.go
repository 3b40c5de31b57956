package hostload

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"
)

// Use is how busy a host, or a control group, was between two readings.
type Use struct {
	Group     bool    // what CPU, Throttled and Pressure are of: a control group with a quota, else the host
	CPU       float64 // share of the CPUs, or of the quota, that was used; 0 to 1
	Steal     float64 // share of the host's CPUs that its own host kept back; 0 to 1
	SoftIRQ   float64 // share of the host's CPUs that handled interrupts, network packets above all; 0 to 1
	Throttled float64 // share of the scheduler's periods in which the quota ran out; 0 to 1
	Pressure  float64 // share of the time in which some task waited for a CPU; 0 to 1
	UDPErrors float64 // UDP datagrams a second that found a full receive buffer
	NICDrops  float64 // packets a second that network cards dropped
}

// Reading is the state of the kernel's counters at one moment.
type Reading struct {
	at       time.Time
	cpu      cpuTimes
	cpus     int
	udp, nic uint64
	pressure uint64
	pressed  bool
	group    *group
	times    groupTimes
}

// Reader reads the counters. It is for one goroutine.
type Reader struct {
	root fs.FS
	pid  func() int
	now  func() time.Time

	group    *group
	groupPID int
	groupAt  time.Time
}

// groupEvery is how often it is looked whether the program still lives in the
// same group: it may have been started again.
const groupEvery = 5 * time.Second

// NewReader returns a Reader of this machine. pid returns the process whose
// control group and network counts, or 0 for the whole host; it may change.
func NewReader(pid func() int) *Reader { return newReader(os.DirFS("/"), pid, time.Now) }

func newReader(root fs.FS, pid func() int, now func() time.Time) *Reader {
	return &Reader{root: root, pid: pid, now: now}
}

// read returns a file of the root. Paths may be absolute.
func (r *Reader) read(name string) ([]byte, error) {
	return fs.ReadFile(r.root, strings.TrimPrefix(name, "/"))
}

// Read reads the counters. What this kernel does not count (pressure) is left
// out; a process that is gone is an error.
func (r *Reader) Read() (Reading, error) {
	x := Reading{at: r.now()}
	fail := func(what string, err error) (Reading, error) {
		return Reading{}, fmt.Errorf("read the load of this host from %s: %w", what, err)
	}
	b, err := r.read("proc/stat")
	if err == nil {
		x.cpu, x.cpus, err = parseStat(b)
	}
	if err != nil {
		return fail("/proc/stat", err)
	}
	pid := r.pid()
	net := "proc/net/"
	if pid > 0 {
		net = fmt.Sprintf("proc/%d/net/", pid)
	}
	if b, err = r.read(net + "snmp"); err == nil {
		x.udp, err = parseSNMP(b)
	}
	if err != nil {
		return fail("/"+net+"snmp", err)
	}
	if b, err = r.read(net + "dev"); err == nil {
		x.nic, err = parseDev(b)
	}
	if err != nil {
		return fail("/"+net+"dev", err)
	}
	if b, err := r.read("proc/pressure/cpu"); err == nil {
		if x.pressure, err = parsePressure(b); err == nil {
			x.pressed = true
		}
	}
	if pid <= 0 {
		return x, nil
	}
	if pid != r.groupPID || x.at.Sub(r.groupAt) >= groupEvery {
		g, err := r.findGroup(pid)
		if err != nil {
			return fail(fmt.Sprintf("the control group of process %d", pid), err)
		}
		if g == nil || r.group == nil || *g != *r.group {
			r.group = g
		}
		r.groupPID, r.groupAt = pid, x.at
	}
	if x.group = r.group; x.group != nil {
		if x.times, err = r.groupTimes(x.group); err != nil {
			return fail(x.group.dir, err)
		}
	}
	return x, nil
}

// Between returns the use between two readings, a before b. A counter that
// went back, as after a restart, counts as not moved.
func Between(a, b Reading) Use {
	seconds := b.at.Sub(a.at).Seconds()
	if seconds <= 0 {
		return Use{}
	}
	total := float64(since(a.cpu.total, b.cpu.total))
	share := func(from, to uint64) float64 {
		if total == 0 {
			return 0
		}
		return within(float64(since(from, to)) / total)
	}
	u := Use{
		Steal: share(a.cpu.steal, b.cpu.steal), SoftIRQ: share(a.cpu.softirq, b.cpu.softirq),
		UDPErrors: float64(since(a.udp, b.udp)) / seconds, NICDrops: float64(since(a.nic, b.nic)) / seconds,
	}
	if total > 0 {
		u.CPU = 1 - share(a.cpu.idle, b.cpu.idle)
	}
	if a.pressed && b.pressed {
		u.Pressure = within(float64(since(a.pressure, b.pressure)) / 1e6 / seconds)
	}
	if b.group == nil || a.group != b.group {
		return u
	}
	u.Group, u.Pressure = true, 0
	if periods := since(a.times.periods, b.times.periods); periods > 0 {
		u.Throttled = within(float64(since(a.times.throttled, b.times.throttled)) / float64(periods))
	}
	if a.times.pressed && b.times.pressed {
		u.Pressure = within(float64(since(a.times.pressure, b.times.pressure)) / 1e6 / seconds)
	}
	u.CPU = u.Throttled
	if a.times.counted && b.times.counted {
		u.CPU = within(float64(since(a.times.used, b.times.used)) / 1e6 / seconds / b.group.cpus)
	}
	return u
}

func since(from, to uint64) uint64 {
	if to < from {
		return 0
	}
	return to - from
}

func within(share float64) float64 { return min(max(share, 0), 1) }

// Sampler reads every so often.
type Sampler struct {
	reader *Reader
	every  time.Duration

	mu  sync.Mutex
	use Use
	at  time.Time // of the newest use; zero: there is none
	err error     // of the newest reading
}

// NewSampler returns a Sampler that has not begun.
func NewSampler(r *Reader, every time.Duration) *Sampler { return &Sampler{reader: r, every: every} }

// Run reads until ctx ends.
func (s *Sampler) Run(ctx context.Context) error {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	var last Reading
	for have := false; ; {
		x, err := s.reader.Read()
		s.keep(last, x, have, err)
		have = err == nil
		last = x
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Sampler) keep(last, x Reading, have bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	if err == nil && have {
		s.use, s.at = Between(last, x), x.at
	}
}

// Last returns the newest use and when it was read. The error says why there
// is none: not yet, or that the newest reading failed.
func (s *Sampler) Last() (Use, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return Use{}, time.Time{}, s.err
	case s.at.IsZero():
		return Use{}, time.Time{}, fmt.Errorf("the load of this host was not read twice yet")
	}
	return s.use, s.at, nil
}
