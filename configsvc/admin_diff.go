package configsvc

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"

	"github.com/bulkhead-voip/bulkhead"
)

// Difference is one field, entry or object that a change touches.
type Difference struct {
	Object string `json:"object"`         // such as tenants[acme]
	Path   string `json:"path,omitempty"` // within it, such as users[1001].name; empty: the object itself
	Action string `json:"action"`         // add, remove or change
	From   any    `json:"from,omitempty"` // of a field that was changed or removed
	To     any    `json:"to,omitempty"`   // of a field that was changed or added
}

// Differences tells what c changes in from, field by field: at most limit of
// them, and whether there are more. Entries of lists go by their own key and
// not by their place. Secrets are never shown, only that they change.
func Differences(from bulkhead.State, c *bulkhead.Change, limit int) (list []Difference, more bool) {
	d := &differ{limit: limit}
	differencesIn(d, cells(), from, c)
	differencesIn(d, pools(), from, c)
	differencesIn(d, nodes(), from, c)
	differencesIn(d, sbcs(), from, c)
	differencesIn(d, tenants(), from, c)
	return d.list, d.more
}

type differ struct {
	limit  int
	object string
	list   []Difference
	more   bool
}

func differencesIn[K ~string, T, B any](d *differ, c *collection[K, T, B], from bulkhead.State, change *bulkhead.Change) {
	have, puts := c.all(from), *c.puts(change)
	for i := range puts {
		id := *c.id(&puts[i])
		d.object = objectName(c.name, string(id))
		if old := have[id]; old != nil {
			d.walk("", tree(old), tree(&puts[i]))
		} else {
			d.add(Difference{Action: "add"})
		}
	}
	for _, id := range *c.dels(change) {
		if d.object = objectName(c.name, string(id)); have[id] != nil {
			d.add(Difference{Action: "remove"})
		}
	}
}

// tree is an object as JSON has it.
func tree(v any) any {
	var out any
	if text, err := json.Marshal(v); err != nil || json.Unmarshal(text, &out) != nil {
		return nil // the domain types encode
	}
	return out
}

func (d *differ) add(x Difference) {
	if len(d.list) == d.limit {
		d.more = true
		return
	}
	x.Object = d.object
	d.list = append(d.list, x)
}

// keyOfEntry names the key of each list whose entries have one.
var keyOfEntry = map[string]string{
	"users": "extension", "numbers": "number", "trunks": "name",
	"groups": "name", "schedules": "name", "announcements": "name", "pbx": "name",
}

// secretKeys are never shown, neither before nor after.
var secretKeys = map[string]bool{"ha1": true, "password": true}

func (d *differ) walk(path string, from, to any) {
	a, ok1 := from.(map[string]any)
	b, ok2 := to.(map[string]any)
	if !ok1 || !ok2 {
		if !reflect.DeepEqual(from, to) {
			d.field(path, from, to)
		}
		return
	}
	for _, k := range unionOfKeys(a, b) {
		at := k
		if path != "" {
			at = path + "." + k
		}
		if secretKeys[k] {
			if a[k] != b[k] {
				d.add(Difference{Path: at, Action: action(a[k], b[k])})
			}
			continue
		}
		if key := keyOfEntry[k]; key != "" && path == "" {
			d.entries(at, byKey(a[k], key), byKey(b[k], key))
			continue
		}
		d.walk(at, a[k], b[k])
	}
}

func unionOfKeys(a, b map[string]any) []string {
	keys := map[string]bool{}
	for k := range a {
		keys[k] = true
	}
	for k := range b {
		keys[k] = true
	}
	return slices.Sorted(maps.Keys(keys))
}

func (d *differ) entries(path string, a, b map[string]any) {
	for _, k := range unionOfKeys(a, b) {
		at := path + "[" + k + "]"
		if a[k] == nil || b[k] == nil {
			d.add(Difference{Path: at, Action: action(a[k], b[k])})
			continue
		}
		d.walk(at, a[k], b[k])
	}
}

func byKey(list any, key string) map[string]any {
	out := map[string]any{}
	entries, _ := list.([]any)
	for _, e := range entries {
		if m, ok := e.(map[string]any); ok {
			if k, ok := m[key].(string); ok {
				out[k] = m
			}
		}
	}
	return out
}

func (d *differ) field(path string, from, to any) {
	d.add(Difference{Path: path, Action: action(from, to), From: from, To: to})
}

func action(from, to any) string {
	switch {
	case from == nil:
		return "add"
	case to == nil:
		return "remove"
	}
	return "change"
}
