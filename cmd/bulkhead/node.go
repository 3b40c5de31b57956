package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/dispatcher"
)

type nodeCmd struct {
	Drain   nodeDrainCmd   `cmd:"" help:"New calls go elsewhere; running ones finish."`
	Undrain nodeUndrainCmd `cmd:"" help:"Take a drain back."`
	Disable nodeDisableCmd `cmd:"" help:"Take a node out of service until it is enabled."`
	Enable  nodeEnableCmd  `cmd:"" help:"Take a disable back."`
}

// nodeFlags name a node of a registry.
type nodeFlags struct {
	Node      string `arg:"" help:"Id of the node."`
	toolFlags `embed:""`
}

type nodeDrainCmd struct {
	nodeFlags `embed:""`

	Wait     bool          `help:"Show the running sessions, and return when there are none."`
	Deadline time.Duration `help:"With --wait: give up after so long; the node stays drained. 0: never." placeholder:"TIME"`
}

type (
	nodeUndrainCmd struct {
		nodeFlags `embed:""`
	}
	nodeDisableCmd struct {
		nodeFlags `embed:""`
	}
	nodeEnableCmd struct {
		nodeFlags `embed:""`
	}
)

func (c *nodeUndrainCmd) Run(ctx context.Context, a *app) error {
	return c.set(ctx, a.out, "undrain", func(n *bulkhead.Node) { n.Drain = false })
}

func (c *nodeDisableCmd) Run(ctx context.Context, a *app) error {
	return c.set(ctx, a.out, "disable", func(n *bulkhead.Node) { n.Disabled = true })
}

func (c *nodeEnableCmd) Run(ctx context.Context, a *app) error {
	return c.set(ctx, a.out, "enable", func(n *bulkhead.Node) { n.Disabled = false })
}

func (c *nodeDrainCmd) Run(ctx context.Context, a *app) error {
	if err := c.set(ctx, a.out, "drain", func(n *bulkhead.Node) { n.Drain = true }); err != nil || !c.Wait {
		return err
	}
	head, err := c.head(ctx)
	if err != nil {
		return err
	}
	n := head.Nodes[bulkhead.NodeID(c.Node)]
	if n == nil {
		return fmt.Errorf("node %q: %w", c.Node, bulkhead.NotFound)
	}
	return waitIdle(ctx, a.out, dataDir(c.Data), n, c.Deadline)
}

// set changes the node as one revision, which all SBCs follow.
func (c *nodeFlags) set(ctx context.Context, out io.Writer, what string, change func(*bulkhead.Node)) error {
	store, err := c.registry(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	id := bulkhead.NodeID(c.Node)
	r, _, err := changeRegistry(ctx, store, what+" node "+c.Node, false, func(head bulkhead.State) (bulkhead.Change, error) {
		old := head.Nodes[id]
		if old == nil {
			return bulkhead.Change{}, fmt.Errorf("node %q: %w", id, bulkhead.NotFound)
		}
		n := *old
		if change(&n); n == *old {
			return bulkhead.Change{}, nil
		}
		return bulkhead.Change{Nodes: []bulkhead.Node{n}}, nil
	})
	if err != nil {
		return err
	}
	if r.Change.IsZero() {
		fmt.Fprintf(out, "node %s: nothing to do\n", id)
		return nil
	}
	fmt.Fprintf(out, "node %s: %s, revision %d\n", id, what, r.Number)
	return nil
}

const (
	// idleFor is how long a drained node must have no session: SBCs take up to
	// two seconds to follow a revision.
	idleFor   = 3 * time.Second
	idleEvery = time.Second
)

// waitIdle waits until a node has no sessions, and shows how many there are.
func waitIdle(ctx context.Context, out io.Writer, data dataDir, n *bulkhead.Node, deadline time.Duration) error {
	counter, err := counterOf(data, n)
	if err != nil {
		return err
	}
	if counter == nil {
		return fmt.Errorf("wait for node %q: it has no esl or, if it is an Asterisk, no ami in the registry, so nobody can count its sessions: %w", n.ID, bulkhead.Invalid)
	}
	defer counter.Close() //nolint:errcheck // it was asked only
	if deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	// A connection may notice the end of its time before ctx does.
	over := func() bool {
		end, bounded := ctx.Deadline()
		return ctx.Err() != nil || bounded && !time.Now().Before(end)
	}
	tick := time.NewTicker(idleEvery)
	defer tick.Stop()
	last, idle := -1, time.Time{}
	for {
		load, err := counter.Count(ctx)
		switch {
		case err != nil && !over():
			return fmt.Errorf("count the sessions of node %q: %w", n.ID, err)
		case err == nil && load.Sessions > 0:
			idle = time.Time{}
		case err == nil && idle.IsZero():
			idle = time.Now()
		}
		if err == nil && load.Sessions != last {
			last = load.Sessions
			fmt.Fprintf(out, "node %s: %d sessions\n", n.ID, last)
		}
		if !idle.IsZero() && time.Since(idle) >= idleFor {
			return nil
		}
		select {
		case <-ctx.Done():
			if deadline > 0 && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("node %q still has %d sessions after %s; it stays drained: %w", n.ID, last, deadline, bulkhead.Unavailable)
			}
			return ctx.Err()
		case <-tick.C:
		}
	}
}

