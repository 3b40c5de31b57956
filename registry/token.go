package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// Scope says what a Token opens.
type Scope string

// The scopes.
const (
	ScopeAdmin  Scope = "admin"  // everything
	ScopeRead   Scope = "read"   // everything, to look at
	ScopeTenant Scope = "tenant" // one tenant's objects
	ScopeNode   Scope = "node"   // what a media node of one cell needs: answers, and the feed of its cell
	ScopeSBC    Scope = "sbc"    // what an SBC of one cell needs: the feed of its cell, and to post events
)

// Token is what the registry knows about a token. It never holds the secret.
type Token struct {
	ID       string            `json:"id"`
	Scope    Scope             `json:"scope"`
	Tenant   bulkhead.TenantID `json:"tenant,omitempty"` // of scope tenant
	Node     bulkhead.NodeID   `json:"node,omitempty"`   // of scope node
	SBC      bulkhead.SBCID    `json:"sbc,omitempty"`    // of scope sbc
	Cell     bulkhead.CellID   `json:"cell,omitempty"`   // of scope node or sbc: the cell it is in
	Note     string            `json:"note,omitempty"`   // at most 256 bytes
	Created  time.Time         `json:"created,omitzero"`
	LastUsed time.Time         `json:"last_used,omitzero"` // to the minute; zero: never
	Revoked  time.Time         `json:"revoked,omitzero"`   // zero: still good
}

const (
	// MaxTokens is how many tokens a registry holds, revoked ones included;
	// the oldest revoked ones make room.
	MaxTokens = 10_000
	// usedEvery is how often a token's last use is written down.
	usedEvery = time.Minute
	// usedWait bounds what writing it down may cost who uses the token.
	usedWait    = 200 * time.Millisecond
	maxNote     = 256
	tokenIDSize = 10
)

// secretForm is bh_ID_RANDOM: 50 bits that name the token, 130 that prove it.
var secretForm = regexp.MustCompile(`^bh_([a-z2-7]{10})_[A-Z2-7]{26}$`)

// tokenRow is a token as it is stored.
type tokenRow struct {
	Token
	Hash []byte `json:"hash"` // SHA-256 of the secret
}

// tokenRows is where a store keeps tokens.
type tokenRows interface {
	addToken(ctx context.Context, t *tokenRow) error
	token(ctx context.Context, id string) (*tokenRow, error) // bulkhead.NotFound
	tokens(ctx context.Context) ([]tokenRow, error)
	// tokensVersion is another text after a token was added, revoked or dropped; never "".
	tokensVersion(ctx context.Context) (string, error)
	// revokeToken does nothing to one that is revoked already.
	revokeToken(ctx context.Context, id string, at time.Time) error
	// useToken does nothing to one whose last use is less than usedEvery ago.
	useToken(ctx context.Context, id string, at time.Time) error
	dropToken(ctx context.Context, id string) error
}

// Tokens is who may ask what of the admin API and the feed. All handles of a
// store share one set of tokens.
type Tokens struct {
	rows tokenRows
	now  func() time.Time

	mu   sync.Mutex
	used map[string]time.Time // when this handle last wrote a use down
}

func newTokens(rows tokenRows) *Tokens {
	return &Tokens{rows: rows, now: now, used: map[string]time.Time{}}
}

// Create makes a token out of t's scope, its tenant, node, SBC and cell, and its
// note. It returns the secret, which is stored nowhere and cannot be had
// again. It returns bulkhead.Invalid when scope and names do not fit, or when
// there are MaxTokens that are not revoked.
func (k *Tokens) Create(ctx context.Context, t Token) (secret string, _ Token, err error) {
	if err := checkToken(&t); err != nil {
		return "", Token{}, err
	}
	if err := k.room(ctx); err != nil {
		return "", Token{}, err
	}
	t.ID = strings.ToLower(rand.Text()[:tokenIDSize])
	t.Created, t.LastUsed, t.Revoked = k.now(), time.Time{}, time.Time{}
	secret = "bh_" + t.ID + "_" + rand.Text()
	sum := sha256.Sum256([]byte(secret))
	if err := k.rows.addToken(ctx, &tokenRow{t, sum[:]}); err != nil {
		return "", Token{}, err
	}
	return secret, t, nil
}

