package configsvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/bulkhead-voip/bulkhead"
)

// hostileTexts are put into the texts that a request may hold: the first two
// into every one, the others in turn.
var hostileTexts = []string{
	"a\r\nVia: x", "${system('id')}", "a\nb", "a\x00b", "\u202egnp", "$${domain}", `"><script>`, "\u2028", "%n%s", "{{.}}", "';--", strings.Repeat("A", 5000), "\ufffd", "\U0001f600",
}

// hostileDocuments are no objects of any kind.
var hostileDocuments = []string{
	``, ` `, `null`, `[]`, `7`, `"x"`, `{`, `}`, `{"a"`, `{"a":}`, `{} {}`, `{}x`, "\ufeff{}", "{\"name\": \"\xff\xfe\"}", `{"name": "\ud800"}`,
	`{"Name": "case"}`, `{"name": {"a": 1}}`, `{"name": ["x"]}`, `{"name": true}`, `{"name": 1e999}`, `{"id": "a", "id": "b"}`, `{"": 1}`, `{"__proto__": {}}`,
	`{"limits": {"calls": 1.5}}`, `{"limits": {"calls": -1}}`, `{"limits": {"calls": 99999999999999999999}}`, `{"domains": "x"}`, `{"domains": [null]}`, `{"domains": {"0": "x"}}`,
	`{"sources": ["10.0.0.1"]}`, `{"sources": ["::ffff:10.0.0.0/104"]}`, `{"sources": ["fe80::1%25eth0/128"]}`, `{"users": [[]]}`, `{"users": [{"extension": "1", "password": {"a": 1}}]}`,
	`{"items": [null]}`, `{"items": null}`, `{"items": [[["x"]]]}`, `{"to": -1}`, `{"to": "1"}`, `{"scope": ["admin"]}`, `{"tenants": [null]}`, `{"cells": {"id": "x"}}`, `{"delete": {"tenants": [1]}}`,
	strings.Repeat(`{"name":`, 100) + `1` + strings.Repeat(`}`, 100), strings.Repeat(`[`, 100000), strings.Repeat(`{"a":`, 100000),
	`{"name": "` + strings.Repeat("x", 1<<20) + `"}`, `{"` + strings.Repeat("k", 1<<20) + `": 1}`,
}

// TestHostileBodies: whatever is sent to whatever route, the answer is a clear
// 4xx, nothing has changed, and the answer is short.
func TestHostileBodies(t *testing.T) {
	x := newAdmin(t)
	before := x.head()
	docs := append([]string(nil), hostileDocuments...)
	fill := strings.NewReplacer("{tenant}", "acme", "{extension}", "1001", "{number}", "4930100", "{trunk}", "carrier", "{cell}", "c1", "{pool}", "p1", "{node}", "fs1", "{sbc}", "sbc1", "{token}", "none", "{revision}", "1")
	operations := 0
	for path, item := range x.doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.RequestBody == nil {
				continue
			}
			operations++
			for kind := range op.RequestBody.Value.Content {
				for _, doc := range append(docs, hostileValues(op, kind)...) {
					if len(doc) > 64<<10 && operations%4 != 0 {
						continue // one reader reads them all
					}
					g := x.send(method, fill.Replace(path), "admin", doc, "Content-Type", kind)
					// A null is no error in a merge of what is not there.
					if x.head().Revision != before.Revision {
						t.Fatalf("%s %s takes %.80q: %d %.300s", method, path, doc, g.status, g.body)
					}
					if g.status/100 == 5 || len(g.body) > 64<<10 {
						t.Errorf("%s %s on %.80q: %d, %d bytes: %.300s", method, path, doc, g.status, len(g.body), g.body)
					}
					if g.status/100 == 4 {
						g.problem(t)
					}
				}
			}
		}
	}
	head := x.head()
	if d := before.Diff(head); !d.IsZero() || head.Revision != before.Revision {
		t.Errorf("revision %d became %d: %+v", before.Revision, head.Revision, d)
	}
}

