package registry

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-voip/bulkhead"
)

// loader reads one file and collects what is wrong with it.
type loader struct {
	name      string
	errs      []*bulkhead.FieldError
	more      int        // errors beyond maxFileErrors
	passwords []password // of the tenant that is being read
}

// password waits until its tenant's realm is known.
type password struct {
	user  *bulkhead.User
	node  *yaml.Node
	field string
}

func (l *loader) fail(line int, field, format string, args ...any) {
	if len(l.errs) == maxFileErrors {
		l.more++
		return
	}
	l.errs = append(l.errs, &bulkhead.FieldError{
		Kind: bulkhead.Invalid, Field: field, Pos: fmt.Sprintf("%s:%d", l.name, max(line, 1)), Msg: fmt.Sprintf(format, args...),
	})
}

// err returns what is wrong in the order of the lines.
func (l *loader) err() error {
	return inOrder(l.name, l.errs, l.more)
}

// inOrder joins errors in the order of their lines, and says how many more
// there were.
func inOrder(name string, errs []*bulkhead.FieldError, more int) error {
	line := func(fe *bulkhead.FieldError) int {
		n, err := strconv.Atoi(strings.TrimPrefix(fe.Pos, name+":"))
		if err != nil {
			return math.MaxInt // no line: after the others
		}
		return n
	}
	slices.SortStableFunc(errs, func(a, b *bulkhead.FieldError) int { return cmp.Compare(line(a), line(b)) })
	joined := make([]error, 0, len(errs)+1)
	for _, fe := range errs {
		joined = append(joined, fe)
	}
	if more > 0 {
		joined = append(joined, &bulkhead.FieldError{Kind: bulkhead.Invalid, Pos: name, Msg: fmt.Sprintf("and %d more errors", more)})
	}
	return errors.Join(joined...)
}

// parse returns the file's one document, or nil after an error.
func (l *loader) parse(data []byte) *yaml.Node {
	if len(data) > MaxFileSize {
		l.fail(1, "", "the file is over %d MiB: split it and apply the parts one by one", MaxFileSize>>20)
		return nil
	}
	if parts(data) > maxParts {
		l.fail(1, "", "the file has over %d parts: split it and apply the parts one by one", maxParts)
		return nil
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		l.fail(1, "", "the file is empty: it needs a list under cells, pools, nodes, sbcs or tenants")
		return nil
	case err != nil:
		l.syntax(data, err)
		return nil
	}
	switch err := d.Decode(&second); {
	case err == nil:
		l.fail(second.Line, "", "a second document begins here: put everything into one, without a line ---")
		return nil
	case !errors.Is(err, io.EOF):
		l.syntax(data, err)
		return nil
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		l.fail(doc.Line, "", "is not a YAML document")
		return nil
	}
	return doc.Content[0]
}

// parts counts the bytes with which a node can begin or end: as many nodes
// there can be, or fewer.
func parts(data []byte) int {
	n := 1
	for _, c := range data {
		switch c {
		case '\n', '\r', ',', '[', '{', ':', '-', '?':
			n++
		}
	}
	return n
}

var (
	syntaxLine    = regexp.MustCompile(`^yaml: line ([0-9]+): (.*)$`)
	unknownAnchor = regexp.MustCompile(`unknown anchor '(.*)' referenced`)
)

// syntax reports an error of the YAML reader, whose line numbers come in text.
func (l *loader) syntax(data []byte, err error) {
	if m := unknownAnchor.FindStringSubmatch(err.Error()); m != nil {
		// The name may be a password that begins with an asterisk.
		before, _, _ := bytes.Cut(data, []byte("*"+m[1]))
		l.fail(1+bytes.Count(before, []byte("\n")), "", "%s", noAliases)
		return
	}
	line, msg := 0, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := syntaxLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits only; a huge one is as good as any
		msg = m[2]
	}
	if line == 0 || strings.HasPrefix(msg, "did not find expected") {
		// The reader then names no line, or that of what surrounds the place.
		line = linesRead(data)
	}
	l.fail(line, "", "is not YAML: %s", msg)
}

