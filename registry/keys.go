package registry

import (
	"context"
	"crypto/sha256"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// keysPoll is how often a store is asked whether there are other tokens.
const keysPoll = 300 * time.Millisecond

// Key is what a follower knows of the token of a node or an SBC, so that it
// can recognise it with nobody behind it. The secret is not in it.
type Key struct {
	Token string          `json:"token"` // its id
	Node  bulkhead.NodeID `json:"node,omitempty"`
	SBC   bulkhead.SBCID  `json:"sbc,omitempty"`
	Cell  bulkhead.CellID `json:"cell"`
	Hash  []byte          `json:"hash"` // SHA-256 of the secret
}

type keyHash [sha256.Size]byte

// Keyring holds the keys of all tokens of nodes and SBCs that are good. It is
// filled by Tokens.KeepKeys or a Remote, and at the start by a Follower's
// LastGood. The zero Keyring holds none.
type Keyring struct {
	mu      sync.RWMutex
	known   bool // somebody said which there are; what was on disk is no news then
	list    []Key
	byHash  map[keyHash]Key
	revoked []keyHash // of which the feed said so
	doubted []Key     // what a feed told that left out the key it was opened with
	changed chan struct{}
}

// Find returns the key of a secret.
func (k *Keyring) Find(secret string) (Key, bool) {
	sum := keyHash(sha256.Sum256([]byte(secret)))
	k.mu.RLock()
	defer k.mu.RUnlock()
	key, ok := k.byHash[sum]
	return key, ok
}

// stored makes the keys those of a store. One of which the store has no row
// was not revoked, which leaves its row there, but lost, as all are in a store
// that was emptied: it stays until this process ends.
func (k *Keyring) stored(rows []tokenRow) {
	if len(rows) == 0 {
		return // a store without any knows less than what was on disk
	}
	list, there := goodKeys(rows), make(map[string]bool, len(rows))
	for i := range rows {
		there[rows[i].ID] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range k.list {
		if !there[key.Token] && len(list) < MaxTokens {
			list = append(list, key)
		}
	}
	slices.SortFunc(list, func(a, b Key) int { return strings.Compare(a.Token, b.Token) })
	k.known = true
	k.set(list)
}

// told makes the keys those of a feed that was opened with a secret. A list
// that lacks a key of that secret that was there is believed only when the
// secret was revoked: else its server has lost tokens.
func (k *Keyring) told(secret string, list []Key) {
	own := keyHash(sha256.Sum256([]byte(secret)))
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, had := k.byHash[own]; had && !slices.ContainsFunc(list, func(key Key) bool { return slices.Equal(key.Hash, own[:]) }) {
		k.doubted = list
		return
	}
	k.known, k.doubted = true, nil
	k.set(list)
}

// restore puts what was on disk, unless there is news already.
func (k *Keyring) restore(list []Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.known {
		k.set(list)
	}
}

// revoke takes out the key of a secret, for good.
func (k *Keyring) revoke(secret string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	sum := keyHash(sha256.Sum256([]byte(secret)))
	if !slices.Contains(k.revoked, sum) {
		k.revoked = append(k.revoked, sum)
		if k.doubted != nil {
			k.list, k.doubted = k.doubted, nil
		}
		k.set(k.list)
	}
}

func (k *Keyring) set(list []Key) {
	k.list, k.byHash = nil, make(map[keyHash]Key, len(list))
	for _, key := range list {
		if len(key.Hash) != sha256.Size || slices.Contains(k.revoked, keyHash(key.Hash)) {
			continue
		}
		k.list = append(k.list, key)
		k.byHash[keyHash(key.Hash)] = key
	}
	if k.changed != nil {
		close(k.changed)
		k.changed = nil
	}
}

// next returns the keys, whether they are others than were on disk, and what
// is closed when they change.
func (k *Keyring) next() (list []Key, news bool, changed <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.changed == nil {
		k.changed = make(chan struct{})
	}
	return k.list, k.known || len(k.revoked) > 0, k.changed
}

// KeepKeys fills the ring with the keys that the store holds, and goes on
// doing so until ctx ends; then it returns nil. A token that was made or
// revoked is so in the ring within half a second. While the store does not
// answer, the ring stays as it is, and a store that lost tokens takes none
// out of it.
func (k *Tokens) KeepKeys(ctx context.Context, ring *Keyring) error {
	tick := time.NewTicker(keysPoll)
	defer tick.Stop()
	for have := ""; ; {
		if version, err := k.rows.tokensVersion(ctx); err == nil && version != have {
			if rows, err := k.rows.tokens(ctx); err == nil {
				ring.stored(rows)
				have = version
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func goodKeys(rows []tokenRow) []Key {
	out := []Key{}
	for i := range rows {
		t := &rows[i]
		if (t.Scope == ScopeNode || t.Scope == ScopeSBC) && t.Revoked.IsZero() {
			out = append(out, Key{Token: t.ID, Node: t.Node, SBC: t.SBC, Cell: t.Cell, Hash: t.Hash})
		}
	}
	return out
}

// keysIn returns the keys that followers of a cell may see.
func keysIn(list []Key, cell bulkhead.CellID) []Key {
	out := []Key{}
	for _, key := range list {
		if cell == "" || key.Cell == cell {
			out = append(out, key)
		}
	}
	return out
}
