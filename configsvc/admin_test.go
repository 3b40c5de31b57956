package configsvc

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

func TestObjects(t *testing.T) {
	x := newAdmin(t)
	for _, c := range []struct{ path, put, patch, want string }{
		{"/v1/cells/c2", `{"max_tenants": 7}`, `{"max_tenants": null}`, `{"id":"c2"}`},
		{"/v1/pools/p2", `{"cell": "c1", "profile": "ai", "placement": "spread"}`, `{"profile": "dialer"}`, `{"id":"p2","cell":"c1","profile":"dialer","placement":"spread"}`},
		{"/v1/nodes/fs9", `{"id": "fs9", "pool": "p1", "sip": "127.0.0.7:5080"}`, `{"drain": true}`, `{"id":"fs9","pool":"p1","sip":"127.0.0.7:5080","drain":true}`},
		{"/v1/sbcs/sbc9", `{"cell": "c1", "sip": "127.0.0.8:5060", "names": ["a.example", "b.example"]}`, `{"names": ["c.example"]}`, `{"id":"sbc9","cell":"c1","sip":"127.0.0.8:5060","names":["c.example"]}`},
		{"/v1/tenants/acme/trunks/second", `{"host": "192.0.2.9", "port": 5060, "prefix": "00"}`, `{"prefix": "0"}`, `{"name":"second","host":"192.0.2.9","port":5060,"prefix":"0"}`},
		{"/v1/tenants/acme/numbers/4930102", `{"user": "1001"}`, `{"user": "1002"}`, `{"number":"4930102","user":"1002"}`},
		{"/v1/tenants/delta", `{"cell": "c1", "profile": "standard", "domains": ["delta.example"], "limits": {"calls": 5, "calls_per_second": 2}}`, `{"limits": {"calls": 9}, "name": "Delta"}`,
			`{"id":"delta","name":"Delta","cell":"c1","profile":"standard","domains":["delta.example"],"limits":{"calls":9,"calls_per_second":2}}`},
	} {
		t.Run(c.path, func(t *testing.T) {
			made := x.want(http.StatusCreated, x.send(http.MethodPut, c.path, "admin", c.put))
			if loc := made.header.Get("Location"); loc != c.path {
				t.Errorf("Location %q", loc)
			}
			x.want(http.StatusOK, x.send(http.MethodPut, c.path, "admin", c.put))
			if again := x.head().Revision; etag(again) != made.header.Get("ETag") {
				t.Errorf("the same object again made revision %d after %s", again, made.header.Get("ETag"))
			}
			x.want(http.StatusOK, x.send(http.MethodPatch, c.path, "admin", c.patch, "Content-Type", "application/merge-patch+json"))
			got := x.want(http.StatusOK, x.send(http.MethodGet, c.path, "read", ""))
			if strings.TrimSpace(got.body) != c.want {
				t.Errorf("got  %swant %s", got.body, c.want)
			}
			x.want(http.StatusNotModified, x.send(http.MethodGet, c.path, "read", "", "If-None-Match", got.header.Get("ETag")))
			x.want(http.StatusPreconditionFailed, x.send(http.MethodPut, c.path, "admin", c.put, "If-None-Match", "*"))
			x.want(http.StatusForbidden, x.send(http.MethodDelete, c.path, "read", ""))
			x.want(http.StatusNoContent, x.send(http.MethodDelete, c.path, "admin", ""))
			x.want(http.StatusNotFound, x.send(http.MethodDelete, c.path, "admin", ""))
			x.want(http.StatusNotFound, x.send(http.MethodPatch, c.path, "admin", `{}`))
			x.want(http.StatusNotFound, x.send(http.MethodGet, c.path, "admin", ""))
		})
	}
}

