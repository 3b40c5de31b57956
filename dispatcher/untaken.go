package dispatcher

import (
	"context"
	"time"
)

// untaken turns counts into a rate. Counts that fall were begun anew.
type untaken struct {
	counts []count // of the last untakenOver, the oldest first
}

type count struct {
	at time.Time
	n  int
}

// add notes a count and returns the calls a second over the last untakenOver.
func (u *untaken) add(now time.Time, n int) float64 {
	if k := len(u.counts); k > 0 && n < u.counts[k-1].n {
		u.counts = nil
	}
	u.counts = append(u.counts, count{now, n})
	for len(u.counts) > 1 && now.Sub(u.counts[0].at) > untakenOver {
		u.counts = u.counts[1:]
	}
	return float64(n-u.counts[0].n) / untakenOver.Seconds()
}

// countUntaken keeps how many calls each node does not take, until ctx ends.
// While the SBC cannot be asked nothing is held against anybody.
func (w *Watch) countUntaken(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	nodes := map[string]*untaken{}
	said, asked := "", false
	for {
		bounded, cancel := context.WithTimeout(ctx, pollTimeout)
		counts, err := w.cfg.Untaken.Refused(bounded)
		cancel()
		if ctx.Err() != nil {
			return
		}
		text := ""
		if err != nil {
			text = err.Error()
			nodes = map[string]*untaken{}
		}
		if text != "" && text != said {
			w.log.Warn("the SBC does not say which nodes do not take calls", "error", err)
		}
		said = text
		w.noteUntaken(time.Now(), nodes, counts, asked)
		asked = err == nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// noteUntaken brings what is known of each node up to date with the SBC's
// counts. If there were counts a moment ago, a node that is new among them had 0.
func (w *Watch) noteUntaken(now time.Time, nodes map[string]*untaken, counts map[string]int, before bool) {
	known := w.nodes()
	for addr := range nodes {
		if _, ok := counts[addr]; !ok {
			delete(nodes, addr)
		}
	}
	rates := map[string]float64{}
	for addr, n := range counts {
		if nodes[addr] == nil {
			nodes[addr] = &untaken{}
			if before {
				nodes[addr].add(now.Add(-pollEvery), 0)
			}
		}
		rates[addr] = nodes[addr].add(now, n)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, n := range known {
		if o, ok := w.seen[id]; ok {
			o.Untaken = rates[n.SIP]
			w.seen[id] = o
		}
	}
}