type poolCmd struct {
	Upgrade poolUpgradeCmd `cmd:"" help:"Drain each node of a pool, run a command for it, and take it back; stop at the first failure."`
}

type poolUpgradeCmd struct {
	Pool      string `arg:"" help:"Id of the pool."`
	toolFlags `embed:""`

	Hook     string        `help:"Command that upgrades a node, run by sh with its id in NODE and its address in SIP." required:"" placeholder:"CMD"`
	Deadline time.Duration `help:"Give up when a node's calls take longer to end. 0: never." placeholder:"TIME"`
	Verify   time.Duration `help:"How long a node may take to answer after its hook." default:"1m" placeholder:"TIME"`
}

func (c *poolUpgradeCmd) Run(ctx context.Context, a *app) error {
	head, err := c.head(ctx)
	if err != nil {
		return err
	}
	if head.Pools[bulkhead.PoolID(c.Pool)] == nil {
		return fmt.Errorf("pool %q: %w", c.Pool, bulkhead.NotFound)
	}
	for _, id := range slices.Sorted(maps.Keys(head.Nodes)) {
		n := head.Nodes[id]
		if string(n.Pool) != c.Pool || n.Disabled {
			continue
		}
		if err := c.upgrade(ctx, a, n); err != nil {
			return fmt.Errorf("upgrade of pool %q stops at node %q, which stays drained: %w", c.Pool, id, err)
		}
	}
	return nil
}

// upgrade does one node. One that was drained before stays so.
func (c *poolUpgradeCmd) upgrade(ctx context.Context, a *app, n *bulkhead.Node) error {
	node := nodeFlags{Node: string(n.ID), toolFlags: c.toolFlags}
	if err := node.set(ctx, a.out, "drain", func(n *bulkhead.Node) { n.Drain = true }); err != nil {
		return err
	}
	if err := waitIdle(ctx, a.out, dataDir(c.Data), n, c.Deadline); err != nil {
		return err
	}
	hook := exec.CommandContext(ctx, "sh", "-c", c.Hook) //nolint:gosec // the operator's own command
	hook.Env = append(os.Environ(), "NODE="+string(n.ID), "SIP="+n.SIP)
	hook.Stdout, hook.Stderr = a.out, a.err
	if err := hook.Run(); err != nil {
		return fmt.Errorf("hook: %w", err)
	}
	if err := c.verify(ctx, n); err != nil {
		return err
	}
	if n.Drain {
		return nil
	}
	return node.set(ctx, a.out, "undrain", func(n *bulkhead.Node) { n.Drain = false })
}

// verify waits until the node answers OPTIONS, and not with a 503.
func (c *poolUpgradeCmd) verify(ctx context.Context, n *bulkhead.Node) error {
	ctx, cancel := context.WithTimeout(ctx, c.Verify)
	defer cancel()
	tick := time.NewTicker(idleEvery)
	defer tick.Stop()
	for {
		one, end := context.WithTimeout(ctx, idleEvery)
		status, err := dispatcher.UDPPinger{}.Ping(one, n.ID, n.SIP)
		end()
		if err == nil && status != 503 {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("it answers OPTIONS with %d", status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after its hook, for %s: %w: %w", c.Verify, bulkhead.Unavailable, err)
		case <-tick.C:
		}
	}
}
