package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// callRecord is an answered leg of a minute, n minutes ago.
func callRecord(n int) cdr.Entry {
	leg := fmt.Sprintf("leg-%02d", n)
	start := time.Now().UTC().Truncate(time.Microsecond).Add(-time.Duration(n) * time.Minute)
	return cdr.Entry{Record: &cdr.Record{
		Schema: 1, ID: cdr.NewID("c1", "fs1", leg), Kind: cdr.Leg, Source: cdr.SourceESL, Cell: "c1", Node: "fs1", Pool: "p1",
		Tenant: bulkhead.TenantID(fmt.Sprint("t", n%2)), Leg: leg, Call: leg, Caller: "=cmd\x1b[2J", Callee: "+15551234",
		Start: start, Ring: start.Add(time.Second), Answer: start.Add(2 * time.Second), End: start.Add(62 * time.Second), SIPCode: 200, Cause: "NORMAL_CLEARING",
	}}
}

// cdrTool runs a cdr command line in this process.
func cdrTool(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	code = execute(t.Context(), append([]string{"cdr"}, args...), &out, &err)
	return out.String(), err.String(), code
}

// cdrStores runs a test over both stores; where are the flags that name one.
func cdrStores(t *testing.T, test func(t *testing.T, store cdrpipe.Warehouse, where []string)) {
	t.Run("sqlite", func(t *testing.T) {
		dir := t.TempDir()
		s, err := cdrpipe.OpenSQLite(t.Context(), dataDir(dir).cdrs())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		test(t, s, []string{"--data", dir})
	})
	t.Run("clickhouse", func(t *testing.T) {
		server := testenv.ClickHouse(t)
		f := warehouseFlags{Warehouse: "clickhouse://" + server.Native + "/cdrs"}
		cfg, err := f.clickHouse()
		if err != nil {
			t.Fatal(err)
		}
		s, err := cdrpipe.OpenClickHouse(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		test(t, s, []string{"--warehouse", f.Warehouse})
	})
}

func TestCDRTools(t *testing.T) {
	cdrStores(t, func(t *testing.T, store cdrpipe.Warehouse, where []string) {
		run := func(args ...string) string {
			t.Helper()
			out, stderr, code := cdrTool(t, append(args, where...)...)
			if code != exitOK || strings.ContainsAny(out, "\x1b") {
				t.Fatalf("cdr %v: exit %d, %s\n%q", args, code, stderr, out)
			}
			return out
		}
		withRaw := callRecord(3)
		withRaw.Raw = new(cdr.Packer).Pack([]byte("Event-Name: CHANNEL_HANGUP_COMPLETE\r\nCaller: \x1b[2J"))
		err := store.Insert(t.Context(), []cdr.Entry{withRaw, callRecord(2), callRecord(90), callRecord(3000)})
		if err != nil {
			t.Fatal(err)
		}
		if out := run(); strings.Count(out, "\n") != 4 || !strings.Contains(out, "=cmd?[2J") {
			t.Errorf("search:\n%s", out)
		}
		if out := run("--json", "--tenant", "t1", "--since", "1h"); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"leg":"leg-03"`) {
			t.Errorf("search for t1:\n%s", out)
		}
		out := run("kpi", "--by", "tenant,node", "--since", "1h")
		if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 3 || strings.Join(strings.Fields(lines[1]), " ") != "t0 fs1 1 100.0 100.0 0.0 100.0 100.0 60.0 1.000 1.000 1.0 0" {
			t.Errorf("kpi:\n%s", out)
		}
		if out := run("kpi", "--json", "--by", "none", "--since", "100h"); !strings.Contains(out, `"attempts":4,"answered":4`) {
			t.Errorf("kpi: %s", out)
		}
		if out := run("raw", withRaw.Record.ID.String()); out != "Event-Name: CHANNEL_HANGUP_COMPLETE\nCaller: ?[2J\n" {
			t.Errorf("raw: %q", out)
		}
		if _, stderr, code := cdrTool(t, append([]string{"raw", callRecord(2).Record.ID.String()}, where...)...); code != exitFailure || !strings.Contains(stderr, "is kept") {
			t.Errorf("raw of a record without: exit %d, %s", code, stderr)
		}
		testExportTool(t, store, where)
	})
}

// testExportTool exports as a billing system does: again and again from where
// it was, with the cursor kept by the tool or by itself.
func testExportTool(t *testing.T, store cdrpipe.Warehouse, where []string) {
	file := filepath.Join(t.TempDir(), "cursor")
	export := func(args ...string) (string, string) {
		t.Helper()
		out, stderr, code := cdrTool(t, append(append([]string{"export"}, args...), where...)...)
		if code != exitOK {
			t.Fatalf("cdr export %v: exit %d, %s", args, code, stderr)
		}
		_, cursor, _ := strings.Cut(strings.TrimSpace(stderr), "next cursor: ")
		return out, cursor
	}
	lines := func(want int, args ...string) {
		t.Helper()
		eventually(t, 10*time.Second, fmt.Sprintf("%d lines of an export", want), func() string {
			if out, _ := export(args...); strings.Count(out, "\n") != want {
				return fmt.Sprintf("%q", out)
			}
			return ""
		})
	}
	lines(4)
	first, cursor := export("--cursor-file", file, "--limit", "3", "--format", "csv")
	if strings.Count(first, "\n") != 4 || !strings.Contains(first, ",'=cmd?[2J,+15551234,") {
		t.Errorf("first export:\n%s", first)
	}
	kept, err := os.ReadFile(file)
	if err != nil || strings.TrimSpace(string(kept)) != cursor || cursor == "" {
		t.Errorf("cursor file holds %q, %v, want %q", kept, err, cursor)
	}
	if rest, _ := export("--after", cursor); strings.Count(rest, "\n") != 1 || strings.Contains(first, strings.Split(rest, `"`)[5]) {
		t.Errorf("rest: %s", rest)
	}
	export("--cursor-file", file)
	if err := store.Insert(t.Context(), []cdr.Entry{callRecord(50)}); err != nil { // an old call that comes late
		t.Fatal(err)
	}
	var late string
	eventually(t, 10*time.Second, "the late record", func() string {
		late, _ = export("--cursor-file", file)
		return map[bool]string{true: "nothing yet"}[late == ""]
	})
	if strings.Count(late, "\n") != 1 || !strings.Contains(late, "leg-50") {
		t.Errorf("late: %s", late)
	}
	if _, stderr, code := cdrTool(t, append([]string{"export", "--after", "5-00"}, where...)...); code != exitFailure || !strings.Contains(stderr, "not one of ours") {
		t.Errorf("a bad cursor: exit %d, %s", code, stderr)
	}
}

func TestCDRFollow(t *testing.T) {
	cdrStores(t, func(t *testing.T, store cdrpipe.Warehouse, where []string) {
		ctx, cancel := context.WithCancel(t.Context())
		out, errOut := &lockedBuffer{}, &lockedBuffer{}
		done := make(chan int, 1)
		go func() { done <- execute(ctx, append([]string{"cdr", "-f", "--since", "1h"}, where...), out, errOut) }()
		defer func() {
			cancel()
			if code := <-done; code != exitOK {
				t.Errorf("exit %d: %s", code, errOut)
			}
		}()
		eventually(t, 10*time.Second, "the header", func() string {
			return map[bool]string{true: "nothing: " + errOut.String()}[out.String() == ""]
		})
		if err := store.Insert(t.Context(), []cdr.Entry{callRecord(7)}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "a line", func() string {
			if s := out.String(); strings.Count(s, "\n") != 2 || !strings.Contains(s, "NORMAL_CLEARING") {
				return fmt.Sprintf("%q", s)
			}
			return ""
		})
	})
}

func TestWarehouseFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("of the file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(warehousePassword, "of the environment")
	f := warehouseFlags{Warehouse: "clickhouse://bob@h/db"}
	if c, err := f.clickHouse(); err != nil || c.Password != "of the environment" {
		t.Errorf("%+v, %v", c, err)
	}
	f.WarehousePasswordFile = file
	if c, err := f.clickHouse(); err != nil || c.Password != "of the file" {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range []string{"mysql://x", "sqlite:x", "", "clickhouse://a:s3cret@h"} {
		_, stderr, code := cdrTool(t, "--warehouse", bad)
		if code != exitFailure || strings.Contains(stderr, "s3cret") {
			t.Errorf("%q: exit %d, %s", bad, code, stderr)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, stderr, code := cdrTool(t, "--warehouse", "clickhouse://bob@"+l.Addr().String()); code != exitFailure || strings.Contains(stderr, "environment") {
		t.Errorf("nobody listens: exit %d, %s", code, stderr)
	}
}

// TestCdrpipeIntoClickHouse runs the real service with a ClickHouse behind
// it, which is killed in between: every record arrives, and the spool is free.
func TestCdrpipeIntoClickHouse(t *testing.T) {
	if testing.Short() {
		t.Skip("starts real processes")
	}
	dir := t.TempDir()
	stream, err := spool.Open(dataDir(dir).spool(), spool.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	put := func(from, to int) {
		t.Helper()
		for n := from; n < to; n++ {
			b, err := cdr.Encode(callRecord(n))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Append(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
	}
	server := testenv.ClickHouse(t)
	admin := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	where := []string{"--warehouse", "clickhouse://" + server.Native + "/cdrs?records=400"}
	spawn(t, append([]string{"cdrpipe", "--data", dir, "--admin", admin}, where...)...)
	waitReady(t, admin, 30*time.Second)
	count := func(want int) {
		t.Helper()
		eventually(t, 60*time.Second, fmt.Sprintf("%d records", want), func() string {
			out, stderr, code := cdrTool(t, append([]string{"--json", "--since", "100h"}, where...)...)
			if n := strings.Count(out, "\n"); code != exitOK || n != want {
				return fmt.Sprintf("%d of them, exit %d, %s", n, code, stderr)
			}
			return ""
		})
	}
	put(0, 100)
	count(100)
	server.Kill()
	put(50, 200)
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	count(200)
	eventually(t, 10*time.Second, "everything acknowledged", func() string {
		s, err := spool.Look(dataDir(dir).spool())
		if err != nil {
			return err.Error()
		}
		for _, r := range s.Readers {
			if !r.Oldest.IsZero() {
				return fmt.Sprintf("%+v", r)
			}
		}
		return ""
	})
}
