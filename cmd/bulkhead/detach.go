package main

import (
	"context"
	"fmt"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
)

type detachCmd struct {
	stateFlags `embed:""`

	Node  string `help:"The node." required:"" placeholder:"ID"`
	Dir   string `help:"The PBX's configuration folder." default:"/etc/asterisk" type:"path" placeholder:"DIR"`
	Write bool   `help:"Do it. Default: say which files would change."`
}

func (c *detachCmd) Run(ctx context.Context, a *app) error {
	head, err := c.head(ctx)
	if err != nil {
		return err
	}
	node := head.Nodes[bulkhead.NodeID(c.Node)]
	switch {
	case node == nil:
		return fmt.Errorf("the registry has no node %q: %w", c.Node, bulkhead.NotFound)
	case node.Kind != bulkhead.Asterisk:
		return fmt.Errorf("node %q is no Asterisk: take the binding for Bulkhead out of its xml_curl.conf.xml by hand: %w", c.Node, bulkhead.Invalid)
	}
	changed, err := asterisk.Detach(c.Dir, !c.Write)
	if err != nil {
		return err
	}
	for _, f := range changed {
		fmt.Fprintln(a.out, f)
	}
	switch {
	case len(changed) == 0:
		fmt.Fprintf(a.out, "nothing was added to %s\n", c.Dir)
	case c.Write:
		fmt.Fprintln(a.out, "restart Asterisk when no call goes on")
	default:
		fmt.Fprintln(a.out, "these would change; add --write to do it")
	}
	return nil
}
