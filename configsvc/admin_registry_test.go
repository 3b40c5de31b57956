package configsvc

import (
	"net/http"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead/registry"
)

var (
	_ Tokens  = (*registry.Tokens)(nil)
	_ Audit   = (*registry.Audit)(nil)
	_ History = (*registry.SQLite)(nil)
)

// TestWithTheRegistry: tokens and audit log as the registry keeps them.
func TestWithTheRegistry(t *testing.T) {
	x := newAdmin(t)
	store, ok := x.store.(*registry.SQLite)
	if !ok {
		t.Fatal("the store of the tests is another one")
	}
	x.cfg.Tokens, x.cfg.Audit = store.Tokens(), store.Audit()
	g := x.want(http.StatusCreated, x.send(http.MethodPost, "/v1/tokens", "bootstrap", `{"scope": "tenant", "tenant": "acme"}`))
	x.secret["made"], _ = g.json(t)["secret"].(string)
	x.want(http.StatusOK, x.send(http.MethodPatch, "/v1/tenants/acme/users/1001", "made", `{"password": "another"}`))
	x.want(http.StatusNotFound, x.send(http.MethodGet, "/v1/tenants/bravo", "made", ""))
	list := x.want(http.StatusOK, x.send(http.MethodGet, "/v1/tokens", "bootstrap", ""))
	if strings.Contains(list.body, x.secret["made"]) || !strings.Contains(list.body, "last_used") {
		t.Errorf("%s", list.body)
	}
	x.want(http.StatusNoContent, x.send(http.MethodDelete, g.header.Get("Location"), "bootstrap", ""))
	x.want(http.StatusUnauthorized, x.send(http.MethodGet, "/v1/tenants/acme", "made", ""))
	x.want(http.StatusNotFound, x.send(http.MethodDelete, "/v1/tokens/none", "bootstrap", ""))
	audit := x.want(http.StatusOK, x.send(http.MethodGet, "/v1/audit", "bootstrap", ""))
	if items, _ := audit.json(t)["items"].([]any); len(items) != 4 {
		t.Errorf("%s", audit.body)
	}
	page := x.want(http.StatusOK, x.send(http.MethodGet, "/v1/audit?after=3", "bootstrap", ""))
	if m := page.json(t); m["next"] != 4.0 {
		t.Errorf("%s", page.body)
	}
}
