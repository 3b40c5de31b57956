package bulkhead

import "log/slog"

// Secret is text that logs and errors must not show. JSON and YAML have it in
// clear: it is how a registry keeps it.
type Secret string

const redacted = "REDACTED"

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString hides the secret.
func (s Secret) GoString() string { return redacted }

// LogValue hides the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
