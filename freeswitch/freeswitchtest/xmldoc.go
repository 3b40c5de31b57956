package freeswitchtest

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
)

// maxDepth bounds the nesting of an XML answer; a dialplan has a depth of 6.
const maxDepth = 64

// element is one XML element.
type element struct {
	name     string
	attrs    []xml.Attr
	children []*element
}

func (e *element) attr(name string) string {
	for i := range e.attrs {
		if e.attrs[i].Name.Local == name {
			return e.attrs[i].Value
		}
	}
	return ""
}

// child returns the first child of that element name and name attribute; an
// empty value matches any.
func (e *element) child(elem, name string) *element {
	if e == nil {
		return nil
	}
	for _, c := range e.children {
		if c.name == elem && (name == "" || c.attr("name") == name) {
			return c
		}
	}
	return nil
}

// preprocess does what FreeSWITCH's line-based pre-processor does to an answer
// before it is parsed (captures failures/xml_curl-answers.txt number 2013 and
// failures/preprocessing-of-http-answers.txt): a line with "<?", "<include>" or
// "</include>" is lost whole, $${name} is replaced by a global variable, and an
// X-PRE-PROCESS line is an instruction. Only cmd="set" is obeyed here; exec,
// which a real one runs, is dropped.
func preprocess(b []byte, globals map[string]string) []byte {
	var out bytes.Buffer
	var own map[string]string
	lookup := func(name string) string {
		if v, ok := own[name]; ok {
			return v
		}
		return globals[name]
	}
	for line := range bytes.Lines(b) {
		if bytes.Contains(line, []byte("<?")) || bytes.Contains(line, []byte("<include>")) || bytes.Contains(line, []byte("</include>")) {
			continue
		}
		if bytes.Contains(line, []byte("X-PRE-PROCESS")) {
			if name, value, ok := strings.Cut(between(string(line), `data="`, `"`), "="); ok && between(string(line), `cmd="`, `"`) == "set" {
				if own == nil {
					own = map[string]string{}
				}
				own[name] = value
			}
			continue
		}
		out.WriteString(replaceGlobals(string(line), lookup))
	}
	return out.Bytes()
}

// between returns what stands between from and the next to.
func between(s, from, to string) string {
	_, rest, ok := strings.Cut(s, from)
	if !ok {
		return ""
	}
	v, _, _ := strings.Cut(rest, to)
	return v
}

func replaceGlobals(s string, lookup func(string) string) string {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(s, "$${")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		name, after, ok := strings.Cut(rest, "}")
		if !ok {
			b.WriteString("$${" + rest)
			return b.String()
		}
		b.WriteString(lookup(name))
		s = after
	}
}

// parseXML parses a pre-processed answer. Errors are of kind bulkhead.Invalid.
func parseXML(b []byte) (*element, error) {
	d := xml.NewDecoder(bytes.NewReader(b))
	var root *element
	var stack []*element
	for {
		tok, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("parse the XML: %w: %w", bulkhead.Invalid, err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			e := &element{name: t.Name.Local, attrs: t.Copy().Attr}
			switch {
			case len(stack) >= maxDepth:
				return nil, fmt.Errorf("parse the XML: more than %d levels deep: %w", maxDepth, bulkhead.Invalid)
			case len(stack) > 0:
				p := stack[len(stack)-1]
				p.children = append(p.children, e)
			case root == nil:
				root = e
			}
			stack = append(stack, e)
		case xml.EndElement:
			if len(stack) == 0 || stack[len(stack)-1].name != t.Name.Local {
				return nil, fmt.Errorf("parse the XML: unexpected closing tag </%s>: %w", clip(t.Name.Local, 80), bulkhead.Invalid)
			}
			stack = stack[:len(stack)-1]
		}
	}
	switch {
	case root == nil:
		return nil, fmt.Errorf("parse the XML: root tag missing: %w", bulkhead.Invalid)
	case len(stack) > 0:
		return nil, fmt.Errorf("parse the XML: <%s> is not closed: %w", clip(stack[len(stack)-1].name, 80), bulkhead.Invalid)
	}
	return root, nil
}
