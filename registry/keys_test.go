package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead"
)

func (k *Keyring) has(secret string) func() bool {
	return func() bool { _, ok := k.Find(secret); return ok }
}

func (k *Keyring) lacks(secret string) func() bool {
	return func() bool { return !k.has(secret)() }
}

// TestKeepKeys: the tokens of nodes and SBCs, and of nobody else, as long as
// they are good, whichever process makes and revokes them.
func TestKeepKeys(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() office) {
		a, b := open().Tokens(), open().Tokens()
		var ring Keyring
		ctx, cancel := context.WithCancel(t.Context())
		var keeping sync.WaitGroup
		keeping.Go(func() { _ = a.KeepKeys(ctx, &ring) })
		defer keeping.Wait()
		defer cancel()
		made := func(tok Token) (string, string) {
			t.Helper()
			secret, tok, err := b.Create(t.Context(), tok)
			if err != nil {
				t.Fatal(err)
			}
			return secret, tok.ID
		}
		admin, _ := made(Token{Scope: ScopeAdmin})
		tenant, _ := made(Token{Scope: ScopeTenant, Tenant: "acme"})
		node, nodeID := made(Token{Scope: ScopeNode, Node: "fs1", Cell: "cell1"})
		sbc, _ := made(Token{Scope: ScopeSBC, SBC: "sbc1", Cell: "cell1"})
		eventually(t, "the keys came", ring.has(sbc))
		if key, ok := ring.Find(node); !ok || key.Node != "fs1" || key.Cell != "cell1" || key.SBC != "" || key.Token != nodeID {
			t.Errorf("the node's key is %+v", key)
		}
		for _, s := range []string{admin, tenant, "", node + "x", node[:len(node)-1]} {
			if _, ok := ring.Find(s); ok {
				t.Errorf("%q is taken for a node", s)
			}
		}
		for range 3 { // what is revoked and what is made change places
			began := time.Now()
			if err := b.Revoke(t.Context(), nodeID); err != nil {
				t.Fatal(err)
			}
			old := node
			node, nodeID = made(Token{Scope: ScopeNode, Node: "fs1", Cell: "cell1"})
			eventually(t, "the revoked one is out, the new one in", func() bool { return ring.lacks(old)() && ring.has(node)() })
			if took := time.Since(began); took > 5*time.Second { // half a second is promised
				t.Errorf("it took %v", took)
			}
		}
	})
}

