package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/kamailio"
)

// plainBuild returns the program as it is shipped.
func plainBuild(t *testing.T) string {
	t.Helper()
	bin, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// demoPort is the demo's port for SIP: 5060, as its user's phones expect.
var demoPort sync.Mutex

// demoBesideOthers lets a test whose demo waits most of its time run beside
// other tests, but those of other demos.
func demoBesideOthers(t *testing.T) {
	t.Parallel()
	demoPort.Lock()
	t.Cleanup(demoPort.Unlock)
}

// demoProcess is a "bulkhead run --demo".
type demoProcess struct {
	cmd  *exec.Cmd
	out  *lockedBuffer
	done chan error
}

func startDemo(t *testing.T, bin string, args ...string) *demoProcess {
	t.Helper()
	p := &demoProcess{out: &lockedBuffer{}, done: make(chan error, 1)}
	p.cmd = exec.Command(bin, append([]string{"run", "--demo", "--admin", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--events", "127.0.0.1:0"}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.WaitDelay = p.out, p.out, outputDelay
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // ended already, or the test failed
		if t.Failed() {
			t.Logf("output:\n%s", tail(p.out.String(), 40))
		}
	})
	return p
}

var (
	tenantRow = regexp.MustCompile(`(?m)^(acme|bravo|charlie|delta|echo) +\S+ .*? (\d+) +\d+\.\d +(\d+) +(\d+) `)
	adminAddr = regexp.MustCompile(`admin http://(\S+)`)
	totals    = regexp.MustCompile(`(?m)^(\d+) CDRs of (\d+) call legs that ended`)
)

// shown waits until the last table shows answered calls of every tenant and
// as many records as ended call legs.
func (p *demoProcess) shown(t *testing.T) {
	t.Helper()
	eventually(t, 60*time.Second, "answered calls of every tenant, and a record for each leg", func() string {
		out := p.out.String()
		at := strings.LastIndex(out, "tenant ")
		if at < 0 {
			return "no table yet"
		}
		table := out[at:]
		rows := tenantRow.FindAllStringSubmatch(table, -1)
		sum := totals.FindStringSubmatch(table)
		if len(rows) != 5 || sum == nil {
			return fmt.Sprintf("%d rows", len(rows))
		}
		for _, r := range rows {
			if answered, err := strconv.Atoi(r[3]); err != nil || answered == 0 {
				return r[1] + " has no answered call"
			}
		}
		if sum[1] != sum[2] || sum[1] == "0" {
			return sum[0]
		}
		return ""
	})
}

func (p *demoProcess) interrupt(t *testing.T, within time.Duration) {
	t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.done:
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(within):
		t.Errorf("it did not end within %v of Ctrl-C", within)
	}
}

// TestRunWithoutAnything is the first look of somebody who has only Go.
func TestRunWithoutAnything(t *testing.T) {
	demoBesideOthers(t)
	bin := plainBuild(t)
	data := filepath.Join(t.TempDir(), "data")
	p := startDemo(t, bin, "--no-kamailio", "--data", data)
	p.shown(t)
	if !strings.Contains(p.out.String(), "pure-Go stand-in") {
		t.Error("it does not say that the SBC is a stand-in")
	}
	second := startDemo(t, bin, "--no-kamailio", "--data", data)
	select {
	case err := <-second.done:
		if err == nil || !strings.Contains(second.out.String(), "in use by another") {
			t.Errorf("a second run in the same folder ended with %v: %s", err, second.out)
		}
	case <-time.After(10 * time.Second):
		t.Error("a second run in the same folder was not refused")
	}
	p.interrupt(t, 15*time.Second)
}

// TestSecondInterruptEndsAtOnce: who presses Ctrl-C again does not wait for
// what is late, here a request that never comes whole.
func TestSecondInterruptEndsAtOnce(t *testing.T) {
	demoBesideOthers(t)
	p := startDemo(t, plainBuild(t), "--no-kamailio", "--data", filepath.Join(t.TempDir(), "data"))
	var admin []string
	eventually(t, 60*time.Second, "it runs", func() string {
		if admin = adminAddr.FindStringSubmatch(p.out.String()); admin == nil || !strings.Contains(p.out.String(), "admin token") {
			return "it printed: " + p.out.String()
		}
		return ""
	})
	late, err := net.Dial("tcp", admin[1])
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if _, err := late.Write([]byte("GET /readyz HTTP/1.1\r\n")); err != nil {
		t.Fatal(err)
	}
	// Connections are accepted in order: the late one was if this one is answered.
	next, err := net.Dial("tcp", admin[1])
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if _, err := next.Write([]byte("GET /readyz HTTP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Read(make([]byte, 1)); err != nil {
		t.Fatalf("read the answer of %s: %v", admin[1], err)
	}
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(30 * time.Second)
	for {
		if err := p.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		select {
		case <-p.done:
			if code := p.cmd.ProcessState.ExitCode(); code != exitFailure || strings.Contains(p.out.String(), "did not end in time") {
				t.Errorf("it ended in order, with exit code %d", code)
			}
			return
		case <-deadline:
			t.Fatal("it did not end")
		case <-again.C:
		}
	}
}

// TestRunAfterKill: a run that was killed leaves a Kamailio behind at most
// until the next one, which ends it and starts its own.
func TestRunAfterKill(t *testing.T) {
	demoBesideOthers(t)
	if _, err := kamailio.Binary(); err != nil {
		if os.Getenv("BULKHEAD_REQUIRE_REAL") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	bin := plainBuild(t)
	// A unix socket's path must be short.
	data, err := os.MkdirTemp("", "bh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(data) })
	p := startDemo(t, bin, "--data", data)
	p.shown(t)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.done
	p = startDemo(t, bin, "--data", data)
	p.shown(t)
	if n := kamailios(t, data); n == 0 {
		t.Error("no Kamailio runs")
	}
	p.interrupt(t, 15*time.Second)
	if n := kamailios(t, data); n != 0 {
		t.Errorf("%d processes of Kamailio are left behind", n)
	}
}

// kamailios counts the processes of Kamailio that run on a folder.
func kamailios(t *testing.T, data string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(b), "kamailio") && strings.Contains(string(b), data) && strings.Contains(string(b), "-DD") {
			n++
		}
	}
	return n
}