// linesRead tells how many lines the YAML reader takes until it fails.
func linesRead(data []byte) int {
	r := &lineReader{data: data}
	d := yaml.NewDecoder(r)
	for {
		var doc yaml.Node
		if err := d.Decode(&doc); err != nil {
			return r.lines
		}
	}
}

// lineReader gives one line at a time.
type lineReader struct {
	data  []byte
	lines int
}

func (r *lineReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := bytes.IndexByte(r.data, '\n') + 1
	if n == 0 {
		n = len(r.data)
	}
	if n <= len(p) {
		r.lines++
	}
	n = copy(p, r.data[:n])
	r.data = r.data[n:]
	return n, nil
}

const noAliases = "anchors (&name) and aliases (*name) are not taken: write the value out, and put quotes around text that begins with & or *"

// plain refuses what would make a small file mean a large one, or something
// else than it shows: anchors, aliases, tags; and texts without bound.
func (l *loader) plain(n *yaml.Node) bool {
	ok := true
	switch {
	case n.Anchor != "" || n.Kind == yaml.AliasNode:
		l.fail(n.Line, "", "%s", noAliases)
		return false
	case len(n.Value) > MaxScalarSize:
		l.fail(n.Line, "", "the text is over %d KiB", MaxScalarSize>>10)
		ok = false
	case n.Style&yaml.TaggedStyle != 0:
		l.fail(n.Line, "", "tags (!name) are not taken: leave it out, and put quotes around text that begins with !")
		ok = false
	}
	for _, c := range n.Content {
		if !l.plain(c) {
			ok = false
		}
	}
	return ok
}

// file reads the top level.
func (l *loader) file(root *yaml.Node, f *File) {
	kinds := []key{{name: "cells"}, {name: "pools"}, {name: "nodes"}, {name: "sbcs"}, {name: "tenants"}}
	lists := l.mapping(root, "", kinds)
	for _, k := range kinds {
		f.listed[k.name] = lists[k.name] != nil
	}
	c := &f.change
	c.Cells = objects(l, f, "cells", lists, cellID)
	c.Pools = objects(l, f, "pools", lists, poolID)
	c.Nodes = objects(l, f, "nodes", lists, nodeID)
	c.SBCs = objects(l, f, "sbcs", lists, sbcID)
	c.Tenants = objects(l, f, "tenants", lists, tenantID)
}

// objects reads the list of one kind.
func objects[V any](l *loader, f *File, kind string, lists map[string]*yaml.Node, id func(*V) string) []V {
	list := lists[kind]
	if list == nil || !l.is(list, yaml.SequenceNode, kind) {
		return nil
	}
	out := make([]V, len(list.Content))
	for i, n := range list.Content {
		key := fmt.Sprintf("%s[%d]", kind, i)
		if v := scalarAt(n, "id"); v != "" {
			key = objectKey(kind, v)
		}
		l.decode(n, key, &out[i])
		if t, ok := any(&out[i]).(*bulkhead.Tenant); ok {
			l.secrets(t)
		}
		if n.Kind != yaml.MappingNode {
			continue // the decoder has said so
		}
		if id(&out[i]) == "" {
			l.fail(n.Line, key, "has no id")
			continue
		}
		if first := f.at[key]; first != nil {
			l.fail(n.Line, key, "is there twice: the first is at %s:%d", l.name, first.Line)
			continue
		}
		f.at[key] = n
	}
	return out
}

// scalarAt returns the text under a key of a mapping, or nothing.
func scalarAt(n *yaml.Node, key string) string {
	if n.Kind != yaml.MappingNode {
		return ""
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if v := n.Content[i+1]; n.Content[i].Value == key && v.Kind == yaml.ScalarNode && v.Tag != "!!null" {
			return v.Value
		}
	}
	return ""
}
