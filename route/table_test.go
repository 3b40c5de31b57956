package route

import (
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"
)

func holds(t rapid.TB, what *table[int], want map[string]int) {
	t.Helper()
	if what.len != len(want) {
		t.Fatalf("the table counts %d keys, want %d", what.len, len(want))
	}
	if got := maps.Collect(what.all()); !maps.Equal(got, want) {
		t.Fatalf("the table holds %v, want %v", got, want)
	}
	for k, v := range want {
		if got := what.find(k); got == nil || *got != v {
			t.Fatalf("%q leads to %v, want %d", k, got, v)
		}
	}
	for _, k := range []string{"", "-", "nobody"} {
		if _, ok := want[k]; !ok && what.find(k) != nil {
			t.Fatalf("%q leads to %d", k, *what.find(k))
		}
	}
}

// A table is a map whose older versions stay as they were.
func TestTableIsMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringMatching(`[a-c]{0,3}`)
		var now table[int]
		model := map[string]int{}
		type version struct {
			table table[int]
			want  map[string]int
		}
		versions := []version{{now, maps.Clone(model)}}
		for i := range rapid.IntRange(0, 10).Draw(t, "edits") {
			if rapid.IntRange(0, 3).Draw(t, "older") == 0 {
				v := rapid.SampledFrom(versions).Draw(t, "from")
				now, model = v.table, maps.Clone(v.want)
			}
			e := now.edit(rapid.IntRange(0, 5000).Draw(t, "expect"))
			for range rapid.IntRange(0, 20).Draw(t, "steps") {
				if k := key.Draw(t, "key"); rapid.Bool().Draw(t, "set") {
					e.set(k, i)
					model[k] = i
				} else {
					e.remove(k)
					delete(model, k)
				}
			}
			now = e.done()
			versions = append(versions, version{now, maps.Clone(model)})
		}
		for _, v := range versions {
			holds(t, &v.table, v.want)
		}
	})
}

// Many keys: pages grow, and some buckets get more entries than they have tags.
func TestTableGrows(t *testing.T) {
	var now table[int]
	want := map[string]int{}
	longest := 0
	for round := range 8 {
		e := now.edit(0)
		for i := range 5000 << (round % 4) {
			k := fmt.Sprint(i)
			if round >= 4 && i%3 == 0 {
				e.remove(k)
				delete(want, k)
				continue
			}
			e.set(k, round)
			want[k] = round
		}
		before := now
		now = e.done()
		holds(t, &now, want)
		for _, p := range now.pages {
			for _, b := range p.buckets {
				longest = max(longest, len(b.entries))
			}
		}
		if before.len > 0 && before.find("1") == nil {
			t.Error("the version before has lost a key")
		}
	}
	if longest <= 8 || longest > 30 {
		t.Errorf("the longest bucket had %d entries", longest)
	}
}
