package configsvc

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

func (a *Admin) listTokens(r *http.Request, _ *principal) (*answer, error) {
	q, err := query(r, "limit", "cursor", "scope", "tenant")
	if err != nil {
		return nil, err
	}
	all, err := a.cfg.Tokens.List(r.Context())
	if err != nil {
		return nil, err
	}
	byID := map[string]*registry.Token{}
	for i := range all {
		byID[all[i].ID] = &all[i]
	}
	x, err := paginate(q, 0, sortedKeys(byID), func(id string) any {
		t := byID[id]
		if q.Has("scope") && q.Get("scope") != string(t.Scope) || q.Has("tenant") && q.Get("tenant") != string(t.Tenant) {
			return nil
		}
		return t
	})
	if x != nil {
		x.tagged = false // tokens belong to no revision
	}
	return x, err
}

// tokenBody asks for a token.
type tokenBody struct {
	Scope  string `json:"scope"`
	Tenant string `json:"tenant"`
	Node   string `json:"node"`
	SBC    string `json:"sbc"`
	Note   string `json:"note"`
}

const maxNote = 256 // bytes, as registry.Token has it

// NewToken checks the scope, names and note of a token that is asked for
// against the state, and fills in the cell of a node or an SBC. Its errors are
// bulkhead.FieldErrors.
func NewToken(s bulkhead.State, ask registry.Token) (registry.Token, error) {
	t := registry.Token{Scope: ask.Scope, Tenant: ask.Tenant, Node: ask.Node, SBC: ask.SBC, Note: ask.Note}
	wrong := func(field, msg string) (registry.Token, error) {
		return registry.Token{}, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: msg}
	}
	scopes := []registry.Scope{registry.ScopeAdmin, registry.ScopeRead, registry.ScopeTenant, registry.ScopeNode, registry.ScopeSBC}
	switch {
	case !slices.Contains(scopes, t.Scope):
		return wrong("scope", "is none of admin, read, tenant, node and sbc")
	case t.Scope != registry.ScopeTenant && t.Tenant != "":
		return wrong("tenant", "belongs to a token of scope tenant only")
	case t.Scope != registry.ScopeNode && t.Node != "":
		return wrong("node", "belongs to a token of scope node only")
	case t.Scope != registry.ScopeSBC && t.SBC != "":
		return wrong("sbc", "belongs to a token of scope sbc only")
	case t.Scope == registry.ScopeTenant && s.Tenants[t.Tenant] == nil:
		return wrong("tenant", "is no tenant of the registry")
	case t.Scope == registry.ScopeNode && s.Nodes[t.Node] == nil:
		return wrong("node", "is no node of the registry")
	case t.Scope == registry.ScopeSBC && s.SBCs[t.SBC] == nil:
		return wrong("sbc", "is no SBC of the registry")
	case len(t.Note) > maxNote || strings.ContainsFunc(t.Note, unprintable):
		return wrong("note", "is over 256 bytes long or holds what cannot be printed")
	}
	switch t.Scope {
	case registry.ScopeNode:
		if p := s.Pools[s.Nodes[t.Node].Pool]; p != nil {
			t.Cell = p.Cell
		}
	case registry.ScopeSBC:
		t.Cell = s.SBCs[t.SBC].Cell
	}
	return t, nil
}

func (a *Admin) createToken(r *http.Request, _ *principal) (*answer, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	var b tokenBody
	if err := readJSON(r, maxSmallBody, &b, false); err != nil {
		return nil, err
	}
	head, err := a.cfg.Store.Head(r.Context())
	if err != nil {
		return nil, err
	}
	t, err := NewToken(head, registry.Token{
		Scope: registry.Scope(b.Scope), Tenant: bulkhead.TenantID(b.Tenant), Node: bulkhead.NodeID(b.Node), SBC: bulkhead.SBCID(b.SBC), Note: b.Note,
	})
	if err != nil {
		var issues []issue
		for _, fe := range bulkhead.FieldErrors(err) {
			issues = append(issues, issue{Pointer: steps(fe.Field), Detail: fe.Msg})
		}
		return nil, errIssues(http.StatusUnprocessableEntity, issues)
	}
	secret, made, err := a.cfg.Tokens.Create(context.WithoutCancel(r.Context()), t)
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusCreated, location: "/v1/tokens/" + url.PathEscape(made.ID), note: "made token " + made.ID, body: struct {
		Secret string         `json:"secret"` // shown here and never again
		Token  registry.Token `json:"token"`
	}{secret, made}}, nil
}

func (a *Admin) revokeToken(r *http.Request, _ *principal) (*answer, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	id := param(r, "token")
	if len(id) > maxSecret {
		return nil, errHidden()
	}
	if err := a.cfg.Tokens.Revoke(context.WithoutCancel(r.Context()), id); err != nil {
		return nil, err
	}
	return &answer{status: http.StatusNoContent}, nil
}

// listAudit lists the audit log, oldest first.
func (a *Admin) listAudit(r *http.Request, _ *principal) (*answer, error) {
	q, err := query(r, "after", "limit")
	if err != nil {
		return nil, err
	}
	after, err := number(q, "after", 0, 0, 1<<62)
	if err != nil {
		return nil, err
	}
	limit, err := number(q, "limit", defaultPage, 1, maxPage)
	if err != nil {
		return nil, err
	}
	entries, err := a.cfg.Audit.Entries(r.Context(), after, int(limit))
	if err != nil {
		return nil, err
	}
	out := struct {
		Items []registry.AuditEntry `json:"items"`
		Next  int64                 `json:"next"` // the "after" of the next page, which may still be empty
	}{Items: append([]registry.AuditEntry{}, entries...), Next: after}
	if len(entries) > 0 {
		out.Next = entries[len(entries)-1].Number
	}
	return ok(out), nil
}
