package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// notReadyOf returns what a process says of itself, or why it cannot be asked.
func notReadyOf(t *testing.T, admin string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/readyz", http.NoBody)
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

// TestWrongPasswordOfTheWarehouse: a ClickHouse that refuses the password is
// told from one that is away, and a mended password file is enough.
func TestWrongPasswordOfTheWarehouse(t *testing.T) {
	if _, err := testenv.ClickHouseLibrary(); err != nil && !testenv.RequireReal() {
		t.Skip(err)
	}
	server, err := testenv.StartClickHouse(t.Context(), t.TempDir(), testenv.ClickHouseOptions{Users: []testenv.ClickHouseUser{
		{Name: "writer", Password: "right", Grants: []string{"GRANT ALL ON *.*"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Kill() })
	password, admin := filepath.Join(t.TempDir(), "password"), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if err := os.WriteFile(password, []byte("wr0ng\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := spawn(t, "cdrpipe", "--data", filepath.Join(t.TempDir(), "data"), "--admin", admin,
		"--warehouse", "clickhouse://writer@"+server.Native+"/cdrs", "--warehouse-password-file", password)
	eventually(t, 30*time.Second, "the refusal in the log", func() string {
		log := pipe.log.String()
		if !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "the warehouse refuses us") || !strings.Contains(log, "--warehouse-password-file") {
			return "it says: " + log
		}
		return ""
	})
	if strings.Contains(pipe.log.String(), "wr0ng") {
		t.Error("the log holds the password")
	}
	if said := notReadyOf(t, admin); !strings.Contains(said, "CDR store") {
		t.Errorf("/readyz says nothing of the store: %s", said)
	}
	if err := os.WriteFile(password, []byte("right\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server.Kill() // the engine of the tests ends by itself after a wrong password
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitReady(t, admin, 30*time.Second)
}

// TestWrongPasswordOfRedis: both ends of the stream say what is wrong.
func TestWrongPasswordOfRedis(t *testing.T) {
	redis := testenv.StartRedis(t, "--requirepass", "right")
	dir := t.TempDir()
	password, nodes := filepath.Join(dir, "password"), filepath.Join(dir, "nodes.yaml")
	for file, text := range map[string]string{
		password: "wr0ng\n",
		nodes:    "cell: c1\nnodes: [{id: fs1, kind: freeswitch, address: \"127.0.0.1:1\", password: nobody-there}]\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }
	bridge, pipe := local(), local()
	through := []string{"--redis", "unix://" + redis.Socket, "--redis-password-file", password}
	procs := []*proc{
		spawn(t, append([]string{"eventbridge", "--nodes", nodes, "--data", filepath.Join(dir, "near"), "--listen", local(), "--admin", bridge}, through...)...),
		spawn(t, append([]string{"cdrpipe", "--data", filepath.Join(dir, "far"), "--cell", "c1", "--admin", pipe}, through...)...),
	}
	for i, admin := range []string{bridge, pipe} {
		eventually(t, 30*time.Second, "the refusal in /readyz", func() string {
			if said := notReadyOf(t, admin); !strings.Contains(said, "Redis server refuses us") || !strings.Contains(said, "--redis-password-file") {
				return said
			}
			return ""
		})
		if log := procs[i].log.String(); !strings.Contains(log, "until somebody mends it") || strings.Contains(log, "wr0ng") {
			t.Errorf("the log of %s:\n%s", procs[i].name, log)
		}
	}
}
