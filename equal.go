package bulkhead

import (
	"bytes"
	"encoding/json"
)

// equalJSON compares two objects by the form in which they are stored, so
// that nil and empty lists are the same.
func equalJSON(a, b any) bool {
	ja, errA := json.Marshal(a)
	jb, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(ja, jb)
}
