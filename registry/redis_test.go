package registry

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

var (
	_ Store   = (*Redis)(nil)
	_ Store   = (*SQLite)(nil)
	_ History = (*Redis)(nil)
	_ History = (*SQLite)(nil)
)

// redisServer is a redis-server that can be killed and started again.
type redisServer struct {
	socket string
	start  func() *exec.Cmd
	cmd    *exec.Cmd
}

// newRedisServer starts a server that keeps what it acknowledges.
func newRedisServer(t testing.TB, options ...string) *redisServer {
	t.Helper()
	bin := testenv.Need(t, "redis-server", "redis-server")
	dir, err := os.MkdirTemp("", "redis") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s := &redisServer{socket: filepath.Join(dir, "redis.sock")}
	args := append([]string{"--port", "0", "--unixsocket", s.socket, "--dir", dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always"}, options...)
	s.start = func() *exec.Cmd {
		cmd := exec.Command(bin, args...)
		cmd.Stdout, cmd.Stderr = &log, &log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatalf("start redis-server: %v", err)
		}
		return cmd
	}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("redis-server:\n%s", log.String())
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s.run(t)
	return s
}

// run starts the server and waits until it serves what is on disk.
func (s *redisServer) run(t testing.TB) {
	t.Helper()
	s.cmd = s.start()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !s.answers() {
		if time.Now().After(deadline) {
			t.Fatal("redis-server does not answer within 20 s")
		}
		<-tick.C
	}
}

func (s *redisServer) answers() bool {
	c, err := net.DialTimeout("unix", s.socket, time.Second)
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	b := make([]byte, 64)
	n, _ := c.Read(b)
	return strings.HasPrefix(string(b[:n]), "+PONG")
}

func (s *redisServer) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill() // it may have been killed
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

func (s *redisServer) options() RedisOptions {
	return RedisOptions{Client: redis.UniversalOptions{Addrs: []string{s.socket}}}
}

func (s *redisServer) open(t *testing.T) *Redis {
	t.Helper()
	r, err := OpenRedis(t.Context(), s.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() }) // some tests close it themselves
	return r
}

