package registry

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead"
)

var _ Store = (*Remote)(nil)

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		<-tick.C
	}
}

// twoCells is a change that makes a second cell, which looks like the first.
func twoCells() bulkhead.Change {
	c := frame()
	c.Cells = append(c.Cells, bulkhead.Cell{ID: "cell2"})
	c.Pools = append(c.Pools, bulkhead.Pool{ID: "standard2", Cell: "cell2", Profile: "standard"}, bulkhead.Pool{ID: "bulk2", Cell: "cell2", Profile: "high_volume"})
	c.Nodes = append(c.Nodes, bulkhead.Node{ID: "fs9", Pool: "standard2", SIP: "127.0.0.1:5099"})
	c.SBCs = append(c.SBCs, bulkhead.SBC{ID: "sbc9", Cell: "cell2", SIP: "127.0.0.1:5069"})
	return c
}

func tenantIn(i int, cell bulkhead.CellID) bulkhead.Tenant {
	t := tenant(i)
	t.Cell = cell
	return t
}

// feedServer is a store with its feed on an HTTP server.
type feedServer struct {
	*httptest.Server
	store   office
	feed    *Feed
	metrics *prometheus.Registry
	stop    func()
}

func newFeedServer(t *testing.T, store office) *feedServer {
	t.Helper()
	s := &feedServer{store: store, metrics: prometheus.NewRegistry()}
	feed, err := NewFeed(FeedOptions{Store: store, Tokens: store.Tokens(), Metrics: s.metrics})
	if err != nil {
		t.Fatal(err)
	}
	s.feed = feed
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := feed.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	mux := http.NewServeMux()
	mux.Handle(FeedPath, feed)
	s.Server = httptest.NewUnstartedServer(mux)
	s.Config.ReadTimeout = 2 * time.Second // as a server has that thinks of requests that end
	s.Config.WriteTimeout = 2 * time.Second
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if err := c.(*net.TCPConn).SetWriteBuffer(4 << 10); err != nil {
			t.Error(err)
		}
		return ctx
	}
	s.Start()
	s.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		s.CloseClientConnections()
		s.Close()
	})
	t.Cleanup(s.stop)
	return s
}

