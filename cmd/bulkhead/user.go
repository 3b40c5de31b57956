package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/term"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
)

type userCmd struct {
	Passwd userPasswdCmd `cmd:"" help:"Set a user's password. Only its digest is kept."`
}

type userPasswdCmd struct {
	Tenant    string `arg:"" help:"Id of the tenant."`
	Extension string `arg:"" help:"Extension of the user."`
	toolFlags `embed:""`

	From    string `help:"File whose first line is the password. Without it, it is asked for, or read from standard input when that is no terminal." placeholder:"FILE"`
	Message string `short:"m" help:"Why, for the log of revisions." placeholder:"TEXT"`
}

func (c *userPasswdCmd) Run(ctx context.Context, a *app) error {
	store, err := c.registry(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	// Before it is asked for: a wrong name is to be found out first.
	head, err := store.Head(ctx)
	if err == nil {
		_, err = c.plan(head, "a password")
	}
	if err != nil {
		return err
	}
	password, err := c.password(a)
	if err != nil {
		return err
	}
	why := c.Message
	if why == "" {
		why = fmt.Sprintf("password of user %s of tenant %s", c.Extension, c.Tenant)
	}
	r, _, err := changeRegistry(ctx, store, why, false, func(head bulkhead.State) (bulkhead.Change, error) { return c.plan(head, password) })
	if err != nil {
		return err
	}
	if r.Change.IsZero() {
		fmt.Fprintf(a.out, "nothing to do: it is the password already\n")
		return nil
	}
	fmt.Fprintf(a.out, "revision %d\n", r.Number)
	return nil
}

func (c *userPasswdCmd) plan(head bulkhead.State, password string) (bulkhead.Change, error) {
	old := head.Tenants[bulkhead.TenantID(c.Tenant)]
	if old == nil {
		return bulkhead.Change{}, fmt.Errorf("tenant %q: %w", c.Tenant, bulkhead.NotFound)
	}
	t := *old
	t.Users = slices.Clone(old.Users)
	u := t.User(c.Extension)
	if u == nil {
		return bulkhead.Change{}, fmt.Errorf("user %q of tenant %q: %w", c.Extension, c.Tenant, bulkhead.NotFound)
	}
	ha1, err := configsvc.HA1(u.Extension, t.Realm(), password)
	if err != nil || ha1 == u.HA1 {
		return bulkhead.Change{}, err
	}
	u.HA1 = ha1
	return bulkhead.Change{Tenants: []bulkhead.Tenant{t}}, nil
}

// password gets the password: from a file, or from whoever sits there, twice.
func (c *userPasswdCmd) password(a *app) (string, error) {
	if c.From != "" {
		f, err := os.Open(c.From)
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		defer f.Close()
		return firstLine(f)
	}
	fd := int(os.Stdin.Fd()) //nolint:gosec // a small number
	if !term.IsTerminal(fd) {
		return firstLine(os.Stdin)
	}
	var typed [2]string
	for i, prompt := range []string{"password: ", "once more: "} {
		fmt.Fprint(a.err, prompt)
		b, err := term.ReadPassword(fd)
		fmt.Fprintln(a.err)
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		typed[i] = string(b)
	}
	if typed[0] != typed[1] {
		return "", fmt.Errorf("the two passwords differ, nothing was changed: %w", bulkhead.Invalid)
	}
	return typed[0], nil
}

// firstLine reads a line without its end.
func firstLine(r io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(r, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"), nil
}
