package freeswitchtest

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// set is the application set: name=value. It returns the name; an empty value
// removes the variable.
func (c *call) set(data string) string {
	name, value, ok := strings.Cut(data, "=")
	name = strings.TrimSpace(name)
	if !ok || name == "" {
		return ""
	}
	if value == "" || value == "_undef_" {
		c.a.vars.unset(name)
		return ""
	}
	c.a.vars.set(name, value)
	return name
}

// joinExport adds a name to export_vars.
func joinExport(list, name string) string {
	if list == "" {
		return name
	}
	if slices.Contains(strings.Split(list, ","), name) {
		return list
	}
	return list + "," + name
}

func milliseconds(s string) time.Duration {
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil || n < 0 || n > math.MaxInt32 {
		return 0
	}
	return time.Duration(n) * time.Millisecond
}

// tone is tone_stream://%(on,off,hz);loops=n (capture
// xml_curl/dialplan-answer.txt) or silence_stream://ms.
type tone struct {
	on, off time.Duration
	hz      int
	loops   int // -1: for ever
}

func parseTone(s string) (tone, bool) {
	if ms, ok := strings.CutPrefix(s, "silence_stream://"); ok {
		ms, _, _ = strings.Cut(ms, ",")
		return tone{off: milliseconds(ms), loops: 1}, true
	}
	spec, ok := strings.CutPrefix(s, "tone_stream://%(")
	if !ok {
		return tone{}, false
	}
	args, opts, ok := strings.Cut(spec, ")")
	if !ok {
		return tone{}, false
	}
	p := strings.Split(args, ",")
	if len(p) < 3 {
		return tone{}, false
	}
	t := tone{on: milliseconds(p[0]), off: milliseconds(p[1]), loops: 1}
	hz, err := strconv.Atoi(strings.TrimSpace(p[2]))
	if err != nil || hz <= 0 || hz >= 4000 {
		return tone{}, false
	}
	// The engine repeats one frame of 20 ms, so it knows multiples of 50 Hz.
	t.hz = min(3950, max(50, (hz+25)/50*50))
	if _, n, ok := strings.Cut(opts, "loops="); ok {
		n, _, _ = strings.Cut(n, ";")
		if t.loops, err = strconv.Atoi(n); err != nil {
			return tone{}, false
		}
	}
	return t, true
}

// playback sends a tone to the caller, as early media if he has no answer yet.
// A file cannot be played: that is logged and the dialplan goes on, as with a
// file that FreeSWITCH does not find.
func (c *call) playback(data string) {
	t, ok := parseTone(data)
	if !ok {
		c.log.Error("playback: only tone_stream and silence_stream can be played", "data", clip(data, 80))
		return
	}
	if c.ad == nil {
		c.preAnswer()
	}
	a := c.a
	defer a.media.Stop()
	for i := 0; (t.loops < 0 || i < t.loops) && t.on+t.off > 0; i++ {
		for _, part := range []struct {
			d  time.Duration
			hz int
		}{{t.on, t.hz}, {t.off, 0}} {
			if part.d == 0 {
				continue
			}
			if err := a.media.Send(a.codec, part.hz); err != nil {
				c.log.Error("playback", "err", err)
				return
			}
			if !c.pause(part.d) {
				return
			}
		}
	}
}