func (s *feedServer) token(t *testing.T, tok Token) string {
	t.Helper()
	secret, _, err := s.store.Tokens().Create(t.Context(), tok)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// feedFollower follows a feed and holds what was applied.
type feedFollower struct {
	remote *Remote
	f      *Follower
	keys   Keyring
	stop   func()

	mu    sync.Mutex
	state bulkhead.State
}

func (w *feedFollower) now() bulkhead.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// at reports whether a revision, or one after it, is in force.
func (w *feedFollower) at(n bulkhead.RevisionNumber) func() bool {
	return func() bool { return w.now().Revision >= n }
}

func follow(t testing.TB, url, secret string, g *LastGood) *feedFollower {
	t.Helper()
	w := &feedFollower{}
	remote, err := NewRemote(RemoteOptions{URLs: strings.Split(url, ","), Token: secret, Keyring: &w.keys})
	if err != nil {
		t.Fatal(err)
	}
	w.remote = remote
	w.f = &Follower{Store: remote, LastGood: g, Keyring: &w.keys, Apply: whole(func(s bulkhead.State) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.state = s
		return nil
	})}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{remote.Run, w.f.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	w.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(w.stop)
	return w
}

func TestFeed(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() office) {
		s := newFeedServer(t, open())
		writer := open() // another process
		cells := twoCells()
		cells.Nodes = append(cells.Nodes, bulkhead.Node{ID: "fs7", Pool: "bulk2", SIP: "127.0.0.1:5097"}) // stays in cell2
		commit(t, writer, 0, cells)
		commit(t, writer, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenantIn(0, "cell1"), tenantIn(1, "cell1"), tenantIn(2, "cell2")}})
		one := follow(t, s.URL, s.token(t, Token{Scope: ScopeNode, Node: "fs1", Cell: "cell1"}), nil)
		two := follow(t, s.URL, s.token(t, Token{Scope: ScopeNode, Node: "fs7", Cell: "cell2"}), nil)
		all := follow(t, s.URL, s.token(t, Token{Scope: ScopeAdmin}), nil)
		check := func(n bulkhead.RevisionNumber) {
			t.Helper()
			want := head(t, writer)
			for name, w := range map[bulkhead.CellID]*feedFollower{"cell1": one, "cell2": two, "": all} {
				eventually(t, fmt.Sprintf("revision %d in %q", n, name), w.at(n))
				if name != "" {
					same(t, string(name), w.now(), cellState(want, name))
				} else {
					same(t, "all", w.now(), want)
				}
				if err := w.now().Validate(); err != nil {
					t.Errorf("what %q got is not valid: %v", name, err)
				}
			}
		}
		check(2)
		n := bulkhead.RevisionNumber(2)
		for _, c := range []bulkhead.Change{
			{Tenants: []bulkhead.Tenant{tenantIn(3, "cell2")}},
			{Tenants: []bulkhead.Tenant{tenantIn(3, "cell1"), tenantIn(2, "cell1")}}, // they move
			{Tenants: []bulkhead.Tenant{tenantIn(2, "cell2")}, Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{"t00000", "t00099"}}},
			{Pools: []bulkhead.Pool{{ID: "standard2", Cell: "cell2", Profile: "standard", Placement: bulkhead.Spread}}},
			{Nodes: []bulkhead.Node{{ID: "fs9", Pool: "standard", SIP: "127.0.0.1:5099"}}},                                                             // moves with its pool
			{Pools: []bulkhead.Pool{{ID: "ai", Cell: "cell1", Profile: "ai"}}, Nodes: []bulkhead.Node{{ID: "fs8", Pool: "ai", SIP: "127.0.0.1:5098"}}}, //
			{Pools: []bulkhead.Pool{{ID: "ai", Cell: "cell2", Profile: "ai"}}},                                                                         // takes its node along
			{Delete: bulkhead.Deletion{Nodes: []bulkhead.NodeID{"fs8"}, SBCs: []bulkhead.SBCID{"sbc9"}}},
		} {
			commit(t, writer, n, c)
			n++
			check(n)
		}
		if st := one.remote.Status(); !st.Connected || st.Revision != n || st.Err != "" {
			t.Errorf("the remote's status is %+v", st)
		}
		if _, err := one.remote.Commit(t.Context(), n, bulkhead.Revision{Author: "a", Change: example(1)}); !errors.Is(err, bulkhead.Denied) {
			t.Errorf("a commit through the feed: %v", err)
		}
	})
}

// TestFeedEncodesOnce: one encode for each revision and cell, whoever many follow.
func TestFeedEncodesOnce(t *testing.T) {
	s := newFeedServer(t, newSQLite(t))
	commit(t, s.store, 0, twoCells())
	eventually(t, "the feed has the revision", func() bool { s.feed.mu.Lock(); defer s.feed.mu.Unlock(); return s.feed.head.number == 1 })
	secret := s.token(t, Token{Scope: ScopeNode, Node: "fs1", Cell: "cell1"})
	var followers []*feedFollower
	for range 20 {
		followers = append(followers, follow(t, s.URL, secret, nil))
	}
	for _, w := range followers {
		eventually(t, "the snapshot", w.at(1))
	}
	const revisions = 50
	for i := range bulkhead.RevisionNumber(revisions) {
		commit(t, s.store, i+1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(int(i))}})
	}
	for _, w := range followers {
		eventually(t, "the last revision", w.at(1+revisions))
	}
	if got := testutil.ToFloat64(s.feed.metrics.encodes); got != revisions+1 {
		t.Errorf("%v encodes for %d revisions and a snapshot", got, revisions)
	}
	if got := testutil.ToFloat64(s.feed.metrics.snapshots); got != 20 {
		t.Errorf("%v snapshots for 20 followers", got)
	}
	for _, w := range followers {
		w.stop()
	}
	eventually(t, "all are gone", func() bool { s.feed.mu.Lock(); defer s.feed.mu.Unlock(); return s.feed.users == 0 })
}

