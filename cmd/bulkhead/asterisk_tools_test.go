package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead/configsvc"
)

// filesIn returns what is in a folder's files, by their paths.
func filesIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestConfigAsterisk: the whole configuration of a node, printed and written.
func TestConfigAsterisk(t *testing.T) {
	data := filepath.Join(t.TempDir(), "d")
	seedTwoCells(t, data)
	printed, err := runTool(t, "config", "asterisk", "--data", data, "--node", "ast1", "--url", "http://10.0.0.1:8080", "--url", "http://10.0.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	secret := func(name string) string {
		b, err := os.ReadFile(filepath.Join(data, "secrets", name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	for _, want := range []string{
		"; ===== extensions.conf =====", "; ===== bulkhead/sorcery.conf =====", "bind = 127.0.0.1:5072", "secret = " + secret(cacheSecret),
		"ps_endpoints => curl,http://ast1:" + secret(nodeToken) + "@10.0.0.1:8080/asterisk/realtime/ps_endpoints,,1",
		"ps_endpoints => curl,http://ast1:" + secret(nodeToken) + "@10.0.0.2:8080/asterisk/realtime/ps_endpoints,,2",
	} {
		if !strings.Contains(printed, want) {
			t.Errorf("it does not print %q", want)
		}
	}
	dir := filepath.Join(t.TempDir(), "etc")
	names, err := runTool(t, "config", "asterisk", "--data", data, "--node", "ast1", "--out", dir)
	if err != nil {
		t.Fatal(err)
	}
	for name := range filesIn(t, dir) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o007 != 0 {
			t.Errorf("%s, which may hold secrets: %v %v", name, info.Mode(), err)
		}
		if !strings.Contains(names, path) {
			t.Errorf("it does not say that it wrote %s", path)
		}
	}
	for what, args := range map[string][]string{
		"a node that is not there": {"--node", "none"}, "a FreeSWITCH": {"--node", "fs1"}, "--write alone": {"--node", "ast1", "--write"},
		"--endpoint alone": {"--node", "ast1", "--endpoint", "a=b"}, "three URLs": {"--node", "ast1", "--url", "http://a", "--url", "http://b", "--url", "http://c"},
		"a URL that is none": {"--node", "ast1", "--url", "a,b"}, "a hostile context": {"--node", "ast1", "--attach", "--endpoint", "a=b;c"},
	} {
		if out, err := runTool(t, append([]string{"config", "asterisk", "--data", data, "--dir", dir}, args...)...); err == nil {
			t.Errorf("%s: no error, but %q", what, out)
		}
	}
}

// TestAttachAndDetachAsterisk: lines are printed, then added, then taken out
// again; each file is then as it was.
func TestAttachAndDetachAsterisk(t *testing.T) {
	data, dir := filepath.Join(t.TempDir(), "d"), t.TempDir()
	seedTwoCells(t, data)
	theirs := map[string]string{
		"pjsip.conf": "[carrier]\ntype = endpoint\ncontext = from-carrier\n", "extensions.conf": "[from-carrier]\nexten => _X.,1,Hangup()", // without a line end
		"modules.conf": "[modules]\r\nautoload = yes\r\n", "manager.conf": "[general]\nenabled = yes\n",
	}
	for name, text := range theirs {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	tool := func(args ...string) string {
		t.Helper()
		out, err := runTool(t, append(args, "--data", data, "--node", "ast1", "--dir", dir)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	unchanged := func(when string) {
		t.Helper()
		if got := filesIn(t, dir); !maps.Equal(got, theirs) {
			t.Errorf("%s: the files are %q", when, got)
		}
	}
	attach := []string{"config", "asterisk", "--attach", "--endpoint", "carrier=from-carrier"}
	printed := tool(attach...)
	for _, want := range []string{
		"; ===== at the end of " + filepath.Join(dir, "extensions.conf") + " =====", "#include bulkhead/extensions.conf", "; ===== bulkhead/pjsip_own.conf =====",
		"[carrier](+type=endpoint)", "set_var = BULKHEAD_CONTEXT=from-carrier",
	} {
		if !strings.Contains(printed, want) {
			t.Errorf("it does not print %q", want)
		}
	}
	if strings.Contains(printed, "load = ") {
		t.Error("it adds modules that are loaded already")
	}
	unchanged("after printing")
	if out := tool("detach"); !strings.Contains(out, "nothing was added") {
		t.Errorf("detach before all: %q", out)
	}

	if out := tool(append(attach, "--write")...); !strings.Contains(out, "restart Asterisk") {
		t.Errorf("attach says %q", out)
	}
	once := filesIn(t, dir)
	for name, text := range theirs {
		if !strings.HasPrefix(once[name], text) {
			t.Errorf("%s was changed: %q", name, once[name])
		}
	}
	_ = tool(append(attach, "--write")...) // may be repeated
	if again := filesIn(t, dir); !maps.Equal(once, again) {
		t.Error("attaching twice is not the same as attaching once")
	}
	would := tool("detach")
	if !strings.Contains(would, "add --write") || !maps.Equal(once, filesIn(t, dir)) {
		t.Errorf("detach without --write: %q", would)
	}
	if out := tool("detach", "--write"); !strings.Contains(out, "restart Asterisk") || strings.Split(out, "now:")[0] != strings.Split(would, "these")[0] {
		t.Errorf("detach says %q, it said that it would %q", out, would)
	}
	unchanged("after detach")
	if out, err := runTool(t, "detach", "--data", data, "--node", "none", "--dir", dir); err == nil {
		t.Errorf("detach of a node that nobody knows: no error, but %q", out)
	}
}

// TestRouteExplain: what would be done with a call, now, in an old revision, and
// after a change that is not made.
func TestRouteExplain(t *testing.T) {
	data := filepath.Join(t.TempDir(), "d")
	seedTwoCells(t, data)
	file := func(text string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "change.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	explain := func(args ...string) (string, error) {
		return runTool(t, append([]string{"route", "explain", "--data", data}, args...)...)
	}
	says := func(what string, wants []string, args ...string) {
		t.Helper()
		out, err := explain(args...)
		for _, w := range wants {
			if err != nil || !strings.Contains(out, w) {
				t.Errorf("%s: no %q in %q, %v", what, w, out, err)
			}
		}
	}
	says("inside", []string{"the caller is user 101, proved by digest", `revision 1, tenant "acme", pool "p1", managed true`, "dial for 30 s\n  user 102\n", "recorded"}, "--tenant", "acme", "--from", "101", "--to", "102")
	says("outbound", []string{"trunk k number 49301234567"}, "--tenant", "acme", "--from", "101", "--to", "0301234567")
	says("no user", []string{"reject 404 (cause 1): unknown number"}, "--tenant", "acme", "--from", "4930999", "--to", "0301234567")
	says("by domain and source", []string{`tenant "globex"`, "group all rings 2 of 2"}, "--domain", "globex.example", "--source", "10.0.2.7", "--to", "+49302")
	says("nobody's", []string{"reject 404 (cause 3): unknown domain"}, "--domain", "none.example", "--to", "1")

	change := file("tenants:\n  - {id: acme, cell: c1, profile: standard, domains: [acme.example], users: [{extension: \"101\", ha1: 00000000000000000000000000000000}, {extension: \"102\", ha1: 00000000000000000000000000000000, do_not_disturb: true}]}\n")
	says("with a change", []string{"does not want to be disturbed", "reject 486"}, "--tenant", "acme", "--from", "101", "--to", "102", "--change", change)
	says("the change was not made", []string{"revision 1", "user 102"}, "--tenant", "acme", "--from", "101", "--to", "102")
	if _, err := runTool(t, "apply", "--data", data, "-f", change); err != nil {
		t.Fatal(err)
	}
	says("now", []string{"revision 2", "reject 486"}, "--tenant", "acme", "--from", "101", "--to", "102")
	says("before", []string{"revision 1", "user 102"}, "--tenant", "acme", "--from", "101", "--to", "102", "--revision", "1")

	out, err := explain("--tenant", "acme", "--from", "101", "--to", "112", "--json")
	var x configsvc.Explanation
	if err == nil {
		err = json.Unmarshal([]byte(out), &x)
	}
	if err != nil || !x.Emergency || x.Revision != 2 || !slices.ContainsFunc(x.Why, func(w string) bool { return strings.Contains(w, "emergency") }) {
		t.Errorf("as JSON: %q, %v", out, err)
	}
	for what, args := range map[string][]string{
		"no such tenant": {"--tenant", "none", "--to", "1"}, "no number": {"--tenant", "acme"}, "no such revision": {"--tenant", "acme", "--to", "1", "--revision", "99"},
		"a time that is none": {"--tenant", "acme", "--to", "1", "--time", "noon"}, "an address that is none": {"--domain", "a", "--source", "b", "--to", "1"},
		"a change that could not be made": {"--tenant", "acme", "--to", "1", "--change", file("tenants: [{id: acme, cell: none, profile: standard, domains: [acme.example]}]\n")},
	} {
		if out, err := explain(args...); err == nil {
			t.Errorf("%s: no error, but %q", what, out)
		}
	}
}
