package configsvc

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of a JSON body. They hold the memory that a request takes to a small
// multiple of its length, and that of the answer to little.
const (
	maxDepth     = 32
	maxTokens    = 2_000_000
	maxText      = 4096    // bytes of one text
	maxList      = 200_000 // entries of one list
	maxIssues    = 100     // that one answer names
	maxKeyQuoted = 64
)

// issue is one thing that is wrong with a request.
type issue struct {
	Pointer string `json:"pointer,omitempty"` // RFC 6901, into the request's body
	Field   string `json:"field,omitempty"`   // the path of a field that is not in the body
	Detail  string `json:"detail"`
}

// secret is a password on its way to becoming an HA1. It prints as nothing.
type secret string

// String hides the secret.
func (secret) String() string { return "REDACTED" }

// GoString hides the secret.
func (secret) GoString() string { return "REDACTED" }

// decoder reads one JSON document strictly: keys are matched to the letter,
// an unknown or repeated one is an error, and every error names its place.
// encoding/json ignores case and takes the last of two keys, which lets two
// readers of one document see two things.
type decoder struct {
	d      *json.Decoder
	body   []byte
	merge  bool // RFC 7396: keys that are not there stay, null takes away
	depth  int
	tokens int
	issues []issue
	fields map[reflect.Type]map[string][]int
}

// errStop ends a decode whose reason is among the issues.
var errStop = errors.New("stop")