// clear empties the server.
func (s *redisServer) clear(t *testing.T) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.socket})
	if err := errors.Join(c.FlushAll(t.Context()).Err(), c.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestRedis(t *testing.T) {
	server := newRedisServer(t)
	testStore(t, func(t *testing.T) func(*testing.T) Store {
		server.clear(t)
		return func(t *testing.T) Store { return server.open(t) }
	})
}

func TestRedisOpen(t *testing.T) {
	if _, err := OpenRedis(t.Context(), RedisOptions{Client: redis.UniversalOptions{Addrs: []string{filepath.Join(t.TempDir(), "none.sock")}}}); !errors.Is(err, bulkhead.Unavailable) {
		t.Errorf("no server: %v", err)
	}
	late := newRedisServer(t)
	late.kill()
	o := late.options()
	o.Lazy = true
	lazy, err := OpenRedis(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lazy.Head(t.Context()); !errors.Is(err, bulkhead.Unavailable) {
		t.Errorf("a lazy one of a dead server: %v", err)
	}
	late.run(t)
	commit(t, lazy, 0, frame())
	if err := lazy.Close(); err != nil {
		t.Error(err)
	}
	server := newRedisServer(t, "--appendfsync", "everysec")
	o = server.options()
	o.Lazy = true
	if _, err := OpenRedis(t.Context(), o); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("a lazy one of a server that can lose revisions: %v", err)
	}
	if _, err := OpenRedis(t.Context(), server.options()); !errors.Is(err, bulkhead.Invalid) || !strings.Contains(err.Error(), "appendfsync everysec") {
		t.Errorf("a server that can lose revisions: %v", err)
	}
	o = server.options()
	o.Relaxed, o.Name = true, "other"
	s, err := OpenRedis(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, 0, frame())
	keys, err := s.client.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) != 3 {
		t.Errorf("keys %v, %v", keys, err)
	}
	for _, k := range keys {
		if !strings.HasPrefix(k, "{other}:") {
			t.Errorf("the key %q has another hash tag", k)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestRedisStrict: what this version does not know it must not lose, and a
// key of somebody else must not make half a commit.
func TestRedisStrict(t *testing.T) {
	server := newRedisServer(t)
	for name, spoil := range map[string]func(context.Context, *Redis) error{
		"unknown field": func(ctx context.Context, s *Redis) error {
			return s.client.HSet(ctx, s.key("objects"), "cell/cell1", `{"id":"cell1","colour":"red"}`).Err()
		},
		"another id": func(ctx context.Context, s *Redis) error {
			return s.client.HSet(ctx, s.key("objects"), "cell/cell1", `{"id":"cell2"}`).Err()
		},
		"unknown kind": func(ctx context.Context, s *Redis) error {
			return s.client.HSet(ctx, s.key("objects"), "queue/q", `{"id":"q"}`).Err()
		},
		"no number": func(ctx context.Context, s *Redis) error { return s.client.Set(ctx, s.key("head"), "x", 0).Err() },
		"a type": func(ctx context.Context, s *Redis) error {
			return errors.Join(s.client.Del(ctx, s.key("objects")).Err(), s.client.Set(ctx, s.key("objects"), "x", 0).Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			server.clear(t)
			s := server.open(t)
			commit(t, s, 0, frame())
			if err := spoil(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if again, err := OpenRedis(t.Context(), server.options()); err == nil {
				t.Errorf("opened: %v", again.Close())
			}
			if name != "a type" {
				return
			}
			if _, err := s.Commit(t.Context(), 1, bulkhead.Revision{Author: "a", Change: example(1)}); !errors.Is(err, bulkhead.Unavailable) {
				t.Errorf("a commit into somebody else's key: %v", err)
			}
			if n := s.client.HLen(t.Context(), s.key("revisions")).Val(); n != 1 {
				t.Errorf("%d revisions are stored", n)
			}
		})
	}
}

// TestRedisWeakLater: a server that does not keep what it acknowledges is
// noticed when a connection is made to it, not only at the start.
func TestRedisWeakLater(t *testing.T) {
	server := newRedisServer(t)
	s := server.open(t)
	commit(t, s, 0, frame())
	by := redis.NewClient(&redis.Options{Addr: server.socket})
	defer func() { _ = by.Close() }()
	set := func(appendonly string) { // as another server would have it
		t.Helper()
		if err := errors.Join(by.ConfigSet(t.Context(), "appendonly", appendonly).Err(), by.Do(t.Context(), "client", "kill", "type", "normal", "skipme", "yes").Err()); err != nil {
			t.Fatal(err)
		}
	}
	set("no")
	var err error
	eventually(t, "the weak server is refused", func() bool {
		_, err = s.Head(t.Context())
		return err != nil && strings.Contains(err.Error(), "appendonly no")
	})
	if !errors.Is(err, bulkhead.Unavailable) || errors.Is(err, bulkhead.Invalid) {
		t.Errorf("it is refused with %v", err)
	}
	if _, err := s.Commit(t.Context(), 1, bulkhead.Revision{Author: "a", Change: example(1)}); !errors.Is(err, bulkhead.Unavailable) {
		t.Errorf("a commit to a server that may lose it: %v", err)
	}
	set("yes")
	eventually(t, "it is in order again", func() bool { _, err = s.Head(t.Context()); return err == nil })
}

// TestRedisReplicas: what no replica has is not acknowledged, tokens and the
// audit log like revisions.
func TestRedisReplicas(t *testing.T) {
	server := newRedisServer(t)
	plain := server.open(t)
	secret, tok, err := plain.Tokens().Create(t.Context(), Token{Scope: ScopeAdmin})
	if err != nil {
		t.Fatal(err)
	}
	o := server.options()
	o.Replicas = 1 // there is none
	s, err := OpenRedis(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_, _, created := s.Tokens().Create(t.Context(), Token{Scope: ScopeAdmin})
	for what, err := range map[string]error{
		"a token": created, "a revocation": s.Tokens().Revoke(t.Context(), tok.ID),
		"an audit entry": s.Audit().Append(t.Context(), AuditEntry{Token: tok.ID, Method: "PUT", Path: "/v1/x", Status: 200}),
	} {
		if !errors.Is(err, bulkhead.Unavailable) || !strings.Contains(err.Error(), "0 of 1 replicas") {
			t.Errorf("%s that one server alone has: %v", what, err)
		}
	}
	if _, err := plain.Tokens().Authenticate(t.Context(), secret); !errors.Is(err, ErrRevoked) {
		t.Errorf("the revocation was not stored: %v", err)
	}
	if err := s.Tokens().Revoke(t.Context(), "aaaaaaaaaa"); !errors.Is(err, bulkhead.NotFound) {
		t.Errorf("a token that is not there: %v", err)
	}
}

// TestRedisSentAgain: a commit whose answer got lost is not a conflict with itself.
func TestRedisSentAgain(t *testing.T) {
	server := newRedisServer(t)
	s := server.open(t)
	commit(t, s, 0, frame())
	lost := &loseAnswer{}
	s.client.AddHook(lost)
	lost.arm = true
	r := commit(t, s, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(1)}})
	if r.Number != 2 || lost.sent != 2 {
		t.Errorf("revision %d after %d tries", r.Number, lost.sent)
	}
	if got := head(t, server.open(t)); got.Revision != 2 {
		t.Errorf("the head is revision %d", got.Revision)
	}
}

// loseAnswer sends a pipeline twice, as the client does when the connection
// breaks before the answer.
type loseAnswer struct {
	arm  bool
	sent int
}

func (h *loseAnswer) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (h *loseAnswer) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (h *loseAnswer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if h.arm {
			h.arm = false
			h.sent++
			if err := next(ctx, cmds); err != nil {
				return err
			}
		}
		h.sent++
		return next(ctx, cmds)
	}
}

// TestRedisFork: the store lost its last revision, and another took its number.
func TestRedisFork(t *testing.T) {
	server := newRedisServer(t)
	a, b := server.open(t), server.open(t)
	commit(t, a, 0, frame())
	one := head(t, a)
	commit(t, a, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(1)}})
	two := head(t, a)
	head(t, b)
	// What a failover to a replica that is one revision behind does.
	ctx := t.Context()
	m := mark{1, lineOf(&must(t)(a.Log(ctx, 1, 1))[0])}
	if err := errors.Join(
		a.client.Set(ctx, a.key("head"), m.text(), 0).Err(),
		a.client.HDel(ctx, a.key("revisions"), "2").Err(),
		a.client.HDel(ctx, a.key("objects"), "tenant/t00001").Err(),
	); err != nil {
		t.Fatal(err)
	}
	same(t, "the handle that saw revision 2", head(t, b), one)
	if _, err := a.Watch(within(t), 2); !errors.Is(err, bulkhead.Conflict) {
		t.Errorf("watch after a lost revision: %v", err)
	}
	c := server.open(t)
	commit(t, c, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(2)}})
	if got := head(t, a); got.Tenants["t00002"] == nil || got.Tenants["t00001"] != nil {
		t.Errorf("the other revision %d is not seen", two.Revision)
	}
	commit(t, a, 2, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(1)}})
	same(t, "in the end", head(t, b), head(t, c))
}

func must(t *testing.T) func([]bulkhead.Revision, error) []bulkhead.Revision {
	return func(r []bulkhead.Revision, err error) []bulkhead.Revision {
		t.Helper()
		if err != nil || len(r) == 0 {
			t.Fatalf("%d revisions, %v", len(r), err)
		}
		return r
	}
}