func TestUserPasswords(t *testing.T) {
	x := newAdmin(t)
	const ha1 = "c0bf62e9adcfd4ce0fdf6d4d7a8fbd4a"
	user := func() *bulkhead.User { return x.head().Tenants["acme"].User("1001") }
	old := user().HA1
	want, err := HA1("1001", "acme.example", "acme-secret")
	if err != nil || old != want {
		t.Fatalf("HA1 %s, want %s: %v", old, want, err)
	}
	// Without a password the secret stays, be it PUT or PATCH.
	x.want(http.StatusOK, x.send(http.MethodPut, "/v1/tenants/acme/users/1001", "acme", `{"name": "Ann"}`))
	x.want(http.StatusOK, x.send(http.MethodPatch, "/v1/tenants/acme", "admin", `{"name": "New"}`))
	if user().HA1 != old || user().Name != "Ann" {
		t.Errorf("%+v", user())
	}
	g := x.want(http.StatusOK, x.send(http.MethodPatch, "/v1/tenants/acme/users/1001", "acme", `{"password": "pa$$ wörd"}`))
	if want, _ = HA1("1001", "acme.example", "pa$$ wörd"); user().HA1 != want {
		t.Errorf("HA1 %s, want %s", user().HA1, want)
	}
	if strings.Contains(g.body, want) || strings.Contains(g.body, "ha1") || strings.Contains(g.body, "password") {
		t.Errorf("a tenant's token sees a secret: %s", g.body)
	}
	x.want(http.StatusCreated, x.send(http.MethodPut, "/v1/tenants/acme/users/1003", "admin", `{"ha1": "`+ha1+`"}`))
	if g := x.want(http.StatusOK, x.send(http.MethodGet, "/v1/tenants/acme/users/1003", "admin", "")); !strings.Contains(g.body, ha1) {
		t.Errorf("an admin cannot read back what was put: %s", g.body)
	}
	for body, pointer := range map[string]string{
		`{"password": "x", "ha1": "` + ha1 + `"}`:          "/password",
		`{"password": ""}`:                                 "/password",
		`{"password": "a\r\nb"}`:                           "/password",
		`{"password": 7}`:                                  "/password",
		`{"password": "` + strings.Repeat("a", 257) + `"}`: "/password",
		`{"ha1": "x"}`:                                     "/ha1",
		`{}`:                                               "",
	} {
		g := x.send(http.MethodPut, "/v1/tenants/acme/users/1009", "acme", body)
		if p := g.problem(t); g.status/100 != 4 || len(p.Errors) != 1 || p.Errors[0].Pointer != pointer {
			t.Errorf("%s: %s", body, g.body)
		}
	}
	// The realm goes with the first domain, and the passwords with the realm.
	for path, body := range map[string]string{
		"/v1/tenants/acme/domains": `{"items": ["acme2.example", "acme.example"]}`,
	} {
		g := x.want(http.StatusUnprocessableEntity, x.send(http.MethodPut, path, "admin", body))
		if p := g.problem(t); p.Errors[0].Pointer != "/items/0" {
			t.Errorf("%s", g.body)
		}
	}
	g = x.want(http.StatusBadRequest, x.send(http.MethodPatch, "/v1/tenants/acme", "admin", `{"domains": ["acme2.example"]}`))
	if p := g.problem(t); p.Errors[0].Pointer != "/users/0" {
		t.Errorf("%s", g.body)
	}
	x.want(http.StatusOK, x.send(http.MethodPut, "/v1/tenants/acme/domains", "admin", `{"items": ["acme.example", "acme3.example"]}`))
	for _, secret := range []string{"pa$$ wörd", "acme-secret"} {
		if audit := fmt.Sprintf("%+v", x.audit.all); strings.Contains(audit, secret) || strings.Contains(x.log.String(), secret) {
			t.Errorf("%q is in the audit log or in the log", secret)
		}
	}
}

