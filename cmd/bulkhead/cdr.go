package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
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
	Data   string        `help:"Folder that holds the CDR store." default:"data" type:"path" placeholder:"DIR"`
	Tenant string        `help:"Of this tenant only." placeholder:"ID"`
	Kind   string        `help:"leg, refused or failover." enum:"leg,refused,failover," default:""`
	Call   string        `help:"The legs of this call only." placeholder:"ID"`
	Since  time.Duration `help:"Of the last so long." default:"24h" placeholder:"TIME"`
	Limit  int           `help:"At most so many." default:"10000" placeholder:"N"`
	JSON   bool          `help:"One JSON object a line." name:"json"`
	Gaps   bool          `help:"The gaps instead: times in which a node was not heard."`
}

func (c *cdrCmd) Run(ctx context.Context, a *app) error {
	data := dataDir(c.Data)
	if _, err := os.Stat(data.cdrs()); err != nil {
		return fmt.Errorf("there is no CDR store in %s: %w; name its folder with --data", data, bulkhead.NotFound)
	}
	if c.Limit < 1 || c.Limit > cdrpipe.MaxLimit {
		return fmt.Errorf("--limit %d is not within 1 to %d: %w", c.Limit, cdrpipe.MaxLimit, bulkhead.Invalid)
	}
	store, err := cdrpipe.OpenSQLite(ctx, data.cdrs())
	if err != nil {
		return err
	}
	defer store.Close()
	since := time.Now().Add(-c.Since)
	enc := json.NewEncoder(a.out)
	if c.Gaps {
		gaps, err := store.Gaps(ctx, since, c.Limit)
		if err != nil {
			return err
		}
		for _, g := range gaps {
			if err := enc.Encode(g); err != nil {
				return err
			}
		}
		return nil
	}
	rows, err := store.Records(ctx, cdrpipe.Filter{
		Tenant: bulkhead.TenantID(c.Tenant), Kind: cdr.Kind(c.Kind), Call: c.Call, Since: since, Limit: c.Limit,
	})
	if err != nil {
		return err
	}
	if c.JSON {
		for i := range rows {
			if err := enc.Encode(&rows[i]); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "start\tkind\ttenant\tpool\tnode\tsbc\tdir\tcaller\tcallee\tbilled\tsip\tq850\tcause\tsource")
	for i := range rows {
		r := &rows[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.3f\t%d\t%d\t%s\t%s\n", r.Time().Format("2006-01-02T15:04:05.000Z"),
			r.Kind, r.Tenant, r.Pool, r.Node, r.SBC, r.Direction, printable(r.Caller), printable(r.Callee), r.Billed().Seconds(), r.SIPCode, r.Q850, printable(r.Cause), r.Source)
	}
	return w.Flush()
}

// printable keeps what a caller sent from reaching the terminal as control
// sequences, or from breaking a column.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