// TestFeedKeys: followers recognise the tokens of their cell, go on doing so
// with nobody behind them, and drop their own when they are told that it was
// revoked.
func TestFeedKeys(t *testing.T) {
	s := newFeedServer(t, newSQLite(t))
	commit(t, s.store, 0, twoCells())
	mine := s.token(t, Token{Scope: ScopeNode, Node: "fs1", Cell: "cell1"})
	neighbour := s.token(t, Token{Scope: ScopeSBC, SBC: "sbc1", Cell: "cell1"})
	stranger := s.token(t, Token{Scope: ScopeNode, Node: "fs9", Cell: "cell2"})
	dir := t.TempDir()
	w := follow(t, s.URL, mine, openLastGood(t, dir))
	eventually(t, "the keys", func() bool { return w.keys.has(mine)() && w.keys.has(neighbour)() })
	if w.keys.has(stranger)() {
		t.Error("the key of another cell's node was told")
	}
	late := s.token(t, Token{Scope: ScopeNode, Node: "fs2", Cell: "cell1"})
	eventually(t, "one that was made later", w.keys.has(late))

	// With the server dead, a restart takes them from disk.
	w.stop()
	s.CloseClientConnections()
	alone := follow(t, "http://127.0.0.1:1", mine, openLastGood(t, dir))
	eventually(t, "the keys from disk", func() bool { return alone.keys.has(mine)() && alone.keys.has(late)() })
	alone.stop()

	// A server that lost its tokens refuses, and takes nothing away.
	other := newFeedServer(t, newSQLite(t))
	commit(t, other.store, 0, twoCells())
	lost := follow(t, other.URL, mine, openLastGood(t, dir))
	eventually(t, "it was refused", func() bool { return lost.f.Status().Err != "" && lost.f.Status().Source == FromDisk })
	if !lost.keys.has(mine)() {
		t.Error("a server that does not know a token revoked it")
	}
	lost.stop()

	// One that says revoked is believed, now and after a restart.
	g := openLastGood(t, dir)
	back := follow(t, s.URL, mine, g)
	eventually(t, "it follows again", func() bool { return back.f.Status().Following && back.keys.has(late)() })
	list, err := s.store.Tokens().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tok := range list {
		if tok.Node == "fs1" || tok.Node == "fs2" {
			if err := s.store.Tokens().Revoke(t.Context(), tok.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "its own is out", back.keys.lacks(mine))
	eventually(t, "that is on disk", func() bool {
		_, saved, err := g.Load()
		for _, key := range saved.Keys {
			if key.Node == "fs1" {
				return false
			}
		}
		return err == nil && len(saved.Keys) > 0
	})
	back.stop()
	again := follow(t, "http://127.0.0.1:1", mine, openLastGood(t, dir))
	eventually(t, "the others from disk", again.keys.has(neighbour))
	if again.keys.has(mine)() {
		t.Error("after a restart the revoked token is good again")
	}
}

// TestKeyringLoss: what a store or a feed leaves out is lost, not revoked.
func TestKeyringLoss(t *testing.T) {
	row := func(id, secret string, revoked time.Time) tokenRow {
		sum := sha256.Sum256([]byte(secret))
		return tokenRow{Token{ID: id, Scope: ScopeNode, Node: "fs1", Cell: "cell1", Revoked: revoked}, sum[:]}
	}
	mine, other, made := row("a", "mine", time.Time{}), row("b", "other", time.Time{}), row("c", "made", time.Time{})
	var store Keyring
	store.stored([]tokenRow{mine, other})
	store.stored(nil)
	if !store.has("mine")() || !store.has("other")() {
		t.Error("a store without tokens took keys away")
	}
	store.stored([]tokenRow{made, row("b", "other", time.Unix(1, 0))})
	if !store.has("mine")() || !store.has("made")() {
		t.Error("a store that lost a token took its key away")
	}
	if store.has("other")() {
		t.Error("a revoked token is good")
	}
	var feed Keyring
	feed.told("mine", goodKeys([]tokenRow{mine, other}))
	feed.told("mine", goodKeys([]tokenRow{made}))
	if !feed.has("mine")() || !feed.has("other")() || feed.has("made")() {
		t.Error("a list without the feed's own key was believed")
	}
	feed.revoke("mine")
	if feed.has("mine")() || feed.has("other")() || !feed.has("made")() {
		t.Error("the list was right, and is not believed after its token was revoked")
	}
	var fresh Keyring
	fresh.stored(nil)
	fresh.restore(goodKeys([]tokenRow{mine}))
	if !fresh.has("mine")() {
		t.Error("an empty store hides what was on disk")
	}
}

// TestFeedTwoServers: with one dead, the other is followed, from the changes.
func TestFeedTwoServers(t *testing.T) {
	server := newSQLite(t)
	one, two := newFeedServer(t, server), newFeedServer(t, server)
	commit(t, server, 0, frame())
	w := follow(t, one.URL+","+two.URL, one.token(t, Token{Scope: ScopeAdmin}), nil)
	eventually(t, "the first revision", w.at(1))
	eventually(t, "both know it", func() bool { return one.feed.last() == 1 && two.feed.last() == 1 })
	// Whichever it follows: neither sends a second snapshot.
	sent := func() float64 {
		return testutil.ToFloat64(one.feed.metrics.snapshots) + testutil.ToFloat64(two.feed.metrics.snapshots)
	}
	if n := sent(); n != 1 {
		t.Fatalf("%v snapshots", n)
	}
	one.stop()
	eventually(t, "the other is followed", func() bool { two.feed.mu.Lock(); defer two.feed.mu.Unlock(); return two.feed.users == 1 })
	commit(t, server, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(1)}})
	eventually(t, "the second revision by the other", w.at(2))
	if n := sent(); n != 1 {
		t.Errorf("%v snapshots: the second revision did not come as a change", n)
	}
	if st := w.f.Status(); st.Source != FromStore {
		t.Errorf("the status is %+v", st)
	}
}

