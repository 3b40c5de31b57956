package freeswitchtest

import (
	"strings"
	"unicode/utf8"
)

// field is a header of an event, a channel variable or a form field.
type field struct {
	name  string
	value string
	array []string // if not nil, the value is an array
}

// text is the value as event plain and forms carry it; arrays become one
// string (capture esl/array-and-odd-values-plain.txt).
func (f field) text() string {
	if f.array != nil {
		return "ARRAY::" + strings.Join(f.array, "|:")
	}
	return f.value
}

// fields is an ordered list; names may occur twice.
type fields []field

func (f *fields) add(name, value string) { *f = append(*f, field{name: name, value: value}) }

// get returns the first value of that name.
func (f fields) get(name string) (string, bool) {
	for i := range f {
		if strings.EqualFold(f[i].name, name) {
			return f[i].text(), true
		}
	}
	return "", false
}

// set replaces a variable and moves it to the end, as FreeSWITCH does: the
// order of variables in the captured events is the order of their last set.
func (f *fields) set(name, value string) {
	f.unset(name)
	f.add(name, value)
}

func (f *fields) setArray(name string, values []string) {
	f.unset(name)
	*f = append(*f, field{name: name, array: values})
}

// setIf sets only what is not empty.
func (f *fields) setIf(name, value string) {
	if value != "" {
		f.set(name, value)
	}
}

func (f *fields) unset(name string) {
	for i := range *f {
		if strings.EqualFold((*f)[i].name, name) {
			*f = append((*f)[:i], (*f)[i+1:]...)
			return
		}
	}
}

// clone copies the list, so that an event keeps what was true when it fired.
func (f fields) clone(extra int) fields {
	return append(make(fields, 0, len(f)+extra), f...)
}

// escaped are the bytes that FreeSWITCH percent-encodes beside control and
// non-ASCII ones; a comma, a slash and a tilde stay (capture
// xml_curl/dialplan-bridge.txt).
const escaped = "\r\n \"#%&+:;<=>?@[\\]^`{|}"

// appendEncoded percent-encodes s onto b.
func appendEncoded(b []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		c := s[i]
		if c < '!' || c > '~' || strings.IndexByte(escaped, c) >= 0 {
			b = append(b, '%', hex[c>>4], hex[c&15])
			continue
		}
		b = append(b, c)
	}
	return b
}

// appendJSON writes f as one JSON object in order, repeated names included
// (Hangup-Cause in capture esl/json-bridge.txt). Bytes that are no UTF-8 are
// passed through, as a real one does (capture esl/non-utf8-caller-name-json.txt).
func appendJSON(b []byte, f fields) []byte {
	b = append(b, '{')
	for i := range f {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSONString(b, f[i].name)
		b = append(b, ':')
		if f[i].array == nil {
			b = appendJSONString(b, f[i].value)
			continue
		}
		b = append(b, '[')
		for j, v := range f[i].array {
			if j > 0 {
				b = append(b, ',')
			}
			b = appendJSONString(b, v)
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		default:
			if c < ' ' {
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
				continue
			}
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// neutral replaces "${" in what came over SIP (capture
// failures/preprocessing-of-http-answers.txt: the caller's name came out as
// "%{expr(40+2)}").
func neutral(s string) string { return strings.ReplaceAll(s, "${", "%{") }

// clip bounds a text of the network for a log line.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}
