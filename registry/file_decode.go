package registry

import (
	"crypto/md5" //nolint:gosec // SIP digest authentication is made of it
	"encoding/hex"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-voip/bulkhead"
)

// key is a key that a mapping may have, and the struct field it fills.
type key struct {
	name  string
	index int
}

const passwordKey = "password"

var (
	prefixType = reflect.TypeFor[netip.Prefix]()
	userType   = reflect.TypeFor[bulkhead.User]()
)

// keysOf lists the keys of a struct: its JSON names, so that a file and the
// API have the same words.
func keysOf(t reflect.Type) []key {
	keys := make([]key, 0, t.NumField()+1)
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		keys = append(keys, key{name, i})
	}
	if t == userType {
		keys = append(keys, key{passwordKey, -1})
	}
	return keys
}

// decode fills the struct to which v points.
func (l *loader) decode(n *yaml.Node, field string, v any) {
	l.value(n, field, reflect.ValueOf(v).Elem())
}

func (l *loader) value(n *yaml.Node, field string, v reflect.Value) {
	if v.Type() == prefixType {
		l.prefix(n, field, v)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		l.fields(n, field, v)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		l.value(n, field, v.Elem())
	case reflect.Slice:
		if !l.is(n, yaml.SequenceNode, field) {
			return
		}
		// Exactly as long as needed: passwords point into it.
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, c := range n.Content {
			l.value(c, fmt.Sprintf("%s[%d]", field, i), v.Index(i))
		}
	case reflect.String:
		if l.is(n, yaml.ScalarNode, field) {
			v.SetString(n.Value)
		}
	case reflect.Bool:
		if l.is(n, yaml.ScalarNode, field) {
			if n.Tag != "!!bool" {
				l.fail(n.Line, field, "is neither true nor false")
				return
			}
			v.SetBool(strings.EqualFold(n.Value, "true"))
		}
	case reflect.Int, reflect.Uint16:
		if l.is(n, yaml.ScalarNode, field) {
			l.number(n, field, v)
		}
	default:
		l.fail(n.Line, field, "cannot be given in a file")
	}
}

// is reports whether n has the kind, and says what else it is if not.
func (l *loader) is(n *yaml.Node, want yaml.Kind, field string) bool {
	words := map[yaml.Kind]string{yaml.SequenceNode: "a list", yaml.MappingNode: "a group of keys", yaml.ScalarNode: "a single value"}
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		hint := `leave it out, or write "" for an empty text`
		switch want {
		case yaml.SequenceNode:
			hint = "leave it out, or write [] for an empty list"
		case yaml.MappingNode:
			hint = "leave it out"
		}
		l.fail(n.Line, field, "has no value: %s", hint)
		return false
	case n.Kind != want:
		l.fail(n.Line, field, "is %s where %s is wanted", words[n.Kind], words[want])
		return false
	}
	return true
}

func (l *loader) number(n *yaml.Node, field string, v reflect.Value) {
	limit := int64(1) << 31
	if v.Kind() == reflect.Uint16 {
		limit = 1 << 16
	}
	i, err := strconv.ParseInt(n.Value, 10, 64)
	switch {
	case err != nil || n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		l.fail(n.Line, field, "is not a whole number in digits without quotes")
	case i >= limit || i < 0:
		l.fail(n.Line, field, "%d is not within 0 to %d", i, limit-1)
	case v.CanUint():
		v.SetUint(uint64(i)) //nolint:gosec // within 0 to 65535, see above
	default:
		v.SetInt(i)
	}
}

func (l *loader) prefix(n *yaml.Node, field string, v reflect.Value) {
	if !l.is(n, yaml.ScalarNode, field) {
		return
	}
	p, err := netip.ParsePrefix(n.Value)
	if err == nil {
		v.Set(reflect.ValueOf(p))
		return
	}
	if a, err := netip.ParseAddr(n.Value); err == nil && a.Zone() == "" {
		l.fail(n.Line, field, "%s is an address: write %s/%d for this one alone", a, a, a.BitLen())
		return
	}
	l.fail(n.Line, field, "%s is not a network such as 192.0.2.0/24", quote(n.Value))
}

