package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// redisCell is an event bridge on one host and a cdrpipe on another, with a
// Redis between them. The test is the SBC.
type redisCell struct {
	t              *testing.T
	redis          *testenv.RedisServer
	near, far      string // data folders of the two hosts
	events         string
	bridge, pipe   *proc
	bridgeA, pipeA string // their admin addresses
	posted         int
}

func startRedisCell(t *testing.T) *redisCell {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real processes")
	}
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }
	c := &redisCell{
		t: t, redis: testenv.StartRedis(t, "--requirepass", "correct horse"), near: filepath.Join(t.TempDir(), "near"), far: filepath.Join(t.TempDir(), "far"),
		events: local(), bridgeA: local(), pipeA: local(),
	}
	yaml, password := filepath.Join(t.TempDir(), "cell.yaml"), filepath.Join(t.TempDir(), "password")
	for file, text := range map[string]string{
		yaml:     "cells: [{id: c1}]\nsbcs: [{id: sbc1, cell: c1, sip: \"127.0.0.1:5060\"}]\n",
		password: "correct horse\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, "apply", "--data", c.near, "-f", yaml, "-m", "test")
	through := []string{"--redis", "unix://" + c.redis.Socket, "--redis-password-file", password}
	c.bridge = spawn(t, append([]string{"eventbridge", "--data", c.near, "--listen", c.events, "--admin", c.bridgeA}, through...)...)
	c.pipe = spawn(t, append([]string{"cdrpipe", "--data", c.far, "--cell", "c1", "--admin", c.pipeA}, through...)...)
	waitReady(t, c.bridgeA, 30*time.Second)
	waitReady(t, c.pipeA, 30*time.Second)
	return c
}

// post reports n refused calls as an SBC does, until they are taken.
func (c *redisCell) post(n int) {
	c.t.Helper()
	var body bytes.Buffer
	for range n {
		fmt.Fprintf(&body, `{"kind":"refused","sbc":"sbc1","callid":"call-%d","cseq":"1","branch":"z9hG4bK%d","from":"15550100","to":"100","domain":"none.example","src":"127.0.0.9","tenant":"","node":"","code":"404","reason":"unknown domain","time":"%d","rev":"1"}`+"\n",
			c.posted, c.posted, time.Now().UnixMicro())
		c.posted++
	}
	token, err := dataDir(c.near).secret(sbcToken)
	if err != nil {
		c.t.Fatal(err)
	}
	eventually(c.t, 30*time.Second, "events taken", func() string {
		req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, "http://"+c.events+"/kamailio/events", bytes.NewReader(body.Bytes()))
		if err != nil {
			return err.Error()
		}
		req.SetBasicAuth("sbc1", token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err.Error()
		}
		resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			return resp.Status
		}
		return ""
	})
}

// arrived waits until the store has every call once and the spool is free.
func (c *redisCell) arrived() {
	c.t.Helper()
	eventually(c.t, 60*time.Second, "records in the store", func() string {
		rows := decodeLines[cdrpipe.Row](c.t, tool(c.t, "cdr", "--json", "--kind", "refused", "--data", c.far))
		seen := map[string]int{}
		for _, r := range rows {
			seen[r.SIPCallID]++
		}
		if len(seen) != c.posted || len(rows) != c.posted {
			return fmt.Sprintf("%d rows of %d calls, of %d", len(rows), len(seen), c.posted)
		}
		return ""
	})
	eventually(c.t, 30*time.Second, "an empty spool", func() string {
		s, err := spool.Look(filepath.Join(c.near, "spool"))
		if err != nil {
			return err.Error()
		}
		if len(s.Readers) != 1 || s.Readers[0].Behind != 0 {
			return fmt.Sprintf("%+v", s.Readers)
		}
		return ""
	})
}

// TestThroughRedis kills Redis, cdrpipe and the bridge while records pass.
func TestThroughRedis(t *testing.T) {
	c := startRedisCell(t)
	posts := func() {
		for range 5 {
			c.post(20)
		}
	}
	posts()
	c.redis.Kill()
	posts()
	c.redis.Forget(20_000)
	c.redis.Start()
	posts()
	c.pipe.kill()
	posts()
	c.redis.Kill()
	c.pipe.start()
	posts()
	c.bridge.kill()
	c.redis.Start()
	c.bridge.start()
	posts()
	c.arrived()
	for _, p := range []*proc{c.bridge, c.pipe} {
		if log := p.log.String(); strings.Contains(log, "correct horse") {
			t.Errorf("%s logs the password:\n%s", p.name, log)
		}
	}
	waitReady(t, c.bridgeA, 30*time.Second)
	waitReady(t, c.pipeA, 30*time.Second)
}

// TestSpoolTool looks into the spool of a living bridge whose records nobody
// takes.
func TestSpoolTool(t *testing.T) {
	c := startRedisCell(t)
	c.post(3)
	c.arrived()
	c.pipe.stop()
	c.post(5)
	dir := filepath.Join(c.near, "spool")
	var at string
	eventually(t, 10*time.Second, "the reader in the list", func() string {
		out := tool(t, "spool", "ls", dir)
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 5 && f[0] == spoolReader && f[2] != "0" && f[3] != "-" {
				at = f[1]
				return ""
			}
		}
		return out
	})
	all := decodeLines[spooled](t, tool(t, "spool", "cat", dir))
	left := decodeLines[spooled](t, tool(t, "spool", "cat", dir, "--from", at))
	if len(all) < 5 || len(left) != 5 || left[0].Position != at {
		t.Fatalf("%d records, %d from %s on: %+v", len(all), len(left), at, left)
	}
	for i, r := range left {
		if !strings.Contains(string(r.Record), fmt.Sprintf(`"call-%d"`, 3+i)) || r.Time.IsZero() {
			t.Errorf("record %d: %s", i, r.Record)
		}
	}
	c.pipe.start()
	waitReady(t, c.pipeA, 30*time.Second)
	c.arrived()
}
