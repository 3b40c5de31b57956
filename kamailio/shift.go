package kamailio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/bulkhead-voip/bulkhead/route"
)

// ApplySets makes the sets of t those that Kamailio uses, now and after a
// restart. The rows of t must be those of the last Apply: nothing is done
// about them, so that it takes as long as there are sets, not tenants.
//
// Targets that take no calls any more are told so at once; weights and orders
// follow with the reload of the list, of which Kamailio takes one a second.
// Errors are those of Apply.
func (c *Client) ApplySets(ctx context.Context, t route.Tables) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.applySets(ctx, t)
	way := "sets"
	if err != nil {
		way = "error"
		err = fmt.Errorf("apply the sets of revision %d to the Kamailio of SBC %s: %w", t.Revision, t.SBC, err)
	}
	c.metrics.applies.WithLabelValues(way).Inc()
	return err
}

func (c *Client) applySets(ctx context.Context, t route.Tables) error {
	if err := c.takeLock(); err != nil {
		return err
	}
	old, err := os.ReadFile(filepath.Join(c.dir, ListFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the dispatcher list: %w", err)
	}
	list := renderList(t.Sets)
	if err := c.writeList(ctx, old, list, false); err != nil {
		return err
	}
	if err := c.takeOut(ctx, t.Sets); err != nil {
		return err
	}
	return c.writeList(ctx, list, list, true)
}

// placed is a destination in a dispatcher set.
type placed struct {
	set int
	uri string
}

// takeOut sets the state of every target that is to take no calls and was not
// told so before.
func (c *Client) takeOut(ctx context.Context, sets []route.Set) error {
	out := map[placed]string{}
	for _, s := range sets {
		for _, to := range s.Targets {
			switch {
			case to.Disabled:
				out[placed{s.ID, to.URI}] = "d"
			case to.Down:
				out[placed{s.ID, to.URI}] = "ip"
			}
		}
	}
	was := c.out
	c.out = out
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxInFlight)
	for to, state := range out {
		if was[to] == state {
			continue
		}
		g.Go(func() error {
			_, err := c.Call(ctx, "dispatcher.set_state", state, to.set, to.uri)
			// A target that Kamailio does not have yet comes with the list.
			if e := (*RPCError)(nil); errors.As(err, &e) {
				return nil
			}
			return err
		})
	}
	return g.Wait()
}
