package asterisk

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// Counter asks an Asterisk for its channels over a connection of its own, which
// it makes when it needs one. It is for one goroutine.
type Counter struct {
	ami  AMI
	conn *amiConn
}

// NewCounter returns a Counter; ami is the user of manager_cache.conf, or any
// other who may write to the class system or reporting. Close must be called.
func NewCounter(ami AMI) *Counter {
	ami.Timeout, ami.Ping = 2*time.Second, 3*time.Second
	return &Counter{ami: ami}
}

// Count returns Asterisk's channels, and maxcalls of its asterisk.conf. Errors
// are bulkhead.Unavailable when it does not answer and bulkhead.Denied when it
// refuses; the next Count connects anew.
func (c *Counter) Count(ctx context.Context) (bulkhead.PBXLoad, error) {
	load, err := c.count(ctx)
	if err != nil {
		_ = c.Close() // it is given up anyway
	}
	return load, err
}

func (c *Counter) count(ctx context.Context) (load bulkhead.PBXLoad, err error) {
	if c.conn == nil {
		if c.conn, err = dialAMI(ctx, c.ami); err != nil {
			return load, err
		}
	}
	if load.Sessions, err = c.conn.number(ctx, "CoreStatus", "CoreCurrentCalls"); err != nil {
		return load, err
	}
	load.MaxSessions, err = c.conn.number(ctx, "CoreSettings", "CoreMaxCalls")
	return load, err
}

// Close ends the connection.
func (c *Counter) Close() error {
	if c.conn != nil {
		c.conn.close()
		c.conn = nil
	}
	return nil
}

// number sends an action and returns one number of its response.
func (c *amiConn) number(ctx context.Context, action, key string) (int, error) {
	if err := c.write("Action: "+action, "ActionID: "+action); err != nil {
		return 0, fmt.Errorf("%s: %w", action, err)
	}
	for {
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s: %w: %w", action, bulkhead.Unavailable, ctx.Err())
		case m, ok := <-c.messages:
			switch {
			case !ok:
				return 0, c.err
			case m["ActionID"] != action || m["Response"] == "":
				continue
			case m["Response"] != "Success":
				return 0, fmt.Errorf("%s: Asterisk refuses (%s): the user needs write = system in manager.conf: %w", action, text(m["Message"]), bulkhead.Denied)
			}
			n, err := strconv.Atoi(m[key])
			if err != nil || n < 0 {
				return 0, fmt.Errorf("%s: %s is %q, which is no count: %w", action, key, text(m[key]), bulkhead.Invalid)
			}
			return n, nil
		}
	}
}
