package cdr

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/bulkhead-voip/bulkhead"
)

// rank orders sources by how much they know of a leg.
func rank(s Source) int {
	switch s {
	case SourceESL, SourceARI, SourceSBC:
		return 5
	case SourceHTTP:
		return 4
	case SourceFile, SourceAMI:
		return 3
	case SourceReconciled:
		return 2
	case SourceSynthesised:
		return 1
	}
	return 0
}

// Merge chooses between two reports of one leg: the better source, then the
// one that saw an end, then the larger encoding. The order is total, so Merge
// is commutative, associative and idempotent.
func Merge(a, b Record) Record {
	if less(&a, &b) {
		return b
	}
	return a
}

func less(a, b *Record) bool {
	if ra, rb := rank(a.Source), rank(b.Source); ra != rb {
		return ra < rb
	}
	if ea, eb := a.End.IsZero(), b.End.IsZero(); ea != eb {
		return ea
	}
	ja, _ := json.Marshal(a) // a Record of plain fields always marshals
	jb, _ := json.Marshal(b)
	return bytes.Compare(ja, jb) < 0
}

// Encode writes an entry for the stream.
func Encode(e Entry) ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode cdr entry: %w", err)
	}
	return b, nil
}

// Decode reads what Encode wrote. Anything else is bulkhead.Invalid.
func Decode(b []byte) (Entry, error) {
	var e Entry
	if err := json.Unmarshal(b, &e); err != nil {
		return Entry{}, fmt.Errorf("decode cdr entry of %d bytes: %w: %w", len(b), bulkhead.Invalid, err)
	}
	if (e.Record == nil) == (e.Gap == nil) {
		return Entry{}, fmt.Errorf("decode cdr entry: it holds neither a record nor a gap: %w", bulkhead.Invalid)
	}
	return e, nil
}
