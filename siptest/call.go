package siptest

import (
	"context"
	"time"

	"github.com/emiago/sipgo/sip"
)

// Call is an answered call of a Phone.
type Call struct {
	phone *Phone
	d     *Dialog
	media *Media
	codec Codec
	done  chan struct{}
}

// ID returns the Call-ID.
func (c *Call) ID() string { return c.d.CallID() }

// Phone returns the phone whose call this is.
func (c *Call) Phone() *Phone { return c.phone }

// Dialog returns the call's dialog.
func (c *Call) Dialog() *Dialog { return c.d }

// Codec returns the law that this side sends.
func (c *Call) Codec() Codec { return c.codec }

// Hangup sends a BYE with the given headers and waits for its answer. The call
// is over in any case; one that is over already is no error.
func (c *Call) Hangup(ctx context.Context, headers ...sip.Header) error {
	c.media.Stop()
	return c.d.Bye(ctx, headers...)
}

// Done is closed when the call is over, by whichever side, and its media
// closed.
func (c *Call) Done() <-chan struct{} { return c.done }

// RemoteHangup reports whether the other side has sent a BYE.
func (c *Call) RemoteHangup() bool { return c.d.RemoteBye() != nil }

// Stats returns the media counters, also after the end.
func (c *Call) Stats() Stats { return c.media.Stats() }

// hangUpAfter ends the call after d; 0 never does.
func (c *Call) hangUpAfter(d time.Duration) {
	if d <= 0 {
		return
	}
	g := c.phone.group
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	g.wg.Go(func() {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.d.Done():
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), g.stack.e.timers.transactionTimeout())
		defer cancel()
		if err := c.Hangup(ctx); err != nil {
			g.stack.e.log.Debug("hang up", "call", c.ID(), "err", err)
		}
	})
}