// hostileValues puts each hostile text into each text of what the operation takes.
func hostileValues(op *openapi3.Operation, kind string) []string {
	var out []string
	schema := op.RequestBody.Value.Content[kind].Schema.Value
	for turn, name := range slices.Sorted(maps.Keys(schema.Properties)) {
		if name == "password" {
			continue // may hold anything that is printed: see TestUserPasswords
		}
		p := schema.Properties[name]
		for i, text := range hostileTexts {
			if i >= 2 && i%4 != turn%4 {
				continue
			}
			value := quoted(text)
			switch {
			case p.Value.Type.Is("string"):
				out = append(out, fmt.Sprintf(`{%q: %s}`, name, value))
			case p.Value.Type.Is("array") && p.Value.Items.Value.Type.Is("string"):
				out = append(out, fmt.Sprintf(`{%q: [%s]}`, name, value))
			case p.Value.Type.Is("array"):
				for inner := range p.Value.Items.Value.Properties {
					out = append(out, fmt.Sprintf(`{%q: [{%q: %s}]}`, name, inner, value))
				}
			}
		}
	}
	return out
}

func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		if r < 0x20 || r == '"' || r == '\\' {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String() + `"`
}

// TestHostilePaths: ids and queries that nobody has.
func TestHostilePaths(t *testing.T) {
	x := newAdmin(t)
	for _, id := range []string{"%00", "%0d%0a", "..", "%2e%2e", "a%2fb", "a%20b", "%ff", "${x}", "tenants%5Bacme%5D.x", strings.Repeat("a", 4000), "%25", "ACME", "acme%00"} {
		for _, path := range []string{"/v1/tenants/", "/v1/cells/", "/v1/tenants/acme/users/", "/v1/revisions/"} {
			x.want(http.StatusNotFound, x.send(http.MethodGet, path+id, "admin", ""))
		}
		for _, c := range [][2]string{
			{"/v1/cells/", `{}`}, {"/v1/tenants/", `{"cell": "c1", "profile": "standard", "domains": ["new.example"]}`}, {"/v1/tenants/acme/users/", `{"password": "x"}`},
		} {
			if g := x.send(http.MethodPut, c[0]+id, "admin", c[1]); g.status/100 != 4 {
				t.Errorf("PUT %s%.40s: %d", c[0], id, g.status)
			}
		}
	}
	g := x.send(http.MethodPost, "/v1/tenants/acme", "admin", "")
	if g.status != http.StatusMethodNotAllowed || g.header.Get("Allow") != "GET, PUT, PATCH, DELETE" {
		t.Errorf("%d Allow %q", g.status, g.header.Get("Allow"))
	}
	x.want(http.StatusNotFound, x.send(http.MethodGet, "/v1/none", "admin", ""))
	x.want(http.StatusBadRequest, x.send(http.MethodPatch, "/v1/cells/c1?message=%1b%5b2J", "admin", `{}`))
	x.want(http.StatusBadRequest, x.send(http.MethodPost, apply+"?dryrun=true", "admin", `{}`))
	x.want(http.StatusUnsupportedMediaType, x.send(http.MethodPut, "/v1/cells/c1", "admin", `{}`, "Content-Type", "text/plain"))
	x.want(http.StatusUnsupportedMediaType, x.send(http.MethodPut, "/v1/cells/c1", "admin", `{}`, "Content-Encoding", "gzip"))
	if n := x.head().Revision; n != 1 {
		t.Errorf("revision %d", n)
	}
}

// endless is a body without an end.
type endless struct{ text string }

func (e endless) Read(p []byte) (int, error) {
	n := 0
	for n+len(e.text) <= len(p) {
		n += copy(p[n:], e.text)
	}
	return max(n, copy(p, e.text)), nil
}

