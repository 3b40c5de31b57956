package route_test

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// drawChange draws a change after which the world's state is valid.
func (w *world) drawChange(t *rapid.T) bulkhead.Change {
	for {
		var c bulkhead.Change
		for range rapid.IntRange(1, 3).Draw(t, "parts") {
			w.drawPart(t, &c)
		}
		if !c.IsZero() && w.state.Apply(&c).Validate() == nil {
			return c
		}
	}
}

func (w *world) drawPart(t *rapid.T, c *bulkhead.Change) {
	ids := slices.Sorted(maps.Keys(w.state.Tenants))
	part := rapid.IntRange(0, 9).Draw(t, "part")
	if part > 1 && part < 7 && len(ids) == 0 {
		part = 0
	}
	some := func() bulkhead.Tenant { return *w.state.Tenants[rapid.SampledFrom(ids).Draw(t, "tenant")] }
	switch part {
	case 0, 1: // a new tenant, or all of an old one anew
		cell := rapid.SampledFrom(slices.Sorted(maps.Keys(w.state.Cells))).Draw(t, "cell")
		k := w.drawTenant(t, rapid.IntRange(0, 12).Draw(t, "id"), cell, rapid.SampledFrom([]bulkhead.ProfileID{"standard", "high_volume"}).Draw(t, "profile"))
		for range rapid.IntRange(0, 3).Draw(t, "sources") {
			k.Sources = append(k.Sources, drawNetwork(t))
		}
		w.nets = append(w.nets, k.Sources...)
		c.Tenants = append(c.Tenants, k)
	case 2, 3: // one more or one less of something
		c.Tenants = append(c.Tenants, w.drawTouched(t, some()))
	case 4: // what is one's becomes the other's
		a, b := some(), some()
		a.Domains, b.Domains = b.Domains, a.Domains
		a.Sources, b.Sources = b.Sources, a.Sources
		a.Users, b.Users = b.Users, a.Users
		a.Numbers, b.Numbers = b.Numbers, a.Numbers
		c.Tenants = append(c.Tenants, a, b)
	case 5:
		c.Delete.Tenants = append(c.Delete.Tenants, some().ID, "nobody")
	case 6: // put twice: the last counts
		k := some()
		c.Tenants = append(c.Tenants, w.drawTouched(t, k), w.drawTouched(t, k))
	case 7:
		w.drawSBC(t, c)
	default:
		w.drawNode(t, c)
	}
}

func (w *world) drawTouched(t *rapid.T, k bulkhead.Tenant) bulkhead.Tenant {
	switch rapid.IntRange(0, 5).Draw(t, "touch") {
	case 0:
		k.Name = "Renamed"
	case 1:
		k.Domains = append(slices.Clone(k.Domains), fmt.Sprintf("d%d.example", rapid.IntRange(0, 4).Draw(t, "domain")))
		w.domains = append(w.domains, k.Domains...)
	case 2:
		k.Domains = k.Domains[len(k.Domains)-1:]
	case 3:
		k.Sources = append(slices.Clone(k.Sources), drawNetwork(t))
		w.nets = append(w.nets, k.Sources...)
	case 4:
		k.Sources = k.Sources[len(k.Sources)/2:]
	case 5:
		if n := len(k.Users); n > 0 {
			k.Users = append(slices.Clone(k.Users), bulkhead.User{Extension: fmt.Sprint(2000 + n), HA1: fmt.Sprintf("%032x", n)})
			k.Numbers = nil
		}
	}
	return k
}

func (w *world) drawSBC(t *rapid.T, c *bulkhead.Change) {
	id := rapid.SampledFrom(w.sbcs).Draw(t, "sbc")
	old := w.state.SBCs[id]
	if old == nil || rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
		c.Delete.SBCs = append(c.Delete.SBCs, id)
		c.Cells = append(c.Cells, *w.state.Cells["c0"])
		return
	}
	b := *old
	b.Names = rapid.SampledFrom([][]string{nil, {"sip.shared.example"}, {"sip.other.example"}}).Draw(t, "names")
	w.domains = append(w.domains, b.Names...)
	c.SBCs = append(c.SBCs, b)
}