// TestFeedCatchUp cuts a follower off, and changes things meanwhile.
func TestFeedCatchUp(t *testing.T) {
	s := newFeedServer(t, newSQLite(t))
	s.feed.keep = 40
	commit(t, s.store, 0, frame())
	var cut atomic.Bool
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cut.Load() {
			http.Error(w, "cut off", http.StatusBadGateway)
			return
		}
		s.feed.ServeHTTP(w, r)
	}))
	defer front.Close()
	defer front.CloseClientConnections()
	w := follow(t, front.URL, s.token(t, Token{Scope: ScopeNode, Node: "fs1", Cell: "cell1"}), nil)
	eventually(t, "the first revision", w.at(1))
	n := bulkhead.RevisionNumber(1)
	for _, c := range []struct {
		revisions int
		snapshots float64
	}{{0, 1}, {10, 1}, {40, 1}, {41, 2}, {3, 2}} {
		cut.Store(true)
		front.CloseClientConnections()
		for range c.revisions {
			commit(t, s.store, n, bulkhead.Change{Cells: []bulkhead.Cell{{ID: "cell1", MaxTenants: 1000 + int(n)}}})
			n++
		}
		eventually(t, "the feed knows them all", func() bool { s.feed.mu.Lock(); defer s.feed.mu.Unlock(); return s.feed.head.number == n })
		eventually(t, "the follower knows that it is cut off", func() bool { return !w.f.Status().Following })
		cut.Store(false)
		eventually(t, "it has caught up", func() bool { return w.now().Revision == n && w.f.Status().Following })
		same(t, "caught up", w.now(), head(t, s.store))
		if got := testutil.ToFloat64(s.feed.metrics.snapshots); got != c.snapshots {
			t.Errorf("after %d revisions: %v snapshots in all, want %v", c.revisions, got, c.snapshots)
		}
	}
	w.stop()
}

// failsOnce is a store whose Watch fails, when told to, as a commit comes.
type failsOnce struct {
	office
	arm atomic.Bool
}

func (s *failsOnce) Watch(ctx context.Context, after bulkhead.RevisionNumber) ([]bulkhead.Revision, error) {
	r, err := s.office.Watch(ctx, after)
	if s.arm.CompareAndSwap(true, false) {
		return nil, fmt.Errorf("watch: %w", bulkhead.Unavailable)
	}
	return r, err
}

// TestFeedWatchFails: a store that does not answer for a moment costs no
// follower a snapshot.
func TestFeedWatchFails(t *testing.T) {
	store := &failsOnce{office: newSQLite(t)}
	s := newFeedServer(t, store)
	commit(t, store, 0, frame())
	w := follow(t, s.URL, s.token(t, Token{Scope: ScopeAdmin}), nil)
	eventually(t, "the first revision", w.at(1))
	store.arm.Store(true)
	commit(t, store, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(1)}})
	eventually(t, "the second revision", w.at(2))
	if store.arm.Load() {
		t.Error("no watch failed")
	}
	if got := testutil.ToFloat64(s.feed.metrics.snapshots); got != 1 {
		t.Errorf("%v snapshots were sent for one follower", got)
	}
}

// TestFeedTokenFeeds: one token does not take the places of the others.
func TestFeedTokenFeeds(t *testing.T) {
	s := newFeedServer(t, newSQLite(t))
	commit(t, s.store, 0, frame())
	eventually(t, "the feed has the revision", func() bool { return s.feed.last() == 1 })
	greedy, other := s.token(t, Token{Scope: ScopeNode, Node: "fs1", Cell: "cell1"}), s.token(t, Token{Scope: ScopeNode, Node: "fs2", Cell: "cell1"})
	var open []*http.Response
	for range maxTokenFeeds {
		answer := ask(t, s.URL, greedy, "")
		if answer.StatusCode != http.StatusOK {
			t.Fatal(answer.Status)
		}
		open = append(open, answer)
	}
	if answer := ask(t, s.URL, greedy, ""); answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Retry-After") == "" {
		t.Errorf("one more: %s", answer.Status)
	}
	answer := ask(t, s.URL, other, "")
	if answer.StatusCode != http.StatusOK {
		t.Errorf("another token's: %s", answer.Status)
	}
	for _, a := range append(open, answer) {
		_ = a.Body.Close()
	}
	eventually(t, "all are gone", func() bool {
		s.feed.mu.Lock()
		defer s.feed.mu.Unlock()
		return s.feed.users == 0 && len(s.feed.by) == 0
	})
}

