package registry

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
)

var _ Store = (*SQLite)(nil)

func TestSQLite(t *testing.T) {
	testStore(t, func(t *testing.T) func(*testing.T) Store {
		path := filepath.Join(t.TempDir(), "registry.db")
		return func(t *testing.T) Store {
			s, err := OpenSQLite(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() }) // some tests close it themselves
			return s
		}
	})
}

func TestSQLiteOpen(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenSQLite(t.Context(), filepath.Join(dir, "no", "folder.db")); !errors.Is(err, bulkhead.Unavailable) {
		t.Errorf("no folder: %v", err)
	}
	other := filepath.Join(dir, "other.txt")
	if err := os.WriteFile(other, []byte(strings.Repeat("not a database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSQLite(t.Context(), other); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("not a database: %v", err)
	}
	// Every character of a path is part of the path.
	odd := filepath.Join(dir, "a?b%41#c d.db")
	s := openSQLite(t, odd)
	commit(t, s, 0, frame())
	for _, suffix := range []string{"", "-wal"} {
		info, err := os.Stat(odd + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v: it holds secrets", info.Name(), info.Mode())
		}
	}
	var sync int
	if err := s.write.QueryRowContext(t.Context(), `PRAGMA synchronous`).Scan(&sync); err != nil || sync != 2 {
		t.Errorf("synchronous is %d, %v; want 2 (FULL)", sync, err)
	}
}

func TestSQLiteOpenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			s, err := OpenSQLite(t.Context(), path)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestSQLiteNewerTables(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	s := openSQLite(t, path)
	execute(t, s.write, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)`)
	if _, err := OpenSQLite(t.Context(), path); !errors.Is(err, bulkhead.Invalid) || !strings.Contains(err.Error(), "newer") {
		t.Errorf("tables of a newer version: %v", err)
	}
}

// TestSQLiteStrict: what this version does not know it must not lose.
func TestSQLiteStrict(t *testing.T) {
	for name, change := range map[string]string{
		"unknown field":     `UPDATE object SET json = '{"id":"cell1","colour":"red"}' WHERE id = 'cell1'`,
		"another id":        `UPDATE object SET json = '{"id":"cell2"}' WHERE id = 'cell1'`,
		"something follows": `UPDATE object SET json = '{"id":"cell1"} {}' WHERE id = 'cell1'`,
		"unknown kind":      `UPDATE object SET kind = 'queue' WHERE id = 'cell1'`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "registry.db")
			s := openSQLite(t, path)
			commit(t, s, 0, frame())
			execute(t, s.write, change)
			if again, err := OpenSQLite(t.Context(), path); err == nil {
				t.Errorf("opened: %v", again.Close())
			}
		})
	}
}

func execute(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func TestSQLiteLogAndState(t *testing.T) {
	s := newSQLite(t)
	commit(t, s, 0, frame())
	var states []bulkhead.State
	for i := range bulkhead.RevisionNumber(9) {
		commit(t, s, i+1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(int(i))}})
		states = append(states, head(t, s))
	}
	log, err := s.Log(t.Context(), 4, 3)
	if err != nil || len(log) != 3 || log[0].Number != 4 || log[2].Number != 6 {
		t.Fatalf("log from 4, 3 revisions: %v, %v", log, err)
	}
	if log, err := s.Log(t.Context(), 11, 3); err != nil || len(log) != 0 {
		t.Fatalf("log beyond the head: %v, %v", log, err)
	}
	for _, want := range states {
		got, err := s.State(t.Context(), want.Revision)
		if err != nil || got.Revision != want.Revision {
			t.Fatalf("state %d: %d, %v", want.Revision, got.Revision, err)
		}
		same(t, "replayed", got, want)
	}
	if _, err := s.State(t.Context(), 11); !errors.Is(err, bulkhead.NotFound) {
		t.Fatalf("state of a revision that is not there: %v", err)
	}
}

// TestSQLiteFarBehind: a handle that missed many revisions reads the objects.
func TestSQLiteFarBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	a, b := openSQLite(t, path), openSQLite(t, path)
	commit(t, a, 0, frame())
	head(t, b)
	for i := range bulkhead.RevisionNumber(replayLimit + 5) {
		commit(t, a, i+1, bulkhead.Change{Cells: []bulkhead.Cell{{ID: "cell1", MaxTenants: int(i) + 1}}})
	}
	same(t, "far behind", head(t, b), head(t, a))
}

const committerEnv = "BULKHEAD_TEST_COMMITTER"

// commitForever commits until it is killed, and says which revisions were
// acknowledged. Each one changes several objects, among them the cell, whose
// limit is 100 more than the revision's number.
func commitForever(path string) int {
	ctx := context.Background()
	s, err := OpenSQLite(ctx, path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		state, err := s.Head(ctx)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		n := int(state.Revision) + 1
		c := bulkhead.Change{Cells: []bulkhead.Cell{{ID: "cell1", MaxTenants: 100 + n}}}
		for i := range 8 {
			t := tenant(i)
			t.Name = fmt.Sprint(n)
			c.Tenants = append(c.Tenants, t)
		}
		if n%2 == 0 {
			c.Delete.Tenants = []bulkhead.TenantID{"t00007"}
		}
		r, err := s.Commit(ctx, state.Revision, bulkhead.Revision{Author: "child", Change: c})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println(r.Number)
	}
}

func TestSQLiteKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	watching := openSQLite(t, path)
	change := frame()
	change.Cells[0].MaxTenants = 101
	commit(t, watching, 0, change)
	acknowledged := bulkhead.RevisionNumber(1)
	for round := range 20 {
		acknowledged = killCommitter(t, path, 1+rand.IntN(12), acknowledged)
		s, err := OpenSQLite(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		got := head(t, s)
		// One more may be durable whose acknowledgement died with the child.
		if got.Revision < acknowledged || got.Revision > acknowledged+1 {
			t.Fatalf("round %d: revision %d was acknowledged and the head is %d", round, acknowledged, got.Revision)
		}
		acknowledged = got.Revision
		whole(t, got)
		replayed, err := s.State(t.Context(), got.Revision)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "objects and revisions", got, replayed)
		same(t, "the handle that was open all the time", head(t, watching), got)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// whole fails if only a part of the last revision is there.
func whole(t *testing.T, s bulkhead.State) {
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

// killCommitter runs a child that commits, kills it once it has acknowledged
// so many revisions, and returns the last one acknowledged.
func killCommitter(t *testing.T, path string, commits int, last bulkhead.RevisionNumber) bulkhead.RevisionNumber {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), committerEnv+"="+path)
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

// TestSQLiteManyTenants: a commit of one tenant among many reads no object back.
func TestSQLiteManyTenants(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 2,000 tenants")
	}
	s := newSQLite(t)
	commit(t, s, 0, example(2000))
	execute(t, s.write, `UPDATE object SET json = 'unreadable'`)
	changed := tenant(1234)
	changed.Name = "Changed"
	commit(t, s, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{changed}})
	if got := head(t, s).Tenants[changed.ID].Name; got != "Changed" {
		t.Fatalf("the tenant is called %q", got)
	}
}

func benchmarkSQLiteCommit(b *testing.B, tenants int) {
	s, err := OpenSQLite(b.Context(), filepath.Join(b.TempDir(), "registry.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	r, err := s.Commit(b.Context(), 0, bulkhead.Revision{Author: "b", Change: example(tenants)})
	for i := 0; b.Loop() && err == nil; i++ {
		changed := tenant(i % tenants)
		changed.Name = fmt.Sprint(i)
		r, err = s.Commit(b.Context(), r.Number, bulkhead.Revision{Author: "b", Change: bulkhead.Change{Tenants: []bulkhead.Tenant{changed}}})
	}
	if err != nil {
		b.Fatal(err)
	}
}

func BenchmarkSQLiteCommitOneOf1000(b *testing.B)  { benchmarkSQLiteCommit(b, 1000) }
func BenchmarkSQLiteCommitOneOf60000(b *testing.B) { benchmarkSQLiteCommit(b, 60000) }