func (w *world) drawNode(t *rapid.T, c *bulkhead.Change) {
	ids := slices.Sorted(maps.Keys(w.state.Nodes))
	if len(ids) == 0 || rapid.IntRange(0, 3).Draw(t, "new") == 0 {
		port := rapid.IntRange(7500, 7510).Draw(t, "port")
		pool := rapid.SampledFrom(slices.Sorted(maps.Keys(w.state.Pools))).Draw(t, "pool")
		c.Nodes = append(c.Nodes, bulkhead.Node{ID: bulkhead.NodeID(fmt.Sprintf("n%d", port)), Pool: pool, SIP: fmt.Sprintf("127.0.0.1:%d", port)})
		return
	}
	n := *w.state.Nodes[rapid.SampledFrom(ids).Draw(t, "node")]
	if rapid.Bool().Draw(t, "gone") {
		c.Delete.Nodes = append(c.Delete.Nodes, n.ID)
		return
	}
	n.Drain = !n.Drain
	c.Nodes = append(c.Nodes, n)
}

// seen is all that can be seen of a snapshot: its tables, and what it decides
// on some calls.
type seen struct {
	Tables []route.Tables
	Plans  []route.Plan
	Owners []bulkhead.TenantID
	Count  int
}

func (w *world) see(t *rapid.T, x *route.Snapshot, calls []route.Call) (s seen) {
	for _, id := range w.sbcs {
		if x.SBC(id) == nil {
			continue
		}
		tables, err := route.MakeTables(x, id)
		if err != nil {
			t.Fatal(err)
		}
		s.Tables = append(s.Tables, tables)
	}
	own := func(k *bulkhead.Tenant) {
		id := bulkhead.TenantID("")
		if k != nil {
			id = k.ID
		}
		s.Owners = append(s.Owners, id, bulkhead.TenantID(x.PoolOf(id)))
	}
	for _, c := range calls {
		s.Plans = append(s.Plans, route.Decide(x, c))
		own(x.TenantByDomain(c.Domain))
		own(x.TenantBySource(c.Source))
		own(x.Tenant(c.Tenant))
	}
	for k := range x.Tenants() {
		for _, u := range k.Users {
			if got := x.User(k.ID, u.Extension); got == nil || *got != u {
				t.Fatalf("user %s of %s is %+v, want %+v", u.Extension, k.ID, got, u)
			}
		}
		s.Count++
	}
	if s.Count != x.TenantCount() {
		t.Fatalf("%d tenants are counted, but there are %d", x.TenantCount(), s.Count)
	}
	return s
}

func (w *world) drawCall(t *rapid.T) route.Call {
	c := route.Call{
		SBC: rapid.SampledFrom(w.sbcs).Draw(t, "sbc"), Domain: w.drawDomain(t), Source: w.drawSource(t), Number: w.drawNumber(t),
	}
	if rapid.Bool().Draw(t, "located") {
		c.Tenant = bulkhead.TenantID(fmt.Sprintf("t%d", rapid.IntRange(0, 12).Draw(t, "tenant")))
	}
	if rapid.Bool().Draw(t, "proved") {
		c.User = drawFrom(t, "user", w.users, "1001", "9")
	}
	return c
}