// TestFeedRevoked: a revoked token ends a running feed within a second.
func TestFeedRevoked(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() office) {
		s := newFeedServer(t, open())
		other := open()
		commit(t, other, 0, frame())
		secret, tok, err := other.Tokens().Create(t.Context(), Token{Scope: ScopeNode, Node: "fs1", Cell: "cell1"})
		if err != nil {
			t.Fatal(err)
		}
		w := follow(t, s.URL, secret, nil)
		eventually(t, "the first revision", w.at(1))
		began := time.Now()
		if err := other.Tokens().Revoke(t.Context(), tok.ID); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the feed has ended", func() bool { return !w.remote.Status().Connected })
		if took := time.Since(began); took > 5*time.Second { // a second is promised
			t.Errorf("it took %v", took)
		}
		eventually(t, "the follower knows why", func() bool { return strings.Contains(w.f.Status().Err, "401") })
		commit(t, other, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(1)}})
		if st := w.f.Status(); st.Revision != 1 || st.Following {
			t.Errorf("the status is %+v", st)
		}
	})
}

// TestFeedRevokedStalled: also one that reads nothing, in the middle of a line.
func TestFeedRevokedStalled(t *testing.T) {
	s := newFeedServer(t, newSQLite(t))
	big := frame()
	for i := range 1000 { // more than the connection's buffers take
		big.Tenants = append(big.Tenants, tenant(i))
	}
	commit(t, s.store, 0, big)
	secret, tok, err := s.store.Tokens().Create(t.Context(), Token{Scope: ScopeAdmin})
	if err != nil {
		t.Fatal(err)
	}
	var answer *http.Response
	eventually(t, "the feed is there", func() bool { answer = ask(t, s.URL, secret, ""); return answer.StatusCode == http.StatusOK })
	defer func() { _ = answer.Body.Close() }()
	users := func(n int) func() bool {
		return func() bool { s.feed.mu.Lock(); defer s.feed.mu.Unlock(); return s.feed.users == n }
	}
	eventually(t, "it is followed", users(1))
	eventually(t, "it stalls", func() bool { return testutil.ToFloat64(s.feed.metrics.snapshots) == 1 })
	began := time.Now()
	if err := s.store.Tokens().Revoke(t.Context(), tok.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is not followed any more", users(0))
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// ask reads a feed by hand.
func ask(t *testing.T, url, secret, query string) *http.Response {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+FeedPath+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+secret)
	// It reads by hand: nothing is taken off the connection unasked, and little waits in it.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, ReadBufferSize: 4 << 10,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err == nil {
				err = c.(*net.TCPConn).SetReadBuffer(4 << 10)
			}
			return c, err
		}}}
	answer, err := client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK {
		_ = answer.Body.Close()
	}
	return answer
}

