package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
)

// runTool executes a command line in this process.
func runTool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, errs bytes.Buffer
	if code := execute(context.WithoutCancel(t.Context()), args, &out, &errs); code != exitOK {
		return out.String(), fmt.Errorf("exit code %d: %s", code, errs.String())
	}
	return out.String(), nil
}

// poolOfNodes is a registry with a pool of two media nodes that run.
func poolOfNodes(t *testing.T) string {
	t.Helper()
	data := filepath.Join(t.TempDir(), "d")
	password, err := dataDir(data).secret(eslSecret)
	if err != nil {
		t.Fatal(err)
	}
	yaml := "cells: [{id: c1}]\npools: [{id: p, cell: c1, profile: standard}]\nnodes:\n"
	for _, id := range []string{"fs1", "fs2"} {
		n, err := freeswitchtest.New(freeswitchtest.Config{ID: id, ESLPassword: password})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		yaml += fmt.Sprintf("  - {id: %s, pool: p, sip: \"%s\", esl: \"%s\"}\n", id, n.Addr(), n.ESLAddr())
	}
	file := filepath.Join(t.TempDir(), "pool.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runTool(t, "apply", "--data", data, "-f", file); err != nil {
		t.Fatal(err)
	}
	return data
}

func TestNodeDrainAndDisable(t *testing.T) {
	data := poolOfNodes(t)
	for _, tt := range []struct{ args, say, export string }{
		{"node drain fs1 --wait", "0 sessions", "drain: true"},
		{"node drain fs1", "nothing to do", "drain: true"},
		{"node disable fs1", "disable, revision", "disabled: true"},
		{"node enable fs1", "enable, revision", "drain: true"},
		{"node undrain fs1", "undrain, revision", "fs1"},
	} {
		out, err := runTool(t, append(strings.Fields(tt.args), "--data", data)...)
		if err != nil || !strings.Contains(out, tt.say) {
			t.Errorf("bulkhead %s says %q, %v", tt.args, out, err)
		}
		state, err := runTool(t, "export", "--data", data)
		if err != nil || !strings.Contains(state, tt.export) {
			t.Errorf("after bulkhead %s the registry says %s, %v", tt.args, state, err)
		}
	}
	if state, err := runTool(t, "export", "--data", data); err != nil || strings.Contains(state, "drain:") || strings.Contains(state, "disabled:") {
		t.Errorf("after all the registry says %s, %v", state, err)
	}
	if _, err := runTool(t, "node", "drain", "nobody", "--data", data); err == nil {
		t.Error("a node that is not there was drained")
	}
}

// An upgrade goes node by node and stops at the first failure, with that node
// drained and the others as they were.
func TestPoolUpgrade(t *testing.T) {
	t.Parallel() // it waits most of its time
	data := poolOfNodes(t)
	done := filepath.Join(t.TempDir(), "done")
	if out, err := runTool(t, "pool", "upgrade", "p", "--data", data, "--hook", "echo $NODE >> "+done); err != nil {
		t.Fatalf("upgrade says %q, %v", out, err)
	}
	if b, err := os.ReadFile(done); err != nil || string(b) != "fs1\nfs2\n" {
		t.Errorf("the hook ran for %q, %v", b, err)
	}
	if state, _ := runTool(t, "export", "--data", data); strings.Contains(state, "drain:") {
		t.Errorf("after the upgrade the registry says %s", state)
	}
	out, err := runTool(t, "pool", "upgrade", "p", "--data", data, "--hook", "exit 3")
	if err == nil || !strings.Contains(err.Error(), `stops at node "fs1"`) {
		t.Errorf("an upgrade that fails says %q, %v", out, err)
	}
	if state, _ := runTool(t, "export", "--data", data); strings.Count(state, "drain: true") != 1 {
		t.Errorf("after the failure the registry says %s", state)
	}
}
