package dispatcher

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/bulkhead-voip/bulkhead"
)

// Phase is what a Controller is doing.
type Phase string

// The phases.
const (
	Waiting   Phase = "waiting"   // for a revision, or for one that names the SBC
	Applying  Phase = "applying"  // or about to, when MinInterval has passed
	Verifying Phase = "verifying" // reading back
	Resting   Phase = "resting"   // the SBC was right when it was last read back
	Pausing   Phase = "pausing"   // after a failure
	Stopped   Phase = "stopped"   // Run has not begun or has ended
)

// maxDifferences bounds what Status and the log tell of an SBC that holds
// something else altogether.
const maxDifferences = 20

// Status is what a Controller knows of its SBC.
type Status struct {
	SBC   bulkhead.SBCID `json:"sbc"`
	Phase Phase          `json:"phase"`

	Wanted    bulkhead.RevisionNumber `json:"wanted_revision"`  // the newest one
	Applied   bulkhead.RevisionNumber `json:"applied_revision"` // of the tables that the SBC took last; 0: none yet
	Converged bool                    `json:"converged"`        // it was last read back to hold the newest
	Since     time.Time               `json:"converged_since,omitzero"`
	Verified  time.Time               `json:"verified,omitzero"` // when it was last read back right

	// Refused says why the newest revision cannot be brought to the SBC at
	// all. The SBC is kept at the one before until there is another.
	Refused string `json:"refused,omitempty"`

	LastError   string    `json:"last_error,omitempty"` // empty once an attempt succeeded
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
	Failures    int       `json:"failures"` // attempts that failed since the last success

	// Differences are those that a read-back found last, at most 20 of
	// DifferenceCount. They stay after their repair.
	Differences     []string  `json:"last_differences,omitempty"`
	DifferenceCount int       `json:"last_difference_count"`
	DifferencesAt   time.Time `json:"last_differences_at,omitzero"`
}

// Status returns what is known now.
func (c *Controller) Status() Status {
	newest := c.live.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	if newest != nil {
		s.Wanted = newest.Revision()
	}
	s.Converged = c.verified != nil && c.verified == newest
	if !s.Converged {
		s.Since = time.Time{}
	}
	return s
}

// Ready returns nil while the SBC is known to hold tables and no attempt to
// bring it newer ones has failed. A revision that is just being applied does
// not make it unready.
func (c *Controller) Ready() error {
	s := c.Status()
	switch {
	case c.cfg.Observe:
		return nil // who only looks makes nothing ready
	case s.Refused != "":
		return fmt.Errorf("SBC %q is kept at revision %d: %s: %w", s.SBC, s.Applied, s.Refused, bulkhead.Conflict)
	case s.LastError != "":
		return fmt.Errorf("SBC %q does not take revision %d: %s: %w", s.SBC, s.Wanted, s.LastError, bulkhead.Unavailable)
	case s.Verified.IsZero():
		return fmt.Errorf("SBC %q is not known to hold any revision yet: %w", s.SBC, bulkhead.Unavailable)
	}
	return nil
}

// Routes serves GET /v1/sbc: the Status as JSON.
func (c *Controller) Routes() http.Handler {
	r := chi.NewRouter()
	r.Get("/v1/sbc", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.Status()) })
	return r
}

// answer writes what is known now, as JSON.
func answer(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(body, '\n')) // the asker is gone: nobody is left to tell
}
