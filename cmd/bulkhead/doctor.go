package main

import (
	"context"
	"fmt"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

type doctorCmd struct {
	Kamailio doctorKamailioCmd `cmd:"" help:"Read back all that a Kamailio decides by, and compare it with the registry."`
}

type doctorKamailioCmd struct {
	stateFlags `embed:""`

	SBC string `help:"The SBC." required:"" placeholder:"ID"`
	Dir string `help:"Folder of its files, as the dispatcher's --kamailio." name:"kamailio" default:"/etc/bulkhead/kamailio" type:"path" placeholder:"DIR"`
}

// Run prints each difference and fails if there is one. It changes nothing.
func (c *doctorKamailioCmd) Run(ctx context.Context, a *app) error {
	head, err := c.head(ctx)
	if err != nil {
		return err
	}
	tables, err := route.MakeTables(route.New(head), bulkhead.SBCID(c.SBC))
	if err != nil {
		return err
	}
	client, err := kamailio.New(c.Dir, nil, nil)
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // it was asked only
	version, err := client.Version(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s in %s\n", version, c.Dir)
	untaken, err := client.Refused(ctx)
	if err != nil {
		fmt.Fprintf(a.out, "warning: %v: write its files anew with bulkhead config kamailio and restart it\n", err)
	}
	for node, n := range untaken {
		fmt.Fprintf(a.out, "node at %s did not take %d calls, and another one did\n", node, n)
	}
	differences, err := client.Examine(ctx, tables)
	if err != nil {
		return err
	}
	for _, d := range differences {
		fmt.Fprintln(a.out, d)
	}
	if len(differences) > 0 {
		return fmt.Errorf("%d differences to revision %d: a running dispatcher repairs them; GET /v1/sbc says why it does not: %w", len(differences), tables.Revision, bulkhead.Conflict)
	}
	fmt.Fprintf(a.out, "all of revision %d is there: %d rows, %d sets\n", tables.Revision, len(tables.Rows), len(tables.Sets))
	return nil
}
