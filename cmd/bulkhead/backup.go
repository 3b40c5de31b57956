package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

type backupCmd struct {
	toolFlags `embed:""`

	Out   string `short:"o" help:"File to write, readable by its owner alone: it holds digest secrets. - is standard output." required:"" placeholder:"FILE"`
	Audit bool   `help:"With the audit log."`
}

func (c *backupCmd) Run(ctx context.Context, a *app) error {
	store, err := c.registry(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	o := registry.BackupOptions{Audit: c.Audit}
	if c.Out == "-" {
		n, err := registry.WriteBackup(ctx, store, a.out, o)
		if err == nil {
			fmt.Fprintf(a.err, "revision %d\n", n)
		}
		return err
	}
	// The file is there whole or not at all.
	f, err := renameio.NewPendingFile(c.Out, renameio.WithStaticPermissions(0o600))
	if err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	defer func() { _ = f.Cleanup() }() // does nothing to a file that was put in place
	n, err := registry.WriteBackup(ctx, store, f, o)
	if err != nil {
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	fmt.Fprintf(a.out, "revision %d is in %s\n", n, c.Out)
	return nil
}

type restoreCmd struct {
	toolFlags `embed:""`

	File    string                  `arg:"" help:"The backup; - reads standard input." placeholder:"FILE"`
	DryRun  bool                    `help:"Show what would change, and change nothing."`
	Base    bulkhead.RevisionNumber `help:"Only if this is still the newest revision: the one that a dry run was shown for." placeholder:"N"`
	Tokens  bool                    `help:"With the tokens that are not there."`
	Audit   bool                    `help:"With the audit log, where there is none yet."`
	Message string                  `short:"m" help:"Why, for the log of revisions." placeholder:"TEXT"`
}

func (c *restoreCmd) Run(ctx context.Context, a *app) error {
	b, err := c.read()
	if err != nil {
		return err
	}
	store, err := c.make(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	before, err := store.Head(ctx)
	if err != nil {
		return err
	}
	why := c.Message
	if why == "" {
		why = fmt.Sprintf("restore of revision %d, saved %s", b.State.Revision, when(b.Time))
	}
	if c.Base == 0 {
		c.Base = before.Revision // so that what is printed is what was done
	}
	done, err := b.Restore(ctx, store, registry.RestoreOptions{
		Author: author(), Message: why, DryRun: c.DryRun, Base: c.Base, Tokens: c.Tokens, Audit: c.Audit,
	})
	// An entry would be in the way of an audit log that is still to be resumed.
	if !c.DryRun && (err == nil && (c.Tokens || c.Audit) || len(done.Tokens) > 0 && !c.Audit) {
		err = errors.Join(err, auditRestore(ctx, store, b, &done))
	}
	if err != nil {
		return err
	}
	r := &done.Revision
	if 0 < before.Revision && r.Number < b.State.Revision {
		fmt.Fprintf(a.err, "revision %d is below the backup's %d: parts that have a higher one do not take it; if this registry was emptied, empty it again and restore into that\n", r.Number, b.State.Revision)
	}
	printDifferences(a.out, before, &r.Change)
	for i := range done.Tokens {
		fmt.Fprintf(a.out, "+ token %s of scope %s\n", done.Tokens[i].ID, done.Tokens[i].Scope)
	}
	if done.Entries > 0 {
		fmt.Fprintf(a.out, "+ %d entries of the audit log\n", done.Entries)
	}
	switch {
	case r.Change.IsZero():
		fmt.Fprintf(a.out, "nothing to do: revision %d says the same\n", r.Number)
	case c.DryRun:
		fmt.Fprintf(a.out, "dry run: nothing was changed; it would become revision %d. Do it with --base %d\n", r.Number, r.Parent)
	default:
		fmt.Fprintf(a.out, "revision %d\n", r.Number)
	}
	return nil
}

// auditRestore notes which tokens are good again.
func auditRestore(ctx context.Context, store backend, b *registry.Backup, done *registry.Restored) error {
	var ids []string
	for i := range done.Tokens {
		ids = append(ids, done.Tokens[i].ID)
	}
	err := store.Audit().Append(ctx, registry.AuditEntry{
		Token: author(), Method: "CLI", Path: "restore", Revision: done.Revision.Number,
		Detail: fmt.Sprintf("of revision %d, saved %s: %d entries of the audit log, %d tokens: %s", b.State.Revision, when(b.Time), done.Entries, len(ids), strings.Join(ids, " ")),
	})
	if err != nil {
		return fmt.Errorf("the restore is done, but not in the audit log: %w", err)
	}
	return nil
}

func (c *restoreCmd) read() (*registry.Backup, error) {
	var from io.Reader = os.Stdin
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return nil, fmt.Errorf("read the backup: %w: %w", bulkhead.Invalid, err)
		}
		defer f.Close()
		from = f
	}
	return registry.ReadBackup(from)
}
