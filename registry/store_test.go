package registry

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
)

// prefixes compares networks by value.
var prefixes = cmp.Comparer(func(a, b interface{ String() string }) bool { return a.String() == b.String() })

// testStore is what every Store must pass. fresh makes a new, empty store and
// returns what opens one more handle on it.
func testStore(t *testing.T, fresh func(t *testing.T) (open func(t *testing.T) Store)) {
	for name, test := range map[string]func(t *testing.T, open func(t *testing.T) Store){
		"empty":             testEmpty,
		"commit":            testCommit,
		"refusals":          testRefusals,
		"nothing shared":    testNothingShared,
		"reopen":            testReopen,
		"two handles":       testTwoHandles,
		"concurrent":        testConcurrent,
		"watch wakes":       testWatchWakes,
		"watch ends":        testWatchEnds,
		"watch from behind": testWatchFromBehind,
	} {
		t.Run(name, func(t *testing.T) { test(t, fresh(t)) })
	}
}

func testEmpty(t *testing.T, open func(*testing.T) Store) {
	s := open(t)
	state := head(t, s)
	if state.Revision != 0 || len(state.Cells)+len(state.Tenants) != 0 {
		t.Fatalf("an empty store has the state %+v", state)
	}
	if _, err := s.Watch(within(t), 1); !errors.Is(err, bulkhead.Conflict) {
		t.Fatalf("watching beyond the head: %v, want a conflict", err)
	}
}

func testCommit(t *testing.T, open func(*testing.T) Store) {
	s := open(t)
	before := time.Now().Add(-time.Second)
	change := example(5)
	r, err := s.Commit(t.Context(), 0, bulkhead.Revision{Number: 77, Parent: 66, Author: "ada", Message: "first", Change: change})
	if err != nil {
		t.Fatal(err)
	}
	if r.Number != 1 || r.Parent != 0 || r.Author != "ada" || r.Message != "first" {
		t.Fatalf("committed %+v", r)
	}
	if r.Time.Before(before) || r.Time.After(time.Now().Add(time.Second)) || r.Time.Location() != time.UTC {
		t.Fatalf("dated %v", r.Time)
	}
	want := bulkhead.State{}.Apply(&change)
	state := head(t, s)
	if state.Revision != 1 {
		t.Fatalf("the head is revision %d", state.Revision)
	}
	same(t, "head", state, want)

	del := bulkhead.Change{Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{"t00001", "never-there"}}}
	moved := tenant(2)
	moved.Name = "Moved"
	del.Tenants = []bulkhead.Tenant{moved}
	commit(t, s, 1, del)
	same(t, "after a deletion", head(t, s), want.Apply(&del))

	got, err := s.Watch(within(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("watch returned %d revisions, want 2", len(got))
	}
	if d := cmp.Diff(r, got[0], prefixes); d != "" {
		t.Fatalf("the revision came back changed (-committed +watched):\n%s", d)
	}
}

func testRefusals(t *testing.T, open func(*testing.T) Store) {
	s := open(t)
	commit(t, s, 0, example(3))
	before := head(t, s)
	ok := bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(9)}}
	thief := tenant(9)
	thief.Domains = append(thief.Domains, "t00001.example")
	long := make([]byte, MaxAuthor+1)
	for _, c := range []struct {
		name string
		base bulkhead.RevisionNumber
		r    bulkhead.Revision
		want bulkhead.Kind
		not  bulkhead.Kind
	}{
		{"old base", 0, bulkhead.Revision{Author: "a", Change: ok}, bulkhead.Conflict, bulkhead.Invalid},
		{"base beyond the head", 2, bulkhead.Revision{Author: "a", Change: ok}, bulkhead.Conflict, bulkhead.Invalid},
		{"no author", 1, bulkhead.Revision{Change: ok}, bulkhead.Invalid, bulkhead.Conflict},
		{"long author", 1, bulkhead.Revision{Author: string(long), Change: ok}, bulkhead.Invalid, bulkhead.Conflict},
		{"message is no text", 1, bulkhead.Revision{Author: "a", Message: "\xff", Change: ok}, bulkhead.Invalid, bulkhead.Conflict},
		{"empty change", 1, bulkhead.Revision{Author: "a"}, bulkhead.Invalid, bulkhead.Conflict},
		{"two owners", 1, bulkhead.Revision{Author: "a", Change: bulkhead.Change{Tenants: []bulkhead.Tenant{thief}}}, bulkhead.Invalid, bulkhead.Conflict},
		{"dangling reference", 1, bulkhead.Revision{Author: "a", Change: bulkhead.Change{Delete: bulkhead.Deletion{Pools: []bulkhead.PoolID{"standard"}}}}, bulkhead.Invalid, bulkhead.Conflict},
	} {
		_, err := s.Commit(t.Context(), c.base, c.r)
		if !errors.Is(err, c.want) || errors.Is(err, c.not) {
			t.Errorf("%s: %v, want the kind %q", c.name, err, c.want)
		}
		if c.name == "two owners" {
			if fe := bulkhead.FieldErrors(err); len(fe) != 1 || fe[0].Field != "tenants[t00009].domains[2]" {
				t.Errorf("%s: field errors %v", c.name, fe)
			}
		}
	}
	after := head(t, s)
	if after.Revision != 1 {
		t.Errorf("a refused commit made revision %d", after.Revision)
	}
	same(t, "after refusals", after, before)
	same(t, "another handle after refusals", head(t, open(t)), before)
}

