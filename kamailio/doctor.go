package kamailio

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/bulkhead-voip/bulkhead/route"
)

// dumpable is how many rows a table may have to be read back in one answer.
const dumpable = 400

// Examine reads back all that Kamailio decides by, and all of the file that it
// starts from, and returns each difference to want in words; none means that
// all is well. It asks once for each row: 100,000 take some seconds. Of the
// dispatcher sets it compares which nodes are in them, not what each is offered
// at the moment, which the dispatcher service alone knows.
//
// It changes nothing and needs no Lock. The error is of kind
// bulkhead.Unavailable when Kamailio does not answer.
func (c *Client) Examine(ctx context.Context, want route.Tables) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	diffs, err := c.examine(ctx, want)
	if err != nil {
		return nil, fmt.Errorf("examine the Kamailio of SBC %s: %w", want.SBC, err)
	}
	return diffs, nil
}

func (c *Client) examine(ctx context.Context, want route.Tables) ([]string, error) {
	if err := c.open(); err != nil {
		return nil, err
	}
	onDisk, err := c.file.meta(ctx)
	if err != nil {
		return nil, err
	}
	var diffs []string
	if onDisk.rev[onDisk.live] != want.Revision {
		diffs = append(diffs, fmt.Sprintf("the table file holds revision %d, want %d", onDisk.rev[onDisk.live], want.Revision))
	}
	ops, err := c.file.diff(ctx, onDisk.live, want.Rows)
	if err != nil {
		return nil, err
	}
	for _, o := range ops {
		what := "is missing or differs"
		if o.delete {
			what = "does not belong there"
		}
		diffs = append(diffs, fmt.Sprintf("row %s of the table file %s", o.Key, what))
	}
	m, err := c.observe(ctx)
	if err != nil {
		return nil, err
	}
	if m.rev[m.live] != want.Revision {
		diffs = append(diffs, fmt.Sprintf("revision in memory is %d, want %d", m.rev[m.live], want.Revision))
	}
	rows, err := c.examineRows(ctx, m.live.table(), want.Rows)
	if err != nil {
		return nil, err
	}
	sets, err := c.examineSets(ctx, want.Sets)
	return slices.Concat(diffs, rows, sets), err
}

// examineRows compares every row of a table in memory.
func (c *Client) examineRows(ctx context.Context, table string, want []route.Row) ([]string, error) {
	var mu sync.Mutex
	var diffs []string
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxInFlight)
	for _, r := range want {
		g.Go(func() error {
			got, err := c.get(gctx, table, r.Key)
			if err == nil && got != r.Value {
				mu.Lock()
				defer mu.Unlock()
				// Not the values: some are secrets.
				diffs = append(diffs, fmt.Sprintf("row %s in memory is missing or differs", r.Key))
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	slices.Sort(diffs)
	counts, err := c.counts(ctx)
	if err != nil {
		return nil, err
	}
	if counts[table] == len(want) {
		return diffs, nil
	}
	diffs = append(diffs, fmt.Sprintf("number of rows in memory is %d, want %d", counts[table], len(want)))
	if counts[table] > dumpable {
		return diffs, nil
	}
	known := map[string]bool{}
	for _, r := range want {
		known[r.Key] = true
	}
	have, err := c.dump(ctx, table)
	for key := range have {
		if !known[key] {
			diffs = append(diffs, fmt.Sprintf("row %s in memory does not belong there", key))
		}
	}
	return diffs, err
}

// dump returns the rows of a small table.
func (c *Client) dump(ctx context.Context, table string) (map[string]any, error) {
	var slots []struct {
		Slot []struct {
			Name  string `json:"name"`
			Value any    `json:"value"`
		} `json:"slot"`
	}
	if err := c.call(ctx, &slots, "htable.dump", table); err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, s := range slots {
		for _, r := range s.Slot {
			out[r.Name] = r.Value
		}
	}
	return out, nil
}

// examineSets compares which nodes are in which dispatcher set.
func (c *Client) examineSets(ctx context.Context, want []route.Set) ([]string, error) {
	have, err := c.listSets(ctx)
	if err != nil {
		return nil, err
	}
	var diffs []string
	for _, s := range want {
		for _, t := range s.Targets {
			if _, ok := have[s.ID][t.URI]; !ok {
				diffs = append(diffs, fmt.Sprintf("dispatcher set %d (pool %s) lacks %s, node %s", s.ID, s.Pool, t.URI, t.Node))
			}
			delete(have[s.ID], t.URI)
		}
	}
	for id, targets := range have {
		for uri := range targets {
			diffs = append(diffs, fmt.Sprintf("dispatcher set %d has %s, which does not belong there", id, uri))
		}
	}
	slices.Sort(diffs)
	return diffs, nil
}
