package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// Backed is a store with all that a backup holds; *SQLite and *Redis are.
type Backed interface {
	Store
	Tokens() *Tokens
	Audit() *Audit
	// commitAfter is Commit that numbers the revision parent+1; parent is base,
	// or more when base is 0.
	commitAfter(ctx context.Context, base, parent bulkhead.RevisionNumber, r bulkhead.Revision) (bulkhead.Revision, error)
}

// restoreStep: what is restored into an empty store gets the next number that
// is a multiple of it. Those that revisions made after the backup had, and
// that records of calls name, are not given again.
const restoreStep = 100_000

// BackupOptions say what a backup holds besides the state and the tokens.
type BackupOptions struct {
	Audit bool // the audit log
}

// WriteBackup writes the head, all tokens and, if asked for, the audit log
// to w, while everything goes on. It returns the revision that was written.
// The backup holds the users' digest secrets, and of tokens only hashes.
// Earlier revisions are not in it.
func WriteBackup(ctx context.Context, from Backed, w io.Writer, o BackupOptions) (bulkhead.RevisionNumber, error) {
	state, err := from.Head(ctx)
	if err != nil {
		return 0, err
	}
	tokens, err := from.Tokens().list(ctx)
	if err != nil {
		return 0, err
	}
	out := newSnapshotWriter(w)
	out.state(snapshotHeader{Saved: now()}, state)
	for len(tokens) > 0 {
		n := min(chunkObjects, len(tokens))
		out.line(snapshotLine{Tokens: tokens[:n]})
		tokens = tokens[n:]
	}
	for after := int64(0); o.Audit; {
		entries, err := from.Audit().Entries(ctx, after, auditPage)
		if err != nil {
			return 0, err
		}
		if len(entries) == 0 {
			break
		}
		out.line(snapshotLine{Audit: entries})
		after = entries[len(entries)-1].Number
	}
	if err := out.end(); err != nil {
		return 0, fmt.Errorf("write the backup of revision %d: %w", state.Revision, err)
	}
	return state.Revision, nil
}

// Backup is a backup that was read and is whole.
type Backup struct {
	State   bulkhead.State // at the revision that was the head
	Time    time.Time      // when it was made
	Tokens  []Token
	Entries int // of the audit log

	file *snapshotFile
}

var tokenIDForm = regexp.MustCompile(`^[a-z2-7]{10}$`)

// ReadBackup reads a backup. It returns bulkhead.Invalid when it is torn,
// changed, none at all, or of a newer version.
func ReadBackup(r io.Reader) (*Backup, error) {
	f, err := readSnapshot(r)
	if errors.Is(err, errNewer) {
		err = fmt.Errorf("%w: %w: use that version", err, bulkhead.Invalid)
	}
	if err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	b := &Backup{State: f.state, Time: f.Saved, Entries: len(f.audit), file: f}
	for i := range f.tokens {
		t := &f.tokens[i]
		if err := checkToken(&t.Token); err != nil || len(t.Hash) != sha256.Size || !tokenIDForm.MatchString(t.ID) {
			return nil, fmt.Errorf("read the backup: token %q is none: %w", t.ID, errors.Join(bulkhead.Invalid, err))
		}
		b.Tokens = append(b.Tokens, t.Token)
	}
	return b, nil
}

// RestoreOptions say how a backup is restored.
type RestoreOptions struct {
	Author  string
	Message string
	// DryRun finds out what would be done, and does nothing.
	DryRun bool
	// Base, if not 0, is the head that must still be there.
	Base bulkhead.RevisionNumber
	// Tokens restores the tokens that are not there; those that are stay as they are.
	Tokens bool
	// Audit restores the audit log, which must be empty, or hold what an earlier
	// call that was interrupted put there.
	Audit bool
}

// Restored says what a restore did, or would do.
type Restored struct {
	// Revision is the one revision that leads to the backup's state; without a
	// Parent and Change there was nothing to do.
	Revision bulkhead.Revision
	Tokens   []Token // that are restored
	Entries  int     // of the audit log
}

