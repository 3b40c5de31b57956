package bulkhead

// Severity grades a Finding.
type Severity string

// The severities.
const (
	OK      Severity = "ok"
	Warning Severity = "warning"
	Failure Severity = "failure"
)

// Finding is one thing that a check of a running part found out.
type Finding struct {
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"` // what was looked at
	Detail   string   `json:"detail"`  // what was found
	Remedy   string   `json:"remedy,omitempty"`
}