func TestTenantTokenRights(t *testing.T) {
	x := newAdmin(t)
	before := x.head()
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/v1/tenants/acme", "", 200},
		{"GET", "/v1/tenants/acme/trunks/carrier", "", 200},
		{"GET", "/v1/tenants/acme/sources", "", 200},
		{"PUT", "/v1/tenants/acme", `{}`, 403},
		{"PATCH", "/v1/tenants/acme", `{"name": "x"}`, 403},
		{"DELETE", "/v1/tenants/acme", ``, 403},
		{"PUT", "/v1/tenants/acme/domains", `{"items": ["bravo.example"]}`, 403},
		{"PUT", "/v1/tenants/acme/sources", `{"items": ["0.0.0.0/8"]}`, 403},
		{"PUT", "/v1/tenants/acme/trunks/carrier", `{}`, 403},
		{"DELETE", "/v1/tenants/acme/numbers/4930101", ``, 403},
		{"PUT", "/v1/tenants/acme/numbers/4930200", `{"user": "1001"}`, 403}, // bravo's
		{"PUT", "/v1/tenants/acme/numbers/4930999", `{"user": "1001"}`, 403}, // nobody's
		{"PATCH", "/v1/tenants/acme/numbers/4930200", `{"user": "1001"}`, 404},
		{"PATCH", "/v1/tenants/acme/users/1001", `{"caller_id": "4930200"}`, 403},
		{"DELETE", "/v1/tenants/acme/users/1001", ``, 422}, // a number leads there
		{"GET", "/v1/cells", "", 403},
		{"GET", "/v1/nodes/fs1", "", 403},
		{"GET", "/v1/nodes/none", "", 403},
		{"POST", "/v1/apply", `{}`, 403},
	} {
		g := x.send(c.method, c.path, "acme", c.body)
		if g.status != c.want {
			t.Errorf("%s %s: %d, want %d: %s", c.method, c.path, g.status, c.want, g.body)
		}
		if strings.Contains(strings.ToLower(g.body), "bravo") {
			t.Errorf("%s %s names the other tenant: %s", c.method, c.path, g.body)
		}
	}
	if after := x.head(); after.Revision != before.Revision {
		t.Errorf("revision %d became %d", before.Revision, after.Revision)
	}
	x.want(http.StatusOK, x.send("PATCH", "/v1/tenants/acme/numbers/4930101", "acme", `{"user": "1002"}`))
	x.want(http.StatusOK, x.send("PATCH", "/v1/tenants/acme/users/1002", "acme", `{"caller_id": "4930101"}`))
	g := x.want(http.StatusOK, x.send("GET", "/v1/tenants", "acme", ""))
	if items, _ := g.json(t)["items"].([]any); len(items) != 1 || !strings.Contains(g.body, `"acme"`) {
		t.Errorf("the list of a tenant's token: %s", g.body)
	}
}

func TestPagesAndFilters(t *testing.T) {
	x := newAdmin(t)
	var body strings.Builder
	for i := range 25 {
		fmt.Fprintf(&body, `%s{"id": "t%02d", "cell": "c1", "profile": "standard", "domains": ["t%02d.example"]}`, map[bool]string{true: ","}[i > 0], i, i)
	}
	x.want(http.StatusOK, x.send(http.MethodPost, "/v1/apply", "admin", `{"tenants": [`+body.String()+`]}`))
	var ids []string
	cursor, pages := "", 0
	for {
		g := x.want(http.StatusOK, x.send(http.MethodGet, "/v1/tenants?limit=10&cursor="+cursor, "read", ""))
		m := g.json(t)
		for _, item := range m["items"].([]any) {
			ids = append(ids, item.(map[string]any)["id"].(string))
		}
		pages++
		next, more := m["next"].(string)
		if !more {
			break
		}
		cursor = next
	}
	if len(ids) != 27 || !slices.IsSorted(ids) || pages != 3 {
		t.Errorf("%d pages with %v", pages, ids)
	}
	for query, want := range map[string]string{
		"domain=t07.example": "t07", "number=4930200": "bravo", "address=192.0.2.77": "acme",
	} {
		g := x.want(http.StatusOK, x.send(http.MethodGet, "/v1/tenants?"+query, "read", ""))
		items := g.json(t)["items"].([]any)
		if len(items) != 1 || items[0].(map[string]any)["id"] != want {
			t.Errorf("%s: %s", query, g.body)
		}
	}
	for _, query := range []string{"limit=0", "limit=x", "limit=1001", "domian=x", "cell=a&cell=b", "cell=%ff", "%zz"} {
		x.want(http.StatusBadRequest, x.send(http.MethodGet, "/v1/tenants?"+query, "read", ""))
	}
}

