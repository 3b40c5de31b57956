package bulkhead

import (
	"errors"
	"fmt"
	"strings"
)

// Kind classifies an error by what its receiver can do about it. A Kind is
// itself an error, so errors.Is(err, bulkhead.NotFound) works on any error
// that carries it.
type Kind string

// The error kinds.
const (
	// Invalid means that the input is wrong and must be corrected.
	Invalid Kind = "invalid"
	// NotFound means that the named thing does not exist.
	NotFound Kind = "not found"
	// Conflict means that somebody else changed, owns or holds the thing.
	Conflict Kind = "conflict"
	// Denied means that the asker may not have the thing.
	Denied Kind = "denied"
	// Unavailable means that a part behind the asked one does not answer;
	// the same request may succeed later.
	Unavailable Kind = "unavailable"
)

func (k Kind) Error() string { return string(k) }

// FieldError says which field of which object is wrong, where it was written
// and what to do.
type FieldError struct {
	Kind  Kind
	Field string // path of the field, such as tenants[3].domains[0]
	Pos   string // file:line where it was written, or empty
	Msg   string
}

func (e *FieldError) Error() string {
	var b strings.Builder
	if e.Pos != "" {
		b.WriteString(e.Pos)
		b.WriteString(": ")
	}
	if e.Field != "" {
		b.WriteString(e.Field)
		b.WriteString(": ")
	}
	b.WriteString(e.Msg)
	return b.String()
}

// Unwrap makes errors.Is(err, e.Kind) true.
func (e *FieldError) Unwrap() error { return e.Kind }

func invalid(field, format string, args ...any) error {
	return &FieldError{Kind: Invalid, Field: field, Msg: fmt.Sprintf(format, args...)}
}

func conflict(field, format string, args ...any) error {
	return &FieldError{Kind: Conflict, Field: field, Msg: fmt.Sprintf(format, args...)}
}

// FieldErrors returns every FieldError in err's tree, in order.
func FieldErrors(err error) []*FieldError {
	var out []*FieldError
	var walk func(error)
	walk = func(err error) {
		if err == nil {
			return
		}
		if fe, ok := err.(*FieldError); ok { //nolint:errorlint // the tree is walked by hand
			out = append(out, fe)
			return
		}
		if many, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range many.Unwrap() {
				walk(e)
			}
			return
		}
		walk(errors.Unwrap(err))
	}
	walk(err)
	return out
}
