package cdrpipe

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// chServer is one real server for many tests, each with its own database.
type chServer struct {
	*testenv.ClickHouseServer
	databases atomic.Int64
}

func startClickHouse(t *testing.T) *chServer {
	return &chServer{ClickHouseServer: testenv.ClickHouse(t)}
}

// config is that of a new database.
func (s *chServer) config() ClickHouseConfig {
	c := DefaultClickHouseConfig()
	c.Addrs = []string{s.Native}
	c.Database = fmt.Sprintf("db%d", s.databases.Add(1))
	c.ExportLag = 0 // the test's clock does not step
	return c
}

func openClickHouse(t *testing.T, cfg ClickHouseConfig) *ClickHouse {
	t.Helper()
	c, err := OpenClickHouse(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestClickHouse(t *testing.T) {
	s := startClickHouse(t)
	testWarehouse(t, func(t *testing.T) Warehouse { return openClickHouse(t, s.config()) })
}

// TestClickHouseDDL lets the real engine's parser read what is made for one
// server and for a cluster.
func TestClickHouseDDL(t *testing.T) {
	s := startClickHouse(t)
	w := openClickHouse(t, s.config())
	for _, cluster := range []string{"", "cell1"} {
		cfg := s.config()
		cfg.Cluster, cfg.Records = cluster, 400*24*time.Hour
		ddl, err := ClickHouseDDL(&cfg)
		if err != nil {
			t.Fatal(err)
		}
		tables := 0
		for _, statement := range ddl {
			var formatted string
			if err := w.conn.QueryRow(t.Context(), "SELECT formatQuery({q:String})", named("q", statement)).Scan(&formatted); err != nil {
				t.Errorf("%s\n%v", statement, err)
			}
			if cluster != "" && !strings.Contains(formatted, "ON CLUSTER cell1") {
				t.Errorf("not on the cluster: %s", formatted)
			}
			if strings.HasPrefix(formatted, "CREATE TABLE") {
				tables++
				if replicated := strings.Contains(formatted, "ENGINE = Replicated"); replicated != (cluster != "") {
					t.Errorf("cluster %q: wrong engine: %s", cluster, formatted)
				}
			}
		}
		if tables != 5 {
			t.Errorf("%d tables, want 5", tables)
		}
	}
}

// TestClickHouseRetention changes how long things are kept, on tables that
// hold rows.
func TestClickHouseRetention(t *testing.T) {
	s := startClickHouse(t)
	cfg := s.config()
	ttl := func() string {
		w := openClickHouse(t, cfg)
		var cdrs, reports string
		if err := w.conn.QueryRow(t.Context(), "SELECT (SELECT create_table_query FROM system.tables WHERE database = {db:String} AND name = 'cdr'), (SELECT create_table_query FROM system.tables WHERE database = {db:String} AND name = 'report')",
			named("db", cfg.Database)).Scan(&cdrs, &reports); err != nil {
			t.Fatal(err)
		}
		return cdrs + "\n" + reports
	}
	count := func(part, in string, want int) {
		t.Helper()
		if n := strings.Count(in, part); n != want {
			t.Errorf("%q is there %d times, want %d:\n%s", part, n, want, in)
		}
	}
	count("toIntervalDay(7)", ttl(), 1) // raw events only
	old := fullRecord(1)
	old.Start = old.Start.AddDate(-3, 0, 0)
	recent := fullRecord(2)
	recent.Start = time.Now()
	timeless := fullRecord(3)
	timeless.Start = time.Time{}
	w := openClickHouse(t, cfg)
	insert(t, w, entry(old), entry(recent), entry(timeless))
	cfg.Records, cfg.Raw = 30*24*time.Hour, 0
	both := ttl()
	count("toIntervalDay(30)", both, 2)
	count("toIntervalDay(7)", both, 0)
	if err := w.conn.Exec(t.Context(), "OPTIMIZE TABLE "+w.table("cdr")+" FINAL"); err != nil {
		t.Fatal(err)
	}
	if rows := all(t, w); len(rows) != 2 {
		t.Errorf("%v are left, want %s and %s", legNames(rows), recent.Leg, timeless.Leg)
	}
	cfg.ReadOnly, cfg.Records = true, 0 // who only asks changes nothing
	count("toIntervalDay(30)", ttl(), 2)
	cfg.ReadOnly = false
	count("toIntervalDay", ttl(), 0)
}

// TestClickHouseUsers gives users the permissions that docs/cdr.md names. A
// writer's insert runs for long: an export of another user stops before it.
func TestClickHouseUsers(t *testing.T) {
	if _, err := testenv.ClickHouseLibrary(); err != nil && !testenv.RequireReal() {
		t.Skip(err)
	}
	doc, err := os.ReadFile("../docs/cdr.md")
	if err != nil {
		t.Fatal(err)
	}
	grants := map[string][]string{}
	for _, g := range regexp.MustCompile(`(?m)^    (GRANT .*) TO (\w+);`).FindAllStringSubmatch(string(doc), -1) {
		grants[g[2]] = append(grants[g[2]], g[1])
	}
	const password = "p4ss'\\<w&rd"
	s, err := testenv.StartClickHouse(t.Context(), t.TempDir(), testenv.ClickHouseOptions{Users: []testenv.ClickHouseUser{
		{Name: "writer", Password: password, Grants: grants["writer"]}, {Name: "reader", Password: password, Grants: grants["reader"]},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	cfg := DefaultClickHouseConfig()
	cfg.Addrs, cfg.User, cfg.Password, cfg.ExportLag, cfg.Records = []string{s.Native}, "writer", password, 0, 400*24*time.Hour
	w := openClickHouse(t, cfg)
	insert(t, w, entry(fullRecord(1)))
	cfg.User, cfg.ReadOnly = "reader", true
	r := openClickHouse(t, cfg)
	if _, err := r.KPIs(t.Context(), KPIQuery{}); err != nil {
		t.Error(err)
	}
	if rows, _ := exportAll(t, r, Export{Limit: 10}); len(rows) != 1 {
		t.Errorf("%d rows exported", len(rows))
	}
	if err := r.Insert(t.Context(), []cdr.Entry{entry(fullRecord(2))}); !errors.Is(err, bulkhead.Denied) {
		t.Errorf("the reader writes: %v, want bulkhead.Denied", err)
	}
	testSlowInsert(t, w, r)

	cfg.ReadOnly = false
	if _, err = OpenClickHouse(t.Context(), cfg); !errors.Is(err, bulkhead.Denied) || !strings.Contains(err.Error(), "grant") {
		t.Errorf("a reader that is to write: %v, want bulkhead.Denied and what to do", err)
	}
	cfg.Password = "wr0ng"
	if _, err = OpenClickHouse(t.Context(), cfg); !errors.Is(err, bulkhead.Denied) || errors.Is(err, bulkhead.Unavailable) ||
		!strings.Contains(err.Error(), "password-file") || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("wrong password: %v, want bulkhead.Denied without it, and what to do", err)
	}
}

func testSlowInsert(t *testing.T, w, r *ClickHouse) {
	slow := make(chan error, 1)
	go func() {
		slow <- w.conn.Exec(t.Context(), "INSERT INTO "+w.table("cdr")+" (day, id, reports, leg, kind, time_us) SELECT '2026-01-02', toFixedString('slow', 16), 1, 'slow', 'leg', 1 FROM numbers(1) WHERE NOT ignore(sleepEachRow(2))")
	}()
	const running = "SELECT count() FROM system.processes WHERE query_kind = 'Insert'"
	for n := uint64(0); n == 0; {
		if err := r.conn.QueryRow(t.Context(), running).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	insert(t, w, entry(fullRecord(3)))
	first, p := exportAll(t, r, Export{Limit: 10})
	select {
	case err := <-slow:
		t.Fatalf("the slow insert ended too early to show something: %v", err)
	default:
	}
	if d := cmp.Diff([]string{"leg-0001"}, legNames(first)); d != "" {
		t.Errorf("while an insert runs: %s", d)
	}
	if err := <-slow; err != nil {
		t.Fatal(err)
	}
	rest, _ := exportAll(t, r, Export{After: p, Limit: 10})
	if d := cmp.Diff([]string{"leg-0003", "slow"}, legNames(rest)); d != "" {
		t.Errorf("after it: %s", d)
	}
}

func TestParseClickHouseURL(t *testing.T) {
	c, err := ParseClickHouseURL("clickhouse://bob@ch1,ch2:9440/cdr_x?secure=true&cluster=cell1&records=400&raw=0")
	want := DefaultClickHouseConfig()
	want.Addrs, want.User, want.Database, want.TLS, want.Cluster = []string{"ch1:9000", "ch2:9440"}, "bob", "cdr_x", true, "cell1"
	want.Records, want.Raw = 400*24*time.Hour, 0
	if d := cmp.Diff(want, c); d != "" || err != nil {
		t.Error(d, err)
	}
	for _, bad := range []string{
		"", "clickhouse:", "http://x", "clickhouse://", "clickhouse://h/a;b", "clickhouse://h/?x=1", "clickhouse://h/?records=-1", "clickhouse://h/?cluster=a'b",
		"clickhouse://h/?secure=perhaps", "clickhouse://h:9000/db#x", "clickhouse://bob:s3cret@h", "clickhouse://bob:s3cret@h:x\x7f",
	} {
		if _, err := ParseClickHouseURL(bad); !errors.Is(err, bulkhead.Invalid) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v, want bulkhead.Invalid and no password", bad, err)
		}
	}
}

// BenchmarkClickHouse measures Insert, reading of other reports included.
func BenchmarkClickHouse(b *testing.B) {
	s := testenv.ClickHouse(b)
	cfg := DefaultClickHouseConfig()
	cfg.Addrs = []string{s.Native}
	w, err := OpenClickHouse(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	next := 0
	for _, size := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint("insert/", size), func(b *testing.B) {
			for range b.N {
				batch := make([]cdr.Entry, size)
				for i := range batch {
					batch[i] = entry(fullRecord(next))
					next++
				}
				if err := w.Insert(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(size)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
	b.Run("kpi", func(b *testing.B) {
		for b.Loop() {
			if _, err := w.KPIs(b.Context(), KPIQuery{By: Dimensions(), Bucket: time.Hour}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(next), "rows")
	})
}
