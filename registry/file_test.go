package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
)

var update = flag.Bool("update", false, "rewrite the second parts of testdata/*.golden")

// TestFileGolden reads files of two parts: YAML, a line of dashes, and the
// errors or what a plan on an empty store would put.
func TestFileGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.golden")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	const dashes = "\n----------\n"
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".golden"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			input, want, ok := strings.Cut(string(text), dashes)
			if !ok && !*update {
				t.Fatal("there is no line of dashes")
			}
			input = strings.TrimSuffix(input, "\n")
			got := summary(input + "\n")
			if strings.Contains(got, "geheim") {
				t.Errorf("the output holds a password:\n%s", got)
			}
			if *update {
				if err := os.WriteFile(path, []byte(input+dashes+got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func summary(input string) string {
	f, err := ParseFile("in.yaml", []byte(input))
	if err != nil {
		return err.Error() + "\n"
	}
	c, err := f.Plan(bulkhead.State{}, false)
	if err != nil {
		return err.Error() + "\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "put %d cells, %d pools, %d nodes, %d sbcs, %d tenants\n", len(c.Cells), len(c.Pools), len(c.Nodes), len(c.SBCs), len(c.Tenants))
	for _, t := range c.Tenants {
		text, err := json.Marshal(t)
		if err != nil {
			return err.Error() + "\n"
		}
		fmt.Fprintf(&b, "%s\n", text)
	}
	return b.String()
}

func parse(t *testing.T, text string) *File {
	t.Helper()
	f, err := ParseFile("in.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// fails checks that an error has the kind and names all of the words.
func fails(t *testing.T, what string, err error, kind bulkhead.Kind, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: %v, want the kind %q", what, err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: the error does not say %q:\n%v", what, w, err)
		}
	}
}

func exported(t *testing.T, s bulkhead.State) string {
	t.Helper()
	var b bytes.Buffer
	if err := Export(&b, s); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestExampleFile(t *testing.T) {
	f, err := ReadFile("../deploy/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s := newSQLite(t)
	r, err := f.Apply(t.Context(), s, ApplyOptions{Author: "ada", Message: "example"})
	if err != nil {
		t.Fatal(err)
	}
	state := head(t, s)
	if r.Number != 1 || len(state.Cells) != 1 || len(state.SBCs) != 1 || len(state.Pools) != 2 || len(state.Nodes) != 4 || len(state.Tenants) != 5 {
		t.Fatalf("revision %d: %d cells, %d SBCs, %d pools, %d nodes, %d tenants", r.Number, len(state.Cells), len(state.SBCs), len(state.Pools), len(state.Nodes), len(state.Tenants))
	}
	for id, tn := range state.Tenants {
		if len(tn.Users) != 3 || len(tn.Numbers) < 2 || len(tn.Trunks) != 1 || len(tn.Sources) != 1 || tn.Realm() != string(id)+".example" {
			t.Errorf("tenant %s is not complete: %+v", id, tn)
		}
	}
	// printf 1001:acme.example:change-me-acme-1001 | md5sum
	if got := state.Tenants["acme"].User("1001").HA1; got != "f0d2d945b2996006401c4c56229a142d" {
		t.Errorf("the HA1 is %s", got)
	}
	again, err := f.Apply(t.Context(), s, ApplyOptions{Author: "ada"})
	if err != nil || again.Number != 1 || !again.Change.IsZero() {
		t.Errorf("applied again: revision %d, %v", again.Number, err)
	}
	if text := exported(t, state); strings.Contains(text, "change-me") {
		t.Error("an export holds a password")
	}
	if text := fmt.Sprintf("%+v", f); strings.Contains(text, "change-me") {
		t.Error("a File holds a password")
	}
	for _, n := range f.at {
		walk(n, func(value string) {
			if strings.Contains(value, "change-me") {
				t.Errorf("a File holds the password %s", value)
			}
		})
	}
}

func TestApplyAndPrune(t *testing.T) {
	s := newSQLite(t)
	first := example(4)
	commit(t, s, 0, first)
	tenants := bulkhead.State{}.Apply(&bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(1), tenant(7)}})
	text := "tenants:" + strings.SplitN(exported(t, tenants), "tenants:", 2)[1]
	f := parse(t, text)

	dry, err := f.Apply(t.Context(), s, ApplyOptions{Author: "a", Prune: true, DryRun: true})
	if err != nil || dry.Number != 2 || head(t, s).Revision != 1 {
		t.Fatalf("dry run: revision %d of %d, %v", dry.Number, head(t, s).Revision, err)
	}
	want := bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(7)}, Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{"t00000", "t00002", "t00003"}}}
	if d := cmp.Diff(want, dry.Change, prefixes); d != "" {
		t.Errorf("prune would change (-want +got):\n%s", d)
	}
	r, err := f.Apply(t.Context(), s, ApplyOptions{Author: "a"})
	if err != nil || len(r.Change.Tenants) != 1 || !r.Change.Delete.IsZero() {
		t.Errorf("without prune: %+v, %v", r.Change, err)
	}
	if _, err := f.Apply(t.Context(), s, ApplyOptions{Author: "a", Prune: true}); err != nil {
		t.Fatal(err)
	}
	state := head(t, s)
	if len(state.Tenants) != 2 || len(state.Pools) != 2 || state.Revision != 3 {
		t.Errorf("after prune: revision %d, %d tenants, %d pools", state.Revision, len(state.Tenants), len(state.Pools))
	}
	if _, err := parse(t, "pools: []\n").Apply(t.Context(), s, ApplyOptions{Author: "a", Prune: true}); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("pruned pools that are in use: %v", err)
	}
}

