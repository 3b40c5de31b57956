package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/registry"
)

type tokenCmd struct {
	Create tokenCreateCmd `cmd:"" help:"Make a token and print its secret, once."`
	List   tokenListCmd   `cmd:"" help:"List tokens. No secret is shown."`
	Revoke tokenRevokeCmd `cmd:"" help:"Make a token worthless, at once and for good."`
}

type tokenCreateCmd struct {
	Scope     string `help:"admin, read, tenant, node or sbc." enum:"admin,read,tenant,node,sbc" required:""`
	Tenant    string `help:"Of scope tenant: which." placeholder:"ID"`
	Node      string `help:"Of scope node: which." placeholder:"ID"`
	SBC       string `help:"Of scope sbc: which." placeholder:"ID"`
	Note      string `help:"Who has it, and what for." placeholder:"TEXT"`
	toolFlags `embed:""`
}

func (c *tokenCreateCmd) Run(ctx context.Context, a *app) error {
	store, err := c.registry(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	head, err := store.Head(ctx)
	if err != nil {
		return err
	}
	t, err := configsvc.NewToken(head, registry.Token{
		Scope: registry.Scope(c.Scope), Tenant: bulkhead.TenantID(c.Tenant), Node: bulkhead.NodeID(c.Node), SBC: bulkhead.SBCID(c.SBC), Note: c.Note,
	})
	if err != nil {
		return err
	}
	secret, t, err := store.Tokens().Create(ctx, t)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.err, "token %s; its secret is shown here and never again:\n", t.ID)
	fmt.Fprintln(a.out, secret)
	return auditCommand(ctx, store, "token create", t.ID)
}

type tokenListCmd struct {
	toolFlags `embed:""`
}

func (c *tokenListCmd) Run(ctx context.Context, a *app) error {
	store, err := c.registry(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	all, err := store.Tokens().List(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "id\tscope\tof\tcreated\tlast used\trevoked\tnote")
	for _, t := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", t.ID, t.Scope, string(t.Tenant)+string(t.Node)+string(t.SBC), when(t.Created), when(t.LastUsed), when(t.Revoked), printable(t.Note))
	}
	return w.Flush()
}

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

type tokenRevokeCmd struct {
	ID        string `arg:"" help:"Id of the token."`
	toolFlags `embed:""`
}

func (c *tokenRevokeCmd) Run(ctx context.Context, a *app) error {
	store, err := c.registry(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := store.Tokens().Revoke(ctx, c.ID); err != nil {
		return err
	}
	fmt.Fprintln(a.out, "revoked")
	return auditCommand(ctx, store, "token revoke", c.ID)
}

// auditCommand puts what the command line did to tokens, which no revision
// tells, where the API's writes are.
func auditCommand(ctx context.Context, store backend, command, id string) error {
	err := store.Audit().Append(ctx, registry.AuditEntry{Token: author(), Method: "CLI", Path: command, Detail: "token " + id})
	if err != nil {
		return fmt.Errorf("it is done, but not in the audit log: %w", err)
	}
	return nil
}
