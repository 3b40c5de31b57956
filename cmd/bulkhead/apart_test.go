package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A test that mostly waits for time to pass runs in a process of its own,
// which begins before the first other test: so it costs a run of all tests
// little. t.Parallel would let it begin only when all others are over.
const (
	apartTest = "TestChaosAsteriskAgent"
	apartEnv  = "BULKHEAD_TEST_APART" // set in that process
	apartWait = 12 * time.Minute
)

// process is a test that runs apart.
type process struct {
	cmd  *exec.Cmd
	out  lockedBuffer
	done chan struct{} // closed when it has ended with err
	err  error
}

// apart is the process; nil if only some of the tests were asked for.
var apart *process

// startApart starts the process if all tests are to run.
func startApart() error {
	for _, name := range []string{"test.run", "test.skip", "test.list", "test.fuzz", "test.bench"} {
		if flag.Lookup(name).Value.String() != "" {
			return nil
		}
	}
	p := &process{done: make(chan struct{})}
	p.cmd = exec.Command(os.Args[0], "-test.run=^"+apartTest+"$", "-test.v", "-test.timeout="+apartWait.String())
	p.cmd.Env = append(os.Environ(), apartEnv+"=1")
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s apart: %w", apartTest, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	apart = p
	return nil
}

// stopApart ends the process if its test has not waited for it.
func stopApart() {
	if apart != nil {
		_ = syscall.Kill(-apart.cmd.Process.Pid, syscall.SIGKILL) // with all that it started; it may have ended
		<-apart.done
	}
}

// ranApart waits for the process, if there is one, and fails t if it failed;
// false: t has to run here.
func ranApart(t *testing.T) bool {
	t.Helper()
	if apart == nil {
		return false
	}
	select {
	case <-apart.done:
	case <-time.After(apartWait):
		t.Fatalf("it did not end within %s:\n%s", apartWait, apart.out.String())
	}
	if apart.err != nil || !strings.Contains(apart.out.String(), "--- PASS: "+apartTest) {
		t.Fatalf("%v:\n%s", apart.err, apart.out.String())
	}
	t.Log(apart.out.String())
	return true
}