// TestFeedScopes: who may follow what.
func TestFeedScopes(t *testing.T) {
	s := newFeedServer(t, newSQLite(t))
	commit(t, s.store, 0, twoCells())
	commit(t, s.store, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenantIn(0, "cell1"), tenantIn(1, "cell2")}})
	eventually(t, "the feed has the revision", func() bool { s.feed.mu.Lock(); defer s.feed.mu.Unlock(); return s.feed.head.number == 2 })
	node := s.token(t, Token{Scope: ScopeNode, Node: "fs1", Cell: "cell1"})
	admin := s.token(t, Token{Scope: ScopeAdmin})
	for _, c := range []struct {
		name, secret, query string
		status              int
		sees, not           string
	}{
		{"no token", "", "", 401, "", ""},
		{"a wrong token", "bh_aaaaaaaaaa_AAAAAAAAAAAAAAAAAAAAAAAAAA", "", 401, "", ""},
		{"a tenant's", s.token(t, Token{Scope: ScopeTenant, Tenant: "t00000"}), "", 403, "", ""},
		{"a tenant's, of a cell", s.token(t, Token{Scope: ScopeTenant, Tenant: "t00000"}), "?cell=cell1", 403, "", ""},
		{"a node's", node, "", 200, "t00000", "t00001"},
		{"a node's, of its cell", node, "?cell=cell1", 200, "t00000", "t00001"},
		{"a node's, of another cell", node, "?cell=cell2", 403, "", ""},
		{"a node's that is not there", s.token(t, Token{Scope: ScopeNode, Node: "x", Cell: "cell1"}), "", 403, "", ""},
		{"a node's of a cell that is not there", s.token(t, Token{Scope: ScopeNode, Node: "fs1", Cell: "cell7"}), "", 403, "", ""},
		{"a node's of a cell that it has left", s.token(t, Token{Scope: ScopeNode, Node: "fs1", Cell: "cell2"}), "", 403, "", ""},
		{"an SBC's of a cell that it has left", s.token(t, Token{Scope: ScopeSBC, SBC: "sbc9", Cell: "cell1"}), "", 403, "", ""},
		{"an SBC's", s.token(t, Token{Scope: ScopeSBC, SBC: "sbc9", Cell: "cell2"}), "", 200, "t00001", "t00000"},
		{"an SBC's, of another cell", s.token(t, Token{Scope: ScopeSBC, SBC: "sbc9", Cell: "cell2"}), "?cell=cell1", 403, "", ""},
		{"a reader's", s.token(t, Token{Scope: ScopeRead}), "", 403, "", ""},
		{"an admin's", admin, "", 200, "t00001", "cell7"},
		{"an admin's, of a cell", admin, "?cell=cell2", 200, "t00001", "t00000"},
		{"hostile query", admin, "?after=-1&line=%00&cell=%0d%0a", 200, "snapshot", "t0000"},
	} {
		answer := ask(t, s.URL, c.secret, c.query)
		if answer.StatusCode != c.status {
			t.Errorf("%s: %s", c.name, answer.Status)
		}
		if c.status != 200 {
			continue
		}
		var got strings.Builder
		lines := bufio.NewScanner(answer.Body)
		for lines.Scan() {
			got.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), `"type":"end"`) {
				break
			}
		}
		_ = answer.Body.Close()
		if !strings.Contains(got.String(), c.sees) || strings.Contains(got.String(), c.not) {
			t.Errorf("%s: got %s", c.name, got.String())
		}
		if strings.Contains(got.String(), `"author"`) {
			t.Errorf("%s: the feed names authors", c.name)
		}
	}
	post := httptest.NewRecorder()
	s.feed.ServeHTTP(post, httptest.NewRequest(http.MethodPost, FeedPath, strings.NewReader("x")))
	if post.Code != http.StatusMethodNotAllowed || post.Header().Get("Allow") != http.MethodGet {
		t.Errorf("POST: %v", post.Result().Status)
	}
}

// TestFeedLeft: who leaves a cell, or the registry, sees nothing more of it.
func TestFeedLeft(t *testing.T) {
	s := newFeedServer(t, newSQLite(t))
	commit(t, s.store, 0, twoCells())
	mover := follow(t, s.URL, s.token(t, Token{Scope: ScopeNode, Node: "fs1", Cell: "cell1"}), nil)
	gone := follow(t, s.URL, s.token(t, Token{Scope: ScopeSBC, SBC: "sbc1", Cell: "cell1"}), nil)
	stays := follow(t, s.URL, s.token(t, Token{Scope: ScopeNode, Node: "fs2", Cell: "cell1"}), nil)
	for _, w := range []*feedFollower{mover, gone, stays} {
		eventually(t, "the first revision", w.at(1))
	}
	commit(t, s.store, 1, bulkhead.Change{
		Nodes:  []bulkhead.Node{{ID: "fs1", Pool: "standard2", SIP: "127.0.0.1:5081"}},
		Delete: bulkhead.Deletion{SBCs: []bulkhead.SBCID{"sbc1"}},
	})
	eventually(t, "the node that moved is told why its feed ended", func() bool {
		return strings.Contains(mover.f.Status().Err, "403") && strings.Contains(mover.f.Status().Err, "make another token")
	})
	eventually(t, "the SBC that is gone is told so", func() bool { return strings.Contains(gone.f.Status().Err, "not in the registry") })
	commit(t, s.store, 2, bulkhead.Change{Tenants: []bulkhead.Tenant{tenantIn(1, "cell1")}})
	eventually(t, "who stays goes on", stays.at(3))
	if mover.now().Tenants["t00001"] != nil || gone.now().Tenants["t00001"] != nil {
		t.Error("who left the cell sees what came later")
	}
	arrived := follow(t, s.URL, s.token(t, Token{Scope: ScopeNode, Node: "fs1", Cell: "cell2"}), nil)
	eventually(t, "with another token it follows its cell", arrived.at(3))
}

