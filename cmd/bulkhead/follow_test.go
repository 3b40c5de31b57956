package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// running is a service that a test started in its own process.
type running struct {
	*parts
	g *group
}

// stop ends the service; it is done with the test otherwise.
func (r *running) stop(t *testing.T) {
	t.Helper()
	r.g.cancel()
	if err := r.g.wait(); err != nil {
		t.Error(err)
	}
}

// startService starts one service with a data folder of its own.
func startService(t *testing.T, data string, start func(*parts, *group) error) *running {
	t.Helper()
	f := &serviceFlags{Data: data, Admin: "127.0.0.1:0", LogLevel: "error"}
	g := newGroup(t.Context(), serviceStop)
	p, err := openParts(g, f, f.logger(io.Discard))
	if err == nil {
		err = start(p, g)
	}
	if err != nil {
		t.Fatal(err)
	}
	g.started()
	return &running{p, g}
}

// central starts a central configsvc over the demo's registry.
func central(t *testing.T, data string) (r *running, feed string) {
	t.Helper()
	if err := dataDir(data).open(); err != nil {
		t.Fatal(err)
	}
	if err := seedDemo(t.Context(), dataDir(data), io.Discard); err != nil {
		t.Fatal(err)
	}
	r = startService(t, data, func(p *parts, g *group) error {
		if err := p.followStore(g, &storeFlags{}, "configsvc"); err != nil {
			return err
		}
		if _, err := startConfigsvc(p, g, listenFlags{Listen: "127.0.0.1:0"}, nil); err != nil {
			return err
		}
		_, err := p.serveAPI(g)
		return err
	})
	return r, "http://" + r.addr.String()
}

// tokenFile makes a token and writes it into a file.
func (r *running) tokenFile(t *testing.T, tok registry.Token) (file string, made registry.Token) {
	t.Helper()
	tok, err := configsvc.NewToken(r.live.Load().State(), tok)
	if err != nil {
		t.Fatal(err)
	}
	secret, made, err := r.store.Tokens().Create(t.Context(), tok)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, made
}

// agentAt starts an agent and returns where nodes ask it.
func agentAt(t *testing.T, data, feed, token string) (*running, string) {
	t.Helper()
	var xml *configsvc.Server
	r := startService(t, data, func(p *parts, g *group) (err error) {
		f := feedFlags{Central: []string{feed}, TokenFile: token}
		if err := f.follow(p, g, "configsvc"); err != nil {
			return err
		}
		xml, err = startConfigsvc(p, g, listenFlags{Listen: "127.0.0.1:0"}, nil)
		return err
	})
	return r, "http://" + xml.Addr().String() + "/freeswitch/xml"
}

// asNode asks as a node does for a user that the demo has, and reports whether
// the answer names him.
func asNode(t *testing.T, url, node, password string) bool {
	t.Helper()
	body := strings.NewReader("section=directory&tag_name=domain&key_name=name&key_value=acme.example&user=1001&domain=acme.example")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(node, password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(text), "a1-hash")
}

// readiness is what /readyz says.
type readiness struct {
	status   int
	Ready    bool
	Registry struct {
		Source     registry.Source
		Revision   bulkhead.RevisionNumber
		Following  bool
		AgeSeconds float64 `json:"age_seconds"`
		Error      string
	}
}

func readyAt(t *testing.T, admin string) (said readiness, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/readyz", nil)
	if err != nil {
		return said, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return said, err
	}
	defer resp.Body.Close()
	said.status = resp.StatusCode
	return said, json.NewDecoder(resp.Body).Decode(&said)
}

