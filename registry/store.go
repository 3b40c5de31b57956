package registry

import (
	"context"
	"errors"
	"fmt"
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

// checkRevision checks what a committer wrote, apart from the change's content.
func checkRevision(r *bulkhead.Revision) error {
	text := func(field, s string, limit int) error {
		if len(s) > limit || !utf8.ValidString(s) {
			return &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: fmt.Sprintf("is not UTF-8 text of at most %d bytes", limit)}
		}
		return nil
	}
	errs := []error{text("author", r.Author, MaxAuthor), text("message", r.Message, MaxMessage)}
	if r.Author == "" {
		errs = append(errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: "author", Msg: "is missing: say who makes the revision"})
	}
	if r.Change.IsZero() {
		errs = append(errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: "change", Msg: "is empty: there is nothing to commit"})
	}
	return errors.Join(errs...)
}

// checkState validates a state that is about to be committed. Every error
// becomes bulkhead.Invalid, also that of two owners: bulkhead.Conflict would
// make the caller try again on a new base, which cannot help.
func checkState(s bulkhead.State) error {
	err := s.Validate()
	if err == nil {
		return nil
	}
	var errs []error
	for _, fe := range bulkhead.FieldErrors(err) {
		c := *fe
		c.Kind = bulkhead.Invalid
		errs = append(errs, &c)
	}
	return fmt.Errorf("the change leads to an invalid state: %w", errors.Join(errs...))
}

func staleBase(base, head bulkhead.RevisionNumber) error {
	return fmt.Errorf("commit on revision %d: %w: the head is revision %d; read it and make the change anew",
		base, bulkhead.Conflict, head)
}

func noPath(after, head bulkhead.RevisionNumber) error {
	return fmt.Errorf("watch after revision %d: %w: the head is revision %d and no revisions lead there; start anew from the head",
		after, bulkhead.Conflict, head)
}
