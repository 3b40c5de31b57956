package bulkhead_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/bulkhead-voip/bulkhead"

// importTable reads who may import whom from the table in ARCHITECTURE.md.
// "internal" stands for every internal package, "*" for every package,
// "<pbx>" for the adapter whose test package it is.
func importTable(t *testing.T) (rooms map[string][]string, stdOnly []string) {
	t.Helper()
	doc, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(doc), "| package | may import | holds |\n")
	if !ok {
		t.Fatal("ARCHITECTURE.md holds no import table")
	}
	words := map[string]string{"root": ".", "its adapter": "<pbx>", "everything": "*"}
	name := regexp.MustCompile("`([^`]+)`")
	rooms = map[string][]string{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			break // the table ends
		}
		if strings.Contains(cells[1], "---") {
			continue
		}
		allowed := []string{}
		std := false
		for word := range strings.SplitSeq(cells[2], ",") {
			switch word = strings.TrimSpace(word); {
			case word == "nothing":
			case word == "std only":
				std = true
			case words[word] != "":
				allowed = append(allowed, words[word])
			default:
				allowed = append(allowed, word)
			}
		}
		for _, m := range name.FindAllStringSubmatch(cells[1], -1) {
			room := strings.ReplaceAll(m[1], "<name>", "<pbx>")
			rooms[room] = allowed
			if std {
				stdOnly = append(stdOnly, room)
			}
		}
	}
	for room, allowed := range rooms {
		for _, a := range allowed {
			if rooms[a] == nil && a != "*" && a != "<pbx>" {
				t.Errorf("the import table's row of %s names %q, which is no row", room, a)
			}
		}
	}
	return rooms, stdOnly
}

// notUs are package names that say nothing about what is inside.
var notUs = []string{"util", "utils", "common", "types", "helpers", "models", "base", "misc"}

type listed struct {
	ImportPath string
	Name       string
	Imports    []string
	Standard   bool
}

func listPackages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Name,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list ./...: %v", err)
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p listed
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// dir returns an import path relative to the module, "." for the root, and
// whether it belongs to the module at all.
func dir(importPath string) (string, bool) {
	if importPath == module {
		return ".", true
	}
	d, ok := strings.CutPrefix(importPath, module+"/")
	return d, ok
}

func TestImportTable(t *testing.T) {
	rooms, stdOnly := importTable(t)
	for _, p := range listPackages(t) {
		from, _ := dir(p.ImportPath)
		if slices.Contains(notUs, p.Name) {
			t.Errorf("package %s: %q says nothing about what is inside", p.ImportPath, p.Name)
		}
		allowed, row := allowedFrom(rooms, from)
		if allowed == nil {
			t.Errorf("%s is in no row of the import table: a new room needs a noun that an operator says, and a row", from)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := dir(imp)
			if !ours {
				if slices.Contains(stdOnly, from) && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
					t.Errorf("%s imports %s: only the standard library is allowed there", from, imp)
				}
				continue
			}
			if !mayImport(allowed, to) {
				t.Errorf("%s imports %s: its row (%s) allows %v", from, to, row, allowed)
			}
		}
	}
}

func allowedFrom(rooms map[string][]string, from string) ([]string, string) {
	if a, ok := rooms[from]; ok {
		return a, from
	}
	if strings.HasPrefix(from, "internal/") {
		return rooms["internal"], "internal"
	}
	if adapter, leaf := path.Split(from); strings.HasSuffix(leaf, "test") && adapter == strings.TrimSuffix(leaf, "test")+"/" {
		var a []string
		for _, to := range rooms["<pbx>test"] {
			a = append(a, strings.ReplaceAll(to, "<pbx>", strings.TrimSuffix(leaf, "test")))
		}
		return a, "<pbx>test"
	}
	if first, _, nested := strings.Cut(from, "/"); nested && rooms[first] != nil {
		return append([]string{first}, rooms[first]...), first
	}
	return nil, ""
}

func mayImport(allowed []string, to string) bool {
	for _, a := range allowed {
		switch {
		case a == "*", a == to:
			return true
		case a == "internal" && strings.HasPrefix(to, "internal/"):
			return true
		}
	}
	return false
}

// TestFiles holds the size and style rules that a compiler does not.
func TestFiles(t *testing.T) {
	initFunc := regexp.MustCompile(`(?m)^func init\(`)
	exit := regexp.MustCompile(`\blog\.Fatal|\bos\.Exit\(|^\s*panic\(`)
	// A path of somebody's machine, or a helper that left its mark, must not be shipped.
	machine := regexp.MustCompile(`(?:^|[^a-zA-Z0-9.])/(?:w` + `ork|r` + `oot|h` + `ome)/`)
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); name != "." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "bin" || base == "data") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, ".md") && !strings.HasSuffix(name, ".cfg") {
			return nil
		}
		body, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if m := machine.Find(body); m != nil {
			t.Errorf("%s holds a path of somebody's machine: %s", name, m)
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		if n := bytes.Count(body, []byte("\n")); n > 500 {
			t.Errorf("%s has %d lines: 500 are the limit", name, n)
		}
		if initFunc.Match(body) {
			t.Errorf("%s has an init function: state belongs to values", name)
		}
		if exit.Match(body) && filepath.Base(name) != "main.go" {
			t.Errorf("%s ends the process: only main may", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
