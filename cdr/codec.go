package cdr

import (
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/bulkhead-voip/bulkhead"
)

// Encode writes an entry for the stream.
func Encode(e Entry) ([]byte, error) {
	if e.Record == nil || e.Gap != nil {
		b, err := json.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("encode cdr entry: %w", err)
		}
		return b, nil
	}
	b, err := e.Record.AppendJSON(append(make([]byte, 0, 1024+len(e.Raw)*4/3), `{"record":`...))
	if err != nil {
		return nil, fmt.Errorf("encode cdr entry: %w", err)
	}
	if len(e.Raw) > 0 {
		b = append(b, `,"raw":"`...)
		b = base64.StdEncoding.AppendEncode(b, e.Raw)
		b = append(b, '"')
	}
	return append(b, '}'), nil
}

// Decode reads what Encode wrote. Anything else is bulkhead.Invalid. A raw
// event longer than MaxRaw is left out.
func Decode(b []byte) (Entry, error) {
	e, ok := parseEntry(b)
	if !ok {
		e = Entry{}
		if err := json.Unmarshal(b, &e); err != nil {
			return Entry{}, fmt.Errorf("decode cdr entry of %d bytes: %w: %w", len(b), bulkhead.Invalid, err)
		}
	}
	if (e.Record == nil) == (e.Gap == nil) {
		return Entry{}, fmt.Errorf("decode cdr entry: it holds neither a record nor a gap: %w", bulkhead.Invalid)
	}
	if len(e.Raw) == 0 || len(e.Raw) > MaxRaw {
		e.Raw = nil
	}
	return e, nil
}