// TestFeedOtherWay: the store lost revisions and made others of their numbers.
func TestFeedOtherWay(t *testing.T) {
	a, b := newSQLite(t), newSQLite(t)
	for i, s := range []*SQLite{a, b} {
		commit(t, s, 0, frame())
		commit(t, s, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(i)}})
	}
	secret, tok, err := a.Tokens().Create(t.Context(), Token{Scope: ScopeAdmin})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := a.Tokens().list(t.Context())
	if err != nil || rows[0].ID != tok.ID || b.addToken(t.Context(), &rows[0]) != nil {
		t.Fatal(err)
	}
	// One address, behind which the stores change places.
	first, second := newFeedServer(t, a), newFeedServer(t, b)
	behind := first
	var mu sync.Mutex
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		s := behind
		mu.Unlock()
		s.feed.ServeHTTP(w, r)
	}))
	defer front.Close()
	defer front.CloseClientConnections()
	w := follow(t, front.URL, secret, nil)
	eventually(t, "revision 2 of the first", w.at(2))
	same(t, "the first", w.now(), head(t, a))
	mu.Lock()
	behind = second
	mu.Unlock()
	front.CloseClientConnections()
	eventually(t, "revision 2 of the second", func() bool { return w.now().Tenants["t00001"] != nil })
	same(t, "the second", w.now(), head(t, b))
	w.stop()
}

// TestFeedHalfOpen: a server that says nothing more is dead after 10 s.
func TestFeedHalfOpen(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	t.Parallel()
	s := newFeedServer(t, newSQLite(t))
	commit(t, s.store, 0, frame())
	// A relay that stops passing anything on, without closing.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var relaying sync.WaitGroup
	var mu sync.Mutex
	stalled := false
	var open []net.Conn
	relaying.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", s.Listener.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			open = append(open, in, out)
			mu.Unlock()
			relaying.Go(func() { _, _ = io.Copy(out, in) })
			relaying.Go(func() {
				b := make([]byte, 4096)
				for {
					n, err := out.Read(b)
					if err != nil {
						return
					}
					mu.Lock()
					drop := stalled
					mu.Unlock()
					if !drop {
						_, _ = in.Write(b[:n])
					}
				}
			})
		}
	})
	w := follow(t, "http://"+l.Addr().String(), s.token(t, Token{Scope: ScopeAdmin}), nil)
	eventually(t, "the first revision", w.at(1))
	mu.Lock()
	stalled = true
	mu.Unlock()
	began := time.Now()
	eventually(t, "it is noticed", func() bool { return !w.remote.Status().Connected })
	if took := time.Since(began); took > 2*feedSilence {
		t.Errorf("it took %v", took)
	}
	if err := w.remote.Status().Err; !strings.Contains(err, "said nothing") {
		t.Errorf("the reason is %q", err)
	}
	commit(t, s.store, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(1)}})
	mu.Lock()
	stalled = false
	mu.Unlock()
	eventually(t, "it has caught up", w.at(2))
	w.stop()
	_ = l.Close()
	mu.Lock()
	for _, c := range open {
		_ = c.Close()
	}
	mu.Unlock()
	relaying.Wait()
}

// TestFeedHeartbeat: a server's own time limits do not end a feed.
func TestFeedHeartbeat(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 7 s")
	}
	t.Parallel()
	s := newFeedServer(t, newSQLite(t))
	commit(t, s.store, 0, frame())
	w := follow(t, s.URL, s.token(t, Token{Scope: ScopeAdmin}), nil)
	eventually(t, "the first revision", w.at(1))
	first := w.remote.Status().Heard
	eventually(t, "two heartbeats", func() bool { return w.remote.Status().Heard.Sub(first) > 2*feedHeartbeat-time.Second })
	if got := testutil.ToFloat64(w.remote.connects); got != 1 {
		t.Errorf("it was connected %v times", got)
	}
}

func TestNewRemote(t *testing.T) {
	for _, u := range []string{"", "x", "ftp://a", "http://", "://", "127.0.0.1:80"} {
		if _, err := NewRemote(RemoteOptions{URLs: []string{u}}); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%q: %v", u, err)
		}
	}
}
