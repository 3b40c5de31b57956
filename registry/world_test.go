package registry

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
)

// fewer makes a property that starts whole systems run less often, unless
// the command line says how often.
func fewer(t *testing.T, checks string) {
	t.Helper()
	f := flag.Lookup("rapid.checks")
	if f.Value.String() != f.DefValue {
		return
	}
	if err := f.Value.Set(checks); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Value.Set(f.DefValue) })
}

// world is a store, two processes that write it, a feed, and followers.
type world struct {
	t       *rapid.T
	open    func() office
	kill    func() // the store dies with what was not on disk, and comes back
	writers [2]office
	serving office
	feed    *Feed
	endFeed func()
	front   *httptest.Server
	token   map[bulkhead.CellID]string

	mu        sync.Mutex
	handler   http.Handler
	followers []*worldFollower
	committed map[bulkhead.RevisionNumber]string // message of what was acknowledged
	messages  int
}

// worldFollower follows the feed for a cell, or the store itself.
type worldFollower struct {
	cell   bulkhead.CellID
	direct bool
	dir    string
	stop   func()

	mu    sync.Mutex
	state bulkhead.State
}

func (f *worldFollower) now() bulkhead.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (w *world) fatal(err error) {
	if err != nil {
		w.t.Fatal(err)
	}
}

// runAll runs services until the function it returns is called.
func runAll(t *rapid.T, services ...func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range services {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("a service ended: %v", err)
			}
		})
	}
	return sync.OnceFunc(func() { cancel(); running.Wait() })
}

func (w *world) startFeed() {
	w.serving = w.open()
	feed, err := NewFeed(FeedOptions{Store: w.serving, Tokens: w.serving.Tokens()})
	w.fatal(err)
	w.mu.Lock()
	w.handler = feed
	w.mu.Unlock()
	w.feed, w.endFeed = feed, runAll(w.t, feed.Run)
}

func (w *world) stopFeed() {
	w.mu.Lock()
	w.handler = http.NotFoundHandler()
	w.mu.Unlock()
	w.endFeed()
	w.front.CloseClientConnections()
	w.fatal(w.serving.Close())
}

func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	h := w.handler
	w.mu.Unlock()
	h.ServeHTTP(rw, r)
}

func (w *world) startFollower(f *worldFollower) {
	g, err := OpenLastGood(f.dir)
	w.fatal(err)
	follower := &Follower{LastGood: g, Apply: whole(func(s bulkhead.State) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.state = s
		return nil
	})}
	if f.direct {
		store := w.open()
		follower.Store = store
		stop := runAll(w.t, follower.Run)
		f.stop = func() { stop(); _ = store.Close() }
		return
	}
	remote, err := NewRemote(RemoteOptions{URLs: []string{w.front.URL}, Token: w.token[f.cell]})
	w.fatal(err)
	follower.Store = remote
	f.stop = runAll(w.t, remote.Run, follower.Run)
}

// commit commits on a base, and knows what may come of it.
func (w *world) commit(writer int, base bulkhead.RevisionNumber, c bulkhead.Change) {
	w.mu.Lock()
	w.messages++
	message, store := fmt.Sprint("m", w.messages), w.writers[writer]
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := store.Commit(ctx, base, bulkhead.Revision{Author: "w", Message: message, Change: c})
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
		if other := w.committed[r.Number]; other != "" {
			w.t.Errorf("revision %d was acknowledged twice", r.Number)
		}
		w.committed[r.Number] = message
	case errors.Is(err, bulkhead.Conflict), errors.Is(err, bulkhead.Invalid), errors.Is(err, bulkhead.Unavailable):
	default:
		w.t.Errorf("commit: %v", err)
	}
}

func (w *world) head() bulkhead.State {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		s, err := w.writers[0].Head(ctx)
		if err == nil {
			return s
		}
		if ctx.Err() != nil {
			w.t.Fatal(err)
		}
	}
}

// drawTenants draws a change that is often valid.
func drawTenants(t *rapid.T) bulkhead.Change {
	var c bulkhead.Change
	for range rapid.IntRange(1, 3).Draw(t, "tenants") {
		i := rapid.IntRange(0, 7).Draw(t, "tenant")
		tn := tenantIn(i, rapid.SampledFrom([]bulkhead.CellID{"cell1", "cell1", "cell2"}).Draw(t, "cell"))
		tn.Name = fmt.Sprint(rapid.IntRange(0, 99).Draw(t, "name"))
		if rapid.IntRange(0, 5).Draw(t, "steals") == 0 {
			tn.Domains[1] = fmt.Sprintf("t%05d.example", rapid.IntRange(0, 7).Draw(t, "victim"))
		}
		c.Tenants = append(c.Tenants, tn)
	}
	if rapid.IntRange(0, 3).Draw(t, "deletes") == 0 {
		c.Delete.Tenants = []bulkhead.TenantID{bulkhead.TenantID(fmt.Sprintf("t%05d", rapid.IntRange(0, 7).Draw(t, "gone")))}
	}
	if rapid.IntRange(0, 3).Draw(t, "drains") == 0 {
		c.Nodes = []bulkhead.Node{{ID: "fs9", Pool: "standard2", SIP: "127.0.0.1:5099", Drain: rapid.Bool().Draw(t, "drain")}}
	}
	return c
}