// decodeJSON reads body into the struct to which v points. With merge the
// struct holds what the document changes; its lists are replaced, not shared.
func decodeJSON(body []byte, v any, merge bool) []issue {
	d := &decoder{d: json.NewDecoder(bytes.NewReader(body)), body: body, merge: merge, fields: map[reflect.Type]map[string][]int{}}
	d.d.UseNumber()
	if !utf8.Valid(body) {
		return []issue{{Detail: "the body is not UTF-8"}}
	}
	t, err := d.next()
	if err == nil {
		err = d.object("", t, reflect.ValueOf(v).Elem())
	}
	if err == nil {
		if _, err = d.d.Token(); err == nil {
			d.fail("", "something follows the document: send one object")
		} else if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err != nil && !errors.Is(err, errStop) {
		d.fail("", "is not JSON: %v, in line %d", err, 1+bytes.Count(body[:min(int(d.d.InputOffset()), len(body))], []byte("\n")))
	}
	return d.issues
}

func (d *decoder) fail(pointer, format string, args ...any) {
	if len(d.issues) < maxIssues {
		d.issues = append(d.issues, issue{Pointer: pointer, Detail: fmt.Sprintf(format, args...)})
	}
}

func (d *decoder) next() (json.Token, error) {
	if len(d.issues) == maxIssues {
		return nil, errStop // enough is known
	}
	t, err := d.d.Token()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	if d.tokens++; d.tokens > maxTokens {
		d.fail("", "the document has over %d parts: split it", maxTokens)
		return nil, errStop
	}
	switch t {
	case json.Delim('{'), json.Delim('['):
		if d.depth++; d.depth > maxDepth {
			d.fail("", "is nested deeper than %d levels", maxDepth)
			return nil, errStop
		}
	case json.Delim('}'), json.Delim(']'):
		d.depth--
	}
	return t, nil
}

// skip passes over the rest of a value that began with t.
func (d *decoder) skip(t json.Token) error {
	if t != json.Delim('{') && t != json.Delim('[') {
		return nil
	}
	for depth := d.depth - 1; d.depth > depth; {
		if _, err := d.next(); err != nil {
			return err
		}
	}
	return nil
}

// wrong reports a value of another type.
func (d *decoder) wrong(pointer string, t json.Token, want string) error {
	have := "null"
	switch t.(type) {
	case string:
		have = "a text"
	case bool:
		have = "true or false"
	case json.Number:
		have = "a number"
	case json.Delim:
		have = "a list"
		if t == json.Delim('{') {
			have = "an object"
		}
	}
	d.fail(pointer, "is %s where %s is wanted", have, want)
	return d.skip(t)
}

var textType = reflect.TypeFor[encoding.TextUnmarshaler]()

func (d *decoder) value(pointer string, t json.Token, v reflect.Value) error {
	if t == nil && d.merge {
		v.SetZero()
		return nil
	}
	if v.CanAddr() && v.Addr().Type().Implements(textType) {
		return d.text(pointer, t, v)
	}
	switch v.Kind() {
	case reflect.Pointer:
		made := reflect.New(v.Type().Elem()) // new: what is there may be shared with a state
		if d.merge && !v.IsNil() {
			made.Elem().Set(v.Elem())
		}
		v.Set(made)
		return d.value(pointer, t, v.Elem())
	case reflect.Struct:
		return d.object(pointer, t, v)
	case reflect.Slice:
		return d.list(pointer, t, v)
	case reflect.String:
		s, ok := t.(string)
		if !ok {
			return d.wrong(pointer, t, "a text")
		}
		if len(s) > maxText {
			d.fail(pointer, "is over %d bytes long", maxText)
			return nil
		}
		v.SetString(s)
	case reflect.Bool:
		b, ok := t.(bool)
		if !ok {
			return d.wrong(pointer, t, "true or false")
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64, reflect.Uint16, reflect.Uint64:
		return d.number(pointer, t, v)
	default:
		d.fail(pointer, "cannot be given here")
		return d.skip(t)
	}
	return nil
}

func (d *decoder) number(pointer string, t json.Token, v reflect.Value) error {
	n, ok := t.(json.Number)
	if !ok {
		return d.wrong(pointer, t, "a whole number")
	}
	limit := int64(1)<<31 - 1
	if v.Kind() == reflect.Uint16 {
		limit = 1<<16 - 1
	}
	i, err := strconv.ParseInt(string(n), 10, 64)
	switch {
	case err != nil || i < 0 || i > limit:
		d.fail(pointer, "is not a whole number within 0 to %d", limit)
	case v.CanUint():
		v.SetUint(uint64(i)) //nolint:gosec // not negative, see above
	default:
		v.SetInt(i)
	}
	return nil
}

// text reads a type that has a text form of its own: a network.
func (d *decoder) text(pointer string, t json.Token, v reflect.Value) error {
	s, ok := t.(string)
	if !ok {
		return d.wrong(pointer, t, "a text")
	}
	u, _ := v.Addr().Interface().(encoding.TextUnmarshaler) // value has looked
	if len(s) <= maxText && s != "" && u.UnmarshalText([]byte(s)) == nil {
		return nil
	}
	if _, network := v.Interface().(netip.Prefix); network {
		d.fail(pointer, "is not a network such as 192.0.2.0/24")
		return nil
	}
	d.fail(pointer, "is not a %s", v.Type())
	return nil
}

func (d *decoder) list(pointer string, t json.Token, v reflect.Value) error {
	if t != json.Delim('[') {
		return d.wrong(pointer, t, "a list")
	}
	out := reflect.MakeSlice(v.Type(), 0, 0) // new: v may be shared with a state
	merge := d.merge
	d.merge = false // RFC 7396: a list is replaced whole
	defer func() { d.merge = merge }()
	for i := 0; ; i++ {
		t, err := d.next()
		if err != nil {
			return err
		}
		if t == json.Delim(']') {
			v.Set(out)
			return nil
		}
		if i == maxList {
			d.fail(pointer, "has over %d entries", maxList)
			return errStop
		}
		e := reflect.New(v.Type().Elem()).Elem()
		if err := d.value(pointer+"/"+strconv.Itoa(i), t, e); err != nil {
			return err
		}
		out = reflect.Append(out, e)
	}
}

func (d *decoder) object(pointer string, t json.Token, v reflect.Value) error {
	if t != json.Delim('{') {
		return d.wrong(pointer, t, "an object")
	}
	fields, seen := d.fieldsOf(v.Type()), map[string]bool{}
	for {
		t, err := d.next()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return nil // the closing brace: Token lets nothing else come here
		}
		at := pointer + "/" + escapePointer(key)
		if len(key) > maxKeyQuoted {
			at = pointer
		}
		value, err := d.next()
		if err != nil {
			return err
		}
		index, known := fields[key]
		switch {
		case seen[key]:
			d.fail(at, "is there twice")
			err = d.skip(value)
		case !known:
			d.fail(at, "is not a key that is known here")
			err = d.skip(value)
		default:
			seen[key] = true
			err = d.value(at, value, v.FieldByIndex(index))
		}
		if err != nil {
			return err
		}
	}
}

// fieldsOf maps the JSON names of a struct to its fields. A field of an
// embedded struct gives way to one of the same Go name outside.
func (d *decoder) fieldsOf(t reflect.Type) map[string][]int {
	if m := d.fields[t]; m != nil {
		return m
	}
	m := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" && f.IsExported() {
			m[name] = f.Index
		}
	}
	d.fields[t] = m
	return m
}

// escapePointer makes a reference token of RFC 6901, section 3.
func escapePointer(s string) string {
	if !strings.ContainsAny(s, "~/") {
		return s
	}
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(s)
}
