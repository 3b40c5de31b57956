package dispatcher

import (
	"fmt"
	"slices"
	"time"

	"github.com/bulkhead-voip/bulkhead/route"
)

// The methods below keep what Status tells.

func (c *Controller) phase(p Phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Phase = p
}

// doubt records that nobody knows what the SBC holds now.
func (c *Controller) doubt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verified = nil
}

// took records that the SBC has the wanted tables, by its own word or by
// being read back.
func (c *Controller) took() {
	c.applied = c.want
	c.metrics.applied.Set(float64(c.tables.Revision))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Applied = c.tables.Revision
}

// found records differences.
func (c *Controller) found(differences []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Differences = head(differences)
	c.status.DifferenceCount = len(differences)
	c.status.DifferencesAt = time.Now()
}

// answered records that an SBC which is only looked at could be.
func (c *Controller) answered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.LastError, c.status.LastErrorAt, c.status.Failures = "", time.Time{}, 0
}

func head(differences []string) []string {
	return slices.Clone(differences[:min(len(differences), maxDifferences)])
}

// converged records that the SBC was read back to hold the wanted tables.
func (c *Controller) converged() {
	c.held = true
	c.retry.Reset()
	now := time.Now()
	c.mu.Lock()
	was, failures := c.verified, c.status.Failures
	if was != c.want {
		c.status.Since = now
	}
	c.verified = c.want
	c.status.Verified = now
	c.status.LastError, c.status.LastErrorAt, c.status.Failures = "", time.Time{}, 0
	c.mu.Unlock()
	if was != c.want {
		c.log.Info("SBC holds the tables", "revision", c.tables.Revision, "rows", len(c.tables.Rows), "sets", len(c.tables.Sets), "failures_before", failures)
	}
}

// refuse records that x cannot be brought to the SBC, or, with a nil x, that
// the newest snapshot can.
func (c *Controller) refuse(x *route.Snapshot, err error) {
	c.refused = x
	text := ""
	if x != nil {
		text = fmt.Sprintf("revision %d: %v", x.Revision(), err)
		c.log.Error("revision is not brought to the SBC, which is kept at the one before", "revision", x.Revision(), "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Refused = text
}

// failed records an attempt that failed. An SBC that is away fails every
// time in the same words: only new words are logged.
func (c *Controller) failed(err error) {
	c.mu.Lock()
	old := c.status.LastError
	c.status.LastError = err.Error()
	c.status.LastErrorAt = time.Now()
	c.status.Failures++
	c.mu.Unlock()
	if old != err.Error() {
		c.log.Warn("SBC does not hold the newest tables", "error", err)
	}
}
