package testenv

import (
	"bytes"
	"net"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Redis starts a redis-server of the test's own, with an append-only file in
// a temporary folder, and returns the path of its unix socket.
func Redis(t testing.TB) string {
	t.Helper()
	bin := Need(t, "redis-server", "redis-server")
	dir := t.TempDir()
	socket := filepath.Join(dir, "redis.sock")
	var log bytes.Buffer
	cmd := exec.Command(bin, "--port", "0", "--unixsocket", socket, "--dir", dir, "--appendonly", "yes", "--save", "")
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start redis-server: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // the data is temporary
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("redis-server:\n%s", log.String())
		}
	})
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !answersPing(socket) {
		if time.Now().After(deadline) {
			t.Fatalf("redis-server does not answer PING within 10 s:\n%s", log.String())
		}
		<-tick.C
	}
	return socket
}

func answersPing(socket string) bool {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	answer := make([]byte, 7)
	n, err := c.Read(answer)
	return err == nil && string(answer[:n]) == "+PONG\r\n"
}
