package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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

// Update is what a Follower hands over: a whole state, or what leads to it
// from the one that was handed over before.
type Update struct {
	Revision bulkhead.RevisionNumber
	Change   *bulkhead.Change // nil: State is all there is
	State    bulkhead.State   // without a Change
}

// Follower keeps somebody up to date with a store.
type Follower struct {
	Store Store
	// Apply gets the head first, and then what leads to a newer state whenever
	// there is one; states in between may be left out. It is called by one
	// goroutine. After an error it is called again later, with the whole of
	// the newest state then.
	Apply func(Update) error
	// Log says when following fails and when it works again; nil: nothing is said.
	Log *slog.Logger
	// LastGood is where what was applied is kept for the next start; nil: nowhere.
	// If the store does not answer within 500 ms of the start, what is there
	// is applied.
	LastGood *LastGood
	// Keyring is kept in LastGood with the state; nil: there is none.
	Keyring *Keyring
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
	Lost        bool                    `json:"lost,omitempty"`        // the store answers, with an older revision than what is in force, which stays
	Since       time.Time               `json:"since,omitzero"`        // when that was so last, if it is not; FromDisk: Saved
	Err         string                  `json:"error,omitempty"`       // why it is not following
	Quarantined []string                `json:"quarantined,omitempty"` // files of LastGood that were torn or tampered with
}

// Age returns how long ago what is in force was known to be the newest; 0: it
// is, or there is nothing.
func (s *FollowerStatus) Age(now time.Time) time.Duration {
	if s.Since.IsZero() {
		return 0
	}
	return max(0, now.Sub(s.Since))
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
		r.unsaved = make(chan struct{}, 1)
		stop := r.keep(ctx)
		defer stop()
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
	at      trail         // in force
	unsaved chan struct{} // holds one if something is not on disk
}

// keep saves what is in force until the function that it returns is called.
func (r *run) keep(ctx context.Context) (stop func()) {
	ctxKeys, end := context.WithCancel(ctx)
	var watching, saving sync.WaitGroup
	saving.Go(func() { r.save(ctx) })
	if r.Keyring != nil {
		watching.Go(func() { r.watchKeys(ctxKeys) })
	}
	return func() {
		end()
		watching.Wait()
		close(r.unsaved)
		saving.Wait()
	}
}

// start applies what is on disk unless the store answers soon.
func (r *run) start(ctx context.Context) {
	soon, cancel := context.WithTimeout(ctx, diskAfter)
	defer cancel()
	head, asked := r.Store.Head(soon)
	if asked == nil {
		asked = lost(head.Revision, r.LastGood.revision())
	}
	if asked == nil || ctx.Err() != nil {
		return
	}
	state, saved, err := r.LastGood.Load()
	r.metrics.quarantined.Add(float64(len(saved.Quarantined)))
	r.update(func(s *FollowerStatus) {
		s.Quarantined, s.Err, s.Lost = saved.Quarantined, asked.Error(), errors.Is(asked, errLost)
	})
	if len(saved.Quarantined) > 0 {
		r.log.Error("last known good configuration was torn or tampered with; the file is kept beside", "files", saved.Quarantined)
	}
	if errors.Is(err, bulkhead.NotFound) && len(saved.Quarantined) == 0 {
		return // the very first start
	}
	if err == nil {
		if r.Keyring != nil {
			r.Keyring.restore(saved.Keys)
		}
		err = r.Apply(Update{Revision: state.Revision, State: state})
	}
	if err != nil {
		r.log.Error("cannot serve the last known good configuration", "err", err)
		return
	}
	r.at.restart(state)
	r.log.Warn("the registry does not answer, or has lost revisions; serving the last known good configuration from disk", "revision", state.Revision, "saved", saved.Time, "err", asked)
	r.update(func(s *FollowerStatus) {
		s.Source, s.Revision, s.Saved, s.Since = FromDisk, state.Revision, saved.Time, saved.Time
	})
}

