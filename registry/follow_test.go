package registry

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// flaky is a Store for one follower, which fails when told to.
type flaky struct {
	revisions chan []bulkhead.Revision

	mu      sync.Mutex
	head    bulkhead.State
	err     error // of Head
	refuse  error // of apply
	heads   int   // calls of Head
	applied []bulkhead.RevisionNumber
	log     bytes.Buffer
}

func (s *flaky) Head(context.Context) (bulkhead.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heads++
	return s.head, s.err
}

func (s *flaky) apply(state bulkhead.State) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse == nil {
		s.applied = append(s.applied, state.Revision)
	}
	return s.refuse
}

// Write takes the follower's log.
func (s *flaky) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *flaky) set(head bulkhead.RevisionNumber, err, refuse error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.head.Revision, s.err, s.refuse = head, err, refuse
}

// expect waits until nothing moves any more and compares what was applied.
func (s *flaky) expect(t *testing.T, what string, want ...bulkhead.RevisionNumber) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.applied, want) {
		t.Fatalf("%s: applied %v, want %v", what, s.applied, want)
	}
}

func (s *flaky) Commit(context.Context, bulkhead.RevisionNumber, bulkhead.Revision) (bulkhead.Revision, error) {
	return bulkhead.Revision{}, bulkhead.Unavailable
}

func (s *flaky) Watch(ctx context.Context, _ bulkhead.RevisionNumber) ([]bulkhead.Revision, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-s.revisions:
		if r == nil {
			return nil, bulkhead.Unavailable
		}
		return r, nil
	}
}

func revision(n bulkhead.RevisionNumber) bulkhead.Revision {
	return bulkhead.Revision{Number: n, Parent: n - 1, Change: bulkhead.Change{Cells: []bulkhead.Cell{{ID: "cell1", MaxTenants: int(n)}}}}
}

func TestFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{revisions: make(chan []bulkhead.Revision), err: bulkhead.Unavailable}
		f := &Follower{Store: s, Apply: whole(s.apply), Log: slog.New(slog.NewTextHandler(s, nil))}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx) }()

		// An hour without a store: tried again every 5 s or so, logged once.
		time.Sleep(time.Hour)
		s.expect(t, "no store")
		s.mu.Lock()
		if s.heads < 400 || s.heads > 2000 {
			t.Errorf("asked %d times in an hour", s.heads)
		}
		if n := strings.Count(s.log.String(), "cannot follow"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, &s.log)
		}
		s.mu.Unlock()
		s.set(3, nil, nil)
		time.Sleep(2 * maxPause)
		s.expect(t, "the store is back", 3)
		s.revisions <- []bulkhead.Revision{revision(4), revision(5)}
		s.expect(t, "two at once are applied once", 3, 5)
		s.set(7, nil, nil)
		s.revisions <- nil
		time.Sleep(time.Second)
		s.expect(t, "a watch failed", 3, 5, 7)
		s.set(9, nil, nil)
		s.revisions <- []bulkhead.Revision{revision(9)}
		time.Sleep(time.Second)
		s.expect(t, "a gap", 3, 5, 7, 9)
		s.set(10, nil, errors.New("no room"))
		s.revisions <- []bulkhead.Revision{revision(10)}
		time.Sleep(time.Second)
		s.set(10, nil, nil)
		time.Sleep(2 * maxPause)
		s.expect(t, "apply failed for a while", 3, 5, 7, 9, 10)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestFollowSQLite(t *testing.T) {
	s := newSQLite(t)
	commit(t, s, 0, frame())
	states := make(chan bulkhead.State)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- (&Follower{Store: s, Apply: whole(func(state bulkhead.State) error {
			select {
			case states <- state:
			case <-ctx.Done():
			}
			return nil
		})}).Run(ctx)
	}()
	if got := <-states; got.Revision != 1 {
		t.Fatalf("the first state is %d", got.Revision)
	}
	for i := range bulkhead.RevisionNumber(5) {
		commit(t, s, i+1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(int(i))}})
		got := <-states
		if got.Revision != i+2 {
			t.Fatalf("state %d after revision %d", got.Revision, i+2)
		}
		same(t, "followed", got, head(t, s))
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

// TestFollowLost: a store that was emptied, and perhaps filled anew with less,
// takes nothing from who follows it, nor from who starts from disk.
func TestFollowLost(t *testing.T) {
	for _, head := range []bulkhead.RevisionNumber{0, 1} {
		dir := t.TempDir()
		for _, phase := range []string{"running", "started"} {
			synctest.Test(t, func(t *testing.T) {
				s := &flaky{revisions: make(chan []bulkhead.Revision)}
				f := &Follower{Store: s, Apply: whole(s.apply), LastGood: openLastGood(t, dir)}
				s.head.Revision = head
				if phase == "running" {
					s.head.Revision = 8
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- f.Run(ctx) }()
				source := FromDisk
				if phase == "running" {
					time.Sleep(2 * maxPause)
					s.expect(t, "all is well", 8)
					s.set(head, nil, nil)
					s.revisions <- nil
					source = FromStore
				}
				time.Sleep(time.Minute)
				s.expect(t, "the store lost revisions", 8)
				if st := f.Status(); !st.Lost || st.Following || st.Revision != 8 || st.Source != source {
					t.Errorf("%s, with head %d: the status is %+v", phase, head, st)
				}
				if phase == "started" {
					s.set(restoreStep, nil, nil)
					time.Sleep(2 * maxPause)
					s.expect(t, "it was restored", 8, restoreStep)
					if st := f.Status(); st.Lost || !st.Following {
						t.Errorf("after the restore the status is %+v", st)
					}
				}
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("ended with %v", err)
				}
			})
		}
	}
}