// fields fills a struct from a mapping.
func (l *loader) fields(n *yaml.Node, field string, v reflect.Value) {
	keys := keysOf(v.Type())
	values := l.mapping(n, field, keys)
	for _, k := range keys {
		c := values[k.name]
		if c == nil || k.index < 0 {
			continue
		}
		l.value(c, field+"."+k.name, v.Field(k.index))
	}
	if u, ok := v.Addr().Interface().(*bulkhead.User); ok && n.Kind == yaml.MappingNode {
		l.user(n, field, values, u)
	}
}

// user notes a password for when the realm is known.
func (l *loader) user(n *yaml.Node, field string, values map[string]*yaml.Node, u *bulkhead.User) {
	secret, ha1 := values[passwordKey], values["ha1"]
	switch {
	case secret == nil && ha1 == nil:
		l.fail(n.Line, field, "has neither password nor ha1")
	case secret != nil && ha1 != nil:
		l.fail(secret.Line, field, "has both password and ha1: leave one out")
	case secret == nil:
	case secret.Value == "" && secret.Kind == yaml.ScalarNode, secret.Tag == "!!null":
		l.fail(secret.Line, field+"."+passwordKey, "is empty")
	case l.is(secret, yaml.ScalarNode, field+"."+passwordKey):
		l.passwords = append(l.passwords, password{u, secret, field + "." + passwordKey})
	}
}

// secrets turns the tenant's passwords into HA1s and wipes them from the
// nodes, which live as long as the File.
func (l *loader) secrets(t *bulkhead.Tenant) {
	for _, p := range l.passwords {
		if t.Realm() == "" {
			l.fail(p.node.Line, p.field, "cannot be used without a domain of the tenant: its first one is the digest realm")
			continue
		}
		sum := md5.Sum([]byte(p.user.Extension + ":" + t.Realm() + ":" + p.node.Value)) //nolint:gosec // RFC 3261 section 22
		p.user.HA1 = hex.EncodeToString(sum[:])
		p.node.Value = ""
	}
	l.passwords = l.passwords[:0]
}

// mapping returns the values under the known keys, and reports the others.
func (l *loader) mapping(n *yaml.Node, field string, known []key) map[string]*yaml.Node {
	if !l.is(n, yaml.MappingNode, field) {
		return nil
	}
	values := make(map[string]*yaml.Node, len(n.Content)/2)
	first := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch {
		case k.Kind != yaml.ScalarNode:
			l.fail(k.Line, field, "has a key that is not plain text")
		case first[k.Value] > 0:
			l.fail(k.Line, field, "has the key %s twice: the first is at %s:%d", quote(k.Value), l.name, first[k.Value])
		case !slices.ContainsFunc(known, func(o key) bool { return o.name == k.Value }):
			first[k.Value] = k.Line
			l.fail(k.Line, field, "unknown key %s: %s", quote(k.Value), suggest(k.Value, known))
		default:
			first[k.Value] = k.Line
			values[k.Value] = v
		}
	}
	return values
}

// quote quotes what the operator wrote, or as much of it as a line takes.
func quote(s string) string {
	const limit = 80
	if len(s) > limit {
		return strconv.Quote(s[:limit]) + "..."
	}
	return strconv.Quote(s)
}

// suggest names the known keys that are nearest to an unknown one.
func suggest(unknown string, known []key) string {
	var near, all []string
	best := 3
	for _, k := range known {
		all = append(all, k.name)
		switch d := distance(unknown, k.name, best+1); {
		case d < best && d <= max(1, len(k.name)/2):
			best, near = d, []string{k.name}
		case d == best && len(near) > 0:
			near = append(near, k.name)
		}
	}
	if len(near) > 0 {
		return "did you mean " + strings.Join(near, " or ") + "?"
	}
	return "the keys here are " + strings.Join(all, ", ")
}

// distance is the number of letters to put, drop, change or swap with their
// neighbour to make a from b, or limit if it is no less.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return min(rows[len(a)][len(b)], limit)
}
