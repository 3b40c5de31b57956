package registry

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
)

var (
	_ Backed = (*SQLite)(nil)
	_ Backed = (*Redis)(nil)
)

// filled puts a state, tokens and audit entries into a store.
func filled(t *testing.T, s office) (secret string) {
	t.Helper()
	commit(t, s, 0, example(300))
	secret, _, err := s.Tokens().Create(t.Context(), Token{Scope: ScopeAdmin, Note: "Ada's"})
	if err != nil {
		t.Fatal(err)
	}
	_, gone, err := s.Tokens().Create(t.Context(), Token{Scope: ScopeTenant, Tenant: "t00001"})
	if err == nil {
		err = s.Tokens().Revoke(t.Context(), gone.ID)
	}
	for range 3 {
		err = errors.Join(err, s.Audit().Append(t.Context(), AuditEntry{Token: gone.ID, Method: "PUT", Path: "/v1/x", Status: 200}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func TestBackupAndRestore(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() office) {
		from := open()
		secret := filled(t, from)
		var b bytes.Buffer
		n, err := WriteBackup(t.Context(), from, &b, BackupOptions{Audit: true})
		if err != nil || n != 1 {
			t.Fatalf("revision %d, %v", n, err)
		}
		if strings.Contains(b.String(), secret) {
			t.Error("the backup holds a token's secret")
		}
		backup, err := ReadBackup(bytes.NewReader(b.Bytes()))
		if err != nil || len(backup.Tokens) != 2 || backup.Entries != 3 || backup.State.Revision != 1 {
			t.Fatalf("%+v, %v", backup, err)
		}
		saved := head(t, from)

		// Onto a store that went on meanwhile.
		commit(t, from, 1, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(400)}, Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{"t00007"}}})
		o := RestoreOptions{Author: "ada", Message: "restored", DryRun: true, Tokens: true}
		seen, err := backup.Restore(t.Context(), from, o)
		if err != nil || seen.Revision.Number != 3 || seen.Revision.Parent != 2 || len(seen.Tokens) != 0 {
			t.Fatalf("dry run: %+v, %v", seen, err)
		}
		want := bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(7)}, Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{"t00400"}}}
		if d := cmp.Diff(want, seen.Revision.Change, prefixes); d != "" {
			t.Errorf("the dry run shows (-want +got):\n%s", d)
		}
		if head(t, from).Revision != 2 {
			t.Error("the dry run changed something")
		}
		o.DryRun, o.Base = false, 1
		if _, err := backup.Restore(t.Context(), from, o); !errors.Is(err, bulkhead.Conflict) {
			t.Errorf("onto another head than was looked at: %v", err)
		}
		o.Base = seen.Revision.Parent
		if got, err := backup.Restore(t.Context(), from, o); err != nil || got.Revision.Number != 3 {
			t.Errorf("restored %+v, %v", got, err)
		}
		same(t, "restored", head(t, from), saved)
		o.Base = 0
		if got, err := backup.Restore(t.Context(), from, o); err != nil || got.Revision.Parent != 0 || got.Revision.Number != 3 {
			t.Errorf("restored again: %+v, %v", got, err)
		}
		o.Audit = true
		if got, err := backup.Restore(t.Context(), from, o); err != nil || got.Entries != 0 {
			t.Errorf("the audit log that is there: %+v, %v", got, err)
		}
		if err := from.Audit().Append(t.Context(), AuditEntry{Token: "x", Method: "PUT", Path: "/v1/x", Status: 200}); err != nil {
			t.Fatal(err)
		}
		if _, err := backup.Restore(t.Context(), from, o); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("beside another audit log: %v", err)
		}
	})
}

