package eventbridge

import "time"

// clockWindow is how long a sample of a node's clock counts, at least; at most
// twice as long. A clock that is set back is noticed after that.
const clockWindow = 2 * time.Minute

// clock estimates how far a node's clock is ahead of ours. An event's time,
// seen against ours at its receipt, is that less the way it took, which is
// never negative. So the greatest of the last samples is the nearest one.
type clock struct {
	begin      time.Time // of the present window
	now, last  time.Duration
	isNow, was bool // there is a sample in the present window, in the one before
}

func (c *clock) sample(d time.Duration, now time.Time) {
	if now.Sub(c.begin) > clockWindow {
		c.last, c.was = c.now, c.isNow && now.Sub(c.begin) <= 2*clockWindow
		c.isNow, c.begin = false, now
	}
	if !c.isNow || d > c.now {
		c.now, c.isNow = d, true
	}
}

// offset is in whole milliseconds; false: nothing is known.
func (c *clock) offset() (time.Duration, bool) {
	d := c.now
	if c.was && (!c.isNow || c.last > d) {
		d = c.last
	}
	return d.Round(time.Millisecond), c.isNow || c.was
}
