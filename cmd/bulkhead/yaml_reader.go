package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-voip/bulkhead"
)

// yamlReader walks over a file and collects what is wrong with it.
type yamlReader struct {
	name, dir string
	errs      []error
	claimed   map[string]string // by rule: where it was written
}

func (y *yamlReader) at(n *yaml.Node) string { return fmt.Sprintf("%s:%d", y.name, max(n.Line, 1)) }

func (y *yamlReader) fail(n *yaml.Node, field, format string, args ...any) {
	y.errs = append(y.errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Pos: y.at(n), Msg: fmt.Sprintf(format, args...)})
}

func (y *yamlReader) err() error {
	if more := len(y.errs) - maxNodesErrors; more > 0 {
		y.errs = append(y.errs[:maxNodesErrors], fmt.Errorf("%s: and %d more errors: %w", y.name, more, bulkhead.Invalid))
	}
	return errors.Join(y.errs...)
}

// document returns the file's one document, or nil after an error.
func (y *yamlReader) document(data []byte) *yaml.Node {
	if len(data) > maxNodesFile {
		y.fail(&yaml.Node{}, "", "the file is over %d KiB", maxNodesFile>>10)
		return nil
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := d.Decode(&doc); err != nil {
		msg := strings.TrimPrefix(err.Error(), "yaml: ")
		if errors.Is(err, io.EOF) {
			msg = "the file is empty: it needs a list under nodes"
		}
		line, text := 1, msg
		if _, err := fmt.Sscanf(msg, "line %d:", &line); err == nil {
			_, text, _ = strings.Cut(msg, ": ")
		}
		if strings.Contains(text, "anchor") { // its name may be a password that begins with an asterisk
			text = "an alias refers to nothing; put a text that begins with * into quotes"
		}
		y.fail(&yaml.Node{Line: line}, "", "%s", text)
		return nil
	}
	if err := d.Decode(&second); !errors.Is(err, io.EOF) {
		y.fail(&second, "", "a second document begins here: put everything into one")
		return nil
	}
	return doc.Content[0]
}

// pairs calls fn for the keys of a mapping, each of which may be there once.
func (y *yamlReader) pairs(n *yaml.Node, field string, fn func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		y.fail(n, field, "must be a group of keys")
		return
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode || k.Anchor != "" || n.Content[i+1].Anchor != "" {
			y.fail(k, field, "keys must be plain texts, and there are no anchors here")
			continue
		}
		if lines[k.Value] > 0 {
			y.fail(k, field, "has the key %s twice: the first is in line %d", strconv.Quote(k.Value), lines[k.Value])
			continue
		}
		lines[k.Value] = k.Line
		fn(k, n.Content[i+1])
	}
}

func (y *yamlReader) fields(n *yaml.Node, field string, known map[string]func(*yaml.Node, string)) {
	y.pairs(n, field, func(k, v *yaml.Node) {
		fn := known[k.Value]
		if fn == nil {
			y.fail(k, field, "unknown key %s: the keys here are %s", strconv.Quote(k.Value), strings.Join(slices.Sorted(maps.Keys(known)), ", "))
			return
		}
		fn(v, strings.TrimPrefix(field+"."+k.Value, "."))
	})
}

func (y *yamlReader) list(n *yaml.Node, field string, each func(*yaml.Node, string)) {
	if n.Kind != yaml.SequenceNode {
		y.fail(n, field, "must be a list")
		return
	}
	for i, c := range n.Content {
		each(c, fmt.Sprintf("%s[%d]", field, i))
	}
}

// text returns a text as it was written, so that numbers need no quotes.
func (y *yamlReader) text(n *yaml.Node, field string) string {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" || n.Value == "" {
		y.fail(n, field, "must be a text that is not empty")
		return ""
	}
	return n.Value
}

func (y *yamlReader) flag(n *yaml.Node, field string) bool {
	if n.Kind != yaml.ScalarNode || n.Value != "true" && n.Value != "false" {
		y.fail(n, field, "must be true or false")
	}
	return n.Value == "true"
}

func (y *yamlReader) id(n *yaml.Node, field string) string {
	s := y.text(n, field)
	if s != "" && !fileID.MatchString(s) {
		y.fail(n, field, "%s is not an id: use 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit", strconv.Quote(s))
	}
	return s
}

func (y *yamlReader) address(n *yaml.Node, field string) string {
	s := y.text(n, field)
	host, port, err := net.SplitHostPort(s)
	if number, perr := strconv.ParseUint(port, 10, 16); s != "" && (err != nil || perr != nil || number == 0 || host == "") {
		y.fail(n, field, "%s is not host:port", strconv.Quote(s))
	}
	return s
}

// path returns a path; a relative one is taken from the file's own folder.
func (y *yamlReader) path(n *yaml.Node, field string) string {
	s := y.text(n, field)
	if s != "" && !filepath.IsAbs(s) {
		s = filepath.Join(y.dir, s)
	}
	return s
}

func (y *yamlReader) secretFile(n *yaml.Node, field string) string {
	path := y.path(n, field)
	if path == "" {
		return ""
	}
	b, err := os.ReadFile(path)
	if err != nil {
		y.fail(n, field, "%v", err)
		return ""
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		y.fail(n, field, "%s is empty", path)
	}
	return s
}
