package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// freePort returns a TCP port that was free a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// startRedis starts a Redis on a TCP port, as a Sentinel needs it.
func startRedis(t *testing.T, port int, args ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	args = append(args, "--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--dir", dir, "--logfile", filepath.Join(dir, "log"))
	cmd := exec.Command(testenv.Need(t, "redis-server", "redis-server"), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have been killed
		_ = cmd.Wait()
		if log, err := os.ReadFile(filepath.Join(dir, "log")); err == nil && t.Failed() {
			t.Logf("redis on port %d:\n%s", port, log)
		}
	})
	c := redis.NewClient(&redis.Options{Addr: fmt.Sprintf("127.0.0.1:%d", port)})
	defer func() { _ = c.Close() }()
	eventually(t, "redis answers", func() bool { return c.Ping(t.Context()).Err() == nil })
	return cmd
}

// TestRedisSentinel kills the master: the replica that takes over has every
// acknowledged revision, and handles that were open go on with it.
func TestRedisSentinel(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a failover")
	}
	t.Parallel()
	one, two, watch := freePort(t), freePort(t), freePort(t)
	keep := []string{"--save", "", "--appendonly", "yes", "--appendfsync", "always"}
	master := startRedis(t, one, keep...)
	startRedis(t, two, append(keep, "--replicaof", fmt.Sprintf("127.0.0.1 %d", one), "--repl-diskless-sync-delay", "0")...)
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor registry 127.0.0.1 %d 1\nsentinel down-after-milliseconds registry 500\nsentinel failover-timeout registry 5000\n", one)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	startRedis(t, watch, conf, "--sentinel")
	o := RedisOptions{Client: redis.UniversalOptions{Addrs: []string{fmt.Sprintf("127.0.0.1:%d", watch)}, MasterName: "registry"}, Replicas: 1}
	s, err := OpenRedis(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	// Until the replica is there a revision is stored, but not acknowledged.
	eventually(t, "the replica confirms", func() bool {
		base := head(t, s).Revision
		_, err := s.Commit(t.Context(), base, bulkhead.Revision{Author: "a", Change: withLimit(base)})
		if err != nil && !errors.Is(err, bulkhead.Unavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	sentinel := redis.NewSentinelClient(&redis.Options{Addr: fmt.Sprintf("127.0.0.1:%d", watch)})
	defer func() { _ = sentinel.Close() }()
	eventually(t, "the Sentinel knows the replica", func() bool {
		list, err := sentinel.Replicas(t.Context(), "registry").Result()
		return err == nil && len(list) == 1 && list[0]["master-link-status"] == "ok"
	})
	for range 20 {
		base := head(t, s).Revision
		commit(t, s, base, withLimit(base))
	}
	want := head(t, s)
	if err := master.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var got bulkhead.State
	eventually(t, "the other is the master", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		got, err = s.Head(ctx)
		return err == nil
	})
	if got.Revision < want.Revision {
		t.Fatalf("revision %d was acknowledged, and after the failover the head is %d", want.Revision, got.Revision)
	}
	same(t, "after the failover", got, want)
	// There is no second replica now, which is said.
	var last error
	eventually(t, "a commit reaches the new master", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, last = s.Commit(ctx, want.Revision, bulkhead.Revision{Author: "a", Change: withLimit(want.Revision)})
		now, err := s.Head(ctx)
		return err == nil && now.Revision == want.Revision+1
	})
	if last == nil {
		t.Error("a revision that one server alone has was acknowledged")
	}
}

func withLimit(base bulkhead.RevisionNumber) bulkhead.Change {
	return bulkhead.Change{Cells: []bulkhead.Cell{{ID: "cell1", MaxTenants: 100 + int(base)}}}
}
