package dispatcher

import (
	"context"
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Proxy is the SBC that is kept. Its methods return soon after their context
// ends. They are called by one goroutine, one call at a time. An SBC that does
// not answer is bulkhead.Unavailable.
type Proxy interface {
	// Apply makes the SBC hold t and nothing else. Applying the same tables
	// again changes nothing. After an error the SBC may hold the old tables,
	// the new ones or some of both.
	Apply(ctx context.Context, t route.Tables) error

	// ApplySets makes the SBC hold the sets of t, whose rows are those of the
	// last Apply: it does nothing about them, and takes no time for them.
	ApplySets(ctx context.Context, t route.Tables) error

	// Verify reads back what the SBC holds and says, a line each, in what it
	// differs from want. It may compare a sample of the rows, drawn anew each
	// time: no difference then means that none was seen, and a single wrong
	// row is found after some read-backs only.
	Verify(ctx context.Context, want route.Tables) (differences []string, err error)
}

// Config says which SBC a Controller keeps and how patiently.
type Config struct {
	SBC bulkhead.SBCID

	// States tells what is known of the nodes. Nil: nothing.
	States States

	// Observe has the Controller write nothing: it reads back, and tells what
	// it would write by the differences.
	Observe bool

	VerifyEvery time.Duration // between read-backs of an SBC at rest, 100 ms to 1 h
	MinInterval time.Duration // from one Apply's begin to the next one's, 0 to 1 min
	Timeout     time.Duration // of one Apply or Verify, 10 ms to 10 min
	RetryMin    time.Duration // pause after a first failure, 1 ms to RetryMax; it doubles with each further one
	RetryMax    time.Duration // longest pause, at most 1 h; each is varied by up to a fifth
}

// States is what is known of the nodes.
type States interface {
	// Next returns the nodes that are not well, and a channel that is closed
	// when that changes. It does not wait.
	Next() (route.NodeStates, <-chan struct{})
}

// DefaultConfig returns what fits an SBC on the same host, but for its id.
func DefaultConfig() Config {
	return Config{
		VerifyEvery: 5 * time.Second,
		MinInterval: 200 * time.Millisecond,
		Timeout:     30 * time.Second,
		RetryMin:    250 * time.Millisecond,
		RetryMax:    2 * time.Second,
	}
}

// Validate checks the configuration; its errors are bulkhead.Invalid and name
// the field.
func (c *Config) Validate() error {
	if c.SBC == "" {
		return fmt.Errorf("dispatcher: sbc is missing: it is the id of the SBC to keep: %w", bulkhead.Invalid)
	}
	for _, f := range []struct {
		name        string
		v, low, top time.Duration
	}{
		{"verify_every", c.VerifyEvery, 100 * time.Millisecond, time.Hour},
		{"min_interval", c.MinInterval, 0, time.Minute},
		{"timeout", c.Timeout, 10 * time.Millisecond, 10 * time.Minute},
		{"retry_max", c.RetryMax, time.Millisecond, time.Hour},
		{"retry_min", c.RetryMin, time.Millisecond, c.RetryMax},
	} {
		if f.v < f.low || f.v > f.top {
			return fmt.Errorf("dispatcher: %s %s is not within %s and %s: %w", f.name, f.v, f.low, f.top, bulkhead.Invalid)
		}
	}
	return nil
}
