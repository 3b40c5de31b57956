package main

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/bulkhead-voip/bulkhead/registry"
)

// serviceUnderTest starts a service's parts in this process, on an example
// registry, and ends them with the test.
func serviceUnderTest(t *testing.T, start func(*parts, *group) error) *parts {
	t.Helper()
	data := dataDir(filepath.Join(t.TempDir(), "d"))
	if err := data.open(); err != nil {
		t.Fatal(err)
	}
	if err := seedDemo(t.Context(), data, io.Discard); err != nil {
		t.Fatal(err)
	}
	f := &serviceFlags{Data: string(data), Admin: "127.0.0.1:0", LogLevel: "error"}
	g := newGroup(t.Context(), serviceStop)
	p, err := openParts(g, f, f.logger(io.Discard))
	if err == nil {
		err = p.followStore(g, &storeFlags{}, "")
	}
	if err == nil {
		err = start(p, g)
	}
	if err != nil {
		t.Fatal(err)
	}
	g.started()
	t.Cleanup(func() {
		g.cancel()
		if err := g.wait(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func status(t *testing.T, method, url string, authorize func(*http.Request)) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	authorize(req)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestAdminNeedsToken walks every route that a room mounted.
func TestAdminNeedsToken(t *testing.T) {
	p := serviceUnderTest(t, func(p *parts, g *group) error {
		if _, err := startEventbridge(p, g, "cell1", "127.0.0.1:0", bridgeFlags{}); err != nil {
			return err
		}
		_, err := startCdrpipe(p, g, &warehouseFlags{Warehouse: sqliteStore})
		return err
	})
	token, err := p.data.secret(adminToken)
	if err != nil {
		t.Fatal(err)
	}
	bearer := func(token string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
	}
	paths := map[string]bool{}
	err = chi.Walk(p.admin, func(_, path string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		paths[path] = true
		return nil
	})
	if err != nil || !paths["/v1/cdrs"] || !paths["/status"] {
		t.Fatalf("routes are %v, %v", paths, err)
	}
	for path := range paths {
		url := "http://" + p.addr.String() + path
		for name, c := range map[string]struct {
			authorize func(*http.Request)
			want      int
		}{
			"no token":    {func(*http.Request) {}, 401},
			"wrong token": {bearer("x" + token), 401},
			"node token":  {func(r *http.Request) { r.SetBasicAuth("fs1", token) }, 401},
			"right token": {bearer(token), 200},
		} {
			if got := status(t, http.MethodGet, url, c.authorize); got != c.want {
				t.Errorf("%s with %s: %d, want %d", path, name, got, c.want)
			}
		}
	}
	for _, open := range []string{"/healthz", "/metrics"} {
		if got := status(t, http.MethodGet, "http://"+p.addr.String()+open, func(*http.Request) {}); got != 200 {
			t.Errorf("%s: %d, want 200 for anybody", open, got)
		}
	}
}

// TestSBCEventsNeedToken: nobody but an SBC of the cell puts records into the spool.
func TestSBCEventsNeedToken(t *testing.T) {
	var b *bridge
	p := serviceUnderTest(t, func(p *parts, g *group) (err error) {
		b, err = startEventbridge(p, g, "cell1", "127.0.0.1:0", bridgeFlags{})
		return err
	})
	token, err := p.data.secret(sbcToken)
	if err != nil {
		t.Fatal(err)
	}
	basic := func(user, password string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(user, password) }
	}
	url := "http://" + b.addr.String()
	for name, c := range map[string]struct {
		path      string
		authorize func(*http.Request)
		want      int
	}{
		"nobody":         {"/kamailio/events", func(*http.Request) {}, 401},
		"wrong token":    {"/kamailio/events", basic("sbc1", "x"+token), 401},
		"no such SBC":    {"/kamailio/events", basic("sbc9", token), 401},
		"the SBC":        {"/kamailio/events", basic("sbc1", token), 204},
		"anything else":  {"/status", basic("sbc1", token), 404},
		"another method": {"/v1/cdrs", basic("sbc1", token), 404},
	} {
		if got := status(t, http.MethodPost, url+c.path, c.authorize); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// TestServicesNameWhatIsMissing: the likeliest mistakes end at once, with what
// there is instead.
func TestServicesNameWhatIsMissing(t *testing.T) {
	data := filepath.Join(t.TempDir(), "d")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no registry": {[]string{"configsvc", "--data", data, "--admin", "127.0.0.1:0", "--listen", "127.0.0.1:0"}, "there is no registry in"},
		"no store":    {[]string{"cdr", "--data", data}, "there is no CDR store in"},
		"no command":  {[]string{"serve"}, "unexpected argument serve"},
		"no file":     {[]string{"apply", "--data", data, "-f", filepath.Join(data, "x.yaml")}, "x.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			var out lockedBuffer
			if code := execute(t.Context(), c.args, io.Discard, &out); code == exitOK || !strings.Contains(out.String(), c.want) {
				t.Errorf("exit %d, %q; want one that says %q", code, out.String(), c.want)
			}
		})
	}
	if err := seedDemo(t.Context(), dataDir(data), io.Discard); err == nil {
		var out lockedBuffer
		code := execute(t.Context(), []string{"dispatcher", "--data", data, "--sbc", "nope", "--admin", "127.0.0.1:0"}, io.Discard, &out)
		if code == exitOK || !strings.Contains(out.String(), "sbc1") {
			t.Errorf("exit %d, %q; want one that names the SBCs that there are", code, out.String())
		}
	} else {
		t.Fatal(err)
	}
}

// TestAdminAPIChangesTheRegistry: the API is beside the rooms' own routes, and
// what it commits is in force.
func TestAdminAPIChangesTheRegistry(t *testing.T) {
	p := serviceUnderTest(t, func(p *parts, g *group) error {
		if _, err := startCdrpipe(p, g, &warehouseFlags{Warehouse: sqliteStore}); err != nil {
			return err
		}
		if _, err := startConfigsvc(p, g, listenFlags{Listen: "127.0.0.1:0"}, nil); err != nil {
			return err
		}
		_, err := p.serveAPI(g)
		return err
	})
	token, err := p.data.secret(adminToken)
	if err != nil {
		t.Fatal(err)
	}
	bearer := func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
	url := "http://" + p.addr.String()
	for path, want := range map[string]int{"/v1/tenants/acme": 200, "/v1/tenants/nobody": 404, "/v1/revisions": 200, "/v1/cdrs": 200, "/v1/nothing": 404} {
		if got := status(t, http.MethodGet, url+path, bearer); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
		if got := status(t, http.MethodGet, url+path, func(*http.Request) {}); path != "/v1/nothing" && got != 401 {
			t.Errorf("%s without a token: %d, want 401", path, got)
		}
	}
	// The rooms' routes take the registry's tokens too: an admin's, and a reader's to look.
	for scope, want := range map[registry.Scope][2]int{registry.ScopeAdmin: {200, 405}, registry.ScopeRead: {200, 401}, registry.ScopeTenant: {401, 401}} {
		of := registry.Token{Scope: scope}
		if scope == registry.ScopeTenant {
			of.Tenant = "acme"
		}
		secret, _, err := p.store.Tokens().Create(t.Context(), of)
		if err != nil {
			t.Fatal(err)
		}
		for i, method := range []string{http.MethodGet, http.MethodDelete} {
			if got := status(t, method, url+"/v1/cdrs", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+secret) }); got != want[i] {
				t.Errorf("%s /v1/cdrs with a token of scope %s: %d, want %d", method, scope, got, want[i])
			}
		}
	}
	before := p.live.Load().Revision()
	if got := status(t, http.MethodDelete, url+"/v1/tenants/acme", bearer); got/100 != 2 {
		t.Fatalf("delete: %d", got)
	}
	eventually(t, 10*time.Second, "the deletion is in force", func() string {
		if x := p.live.Load(); x.Revision() == before || x.Tenant("acme") != nil {
			return "not yet"
		}
		return ""
	})
}
