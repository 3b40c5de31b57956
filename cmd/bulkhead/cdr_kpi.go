package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
)

type cdrKPICmd struct {
	cdrStore `embed:""`

	Since  time.Duration `help:"Of the last so long." default:"24h" placeholder:"TIME"`
	Until  time.Duration `help:"Up to so long ago." default:"0" placeholder:"TIME"`
	Bucket time.Duration `help:"A line for each interval of so long, whole minutes; 0: one interval." default:"0" placeholder:"TIME"`
	By     []string      `help:"A line for each tenant, pool, node, or several of them; none: one for all." default:"tenant" sep:"," placeholder:"WHAT" enum:"tenant,pool,node,none"`
	Tenant string        `help:"Of this tenant only." placeholder:"ID"`
	Pool   string        `help:"Of this pool only." placeholder:"ID"`
	Node   string        `help:"Of this node only." placeholder:"ID"`
	JSON   bool          `help:"One JSON object a line." name:"json"`
}

func (c *cdrKPICmd) Run(ctx context.Context, a *app) error {
	now := time.Now()
	q := cdrpipe.KPIQuery{
		Since: now.Add(-c.Since), Bucket: c.Bucket,
		Tenant: bulkhead.TenantID(c.Tenant), Pool: bulkhead.PoolID(c.Pool), Node: bulkhead.NodeID(c.Node),
	}
	if c.Until > 0 {
		q.Until = now.Add(-c.Until)
	}
	for _, by := range c.By {
		if by != "none" {
			q.By = append(q.By, cdrpipe.Dimension(by))
		}
	}
	store, err := c.ask(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	kpis, err := store.KPIs(ctx, q)
	if err != nil {
		return err
	}
	if c.JSON {
		enc := json.NewEncoder(a.out)
		for i := range kpis {
			if err := enc.Encode(&kpis[i]); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "time\ttenant\tpool\tnode\tattempts\tSER %\tSEER %\tISA %\tASR %\tNER %\tACD s\tPDD p50 s\tPDD p95 s\tminutes\tunknown\t")
	for i := range kpis {
		k := &kpis[i]
		at := ""
		if !k.Time.IsZero() {
			at = k.Time.Format("2006-01-02T15:04Z")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.1f\t%d\t\n", at, printable(k.Tenant), printable(k.Pool), printable(k.Node),
			k.Attempts, number(k.SER, 1), number(k.SEER, 1), number(k.ISA, 1), number(k.ASR, 1), number(k.NER, 1),
			number(k.ACD, 1), number(k.PDDP50, 3), number(k.PDDP95, 3), k.Minutes, k.Unknown)
	}
	return w.Flush()
}

// number is v with so many decimals; a hyphen where nothing can be said.
func number(v *float64, decimals int) string {
	if v == nil {
		return "-"
	}
	return strconv.FormatFloat(*v, 'f', decimals, 64)
}
