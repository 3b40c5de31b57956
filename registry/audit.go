package registry

import (
	"context"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// MaxAudit is how many of the newest audit entries a registry keeps.
const MaxAudit = 1_000_000

// auditPage is how many entries one call returns at most.
const auditPage = 1000

// AuditEntry is one write that somebody tried.
type AuditEntry struct {
	Number   int64                   `json:"number"` // 1 is the first; given by Append
	Time     time.Time               `json:"time"`
	Token    string                  `json:"token"` // its ID, or whatever names who it was
	Method   string                  `json:"method"`
	Path     string                  `json:"path"`
	Status   int                     `json:"status"`
	Revision bulkhead.RevisionNumber `json:"revision,omitempty"` // that it made; 0: none
	Detail   string                  `json:"detail,omitempty"`
}

// same reports whether two entries tell of the same write, whatever their numbers.
func (e *AuditEntry) same(o *AuditEntry) bool {
	a, b := *e, *o
	a.Number, b.Number, a.Time, b.Time = 0, 0, time.Time{}, time.Time{}
	return a == b && e.Time.Equal(o.Time)
}

// auditRows is where a store keeps audit entries.
type auditRows interface {
	appendAudit(ctx context.Context, e *AuditEntry) error
	audit(ctx context.Context, after int64, limit int) ([]AuditEntry, error)
}

// Audit is the log of all writes that were tried.
type Audit struct{ rows auditRows }

// Append adds an entry, which is durable when it returns. A zero Time becomes
// now; text is cut (Token, Method 128 bytes, Path 1 KiB, Detail 4 KiB) and
// made UTF-8, for an entry must never be lost for what a stranger wrote.
func (a *Audit) Append(ctx context.Context, e AuditEntry) error {
	if e.Time.IsZero() {
		e.Time = now()
	}
	e.Time = e.Time.UTC().Truncate(time.Microsecond)
	for text, limit := range map[*string]int{&e.Token: 128, &e.Method: 128, &e.Path: 1 << 10, &e.Detail: 4 << 10} {
		*text = strings.ToValidUTF8((*text)[:min(len(*text), limit)], "\uFFFD")
	}
	return a.rows.appendAudit(ctx, &e)
}

// Entries returns at most limit entries, and at most 1000, whose number is
// above after, oldest first.
func (a *Audit) Entries(ctx context.Context, after int64, limit int) ([]AuditEntry, error) {
	if limit <= 0 {
		return nil, nil
	}
	return a.rows.audit(ctx, max(after, 0), min(limit, auditPage))
}