// TestRestoreElsewhere: into a new store of the other kind, with tokens that work.
func TestRestoreElsewhere(t *testing.T) {
	a, b := office(newSQLite(t)), office(newRedisServer(t).open(t))
	secret := filled(t, a)
	for _, to := range []office{b, newSQLite(t)} {
		var buf bytes.Buffer
		if _, err := WriteBackup(t.Context(), a, &buf, BackupOptions{Audit: true}); err != nil {
			t.Fatal(err)
		}
		backup, err := ReadBackup(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if err := to.Audit().Append(t.Context(), backup.file.audit[0]); err != nil { // an earlier restore got so far
			t.Fatal(err)
		}
		got, err := backup.Restore(t.Context(), to, RestoreOptions{Author: "ada", Tokens: true, Audit: true})
		if err != nil || len(got.Tokens) != 2 || got.Entries != 2 {
			t.Fatalf("%+v, %v", got, err)
		}
		same(t, "elsewhere", head(t, to), head(t, a))
		if log, err := to.Audit().Entries(t.Context(), 0, 10); err != nil || len(log) != 3 {
			t.Errorf("the audit log is %+v, %v", log, err)
		}
		if tok, err := to.Tokens().Authenticate(t.Context(), secret); err != nil || tok.Note != "Ada's" {
			t.Errorf("the token is %+v, %v", tok, err)
		}
		before, _ := a.Tokens().List(t.Context())
		after, err := to.Tokens().List(t.Context())
		if err != nil || !after[1].Revoked.Equal(before[1].Revoked) || after[1].Revoked.IsZero() {
			t.Errorf("the revoked token is %+v, %v", after, err)
		}
		a = to
	}
}

// TestBackupWhileRunning: a backup is one revision, whatever goes on.
func TestBackupWhileRunning(t *testing.T) {
	eachStore(t, func(t *testing.T, open func() office) {
		s, writer := open(), open()
		first(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		var writing sync.WaitGroup
		writing.Go(func() {
			for n := 2; ctx.Err() == nil; n++ {
				if _, err := writer.Commit(ctx, bulkhead.RevisionNumber(n-1), bulkhead.Revision{Author: "w", Change: nextChange(n)}); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
		for range 10 {
			var b bytes.Buffer
			if _, err := WriteBackup(t.Context(), open(), &b, BackupOptions{}); err != nil {
				t.Fatal(err)
			}
			backup, err := ReadBackup(&b)
			if err != nil {
				t.Fatal(err)
			}
			wholeRevision(t, backup.State)
		}
		cancel()
		writing.Wait()
	})
}

func TestReadBackupInvalid(t *testing.T) {
	s := newSQLite(t)
	filled(t, s)
	var b bytes.Buffer
	if _, err := WriteBackup(t.Context(), s, &b, BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty":            "",
		"no backup":        "tenants: []\n",
		"torn":             b.String()[:b.Len()-70],
		"changed":          strings.Replace(b.String(), "User 1001", "User 1002", 1),
		"of a newer one":   `{"format":"bulkhead snapshot 9"}`,
		"of something new": `{"format":"bulkhead`,
	} {
		if _, err := ReadBackup(strings.NewReader(text)); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRestoreEmpty: what is restored into an empty store repeats no number,
// and the store's history begins there.
func TestRestoreEmpty(t *testing.T) {
	from := newSQLite(t)
	commit(t, from, 0, example(3))
	var b bytes.Buffer
	if _, err := WriteBackup(t.Context(), from, &b, BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	backup, err := ReadBackup(&b)
	if err != nil {
		t.Fatal(err)
	}
	eachStore(t, func(t *testing.T, open func() office) {
		s, other := open(), open()
		seen, err := backup.Restore(t.Context(), s, RestoreOptions{Author: "ada", DryRun: true})
		if err != nil || seen.Revision.Number != restoreStep {
			t.Fatalf("the dry run shows revision %d, %v", seen.Revision.Number, err)
		}
		done, err := backup.Restore(t.Context(), s, RestoreOptions{Author: "ada"})
		if err != nil || done.Revision.Number != restoreStep {
			t.Fatalf("revision %d, %v", done.Revision.Number, err)
		}
		commit(t, other, restoreStep, bulkhead.Change{Tenants: []bulkhead.Tenant{tenant(7)}})
		same(t, "the handle that restored", head(t, s), head(t, other))
		for _, c := range []struct {
			from  bulkhead.RevisionNumber
			limit int
			want  []bulkhead.RevisionNumber
		}{
			{0, 10, nil}, {1, restoreStep, []bulkhead.RevisionNumber{restoreStep}}, {restoreStep - 5, 5, nil},
			{restoreStep - 5, 6, []bulkhead.RevisionNumber{restoreStep}}, {restoreStep, 10, []bulkhead.RevisionNumber{restoreStep, restoreStep + 1}},
		} {
			log, err := other.Log(t.Context(), c.from, c.limit)
			var got []bulkhead.RevisionNumber
			for i := range log {
				got = append(got, log[i].Number)
			}
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("the log from %d, %d of them, is %v, %v", c.from, c.limit, got, err)
			}
		}
		then, err := other.State(t.Context(), restoreStep)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "history", then, head(t, from))
		if _, err := other.State(t.Context(), 5); !errors.Is(err, bulkhead.NotFound) {
			t.Errorf("a revision before history: %v", err)
		}
		if _, err := s.Watch(within(t), 0); !errors.Is(err, bulkhead.Conflict) {
			t.Errorf("watch from before: %v", err)
		}
	})
}
