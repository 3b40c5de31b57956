package testenv

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The ClickHouse engine as a shared library: scripts/test-deps puts it here.
const (
	clickHouseLib    = "/var/cache/bulkhead/chdb/libchdb.so"
	clickHouseLibEnv = "CHDB_LIB_PATH" // another place

	clickHousePackage = "github.com/bulkhead-voip/bulkhead/internal/testenv/clickhousehost"
	clickHouseReady   = 30 * time.Second
)

// ClickHouseLibrary returns the path of the engine, or an error that says how
// to get it.
func ClickHouseLibrary() (string, error) {
	path := os.Getenv(clickHouseLibEnv)
	if path == "" {
		path = clickHouseLib
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("needs the ClickHouse engine: scripts/test-deps installs it, or name a libchdb.so in %s: %w", clickHouseLibEnv, err)
	}
	return path, nil
}

// ClickHouse starts a real ClickHouse server of the test's own with its data
// in a temporary folder. It ends with the test.
func ClickHouse(t testing.TB) *ClickHouseServer {
	t.Helper()
	return ClickHouseIn(t, t.TempDir())
}

// ClickHouseIn is ClickHouse with the data below dir.
func ClickHouseIn(t testing.TB, dir string) *ClickHouseServer {
	t.Helper()
	if _, err := ClickHouseLibrary(); err != nil {
		if RequireReal() {
			t.Fatalf("%v; BULKHEAD_REQUIRE_REAL=1", err)
		}
		t.Skip(err)
	}
	s, err := StartClickHouse(t.Context(), dir, ClickHouseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill() // the data is temporary
		if t.Failed() {
			t.Logf("clickhouse:\n%s", s.Log())
		}
	})
	return s
}

// ClickHouseOptions of a server. Its user "default" has no password, which the
// host itself needs, and may do everything.
type ClickHouseOptions struct {
	Users []ClickHouseUser // besides
}

// ClickHouseUser is a user who may do what Grants says, statements such as
// GRANT SELECT ON db.*.
type ClickHouseUser struct {
	Name, Password string
	Grants         []string
}

// ClickHouseServer is a ClickHouse server in a process of its own.
type ClickHouseServer struct {
	Native string // address of the native protocol, ip:port
	HTTP   string // address of the HTTP interface, ip:port

	dir, lib, host, config string

	log   *logBuffer
	cmd   *exec.Cmd
	stdin io.Closer
	done  chan struct{}
}

// StartClickHouse starts a server with its data below dir, on free loopback
// ports, and returns when it answers. It ends with Kill, and with the calling
// process at the latest.
func StartClickHouse(ctx context.Context, dir string, o ClickHouseOptions) (*ClickHouseServer, error) {
	lib, err := ClickHouseLibrary()
	if err != nil {
		return nil, err
	}
	s := &ClickHouseServer{dir: filepath.Join(dir, "clickhouse"), lib: lib, host: filepath.Join(dir, "clickhousehost"), log: &logBuffer{}}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("start clickhouse: %w", err)
	}
	if len(o.Users) > 0 {
		if s.config, err = writeClickHouseConfig(dir, o); err != nil {
			return nil, fmt.Errorf("start clickhouse: %w", err)
		}
	}
	// A program of its own: the engine takes over signals and memory, and the
	// race detector of a test binary does not live with that.
	build := exec.CommandContext(ctx, "go", "build", "-o", s.host, clickHousePackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the host of clickhouse: %w\n%s", err, out)
	}
	const tries = 3 // another process may take a free port first
	for range tries {
		if s.Native, s.HTTP, err = freePorts(); err != nil {
			return nil, fmt.Errorf("start clickhouse: %w", err)
		}
		if err = s.Start(ctx); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func writeClickHouseConfig(dir string, o ClickHouseOptions) (string, error) {
	var all bytes.Buffer
	user := func(u ClickHouseUser) {
		fmt.Fprintf(&all, "<%s><password>", u.Name)
		_ = xml.EscapeText(&all, []byte(u.Password)) // a Buffer takes everything
		all.WriteString("</password><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>")
		if len(u.Grants) > 0 {
			fmt.Fprintf(&all, "<grants><query>%s</query></grants>", strings.Join(u.Grants, "</query><query>"))
		}
		fmt.Fprintf(&all, "</%s>", u.Name)
	}
	user(ClickHouseUser{Name: "default"})
	for _, u := range o.Users {
		user(u)
	}
	users, config := filepath.Join(dir, "users.xml"), filepath.Join(dir, "config.xml")
	err := errors.Join(
		os.WriteFile(users, fmt.Appendf(nil, "<clickhouse><users>%s</users><profiles><default/></profiles><quotas><default/></quotas></clickhouse>",
			all.String()), 0o600),
		os.WriteFile(config, fmt.Appendf(nil, "<clickhouse><users_config>%s</users_config></clickhouse>", users), 0o600))
	return config, err
}

func freePorts() (a, b string, err error) {
	var addrs [2]string
	for i := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", err
		}
		defer l.Close()
		addrs[i] = l.Addr().String()
	}
	return addrs[0], addrs[1], nil
}

// Start starts the server again after Kill: same folder, same addresses. It
// returns when the server answers.
func (s *ClickHouseServer) Start(ctx context.Context) error {
	_, native, _ := net.SplitHostPort(s.Native)
	_, http, _ := net.SplitHostPort(s.HTTP)
	args := []string{s.lib, s.dir, native, http}
	if s.config != "" {
		args = append(args, s.config)
	}
	s.cmd = exec.Command(s.host, args...)
	s.cmd.Dir = s.dir
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := s.cmd.StdinPipe() // open as long as this process lives
	if err != nil {
		return fmt.Errorf("start clickhouse: %w", err)
	}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start clickhouse: %w", err)
	}
	s.stdin, s.done = stdin, make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		defer close(done)
		_ = cmd.Wait()
	}(s.cmd, s.done)
	return s.waitReady(ctx)
}

func (s *ClickHouseServer) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clickHouseReady)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if pings(ctx, client, s.HTTP) && accepts(s.Native) {
			return nil
		}
		select {
		case <-ctx.Done():
			s.Kill()
			return fmt.Errorf("clickhouse does not answer within %v:\n%s", clickHouseReady, s.Log())
		case <-s.done:
			return fmt.Errorf("clickhouse ended at its start: %v\n%s", s.cmd.ProcessState, s.Log())
		case <-tick.C:
		}
	}
}

func pings(ctx context.Context, client *http.Client, addr string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/ping", http.NoBody)
	if err != nil {
		return false
	}
	res, err := client.Do(req)
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

func accepts(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// Kill ends the server with SIGKILL, in the middle of whatever it does, and
// waits until it is gone.
func (s *ClickHouseServer) Kill() {
	_ = s.cmd.Process.Kill() // it may have ended already
	<-s.done
	s.stdin.Close()
}

// Signal sends a signal to the server: SIGSTOP and SIGCONT make it hang.
func (s *ClickHouseServer) Signal(sig os.Signal) error { return s.cmd.Process.Signal(sig) }

// Pid returns the server's process number, for measuring what it uses.
func (s *ClickHouseServer) Pid() string { return strconv.Itoa(s.cmd.Process.Pid) }

// Log returns what the server printed, the last of it if it was much.
func (s *ClickHouseServer) Log() string { return s.log.String() }

// logBuffer keeps the last of what was written to it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() > 1<<20 {
		l.b.Reset()
	}
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