// TestOwnersInStore: one of two owners is in the store, not in the file.
func TestOwnersInStore(t *testing.T) {
	state := example(4)
	s := bulkhead.State{}.Apply(&state)
	newcomer := func(id, domain, source, number string) string {
		return "tenants:\n  - id: " + id + "\n    cell: cell1\n    profile: standard\n    domains:\n      - " + domain +
			"\n    sources: [" + source + "]\n    users: [{extension: \"1\", password: geheim}]\n    numbers:\n      - {number: " + number + ", user: \"1\"}\n"
	}
	for _, c := range []struct{ what, text, pos string }{
		{"domain, before the owner", newcomer("a", "t00001.example", "172.16.0.0/16", "4412345"), "in.yaml:6: "},
		{"domain, after the owner", newcomer("z", "t00001.example", "172.16.0.0/16", "4412345"), "in.yaml:6: "},
		{"network, before the owner", newcomer("a", "a.example", "10.0.1.128/25", "4412345"), "in.yaml:7: "},
		{"network, after the owner", newcomer("z", "a.example", "10.0.1.0/24", "4412345"), "in.yaml:7: "},
		{"number, before the owner", newcomer("a", "a.example", "172.16.0.0/16", "49000010"), "in.yaml:10: "},
		{"number, after the owner", newcomer("z", "a.example", "172.16.0.0/16", "49000010"), "in.yaml:10: "},
		{"the SBC's name", newcomer("z", "sbc1.example", "172.16.0.0/16", "4412345"), "in.yaml:6: "},
	} {
		_, err := parse(t, c.text).Plan(s, false)
		owner := `"t00001"`
		if c.what == "the SBC's name" {
			owner = `"sbc1"`
		}
		fails(t, c.what, err, bulkhead.Conflict, c.pos, owner, "(the other is in the store already)")
		if n := len(bulkhead.FieldErrors(err)); n != 1 {
			t.Errorf("%s: %d errors:\n%v", c.what, n, err)
		}
	}
	_, err := parse(t, "pools:\n  - {id: standard, cell: cell1, profile: other}\n").Plan(s, false)
	fails(t, "a stored tenant loses its pool", err, bulkhead.Invalid, "in.yaml: tenants[t00000].profile: no pool", "in the store and not in this file")
}