// TestEmptiedRegistry: who loses everything takes nothing from followers, and
// a backup with its tokens brings everybody back.
func TestEmptiedRegistry(t *testing.T) {
	server := newRedisServer(t)
	s := newFeedServer(t, server.open(t))
	commit(t, s.store, 0, frame())
	commit(t, s.store, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(1)}})
	w := follow(t, s.URL, s.token(t, Token{Scope: ScopeAdmin}), nil)
	eventually(t, "revision 2", w.at(2))
	dir := t.TempDir()
	good := openLastGood(t, dir)
	secret := s.token(t, Token{Scope: ScopeNode, Node: "fs1", Cell: "cell1"})
	node := follow(t, s.URL, secret, good)
	var ring Keyring // of a process at the store
	keeping, stopKeeping := context.WithCancel(t.Context())
	var keepers sync.WaitGroup
	keepers.Go(func() { _ = s.store.Tokens().KeepKeys(keeping, &ring) })
	defer keepers.Wait()
	defer stopKeeping()
	eventually(t, "everybody has the node's key", func() bool {
		_, saved, err := good.Load()
		return ring.has(secret)() && node.keys.has(secret)() && err == nil && len(saved.Keys) == 1
	})
	direct := &Follower{Store: server.open(t), Apply: func(u Update) error {
		if u.Revision == 0 {
			return errors.New("it was emptied")
		}
		return nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = direct.Run(ctx) })
	defer running.Wait()
	defer cancel()
	eventually(t, "the direct one follows", func() bool { return direct.Status().Following })
	store := office(server.open(t))
	var saved bytes.Buffer
	if _, err := WriteBackup(t.Context(), store, &saved, BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	server.clear(t)
	eventually(t, "the direct one says so", func() bool { return !direct.Status().Following })
	eventually(t, "the feed keeps what it has", func() bool { return s.feed.last() == 2 })
	if st := direct.Status(); st.Revision != 2 {
		t.Errorf("the status is %+v", st)
	}
	if got := w.now(); got.Revision != 2 || len(got.Tenants) != 1 {
		t.Errorf("the follower has revision %d with %d tenants", got.Revision, len(got.Tenants))
	}

	eventually(t, "the node's feed has ended", func() bool { return !node.remote.Status().Connected })
	made := s.token(t, Token{Scope: ScopeNode, Node: "fs2", Cell: "cell1"})
	eventually(t, "the emptied store's tokens were read", ring.has(made))
	if !ring.has(secret)() || !node.keys.has(secret)() {
		t.Error("the node's key was lost with the store")
	}
	node.stop()
	if _, saved, err := good.Load(); err != nil || len(saved.Keys) != 1 {
		t.Errorf("on disk there are keys %v, %v", saved.Keys, err)
	}
	node = follow(t, s.URL, secret, openLastGood(t, dir))
	eventually(t, "the node's key after a restart", node.keys.has(secret))

	backup, err := ReadBackup(&saved)
	if err != nil {
		t.Fatal(err)
	}
	done, err := backup.Restore(t.Context(), store, RestoreOptions{Author: "ada", Tokens: true})
	if err != nil || done.Revision.Number != restoreStep || done.Revision.Parent != restoreStep-1 {
		t.Fatalf("restored as revision %d on %d: %v", done.Revision.Number, done.Revision.Parent, err)
	}
	last := commit(t, s.store, restoreStep, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(2)}}).Number
	eventually(t, "the direct one follows again", func() bool { st := direct.Status(); return st.Following && st.Revision == last })
	eventually(t, "the follower has both tenants", func() bool { return len(w.now().Tenants) == 2 })
	eventually(t, "the node has both tenants", func() bool { return len(node.now().Tenants) == 2 })
	eventually(t, "the node knows the tokens of before and after", func() bool { return node.keys.has(secret)() && node.keys.has(made)() })
}