func TestIfMatch(t *testing.T) {
	x := newAdmin(t)
	tag := x.send(http.MethodGet, "/v1/tenants/acme", "admin", "").header.Get("ETag")
	x.want(http.StatusOK, x.send(http.MethodPatch, "/v1/tenants/bravo", "admin", `{"name": "B"}`))
	x.want(http.StatusOK, x.send(http.MethodPatch, "/v1/tenants/acme", "admin", `{"name": "A1"}`, "If-Match", tag))
	g := x.want(http.StatusPreconditionFailed, x.send(http.MethodPatch, "/v1/tenants/acme?message=no", "admin", `{"name": "A2"}`, "If-Match", tag))
	p := g.problem(t)
	if p.Revision != 3 || len(p.Changes) != 1 || p.Changes[0].Number != 3 || !slices.Equal(p.Changes[0].Objects, []string{"tenants[acme]"}) || p.Changes[0].Author == "" {
		t.Errorf("%s", g.body)
	}
	g = x.want(http.StatusPreconditionFailed, x.send(http.MethodPatch, "/v1/tenants/acme/users/1001", "acme", `{"name": "A2"}`, "If-Match", tag))
	if p := g.problem(t); len(p.Changes) != 1 || p.Changes[0].Author != "" || p.Changes[0].Message != "" {
		t.Errorf("a tenant's token sees who wrote: %s", g.body)
	}
	for _, bad := range []string{`"99"`, `W/"3"`, `"x"`, `3`} {
		x.want(http.StatusPreconditionFailed, x.send(http.MethodPatch, "/v1/tenants/acme", "admin", `{"name": "A2"}`, "If-Match", bad))
	}
	x.want(http.StatusPreconditionFailed, x.send(http.MethodPut, "/v1/cells/c9", "admin", `{}`, "If-Match", "*"))
	x.want(http.StatusOK, x.send(http.MethodPatch, "/v1/tenants/acme", "admin", `{"name": "A2"}`, "If-Match", "*"))
	if n := x.head().Tenants["acme"].Name; n != "A2" {
		t.Errorf("name %q", n)
	}
}

// TestRacingClaims: of two who claim one domain at once exactly one gets it,
// and the other learns who has it.
func TestRacingClaims(t *testing.T) {
	x := newAdmin(t)
	for round := range 10 {
		domain := fmt.Sprintf("race%d.example", round)
		var wg sync.WaitGroup
		var answers [2]got
		for i, tenant := range []string{"acme", "bravo"} {
			wg.Go(func() {
				answers[i] = x.send(http.MethodPut, "/v1/tenants/"+tenant+"/domains", "admin", fmt.Sprintf(`{"items": ["%s.example", "%s"]}`, tenant, domain))
			})
		}
		wg.Wait()
		if answers[0].status+answers[1].status != http.StatusOK+http.StatusUnprocessableEntity {
			t.Fatalf("%v", answers)
		}
		for _, g := range answers {
			if g.status == http.StatusOK {
				continue
			}
			p := g.problem(t)
			if len(p.Errors) == 0 || !strings.Contains(g.body, "acme") || !strings.Contains(g.body, "bravo") || !strings.Contains(g.body, domain) {
				t.Errorf("%s", g.body)
			}
		}
	}
}

// TestRefusedForTenant: what lies between tenants does not reach the token of one.
func TestRefusedForTenant(t *testing.T) {
	err := bulkhead.FieldError{Kind: bulkhead.Invalid, Field: "tenants[acme].domains[0]", Msg: `domain x belongs to both tenant "acme" and tenant "bravo"`}
	body, e := json.Marshal(refused(&principal{scope: registry.ScopeTenant, tenant: "acme"}, place{object: "tenants[acme]"}, bulkhead.State{}, &bulkhead.Change{}, fmt.Errorf("no: %w", &err)))
	if e != nil || strings.Contains(string(body), "bravo") {
		t.Errorf("%s %v", body, e)
	}
	var p *problem
	if !errors.As(refused(&principal{scope: registry.ScopeAdmin}, place{object: "tenants[acme]"}, bulkhead.State{}, &bulkhead.Change{}, &err), &p) || p.Errors[0].Pointer != "/domains/0" || !strings.Contains(p.Errors[0].Detail, "bravo") {
		t.Errorf("%+v", p)
	}
}

