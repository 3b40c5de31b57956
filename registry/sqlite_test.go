package registry

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
)

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
