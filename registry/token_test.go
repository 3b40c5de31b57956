package registry

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
)

// office is a store with its tokens and audit log.
type office interface {
	history
	Tokens() *Tokens
	Audit() *Audit
	commitAfter(ctx context.Context, base, parent bulkhead.RevisionNumber, r bulkhead.Revision) (bulkhead.Revision, error)
}

// eachStore runs a test over both stores. open opens one more handle on what
// the test has.
func eachStore(t *testing.T, test func(t *testing.T, open func() office)) {
	t.Run("sqlite", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "registry.db")
		test(t, func() office { return openSQLite(t, path) })
	})
	t.Run("redis", func(t *testing.T) {
		server := newRedisServer(t)
		test(t, func() office { return server.open(t) })
	})
}

func TestTokens(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() office) {
		a, b := open().Tokens(), open().Tokens()
		clock := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
		a.now, b.now = func() time.Time { return clock }, func() time.Time { return clock }
		want := []Token{
			{Scope: ScopeAdmin, Note: "Ada's"},
			{Scope: ScopeRead},
			{Scope: ScopeTenant, Tenant: "acme"},
			{Scope: ScopeNode, Node: "fs1", Cell: "cell1"},
			{Scope: ScopeSBC, SBC: "sbc1", Cell: "cell1"},
		}
		secrets := make([]string, len(want))
		for i, w := range want {
			w.ID, w.LastUsed, w.Revoked = "mine", clock, clock // ignored
			secret, made, err := a.Create(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			if !secretForm.MatchString(secret) || !strings.HasPrefix(secret, "bh_"+made.ID+"_") {
				t.Fatalf("the secret %q does not name %q", secret, made.ID)
			}
			want[i].ID, want[i].Created = made.ID, clock
			if d := cmp.Diff(want[i], made); d != "" {
				t.Fatalf("made (-want +got):\n%s", d)
			}
			secrets[i] = secret
			clock = clock.Add(time.Second)
		}
		for i := range want {
			want[i].LastUsed = clock
			got, err := b.Authenticate(t.Context(), secrets[i])
			if d := cmp.Diff(want[i], got); err != nil || d != "" {
				t.Fatalf("authenticated (-want +got):\n%s%v", d, err)
			}
		}
		list, err := a.List(t.Context())
		if d := cmp.Diff(want, list); err != nil || d != "" {
			t.Fatalf("listed (-want +got):\n%s%v", d, err)
		}
		if err := a.Revoke(t.Context(), want[2].ID); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(time.Hour)
		if err := b.Revoke(t.Context(), want[2].ID); err != nil {
			t.Fatalf("revoke again: %v", err)
		}
		if list, err := b.List(t.Context()); err != nil || !list[2].Revoked.Equal(clock.Add(-time.Hour)) {
			t.Fatalf("revoked: %+v, %v", list[2], err)
		}
		if err := a.Revoke(t.Context(), "aaaaaaaaaa"); !errors.Is(err, bulkhead.NotFound) {
			t.Errorf("revoke what is not there: %v", err)
		}
		refused(t, a, b, secrets)
	})
}