// TestCollisions: whichever side the registry finds at fault, the answer
// points into the request.
func TestCollisions(t *testing.T) {
	x := newAdmin(t)
	for _, c := range []struct{ method, path, body, pointer string }{
		{"PUT", "/v1/tenants/acme/domains", `{"items": ["acme.example", "bravo.example"]}`, "/items/1"},
		{"PUT", "/v1/tenants/bravo/domains", `{"items": ["bravo.example", "acme.example"]}`, "/items/1"},
		{"PATCH", "/v1/tenants/acme", `{"domains": ["acme.example", "x.example", "bravo.example"]}`, "/domains/2"},
		{"PUT", "/v1/tenants/acme/sources", `{"items": ["192.0.2.0/24", "198.51.100.0/25"]}`, "/items/1"},
		{"PUT", "/v1/tenants/acme/sources", `{"items": ["192.0.2.0/24", "198.51.0.0/16"]}`, "/items/1"},
		{"PUT", "/v1/tenants/acme/numbers/4930200", `{"user": "1001"}`, "/number"},
		{"PUT", "/v1/nodes/fs1", `{"pool": "p1", "sip": "127.0.0.2:5080"}`, "/sip"},
		{"PATCH", "/v1/sbcs/sbc1", `{"names": ["bravo.example"]}`, "/names/0"},
		{"PUT", "/v1/pools/p0", `{"cell": "c1", "profile": "standard"}`, "/profile"},
		{"POST", "/v1/apply", `{"nodes": [{"id": "fs1", "pool": "p1", "sip": "127.0.0.2:5080"}]}`, "/nodes/0/sip"},
		{"POST", "/v1/apply?dry_run=true", `{"nodes": [{"id": "fs1", "pool": "p1", "sip": "127.0.0.2:5080"}]}`, "/nodes/0/sip"},
	} {
		g := x.want(http.StatusUnprocessableEntity, x.send(c.method, c.path, "admin", c.body))
		if p := g.problem(t); len(p.Errors) == 0 || p.Errors[0].Pointer != c.pointer || p.Errors[0].Field != "" {
			t.Errorf("%s %s: %s", c.path, c.body, g.body)
		}
	}
}

func TestPointers(t *testing.T) {
	for _, c := range []struct {
		at    place
		field string
		want  string
		there bool
	}{
		{place{object: "tenants[acme]"}, "tenants[acme].domains[0]", "/domains/0", true},
		{place{object: "tenants[acme]"}, "tenants[acme].users[3].caller_id", "/users/3/caller_id", true},
		{place{object: "tenants[acme]"}, "tenants[bravo].domains[0]", "", false},
		{place{object: "tenants[acme]", inside: "users[3]"}, "tenants[acme].users[3].name", "/name", true},
		{place{object: "tenants[acme]", inside: "users[3]"}, "tenants[acme].users[30].name", "", false},
		{place{object: "tenants[acme]", inside: "domains", base: "/items"}, "tenants[acme].domains[1]", "/items/1", true},
		{place{at: map[string]string{"tenants[a].x]": "/tenants/4"}}, "tenants[a].x].limits.calls", "/tenants/4/limits/calls", true},
		{place{at: map[string]string{"tenants[acme]": "/tenants/4"}}, "cells[c1].max_tenants", "", false},
	} {
		if got, ok := c.at.pointer(c.field); got != c.want || ok != c.there {
			t.Errorf("%s: %q %v, want %q %v", c.field, got, ok, c.want, c.there)
		}
	}
}

