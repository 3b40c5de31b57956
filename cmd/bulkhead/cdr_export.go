package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
)

type cdrExportCmd struct {
	cdrStore `embed:""`

	Format     string `help:"ndjson or csv." enum:"ndjson,csv" default:"ndjson"`
	After      string `help:"Go on behind this cursor, which the export before printed." placeholder:"CURSOR"`
	CursorFile string `help:"Go on behind the cursor in this file, and write the new one there; it is made if it is missing." type:"path" placeholder:"FILE"`
	Tenant     string `help:"Of this tenant only." placeholder:"ID"`
	Kind       string `help:"leg, refused or failover." enum:"leg,refused,failover," default:""`
	Limit      int    `help:"At most so many; 0: all that there are." default:"0" placeholder:"N"`
	NoHeader   bool   `help:"CSV without the line of column names."`
	Follow     bool   `short:"f" help:"Go on with records as they are stored, until interrupted."`
}

func (c *cdrExportCmd) Run(ctx context.Context, a *app) error {
	if c.Limit < 0 {
		return fmt.Errorf("--limit %d is below zero: %w", c.Limit, bulkhead.Invalid)
	}
	after, err := c.cursor()
	if err != nil {
		return err
	}
	store, err := c.ask(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	to := cdrpipe.NewNDJSON(a.out)
	if c.Format == "csv" {
		to = cdrpipe.NewCSV(a.out, !c.NoHeader)
	}
	e := cdrpipe.Export{Tenant: bulkhead.TenantID(c.Tenant), Kind: cdr.Kind(c.Kind), After: after}
	err = c.pages(ctx, store, &e, to)
	if e.After != after || err == nil {
		// For who takes the output apart, and even if it ended early: all
		// before it has been written.
		fmt.Fprintln(a.err, "next cursor:", e.After)
	}
	return err
}

func (c *cdrExportCmd) cursor() (cdrpipe.Position, error) {
	if c.CursorFile == "" {
		return cdrpipe.ParsePosition(c.After)
	}
	if c.After != "" {
		return cdrpipe.Position{}, fmt.Errorf("--after and --cursor-file exclude each other: %w", bulkhead.Invalid)
	}
	b, err := os.ReadFile(c.CursorFile)
	if errors.Is(err, fs.ErrNotExist) {
		return cdrpipe.Position{}, nil
	}
	if err != nil {
		return cdrpipe.Position{}, fmt.Errorf("read the cursor: %w", err)
	}
	p, err := cdrpipe.ParsePosition(strings.TrimSpace(string(b)))
	if err != nil {
		return p, fmt.Errorf("cursor file %s: %w", c.CursorFile, err)
	}
	return p, nil
}

// pages writes page by page, and each page's cursor behind the page: what ends
// in between is written again, never left out.
func (c *cdrExportCmd) pages(ctx context.Context, store cdrpipe.Warehouse, e *cdrpipe.Export, to cdrpipe.RowWriter) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	first := true
	for left := c.Limit; ; {
		if e.Limit = cdrpipe.MaxLimit; c.Limit > 0 {
			e.Limit = min(left, cdrpipe.MaxLimit)
		}
		rows, next, err := store.Export(ctx, *e)
		if err != nil {
			return err
		}
		if len(rows) > 0 || first { // the first writes a CSV's header in any case
			if err := to.Write(rows); err != nil {
				return fmt.Errorf("write records: %w", err)
			}
			first = false
		}
		e.After = next
		if c.CursorFile != "" && len(rows) > 0 {
			if err := renameio.WriteFile(c.CursorFile, []byte(next.String()+"\n"), 0o640); err != nil {
				return fmt.Errorf("write the cursor: %w", err)
			}
		}
		left -= len(rows)
		full := len(rows) == e.Limit
		switch {
		case c.Limit > 0 && left == 0, !full && !c.Follow:
			return nil
		case full:
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
