package kamailio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bulkhead-voip/bulkhead/route"
)

// The flags of a destination (dispatcher module, "Destination List File").
const (
	// flagDown: it takes no calls until it answers a ping.
	flagDown = 1 | 8
	// flagDisabled: it takes no calls and is not pinged.
	flagDisabled = 4
)

// renderList writes sets as the dispatcher module reads them: set, URI,
// flags, priority, attributes.
func renderList(sets []route.Set) []byte {
	var b bytes.Buffer
	for _, s := range sets {
		weights := shares(s.Targets)
		for i, t := range s.Targets {
			flags, priority := 0, t.Priority
			attrs := "duid=" + string(t.Node)
			switch {
			case t.Down:
				flags = flagDown
			case t.Disabled:
				// The module deals out weights only if the first destination has
				// one: those without must not come first.
				flags, priority = flagDisabled, 0
			}
			if weights[i] > 0 {
				attrs += fmt.Sprintf(";weight=%d", weights[i])
			}
			fmt.Fprintf(&b, "%d %s %d %d %s\n", s.ID, t.URI, flags, priority, attrs)
		}
	}
	return b.Bytes()
}

// shares turns weights into shares that add up to 100, at least 1 each; a
// target without a weight gets none. The module fills a list of 100 places from the
// first destination on: whatever goes beyond 100 would never be called.
func shares(targets []route.Target) []int {
	out := make([]int, len(targets))
	sum := 0
	var on []int
	for i, t := range targets {
		if !t.Disabled && !t.Down && t.Weight > 0 {
			sum += t.Weight
			on = append(on, i)
		}
	}
	if len(on) == 0 {
		return out
	}
	left := 100
	for _, i := range on {
		out[i] = max(1, targets[i].Weight*100/sum)
		left -= out[i]
	}
	// What rounding left over or took too much: one by one, from the heaviest.
	slices.SortStableFunc(on, func(a, b int) int { return targets[b].Weight - targets[a].Weight })
	for k := 0; left > 0; k++ {
		out[on[k%len(on)]]++
		left--
	}
	for k := 0; left < 0 && k < 100*len(on); k++ {
		if i := on[k%len(on)]; out[i] > 1 {
			out[i]--
			left++
		}
	}
	return out
}

// keepOld appends to list the lines of old whose set list does not have.
func keepOld(list, old []byte) []byte {
	have := map[string]bool{}
	for line := range bytes.Lines(list) {
		id, _, _ := bytes.Cut(line, []byte(" "))
		have[string(id)] = true
	}
	out := slices.Clone(list)
	for line := range bytes.Lines(old) {
		if id, _, ok := bytes.Cut(line, []byte(" ")); ok && !have[string(id)] && bytes.HasSuffix(line, []byte("\n")) {
			out = append(out, line...)
		}
	}
	return out
}

// listedSets is the answer to dispatcher.list short.
type listedSets struct {
	Records []struct {
		Set struct {
			ID      int `json:"ID"`
			Targets []struct {
				Dest struct {
					URI      string `json:"URI"`
					Flags    string `json:"FLAGS"`
					Priority int    `json:"PRIORITY"`
				} `json:"DEST"`
			} `json:"TARGETS"`
		} `json:"SET"`
	} `json:"RECORDS"`
}

// listBytes is about what one target takes in the answer to dispatcher.list
// short, prettyBytes when it is broken into lines.
const (
	listBytes   = 110
	prettyBytes = 260
)

// listedTarget is a destination as Kamailio has it in use.
type listedTarget struct {
	priority int
	disabled bool
}

// listSets returns the sets that Kamailio has in use, by id and URI.
func (c *Client) listSets(ctx context.Context) (map[int]map[string]listedTarget, error) {
	var got listedSets
	err := c.call(ctx, &got, "dispatcher.list", "short")
	if e := (*RPCError)(nil); errors.As(err, &e) && strings.Contains(strings.ToLower(e.Message), "no destination") {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	have := map[int]map[string]listedTarget{}
	for _, r := range got.Records {
		m := map[string]listedTarget{}
		for _, t := range r.Set.Targets {
			m[t.Dest.URI] = listedTarget{t.Dest.Priority, strings.HasPrefix(t.Dest.Flags, "D")}
		}
		have[r.Set.ID] = m
	}
	return have, nil
}

// verifySets compares the sets that Kamailio has in use with want. States
// that it changes itself (inactive, trying) are no difference.
func (c *Client) verifySets(ctx context.Context, want []route.Set) ([]string, error) {
	targets := 0
	for _, s := range want {
		targets += len(s.Targets)
	}
	each := listBytes
	if c.pretty {
		each = prettyBytes
	}
	if targets*each > 100<<10 {
		// Kamailio drops an answer above 128 KiB; the list file is compared anyway.
		c.log.Debug("too many dispatcher targets to read back", "targets", targets)
		return nil, nil
	}
	have, err := c.listSets(ctx)
	if err != nil {
		return nil, err
	}
	var diffs []string
	for _, s := range want {
		m, ok := have[s.ID]
		delete(have, s.ID)
		if !ok && len(s.Targets) == 0 {
			continue // a pool without nodes: the list has no line for it
		}
		if !ok {
			diffs = append(diffs, fmt.Sprintf("dispatcher set %d (pool %s, home %q) is missing", s.ID, s.Pool, s.Home))
			continue
		}
		for _, t := range s.Targets {
			w := listedTarget{t.Priority, t.Disabled}
			if t.Disabled {
				w.priority = 0
			}
			if g, ok := m[t.URI]; !ok {
				diffs = append(diffs, fmt.Sprintf("dispatcher set %d lacks %s", s.ID, t.URI))
			} else if g != w {
				diffs = append(diffs, fmt.Sprintf("dispatcher set %d: %s has priority %d, disabled %t; want %d, %t", s.ID, t.URI, g.priority, g.disabled, w.priority, w.disabled))
			}
			delete(m, t.URI)
		}
		for uri := range m {
			diffs = append(diffs, fmt.Sprintf("dispatcher set %d has %s, which does not belong there", s.ID, uri))
		}
	}
	for id := range have {
		diffs = append(diffs, fmt.Sprintf("dispatcher set %d does not belong there", id))
	}
	return diffs, nil
}
