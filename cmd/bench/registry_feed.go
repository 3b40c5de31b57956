package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
	"github.com/bulkhead-voip/bulkhead/route"
)

// feedVisible measures the time from the acknowledgement of a commit until it
// is in the live snapshot of each of 20 followers, over HTTP, of a cell with
// 500 tenants.
func feedVisible(ctx context.Context) ([]figure, error) {
	const tenants, followers, commits = 500, 20, 200
	dir, err := os.MkdirTemp("", "bulkhead-bench")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	store, err := registry.OpenSQLite(ctx, filepath.Join(dir, "registry.db"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = store.Close() }()
	state := fullState(tenants)
	if _, err := store.Commit(ctx, 0, bulkhead.Revision{Author: "bench", Change: state.Change()}); err != nil {
		return nil, err
	}
	secret, _, err := store.Tokens().Create(ctx, registry.Token{Scope: registry.ScopeNode, Node: benchNode, Cell: "c1"})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	url, err := serveFeed(ctx, &running, store)
	if err != nil {
		return nil, err
	}
	var lives []*route.Live
	for range followers {
		live, err := followFeed(ctx, &running, url, secret)
		if err != nil {
			return nil, err
		}
		lives = append(lives, live)
	}
	// A revision that is in force everywhere warms up, and says that all are there.
	if _, err := visible(ctx, store, lives, 1, 0); err != nil {
		return nil, err
	}
	var ms []float64
	for n := range commits {
		took, err := visible(ctx, store, lives, bulkhead.RevisionNumber(2+n), n)
		if err != nil {
			return nil, err
		}
		ms = append(ms, took...)
	}
	slices.Sort(ms)
	return []figure{
		{name: "feed_visible_p99", value: ms[len(ms)*99/100], unit: "ms"},
		{name: "feed_visible_p50", value: median(ms), unit: "ms"},
	}, nil
}

func serveFeed(ctx context.Context, running *sync.WaitGroup, store *registry.SQLite) (url string, err error) {
	feed, err := registry.NewFeed(registry.FeedOptions{Store: store, Tokens: store.Tokens()})
	if err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	mux := http.NewServeMux()
	mux.Handle(registry.FeedPath, feed)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	running.Go(func() { _ = feed.Run(ctx) })
	running.Go(func() { _ = srv.Serve(l) })
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	return "http://" + l.Addr().String(), nil
}

func followFeed(ctx context.Context, running *sync.WaitGroup, url, secret string) (*route.Live, error) {
	remote, err := registry.NewRemote(registry.RemoteOptions{URLs: []string{url}, Token: secret})
	if err != nil {
		return nil, err
	}
	live := &route.Live{}
	follower := &registry.Follower{Store: remote, Apply: func(u registry.Update) error {
		if u.Change == nil {
			live.Store(route.New(u.State))
		} else {
			live.Store(live.Load().Apply(u.Change, u.Revision))
		}
		return nil
	}}
	running.Go(func() { _ = remote.Run(ctx) })
	running.Go(func() { _ = follower.Run(ctx) })
	return live, nil
}

// visible commits a change on base and returns the milliseconds after which
// each follower had it.
func visible(ctx context.Context, store *registry.SQLite, lives []*route.Live, base bulkhead.RevisionNumber, n int) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	seen := make(chan time.Time, len(lives))
	for _, live := range lives {
		go func() {
			for {
				x, changed := live.Next()
				if x != nil && x.Revision() > base {
					seen <- time.Now()
					return
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	c := bulkhead.Change{Tenants: []bulkhead.Tenant{fullTenant(n%500, 1+n)}}
	r, err := store.Commit(ctx, base, bulkhead.Revision{Author: "bench", Change: c})
	if err != nil {
		return nil, err
	}
	if r.Number != base+1 {
		return nil, fmt.Errorf("revision %d came of base %d", r.Number, base)
	}
	acknowledged := time.Now()
	var ms []float64
	for range lives {
		select {
		case at := <-seen:
			ms = append(ms, max(0, at.Sub(acknowledged).Seconds()*1000))
		case <-ctx.Done():
			return nil, errors.New("a follower did not get a revision within 30 s")
		}
	}
	return ms, nil
}
