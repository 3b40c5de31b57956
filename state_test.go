package bulkhead

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// drawState draws a state, valid or not, in which ids often come again.
func drawState(t *rapid.T, label string) State {
	id := rapid.SampledFrom([]string{"a", "b", "c", "d"})
	word := rapid.SampledFrom([]string{"", "x", "y"})
	c := Change{}
	for range rapid.IntRange(0, 3).Draw(t, label+" cells") {
		c.Cells = append(c.Cells, Cell{ID: CellID(id.Draw(t, "id")), MaxTenants: rapid.IntRange(0, 2).Draw(t, "max")})
	}
	for range rapid.IntRange(0, 3).Draw(t, label+" pools") {
		c.Pools = append(c.Pools, Pool{ID: PoolID(id.Draw(t, "id")), Profile: ProfileID(word.Draw(t, "profile"))})
	}
	for range rapid.IntRange(0, 3).Draw(t, label+" nodes") {
		c.Nodes = append(c.Nodes, Node{ID: NodeID(id.Draw(t, "id")), Drain: rapid.Bool().Draw(t, "drain")})
	}
	for range rapid.IntRange(0, 3).Draw(t, label+" sbcs") {
		c.SBCs = append(c.SBCs, SBC{ID: SBCID(id.Draw(t, "id")), Names: rapid.SliceOfN(word, 0, 2).Draw(t, "names")})
	}
	for range rapid.IntRange(0, 4).Draw(t, label+" tenants") {
		tn := Tenant{ID: TenantID(id.Draw(t, "id")), Name: word.Draw(t, "name"), Domains: rapid.SliceOfN(word, 0, 2).Draw(t, "domains")}
		for range rapid.IntRange(0, 2).Draw(t, "users") {
			tn.Users = append(tn.Users, User{Extension: word.Draw(t, "extension")})
		}
		if rapid.Bool().Draw(t, "source") {
			tn.Sources = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		}
		c.Tenants = append(c.Tenants, tn)
	}
	s := State{}.Apply(&c)
	s.Revision = RevisionNumber(rapid.IntRange(0, 9).Draw(t, "revision"))
	return s
}

// text is a state in a form that can be compared.
func text(t *rapid.T, s State) string {
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestDiffApply(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, to := drawState(t, "from"), drawState(t, "to")
		before := text(t, s)
		c := s.Diff(to)
		got := s.Apply(&c)
		if got.Revision != s.Revision+1 {
			t.Fatalf("revision %d after %d", got.Revision, s.Revision)
		}
		got.Revision = to.Revision
		if text(t, got) != text(t, to) {
			t.Fatalf("got  %s\nwant %s", text(t, got), text(t, to))
		}
		if text(t, s) != before {
			t.Fatal("Apply changed the state it was called on")
		}
		if c.IsZero() != (len(differing(t, s, to)) == 0) {
			t.Fatalf("IsZero is %v of %+v", c.IsZero(), c)
		}
		if again := to.Diff(got); !again.IsZero() {
			t.Fatalf("a second difference: %+v", again)
		}
		if all := to.Change(); text(t, State{Revision: to.Revision - 1}.Apply(&all)) != text(t, to) {
			t.Fatal("Change does not make the state out of nothing")
		}
		// A change survives being stored.
		var stored Change
		b, err := json.Marshal(&c)
		if err == nil {
			err = json.Unmarshal(b, &stored)
		}
		if err != nil {
			t.Fatal(err)
		}
		after := s.Apply(&stored)
		after.Revision = to.Revision
		if text(t, after) != text(t, to) {
			t.Fatalf("the stored change leads to %s", text(t, after))
		}
	})
}

// differing says in what two states differ, by comparing them as text.
func differing(t *rapid.T, a, b State) []string {
	a.Revision, b.Revision = 0, 0
	if text(t, a) == text(t, b) {
		return nil
	}
	return []string{text(t, a), text(t, b)}
}

func TestApply(t *testing.T) {
	s := State{}.Apply(&Change{
		Cells:   []Cell{{ID: "a"}, {ID: "b"}},
		Tenants: []Tenant{{ID: "t", Name: "first"}, {ID: "t", Name: "last"}},
		Delete:  Deletion{Cells: []CellID{"b", "never-there"}},
	})
	if len(s.Cells) != 1 || s.Cells["a"] == nil {
		t.Errorf("cells %v: deletions come after puts", slices.Collect(maps.Keys(s.Cells)))
	}
	if s.Tenants["t"].Name != "last" {
		t.Errorf("of two puts of one id %q won, want the last", s.Tenants["t"].Name)
	}
	next := s.Apply(&Change{Tenants: []Tenant{{ID: "u"}}})
	if fmt.Sprintf("%p", next.Cells) != fmt.Sprintf("%p", s.Cells) || next.Tenants["t"] != s.Tenants["t"] {
		t.Error("what did not change is not shared")
	}
	if len(s.Tenants) != 1 || len(next.Tenants) != 2 {
		t.Errorf("%d tenants before and %d after", len(s.Tenants), len(next.Tenants))
	}
}

func TestChangeIsZero(t *testing.T) {
	if c := (Change{}); !c.IsZero() {
		t.Error("an empty change is not zero")
	}
	for i, c := range []Change{
		{Cells: make([]Cell, 1)}, {Pools: make([]Pool, 1)}, {Nodes: make([]Node, 1)}, {SBCs: make([]SBC, 1)}, {Tenants: make([]Tenant, 1)},
		{Delete: Deletion{Cells: []CellID{"a"}}}, {Delete: Deletion{Pools: []PoolID{"a"}}}, {Delete: Deletion{Nodes: []NodeID{"a"}}},
		{Delete: Deletion{SBCs: []SBCID{"a"}}}, {Delete: Deletion{Tenants: []TenantID{"a"}}},
	} {
		if c.IsZero() {
			t.Errorf("change %d is zero: %+v", i, c)
		}
	}
}