// refused tries what is no token; secrets[2] is revoked.
func refused(t *testing.T, a, b *Tokens, secrets []string) {
	t.Helper()
	said := map[string]bool{}
	id, random := secrets[0][3:13], secrets[0][14:]
	for _, s := range []string{
		"", "x", secrets[2][:14] + secrets[0][14:], secrets[0] + "A", secrets[0][:len(secrets[0])-1], "bh_" + id + "_" + secrets[1][14:],
		"bh_aaaaaaaaaa_" + random, "bh_" + id + "_" + strings.ToLower(random), strings.Repeat("A", 1<<20), secrets[0] + "\n", id, "bh_" + id + "_",
	} {
		for _, k := range []*Tokens{a, b} {
			_, err := k.Authenticate(t.Context(), s)
			if !errors.Is(err, bulkhead.Denied) {
				t.Errorf("%.40q: %v", s, err)
				continue
			}
			said[err.Error()] = true
		}
	}
	if len(said) != 1 {
		t.Errorf("refusals tell each other apart: %v", said)
	}
	if _, err := b.Authenticate(t.Context(), secrets[2]); !errors.Is(err, ErrRevoked) || !errors.Is(err, bulkhead.Denied) {
		t.Errorf("a revoked one: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Authenticate(ctx, secrets[0]); err == nil || errors.Is(err, bulkhead.Denied) {
		t.Errorf("a store that does not answer: %v", err)
	}
}

// TestTenantTokenEnds: a tenant's token ends with it, and does not open the
// next tenant of that id.
func TestTenantTokenEnds(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() office) {
		s := open()
		commit(t, s, 0, example(3))
		made := map[string]string{}
		for name, tok := range map[string]Token{
			"gone": {Scope: ScopeTenant, Tenant: "t00001"}, "stays": {Scope: ScopeTenant, Tenant: "t00002"}, "admin": {Scope: ScopeAdmin},
		} {
			secret, _, err := s.Tokens().Create(t.Context(), tok)
			if err != nil {
				t.Fatal(err)
			}
			made[name] = secret
		}
		before, err := s.Tokens().rows.tokensVersion(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		commit(t, s, 1, bulkhead.Change{Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{"t00001"}}})
		commit(t, s, 2, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(1)}})
		other := open().Tokens()
		if _, err := other.Authenticate(t.Context(), made["gone"]); !errors.Is(err, ErrRevoked) {
			t.Errorf("the token of a tenant that was deleted: %v", err)
		}
		for _, name := range []string{"stays", "admin"} {
			if _, err := other.Authenticate(t.Context(), made[name]); err != nil {
				t.Errorf("the token %q: %v", name, err)
			}
		}
		if after, err := other.rows.tokensVersion(t.Context()); err != nil || after == before {
			t.Errorf("the version of the tokens is %q still, %v", after, err)
		}
	})
}

func TestTokensLastUsed(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() office) {
		a, b := open().Tokens(), open().Tokens()
		start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
		clock := start
		a.now, b.now = func() time.Time { return clock }, func() time.Time { return clock }
		secret, _, err := a.Create(t.Context(), Token{Scope: ScopeAdmin})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ at, want time.Duration }{{5, 5}, {30, 5}, {64, 5}, {65, 65}, {100, 65}, {125, 125}} {
			clock = start.Add(c.at * time.Second)
			for _, k := range []*Tokens{a, b} {
				if _, err := k.Authenticate(t.Context(), secret); err != nil {
					t.Fatal(err)
				}
			}
			list, err := a.List(t.Context())
			if want := start.Add(c.want * time.Second); err != nil || !list[0].LastUsed.Equal(want) {
				t.Errorf("after %d s the last use is %v, want %v (%v)", c.at, list[0].LastUsed, want, err)
			}
		}
	})
}

func TestTokensInvalid(t *testing.T) {
	k := newSQLite(t).Tokens()
	for name, tok := range map[string]Token{
		"no scope":               {},
		"unknown scope":          {Scope: "root"},
		"tenant without a name":  {Scope: ScopeTenant},
		"tenant with a bad name": {Scope: ScopeTenant, Tenant: "A B"},
		"tenant with a node":     {Scope: ScopeTenant, Tenant: "a", Node: "b"},
		"node without a cell":    {Scope: ScopeNode, Node: "fs1"},
		"SBC without a cell":     {Scope: ScopeSBC, SBC: "sbc1"},
		"SBC with a node":        {Scope: ScopeSBC, SBC: "sbc1", Node: "fs1", Cell: "cell1"},
		"admin of a tenant":      {Scope: ScopeAdmin, Tenant: "a"},
		"reader of a cell":       {Scope: ScopeRead, Cell: "cell1"},
		"long note":              {Scope: ScopeAdmin, Note: strings.Repeat("x", maxNote+1)},
		"note of two lines":      {Scope: ScopeAdmin, Note: "a\r\nb"},
	} {
		if secret, _, err := k.Create(t.Context(), tok); !errors.Is(err, bulkhead.Invalid) || secret != "" {
			t.Errorf("%s: %q, %v", name, secret, err)
		}
	}
	if list, err := k.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("there are %d tokens, %v", len(list), err)
	}
}

