package configsvc

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/bulkhead-voip/bulkhead/registry"
)

// TestOtherTenantsAreHidden walks the description: on every route, the token
// of one tenant gets for another tenant's object what it gets for an object
// that is not there, to the byte, and the answer holds nothing of the other.
func TestOtherTenantsAreHidden(t *testing.T) {
	x := newAdmin(t)
	before := x.head()
	// What the tokens would be given if they were the tenant's own.
	params := map[string]string{"extension": "1001", "number": "4930200", "trunk": "carrier", "cell": "c1", "pool": "p1", "node": "fs1", "sbc": "sbc1", "token": "t1", "revision": "1"}
	there := strings.NewReplacer("{tenant}", "bravo", "{extension}", params["extension"], "{number}", params["number"], "{trunk}", params["trunk"],
		"{cell}", params["cell"], "{pool}", params["pool"], "{node}", params["node"], "{sbc}", params["sbc"], "{token}", params["token"], "{revision}", params["revision"])
	missing := strings.NewReplacer("{tenant}", "nobody", "{extension}", "1999", "{number}", "4930999", "{trunk}", "none", "{cell}", "none", "{pool}", "none", "{node}", "none", "{sbc}", "none", "{token}", "none", "{revision}", "99")
	walked := 0
	for path, item := range x.doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.Security != nil && len(*op.Security) == 0 {
				continue // open to all: the description itself
			}
			walked++
			want := http.StatusForbidden
			switch {
			case strings.Contains(path, "{tenant}"):
				want = http.StatusNotFound
			case path == "/v1/tenants":
				want = http.StatusOK
			case path == explainPath:
				want = http.StatusBadRequest // it may ask; but none of the bodies is a question
			}
			for _, body := range bodies(op) {
				headers := []string{"Content-Type", body.kind, "If-Match", `"1"`, "If-None-Match", "*"}
				a := x.send(method, there.Replace(path), "acme", body.text, headers...)
				b := x.send(method, missing.Replace(path), "acme", body.text, headers...)
				if a.status != want {
					t.Errorf("%s %s: %d, want %d: %s", method, path, a.status, want, a.body)
				}
				if a.status != b.status || a.body != b.body || fmt.Sprint(a.header) != fmt.Sprint(b.header) {
					t.Errorf("%s %s tells what is there from what is not:\n%v\n%v", method, path, a, b)
				}
				leaks(t, method+" "+path, a)
				// A token of a tenant that was deleted is no better.
				leaks(t, method+" "+path, x.send(method, there.Replace(path), "gone", body.text, headers...))
				for _, token := range []string{"node", "sbc"} {
					want := http.StatusForbidden
					if path == registry.FeedPath {
						want = http.StatusServiceUnavailable // it may; but this feed does not run
					}
					if g := x.send(method, there.Replace(path), token, body.text, headers...); g.status != want {
						t.Errorf("%s %s answers the token of a %s: %d", method, path, token, g.status)
					}
				}
				if g := x.send(method, there.Replace(path), "", body.text, headers...); g.status != http.StatusUnauthorized {
					t.Errorf("%s %s answers nobody: %d", method, path, g.status)
				}
				if g := x.send(method, there.Replace(path), "read", body.text, headers...); method != http.MethodGet && path != explainPath && g.status != http.StatusForbidden {
					t.Errorf("%s %s lets a reader write: %d", method, path, g.status)
				}
			}
			// And what a reader sees holds no secret.
			if method == http.MethodGet && path != registry.FeedPath {
				g := x.send(method, there.Replace(path)+map[bool]string{true: "?from=0"}[path == "/v1/diff"], "read", "")
				if g.status != http.StatusOK || strings.Contains(g.body, "ha1") {
					t.Errorf("%s %s for a reader: %d %s", method, path, g.status, g.body)
				}
			}
		}
	}
	if walked < 40 {
		t.Errorf("only %d operations", walked)
	}
	if after := x.head(); after.Revision != before.Revision {
		t.Errorf("something was written: revision %d became %d", before.Revision, after.Revision)
	}
}

// explainPath is the one POST that only reads.
const explainPath = "/v1/route/explain"

type typed struct{ kind, text string }

// bodies are what an operation is sent: nothing, or something, of each type.
func bodies(op *openapi3.Operation) []typed {
	if op.RequestBody == nil {
		return []typed{{"", ""}}
	}
	var out []typed
	for kind := range op.RequestBody.Value.Content {
		out = append(out, typed{kind, `{}`}, typed{kind, `{"name": "x", "user": "1001", "items": ["bravo.example"]}`}, typed{kind, `{`})
	}
	return out
}

func leaks(t *testing.T, what string, g got) {
	t.Helper()
	var header bytes.Buffer
	_ = g.header.Write(&header) // into memory
	all := strings.ToLower(g.body + header.String())
	for _, of := range []string{"bravo", "bravissimo", "wanda", "198.51.100", "4930200", "zulu", "operator"} {
		// The scope's own refusal says who may: that is no secret.
		if strings.Contains(strings.ReplaceAll(all, "ask the operator", ""), of) {
			t.Errorf("%s: the answer holds %q: %s%s", what, of, header.String(), g.body)
		}
	}
}

// TestNothingIsLookedUp: for another tenant's object the registry is not even
// asked, so no time of its can tell what is there.
func TestNothingIsLookedUp(t *testing.T) {
	x := newAdmin(t)
	x.cfg.Store = nil // any use ends the test
	for path, item := range x.doc.Paths.Map() {
		if !strings.Contains(path, "{tenant}") {
			continue
		}
		for method := range item.Operations() {
			path := strings.NewReplacer("{tenant}", "bravo", "{extension}", "1001", "{number}", "4930200", "{trunk}", "carrier").Replace(path)
			x.want(http.StatusNotFound, x.send(method, path, "acme", `{}`))
		}
	}
}
