package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	// Bounds of the pause before a Follower tries again.
	minPause = 50 * time.Millisecond
	maxPause = 5 * time.Second
	// diskAfter is how long a store may take at the start before what is on
	// disk is served.
	diskAfter = 500 * time.Millisecond
	// minSavePause is the least time between two saves; a save that takes
	// long is followed by a pause of saveShare times as long.
	minSavePause = time.Second
	saveShare    = 9
)

// Follower keeps somebody up to date with a store.
type Follower struct {
	Store Store
	// Apply gets the head first, and then a newer state whenever there is
	// one; states in between may be left out. It is called by one goroutine.
	// After an error it is called again later, with the newest state then.
	Apply func(bulkhead.State) error
	// Log says when following fails and when it works again; nil: nothing is said.
	Log *slog.Logger
	// LastGood is where what was applied is kept for the next start; nil: nowhere.
	// If the store does not answer within 500 ms of the start, what is there
	// is applied.
	LastGood *LastGood
	// Metrics takes bulkhead_registry_*; nil: nobody does.
	Metrics prometheus.Registerer

	mu     sync.Mutex
	status FollowerStatus
}

// Source says where the state that is in force came from.
type Source string

// The sources of a state.
const (
	FromNowhere Source = "none"  // nothing was applied yet
	FromDisk    Source = "disk"  // the last known good: the store has not answered since the start
	FromStore   Source = "store" // the store
)

// FollowerStatus is what a Follower knows of itself.
type FollowerStatus struct {
	Source      Source                  `json:"source"`
	Revision    bulkhead.RevisionNumber `json:"revision"`              // in force
	Saved       time.Time               `json:"saved,omitzero"`        // when what is in force was saved, if it is FromDisk
	Following   bool                    `json:"following"`             // the store answers, and what it said last is in force
	Err         string                  `json:"error,omitempty"`       // why it is not following
	Quarantined []string                `json:"quarantined,omitempty"` // files of LastGood that were torn or tampered with
}

// Status returns the present status.
func (f *Follower) Status() FollowerStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	if s.Source == "" {
		s.Source = FromNowhere
	}
	return s
}

func (f *Follower) update(change func(*FollowerStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.status)
}

// Follow is Follower.Run without anything but the store.
func Follow(ctx context.Context, store Store, apply func(bulkhead.State) error) error {
	return (&Follower{Store: store, Apply: apply}).Run(ctx)
}

// Run follows the store until ctx ends and returns nil then. Whatever fails
// is tried again, after 50 ms to 5 s; only metrics that are registered
// already make it return at once.
func (f *Follower) Run(ctx context.Context) error {
	m, err := newFollowerMetrics(f.Metrics, f.Status)
	if err != nil {
		return err
	}
	r := &run{Follower: f, log: f.Log, metrics: m}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if f.LastGood != nil {
		r.unsaved = make(chan bulkhead.State, 1)
		var saver sync.WaitGroup
		saver.Go(func() { r.save(ctx) })
		defer saver.Wait()
		defer close(r.unsaved)
		r.start(ctx)
	}
	r.follow(ctx)
	return nil
}

// run is one Run of a Follower.
type run struct {
	*Follower
	log     *slog.Logger
	metrics *followerMetrics
	at      bulkhead.State // in force
	unsaved chan bulkhead.State
}

