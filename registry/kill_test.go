package registry

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	// committerEnv makes the test binary a committer to the store it names.
	committerEnv = "BULKHEAD_TEST_COMMITTER"
	// killsEnv is how often each kill test kills; 20 when it is not set.
	killsEnv = "BULKHEAD_KILLS"
)

func kills(t *testing.T) int {
	t.Helper()
	text := os.Getenv(killsEnv)
	if text == "" {
		return 20
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", killsEnv, err)
	}
	return n
}

// history is a store whose past can be looked at.
type history interface {
	Store
	History
	Close() error
}

// openNamed opens redis:SOCKET or sqlite:PATH.
func openNamed(ctx context.Context, name string) (history, error) {
	kind, path, _ := strings.Cut(name, ":")
	if kind == "redis" {
		return OpenRedis(ctx, RedisOptions{Client: redis.UniversalOptions{Addrs: []string{path}}})
	}
	return OpenSQLite(ctx, path)
}

// nextChange is what revision n changes: several objects, among them the
// cell, whose limit is 100 more than n.
func nextChange(n int) bulkhead.Change {
	c := bulkhead.Change{Cells: []bulkhead.Cell{{ID: "cell1", MaxTenants: 100 + n}}}
	for i := range 8 {
		t := tenant(i)
		t.Name = fmt.Sprint(n)
		c.Tenants = append(c.Tenants, t)
	}
	if n%2 == 0 {
		c.Delete.Tenants = []bulkhead.TenantID{"t00007"}
	}
	return c
}

// wholeRevision fails if only a part of the last revision is there.
func wholeRevision(t *testing.T, s bulkhead.State) {
	t.Helper()
	n := int(s.Revision)
	if got := s.Cells["cell1"].MaxTenants - 100; got != n {
		t.Fatalf("revision %d with the cell of revision %d", n, got)
	}
	if n > 1 && len(s.Tenants) != 8-(n+1)%2 {
		t.Fatalf("revision %d with %d tenants", n, len(s.Tenants))
	}
	for id, tn := range s.Tenants {
		if tn.Name != fmt.Sprint(n) {
			t.Fatalf("revision %d with tenant %s of revision %s", n, id, tn.Name)
		}
	}
}

// commitForever commits until it is killed, and prints which revisions were acknowledged.
func commitForever(name string) int {
	ctx := context.Background()
	s, err := openNamed(ctx, name)
	for err == nil {
		var state bulkhead.State
		if state, err = s.Head(ctx); err != nil {
			break
		}
		var r bulkhead.Revision
		r, err = s.Commit(ctx, state.Revision, bulkhead.Revision{Author: "child", Change: nextChange(int(state.Revision) + 1)})
		if err == nil {
			fmt.Println(r.Number)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// first makes the revision that commitForever goes on from.
func first(t *testing.T, s Store) {
	t.Helper()
	c := frame()
	c.Cells[0].MaxTenants = 101
	commit(t, s, 0, c)
}

// afterKill checks what a kill left, and returns the head.
func afterKill(t *testing.T, s history, acknowledged bulkhead.RevisionNumber) bulkhead.State {
	t.Helper()
	got := head(t, s)
	// One more may be durable whose acknowledgement died.
	if got.Revision < acknowledged || got.Revision > acknowledged+1 {
		t.Fatalf("revision %d was acknowledged and the head is %d", acknowledged, got.Revision)
	}
	wholeRevision(t, got)
	replayed, err := s.State(t.Context(), got.Revision)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "objects and revisions", got, replayed)
	return got
}

func TestKilledCommitter(t *testing.T) {
	for name, store := range map[string]func(*testing.T) string{
		"sqlite": func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "registry.db") },
		"redis":  func(t *testing.T) string { return "redis:" + newRedisServer(t).socket },
	} {
		t.Run(name, func(t *testing.T) { testKilledCommitter(t, store(t)) })
	}
}

func testKilledCommitter(t *testing.T, name string) {
	watching, err := openNamed(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watching.Close() }()
	first(t, watching)
	acknowledged := bulkhead.RevisionNumber(1)
	for range kills(t) {
		acknowledged = killCommitter(t, name, 1+rand.IntN(12), acknowledged)
		s, err := openNamed(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		got := afterKill(t, s, acknowledged)
		acknowledged = got.Revision
		same(t, "the handle that was open all the time", head(t, watching), got)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killCommitter runs a child that commits, kills it once it has acknowledged
// so many revisions, and returns the last one acknowledged.
func killCommitter(t *testing.T, name string, commits int, last bulkhead.RevisionNumber) bulkhead.RevisionNumber {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), committerEnv+"="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for i := 0; lines.Scan(); i++ {
		n, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err != nil {
			t.Fatalf("the child said %q", lines.Text())
		}
		last = bulkhead.RevisionNumber(n)
		if i+1 == commits {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
		t.Fatalf("the child ended by itself: %v", err)
	}
	return last
}

// TestKilledRedis kills redis-server while commits are under way.
func TestKilledRedis(t *testing.T) {
	server := newRedisServer(t)
	watching := server.open(t)
	first(t, watching)
	acknowledged := bulkhead.RevisionNumber(1)
	for range kills(t) {
		acknowledged = commitUntilDead(t, server, acknowledged)
		server.run(t)
		s := server.open(t)
		got := afterKill(t, s, acknowledged)
		acknowledged = got.Revision
		same(t, "the handle that was open all the time", head(t, watching), got)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// commitUntilDead commits, kills the server at some moment, and returns the
// last revision that was acknowledged.
func commitUntilDead(t *testing.T, server *redisServer, base bulkhead.RevisionNumber) bulkhead.RevisionNumber {
	t.Helper()
	s := server.open(t)
	defer func() { _ = s.Close() }()
	acknowledged := make(chan bulkhead.RevisionNumber)
	go func() {
		defer close(acknowledged)
		for n := base; ; n++ {
			_, err := s.Commit(t.Context(), n, bulkhead.Revision{Author: "test", Change: nextChange(int(n) + 1)})
			if err != nil {
				if !errors.Is(err, bulkhead.Unavailable) {
					t.Error(err)
				}
				return
			}
			acknowledged <- n + 1
		}
	}()
	wait := 1 + rand.IntN(8)
	for n := range acknowledged {
		base = n
		if wait--; wait == 0 {
			// Somewhere in the commits that follow.
			cmd := server.cmd
			time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		}
	}
	server.kill()
	return base
}