// testNothingShared changes what a committer and a watcher hold.
func testNothingShared(t *testing.T, open func(*testing.T) Store) {
	s := open(t)
	change := example(2)
	commit(t, s, 0, change)
	want := example(2)
	change.Tenants[0].Domains[0] = "spoilt.example"
	change.Tenants[0].Users[0].HA1 = ""
	got, err := s.Watch(within(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	got[0].Change.Tenants[1].Domains[0] = "spoilt.example"
	same(t, "after the caller wrote into its change", head(t, s), bulkhead.State{}.Apply(&want))
}

func testReopen(t *testing.T, open func(*testing.T) Store) {
	s := open(t)
	commit(t, s, 0, example(10))
	for i := range 5 {
		commit(t, s, bulkhead.RevisionNumber(i+1), bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(20 + i)}})
	}
	want := head(t, s)
	if c, ok := s.(interface{ Close() error }); ok {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	again := open(t)
	if got := head(t, again); got.Revision != 6 {
		t.Fatalf("revision %d after opening again, want 6", got.Revision)
	}
	same(t, "after opening again", head(t, again), want)
	commit(t, again, 6, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(30)}})
}

func testTwoHandles(t *testing.T, open func(*testing.T) Store) {
	a, b := open(t), open(t)
	commit(t, a, 0, example(3))
	same(t, "b", head(t, b), head(t, a))
	for i := range 10 {
		one, other := a, b
		if i%2 == 1 {
			one, other = b, a
		}
		base := head(t, one).Revision
		commit(t, one, base, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(10 + i)}})
		// The other handle learns of the revision inside its own commit.
		_, err := other.Commit(t.Context(), base, bulkhead.Revision{Author: "test", Change: bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(50)}}})
		if !errors.Is(err, bulkhead.Conflict) {
			t.Fatalf("commit on what the other handle has left behind: %v", err)
		}
		thief := tenant(51)
		thief.Domains = tenant(10 + i).Domains
		_, err = other.Commit(t.Context(), base+1, bulkhead.Revision{Author: "test", Change: bulkhead.Change{Tenants: []bulkhead.Tenant{thief}}})
		if !errors.Is(err, bulkhead.Invalid) {
			t.Fatalf("commit of a domain that the other handle gave away: %v", err)
		}
	}
	same(t, "b in the end", head(t, b), head(t, a))
}

func testConcurrent(t *testing.T, open func(*testing.T) Store) {
	const writers, rounds = 4, 10
	stores := []Store{open(t), open(t)}
	commit(t, stores[0], 0, frame())
	wins := make(chan bulkhead.RevisionNumber, writers*rounds*rounds)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			s := stores[w%len(stores)]
			for i := 0; i < rounds; {
				state, err := s.Head(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				r, err := s.Commit(t.Context(), state.Revision, bulkhead.Revision{Author: fmt.Sprint(w), Change: bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(w*100 + i)}}})
				switch {
				case err == nil:
					wins <- r.Number
					i++
				case !errors.Is(err, bulkhead.Conflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(wins)
	seen := map[bulkhead.RevisionNumber]bool{}
	for n := range wins {
		if seen[n] {
			t.Errorf("revision %d was won twice", n)
		}
		seen[n] = true
	}
	state := head(t, stores[1])
	if state.Revision != 1+writers*rounds || len(state.Tenants) != writers*rounds {
		t.Fatalf("revision %d with %d tenants", state.Revision, len(state.Tenants))
	}
	same(t, "the handles", head(t, stores[0]), state)
}

func testWatchWakes(t *testing.T, open func(*testing.T) Store) {
	a, b := open(t), open(t)
	commit(t, a, 0, frame())
	for i, watcher := range []Store{a, b} {
		base := head(t, a).Revision
		type result struct {
			revisions []bulkhead.Revision
			err       error
			at        time.Time
		}
		woken := make(chan result, 1)
		go func() {
			r, err := watcher.Watch(within(t), base)
			woken <- result{r, err, time.Now()}
		}()
		select {
		case r := <-woken:
			t.Fatalf("watch returned %v, %v before there was a revision", r.revisions, r.err)
		case <-time.After(120 * time.Millisecond):
		}
		commit(t, a, base, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(i)}})
		done := time.Now()
		r := <-woken
		if r.err != nil || len(r.revisions) != 1 || r.revisions[0].Number != base+1 {
			t.Fatalf("watch returned %v, %v", r.revisions, r.err)
		}
		// Promised are 100 ms; the rest is for a busy test machine.
		if late := r.at.Sub(done); late > time.Second {
			t.Errorf("watch %d woke %v after the commit", i, late)
		}
	}
}

func testWatchEnds(t *testing.T, open func(*testing.T) Store) {
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.Watch(ctx, 0)
		ended <- err
	}()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled watch returned %v", err)
	}
	if _, err := s.Head(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled read returned %v", err)
	}
}

func testWatchFromBehind(t *testing.T, open func(*testing.T) Store) {
	s := open(t)
	commit(t, s, 0, frame())
	const last = 150
	for i := bulkhead.RevisionNumber(1); i < last; i++ {
		commit(t, s, i, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(int(i % 7))}, Cells: []bulkhead.Cell{{ID: "cell1", MaxTenants: int(i)}}})
	}
	var state bulkhead.State
	for state.Revision < last {
		revisions, err := s.Watch(within(t), state.Revision)
		if err != nil {
			t.Fatal(err)
		}
		for i := range revisions {
			if revisions[i].Parent != state.Revision {
				t.Fatalf("revision %d on %d after %d", revisions[i].Number, revisions[i].Parent, state.Revision)
			}
			state = state.Apply(&revisions[i].Change)
		}
	}
	same(t, "replayed", state, head(t, s))
}