// start applies what is on disk unless the store answers soon.
func (r *run) start(ctx context.Context) {
	soon, cancel := context.WithTimeout(ctx, diskAfter)
	defer cancel()
	_, asked := r.Store.Head(soon)
	if asked == nil || ctx.Err() != nil {
		return
	}
	state, saved, err := r.LastGood.Load()
	r.metrics.quarantined.Add(float64(len(saved.Quarantined)))
	r.update(func(s *FollowerStatus) { s.Quarantined, s.Err = saved.Quarantined, asked.Error() })
	if len(saved.Quarantined) > 0 {
		r.log.Error("last known good configuration was torn or tampered with; the file is kept beside", "files", saved.Quarantined)
	}
	if errors.Is(err, bulkhead.NotFound) && len(saved.Quarantined) == 0 {
		return // the very first start
	}
	if err == nil {
		err = r.Apply(state)
	}
	if err != nil {
		r.log.Error("cannot serve the last known good configuration", "err", err)
		return
	}
	r.at = state
	r.log.Warn("the registry does not answer; serving the last known good configuration from disk", "revision", state.Revision, "saved", saved.Time, "err", asked)
	r.update(func(s *FollowerStatus) {
		s.Source, s.Revision, s.Saved = FromDisk, state.Revision, saved.Time
	})
}

func (r *run) follow(ctx context.Context) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = minPause, maxPause
	said := "" // the failure that was logged last; one line for each change
	for {
		err := r.once(ctx, func() {
			if said != "" {
				r.log.Info("following the registry again", "revision", r.at.Revision)
			}
			said = ""
			pause.Reset()
		})
		if ctx.Err() != nil {
			return
		}
		r.update(func(s *FollowerStatus) { s.Following, s.Err = false, err.Error() })
		r.metrics.failures.Inc()
		if err.Error() != said {
			said = err.Error()
			r.log.Warn("cannot follow the registry; the last revision stays in force", "revision", r.at.Revision, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause.NextBackOff()):
		}
	}
}

// once starts from the head and returns the first error. It calls done after
// each state that is in force.
func (r *run) once(ctx context.Context, done func()) error {
	state, err := r.Store.Head(ctx)
	if err != nil {
		return fmt.Errorf("read the registry's head: %w", err)
	}
	for {
		if err := r.apply(state); err != nil {
			return fmt.Errorf("apply revision %d: %w", state.Revision, err)
		}
		done()
		revisions, err := r.Store.Watch(ctx, state.Revision)
		if err != nil {
			return fmt.Errorf("watch the registry after revision %d: %w", state.Revision, err)
		}
		if state, err = advance(state, revisions); err != nil {
			return err
		}
	}
}

// apply brings a state into force, unless it is already: then a store only
// came back.
func (r *run) apply(state bulkhead.State) error {
	is := func() bool {
		d := r.at.Diff(state)
		return d.IsZero()
	}
	if s := r.Status(); s.Source == FromNowhere || r.at.Revision != state.Revision || !is() {
		if err := r.Apply(state); err != nil {
			return err
		}
	}
	r.at = state
	r.update(func(s *FollowerStatus) {
		s.Source, s.Revision, s.Saved, s.Following, s.Err = FromStore, state.Revision, time.Time{}, true, ""
	})
	if r.unsaved != nil {
		select { // the newest is all that is saved
		case <-r.unsaved:
		default:
		}
		r.unsaved <- state
	}
	return nil
}

// save saves what comes, the newest first, with pauses, until there is no
// more. When ctx ends, the last state is saved at once.
func (r *run) save(ctx context.Context) {
	for state := range r.unsaved {
		began := time.Now()
		if err := r.LastGood.Save(state); err != nil {
			r.metrics.saveFailures.Inc()
			r.log.Error("cannot keep the last known good configuration", "err", err)
		} else {
			r.metrics.saved.Set(float64(state.Revision))
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(minSavePause, saveShare*time.Since(began))):
		}
	}
}

// advance applies revisions at once, which costs hardly more than one.
func advance(state bulkhead.State, revisions []bulkhead.Revision) (bulkhead.State, error) {
	changes := make([]*bulkhead.Change, len(revisions))
	at := state.Revision
	for i := range revisions {
		r := &revisions[i]
		if r.Number != at+1 || r.Parent != at {
			return state, fmt.Errorf("revision %d on %d came after revision %d: %w", r.Number, r.Parent, at, bulkhead.Conflict)
		}
		changes[i], at = &r.Change, r.Number
	}
	c := merge(changes)
	state = state.Apply(&c)
	state.Revision = at
	return state, nil
}
