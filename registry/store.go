package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/bulkhead-voip/bulkhead"
)

// Store keeps revisions: one line of them, from the empty state 0 to the
// head. Revisions are never changed and never taken back. All methods may be
// called at once, from any number of handles and processes.
//
// Besides the errors named below, every method returns the context's error
// when ctx ends first, and bulkhead.Unavailable when the store does not answer.
type Store interface {
	// Head returns the newest state. What any handle has committed before the
	// call is in it. The state is shared: it must not be changed.
	Head(ctx context.Context) (bulkhead.State, error)

	// Commit makes r.Change the revision after base, by r.Author with
	// r.Message; the other fields of r are ignored. It returns the revision
	// as it is stored: numbered base+1 and dated, durable on disk. Of several
	// commits on the same base, exactly one succeeds.
	//
	// It returns bulkhead.Conflict when base is not the head, and
	// bulkhead.Invalid when there is no author, when the change is empty, or
	// when the resulting state does not validate (bulkhead.FieldErrors then
	// says where); nothing has changed then. It is not idempotent: after any
	// other error the revision may or may not have been stored, and Head tells.
	Commit(ctx context.Context, base bulkhead.RevisionNumber, r bulkhead.Revision) (bulkhead.Revision, error)

	// Watch returns revisions after the given one, without a gap and in
	// order, and waits until there is at least one. It may return fewer than
	// there are. It returns bulkhead.Conflict when no revisions lead from
	// after to the head (after is beyond the head, say, since the store was
	// restored): the caller then starts anew from Head.
	Watch(ctx context.Context, after bulkhead.RevisionNumber) ([]bulkhead.Revision, error)
}

// Longest author and message of a revision, in bytes.
const (
	MaxAuthor  = 128
	MaxMessage = 4096
)

const (
	// maxChangeErrors is how many errors of one change are named, and
	// maxErrorText how long each is.
	maxChangeErrors = 100
	maxErrorText    = 500
)

// History is what a Store keeps besides its head.
type History interface {
	// Log returns the revisions from the given one on, oldest first: at most
	// limit of them, at most 1024, and fewer when they are large.
	Log(ctx context.Context, from bulkhead.RevisionNumber, limit int) ([]bulkhead.Revision, error)

	// State returns the state at a revision by replaying all before it. It
	// returns bulkhead.NotFound when there is no such revision.
	State(ctx context.Context, number bulkhead.RevisionNumber) (bulkhead.State, error)
}

// checkRevision checks what a committer wrote, apart from the change's
// content. It returns the change as it is to be stored, and that read back:
// what is validated and kept in memory is what was written, and shares
// nothing with the caller's change.
func checkRevision(r *bulkhead.Revision) ([]byte, *bulkhead.Change, error) {
	errs := []error{
		checkText("author", r.Author, MaxAuthor, ""),
		checkText("message", r.Message, MaxMessage, "\n\t"),
	}
	if r.Author == "" {
		errs = append(errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: "author", Msg: "is missing: say who makes the revision"})
	}
	if r.Change.IsZero() {
		errs = append(errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: "change", Msg: "is empty: there is nothing to commit"})
	}
	d := &r.Change.Delete
	errs = append(errs, checkDeleted("cells", d.Cells), checkDeleted("pools", d.Pools), checkDeleted("nodes", d.Nodes), checkDeleted("sbcs", d.SBCs), checkDeleted("tenants", d.Tenants))
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	text, err := json.Marshal(&r.Change)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the change: %w: %w", bulkhead.Invalid, err)
	}
	var change bulkhead.Change
	if err := decode(text, &change); err != nil {
		return nil, nil, fmt.Errorf("encode the change: %w: %w", bulkhead.Invalid, err)
	}
	return text, &change, nil
}

// checkDeleted refuses what can be no id: it would stay in the log for ever.
func checkDeleted[K ~string](kind string, ids []K) error {
	for i, id := range ids {
		if (&bulkhead.Cell{ID: bulkhead.CellID(id)}).Validate() != nil {
			return &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: fmt.Sprintf("delete.%s[%d]", kind, i), Msg: fmt.Sprintf("%.40q is not an id", id)}
		}
	}
	return nil
}

// checkText holds free text to UTF-8 without characters that change how the
// rest is shown, but for those allowed.
func checkText(field, s string, limit int, allowed string) error {
	if len(s) > limit || !utf8.ValidString(s) {
		return &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: fmt.Sprintf("is not UTF-8 text of at most %d bytes", limit)}
	}
	for _, r := range s {
		hidden := unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp)
		if hidden && !strings.ContainsRune(allowed, r) {
			return &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: fmt.Sprintf("holds the character %U, which hides or reorders others: leave it out", r)}
		}
	}
	return nil
}

// checkChange turns what is wrong with a change into what Commit returns.
// Every error becomes bulkhead.Invalid, also that of two owners:
// bulkhead.Conflict would make the caller try again on a new base, which
// cannot help.
func checkChange(err error) error {
	if err == nil {
		return nil
	}
	var errs []error
	all := bulkhead.FieldErrors(err)
	for _, fe := range all[:min(len(all), maxChangeErrors)] {
		c := *fe
		c.Kind = bulkhead.Invalid
		c.Field, c.Msg = shortened(c.Field), shortened(c.Msg) // they may quote what was sent
		errs = append(errs, &c)
	}
	if more := len(all) - len(errs); more > 0 {
		errs = append(errs, fmt.Errorf("and %d more: %w", more, bulkhead.Invalid))
	}
	return fmt.Errorf("the change leads to an invalid state: %w", errors.Join(errs...))
}

func shortened(s string) string {
	if len(s) <= maxErrorText {
		return s
	}
	return strings.ToValidUTF8(s[:maxErrorText], "") + "..."
}

// now is the time to the microsecond, which is what stores keep.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// storeFailed says what was tried on which store. An error that has no kind
// yet becomes bulkhead.Unavailable.
func storeFailed(ctx context.Context, doing, store string, err error) error {
	if err == nil {
		return nil
	}
	for _, k := range []bulkhead.Kind{bulkhead.Invalid, bulkhead.NotFound, bulkhead.Conflict, bulkhead.Denied} {
		if errors.Is(err, k) {
			return err
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s in %s: %w", doing, store, ctx.Err())
	}
	return fmt.Errorf("%s in %s: %w: %w", doing, store, bulkhead.Unavailable, err)
}

func staleBase(base, head bulkhead.RevisionNumber) error {
	return fmt.Errorf("commit on revision %d: %w: the head is revision %d; read it and make the change anew",
		base, bulkhead.Conflict, head)
}

func noPath(after, head bulkhead.RevisionNumber) error {
	return fmt.Errorf("watch after revision %d: %w: the head is revision %d and no revisions lead there; start anew from the head",
		after, bulkhead.Conflict, head)
}
