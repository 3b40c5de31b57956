package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
	"github.com/bulkhead-voip/bulkhead/route"
)

// applyOne compares one tenant's change among many tenants with one among
// few: the time until it is in the live snapshot of somebody who follows the
// store. apply_one begins when the commit is acknowledged: its whole disk
// writes would hide what a snapshot costs. apply_one_commit begins with the
// call of Commit, apply_one_snapshot is Snapshot.Apply alone.
func applyOne(ctx context.Context) ([]figure, error) {
	const few, many, runs = 1000, 100_000, 41
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var platforms [2]*followed
	for i, n := range []int{few, many} {
		f, err := follow(ctx, n)
		if err != nil {
			return nil, err
		}
		defer f.close()
		platforms[i] = f
	}
	var after, whole, alone [2][]float64
	for run := range runs + 1 {
		for i, f := range platforms {
			t, err := f.change(ctx, run)
			if err != nil {
				return nil, err
			}
			if run > 0 { // the first pair warms up
				after[i], whole[i], alone[i] = append(after[i], t.after), append(whole[i], t.whole), append(alone[i], t.alone)
			}
		}
	}
	compare := func(name string, v [2][]float64, b bar) figure {
		base, value := median(v[0]), median(v[1])
		return figure{name: name, value: value, unit: "us", ratio: value / base, bar: b}
	}
	return []figure{
		compare("apply_one", after, bar{"<=", 2.0}),
		compare("apply_one_commit", whole, bar{}),
		compare("apply_one_snapshot", alone, bar{}),
	}, nil
}

// followed is a store with a live snapshot that follows it.
type followed struct {
	tenants int
	dir     string
	store   *registry.SQLite
	live    route.Live
	done    chan error
	stop    context.CancelFunc
}

func follow(ctx context.Context, tenants int) (*followed, error) {
	dir, err := os.MkdirTemp("", "bulkhead-bench")
	if err != nil {
		return nil, err
	}
	store, err := registry.OpenSQLite(ctx, filepath.Join(dir, "registry.db"))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	ctx, stop := context.WithCancel(ctx)
	f := &followed{tenants: tenants, dir: dir, store: store, done: make(chan error, 1), stop: stop}
	state := fullState(tenants)
	if _, err := store.Commit(ctx, 0, bulkhead.Revision{Author: "bench", Change: state.Change()}); err != nil {
		stop()
		return nil, errors.Join(err, store.Close(), os.RemoveAll(dir))
	}
	_, indexed := f.live.Next()
	go func() { f.done <- f.run(ctx) }()
	select {
	case <-indexed:
		return f, nil
	case err := <-f.done:
		stop()
		return nil, errors.Join(err, store.Close(), os.RemoveAll(dir))
	}
}

// run follows the store as a service does.
func (f *followed) run(ctx context.Context) error {
	return (&registry.Follower{Store: f.store, Apply: func(u registry.Update) error {
		if u.Change == nil {
			f.live.Store(route.New(u.State))
		} else {
			f.live.Store(f.live.Load().Apply(u.Change, u.Revision))
		}
		return nil
	}}).Run(ctx)
}

func (f *followed) close() {
	f.stop()
	<-f.done
	_ = f.store.Close()
	_ = os.RemoveAll(f.dir)
}

// times are what a change took, in microseconds.
type times struct{ after, whole, alone float64 }

// change commits another version of some tenant.
func (f *followed) change(ctx context.Context, run int) (times, error) {
	x, changed := f.live.Next()
	i := (run*7919 + 13) % f.tenants
	c := bulkhead.Change{Tenants: []bulkhead.Tenant{fullTenant(i, 1+run)}}
	begin := time.Now()
	r, err := f.store.Commit(ctx, x.Revision(), bulkhead.Revision{Author: "bench", Change: c})
	if err != nil {
		return times{}, err
	}
	acknowledged := time.Now()
	select {
	case <-changed:
	case err := <-f.done:
		return times{}, fmt.Errorf("following ended: %w", err)
	}
	visible := time.Now()
	if got := f.live.Load(); got.Revision() != r.Number || got.Tenant(c.Tenants[0].ID).Users[0].Name != c.Tenants[0].Users[0].Name {
		return times{}, fmt.Errorf("revision %d is in force, without the change of revision %d", got.Revision(), r.Number)
	}
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
	t := times{after: us(visible.Sub(acknowledged)), whole: us(visible.Sub(begin))}
	begin = time.Now()
	x.Apply(&c, r.Number)
	t.alone = us(time.Since(begin))
	return t, nil
}