func TestFileLimits(t *testing.T) {
	long := strings.Repeat("x", MaxScalarSize+1)
	_, err := ParseFile("in.yaml", []byte("cells:\n  - id: "+long+"\n"))
	fails(t, "a long text", err, bulkhead.Invalid, "in.yaml:2: the text is over 64 KiB")
	if len(err.Error()) > 1000 {
		t.Errorf("the error is %d bytes long", len(err.Error()))
	}
	_, err = ParseFile("in.yaml", []byte("cells:\n  - "+long+": x\n"))
	fails(t, "a long key", err, bulkhead.Invalid, "in.yaml:2: ")
	_, err = ParseFile("in.yaml", make([]byte, MaxFileSize+1))
	fails(t, "a large file", err, bulkhead.Invalid, "in.yaml:1: the file is over 64 MiB")
	_, err = ParseFile("in.yaml", bytes.Repeat([]byte("- "), maxParts))
	fails(t, "many parts", err, bulkhead.Invalid, "in.yaml:1: the file has over 5000000 parts")
	_, err = ParseFile("in.yaml", bytes.Repeat([]byte("["), 100000))
	fails(t, "deep nesting", err, bulkhead.Invalid, "in.yaml:1: ")
	_, err = ParseFile("in.yaml", []byte("cells:\n"+strings.Repeat("  - {id: a, colour: red}\n", 500)))
	fails(t, "many errors", err, bulkhead.Invalid, "in.yaml:2: ", "in.yaml: and 899 more errors")
	path := filepath.Join(t.TempDir(), "none.yaml")
	_, err = ReadFile(path)
	fails(t, "no file", err, bulkhead.Invalid, path)
}

func TestExportFile(t *testing.T) {
	c := example(3)
	state := bulkhead.State{}.Apply(&c)
	path := filepath.Join(t.TempDir(), "out.yaml")
	if err := ExportFile(path, state); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != exported(t, state) {
		t.Fatalf("the file is not the export: %v", err)
	}
	if _, err := ReadFile(path); err != nil {
		t.Fatal(err)
	}
	if err := ExportFile(filepath.Join(path, "x"), state); err == nil {
		t.Error("exported into a file as if it were a folder")
	}
}

func TestExportRoundTrip(t *testing.T) {
	text := exported(t, bulkhead.State{})
	if c, err := parse(t, text).Plan(bulkhead.State{}, true); err != nil || !c.IsZero() {
		t.Errorf("the empty state came back as %+v, %v", c, err)
	}
	rapid.Check(t, func(t *rapid.T) {
		c := frame()
		for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, 9999), 0, 6, rapid.ID).Draw(t, "tenants") {
			tn := tenant(i)
			tn.Name = rapid.StringMatching(`[\pL\pN .,'()+/_-]{0,64}`).Draw(t, "name")
			tn.Users[0].Name = rapid.SampledFrom([]string{"", "yes", "null", "~", "1e3", "0x1F", "2020-01-01", "- a", " lead", "trail ", "'", "é"}).Draw(t, "user name")
			tn.Limits.CallsPerSecond = rapid.IntRange(0, 10000).Draw(t, "cps")
			c.Tenants = append(c.Tenants, tn)
		}
		c.Pools[1].Backup = rapid.SampledFrom([]bulkhead.PoolID{"", "standard"}).Draw(t, "backup")
		c.Nodes[0].Drain = rapid.Bool().Draw(t, "drain")
		state := bulkhead.State{}.Apply(&c)
		if err := state.Validate(); err != nil {
			t.Skip(err)
		}
		var b, b2 bytes.Buffer
		if err := Export(&b, state); err != nil {
			t.Fatal(err)
		}
		f, err := ParseFile("out.yaml", b.Bytes())
		if err != nil {
			t.Fatalf("%v\n%s", err, &b)
		}
		if d, err := f.Plan(state, true); err != nil || !d.IsZero() {
			t.Fatalf("came back with the difference %+v, %v\n%s", d, err, &b)
		}
		d, err := f.Plan(bulkhead.State{}, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := Export(&b2, bulkhead.State{}.Apply(&d)); err != nil || !bytes.Equal(b.Bytes(), b2.Bytes()) {
			t.Fatalf("the second export differs: %v", err)
		}
	})
}
