package main

import (
	"cmp"
	"context"
	"fmt"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
)

type detachCmd struct {
	stateFlags `embed:""`

	Node  string `help:"The node." required:"" placeholder:"ID"`
	Dir   string `help:"The PBX's configuration folder. Default: /etc/asterisk or /etc/freeswitch." type:"path" placeholder:"DIR"`
	Write bool   `help:"Do it. Default: say which files would change."`
}

func (c *detachCmd) Run(ctx context.Context, a *app) error {
	head, err := c.head(ctx)
	if err != nil {
		return err
	}
	node := head.Nodes[bulkhead.NodeID(c.Node)]
	if node == nil {
		return fmt.Errorf("the registry has no node %q: %w", c.Node, bulkhead.NotFound)
	}
	detach, dir, after := freeswitch.Detach, "/etc/freeswitch", "fs_cli -x 'reload mod_xml_curl' (or unload it), and fs_cli -x 'sofia profile NAME rescan' for each profile; "+
		"gateways that are there already go with fs_cli -x 'sofia profile NAME killgw bulkhead.TENANT.TRUNK'"
	if node.Kind == bulkhead.Asterisk {
		detach, dir, after = asterisk.Detach, "/etc/asterisk", "restart Asterisk when no call goes on"
	}
	dir = cmp.Or(c.Dir, dir)
	changed, err := detach(dir, !c.Write)
	if err != nil {
		return err
	}
	for _, f := range changed {
		fmt.Fprintln(a.out, f)
	}
	switch {
	case len(changed) == 0:
		fmt.Fprintf(a.out, "nothing was added to %s\n", dir)
	case c.Write:
		fmt.Fprintln(a.out, "now: "+after)
	default:
		fmt.Fprintln(a.out, "these would change; add --write to do it")
	}
	return nil
}