func TestTokensAndAudit(t *testing.T) {
	x := newAdmin(t)
	g := x.want(http.StatusCreated, x.send(http.MethodPost, "/v1/tokens", "bootstrap", `{"scope": "tenant", "tenant": "acme", "note": "for Ann"}`))
	secret := g.json(t)["secret"].(string)
	x.secret["made"] = secret
	x.want(http.StatusOK, x.send(http.MethodGet, "/v1/tenants/acme", "made", ""))
	list := x.want(http.StatusOK, x.send(http.MethodGet, "/v1/tokens?tenant=acme", "admin", ""))
	if strings.Contains(list.body, secret) || !strings.Contains(list.body, "for Ann") {
		t.Errorf("%s", list.body)
	}
	node := x.want(http.StatusCreated, x.send(http.MethodPost, "/v1/tokens", "admin", `{"scope": "node", "node": "fs1"}`))
	if cell := node.json(t)["token"].(map[string]any)["cell"]; cell != "c1" {
		t.Errorf("the node's token is of cell %v", cell)
	}
	sbc := x.want(http.StatusCreated, x.send(http.MethodPost, "/v1/tokens", "admin", `{"scope": "sbc", "sbc": "sbc1"}`))
	if cell := sbc.json(t)["token"].(map[string]any)["cell"]; cell != "c1" {
		t.Errorf("the SBC's token is of cell %v", cell)
	}
	for body, pointer := range map[string]string{
		`{"scope": "root"}`: "/scope", `{"scope": "tenant"}`: "/tenant", `{"scope": "tenant", "tenant": "none"}`: "/tenant", `{"scope": "read", "tenant": "acme"}`: "/tenant",
		`{"scope": "node", "node": "none"}`: "/node", `{"scope": "sbc", "sbc": "none"}`: "/sbc", `{"scope": "sbc", "node": "fs1"}`: "/node",
		`{"scope": "admin", "note": "a\u0007"}`: "/note", `{"scope": "admin", "extra": 1}`: "/extra",
	} {
		if p := x.send(http.MethodPost, "/v1/tokens", "admin", body).problem(t); p.Status/100 != 4 || len(p.Errors) != 1 || p.Errors[0].Pointer != pointer {
			t.Errorf("%s: %+v", body, p)
		}
	}
	id := g.json(t)["token"].(map[string]any)["id"].(string)
	x.want(http.StatusNoContent, x.send(http.MethodDelete, "/v1/tokens/"+id, "admin", ""))
	x.want(http.StatusUnauthorized, x.send(http.MethodGet, "/v1/tenants/acme", "made", ""))
	x.want(http.StatusNotFound, x.send(http.MethodDelete, "/v1/tokens/none", "admin", ""))
	for _, token := range []string{"", "nobody"} {
		x.secret["nobody"] = "bh_x_wrong"
		g := x.want(http.StatusUnauthorized, x.send(http.MethodPut, "/v1/cells/c1", token, `{}`))
		if g.header.Get("WWW-Authenticate") != "Bearer" {
			t.Error("no WWW-Authenticate")
		}
	}
	x.want(http.StatusForbidden, x.send(http.MethodGet, "/v1/tenants", "node", ""))
	x.want(http.StatusForbidden, x.send(http.MethodPatch, "/v1/tenants/acme", "acme", `{}`))
	x.want(http.StatusOK, x.send(http.MethodPatch, "/v1/tenants/acme", "admin", `{"name": "seen"}`))
	audit := x.want(http.StatusOK, x.send(http.MethodGet, "/v1/audit?limit=1000", "read", ""))
	if strings.Contains(audit.body, secret) {
		t.Error("a token's secret is in the audit log")
	}
	items := audit.json(t)["items"].([]any)
	last, before := items[len(items)-1].(map[string]any), items[len(items)-2].(map[string]any)
	if last["status"] != 200.0 || last["path"] != "/v1/tenants/acme" || last["method"] != "PATCH" || last["revision"] != float64(x.head().Revision) || before["status"] != 403.0 {
		t.Errorf("%v", items[len(items)-2:])
	}
	next := x.want(http.StatusOK, x.send(http.MethodGet, "/v1/audit?after="+strconv.Itoa(len(items)-1), "read", "")).json(t)
	if diff := cmp.Diff([]any{last}, next["items"]); diff != "" {
		t.Error(diff)
	}
}