func (w *world) step() {
	head := w.head()
	switch rapid.IntRange(0, 7).Draw(w.t, "step") {
	case 0, 1:
		w.commit(rapid.IntRange(0, 1).Draw(w.t, "writer"), head.Revision, drawTenants(w.t))
	case 2:
		w.race(head.Revision, nil)
	case 3:
		w.race(head.Revision, w.kill)
	case 4:
		n := bulkhead.RevisionNumber(rapid.IntRange(1, int(head.Revision)).Draw(w.t, "back to"))
		then, err := w.writers[1].State(context.Background(), n)
		w.fatal(err)
		w.commit(0, head.Revision, head.Diff(then))
	case 5:
		f := w.followers[rapid.IntRange(0, len(w.followers)-1).Draw(w.t, "follower")]
		f.stop()
		w.startFollower(f)
	case 6:
		w.stopFeed()
		w.startFeed()
	case 7:
		w.kill()
	}
}

// race lets both writers commit on one base while something happens.
func (w *world) race(base bulkhead.RevisionNumber, meanwhile func()) {
	changes := [2]bulkhead.Change{drawTenants(w.t), drawTenants(w.t)}
	var racing sync.WaitGroup
	for i := range w.writers {
		racing.Go(func() { w.commit(i, base, changes[i]) })
	}
	if meanwhile != nil {
		meanwhile()
	}
	racing.Wait()
}

// check compares everything with the log.
func (w *world) check() {
	want := w.head()
	ctx := context.Background()
	replayed, err := w.writers[1].State(ctx, want.Revision)
	w.fatal(err)
	if d := replayed.Diff(want); !d.IsZero() {
		w.t.Fatalf("the head is not what the log leads to: %+v", d)
	}
	if err := want.Validate(); err != nil {
		w.t.Fatalf("the head is not valid: %v", err)
	}
	for n, message := range w.committed {
		log, err := w.writers[0].Log(ctx, n, 1)
		if err != nil || len(log) != 1 || log[0].Message != message {
			w.t.Fatalf("revision %d was acknowledged as %q, and is %+v, %v", n, message, log, err)
		}
	}
	for _, f := range w.followers {
		wanted := want
		if f.cell != "" {
			wanted = cellState(want, f.cell)
		}
		deadline := time.Now().Add(30 * time.Second)
		tick := time.NewTicker(2 * time.Millisecond)
		for f.now().Revision != want.Revision {
			if time.Now().After(deadline) {
				w.t.Fatalf("a follower of %q is at revision %d, and the head is %d", f.cell, f.now().Revision, want.Revision)
			}
			<-tick.C
		}
		tick.Stop()
		if d := wanted.Diff(f.now()); !d.IsZero() {
			w.t.Fatalf("a follower of %q differs from the log: %+v", f.cell, d)
		}
	}
}

// newWorld starts a world on an empty store.
func newWorld(t *rapid.T, dir string, open func() office, kill func(w *world)) *world {
	w := &world{t: t, open: open, committed: map[bulkhead.RevisionNumber]string{}, token: map[bulkhead.CellID]string{}, handler: http.NotFoundHandler()}
	w.kill = func() { kill(w) }
	w.writers = [2]office{open(), open()}
	w.front = httptest.NewServer(w)
	w.commit(0, 0, twoCells())
	for cell, tok := range map[bulkhead.CellID]Token{"": {Scope: ScopeAdmin}, "cell1": {Scope: ScopeNode, Node: "fs1", Cell: "cell1"}, "cell2": {Scope: ScopeNode, Node: "fs9", Cell: "cell2"}} {
		secret, _, err := w.writers[0].Tokens().Create(context.Background(), tok)
		w.fatal(err)
		w.token[cell] = secret
	}
	w.startFeed()
	for i, f := range []*worldFollower{{direct: true}, {cell: ""}, {cell: "cell1"}, {cell: "cell2"}} {
		f.dir = filepath.Join(dir, fmt.Sprint("follower", i))
		w.startFollower(f)
		w.followers = append(w.followers, f)
	}
	return w
}

func (w *world) end() {
	for _, f := range w.followers {
		f.stop()
	}
	w.stopFeed()
	w.front.Close()
	for _, s := range w.writers {
		_ = s.Close() // SQLite's may have been closed by a kill
	}
}

// TestWorld: any sequence of applies, racing writers, rollbacks, restarts and
// kills ends with every follower holding what the log's replay says.
func TestWorld(t *testing.T) {
	fewer(t, "8")
	must := func(s office, err error) office {
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("sqlite", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			dir, err := os.MkdirTemp("", "world")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = os.RemoveAll(dir) }()
			path := filepath.Join(dir, "registry.db")
			testWorld(newWorld(t, dir, func() office { return must(OpenSQLite(context.Background(), path)) }, func(w *world) {
				// The writers' process dies; TestKilledCommitter does that for real.
				_ = w.writers[0].Close()
				w.mu.Lock()
				defer w.mu.Unlock()
				w.writers[0] = must(OpenSQLite(context.Background(), path))
			}))
		})
	})
	t.Run("redis", func(t *testing.T) {
		server := newRedisServer(t)
		rapid.Check(t, func(rt *rapid.T) {
			dir, err := os.MkdirTemp("", "world")
			if err != nil {
				rt.Fatal(err)
			}
			defer func() { _ = os.RemoveAll(dir) }()
			server.clear(t)
			testWorld(newWorld(rt, dir, func() office { return must(OpenRedis(context.Background(), server.options())) }, func(*world) {
				server.kill()
				server.run(t)
			}))
		})
	})
}

func testWorld(w *world) {
	defer w.end()
	for range rapid.IntRange(1, 15).Draw(w.t, "steps") {
		w.step()
	}
	w.check()
}