func (r *run) follow(ctx context.Context) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = minPause, maxPause
	said := "" // the failure that was logged last; one line for each change
	for {
		err := r.once(ctx, func() {
			if said != "" {
				r.log.Info("following the registry again", "revision", r.at.revision())
			}
			said = ""
			pause.Reset()
		})
		if ctx.Err() != nil {
			return
		}
		r.update(func(s *FollowerStatus) {
			if s.Following {
				s.Since = time.Now()
			}
			s.Following, s.Err, s.Lost = false, err.Error(), errors.Is(err, errLost)
		})
		r.metrics.failures.Inc()
		if err.Error() != said {
			said = err.Error()
			r.log.Warn("cannot follow the registry; the last revision stays in force", "revision", r.at.revision(), "err", err)
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
	at := r.at.revision()
	if err := lost(state.Revision, at); err != nil {
		return err
	}
	// A store that only came back says what is in force already.
	if r.Status().Source == FromNowhere || at != state.Revision || !r.at.is(state) {
		if err := r.Apply(Update{Revision: state.Revision, State: state}); err != nil {
			return fmt.Errorf("apply revision %d: %w", state.Revision, err)
		}
		r.at.restart(state)
	}
	for at = state.Revision; ; {
		r.inForce(at)
		done()
		revisions, err := r.Store.Watch(ctx, at)
		if err != nil {
			return fmt.Errorf("watch the registry after revision %d: %w", at, err)
		}
		c, to, err := follows(at, revisions)
		if err != nil {
			return err
		}
		if err := r.Apply(Update{Revision: to, Change: &c}); err != nil {
			return fmt.Errorf("apply revision %d: %w", to, err)
		}
		r.at.add(&c, to)
		at = to
	}
}

// errLost is in the error about a store that knew more before.
var errLost = fmt.Errorf("it has lost revisions, and what it had stays in force here until it has a later one; restore a backup of it: %w", bulkhead.Unavailable)

// lost returns an error when a store's head is older than what it had: then it
// was emptied, and perhaps filled anew, or it failed over to less. Numbers of
// what is restored into an empty store are higher than all before.
func lost(head, had bulkhead.RevisionNumber) error {
	switch {
	case head >= had:
		return nil
	case head == 0:
		return fmt.Errorf("the registry is empty and had revision %d: %w", had, errLost)
	}
	return fmt.Errorf("the registry is at revision %d and had revision %d: %w", head, had, errLost)
}

// inForce notes that what is in force is what the store said last.
func (r *run) inForce(n bulkhead.RevisionNumber) {
	r.update(func(s *FollowerStatus) {
		s.Source, s.Revision, s.Saved, s.Following, s.Since, s.Err, s.Lost = FromStore, n, time.Time{}, true, time.Time{}, "", false
	})
	if r.unsaved != nil {
		r.wantSave()
	}
}

func (r *run) wantSave() {
	select {
	case r.unsaved <- struct{}{}:
	default: // it will be saved with what is waiting
	}
}

// watchKeys has the keys saved when they change.
func (r *run) watchKeys(ctx context.Context) {
	for {
		_, news, changed := r.Keyring.next()
		if news && r.Status().Source != FromNowhere {
			r.wantSave()
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// save saves the newest state, with pauses, until there is no more. When ctx
// ends, the last one is saved at once.
func (r *run) save(ctx context.Context) {
	for range r.unsaved {
		began := time.Now()
		state := r.at.whole()
		if err := r.LastGood.Save(state, r.keysToSave()); err != nil {
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

// keysToSave returns the keys that belong to what is saved. Those of the last
// start stay while nobody has said yet which there are now.
func (r *run) keysToSave() []Key {
	if r.Keyring == nil {
		return nil
	}
	keys, news, _ := r.Keyring.next()
	if len(keys) > 0 || news {
		return keys
	}
	if _, saved, err := r.LastGood.Load(); err == nil {
		r.Keyring.restore(saved.Keys)
	}
	keys, _, _ = r.Keyring.next()
	return keys
}

// follows makes one change of revisions, which must follow each other, and
// says where it leads: to apply it costs hardly more than to apply one.
func follows(at bulkhead.RevisionNumber, revisions []bulkhead.Revision) (bulkhead.Change, bulkhead.RevisionNumber, error) {
	changes := make([]*bulkhead.Change, len(revisions))
	for i := range revisions {
		r := &revisions[i]
		if r.Number != at+1 || r.Parent != at {
			return bulkhead.Change{}, at, fmt.Errorf("revision %d on %d came after revision %d: %w", r.Number, r.Parent, at, bulkhead.Conflict)
		}
		changes[i], at = &r.Change, r.Number
	}
	return merge(changes), at, nil
}

// trail is a state and the changes after it. The state that they lead to is
// made when somebody wants the whole: it costs a list of all tenants.
type trail struct {
	making sync.Mutex // whoever makes the whole

	mu      sync.Mutex
	base    bulkhead.State
	changes []*bulkhead.Change
	at      bulkhead.RevisionNumber
}

func (t *trail) revision() bulkhead.RevisionNumber {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.at
}

func (t *trail) restart(s bulkhead.State) {
	t.making.Lock()
	defer t.making.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.base, t.changes, t.at = s, nil, s.Revision
}

func (t *trail) add(c *bulkhead.Change, to bulkhead.RevisionNumber) {
	t.mu.Lock()
	t.changes, t.at = append(t.changes, c), to
	long := len(t.changes) >= replayLimit
	t.mu.Unlock()
	if long {
		t.whole()
	}
}

// whole returns the newest state. Who adds meanwhile need not wait.
func (t *trail) whole() bulkhead.State {
	t.making.Lock()
	defer t.making.Unlock()
	t.mu.Lock()
	state, changes, at := t.base, t.changes, t.at
	t.mu.Unlock()
	if len(changes) == 0 {
		return state
	}
	c := merge(changes)
	state = state.Apply(&c)
	state.Revision = at
	t.mu.Lock()
	defer t.mu.Unlock()
	t.base, t.changes = state, slices.Clone(t.changes[len(changes):])
	return state
}

// is reports whether the newest state holds the same objects as s.
func (t *trail) is(s bulkhead.State) bool {
	d := t.whole().Diff(s)
	return d.IsZero()
}
