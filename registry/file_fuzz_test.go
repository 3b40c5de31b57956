package registry

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-voip/bulkhead"
)

// walk calls f with every text below n.
func walk(n *yaml.Node, f func(string)) {
	f(n.Value)
	for _, c := range n.Content {
		walk(c, f)
	}
}

// FuzzParseFile: no input ends the process; every error names the file and a
// line; what was read and is valid survives an export.
func FuzzParseFile(f *testing.F) {
	paths, err := filepath.Glob("testdata/*.golden")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range append(paths, "../deploy/example.yaml") {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		input, _, _ := strings.Cut(string(text), "\n----------\n")
		f.Add([]byte(input))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		file, err := ParseFile("in.yaml", data)
		if err != nil {
			placed(t, err)
			return
		}
		c, err := file.Plan(bulkhead.State{}, false)
		if err != nil {
			placed(t, err)
			return
		}
		state := bulkhead.State{}.Apply(&c)
		var b bytes.Buffer
		if err := Export(&b, state); err != nil {
			t.Fatal(err)
		}
		again, err := ParseFile("out.yaml", b.Bytes())
		if err != nil {
			t.Fatalf("the export cannot be read: %v\n%s", err, &b)
		}
		if d, err := again.Plan(state, true); err != nil || !d.IsZero() {
			t.Fatalf("the export differs: %+v, %v\n%s", d, err, &b)
		}
	})
}

func placed(t *testing.T, err error) {
	t.Helper()
	all := bulkhead.FieldErrors(err)
	if len(all) == 0 {
		t.Fatalf("an error without a place: %v", err)
	}
	for _, fe := range all {
		if !strings.HasPrefix(fe.Pos, "in.yaml") || fe.Msg == "" {
			t.Fatalf("an error without a place: %#v", fe)
		}
	}
	if len(all) > maxFileErrors+1 {
		t.Fatalf("%d errors", len(all))
	}
}
