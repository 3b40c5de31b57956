package testenv

import (
	"bytes"
	"fmt"
	"net"
	"os"
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
	return StartRedis(t).Socket
}

// RedisServer is a redis-server of one test. Its methods are for one
// goroutine.
type RedisServer struct {
	Socket string // path of its unix socket
	Dir    string // where its append-only file lies; it outlives a Kill

	t    testing.TB
	bin  string
	args []string
	log  bytes.Buffer
	cmd  *exec.Cmd // nil: it does not run
}

// StartRedis starts a redis-server in a temporary folder, with an append-only
// file that is synced every second and the further options ("--maxmemory",
// "10mb"). It ends with the test.
func StartRedis(t testing.TB, options ...string) *RedisServer {
	t.Helper()
	return startRedis(t, append([]string{
		"--port", "0", "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
	}, options...))
}

// StartSentinel starts a Redis sentinel with a configuration file, which it
// writes to. It ends with the test.
func StartSentinel(t testing.TB, file string, options ...string) *RedisServer {
	t.Helper()
	return startRedis(t, append([]string{file, "--sentinel"}, options...))
}

func startRedis(t testing.TB, args []string) *RedisServer {
	t.Helper()
	bin := Need(t, "redis-server", "redis-server")
	// Paths of sockets must be short, which those of t.TempDir need not be.
	dir, err := os.MkdirTemp("", "redis")
	if err != nil {
		t.Fatal(err)
	}
	r := &RedisServer{t: t, bin: bin, Dir: dir, Socket: filepath.Join(dir, "redis.sock")}
	r.args = append(args, "--unixsocket", r.Socket, "--dir", dir)
	t.Cleanup(func() {
		r.Kill() // the data is temporary
		if t.Failed() {
			t.Logf("redis-server:\n%s", r.log.String())
		}
		os.RemoveAll(dir)
	})
	r.Start()
	return r
}

// Start starts the server again after a Kill, on what its disk holds, and
// waits until it answers.
func (r *RedisServer) Start() {
	r.t.Helper()
	if err := r.TryStart(); err != nil {
		r.t.Fatal(err)
	}
}

// TryStart is Start for who has an answer to a server that does not start, as
// on an append-only file that a full disk has broken.
func (r *RedisServer) TryStart() error {
	r.cmd = exec.Command(r.bin, r.args...)
	r.cmd.Stdout, r.cmd.Stderr = &r.log, &r.log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		r.cmd = nil
		return fmt.Errorf("start redis-server: %w", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !answersPing(r.Socket) {
		if time.Now().After(deadline) {
			r.Kill()
			return fmt.Errorf("redis-server does not answer PING within 10 s:\n%s", r.log.String())
		}
		<-tick.C
	}
	return nil
}

// Kill ends the server with SIGKILL.
func (r *RedisServer) Kill() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill() // it may be gone already
	_ = r.cmd.Wait()
	r.cmd = nil
}

// Pause stops the server with SIGSTOP: it keeps its connections and answers
// nothing.
func (r *RedisServer) Pause() { r.signal(syscall.SIGSTOP) }

// Resume lets the server go on after Pause.
func (r *RedisServer) Resume() { r.signal(syscall.SIGCONT) }

func (r *RedisServer) signal(s syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatalf("send %v to redis-server: %v", s, err)
	}
}

// Forget cuts n bytes from the end of the append-only file of a killed
// server, as a power cut does with what was not synced.
func (r *RedisServer) Forget(n int64) {
	r.t.Helper()
	if err := os.Truncate(r.aof(), max(0, r.Logged()-n)); err != nil {
		r.t.Fatalf("cut append-only file: %v", err)
	}
}

// Logged returns the length of the append-only file.
func (r *RedisServer) Logged() int64 {
	r.t.Helper()
	st, err := os.Stat(r.aof())
	if err != nil {
		r.t.Fatalf("look at append-only file: %v", err)
	}
	return st.Size()
}

func (r *RedisServer) aof() string {
	files, err := filepath.Glob(filepath.Join(r.Dir, "appendonlydir", "*.incr.aof"))
	if err != nil || len(files) == 0 {
		return filepath.Join(r.Dir, "appendonly.aof") // before Redis 7
	}
	return files[len(files)-1]
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
	// One that wants a password is there too.
	return err == nil && (string(answer[:n]) == "+PONG\r\n" || string(answer[:n]) == "-NOAUTH")
}
