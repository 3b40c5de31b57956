package cdrpipe

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

func openTemp(t *testing.T) *SQLite { return openAt(t, filepath.Join(t.TempDir(), "cdr.db")) }

func openAt(t *testing.T, path string) *SQLite {
	t.Helper()
	s, err := OpenSQLite(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSQLite(t *testing.T) {
	testWarehouse(t, func(t *testing.T) Warehouse { return openTemp(t) })
}

func TestSQLiteKeepsItsRows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a folder with % ? # and \u00e9", "x")
	if _, err := OpenSQLite(t.Context(), path); !errors.Is(err, bulkhead.Unavailable) {
		t.Errorf("folder missing: %v, want bulkhead.Unavailable", err)
	}
	path = filepath.Join(t.TempDir(), "cdr % ? # \u00e9.db")
	first := openAt(t, path)
	insert(t, first, entry(fullRecord(1)))
	second := openAt(t, path) // as another process does while the first lives
	insert(t, second, entry(fullRecord(2)))
	if d := cmp.Diff(all(t, first), all(t, second)); d != "" || len(all(t, first)) != 2 {
		t.Errorf("two openings differ: %s", d)
	}
	if mode := pragma(t, first, "journal_mode"); mode != "wal" {
		t.Errorf("journal_mode is %s", mode)
	}
	if full := pragma(t, first, "synchronous"); full != "2" {
		t.Errorf("synchronous is %s, want 2 (FULL)", full)
	}
}

func pragma(t *testing.T, s *SQLite, name string) (value string) {
	t.Helper()
	if err := s.write.QueryRowContext(t.Context(), "PRAGMA "+name).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

// TestSQLiteUsesIndexes guards the questions against reading the whole table.
func TestSQLiteUsesIndexes(t *testing.T) {
	s := openTemp(t)
	for question, values := range map[string][]any{
		"SELECT * FROM minute WHERE minute >= ?":                                                             {int64(0)},
		"SELECT kind FROM cdr WHERE time_us >= ? AND time_us < ?":                                            {int64(0), int64(1)},
		"SELECT id, " + columns + " FROM cdr WHERE tenant = ? AND time_us >= ? ORDER BY time_us, id LIMIT 5": {"t", int64(1)},
		"SELECT id, " + columns + " FROM cdr WHERE call = ? ORDER BY time_us, id LIMIT 5":                    {"c"},
		"SELECT id, " + columns + " FROM cdr WHERE (time_us, id) > (?, ?) ORDER BY time_us, id LIMIT 5":      {int64(1), "x"},
	} {
		rows, err := s.read.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+question, values...)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := collect(rows, func(scan func(...any) error) (string, error) {
			var a, b, c int
			var detail string
			err := scan(&a, &b, &c, &detail)
			return detail, err
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(plan) == 0 || len(plan[0]) < 10 || plan[0][:7] != "SEARCH " {
			t.Errorf("%s\nplan: %q", question, plan)
		}
		t.Log(plan)
	}
}

func BenchmarkSQLite(b *testing.B) {
	s, err := OpenSQLite(b.Context(), filepath.Join(b.TempDir(), "cdr.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	next := 0
	b.Run("insert", func(b *testing.B) {
		for range b.N {
			batch := make([]cdr.Entry, 1000)
			for i := range batch {
				batch[i] = entry(fullRecord(next))
				next++
			}
			if err := s.Insert(b.Context(), batch); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(1000*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	})
	b.Run("summary", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Summary(b.Context(), time.Time{}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(next), "rows")
	})
}
