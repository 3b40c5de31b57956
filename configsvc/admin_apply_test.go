package configsvc

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

const apply = "/v1/apply"

func TestApply(t *testing.T) {
	x := newAdmin(t)
	const body = `{"tenants": [{"id": "delta", "cell": "c1", "profile": "standard", "domains": ["delta.example"], "users": [{"extension": "1", "password": "d-secret"}]}], "cells": [{"id": "c2"}]}`
	dry := x.want(http.StatusOK, x.send(http.MethodPost, apply+"?dry_run=true", "admin", body))
	if m := dry.json(t); m["revision"] != 2.0 || m["dry_run"] != true || m["changed"] != true || x.head().Revision != 1 {
		t.Errorf("dry run: %s", dry.body)
	}
	g := x.want(http.StatusOK, x.send(http.MethodPost, apply+"?message=two+things", "admin", body))
	if s := x.head(); s.Revision != 2 || s.Tenants["delta"] == nil || s.Cells["c2"] == nil || g.header.Get("ETag") != `"2"` {
		t.Errorf("%s", g.body)
	}
	if strings.Contains(g.body, "d-secret") || strings.Contains(dry.body, "d-secret") {
		t.Error("the password comes back")
	}
	g = x.want(http.StatusOK, x.send(http.MethodPost, apply, "admin", body))
	if m := g.json(t); m["changed"] != false || x.head().Revision != 2 {
		t.Errorf("again: %s", g.body)
	}
	// The same as a file.
	g = x.want(http.StatusOK, x.send(http.MethodPost, apply, "admin", "cells:\n- id: c2\n  max_tenants: 9\n", "Content-Type", "application/yaml; charset=utf-8"))
	if x.head().Cells["c2"].MaxTenants != 9 || !strings.Contains(g.body, `{"object":"cells[c2]","path":"max_tenants","action":"add","to":9}`) {
		t.Errorf("%s", g.body)
	}
	// What is not named goes with prune, and only of the listed kinds.
	x.want(http.StatusOK, x.send(http.MethodPost, apply+"?prune=true", "admin", `{"cells": [{"id": "c1"}]}`))
	if s := x.head(); s.Cells["c2"] != nil || len(s.Tenants) != 3 {
		t.Errorf("%d cells, %d tenants", len(s.Cells), len(s.Tenants))
	}
	x.want(http.StatusOK, x.send(http.MethodPost, apply, "admin", `{"delete": {"tenants": ["delta"]}}`))
	if s := x.head(); s.Tenants["delta"] != nil {
		t.Error("delta is still there")
	}
}

// TestApplyAllOrNothing: one wrong object, and nothing is changed; the answer
// says where.
func TestApplyAllOrNothing(t *testing.T) {
	x := newAdmin(t)
	tenant := func(id, rest string) string {
		return fmt.Sprintf(`{"id": %q, "cell": "c1", "profile": "standard", %s}`, id, rest)
	}
	for name, c := range map[string]struct {
		body    string
		pointer string
		says    []string
	}{
		"two claim a domain": {`{"tenants": [` + tenant("x1", `"domains": ["x.example"]`) + `, ` + tenant("x2", `"domains": ["y.example", "x.example"]`) + `]}`, "/tenants/1/domains/1", []string{"x1", "x2"}},
		"two claim a number": {`{"tenants": [` + tenant("x1", `"domains": ["x.example"], "users": [{"extension": "1", "password": "p"}], "numbers": [{"number": "4930200", "user": "1"}]`) + `]}`, "/tenants/0/numbers/0/number", []string{"x1", "bravo"}},
		"networks overlap":   {`{"tenants": [` + tenant("x1", `"domains": ["x.example"], "sources": ["198.51.100.128/25"]`) + `]}`, "/tenants/0/sources/0", []string{"x1", "bravo"}},
		"one object twice":   {`{"cells": [{"id": "c5"}, {"id": "c5"}]}`, "/cells/1/id", nil},
		"no such cell":       {`{"cells": [{"id": "c5"}], "pools": [{"id": "p5", "cell": "c6", "profile": "ai"}]}`, "/pools/0/cell", []string{"c6"}},
		"a wrong value":      {`{"cells": [{"id": "c5", "max_tenants": 200001}]}`, "/cells/0/max_tenants", nil},
		"a wrong type":       {`{"cells": [{"id": "c5", "max_tenants": "5"}]}`, "/cells/0/max_tenants", nil},
		"no id":              {`{"cells": [{}]}`, "/cells/0/id", nil},
		"an unknown key":     {`{"cells": [{"id": "c5", "maxtenants": 5}]}`, "/cells/0/maxtenants", nil},
		"a key twice":        {`{"cells": [{"id": "c5", "id": "c6"}]}`, "/cells/0/id", nil},
		"no password":        {`{"tenants": [` + tenant("x1", `"domains": ["x.example"], "users": [{"extension": "1"}]`) + `]}`, "/tenants/0/users/0", nil},
		"still referenced":   {`{"delete": {"pools": ["p1"]}}`, "", []string{"p1"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, query := range []string{"", "?dry_run=true"} {
				g := x.send(http.MethodPost, apply+query, "admin", c.body)
				p := g.problem(t)
				if g.status/100 != 4 || len(p.Errors) == 0 || p.Errors[0].Pointer != c.pointer {
					t.Errorf("%s", g.body)
				}
				for _, s := range c.says {
					if !strings.Contains(g.body, s) {
						t.Errorf("%q is not in %s", s, g.body)
					}
				}
			}
		})
	}
	g := x.want(http.StatusUnprocessableEntity, x.send(http.MethodPost, apply, "admin", "tenants:\n- id: x1\n  cell: c1\n  profile: standard\n  domains:\n  - bravo.example\n", "Content-Type", "application/yaml"))
	if !strings.Contains(g.body, "body:6:") || !strings.Contains(g.body, "bravo") {
		t.Errorf("%s", g.body)
	}
	if n := x.head().Revision; n != 1 {
		t.Errorf("revision %d", n)
	}
}

