package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
)

// generatorEnv makes the test binary a traffic generator: a process of its
// own that nothing kills, and that alone knows what truly happened.
const generatorEnv = "BULKHEAD_TEST_GENERATOR"

// generatorConfig is what a generator is told, as JSON in generatorEnv.
type generatorConfig struct {
	Nodes    map[string]string // event socket address by node id
	Password string
	CDRURL   string // of the bridge's receiver for mod_json_cdr; NODE stands for the node's id
	ErrDir   string // mod_json_cdr's err-log-dir, one folder below it a node
	Ledger   string // a JSON object a line: each leg when it has ended
	Legs     int
	Rate     int // legs a second
	Seed     uint64

	Held bool // what second sources say is kept where the bridge does not look: see hold

	Asterisks []asteriskFake // see addAsterisks
	SIP       *sipTraffic    // instead of all that: calls through a real switch

	Talk      time.Duration // the longest; 0: 3 s
	Transfers int           // every so many calls are transferred; 0: none
}

// heldSuffix is behind the names of what is held.
const heldSuffix = ".held"

// hold keeps back what second sources say: nobody listens where records are
// posted, and files get other names.
func (c *generatorConfig) hold(nobody string) {
	c.CDRURL, c.ErrDir = "http://"+nobody, c.ErrDir+heldSuffix
	for i := range c.Asterisks {
		c.Asterisks[i].CELFile += heldSuffix
	}
}

// generator is a running one.
type generator struct {
	cfg  generatorConfig
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan struct{} // every call has ended
}

func startGenerator(t *testing.T, cfg generatorConfig) *generator {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	env, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g := &generator{cfg: cfg, cmd: exec.Command(self), done: make(chan struct{})}
	g.cmd.Env = append(os.Environ(), generatorEnv+"="+string(env))
	g.cmd.Stderr = os.Stderr
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if g.in, err = g.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "up" {
		t.Fatalf("the generator said %q", lines.Text())
	}
	go func() {
		if lines.Scan() && lines.Text() == "done" {
			close(g.done)
		}
	}()
	t.Cleanup(func() {
		g.in.Close()
		if err := g.cmd.Wait(); err != nil {
			t.Errorf("the generator ended with %v", err)
		}
	})
	return g
}

// ledger reads what truly happened, by leg.
func (g *generator) ledger(t *testing.T) map[string]freeswitchtest.SimulatedLeg {
	t.Helper()
	f, err := os.Open(g.cfg.Ledger)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	legs := map[string]freeswitchtest.SimulatedLeg{}
	for dec := json.NewDecoder(f); dec.More(); {
		var l freeswitchtest.SimulatedLeg
		if err := dec.Decode(&l); err != nil {
			t.Fatalf("ledger: %v", err)
		}
		legs[l.UUID] = l
	}
	return legs
}

// ended returns how many legs have ended so far.
func (g *generator) ended(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(g.cfg.Ledger)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("\n"))
}

// generate is the generator's main function.
func generate(cfg generatorConfig, stdin io.Reader, stdout io.Writer) error {
	ledger, err := os.Create(cfg.Ledger)
	if err != nil {
		return err
	}
	defer ledger.Close()
	if cfg.SIP != nil {
		return cfg.SIP.generate(cfg.Seed, ledger, stdin, stdout)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var nodes []*freeswitchtest.Node
	for _, id := range slices.Sorted(maps.Keys(cfg.Nodes)) { // the seed draws among them by number
		esl, dir := cfg.Nodes[id], filepath.Join(cfg.ErrDir, id)
		if err := os.MkdirAll(dir, 0o750); err != nil {
			stop()
			return err
		}
		n, err := freeswitchtest.New(freeswitchtest.Config{
			ID: id, ESLListen: esl, ESLPassword: cfg.Password, MaxSessions: 100_000, MaxSessionsPerSecond: 100_000,
			Heartbeat: 2 * time.Second, Logger: slog.New(slog.DiscardHandler),
			CDR: freeswitchtest.CDRConfig{URLs: []string{strings.Replace(cfg.CDRURL, "NODE", id, 1)}, Retries: 1, Delay: 200 * time.Millisecond, Timeout: 2 * time.Second, ErrLogDir: dir},
		})
		if err != nil {
			stop()
			return err
		}
		nodes = append(nodes, n)
		running.Go(func() {
			if err := n.Run(ctx); err != nil {
				fmt.Fprintln(os.Stderr, "generator:", err)
			}
		})
	}
	defer func() {
		stop()
		running.Wait()
	}()
	asterisks, err := cfg.startAsterisks(ctx, running.Go)
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, "up")
	var calls sync.WaitGroup
	var mu sync.Mutex
	enc := json.NewEncoder(ledger)
	write := func(l freeswitchtest.SimulatedLeg) {
		mu.Lock()
		defer mu.Unlock()
		if err := enc.Encode(l); err != nil {
			fmt.Fprintln(os.Stderr, "generator: ledger:", err)
		}
	}
	cfg.shareAsterisks(ctx, asterisks, calls.Go, write)
	rnd := rand.New(rand.NewPCG(cfg.Seed, 1))
	tick := time.NewTicker(time.Second * 2 / time.Duration(cfg.Rate))
	defer tick.Stop()
	for n := 0; n < cfg.Legs/2; n++ {
		<-tick.C
		c := cfg.draw(rnd, n)
		node := nodes[rnd.IntN(len(nodes))]
		calls.Go(func() {
			for _, l := range node.Simulate(ctx, c) {
				l.Tenant = c.Variables["bulkhead_tenant"]
				write(l)
			}
		})
	}
	calls.Wait()
	if err := ledger.Sync(); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "done")
	_, err = io.Copy(io.Discard, stdin) // the nodes stay until nobody needs them
	return err
}

// draw returns the n'th call of a seed.
func (c *generatorConfig) draw(rnd *rand.Rand, n int) freeswitchtest.SimulatedCall {
	within := func(d time.Duration) time.Duration { return time.Duration(rnd.Int64N(int64(d))) }
	call := freeswitchtest.SimulatedCall{
		Caller: fmt.Sprintf("1555%07d", n), Callee: "1001", Variables: map[string]string{"bulkhead_tenant": fmt.Sprintf("t%02d", n%30)},
		Ring: within(200 * time.Millisecond), Talk: 20*time.Millisecond + within(cmp.Or(c.Talk, 3*time.Second)),
	}
	if c.Transfers > 0 && n%c.Transfers == 0 {
		call.TransferTo = "1002"
	}
	if rnd.IntN(10) == 0 {
		call.Talk = -1
	}
	return call
}

// TestGeneratorSeed: the seed of a run makes its calls again.
func TestGeneratorSeed(t *testing.T) {
	calls := func(seed uint64) (out []freeswitchtest.SimulatedCall) {
		cfg, rnd := generatorConfig{Transfers: 3}, rand.New(rand.NewPCG(seed, 1))
		for n := range 100 {
			out = append(out, cfg.draw(rnd, n))
		}
		return out
	}
	if !reflect.DeepEqual(calls(1), calls(1)) {
		t.Error("one seed made different calls")
	}
	if reflect.DeepEqual(calls(1), calls(2)) {
		t.Error("another seed made the same calls")
	}
}
