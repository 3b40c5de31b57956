package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// program builds the real binary once a test run, with the race detector if
// the test has it: a race in a child process ends it with exit code 66 and
// fails its test.
var program = sync.OnceValues(func() (string, error) {
	if raceDetector() {
		return build("bulkhead-race", "-race")
	}
	return build("bulkhead")
})

// shipped builds it as it is shipped, without cgo and the race detector: for
// what has to be as fast as it is, too.
var shipped = sync.OnceValues(func() (string, error) { return build("bulkhead-shipped") })

func build(name string, flags ...string) (string, error) {
	bin := filepath.Join(programDir, name)
	cmd := exec.Command("go", append(append([]string{"build", "-o", bin}, flags...), ".")...)
	if !slices.Contains(flags, "-race") {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
}

// raceDetector reports whether this test was built with it.
func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// programDir is the folder of the programs, which TestMain makes and removes.
var programDir string

func TestMain(m *testing.M) {
	if env := os.Getenv(generatorEnv); env != "" {
		var cfg generatorConfig
		err := json.Unmarshal([]byte(env), &cfg)
		if err == nil {
			err = generate(cfg, os.Stdin, os.Stdout)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "generator:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "bulkhead-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a folder for the programs:", err)
		os.Exit(1)
	}
	programDir = dir
	flag.Parse()
	if os.Getenv(apartEnv) == "" {
		if err := startApart(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	stopApart()
	os.RemoveAll(dir)
	os.Exit(code)
}

// proc is a child process of a test.
type proc struct {
	t    *testing.T
	bin  func() (string, error)
	name string
	args []string
	cmd  *exec.Cmd
	log  *lockedBuffer
	done chan struct{}
	err  error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// outputDelay is how long a process's output is waited for after its end: a
// child that it left behind may hold it open.
const outputDelay = 10 * time.Second

// spawn starts a subcommand of the real binary. It ends with the test, and a
// failed test shows what it logged.
func spawn(t *testing.T, args ...string) *proc {
	t.Helper()
	return spawnOf(t, program, args...)
}

// spawnOf starts a subcommand of one of its builds.
func spawnOf(t *testing.T, bin func() (string, error), args ...string) *proc {
	t.Helper()
	p := &proc{t: t, bin: bin, name: args[0], args: args, log: &lockedBuffer{}}
	p.start()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("--- log of %s ---\n%s", strings.Join(args, " "), tail(p.log.String(), 60))
		}
		if strings.Contains(p.log.String(), "WARNING: DATA RACE") {
			t.Errorf("%s has a data race:\n%s", p.name, p.log)
		}
	})
	return p
}

func (p *proc) start() {
	p.t.Helper()
	bin, err := p.bin()
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command(bin, p.args...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.WaitDelay = p.log, p.log, outputDelay
	p.cmd.Env = append(os.Environ(), "GORACE=halt_on_error=0 atexit_sleep_ms=20") // else each waits a second at its end
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.done = make(chan struct{})
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.name, err)
	}
	go func(cmd *exec.Cmd, done chan struct{}) {
		defer close(done)
		p.err = cmd.Wait()
	}(p.cmd, p.done)
}

// kill ends the process with SIGKILL, in the middle of whatever it does.
func (p *proc) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("kill %s: %v", p.name, err)
	}
	<-p.done
}

// stop ends the process as an operator would, and kills it if it does not end.
func (p *proc) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be gone already
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		p.t.Errorf("%s did not end within 15 s of SIGTERM", p.name)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// tool runs a subcommand to its end and returns what it printed.
func tool(t *testing.T, args ...string) string {
	t.Helper()
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	var out, stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &stderr, outputDelay
	if err := cmd.Run(); err != nil {
		t.Fatalf("bulkhead %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out.String()
}

// givenPorts are those that freePort returned: one that nobody binds yet must
// not be given twice.
var givenPorts sync.Map

// freePort returns a loopback port that was free a moment ago, for UDP and TCP.
// It is below those that Linux gives to whoever does not mind: who listens on
// port 0 until this one is bound cannot get it.
func freePort(t *testing.T) int {
	t.Helper()
	for range 200 {
		port := 20_000 + rand.IntN(12_000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		l.Close()
		if err == nil {
			u.Close()
			if _, given := givenPorts.LoadOrStore(port, true); !given {
				return port
			}
		}
	}
	t.Fatal("no free port")
	return 0
}

// eventually waits until ok returns "", and fails with what it last returned.
func eventually(t *testing.T, within time.Duration, what string, ok func() string) {
	t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		last := ok()
		if last == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %s", what, within, last)
		}
		<-tick.C
	}
}

// waitReady waits until a process says of itself that it is ready.
func waitReady(t *testing.T, admin string, within time.Duration) {
	t.Helper()
	eventually(t, within, "ready at "+admin, func() string {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/readyz", nil)
		if err != nil {
			return err.Error()
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			b, _ := io.ReadAll(resp.Body)
			return string(b)
		}
		return ""
	})
}

// decodeLines reads JSON values, one a line.
func decodeLines[T any](t *testing.T, text string) []T {
	t.Helper()
	var out []T
	for dec := json.NewDecoder(strings.NewReader(text)); dec.More(); {
		var v T
		if err := dec.Decode(&v); err != nil {
			t.Fatalf("decode %q: %v", tail(text, 3), err)
		}
		out = append(out, v)
	}
	return out
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
