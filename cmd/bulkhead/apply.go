package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/user"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

type applyCmd struct {
	toolFlags `embed:""`

	File    string `short:"f" help:"YAML file; - reads standard input." required:"" placeholder:"FILE"`
	Prune   bool   `help:"Also delete the objects of each listed kind that the file does not name."`
	DryRun  bool   `help:"Show what would change, and change nothing."`
	Message string `short:"m" help:"Why, for the log of revisions." placeholder:"TEXT"`
}

func (c *applyCmd) Run(ctx context.Context, a *app) error {
	f, err := c.read()
	if err != nil {
		return err
	}
	store, err := c.make(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	r, err := f.Apply(ctx, store, registry.ApplyOptions{Author: author(), Message: c.Message, Prune: c.Prune, DryRun: c.DryRun})
	if err != nil {
		return err
	}
	printChange(a.out, &r.Change)
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

func (c *applyCmd) read() (*registry.File, error) {
	if c.File != "-" {
		return registry.ReadFile(c.File)
	}
	// One byte over what a file may have, so that ParseFile sees and says it.
	b, err := io.ReadAll(io.LimitReader(os.Stdin, registry.MaxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	return registry.ParseFile("standard input", b)
}

func printChange(w io.Writer, c *bulkhead.Change) {
	put, del := func(kind, id string) { fmt.Fprintf(w, "put %s %s\n", kind, id) }, func(kind, id string) { fmt.Fprintf(w, "delete %s %s\n", kind, id) }
	for i := range c.Cells {
		put("cell", string(c.Cells[i].ID))
	}
	for i := range c.Pools {
		put("pool", string(c.Pools[i].ID))
	}
	for i := range c.Nodes {
		put("node", string(c.Nodes[i].ID))
	}
	for i := range c.SBCs {
		put("sbc", string(c.SBCs[i].ID))
	}
	for i := range c.Tenants {
		put("tenant", string(c.Tenants[i].ID))
	}
	each(c.Delete.Tenants, "tenant", del)
	each(c.Delete.SBCs, "sbc", del)
	each(c.Delete.Nodes, "node", del)
	each(c.Delete.Pools, "pool", del)
	each(c.Delete.Cells, "cell", del)
}

func each[ID ~string](ids []ID, kind string, f func(kind, id string)) {
	for _, id := range ids {
		f(kind, string(id))
	}
}

// author names who runs the command, for the log of revisions.
func author() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}

type exportCmd struct {
	toolFlags `embed:""`

	Out string `short:"o" help:"File to write, readable by its owner alone; - is standard output." default:"-" placeholder:"FILE"`
}

func (c *exportCmd) Run(ctx context.Context, a *app) error {
	head, err := c.head(ctx)
	if err != nil {
		return err
	}
	if c.Out != "-" {
		return registry.ExportFile(c.Out, head)
	}
	return registry.Export(a.out, head)
}
