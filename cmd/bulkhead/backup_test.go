package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead/registry"
)

// TestBackupCommands: a backup of a registry in use, looked at and restored
// while it goes on being used.
func TestBackupCommands(t *testing.T) {
	dir := t.TempDir()
	data, file := filepath.Join(dir, "data"), filepath.Join(dir, "backup")
	c, _ := central(t, data) // it has the registry open all the time
	defer c.stop(t)
	_, tok := c.tokenFile(t, registry.Token{Scope: registry.ScopeNode, Node: "fs1"})
	ok := func(want string, args ...string) string {
		t.Helper()
		code, out, err := command(t, data, args...)
		if code != exitOK || !strings.Contains(out, want) {
			t.Errorf("%v: exit %d, want %q in:\n%s%s", args, code, want, out, err)
		}
		return out
	}
	fails := func(want string, args ...string) {
		t.Helper()
		if code, _, err := command(t, data, args...); code != exitFailure || !strings.Contains(err, want) {
			t.Errorf("%v: exit %d, want %q in:\n%s", args, code, want, err)
		}
	}
	before := c.live.Load().Revision()
	ok("revision", "backup", "-o", file, "--audit")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup's mode: %v %v", info.Mode(), err)
	}
	ok("nothing to do", "restore", file)
	ok("revision", "apply", "-f", written(t, dir, "a.yaml", "tenants:\n- id: acme\n  cell: cell1\n  profile: standard\n  name: Other\n  domains: [acme.example]\n"))
	shown := ok("dry run: nothing was changed", "restore", file, "--dry-run")
	if !strings.Contains(shown, `"Other" -> "Acme Ltd."`) || !strings.Contains(shown, "--base ") {
		t.Errorf("the dry run shows:\n%s", shown)
	}
	if n := registryHead(t, data).Revision; n != before+1 {
		t.Errorf("the dry run left revision %d", n)
	}
	fails("the head is revision", "restore", file, "--base", "1000")
	_, base, _ := strings.Cut(strings.TrimSpace(shown), "--base ")
	ok("revision", "restore", file, "--base", base, "-m", "back")
	if head := registryHead(t, data); head.Revision != before+2 || head.Tenants["acme"].Name != "Acme Ltd." {
		t.Errorf("revision %d with %+v", head.Revision, head.Tenants["acme"])
	}
	ok("back", "log")

	// Elsewhere, with the tokens.
	elsewhere := filepath.Join(dir, "elsewhere")
	code, out, err := command(t, elsewhere, "restore", file, "--tokens")
	if code != exitOK || !strings.Contains(out, "+ token "+tok.ID) || !strings.HasSuffix(out, "revision 100000\n") {
		t.Errorf("exit %d:\n%s%s", code, out, err)
	}
	copied, openErr := registry.OpenSQLite(t.Context(), dataDir(elsewhere).registry())
	if openErr != nil {
		t.Fatal(openErr)
	}
	entries, openErr := copied.Audit().Entries(t.Context(), 0, 10)
	if openErr = errors.Join(openErr, copied.Close()); openErr != nil || len(entries) != 1 || entries[0].Path != "restore" || !strings.Contains(entries[0].Detail, tok.ID) {
		t.Errorf("the audit log after a restore of tokens: %+v, %v", entries, openErr)
	}
	text, readErr := os.ReadFile(file)
	if readErr != nil {
		t.Fatal(readErr)
	}
	if code, _, err := command(t, elsewhere, "restore", written(t, dir, "torn", string(text[:len(text)/2]))); code != exitFailure || !strings.Contains(err, "damaged") {
		t.Errorf("a torn backup: exit %d %s", code, err)
	}
}
