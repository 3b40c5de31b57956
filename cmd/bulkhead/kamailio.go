package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

// kamailioFolder is where printed files are meant to be put.
const kamailioFolder = "/etc/bulkhead/kamailio"

type configKamailioCmd struct {
	stateFlags `embed:""`

	SBC     string `help:"The SBC." required:"" placeholder:"ID"`
	Out     string `short:"o" help:"Folder to write into; existing tables and registrations stay. Default: print, for /etc/bulkhead/kamailio." type:"path" placeholder:"DIR"`
	Events  string `help:"Where the event bridge takes this SBC's events; empty: nothing is reported." default:"127.0.0.1:8090" placeholder:"HOST:PORT"`
	Route   string `help:"Where configsvc answers for tenants that the tables do not know yet; empty: it is not asked." placeholder:"HOST:PORT"`
	Listen6 string `help:"IPv6 address and port at which it takes SIP too, for callers." name:"listen6" placeholder:"[IP]:PORT"`
	Attach  bool   `help:"For a Kamailio that is there already: bulkhead.cfg, and the lines to add to its kamailio.cfg."`
	RPC     string `help:"With --attach: the datagram socket of that Kamailio's jsonrpcs module, if it has one." name:"rpc" placeholder:"PATH"`
}

func (c *configKamailioCmd) Run(ctx context.Context, a *app) error {
	head, err := c.head(ctx)
	if err != nil {
		return err
	}
	params, err := c.params(head)
	if err != nil {
		return err
	}
	tables, err := route.MakeTables(route.New(head), params.SBC)
	if err != nil {
		return err
	}
	memory, err := memoryFor(c.SBC, len(tables.Rows))
	if err != nil {
		return err
	}
	dir := c.Out
	if dir == "" {
		dir = kamailioFolder
		files, err := params.Files(dir)
		if err != nil {
			return err
		}
		for _, f := range files {
			fmt.Fprintf(a.out, "# ===== %s/%s =====\n%s\n", dir, f.Name, f.Text)
		}
	} else if err := params.Write(dir); err != nil {
		return err
	}
	if c.Attach {
		fmt.Fprintf(a.out, "%s\n", params.Lines(dir))
		fmt.Fprintf(a.out, "# The tables have %d rows: Kamailio needs at least these for them, beside what it needs already:\n#   -m %d -M %d\n", len(tables.Rows), memory.SharedMB, memory.PrivateMB)
	} else {
		fmt.Fprintf(a.out, "# The tables have %d rows. Start it (without http_proxy in its environment):\n#   kamailio %s\n", len(tables.Rows), strings.Join(memory.Args(dir), " "))
	}
	breaker := ""
	if c.Route != "" {
		breaker = " --route " + c.Route
	}
	fmt.Fprintf(a.out, "# Feed it:\n#   bulkhead dispatcher --sbc %s --kamailio %s%s%s\n", c.SBC, dir, breaker, c.central())
	return nil
}

// memoryFor returns the memory that a Kamailio with tables of so many rows
// needs, and refuses here what its dispatcher would refuse later.
func memoryFor(sbc string, rows int) (kamailio.Options, error) {
	if err := kamailio.CheckRows(rows); err != nil {
		return kamailio.Options{}, fmt.Errorf("SBC %q: %w", sbc, err)
	}
	return kamailio.Memory(rows), nil
}

func (c *configKamailioCmd) params(head bulkhead.State) (kamailio.Params, error) {
	sbc := head.SBCs[bulkhead.SBCID(c.SBC)]
	if sbc == nil {
		return kamailio.Params{}, fmt.Errorf("the registry has no SBC %q: %w", c.SBC, bulkhead.NotFound)
	}
	p := kamailio.Params{SBC: sbc.ID, Listen: sbc.SIP, Listen6: c.Listen6, Events: c.Events, Route: c.Route, Attach: c.Attach, RPC: c.RPC}
	if c.Attach {
		p.Events = "" // the events are the shipped kamailio.cfg's own
	}
	if p.Events != "" || p.Route != "" {
		var err error
		p.User = c.SBC
		if p.Token, err = c.token(sbcToken); err != nil {
			return p, err
		}
	}
	return p, nil
}
