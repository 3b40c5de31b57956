package asterisk

import (
	"bytes"
	"strconv"
	"strings"
)

// maxConds bounds the conditions of one realtime request; Asterisk sends at
// most a handful.
const maxConds = 32

// question is a realtime question as res_config_curl puts it.
type question struct {
	family string // ps_endpoints, ...
	op     string // single, multi, store, update, destroy, require, static
	conds  []cond
}

// cond is one condition: "id=101", or "id LIKE=%" with the operator in the name.
type cond struct {
	field string
	op    string // "", "LIKE", "<", "<=", ">", ">=", "!="
	value string
}

// parseRequest reads the path below the base, such as ps_endpoints/single, and
// the body. Whatever it holds, there is a request: what makes no sense asks for
// a family that does not exist.
func parseRequest(path string, body []byte) question {
	family, op, _ := strings.Cut(strings.Trim(path, "/"), "/")
	r := question{family: family, op: op}
	if op != "single" && op != "multi" {
		return r // writes change nothing, so what they would write is not read
	}
	for len(body) > 0 && len(r.conds) < maxConds {
		var pair []byte
		pair, body, _ = bytes.Cut(body, []byte("&"))
		name, value, ok := bytes.Cut(pair, []byte("="))
		if !ok || len(name) == 0 {
			continue
		}
		c := cond{value: unescape(value)}
		c.field, c.op, _ = strings.Cut(unescape(name), " ")
		r.conds = append(r.conds, c)
	}
	return r
}

// unescape decodes percent encoding; '+' stays a plus sign, and what is no
// encoding stays as it is.
func unescape(b []byte) string {
	if bytes.IndexByte(b, '%') < 0 {
		return string(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '%' && i+2 < len(b) {
			if v, err := strconv.ParseUint(string(b[i+1:i+3]), 16, 8); err == nil {
				out = append(out, byte(v))
				i += 2
				continue
			}
		}
		out = append(out, b[i])
	}
	return string(out)
}

// appendEscaped writes s as Asterisk reads it: everything but letters, digits
// and -_.~ percent-encoded, a space as %20, never as '+'.
func appendEscaped(dst []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		c := s[i]
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' || c == '.' || c == '~' {
			dst = append(dst, c)
			continue
		}
		dst = append(dst, '%', hex[c>>4], hex[c&15])
	}
	return dst
}

// record is the columns of one object, in order; a name may repeat.
type record []column

type column struct{ name, value string }

func (r *record) add(name, value string) { *r = append(*r, column{name, value}) }

// get returns the first column of a name.
func (r record) get(name string) (string, bool) {
	for i := range r {
		if r[i].name == name {
			return r[i].value, true
		}
	}
	return "", false
}

// appendRow writes a row as one line.
func appendRow(dst []byte, r record) []byte {
	for i := range r {
		if i > 0 {
			dst = append(dst, '&')
		}
		dst = append(dst, r[i].name...)
		dst = append(dst, '=')
		dst = appendEscaped(dst, r[i].value)
	}
	return append(dst, '\n')
}

// matches tells whether a row fits all conditions. A column that the row does
// not have fits none.
func (r record) matches(conds []cond) bool {
	for _, c := range conds {
		v, ok := r.get(c.field)
		if !ok || !c.holds(v) {
			return false
		}
	}
	return true
}

func (c cond) holds(v string) bool {
	switch c.op {
	case "":
		return v == c.value
	case "LIKE":
		return like(c.value, v)
	case "!=":
		return v != c.value
	}
	a, errA := strconv.ParseInt(v, 10, 64)
	b, errB := strconv.ParseInt(c.value, 10, 64)
	if errA != nil || errB != nil {
		return false
	}
	switch c.op {
	case "<":
		return a < b
	case "<=":
		return a <= b
	case ">":
		return a > b
	case ">=":
		return a >= b
	}
	return false
}

// like matches SQL's LIKE: % is any text, _ any byte, and a backslash takes the
// meaning from what follows. It goes back to the last % only, so that the cost
// is the product of the lengths at most.
func like(pattern, s string) bool {
	p, i := 0, 0
	star, from := -1, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '%' {
			star, from = p, i
			p++
			continue
		}
		if p < len(pattern) {
			c, width := pattern[p], 1
			literal := false
			if c == '\\' && p+1 < len(pattern) {
				c, width, literal = pattern[p+1], 2, true
			}
			if c == s[i] || (c == '_' && !literal) {
				p += width
				i++
				continue
			}
		}
		if star < 0 {
			return false
		}
		from++
		p, i = star+1, from
	}
	for p < len(pattern) && pattern[p] == '%' {
		p++
	}
	return p == len(pattern)
}
