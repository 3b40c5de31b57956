package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
)

func TestNodesFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pw"), []byte(" s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := parseNodesFile(filepath.Join(dir, "n.yaml"), []byte(`
cell: c1
nodes:
  - {id: fs1, kind: freeswitch, address: "10.0.0.1:8021", password_file: pw, json_cdr: {password: x, err_log_dir: /cdr, done: /done}}
  - {id: fs2, address: "[2001:db8::1]:8021", password: 12345, json_cdr: {err_log_dir: spool}}
  - {id: ast1, kind: asterisk, address: "ast:8088", user: ari, password: p, ami: {address: "ast:5038", user: ami, password: q}, tenant_var: T, app: bridge-1, cel_file: /cel.csv}
  - {id: ast2, kind: asterisk, outbound: true, user: ari, password: p}
tenants:
  - id: acme
    match: {domain: [acme.example], account_code: [7]}
    prefix: {callee: ["+4930"], "var:x": [a]}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := &nodesFile{
		cell: "c1",
		nodes: []listedNode{
			{id: "fs1", kind: bulkhead.FreeSWITCH, pos: "n.yaml:4", events: login{"10.0.0.1:8021", "", "s3cret"}, jsonCDR: "x", errDir: "/cdr", doneDir: "/done"},
			{id: "fs2", kind: bulkhead.FreeSWITCH, pos: "n.yaml:5", events: login{"[2001:db8::1]:8021", "", "12345"}, errDir: filepath.Join(dir, "spool")},
			{id: "ast1", kind: bulkhead.Asterisk, pos: "n.yaml:6", events: login{"ast:8088", "ari", "p"}, asterisk: listedAsterisk{second: &login{"ast:5038", "ami", "q"}, variable: "T", app: "bridge-1", celFile: "/cel.csv"}},
			{id: "ast2", kind: bulkhead.Asterisk, pos: "n.yaml:7", events: login{"", "ari", "p"}, asterisk: listedAsterisk{outbound: true}},
		},
		rules: []eventbridge.Rule{
			{Tenant: "acme", Attr: "domain", Value: "acme.example"}, {Tenant: "acme", Attr: "account_code", Value: "7"},
			{Tenant: "acme", Attr: "callee", Value: "+4930", Prefix: true}, {Tenant: "acme", Attr: "var:x", Value: "a", Prefix: true},
		},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(nodesFile{}, listedNode{}, listedAsterisk{}, login{})); d != "" {
		t.Error(d)
	}
}

func TestNodesFileRefused(t *testing.T) {
	node := "nodes:\n  - {id: fs1, address: 'h:1', password: secretword}\n"
	for name, c := range map[string]struct{ text, want string }{
		"empty":             {"", "n.yaml:1: the file is empty"},
		"no YAML":           {"nodes: [\n", "n.yaml:"},
		"not a mapping":     {"- a\n", "n.yaml:1: must be a group of keys"},
		"no node":           {"nodes: []\n", "n.yaml:1: nodes: lists no node"},
		"no nodes at all":   {"cell: c1\n", "n.yaml:1: nodes: lists no node"},
		"two documents":     {node + "---\n" + node, "n.yaml:3: a second document"},
		"unknown key":       {node + "pool: x\n", `n.yaml:3: unknown key "pool": the keys here are cell, nodes, tenants`},
		"key twice":         {node + "cell: a\ncell: b\n", `n.yaml:4: has the key "cell" twice: the first is in line 3`},
		"node twice":        {node + "  - {id: fs1, address: 'h:2', password: x}\n", `n.yaml:3: nodes: node "fs1" is there twice: the first is at n.yaml:2`},
		"no id":             {"nodes:\n - {address: 'h:1', password: x}\n", "n.yaml:2: nodes[0]: has no id"},
		"bad id":            {"nodes:\n - {id: A b, address: 'h:1', password: x}\n", `n.yaml:2: nodes[0].id: "A b" is not an id`},
		"no address":        {"nodes:\n - {id: a, password: x}\n", "n.yaml:2: nodes[0]: has no address"},
		"bad address":       {"nodes:\n - {id: a, address: h, password: x}\n", `n.yaml:2: nodes[0].address: "h" is not host:port`},
		"no password":       {"nodes:\n - {id: a, address: 'h:1'}\n", "has neither password nor password_file"},
		"two passwords":     {"nodes:\n - {id: a, address: 'h:1', password: x, password_file: y}\n", "has both password and password_file"},
		"no password file":  {"nodes:\n - {id: a, address: 'h:1', password_file: /nowhere/x}\n", "n.yaml:2: nodes[0].password_file: open /nowhere/x"},
		"another PBX":       {"nodes:\n - {id: a, kind: 3cx, address: 'h:1', password: x}\n", `nodes[0].kind: "3cx" is neither`},
		"FreeSWITCH's AMI":  {"nodes:\n - {id: a, address: 'h:1', password: x, user: u}\n", "are Asterisk's"},
		"Asterisk's CDRs":   {"nodes:\n - {id: a, kind: asterisk, user: u, address: 'h:1', password: x, json_cdr: {err_log_dir: /x}}\n", "json_cdr is FreeSWITCH's"},
		"Asterisk's user":   {"nodes:\n - {id: a, kind: asterisk, address: 'h:1', password: x}\n", "has no user"},
		"FreeSWITCH's log":  {"nodes:\n - {id: a, address: 'h:1', password: x, cel_file: /x}\n", "are Asterisk's"},
		"two directions":    {"nodes:\n - {id: a, kind: asterisk, user: u, outbound: true, address: 'h:1', password: x}\n", "has an address, but outbound"},
		"no flag":           {"nodes:\n - {id: a, kind: asterisk, user: u, outbound: 7, password: x}\n", "nodes[0].outbound: must be true or false"},
		"json_cdr of none":  {"nodes:\n - {id: a, address: 'h:1', password: x, json_cdr: {}}\n", "nodes[0].json_cdr: has neither password"},
		"done is the same":  {"nodes:\n - {id: a, address: 'h:1', password: x, json_cdr: {err_log_dir: /x, done: /x/}}\n", "must be another folder"},
		"no list":           {"nodes: {a: b}\n", "n.yaml:1: nodes: must be a list"},
		"null":              {"nodes:\n - {id: , address: 'h:1', password: x}\n", "nodes[0].id: must be a text"},
		"anchor":            {"nodes:\n - &x {id: a, address: 'h:1', password: x}\n - *x\n", "n.yaml:3: nodes[1]: must be a group"},
		"alias of nothing":  {"nodes:\n - {id: a, address: 'h:1', password: *secretword}\n", "put a text that begins with * into quotes"},
		"unknown attribute": {node + "tenants:\n - {id: a, match: {realm: [x]}}\n", `n.yaml:4: tenants[0].match: "realm" is no attribute: there are account_code`},
		"var without name":  {node + "tenants:\n - {id: a, match: {'var:': [x]}}\n", `"var:" is no attribute`},
		"two owners":        {node + "tenants:\n - {id: a, match: {domain: [X]}}\n - {id: b, match: {domain: [x]}}\n", `n.yaml:5: tenants[1].match.domain[0]: "x" is there twice: the first is at n.yaml:4`},
		"tenant of nothing": {node + "tenants:\n - {id: a}\n", "n.yaml:4: tenants[0]: has neither match nor prefix"},
		"tenant without id": {node + "tenants:\n - {match: {domain: [x]}}\n", "n.yaml:4: tenants[0]: has no id"},
		"value of a rule":   {node + "tenants:\n - {id: a, match: {domain: x}}\n", "n.yaml:4: tenants[0].match.domain: must be a list"},
		"too long":          {"# " + strings.Repeat("x", maxNodesFile), "the file is over"},
	} {
		_, err := parseNodesFile("/etc/n.yaml", []byte(c.text))
		if !errors.Is(err, bulkhead.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "secretword") {
			t.Errorf("%s: the error quotes a password: %v", name, err)
		}
	}
	if _, err := readNodesFile("/nowhere/n.yaml"); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("missing file: %v", err)
	}
}

func FuzzNodesFile(f *testing.F) {
	f.Add([]byte("nodes:\n  - {id: fs1, address: 'h:1', password: x}\ntenants:\n - {id: a, match: {domain: [x]}}\n"))
	f.Add([]byte("~"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := parseNodesFile("n.yaml", b)
		if err != nil {
			if !errors.Is(err, bulkhead.Invalid) {
				t.Fatalf("error is not bulkhead.Invalid: %v", err)
			}
			return
		}
		if len(file.nodes) == 0 || file.cell == "" {
			t.Fatalf("accepted %+v", file)
		}
		if _, err := eventbridge.NewRules(file.rules); err != nil {
			t.Fatalf("rules of an accepted file: %v", err)
		}
	})
}