// checkToken holds a token to the names that its scope has.
func checkToken(t *Token) error {
	errs := []error{checkText("note", t.Note, maxNote, "")}
	want := func(field, id string, wanted bool) {
		switch {
		case wanted:
			if (&bulkhead.Cell{ID: bulkhead.CellID(id)}).Validate() != nil {
				errs = append(errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: fmt.Sprintf("%q is not an id: a token of scope %s needs it", id, t.Scope)})
			}
		case id != "":
			errs = append(errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: fmt.Sprintf("does not belong to a token of scope %s", t.Scope)})
		}
	}
	if !slices.Contains([]Scope{ScopeAdmin, ScopeRead, ScopeTenant, ScopeNode, ScopeSBC}, t.Scope) {
		return &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: "scope", Msg: fmt.Sprintf("%q is none of admin, read, tenant, node and sbc", t.Scope)}
	}
	want("tenant", string(t.Tenant), t.Scope == ScopeTenant)
	want("node", string(t.Node), t.Scope == ScopeNode)
	want("sbc", string(t.SBC), t.Scope == ScopeSBC)
	want("cell", string(t.Cell), t.Scope == ScopeNode || t.Scope == ScopeSBC)
	return errors.Join(errs...)
}

// room drops the token that was revoked first if there are too many.
func (k *Tokens) room(ctx context.Context) error {
	all, err := k.rows.tokens(ctx)
	if err != nil || len(all) < MaxTokens {
		return err
	}
	var oldest *tokenRow
	for i := range all {
		if t := &all[i]; !t.Revoked.IsZero() && (oldest == nil || t.Revoked.Before(oldest.Revoked)) {
			oldest = t
		}
	}
	if oldest == nil {
		return fmt.Errorf("there are %d tokens: %w: revoke some that nobody uses", len(all), bulkhead.Invalid)
	}
	return k.rows.dropToken(ctx, oldest.ID)
}

// ErrRevoked is what Authenticate says to who shows the secret of a token that
// was revoked. It is bulkhead.Denied.
var ErrRevoked = fmt.Errorf("the token was revoked: %w", bulkhead.Denied)

// Authenticate returns the token of a secret. It returns bulkhead.Denied when
// there is none, ErrRevoked when there was one, and bulkhead.Unavailable when
// the store does not answer.
func (k *Tokens) Authenticate(ctx context.Context, secret string) (Token, error) {
	denied := fmt.Errorf("the token is not known here: %w", bulkhead.Denied)
	form := secretForm.FindStringSubmatch(secret)
	if form == nil {
		return Token{}, denied
	}
	row, err := k.rows.token(ctx, form[1])
	known := err == nil
	if errors.Is(err, bulkhead.NotFound) {
		row = &tokenRow{Hash: make([]byte, sha256.Size)} // compared all the same
	} else if err != nil {
		return Token{}, err
	}
	sum := sha256.Sum256([]byte(secret))
	same := subtle.ConstantTimeCompare(sum[:], row.Hash) == 1
	switch {
	case !same || !known:
		return Token{}, denied
	case !row.Revoked.IsZero():
		return Token{}, ErrRevoked
	}
	k.use(ctx, &row.Token)
	return row.Token, nil
}

// use writes the use down, unless that was done less than a minute ago. That
// it fails is no reason to refuse.
func (k *Tokens) use(ctx context.Context, t *Token) {
	at := k.now()
	k.mu.Lock()
	fresh := at.Sub(t.LastUsed) < usedEvery || at.Sub(k.used[t.ID]) < usedEvery
	if !fresh {
		if len(k.used) > MaxTokens {
			clear(k.used)
		}
		k.used[t.ID] = at
	}
	k.mu.Unlock()
	if fresh {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, usedWait)
	defer cancel()
	if k.rows.useToken(ctx, t.ID, at) == nil {
		t.LastUsed = at
	}
}

// Revoke makes a token worthless from now on. It returns bulkhead.NotFound
// when there is none with this ID.
func (k *Tokens) Revoke(ctx context.Context, id string) error {
	return k.rows.revokeToken(ctx, id, k.now())
}

// ofTenants returns the ids of the good tokens of tenants. Whoever commits
// that tenants are gone revokes them with that: the next tenant of the same
// id is somebody else.
func (k *Tokens) ofTenants(ctx context.Context, gone []bulkhead.TenantID) ([]string, error) {
	if len(gone) == 0 {
		return nil, nil
	}
	rows, err := k.rows.tokens(ctx)
	if err != nil {
		return nil, err
	}
	deleted := make(map[bulkhead.TenantID]bool, len(gone))
	for _, id := range gone {
		deleted[id] = true
	}
	var out []string
	for i := range rows {
		if t := &rows[i]; t.Scope == ScopeTenant && t.Revoked.IsZero() && deleted[t.Tenant] {
			out = append(out, t.ID)
		}
	}
	return out, nil
}

// List returns all tokens in the order in which they were made, revoked ones too.
func (k *Tokens) List(ctx context.Context) ([]Token, error) {
	rows, err := k.list(ctx)
	out := make([]Token, len(rows))
	for i := range rows {
		out[i] = rows[i].Token
	}
	return out, err
}

func (k *Tokens) list(ctx context.Context) ([]tokenRow, error) {
	rows, err := k.rows.tokens(ctx)
	slices.SortFunc(rows, func(a, b tokenRow) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return rows, err
}
