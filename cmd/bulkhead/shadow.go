package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/configsvc"
)

type shadowCmd struct {
	Report shadowReportCmd `cmd:"" help:"Compare, for each tenant, what would have been done with the records of what happened."`
}

type shadowReportCmd struct {
	cdrStore `embed:""`

	Decisions []string       `help:"Folders of decisions, one of each node's configsvc. Default: shadow in the data folder." type:"path" placeholder:"DIR"`
	Tenant    string         `help:"Of this tenant only." placeholder:"ID"`
	Since     *time.Duration `help:"Of the last so long. Default: all that is kept." placeholder:"TIME"`
	Calls     bool           `help:"The calls themselves that went differently, not their sums."`
	Ways      int            `help:"At most so many kinds of difference for each tenant." default:"10" placeholder:"N"`
	JSON      bool           `help:"One JSON object a line." name:"json"`
}

func (c *shadowReportCmd) Run(ctx context.Context, a *app) error {
	report, torn, err := c.read()
	if err != nil {
		return err
	}
	if torn > 0 {
		fmt.Fprintf(a.err, "bulkhead: %d lines are no decisions: a configsvc was killed while it wrote\n", torn)
	}
	store, err := c.ask(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := c.records(ctx, store, report); err != nil {
		return err
	}
	list := report.Comparisons()
	if c.Calls {
		return c.showCalls(a.out, list)
	}
	tenants := configsvc.Tenants(list, c.Ways)
	if c.JSON {
		return eachJSON(a.out, tenants)
	}
	return showTenants(a.out, tenants)
}

// read collects the decisions of all folders in the order of time.
func (c *shadowReportCmd) read() (report *configsvc.ShadowReport, torn int, err error) {
	dirs := c.Decisions
	if len(dirs) == 0 {
		dirs = []string{dataDir(c.Data).shadow()}
	}
	var list []configsvc.Decision
	for _, dir := range dirs {
		n, err := configsvc.ReadShadow(dir, func(d configsvc.Decision) {
			if (c.Tenant == "" || d.Tenant == bulkhead.TenantID(c.Tenant)) && (c.Since == nil || time.Since(d.Time) < *c.Since) {
				list = append(list, d)
			}
		})
		if err != nil {
			return nil, 0, err
		}
		torn += n
	}
	slices.SortStableFunc(list, func(a, b configsvc.Decision) int { return a.Time.Compare(b.Time) })
	report = configsvc.NewShadowReport()
	for _, d := range list {
		report.Decide(d)
	}
	return report, torn, nil
}

// How much earlier and later than a decision its call's legs may begin: the
// clocks of two hosts differ, and a call may ring others for hours.
const (
	shadowBefore = 5 * time.Minute
	shadowAfter  = 12 * time.Hour
)

// records adds the records of the time of the decisions.
func (c *shadowReportCmd) records(ctx context.Context, store cdrpipe.Warehouse, report *configsvc.ShadowReport) error {
	first, last, ok := report.Span()
	if !ok {
		return nil
	}
	f := cdrpipe.Filter{Kind: cdr.Leg, Since: first.Add(-shadowBefore), Until: last.Add(shadowAfter), Limit: cdrpipe.MaxLimit}
	for {
		rows, err := store.Records(ctx, f)
		if err != nil {
			return err
		}
		for i := range rows {
			report.Record(rows[i].Record)
		}
		if len(rows) < f.Limit {
			return nil
		}
		f.After = rows[len(rows)-1].Cursor()
	}
}

func showTenants(out io.Writer, tenants []configsvc.TenantShadow) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "tenant\tcalls\tsame\tdifferent\tnot known\tunmanaged")
	for i := range tenants {
		t := &tenants[i]
		name := printable(t.Tenant)
		if name == "" {
			name = "(none of ours)"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\n", name, t.Calls, t.Same, t.Different, t.NotKnown, t.Unmanaged)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for i := range tenants {
		t := &tenants[i]
		if len(t.How) > 0 {
			fmt.Fprintf(out, "\n%s\n", printable(t.Tenant))
		}
		for _, h := range t.How {
			fmt.Fprintf(out, "%8d  %s: %s\n", h.Calls, h.Verdict, printable(h.How))
		}
	}
	return nil
}

// showCalls lists the calls that went differently.
func (c *shadowReportCmd) showCalls(out io.Writer, list []configsvc.Comparison) error {
	list = slices.DeleteFunc(list, func(x configsvc.Comparison) bool { return x.Verdict != configsvc.Different })
	if c.JSON {
		return eachJSON(out, list)
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "time\ttenant\tnode\tcall\tnumber\thow")
	for i := range list {
		d := &list[i].Decision
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", d.Time.Format("2006-01-02T15:04:05.000Z"), printable(d.Tenant), printable(d.Node),
			printable(cmp.Or(d.Leg, d.SIPCallID)), printable(d.Number), printable(list[i].How))
	}
	return w.Flush()
}

func eachJSON[T any](out io.Writer, list []T) error {
	enc := json.NewEncoder(out)
	for i := range list {
		if err := enc.Encode(&list[i]); err != nil {
			return err
		}
	}
	return nil
}
