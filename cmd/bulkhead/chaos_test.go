package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// The size of a chaos run comes from the environment; make chaos sets it.
const (
	chaosLegs = 3000 // BULKHEAD_CHAOS_LEGS
	chaosRate = 150  // legs a second, BULKHEAD_CHAOS_RATE
	chaosSeed = 1    // BULKHEAD_CHAOS_SEED

	leastFaults = 3 // of the shortest run; there are about 20
)

func fromEnv(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestChaos runs calls through switch -> bridge -> spool -> Redis -> pipe ->
// ClickHouse while all but the switches is killed, stopped, cut off and has
// its disks filled, and compares the store with the ledger of the traffic
// generator, a process of its own: nothing lost, nothing double, no wrong
// duration. What the bridge did not hear is reported by mod_json_cdr, posted
// or left in its folder.
func TestChaos(t *testing.T) {
	legs, rate := fromEnv(t, "BULKHEAD_CHAOS_LEGS", chaosLegs), fromEnv(t, "BULKHEAD_CHAOS_RATE", chaosRate)
	seed := uint64(fromEnv(t, "BULKHEAD_CHAOS_SEED", chaosSeed))
	p := startPipeline(t, 2, generatorConfig{Legs: legs, Rate: rate, Seed: seed})
	m := newMonkey(p, seed, 7)
	m.every = faultEvery(legs, rate)
	for done := false; !done; {
		select {
		case <-m.generator.done:
			done = true
		default:
			m.act()
		}
	}
	p.alive()
	truth := p.generator.ledger(t)
	rows := p.settle(truth)
	wrong := compare(t, truth, rows)
	t.Logf("seed %d: %d legs, %s, %d wrong", seed, len(truth), m, wrong)
	want := leastFaults
	if legs >= 100_000 {
		want = 300
	}
	if m.total() < want {
		t.Errorf("only %d things were done, want %d: let the run take longer", m.total(), want)
	}
	p.noGapOpen()
}

// monkey breaks things.
type monkey struct {
	*pipeline
	rnd   *rand.Rand
	done  map[string]int
	aside map[string]int // what happened besides, and is no fault of the pipeline's parts
	every time.Duration  // from the begin of one thing to that of the next, if it does not take longer
}

func newMonkey(p *pipeline, seed, stream uint64) *monkey {
	return &monkey{pipeline: p, rnd: rand.New(rand.NewPCG(seed, stream)), done: map[string]int{}, aside: map[string]int{}}
}

// faultEvery spreads 400 faults over a long run, of which some take longer than
// that leaves them, and lets them follow each other closely in a short one.
func faultEvery(legs, rate int) time.Duration {
	return time.Duration(legs) * time.Second / time.Duration(rate) / 400
}

// pipeline is everything between four switches and a ClickHouse.
type pipeline struct {
	t            *testing.T
	redis        *testenv.RedisServer
	clickhouse   *testenv.ClickHouseServer
	bridge, pipe *proc
	dir          string
	listen       string // where the bridge takes call records that switches post
	admin        string // of the bridge
	pipeAdmin    string
	wires        []*wire // all that can be cut
	switches     []*wire // those of them that lead to the switches
	disks        []*disk // of the bridge, Redis and ClickHouse; none where they cannot be made
	generator    *generator
}

// startPipeline starts it, beside so many fake Asterisks, and then the traffic;
// legs, rate and seed are the caller's.
func startPipeline(t *testing.T, asterisks int, cfg generatorConfig) *pipeline {
	t.Helper()
	return startPipelineOf(t, program, asterisks, cfg)
}

// startPipelineOf starts one of the given build.
func startPipelineOf(t *testing.T, bin func() (string, error), asterisks int, cfg generatorConfig) *pipeline {
	t.Helper()
	if testing.Short() {
		t.Skip("takes a minute and more")
	}
	dir := t.TempDir()
	p := &pipeline{t: t, dir: dir}
	p.startStores(dir)
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }
	errDir := filepath.Join(dir, "cdr-err")
	p.listen, p.admin, p.pipeAdmin = local(), local(), local()
	posts, redis, ch := newWire(t, "posts", p.listen), newWire(t, "redis", p.redis.Socket), newWire(t, "clickhouse", p.clickhouse.Native)
	cfg.Nodes, cfg.Password, cfg.CDRURL = map[string]string{}, "chaos-event-socket", "http://NODE:chaos-cdr@"+posts.addr()+"/freeswitch/cdr"
	cfg.ErrDir, cfg.Ledger = errDir, filepath.Join(dir, "ledger")
	var nodes strings.Builder
	nodes.WriteString("cell: chaos\nnodes:\n")
	for i := range 4 {
		id, esl := fmt.Sprintf("fs%d", i+1), local()
		w := newWire(t, id, esl)
		p.switches = append(p.switches, w)
		cfg.Nodes[id] = esl
		fmt.Fprintf(&nodes, "  - id: %s\n    kind: freeswitch\n    address: %s\n    password: chaos-event-socket\n    json_cdr: {password: chaos-cdr, err_log_dir: %s, done: %s}\n",
			id, w.addr(), filepath.Join(errDir, id), filepath.Join(errDir, id, "done"))
		if err := os.MkdirAll(filepath.Join(errDir, id), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	p.switches = append(p.switches, addAsterisks(t, asterisks, dir, &cfg, &nodes)...)
	p.wires = append(slices.Clone(p.switches), posts, redis, ch)
	if cfg.Held {
		cfg.hold(local())
	}
	file := filepath.Join(dir, "nodes.yaml")
	if err := os.WriteFile(file, []byte(nodes.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	p.bridge = spawnOf(t, bin, "eventbridge", "--nodes", file, "--data", filepath.Join(dir, "bridge"), "--listen", p.listen, "--admin", p.admin, "--redis", "redis://"+redis.addr())
	p.pipe = spawnOf(t, bin, "cdrpipe", "--data", filepath.Join(dir, "pipe"), "--cell", "chaos", "--admin", p.pipeAdmin, "--redis", "redis://"+redis.addr(),
		"--warehouse", "clickhouse://default@"+ch.addr()+"/chaos")
	p.generator = startGenerator(t, cfg)
	waitReady(t, p.admin, 30*time.Second)
	return p
}

// startStores starts Redis and ClickHouse, and gives them and the bridge a
// disk each that can be filled.
func (p *pipeline) startStores(dir string) {
	t := p.t
	t.Helper()
	p.redis = testenv.StartRedis(t)
	for _, d := range []string{"bridge", "clickhouse"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	p.redis.Kill() // it keeps its socket where its disk is to be
	for _, path := range []string{filepath.Join(dir, "bridge"), p.redis.Dir, filepath.Join(dir, "clickhouse")} {
		if d := newDisk(t, path); d != nil {
			p.disks = append(p.disks, d)
		}
	}
	p.redis.Start()
	p.clickhouse = testenv.ClickHouseIn(t, filepath.Join(dir, "clickhouse"))
}

// act does one thing, and waits a moment.
func (m *monkey) act() {
	next := time.Now().Add(m.every)
	down := time.Duration(m.rnd.IntN(1500)) * time.Millisecond
	switch n := m.rnd.IntN(100); {
	case n < 18:
		m.note("kill bridge")
		m.bridge.kill()
		pauseFor(down)
		m.bridge.start()
	case n < 30:
		m.note("kill pipe")
		m.pipe.kill()
		pauseFor(down)
		m.pipe.start()
	case n < 36:
		m.note("stop pipe")
		_ = m.pipe.cmd.Process.Signal(syscall.SIGSTOP)
		pauseFor(down)
		_ = m.pipe.cmd.Process.Signal(syscall.SIGCONT)
	case n < 48:
		m.note("kill redis")
		m.redis.Kill()
		pauseFor(down)
		m.startRedis()
	case n < 60:
		m.note("kill clickhouse")
		m.clickhouse.Kill()
		pauseFor(down)
		if err := m.clickhouse.Start(m.t.Context()); err != nil {
			m.t.Fatalf("start clickhouse again: %v", err)
		}
	case n < 68:
		m.note("stop redis")
		m.redis.Pause()
		pauseFor(down)
		m.redis.Resume()
	case n < 76:
		m.note("stop clickhouse")
		_ = m.clickhouse.Signal(syscall.SIGSTOP) // it runs: act is alone
		pauseFor(down)
		_ = m.clickhouse.Signal(syscall.SIGCONT)
	case n < 84:
		m.note("stop bridge")
		_ = m.bridge.cmd.Process.Signal(syscall.SIGSTOP)
		pauseFor(down)
		_ = m.bridge.cmd.Process.Signal(syscall.SIGCONT)
	case n < 92 && len(m.disks) > 0:
		d := m.disks[m.rnd.IntN(len(m.disks))]
		m.note("fill disk of " + d.name())
		d.fill()
		pauseFor(2 * down)
		d.free()
	default:
		w := m.wires[m.rnd.IntN(len(m.wires))]
		m.note("cut " + w.name)
		w.cut()
	}
	pauseFor(max(time.Duration(100+m.rnd.IntN(500))*time.Millisecond, time.Until(next)))
}

// startRedis starts Redis again. One whose disk was full may not start on its
// own append-only file; it then loses all that it held.
func (m *monkey) startRedis() {
	if m.redis.TryStart() == nil {
		return
	}
	m.aside["lose what redis held"]++
	if err := os.RemoveAll(filepath.Join(m.redis.Dir, "appendonlydir")); err != nil {
		m.t.Fatal(err)
	}
	m.redis.Start()
}

// pauseFor is how long a fault lasts: part of the run, not a wait for something.
func pauseFor(d time.Duration) { <-time.After(d) }

func (m *monkey) note(what string) { m.done[what]++ }

func (m *monkey) total() int {
	n := 0
	for _, k := range m.done {
		n += k
	}
	return n
}

func (m *monkey) String() string {
	s := fmt.Sprintf("%d things done to the pipeline %v", m.total(), m.done)
	if len(m.aside) > 0 {
		s += fmt.Sprintf(" besides %v", m.aside)
	}
	return strings.ReplaceAll(s, "map", "")
}

// alive wants both parts to run still: nothing that was done ends them but
// a kill, after which they were started again.
func (p *pipeline) alive() {
	p.t.Helper()
	for _, part := range []*proc{p.bridge, p.pipe} {
		select {
		case <-part.done:
			p.t.Errorf("%s ended by itself:\n%s", part.name, tail(part.log.String(), 20))
		default:
		}
	}
}

// noGapOpen waits until the store knows the end of every gap.
func (p *pipeline) noGapOpen() {
	p.t.Helper()
	eventually(p.t, time.Minute, "the end of every gap", func() string {
		ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
		defer cancel()
		w, err := p.store(ctx)
		if err != nil {
			return err.Error()
		}
		defer w.Close()
		open, err := w.Gaps(ctx, time.Now().Add(time.Hour), cdrpipe.MaxLimit) // those that end later, or not at all
		if err != nil {
			return err.Error()
		}
		if len(open) > 0 {
			pauseFor(500 * time.Millisecond)
			return fmt.Sprintf("%d are open, one of them %+v", len(open), open[0])
		}
		n, err := w.Counts(ctx)
		if err != nil {
			return err.Error()
		}
		p.t.Logf("%d gaps, none is open", n.Gaps)
		return ""
	})
}

// settle waits until every leg of the ledger is in the store, with what each of
// its reporters had to add, and returns every record by leg. A record whose post
// was answered 2xx has to be among its reports. It asks seldom, and at first for
// the number alone: the store has work to do.
func (p *pipeline) settle(truth map[string]freeswitchtest.SimulatedLeg) map[string][]cdrpipe.Row {
	p.t.Helper()
	var rows map[string][]cdrpipe.Row
	start := time.Now()
	eventually(p.t, 5*time.Minute, "records of every leg", func() string {
		if n := p.stored(); n < len(truth) {
			pauseFor(time.Second)
			return fmt.Sprintf("there are %d of %d", n, len(truth))
		}
		var err error
		if rows, err = p.records(); err != nil {
			return err.Error()
		}
		missing, unposted := 0, 0
		for leg, want := range truth {
			switch r := rows[leg]; {
			case len(r) == 0 || r[0].End.IsZero() || r[0].Tenant == "" && want.Tenant != "":
				missing++
			case want.Posted && !slices.Contains(r[0].Reporters(), cdr.SourceHTTP):
				unposted++
			}
		}
		if missing+unposted > 0 {
			pauseFor(time.Second)
			return fmt.Sprintf("of %d legs %d are missing, and of %d the posted record that was acknowledged", len(truth), missing, unposted)
		}
		return ""
	})
	p.t.Logf("all records were there %v after the last call", time.Since(start).Round(100*time.Millisecond))
	return rows
}

// store opens the ClickHouse for looking.
func (p *pipeline) store(ctx context.Context) (*cdrpipe.ClickHouse, error) {
	return cdrpipe.OpenClickHouse(ctx, cdrpipe.ClickHouseConfig{Addrs: []string{p.clickhouse.Native}, Database: "chaos", User: "default", ReadOnly: true})
}

func (p *pipeline) records() (map[string][]cdrpipe.Row, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	w, err := p.store(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	out := map[string][]cdrpipe.Row{}
	var after cdrpipe.Cursor
	for {
		rows, err := w.Records(ctx, cdrpipe.Filter{Kind: cdr.Leg, After: after, Limit: cdrpipe.MaxLimit})
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			out[r.Leg] = append(out[r.Leg], r)
		}
		if len(rows) < cdrpipe.MaxLimit {
			return out, nil
		}
		after = rows[len(rows)-1].Cursor()
	}
}

// compare holds the store against the truth and returns the number of
// differences.
func compare(t *testing.T, truth map[string]freeswitchtest.SimulatedLeg, rows map[string][]cdrpipe.Row) (wrong int) {
	t.Helper()
	bad := func(format string, args ...any) {
		if wrong++; wrong <= 10 {
			t.Errorf(format, args...)
		}
	}
	sources, posted := map[cdr.Source]int{}, 0
	for leg, want := range truth {
		got := rows[leg]
		if len(got) != 1 {
			bad("leg %s has %d records", leg, len(got))
			continue
		}
		r := &got[0]
		sources[r.Source]++
		if want.Posted {
			posted++
		}
		billed := time.Duration(0)
		if want.Answered != 0 {
			billed = time.Duration(want.Hangup-want.Answered) * time.Microsecond
		}
		if r.Billed() != billed || r.Start.UnixMicro() != want.Created || r.Call != want.Call || want.Cause != "" && r.Cause != want.Cause || string(r.Tenant) != want.Tenant {
			bad("leg %s: billed %v, want %v; start %v, call %s, cause %s, tenant %s, sources %v; the ledger says %+v", leg, r.Billed(), billed, r.Start, r.Call, r.Cause, r.Tenant, r.Sources, want)
		}
	}
	for leg := range rows {
		if _, ok := truth[leg]; !ok {
			bad("leg %s is in the store and never was", leg)
		}
	}
	t.Logf("records by source: %v; %d were posted and acknowledged", sources, posted)
	return wrong
}

// wire is a TCP connection that can be cut: a forwarder in front of a server.
type wire struct {
	name string
	to   string // ip:port, or the path of a unix socket
	l    net.Listener

	mu    sync.Mutex
	conns []net.Conn
	wg    sync.WaitGroup
}

func newWire(t *testing.T, name, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{name: name, to: to, l: l}
	w.wg.Go(w.serve)
	t.Cleanup(func() {
		l.Close()
		w.cut()
		w.wg.Wait()
	})
	return w
}

func (w *wire) addr() string { return w.l.Addr().String() }

func (w *wire) serve() {
	for {
		in, err := w.l.Accept()
		if err != nil {
			return
		}
		network := "tcp"
		if strings.HasPrefix(w.to, "/") {
			network = "unix"
		}
		out, err := net.DialTimeout(network, w.to, time.Second)
		if err != nil {
			in.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, in, out)
		w.mu.Unlock()
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			w.wg.Go(func() {
				_, _ = io.Copy(pair[0], pair[1]) // ends when either side does
				pair[0].Close()
				pair[1].Close()
			})
		}
	}
}

// cut ends every connection in the middle of whatever passes.
func (w *wire) cut() {
	w.mu.Lock()
	conns := w.conns
	w.conns = nil
	w.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}
