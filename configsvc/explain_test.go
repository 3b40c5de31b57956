package configsvc

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestExplain(t *testing.T) {
	x := newAdmin(t)
	ask := func(token, body string, want int) Explanation {
		t.Helper()
		g := x.want(want, x.send(http.MethodPost, explainPath, token, body, "Content-Type", "application/json"))
		var out Explanation
		if want == http.StatusOK {
			if err := json.Unmarshal([]byte(g.body), &out); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	before := len(x.audit.all)
	for _, token := range []string{"admin", "read", "acme"} {
		e := ask(token, `{"tenant": "acme", "from": "1001", "to": "1001"}`, http.StatusOK)
		if e.Tenant != "acme" || len(e.Actions) != 1 || e.Actions[0].Do != "dial" || e.Actions[0].Legs[0].Name != "1001" || len(e.Why) == 0 {
			t.Errorf("for %s: %+v", token, e)
		}
	}
	if e := ask("acme", `{"to": "1001"}`, http.StatusOK); e.Tenant != "acme" {
		t.Errorf("a tenant's token asks about its own tenant: %+v", e)
	}
	ask("acme", `{"tenant": "bravo", "to": "1001"}`, http.StatusNotFound)
	ask("acme", `{"tenant": "nobody", "to": "1001"}`, http.StatusNotFound)
	ask("acme", `{"tenant": "acme", "to": "1001", "change": {}}`, http.StatusForbidden)
	ask("acme", `{"tenant": "acme", "to": "1001", "revision": 1}`, http.StatusForbidden)
	ask("admin", `{"tenant": "nobody", "to": "1001"}`, http.StatusNotFound)
	ask("admin", `{"tenant": "acme"}`, http.StatusBadRequest)
	ask("admin", `{"tenant": "acme", "to": "1001", "time": "noon"}`, http.StatusBadRequest)
	ask("admin", `{"tenant": "acme", "to": "1001", "source": "here"}`, http.StatusBadRequest)
	ask("admin", `{"tenant": "acme", "to": "`+strings.Repeat("1", 300)+`"}`, http.StatusBadRequest)
	ask("admin", `{"tenant": "acme", "to": "1001", "revision": 9999}`, http.StatusNotFound)

	// What was, and what if.
	x.want(http.StatusOK, x.send(http.MethodPatch, "/v1/tenants/acme", "admin", `{"managed": false}`, "Content-Type", "application/merge-patch+json"))
	if e := ask("admin", `{"tenant": "acme", "to": "1001"}`, http.StatusOK); e.Managed {
		t.Errorf("now: %+v", e)
	}
	if e := ask("admin", `{"tenant": "acme", "to": "1001", "revision": 1}`, http.StatusOK); !e.Managed || e.Revision != 1 {
		t.Errorf("at revision 1: %+v", e)
	}
	ask("admin", `{"tenant": "acme", "to": "1001", "change": {"tenants": [{"id": "acme", "cell": "none", "profile": "standard", "domains": ["acme.example"]}]}}`, http.StatusUnprocessableEntity)
	if e := ask("admin", `{"tenant": "new", "to": "1001", "change": {"tenants": [{"id": "new", "cell": "c1", "profile": "standard", "domains": ["new.example"], "users": [{"extension": "1001", "password": "x"}]}]}}`, http.StatusOK); e.Tenant != "new" || e.Actions[0].Do != "dial" {
		t.Errorf("with a change: %+v", e)
	}
	if x.head().Tenants["new"] != nil {
		t.Error("the change was made")
	}
	if after := len(x.audit.all); after != before+1 {
		t.Errorf("%d entries in the audit log, want that of the PATCH alone", after-before)
	}
}

// TestExplainBounded: only an admin's question may be large, and no bulk
// request's body is read before its turn.
func TestExplainBounded(t *testing.T) {
	x := newAdmin(t)
	large := `{"tenant": "acme", "to": "1001"` + strings.Repeat(" ", maxSmallBody) + `}`
	for token, want := range map[string]int{"acme": http.StatusRequestEntityTooLarge, "read": http.StatusRequestEntityTooLarge, "admin": http.StatusOK} {
		x.want(want, x.send(http.MethodPost, explainPath, token, large))
	}
	x.heavy <- struct{}{} // a bulk request is under way
	x.want(http.StatusOK, x.send(http.MethodPost, explainPath, "acme", `{"to": "1001"}`))
	for _, path := range []string{explainPath, "/v1/apply"} {
		body := &readSign{read: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r := httptest.NewRequestWithContext(ctx, http.MethodPost, path, body)
			r.Header.Set("Authorization", "Bearer "+x.secret["admin"])
			r.Header.Set("Content-Type", "application/json")
			x.Handler().ServeHTTP(httptest.NewRecorder(), r)
		}()
		select {
		case <-body.read:
			t.Errorf("%s reads its body while another bulk request runs", path)
		case <-time.After(50 * time.Millisecond): // it cannot fail by being slow
		}
		cancel()
		<-ended
	}
	<-x.heavy
	for range maxAsking { // no place is lost
		x.asking <- struct{}{}
	}
}

// readSign is a body that tells when it is read.
type readSign struct {
	once sync.Once
	read chan struct{}
}

func (b *readSign) Read([]byte) (int, error) {
	b.once.Do(func() { close(b.read) })
	return 0, io.EOF
}

// TestTrunkPasswordIsHidden: who may not see HA1s does not see these.
func TestTrunkPasswordIsHidden(t *testing.T) {
	x := newAdmin(t)
	const body = `{"host": "192.0.2.9", "port": 5060, "username": "u", "password": "s3cr3t-pw"}`
	x.want(http.StatusCreated, x.send(http.MethodPut, "/v1/tenants/acme/trunks/auth", "admin", body, "Content-Type", "application/json"))
	for _, path := range []string{"/v1/tenants/acme", "/v1/tenants/acme/trunks/auth", "/v1/tenants/acme/trunks", "/v1/tenants", "/v1/diff?from=1", "/v1/revisions/2"} {
		for _, token := range []string{"read", "acme"} {
			if g := x.send(http.MethodGet, path, token, ""); strings.Contains(g.body, "s3cr3t") {
				t.Errorf("%s shows it to %s: %s", path, token, g.body)
			}
		}
	}
	if g := x.send(http.MethodGet, "/v1/tenants/acme/trunks/auth", "admin", ""); !strings.Contains(g.body, "s3cr3t-pw") {
		t.Errorf("an admin gets %s", g.body)
	}
	// Without a password, the one that is there stays.
	x.want(http.StatusOK, x.send(http.MethodPut, "/v1/tenants/acme/trunks/auth", "admin", `{"host": "192.0.2.10", "port": 5060, "username": "u"}`, "Content-Type", "application/json"))
	if k := x.head().Tenants["acme"].Trunks; string(k[len(k)-1].Password) != "s3cr3t-pw" || k[len(k)-1].Host != "192.0.2.10" {
		t.Errorf("the trunk is %+v", k[len(k)-1])
	}
}

// TestMergeIntoForward: a PATCH of one key of a group leaves the others, and
// what an older revision has.
func TestMergeIntoForward(t *testing.T) {
	x := newAdmin(t)
	patch := func(body string) {
		t.Helper()
		x.want(http.StatusOK, x.send(http.MethodPatch, "/v1/tenants/acme/users/1001", "admin", body, "Content-Type", "application/merge-patch+json"))
	}
	patch(`{"forward": {"busy": "reject:486", "after": 20}}`)
	first := x.head().Tenants["acme"].User("1001").Forward
	patch(`{"forward": {"after": 30}}`)
	f := x.head().Tenants["acme"].User("1001").Forward
	if f.Busy != "reject:486" || f.After != 30 || first.After != 20 {
		t.Errorf("%+v, before %+v", f, first)
	}
	patch(`{"forward": null}`)
	if f := x.head().Tenants["acme"].User("1001").Forward; f != nil {
		t.Errorf("%+v is still there", f)
	}
}