// Restore makes the head of a store, which may be in use, what the backup
// says, as one revision. In an empty store that is the first, with a number
// above all that the backup's registry is likely to have had. It returns bulkhead.Conflict when the head is not
// o.Base, or others commit all the time, and bulkhead.Invalid when the state
// is not valid or the audit log is not empty. It may be called again.
func (b *Backup) Restore(ctx context.Context, to Backed, o RestoreOptions) (Restored, error) {
	var out Restored
	tokens, err := b.missingTokens(ctx, to, o)
	if err != nil {
		return out, err
	}
	entries, err := b.missingEntries(ctx, to, o)
	if err != nil {
		return out, err
	}
	if out.Revision, err = b.commit(ctx, to, o); err != nil {
		return out, err
	}
	for i := range tokens {
		if !o.DryRun {
			if err := to.Tokens().rows.addToken(ctx, &tokens[i]); err != nil {
				return out, err
			}
		}
		out.Tokens = append(out.Tokens, tokens[i].Token)
	}
	for i := range entries {
		if !o.DryRun {
			if err := to.Audit().Append(ctx, entries[i]); err != nil {
				return out, err
			}
		}
		out.Entries++
	}
	return out, nil
}

func (b *Backup) missingTokens(ctx context.Context, to Backed, o RestoreOptions) ([]tokenRow, error) {
	if !o.Tokens {
		return nil, nil
	}
	there, err := to.Tokens().rows.tokens(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for i := range there {
		known[there[i].ID] = true
	}
	var out []tokenRow
	for _, t := range b.file.tokens {
		if !known[t.ID] {
			out = append(out, t)
		}
	}
	if len(there)+len(out) > MaxTokens {
		return nil, fmt.Errorf("restore %d tokens: %w: there would be over %d", len(out), bulkhead.Invalid, MaxTokens)
	}
	return out, nil
}

// missingEntries returns the entries of the audit log after those that are there.
func (b *Backup) missingEntries(ctx context.Context, to Backed, o RestoreOptions) ([]AuditEntry, error) {
	if !o.Audit {
		return nil, nil
	}
	left := b.file.audit
	for after := int64(0); ; {
		there, err := to.Audit().Entries(ctx, after, auditPage)
		if err != nil || len(there) == 0 {
			return left, err
		}
		for i := range there {
			if len(left) == 0 || !left[0].same(&there[i]) {
				return nil, fmt.Errorf("restore the audit log: %w: there is another one already; leave it out", bulkhead.Invalid)
			}
			left = left[1:]
		}
		after = there[len(there)-1].Number
	}
}

func (b *Backup) commit(ctx context.Context, to Backed, o RestoreOptions) (bulkhead.Revision, error) {
	for try := 1; ; try++ {
		head, err := to.Head(ctx)
		if err != nil {
			return bulkhead.Revision{}, err
		}
		if o.Base != 0 && o.Base != head.Revision {
			return bulkhead.Revision{}, staleBase(o.Base, head.Revision)
		}
		parent := head.Revision
		if had := b.State.Revision; parent == 0 && had > 0 {
			parent = (had/restoreStep+1)*restoreStep - 1
		}
		r := bulkhead.Revision{Author: o.Author, Message: o.Message, Change: head.Diff(b.State)}
		if r.Change.IsZero() {
			return bulkhead.Revision{Number: head.Revision}, nil
		}
		if o.DryRun {
			if err := checkChange(head.Apply(&r.Change).Validate()); err != nil {
				return bulkhead.Revision{}, err
			}
			r.Number, r.Parent = parent+1, parent
			return r, nil
		}
		r, err = to.commitAfter(ctx, head.Revision, parent, r)
		if !errors.Is(err, bulkhead.Conflict) || o.Base != 0 || try == applyTries {
			return r, err
		}
	}
}