func (r *running) readyz(t *testing.T) readiness {
	t.Helper()
	said, err := readyAt(t, r.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	return said
}

func secretIn(t *testing.T, file string) string {
	t.Helper()
	s, err := readToken(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAgent: an agent follows a central configsvc with its node's token,
// answers its node, goes on from disk with everything else dead, and says so.
func TestAgent(t *testing.T) {
	data, own := filepath.Join(t.TempDir(), "central"), filepath.Join(t.TempDir(), "agent")
	c, feed := central(t, data)
	file, tok := c.tokenFile(t, registry.Token{Scope: registry.ScopeNode, Node: "fs1"})
	other, _ := c.tokenFile(t, registry.Token{Scope: registry.ScopeNode, Node: "fs2"})
	shared, err := c.data.secret(nodeToken)
	if err != nil {
		t.Fatal(err)
	}
	a, xml := agentAt(t, own, feed, file)
	password := secretIn(t, file)
	eventually(t, 20*time.Second, "the node is known", func() string {
		if asNode(t, xml, "fs1", password) && asNode(t, xml, "fs2", secretIn(t, other)) {
			return ""
		}
		return "not yet"
	})
	for name, login := range map[string][2]string{
		"the installation's token": {"fs1", shared}, "another node's token": {"fs1", secretIn(t, other)},
		"a node that is not there": {"fs9", password}, "no token": {"fs1", ""},
	} {
		if asNode(t, xml, login[0], login[1]) {
			t.Errorf("the agent answers %s", name)
		}
	}
	if _, err := os.Stat(dataDir(own).registry()); !os.IsNotExist(err) {
		t.Errorf("the agent has a registry: %v", err)
	}
	before := a.live.Load().Revision()
	if _, err := c.store.Commit(t.Context(), before, bulkhead.Revision{Author: "t", Change: bulkhead.Change{Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{"bravo"}}}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the change", func() string {
		if a.live.Load().Revision() == before+1 {
			return ""
		}
		return "not yet"
	})
	if said := a.readyz(t); said.status != 200 || said.Registry.Source != registry.FromStore || !said.Registry.Following || said.Registry.AgeSeconds != 0 {
		t.Errorf("%+v", said)
	}

	// Everything else dies, and the agent restarts.
	a.stop(t)
	c.stop(t)
	a, xml = agentAt(t, own, feed, file)
	if !asNode(t, xml, "fs1", password) {
		t.Error("the node gets no answer from disk")
	}
	said := a.readyz(t)
	if said.status != 200 || !said.Ready || said.Registry.Source != registry.FromDisk || said.Registry.Revision != before+1 || said.Registry.AgeSeconds <= 0 || said.Registry.Error == "" {
		t.Errorf("%+v", said)
	}
	if n, err := testutil.GatherAndCount(a.reg, "bulkhead_registry_from_disk", "bulkhead_registry_age_seconds"); err != nil || n != 2 {
		t.Errorf("%d metrics, %v", n, err)
	}
	a.stop(t)

	// A revoked token is worth nothing at the agent either.
	c, feed = central(t, data)
	defer c.stop(t)
	a, xml = agentAt(t, own, feed, file)
	defer a.stop(t)
	eventually(t, 20*time.Second, "following", func() string {
		if said := a.readyz(t); said.Registry.Following && asNode(t, xml, "fs1", password) {
			return ""
		}
		return "not yet"
	})
	if err := c.store.Tokens().Revoke(context.Background(), tok.ID); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, 20*time.Second, "the node is refused", func() string {
		if asNode(t, xml, "fs1", password) {
			return "it is answered"
		}
		return ""
	})
	if took := time.Since(began); took > 5*time.Second { // a second is promised
		t.Errorf("the token was good for another %v", took)
	}
	if !asNode(t, xml, "fs2", secretIn(t, other)) {
		t.Error("another node's token was revoked with it")
	}
}

// TestFeedListener: the feed on a listener of its own, with a certificate, and
// nothing else of the API there.
func TestFeedListener(t *testing.T) {
	ca, cert, key := certificate(t)
	c, _ := central(t, filepath.Join(t.TempDir(), "central"))
	defer c.stop(t)
	file, _ := c.tokenFile(t, registry.Token{Scope: registry.ScopeSBC, SBC: "sbc1"})
	listen := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if err := startFeed(c.parts, c.g, c.api.Load().Handler(), &feedListener{Feed: listen, FeedCert: cert, FeedKey: key}); err != nil {
		t.Fatal(err)
	}
	head, err := (&stateFlags{feedFlags: feedFlags{Central: []string{"https://" + listen}, TokenFile: file, CAFile: ca}}).head(t.Context())
	if err != nil || head.SBCs["sbc1"] == nil || head.Revision != c.live.Load().Revision() {
		t.Errorf("revision %d, %v", head.Revision, err)
	}
	for name, f := range map[string]feedFlags{
		"a certificate that nobody vouches for": {Central: []string{"https://" + listen}, TokenFile: file},
		"no TLS":                                {Central: []string{"http://" + listen}, TokenFile: file},
		"a file that is no certificate":         {Central: []string{"https://" + listen}, TokenFile: file, CAFile: file},
		"no token":                              {Central: []string{"https://" + listen}, CAFile: ca},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := (&stateFlags{feedFlags: f}).head(ctx); err == nil {
			t.Errorf("%s: accepted", name)
		}
		cancel()
	}
	text, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + listen + "/v1/tenants")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("the API on the feed's listener: %s", resp.Status)
	}
}

// certificate writes a certificate for 127.0.0.1 that vouches for itself.
func certificate(t *testing.T) (ca, cert, key string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.StartTLS()
	defer srv.Close()
	private, err := x509.MarshalPKCS8PrivateKey(srv.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert = written(t, dir, "cert", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	return cert, cert, written(t, dir, "key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}

// TestChangeRebuildsNothing: a tenant's change comes into force as a change,
// not by indexing every tenant anew, in the services as they are wired.
func TestChangeRebuildsNothing(t *testing.T) {
	data := filepath.Join(t.TempDir(), "central")
	c, feed := central(t, data)
	defer c.stop(t)
	file, _ := c.tokenFile(t, registry.Token{Scope: registry.ScopeNode, Node: "fs1"})
	a, _ := agentAt(t, filepath.Join(t.TempDir(), "agent"), feed, file)
	defer a.stop(t)
	first := c.live.Load().Revision()
	acme := *c.live.Load().Tenant("acme")
	for i := range bulkhead.RevisionNumber(10) {
		acme.Name = fmt.Sprintf("Acme %d", i)
		if _, err := c.store.Commit(t.Context(), first+i, bulkhead.Revision{Author: "t", Change: bulkhead.Change{Tenants: []bulkhead.Tenant{acme}}}); err != nil {
			t.Fatal(err)
		}
	}
	for name, r := range map[string]*running{"central": c, "agent": a} {
		eventually(t, 20*time.Second, "the last change at the "+name, func() string {
			if x := r.live.Load(); x.Revision() == first+10 && x.Tenant("acme").Name == "Acme 9" {
				return ""
			}
			return "not yet"
		})
		if whole := updates(t, r, "state"); whole != 1 {
			t.Errorf("%s: everything was indexed %v times", name, whole)
		}
		if changes := updates(t, r, "change"); changes < 1 || changes > 10 {
			t.Errorf("%s: %v changes", name, changes)
		}
	}
}

func updates(t *testing.T, r *running, by string) float64 {
	t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "bulkhead_revision_updates_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == by {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}
