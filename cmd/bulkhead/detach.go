package main

import (
	"cmp"
	"context"
	"fmt"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/kamailio"
)

type detachCmd struct {
	stateFlags `embed:""`

	Node     string `help:"The node." xor:"what" required:"" placeholder:"ID"`
	Dir      string `help:"The PBX's configuration folder. Default: /etc/asterisk or /etc/freeswitch." type:"path" placeholder:"DIR"`
	Kamailio string `help:"In place of --node: the kamailio.cfg to which the lines of config kamailio --attach were added." xor:"what" required:"" type:"path" placeholder:"FILE"`
	Files    string `help:"With --kamailio: the folder of Bulkhead's own files for it." default:"/etc/bulkhead/kamailio" type:"path" placeholder:"DIR"`
	Write    bool   `help:"Do it. Default: say what would change."`
}

func (c *detachCmd) Run(ctx context.Context, a *app) error {
	if c.Kamailio != "" {
		return c.detachKamailio(a)
	}
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

func (c *detachCmd) detachKamailio(a *app) error {
	gone, err := kamailio.Detach(c.Kamailio, c.Files, !c.Write)
	if err != nil {
		return err
	}
	for _, l := range gone {
		fmt.Fprintln(a.out, "-", l)
	}
	switch {
	case len(gone) == 0:
		fmt.Fprintf(a.out, "nothing was added to %s\n", c.Kamailio)
	case c.Write:
		fmt.Fprintf(a.out, "check it with kamailio -c -f %s and restart Kamailio; the modules stay loaded, %s stays too\n", c.Kamailio, c.Files)
	default:
		fmt.Fprintln(a.out, "these lines would go; add --write to do it")
	}
	return nil
}
