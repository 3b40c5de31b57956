package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/route"
)

const (
	redrawEvery = time.Second
	printEvery  = 5 * time.Second // when it is not a terminal
	rateWindow  = 10 * time.Second
)

// board is the live table of "bulkhead run".
type board struct {
	out     io.Writer
	head    string // first line, but for the revision
	live    *route.Live
	store   cdrpipe.Warehouse
	started time.Time
	open    func() map[bulkhead.TenantID]int // calls going on
	ended   func() int64                     // legs that ended on media nodes of ours; nil: there are none
	now     func() time.Time
}

// Run shows the table until ctx ends: redrawn in place on a terminal, else a
// plain line for each tenant now and then.
func (b *board) Run(ctx context.Context) error {
	tty, every := false, printEvery
	if f, ok := b.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		tty, every = true, redrawEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		text, err := b.render(ctx)
		if err != nil {
			if ctx.Err() == nil {
				fmt.Fprintln(b.out, "the CDR store does not answer:", err)
			}
			continue
		}
		if tty {
			// Home, the new lines each clearing what stood there, then the rest.
			text = "\x1b[H" + strings.ReplaceAll(text, "\n", "\x1b[K\n") + "\x1b[J"
		}
		fmt.Fprint(b.out, text)
	}
}

// tenantLine is one row of the table.
type tenantLine struct {
	tenant   bulkhead.TenantID
	pool     bulkhead.PoolID
	nodes    map[bulkhead.NodeID]bool // that had its calls lately
	calls    int                      // going on now
	lately   int                      // begun within rateWindow
	answered int64
	cdrs     int64
	cause    string
}

func (b *board) render(ctx context.Context) (string, error) {
	lines, unowned, err := b.collect(ctx)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	fmt.Fprintf(&out, "Bulkhead %s   revision %d   %s\n", version, b.live.Load().Revision(), b.head)
	w := tabwriter.NewWriter(&out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "tenant\tpool\tnodes\tcalls now\tCPS\tanswered\tCDRs\tlast cause")
	var total int64
	for _, l := range lines {
		nodes := make([]string, 0, len(l.nodes))
		for id := range l.nodes {
			nodes = append(nodes, string(id))
		}
		slices.Sort(nodes)
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%.1f\t%d\t%d\t%s\n", l.tenant, l.pool, strings.Join(nodes, ","), l.calls,
			float64(l.lately)/rateWindow.Seconds(), l.answered, l.cdrs, l.cause)
		total += l.cdrs
	}
	w.Flush()
	fmt.Fprintf(&out, "%d CDRs", total)
	if b.ended != nil {
		fmt.Fprintf(&out, " of %d call legs that ended", b.ended())
	}
	if unowned > 0 {
		fmt.Fprintf(&out, "   %d calls refused that belong to no tenant", unowned)
	}
	fmt.Fprintln(&out)
	return out.String(), nil
}

// collect puts the store's sums and the records of the last seconds together.
func (b *board) collect(ctx context.Context) (lines []*tenantLine, unowned int64, err error) {
	now := b.now()
	sums, err := b.store.Summary(ctx, b.started)
	if err != nil {
		return nil, 0, err
	}
	byTenant := map[bulkhead.TenantID]*tenantLine{}
	line := func(t bulkhead.TenantID) *tenantLine {
		if byTenant[t] == nil {
			byTenant[t] = &tenantLine{tenant: t, nodes: map[bulkhead.NodeID]bool{}}
		}
		return byTenant[t]
	}
	if x := b.live.Load(); x.TenantCount() <= maxBoardTenants {
		for t := range x.Tenants() {
			line(t.ID).pool = x.PoolOf(t.ID)
		}
	}
	for _, s := range sums {
		if s.Tenant == "" {
			unowned += s.Refused
			continue
		}
		l := line(s.Tenant)
		if s.Pool != "" {
			l.pool = s.Pool
		}
		l.answered += s.Answered
		l.cdrs += s.Legs
		l.cause = s.LastCause
	}
	recent, err := b.store.Records(ctx, cdrpipe.Filter{Kind: cdr.Leg, Since: now.Add(-rateWindow), Limit: cdrpipe.MaxLimit})
	if err != nil {
		return nil, 0, err
	}
	for i := range recent {
		if r := &recent[i]; r.Tenant != "" {
			l := line(r.Tenant)
			l.nodes[r.Node] = true
			if r.Direction == cdr.Inbound {
				l.lately++
			}
		}
	}
	for t, n := range b.open() {
		if t != "" {
			line(t).calls = n
		}
	}
	for _, l := range byTenant {
		lines = append(lines, l)
	}
	slices.SortFunc(lines, func(x, y *tenantLine) int { return strings.Compare(string(x.tenant), string(y.tenant)) })
	return lines[:min(len(lines), maxBoardTenants)], unowned, nil
}

// maxBoardTenants is how many rows the table has at most.
const maxBoardTenants = 40
