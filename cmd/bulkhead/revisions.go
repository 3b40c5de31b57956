package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// changeTries is how often a change is made anew because somebody else committed.
const changeTries = 20

// changeRegistry commits what plan makes of the head, again on a newer one
// when somebody else commits first. It returns the revision, and the state
// before it; without a change, the head's number.
func changeRegistry(ctx context.Context, store registry.Store, why string, dry bool, plan func(bulkhead.State) (bulkhead.Change, error)) (bulkhead.Revision, bulkhead.State, error) {
	for try := 1; ; try++ {
		head, err := store.Head(ctx)
		if err != nil {
			return bulkhead.Revision{}, head, err
		}
		change, err := plan(head)
		if err != nil || change.IsZero() {
			return bulkhead.Revision{Number: head.Revision}, head, err
		}
		r := bulkhead.Revision{Author: author(), Message: why, Change: change}
		if dry {
			r.Number, r.Parent = head.Revision+1, head.Revision
			return r, head, head.Apply(&change).Validate()
		}
		r, err = store.Commit(ctx, head.Revision, r)
		if !errors.Is(err, bulkhead.Conflict) || try == changeTries {
			return r, head, err
		}
	}
}

type logCmd struct {
	toolFlags `embed:""`

	Limit int  `short:"n" help:"The newest so many." default:"20" placeholder:"N"`
	JSON  bool `help:"One JSON object a line, with the change. It holds digest secrets." name:"json"`
}

func (c *logCmd) Run(ctx context.Context, a *app) error {
	store, err := c.registry(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	head, err := store.Head(ctx)
	if err != nil {
		return err
	}
	last := head.Revision
	next := bulkhead.RevisionNumber(1)
	if n := bulkhead.RevisionNumber(max(c.Limit, 0)); last > n { //nolint:gosec // not negative
		next = last - n + 1
	}
	var rows []string // newest last
	for next <= last {
		some, err := store.Log(ctx, next, int(last-next)+1) //nolint:gosec // at most the limit
		if err != nil {
			return err
		}
		if len(some) == 0 {
			break
		}
		for i := range some {
			row, err := c.row(&some[i])
			if err != nil {
				return err
			}
			rows = append(rows, row)
		}
		next = some[len(some)-1].Number + 1
	}
	slices.Reverse(rows)
	if c.JSON {
		for _, row := range rows {
			fmt.Fprintln(a.out, row)
		}
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "revision\ttime\tauthor\tobjects\tmessage")
	for _, row := range rows {
		fmt.Fprintln(w, row)
	}
	return w.Flush()
}

func (c *logCmd) row(r *bulkhead.Revision) (string, error) {
	if c.JSON {
		text, err := json.Marshal(r)
		return string(text), err
	}
	d := &r.Change.Delete
	n := len(r.Change.Cells) + len(r.Change.Pools) + len(r.Change.Nodes) + len(r.Change.SBCs) + len(r.Change.Tenants) +
		len(d.Cells) + len(d.Pools) + len(d.Nodes) + len(d.SBCs) + len(d.Tenants)
	return fmt.Sprintf("%d\t%s\t%s\t%d\t%s", r.Number, r.Time.UTC().Format("2006-01-02T15:04:05Z"), printable(r.Author), n, printable(r.Message)), nil
}

type showCmd struct {
	Revision  bulkhead.RevisionNumber `arg:"" help:"Number of the revision."`
	toolFlags `embed:""`
}

func (c *showCmd) Run(ctx context.Context, a *app) error {
	store, err := c.registry(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	some, err := store.Log(ctx, c.Revision, 1)
	if err != nil {
		return err
	}
	if c.Revision == 0 || len(some) == 0 || some[0].Number != c.Revision {
		return fmt.Errorf("revision %d: %w: see bulkhead log", c.Revision, bulkhead.NotFound)
	}
	r := &some[0]
	before, err := store.State(ctx, r.Parent)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "revision %d\nparent   %d\ntime     %s\nauthor   %s\nmessage  %s\n", r.Number, r.Parent, r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), printable(r.Author), printable(r.Message))
	printDifferences(a.out, before, &r.Change)
	return nil
}

type diffCmd struct {
	From      bulkhead.RevisionNumber `arg:"" help:"Number of a revision; 0 is the empty state."`
	To        bulkhead.RevisionNumber `arg:"" help:"Number of a revision."`
	toolFlags `embed:""`
}

func (c *diffCmd) Run(ctx context.Context, a *app) error {
	store, err := c.registry(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	from, err := store.State(ctx, c.From)
	if err != nil {
		return err
	}
	to, err := store.State(ctx, c.To)
	if err != nil {
		return err
	}
	change := from.Diff(to)
	printDifferences(a.out, from, &change)
	return nil
}

type rollbackCmd struct {
	Revision  bulkhead.RevisionNumber `arg:"" help:"Number of the revision whose state shall be the newest."`
	toolFlags `embed:""`

	DryRun  bool   `help:"Show what would change, and change nothing."`
	Message string `short:"m" help:"Why, for the log of revisions." placeholder:"TEXT"`
}

func (c *rollbackCmd) Run(ctx context.Context, a *app) error {
	store, err := c.registry(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	old, err := store.State(ctx, c.Revision)
	if err != nil {
		return err
	}
	why := c.Message
	if why == "" {
		why = fmt.Sprintf("rollback to revision %d", c.Revision)
	}
	r, head, err := changeRegistry(ctx, store, why, c.DryRun, func(head bulkhead.State) (bulkhead.Change, error) { return head.Diff(old), nil })
	if err != nil {
		return err
	}
	printDifferences(a.out, head, &r.Change)
	switch {
	case r.Change.IsZero():
		fmt.Fprintf(a.out, "nothing to do: revision %d says the same\n", r.Number)
	case c.DryRun:
		fmt.Fprintf(a.out, "dry run: nothing was changed; it would become revision %d\n", r.Number)
	default:
		fmt.Fprintf(a.out, "revision %d\n", r.Number)
	}
	return nil
}

// maxDifferences is how many lines a diff has at most.
const maxDifferences = 100_000

// printDifferences prints what a change does to a state, a line each: + for
// what is new, - for what goes, ~ for what has another value.
func printDifferences(w io.Writer, from bulkhead.State, c *bulkhead.Change) {
	list, more := configsvc.Differences(from, c, maxDifferences)
	for _, d := range list {
		sign := map[string]string{"add": "+", "remove": "-", "change": "~"}[d.Action]
		line := sign + " " + d.Object
		if d.Path != "" {
			line += " " + d.Path
		}
		if d.From != nil {
			line += " " + compact(d.From)
		}
		if d.From != nil && d.To != nil {
			line += " ->"
		}
		if d.To != nil {
			line += " " + compact(d.To)
		}
		fmt.Fprintln(w, printable(line))
	}
	if more {
		fmt.Fprintf(w, "and more: %d are shown\n", len(list))
	}
}

func compact(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}
