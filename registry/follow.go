package registry

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/bulkhead-voip/bulkhead"
)

// Bounds of the pause before a Follower tries again.
const (
	minPause = 50 * time.Millisecond
	maxPause = 5 * time.Second
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
}

// Follow is Follower.Run without a log.
func Follow(ctx context.Context, store Store, apply func(bulkhead.State) error) error {
	return (&Follower{Store: store, Apply: apply}).Run(ctx)
}

// Run follows the store until ctx ends and returns nil then. It returns for
// no other reason: whatever fails is tried again, after 50 ms to 5 s.
func (f *Follower) Run(ctx context.Context) error {
	log := f.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = minPause, maxPause
	var at bulkhead.RevisionNumber
	said := "" // the failure that was logged last; one line for each change
	for {
		err := f.follow(ctx, func(s bulkhead.State) {
			if said != "" {
				log.Info("following the registry again", "revision", s.Revision)
			}
			at, said = s.Revision, ""
			pause.Reset()
		})
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn("cannot follow the registry; the last revision stays in force", "revision", at, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause.NextBackOff()):
		}
	}
}

// follow starts from the head and returns the first error. It calls done
// after each state that was applied.
func (f *Follower) follow(ctx context.Context, done func(bulkhead.State)) error {
	state, err := f.Store.Head(ctx)
	if err != nil {
		return fmt.Errorf("read the registry's head: %w", err)
	}
	for {
		if err := f.Apply(state); err != nil {
			return fmt.Errorf("apply revision %d: %w", state.Revision, err)
		}
		done(state)
		revisions, err := f.Store.Watch(ctx, state.Revision)
		if err != nil {
			return fmt.Errorf("watch the registry after revision %d: %w", state.Revision, err)
		}
		if state, err = advance(state, revisions); err != nil {
			return err
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
