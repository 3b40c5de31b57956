package freeswitch

import (
	"errors"
	"unicode/utf16"
	"unicode/utf8"
)

// maxNesting bounds how deep a skipped value may nest; events hold arrays of
// strings at most.
const maxNesting = 16

var (
	errSyntax  = errors.New("not JSON")
	errNesting = errors.New("nested too deeply")
)

// scanner walks over JSON and decodes the values that have a slot. Skipped
// values are checked only as far as finding their end takes.
type scanner struct {
	b []byte
	i int
	// loose takes a quote within a string for a part of it, if nothing follows
	// that could follow a string.
	loose bool
}

// peek skips white space and returns the next byte, 0 at the end.
func (s *scanner) peek() byte {
	for s.i < len(s.b) {
		switch c := s.b[s.i]; c {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return c
		}
	}
	return 0
}

func (s *scanner) expect(c byte) error {
	if s.peek() != c {
		return errSyntax
	}
	s.i++
	return nil
}

// document reads the whole input as one object; see members.
func (s *scanner) document(field func(name []byte) error) error {
	if err := s.members(field); err != nil {
		return err
	}
	if s.peek() != 0 || s.i < len(s.b) {
		return errSyntax
	}
	return nil
}

// members reads an object and calls field with the name of each member, at
// its value, which field must read.
func (s *scanner) members(field func(name []byte) error) error {
	if err := s.expect('{'); err != nil {
		return err
	}
	if s.peek() == '}' {
		s.i++
		return nil
	}
	for {
		name, escaped, err := s.raw()
		if err != nil {
			return err
		}
		if escaped {
			name = []byte(unquote(name))
		}
		if err := s.expect(':'); err != nil {
			return err
		}
		if err := field(name); err != nil {
			return err
		}
		if s.peek() == '}' {
			s.i++
			return nil
		}
		if err := s.expect(','); err != nil {
			return err
		}
	}
}

// value decodes a string, or the first string of an array; any other value
// leaves the slot empty.
func (s *scanner) value(slot *string) error {
	if s.peek() == '[' {
		start := s.i
		s.i++
		if s.peek() == '"' {
			if err := s.value(slot); err != nil {
				return err
			}
		}
		s.i = start
		return s.skip(0)
	}
	if s.peek() != '"' {
		return s.skip(0)
	}
	raw, escaped, err := s.raw()
	if err != nil {
		return err
	}
	if escaped {
		take(slot, unquote(raw))
	} else {
		take(slot, string(raw))
	}
	return nil
}

// raw returns the bytes between the quotes of a string and whether any of
// them is an escape.
func (s *scanner) raw() (b []byte, escaped bool, err error) {
	if err := s.expect('"'); err != nil {
		return nil, false, err
	}
	start := s.i
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case '"':
			if s.loose && !s.ends(s.i+1) {
				break
			}
			s.i++
			return s.b[start : s.i-1], escaped, nil
		case '\\':
			escaped = true
			s.i++
		}
		s.i++
	}
	s.i = len(s.b)
	return nil, false, errSyntax
}

// ends tells whether what stands at i can follow a string, in JSON without spaces.
func (s *scanner) ends(i int) bool {
	return i >= len(s.b) || s.b[i] == ',' || s.b[i] == ':' || s.b[i] == ']' || s.b[i] == '}'
}

// skip passes over one value.
func (s *scanner) skip(depth int) error {
	if depth > maxNesting {
		return errNesting
	}
	switch c := s.peek(); c {
	case '"':
		_, _, err := s.raw()
		return err
	case '{', '[':
		s.i++
		return s.skipInside(c+2, depth) // ']' and '}' stand two after their openers
	case 0, ',', ':', ']', '}':
		return errSyntax
	}
	for s.i < len(s.b) { // a number, true, false or null
		switch s.b[s.i] {
		case ',', ']', '}', ' ', '\t', '\r', '\n':
			return nil
		}
		s.i++
	}
	return nil
}

// skipInside passes over the rest of an array or object up to its closer.
func (s *scanner) skipInside(closer byte, depth int) error {
	if s.peek() == closer {
		s.i++
		return nil
	}
	for {
		if closer == '}' {
			if _, _, err := s.raw(); err != nil {
				return err
			}
			if err := s.expect(':'); err != nil {
				return err
			}
		}
		if err := s.skip(depth + 1); err != nil {
			return err
		}
		if s.peek() == closer {
			s.i++
			return nil
		}
		if err := s.expect(','); err != nil {
			return err
		}
	}
}

// unquote resolves the escapes of a JSON string (RFC 8259 section 7). Bytes
// that are no UTF-8 stay as they are; a malformed escape stays as written.
func unquote(raw []byte) string {
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' || i+1 == len(raw) {
			out = append(out, raw[i])
			continue
		}
		i++
		switch c := raw[i]; c {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, n := codePoint(raw[i+1:])
			if n == 0 {
				out = append(out, '\\', 'u')
				continue
			}
			out = utf8.AppendRune(out, r)
			i += n
		default:
			out = append(out, c)
		}
	}
	return string(out)
}

// codePoint reads the digits after \u, a second half of a surrogate pair
// included, and returns how many bytes they took; 0 if they are malformed.
func codePoint(b []byte) (rune, int) {
	r, ok := hex4(b)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(r) {
		return r, 4
	}
	if len(b) >= 10 && b[4] == '\\' && b[5] == 'u' {
		if low, ok := hex4(b[6:]); ok {
			if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
				return pair, 10
			}
		}
	}
	return utf8.RuneError, 4
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
		d := unhex(c)
		if d > 15 {
			return 0, false
		}
		r = r<<4 | rune(d)
	}
	return r, true
}