func TestIdempotencyKey(t *testing.T) {
	x := newAdmin(t)
	put := func(max int, headers ...string) got {
		return x.send(http.MethodPost, apply, "admin", fmt.Sprintf(`{"cells": [{"id": "c1", "max_tenants": %d}]}`, max), headers...)
	}
	first := x.want(http.StatusOK, put(5, "Idempotency-Key", "k1"))
	x.want(http.StatusOK, put(6))
	again := x.want(http.StatusOK, put(5, "Idempotency-Key", "k1"))
	if again.body != first.body || again.header.Get("ETag") != first.header.Get("ETag") || x.head().Cells["c1"].MaxTenants != 6 {
		t.Errorf("sent again: %s, first: %s; now %d", again.body, first.body, x.head().Cells["c1"].MaxTenants)
	}
	x.want(http.StatusUnprocessableEntity, put(7, "Idempotency-Key", "k1"))
	x.want(http.StatusBadRequest, put(7, "Idempotency-Key", "a b"))
	// What failed is not remembered, and another's key is another key.
	x.want(http.StatusUnprocessableEntity, put(200001, "Idempotency-Key", "k2"))
	x.want(http.StatusOK, put(8, "Idempotency-Key", "k2"))
	x.want(http.StatusOK, x.send(http.MethodPost, apply, "bootstrap", `{"cells": [{"id": "c1", "max_tenants": 9}]}`, "Idempotency-Key", "k1"))
	if n := x.head().Cells["c1"].MaxTenants; n != 9 {
		t.Errorf("%d", n)
	}
	for i := range maxRepeats + 10 {
		x.repeats.keep(fmt.Sprint(i), repeated{answer: &answer{}})
	}
	if len(x.repeats.known) != maxRepeats || len(x.repeats.order) != maxRepeats {
		t.Errorf("%d answers are kept", len(x.repeats.known))
	}
}

func TestHistory(t *testing.T) {
	x := newAdmin(t)
	x.want(http.StatusOK, x.send(http.MethodPatch, "/v1/tenants/acme?message=why+not", "admin", `{"name": "A1"}`))
	x.want(http.StatusOK, x.send(http.MethodPatch, "/v1/tenants/acme/users/1001", "admin", `{"name": "Ann", "password": "new"}`))
	g := x.want(http.StatusOK, x.send(http.MethodGet, "/v1/revisions?limit=2", "read", ""))
	m := g.json(t)
	items := m["items"].([]any)
	if len(items) != 2 || items[0].(map[string]any)["number"] != 3.0 || items[1].(map[string]any)["message"] != "why not" || m["next"] != "2" {
		t.Errorf("%s", g.body)
	}
	g = x.want(http.StatusOK, x.send(http.MethodGet, "/v1/revisions?limit=2&cursor=2", "read", ""))
	if m = g.json(t); len(m["items"].([]any)) != 1 || m["next"] != nil {
		t.Errorf("%s", g.body)
	}
	g = x.want(http.StatusOK, x.send(http.MethodGet, "/v1/revisions/2", "admin", ""))
	if !strings.Contains(g.body, `"A1"`) || !strings.Contains(g.body, "ha1") {
		t.Errorf("%s", g.body)
	}
	for _, n := range []string{"0", "4", "x", "-1", "99999999999999999999"} {
		x.want(http.StatusNotFound, x.send(http.MethodGet, "/v1/revisions/"+n, "admin", ""))
	}
	g = x.want(http.StatusOK, x.send(http.MethodGet, "/v1/diff?from=1&to=3", "read", ""))
	for _, want := range []string{`{"object":"tenants[acme]","path":"name","action":"change","from":"Acme","to":"A1"}`, `{"object":"tenants[acme]","path":"users[1001].ha1","action":"change"}`, `"path":"users[1001].name","action":"add","to":"Ann"`} {
		if !strings.Contains(g.body, want) {
			t.Errorf("%s is not in %s", want, g.body)
		}
	}
	x.want(http.StatusNotFound, x.send(http.MethodGet, "/v1/diff?from=1&to=9", "read", ""))
	x.want(http.StatusBadRequest, x.send(http.MethodGet, "/v1/diff", "read", ""))

	g = x.want(http.StatusOK, x.send(http.MethodPost, "/v1/rollback?dry_run=true", "admin", `{"to": 1}`))
	if m = g.json(t); m["revision"] != 4.0 || x.head().Revision != 3 {
		t.Errorf("%s", g.body)
	}
	x.want(http.StatusPreconditionFailed, x.send(http.MethodPost, "/v1/rollback", "admin", `{"to": 1}`, "If-Match", `"2"`))
	x.want(http.StatusOK, x.send(http.MethodPost, "/v1/rollback", "admin", `{"to": 1}`, "If-Match", `"3"`))
	first, err := x.cfg.History.State(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	head := x.head()
	if d := head.Diff(first); !d.IsZero() || head.Revision != 4 {
		t.Errorf("revision %d differs from 1 by %+v", head.Revision, d)
	}
	log, err := x.cfg.History.Log(t.Context(), 4, 1)
	if err != nil || len(log) != 1 || log[0].Message != "rollback to revision 1" || !strings.HasPrefix(log[0].Author, "token ") {
		t.Errorf("%+v %v", log, err)
	}
	x.want(http.StatusNotFound, x.send(http.MethodPost, "/v1/rollback", "admin", `{"to": 99}`))
	x.want(http.StatusBadRequest, x.send(http.MethodPost, "/v1/rollback", "admin", `{}`))
}
