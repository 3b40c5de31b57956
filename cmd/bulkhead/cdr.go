package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
)

type cdrCmd struct {
	Search cdrSearchCmd `cmd:"" default:"withargs" help:"Show records in the order of calls (the default)."`
	Export cdrExportCmd `cmd:"" help:"Write records in the order in which they were stored, from a cursor on, for billing."`
	Raw    cdrRawCmd    `cmd:"" help:"Show what the switch itself said about a record, as long as that is kept."`
	KPI    cdrKPICmd    `cmd:"" name:"kpi" help:"Show SER, SEER, ISA, ASR, NER, ACD and post-dial delay (RFC 6076)."`
}

// cdrStore is where the tools find the records.
type cdrStore struct {
	Data           string `help:"Folder that holds the CDR store." default:"data" type:"path" placeholder:"DIR"`
	warehouseFlags `embed:""`
}

func (s *cdrStore) ask(ctx context.Context) (warehouse, error) {
	return s.warehouseFlags.ask(ctx, dataDir(s.Data))
}

type cdrSearchCmd struct {
	cdrStore `embed:""`

	Tenant string         `help:"Of this tenant only." placeholder:"ID"`
	Kind   string         `help:"leg, refused or failover." enum:"leg,refused,failover," default:""`
	Call   string         `help:"The legs of this call only." placeholder:"ID"`
	Since  *time.Duration `help:"Of the last so long; 24h, or with --follow from now on." placeholder:"TIME"`
	Limit  int            `help:"At most so many." default:"10000" placeholder:"N"`
	JSON   bool           `help:"One JSON object a line." name:"json"`
	Gaps   bool           `help:"The gaps instead: times in which a node was not heard."`
	Follow bool           `short:"f" help:"Show records as they are stored, until interrupted."`
}

func (c *cdrSearchCmd) Run(ctx context.Context, a *app) error {
	if c.Limit < 1 || c.Limit > cdrpipe.MaxLimit {
		return fmt.Errorf("--limit %d is not within 1 to %d: %w", c.Limit, cdrpipe.MaxLimit, bulkhead.Invalid)
	}
	store, err := c.ask(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	if c.Follow {
		return c.follow(ctx, a, store)
	}
	since := 24 * time.Hour
	if c.Since != nil {
		since = *c.Since
	}
	if c.Gaps {
		return showGaps(ctx, a.out, store, time.Now().Add(-since), c.Limit)
	}
	rows, err := store.Records(ctx, cdrpipe.Filter{
		Tenant: bulkhead.TenantID(c.Tenant), Kind: cdr.Kind(c.Kind), Call: c.Call, Since: time.Now().Add(-since), Limit: c.Limit,
	})
	if err != nil {
		return err
	}
	return c.show(a.out, rows, true)
}

func showGaps(ctx context.Context, out io.Writer, store cdrpipe.Warehouse, since time.Time, limit int) error {
	gaps, err := store.Gaps(ctx, since, limit)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	for _, g := range gaps {
		if err := enc.Encode(g); err != nil {
			return err
		}
	}
	return nil
}

// followEvery is how often a follower asks.
const followEvery = 500 * time.Millisecond

// follow shows what is stored from now on, or from so long ago.
func (c *cdrSearchCmd) follow(ctx context.Context, a *app, store cdrpipe.Warehouse) error {
	from := time.Now()
	if c.Since != nil {
		from = from.Add(-*c.Since)
	}
	e := cdrpipe.Export{
		Tenant: bulkhead.TenantID(c.Tenant), Kind: cdr.Kind(c.Kind), Limit: c.Limit,
		After: cdrpipe.Position{Seq: from.UnixMicro()},
	}
	header := true
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		rows, next, err := store.Export(ctx, e)
		if err != nil {
			return err
		}
		e.After = next
		shown := rows[:0]
		for _, r := range rows {
			if c.Call == "" || r.Call == c.Call {
				shown = append(shown, r)
			}
		}
		if len(shown) > 0 || header {
			if err := c.show(a.out, shown, header); err != nil {
				return err
			}
			header = false
		}
		if len(rows) == c.Limit {
			continue // there is more
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (c *cdrSearchCmd) show(out io.Writer, rows []cdrpipe.Row, header bool) error {
	if c.JSON {
		return cdrpipe.NewNDJSON(out).Write(rows)
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	if header {
		fmt.Fprintln(w, "start\tkind\ttenant\tpool\tnode\tsbc\tdir\tcaller\tcallee\tbilled\tsip\tq850\tcause\tsource")
	}
	for i := range rows {
		r := &rows[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.3f\t%d\t%d\t%s\t%s\n", r.Time().Format("2006-01-02T15:04:05.000Z"),
			printable(r.Kind), printable(r.Tenant), printable(r.Pool), printable(r.Node), printable(r.SBC), printable(r.Direction),
			printable(r.Caller), printable(r.Callee), r.Billed().Seconds(), r.SIPCode, r.Q850, printable(r.Cause), printable(r.Source))
	}
	return w.Flush()
}

type cdrRawCmd struct {
	cdrStore `embed:""`

	ID string `arg:"" help:"The record's id."`
}

func (c *cdrRawCmd) Run(ctx context.Context, a *app) error {
	var id cdr.ID
	if err := id.UnmarshalText([]byte(c.ID)); err != nil {
		return err
	}
	store, err := c.ask(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	events, err := store.Raw(ctx, id)
	if err != nil {
		return err
	}
	if len(events) == 0 {
		return fmt.Errorf("no raw event of record %s is kept: %w", id, bulkhead.NotFound)
	}
	for _, packed := range events {
		event, err := cdr.Unpack(packed)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(event)) {
			fmt.Fprintln(a.out, printable(strings.TrimRight(line, "\r\n")))
		}
	}
	return nil
}

// printable keeps what a caller sent from reaching the terminal as control
// sequences, or from breaking a column.
func printable[S ~string](s S) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, string(s))
}
