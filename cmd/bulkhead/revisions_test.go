package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
)

// command runs one command line on a data folder.
func command(t *testing.T, data string, args ...string) (code int, out, err string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = execute(t.Context(), append(args, "--data", data), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func written(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const platformYAML = `cells: [{id: c1}]
pools: [{id: p1, cell: c1, profile: standard}]
nodes: [{id: fs1, pool: p1, sip: "127.0.0.1:5080"}]
tenants:
- id: acme
  cell: c1
  profile: standard
  domains: [acme.example]
  users: [{extension: 1001, password: first}]
`

func TestRevisionCommands(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
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
	fails("there is no registry", "log")
	ok("revision 1", "apply", "-f", written(t, dir, "a.yaml", platformYAML), "-m", "begin")
	ok("revision 2", "apply", "-f", written(t, dir, "b.yaml", "cells: [{id: c1, max_tenants: 7}]\n"))
	pw := written(t, dir, "pw", "s3cret pass\r\nnot this\n")
	ok("revision 3", "user", "passwd", "acme", "1001", "--from", pw)
	ok("nothing to do", "user", "passwd", "acme", "1001", "--from", pw)
	want, err := configsvc.HA1("1001", "acme.example", "s3cret pass")
	if head := registryHead(t, data); err != nil || head.Tenants["acme"].Users[0].HA1 != want {
		t.Errorf("HA1 %q, want %q: %v", head.Tenants["acme"].Users[0].HA1, want, err)
	}
	fails("user \"9\" of tenant \"acme\"", "user", "passwd", "acme", "9", "--from", pw)
	fails("tenant \"none\"", "user", "passwd", "none", "9", "--from", pw)
	fails("empty", "user", "passwd", "acme", "1001", "--from", written(t, dir, "empty", ""))

	log := ok("password of user 1001 of tenant acme", "log")
	if lines := strings.Split(strings.TrimSpace(log), "\n"); len(lines) != 4 || !strings.HasPrefix(lines[1], "3 ") || !strings.HasSuffix(lines[3], "begin") {
		t.Errorf("log:\n%s", log)
	}
	if out := ok(`"number":3`, "log", "-n", "1", "--json"); strings.Count(out, "\n") != 1 {
		t.Errorf("log of one:\n%s", out)
	}
	if out := ok("~ tenants[acme] users[1001].ha1\n", "show", "3"); strings.Contains(out, want) {
		t.Errorf("a digest secret is shown:\n%s", out)
	}
	fails("revision 9", "show", "9")
	fails("revision 0", "show", "0")
	ok("+ cells[c1] max_tenants 7\n", "diff", "1", "2")
	ok("- cells[c1] max_tenants 7\n", "diff", "2", "1")
	ok("+ tenants[acme]\n", "diff", "0", "1")
	ok("it would become revision 4", "rollback", "1", "--dry-run")
	if n := registryHead(t, data).Revision; n != 3 {
		t.Errorf("the dry run left revision %d", n)
	}
	ok("revision 4", "rollback", "1")
	ok("nothing to do", "rollback", "1")
	ok("rollback to revision 1", "show", "4")
	fails("revision 99", "rollback", "99")
}

func registryHead(t *testing.T, data string) bulkhead.State {
	t.Helper()
	head, err := (&toolFlags{Data: data}).head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return head
}

func TestTokenCommands(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if code, _, err := command(t, data, "apply", "-f", written(t, dir, "a.yaml", platformYAML)); code != exitOK {
		t.Fatal(err)
	}
	code, secret, note := command(t, data, "token", "create", "--scope", "node", "--node", "fs1", "--note", "for fs1")
	secret = strings.TrimSpace(secret)
	if code != exitOK || !strings.HasPrefix(secret, "bh_") || strings.Contains(note, secret) {
		t.Fatalf("exit %d: %q %q", code, secret, note)
	}
	store, err := (&toolFlags{Data: data}).registry(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	tok, err := store.Tokens().Authenticate(t.Context(), secret)
	if err != nil || tok.Node != "fs1" || tok.Cell != "c1" {
		t.Errorf("%+v %v", tok, err)
	}
	_, list, _ := command(t, data, "token", "list")
	if !strings.Contains(list, tok.ID) || !strings.Contains(list, "for fs1") || strings.Contains(list, secret) {
		t.Errorf("%s", list)
	}
	for _, args := range [][]string{{"--scope", "tenant"}, {"--scope", "tenant", "--tenant", "none"}, {"--scope", "read", "--node", "fs1"}} {
		if code, out, _ := command(t, data, append([]string{"token", "create"}, args...)...); code != exitFailure || out != "" {
			t.Errorf("%v: exit %d %q", args, code, out)
		}
	}
	if code, _, err := command(t, data, "token", "revoke", tok.ID); code != exitOK {
		t.Error(err)
	}
	if _, err := store.Tokens().Authenticate(t.Context(), secret); err == nil {
		t.Error("the token is good after it was revoked")
	}
	if code, _, _ := command(t, data, "token", "revoke", "none"); code != exitFailure {
		t.Errorf("exit %d", code)
	}
	entries, err := store.Audit().Entries(t.Context(), 0, 10)
	if err != nil || len(entries) != 2 || entries[1].Path != "token revoke" || entries[1].Token == "" {
		t.Errorf("%+v %v", entries, err)
	}
}