// A snapshot that came about by changes is the one that New makes of the
// state, and the one before is what it was.
func TestApplyIsNew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		type version struct {
			x     *route.Snapshot
			state bulkhead.State
			calls []route.Call
			seen  seen
		}
		x := route.New(w.state)
		var versions []version
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			c := w.drawChange(t)
			// Now and then from an older one: two may come of one.
			if len(versions) > 0 && rapid.IntRange(0, 4).Draw(t, "older") == 0 {
				v := rapid.SampledFrom(versions).Draw(t, "from")
				x, w.state = v.x, v.state
				if w.state.Apply(&c).Validate() != nil {
					continue
				}
			}
			w.state = w.state.Apply(&c)
			w.state.Revision += bulkhead.RevisionNumber(rapid.IntRange(0, 2).Draw(t, "skipped"))
			x = x.Apply(&c, w.state.Revision)
			v := version{x: x, state: w.state}
			for range 6 {
				v.calls = append(v.calls, w.drawCall(t))
			}
			v.seen = w.see(t, x, v.calls)
			if d := differ(w.see(t, route.New(w.state), v.calls), v.seen); d != "" {
				t.Fatalf("after %+v (-New +Apply):\n%s", c, d)
			}
			got := x.State()
			to, back := got.Diff(w.state), w.state.Diff(got)
			if got.Revision != w.state.Revision || !to.IsZero() || !back.IsZero() {
				t.Fatalf("revision %d, missing %+v; want revision %d", got.Revision, to, w.state.Revision)
			}
			versions = append(versions, v)
		}
		for _, v := range versions {
			if d := differ(v.seen, w.see(t, v.x, v.calls)); d != "" {
				t.Fatalf("revision %d was changed later (-then +now):\n%s", v.x.Revision(), d)
			}
		}
	})
}

// Readers go on while changes are made; the race detector looks on.
func TestApplyWhileDeciding(t *testing.T) {
	const tenants, changes = 50, 300
	s := crowd(tenants)
	live := &route.Live{}
	live.Store(route.New(s))
	asked := calls(tenants)
	var wg sync.WaitGroup
	for r := range 4 {
		wg.Go(func() {
			for i := r; live.Load().Revision() < 1+changes; i++ {
				x := live.Load()
				// Tenant 0 comes and goes; the others are always there.
				c := asked[i%len(asked)]
				if p := route.Decide(x, c); p.Tenant == "" && x.Tenant("tenant0") != nil {
					t.Errorf("revision %d refuses %+v: %+v", x.Revision(), c, p)
					return
				}
				if n := len(x.State().Tenants); n != x.TenantCount() {
					t.Errorf("the state has %d tenants, the snapshot %d", n, x.TenantCount())
					return
				}
			}
		})
	}
	for i := range changes {
		var c bulkhead.Change
		k := *s.Tenants[bulkhead.TenantID(fmt.Sprintf("tenant%d", i/2%tenants))]
		if i%2 == 0 && k.ID == "tenant0" {
			c.Delete.Tenants = append(c.Delete.Tenants, k.ID)
		} else {
			k.Name = fmt.Sprint("Name ", i)
			c.Tenants = append(c.Tenants, k)
		}
		live.Store(live.Load().Apply(&c, live.Load().Revision()+1))
	}
	wg.Wait()
}

// The caller may use its change again: its objects were copied. The lists in
// them are shared, as with State.Apply.
func TestApplyCopiesTheChange(t *testing.T) {
	x := route.New(crowd(1))
	c := bulkhead.Change{Tenants: []bulkhead.Tenant{*x.Tenant("tenant0")}}
	c.Tenants[0].Name = "Before"
	y := x.Apply(&c, 2)
	c.Tenants[0].Name = "After"
	if got := y.Tenant("tenant0").Name; got != "Before" || x.Tenant("tenant0").Name != "" {
		t.Errorf("the tenants are named %q and %q", x.Tenant("tenant0").Name, got)
	}
	if got := y.TenantBySource(netip.MustParseAddr("10.0.0.1")).Name; got != "Before" {
		t.Errorf("by source the tenant is named %q", got)
	}
}

// differ is cmp.Diff, which takes its time even over what is the same.
func differ(a, b seen) string {
	if reflect.DeepEqual(a, b) {
		return ""
	}
	return cmp.Diff(a, b)
}