// TestTokensAtRest: no file of the store holds a secret.
func TestTokensAtRest(t *testing.T) {
	dir := t.TempDir()
	s := openSQLite(t, filepath.Join(dir, "registry.db"))
	secret, _, err := s.Tokens().Create(t.Context(), Token{Scope: ScopeAdmin})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Tokens().Authenticate(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(secret[14:])) {
			t.Errorf("%s holds the secret", f.Name())
		}
	}
}

// fullRows are tokenRows with no room.
type fullRows struct {
	tokenRows
	rows    []tokenRow
	dropped string
}

func (f *fullRows) tokens(context.Context) ([]tokenRow, error) { return f.rows, nil }
func (f *fullRows) dropToken(_ context.Context, id string) error {
	f.dropped = id
	return nil
}
func (f *fullRows) addToken(context.Context, *tokenRow) error { return nil }

func TestTokensFull(t *testing.T) {
	f := &fullRows{rows: make([]tokenRow, MaxTokens)}
	k := newTokens(f)
	if _, _, err := k.Create(t.Context(), Token{Scope: ScopeRead}); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("one more than fit: %v", err)
	}
	f.rows[5] = tokenRow{Token: Token{ID: "five", Revoked: time.Unix(200, 0)}}
	f.rows[7] = tokenRow{Token: Token{ID: "seven", Revoked: time.Unix(100, 0)}}
	if _, _, err := k.Create(t.Context(), Token{Scope: ScopeRead}); err != nil || f.dropped != "seven" {
		t.Errorf("dropped %q, %v", f.dropped, err)
	}
}

func TestAudit(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() office) {
		a, b := open().Audit(), open().Audit()
		if got, err := b.Entries(t.Context(), 0, 10); err != nil || len(got) != 0 {
			t.Fatalf("an empty log: %v, %v", got, err)
		}
		var want []AuditEntry
		for i := range 25 {
			e := AuditEntry{
				Time: time.Date(2026, 11, 23, 12, 0, i, 1000, time.UTC), Token: "abc", Method: "PUT", Path: "/v1/tenants/acme\r\n${x}",
				Status: 200, Revision: bulkhead.RevisionNumber(i), Detail: "<script>\x00",
			}
			if err := []*Audit{a, b}[i%2].Append(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			e.Number = int64(i + 1)
			want = append(want, e)
		}
		for _, c := range []struct {
			after    int64
			limit    int
			from, to int
		}{{0, 1000, 0, 25}, {0, 10, 0, 10}, {10, 10, 10, 20}, {20, 10, 20, 25}, {25, 10, 25, 25}, {-3, 2, 0, 2}, {99, 10, 25, 25}, {0, 0, 0, 0}, {0, -1, 0, 0}} {
			got, err := a.Entries(t.Context(), c.after, c.limit)
			if d := cmp.Diff(want[c.from:c.to], append([]AuditEntry{}, got...)); err != nil || d != "" {
				t.Errorf("%d after %d (-want +got):\n%s%v", c.limit, c.after, d, err)
			}
		}
		hostile := AuditEntry{Path: strings.Repeat("\xff", 5000), Detail: strings.Repeat("ä", 1<<20), Token: "\xc3"}
		if err := a.Append(t.Context(), hostile); err != nil {
			t.Fatal(err)
		}
		got, err := b.Entries(t.Context(), 25, 1)
		if err != nil || len(got) != 1 || len(got[0].Detail) > 4<<10+2 || got[0].Time.IsZero() || got[0].Token != "\uFFFD" {
			t.Errorf("a hostile entry came back as %+v, %v", got, err)
		}
	})
}