// TestLargeBodies: a body over the limit is refused with its length or when
// the limit is reached, and those within it take bounded memory.
func TestLargeBodies(t *testing.T) {
	x := newAdmin(t)
	x.want(http.StatusRequestEntityTooLarge, x.sendBody(http.MethodPost, apply, "admin", endless{" "}))
	x.want(http.StatusRequestEntityTooLarge, x.sendBody(http.MethodPut, "/v1/cells/c1", "admin", endless{" "}))
	x.want(http.StatusRequestEntityTooLarge, x.sendBody(http.MethodPost, apply, "admin", io.LimitReader(endless{"["}, MaxBody+1)))
	full := func(unit string) string { return strings.Repeat(unit, MaxBody/len(unit)-10) }
	for name, c := range map[string]struct{ kind, body string }{
		"brackets":        {"application/json", full("[")},
		"braces":          {"application/json", full(`{"a":`)},
		"spaces":          {"application/json", full(" ")},
		"a text":          {"application/json", `{"cells": [{"id": "` + full("x") + `"}]}`},
		"empty texts":     {"application/json", `{"tenants": [{"id": "a", "domains": [` + full(`"",`) + `""]}]}`},
		"empty objects":   {"application/json", `{"cells": [` + full(`{},`) + `{}]}`},
		"unknown keys":    {"application/json", `{` + full(`"a":0,`) + `"a":0}`},
		"yaml brackets":   {"application/yaml", full("[")},
		"yaml dashes":     {"application/yaml", full("- ")},
		"yaml lines":      {"application/yaml", "cells:\n" + full("- id: a\n")},
		"yaml text":       {"application/yaml", "cells:\n- id: " + full("x") + "\n"},
		"yaml aliases":    {"application/yaml", "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]\n"},
		"yaml anchors":    {"application/yaml", full("&a ")},
		"yaml indentings": {"application/yaml", full("? ")},
	} {
		t.Run(name, func(t *testing.T) {
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			g := x.send(http.MethodPost, apply, "admin", c.body, "Content-Type", c.kind)
			runtime.ReadMemStats(&after)
			if g.status/100 != 4 || len(g.body) > 256<<10 {
				t.Errorf("%d, %d bytes: %.200s", g.status, len(g.body), g.body)
			}
			if grown := int64(after.Sys) - int64(before.Sys); grown > 400<<20 { //nolint:gosec // bytes of memory
				t.Errorf("it took %d MiB", grown>>20)
			}
		})
	}
	if n := x.head().Revision; n != 1 {
		t.Errorf("revision %d", n)
	}
}

// TestBrokenRegistry: an error of the registry is a 503 that shows nothing of it.
func TestBrokenRegistry(t *testing.T) {
	x := newAdmin(t)
	x.tokens.err = fmt.Errorf("dial 10.9.8.7: %w", bulkhead.Unavailable)
	g := x.want(http.StatusServiceUnavailable, x.send(http.MethodGet, "/v1/cells", "admin", ""))
	if strings.Contains(g.body, "10.9.8.7") || !strings.Contains(x.log.String(), "10.9.8.7") {
		t.Errorf("%s, log %s", g.body, x.log.String())
	}
	x.tokens.err = errors.New("odd")
	if g := x.send(http.MethodGet, "/v1/cells", "admin", ""); g.status != http.StatusInternalServerError || strings.Contains(g.body, "odd") {
		t.Errorf("%d %s", g.status, g.body)
	}
}

// TestHungUp: who hangs up while he waits for his turn leaves nothing behind.
func TestHungUp(t *testing.T) {
	x := newAdmin(t)
	x.heavy <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	req := httptest.NewRequestWithContext(ctx, http.MethodPost, apply, strings.NewReader(`{"cells": [{"id": "c7"}]}`))
	req.Header.Set("Authorization", "Bearer "+bootstrap)
	req.Header.Set("Content-Type", "application/json")
	x.Handler().ServeHTTP(httptest.NewRecorder(), req)
	<-x.heavy
	if x.head().Revision != 1 {
		t.Error("it was applied")
	}
	x.want(http.StatusOK, x.send(http.MethodPost, apply, "admin", `{"cells": [{"id": "c7"}]}`))
}

func FuzzDecodeJSON(f *testing.F) {
	for _, doc := range hostileDocuments {
		if len(doc) < 4096 {
			f.Add([]byte(doc), false)
			f.Add([]byte(doc), true)
		}
	}
	f.Add([]byte(`{"tenants": [{"id": "a", "cell": "c", "profile": "p", "domains": ["d"], "sources": ["10.0.0.0/8"], "users": [{"extension": "1", "password": "x"}], "limits": {"calls": 1}}]}`), false)
	f.Fuzz(func(t *testing.T, body []byte, merge bool) {
		var b bulkBody
		for _, i := range decodeJSON(body, &b, merge) {
			if i.Detail == "" || i.Pointer != "" && i.Pointer[0] != '/' || !utf8.ValidString(i.Pointer) {
				t.Errorf("%+v", i)
			}
		}
		if !merge {
			if plan, err := planJSON(body, true); err == nil {
				if _, _, err := plan(bulkhead.State{}); err != nil {
					t.Error(err)
				}
			}
		}
	})
}
