package asterisktest_test

import (
	"crypto/md5"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/route"
)

const (
	nodeToken = "node-token-0123456789"
	carrierIP = "127.0.0.9"
)

// backend answers an Asterisk as configsvc does, and counts what it is asked.
type backend struct {
	srv  *httptest.Server
	live route.Live
	node bulkhead.NodeID

	mu    sync.Mutex
	asked []string // path and body
	dead  atomic.Bool
	// late, if set, runs when an answer to a look-up is made but not yet sent.
	late atomic.Pointer[func(question string)]
}

func newBackend(t *testing.T, state bulkhead.State) *backend {
	t.Helper()
	b := &backend{node: "ast1"}
	b.live.Store(route.New(state))
	b.srv = httptest.NewServer(http.HandlerFunc(b.serve))
	t.Cleanup(b.srv.Close)
	return b
}

func (b *backend) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	b.mu.Lock()
	b.asked = append(b.asked, strings.TrimPrefix(r.URL.Path, "/asterisk/")+" "+string(body))
	b.mu.Unlock()
	if b.dead.Load() {
		panic(http.ErrAbortHandler) // the connection closes without an answer
	}
	user, password, _ := r.BasicAuth()
	node := bulkhead.NodeID("")
	if password == nodeToken {
		node = bulkhead.NodeID(user)
	}
	x := b.live.Load()
	var answer []byte
	if path, ok := strings.CutPrefix(r.URL.Path, "/asterisk/realtime/"); ok {
		answer, _ = asterisk.AnswerRealtime(x, node, time.Now(), path, body, nil)
		if f := b.late.Load(); f != nil {
			(*f)(path + " " + string(body))
		}
	} else {
		answer, _ = asterisk.AnswerCall(x, node, body, time.Now(), nil)
	}
	_, _ = w.Write(answer)
}

// take returns what was asked since the last time.
func (b *backend) take() (lookups, calls []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, q := range b.asked {
		if strings.HasPrefix(q, "call ") {
			calls = append(calls, q)
		} else {
			lookups = append(lookups, q)
		}
	}
	b.asked = nil
	return lookups, calls
}

func ha1(user, realm, password string) string {
	sum := md5.Sum([]byte(user + ":" + realm + ":" + password))
	return hex.EncodeToString(sum[:])
}

func user(extension, realm string) bulkhead.User {
	return bulkhead.User{Extension: extension, Name: "User " + extension, HA1: ha1(extension, realm, "secret-"+extension)}
}

// twoTenants is a cell with one Asterisk and two tenants whose extensions are
// the same. The carrier of both is at 127.0.0.9, and calls acme from there.
func twoTenants(carrier netip.AddrPort) bulkhead.State {
	acme := &bulkhead.Tenant{
		ID: "acme", Cell: "c1", Profile: "standard", Domains: []string{"acme.example", "acme.test"},
		Sources: []netip.Prefix{netip.MustParsePrefix(carrierIP + "/32")},
		Numbers: []bulkhead.Number{
			{Number: "493012340", User: "101"},
			{Number: "493012341", Target: "group:sales"},
			{Number: "493012342", Target: "voicemail:102"},
			{Number: "493012343", Target: "group:both"},
		},
		Users: []bulkhead.User{user("101", "acme.example"), user("102", "acme.example"), user("103", "acme.example")},
		Groups: []bulkhead.Group{
			{Name: "sales", Members: []bulkhead.Target{"user:101", "user:102"}, Timeout: 20, Then: "voicemail:102"},
			{Name: "both", Members: []bulkhead.Target{"user:103", "number:+49309999"}, Timeout: 20},
			{Name: "line", Ring: bulkhead.Sequential, Members: []bulkhead.Target{"user:101", "user:102"}, Timeout: 5},
		},
		Dialling: bulkhead.Dialling{Country: "49", Area: "30", NationalPrefix: "0", InternationalPrefix: "00"},
		Trunks: []bulkhead.Trunk{
			{Name: "first", Host: carrierIP, Port: carrier.Port(), Priority: 1},
			{Name: "second", Host: carrierIP, Port: carrier.Port(), Priority: 2},
		},
		Limits:  bulkhead.Limits{Calls: 3},
		Headers: []bulkhead.HeaderRule{{Action: bulkhead.AddHeader, Name: "X-Account", Value: "acme: 1"}},
		Codecs:  []string{"PCMA"},
	}
	acme.Users[1].Voicemail = true
	globex := &bulkhead.Tenant{
		ID: "globex", Cell: "c1", Profile: "standard", Domains: []string{"globex.example"},
		Users:  []bulkhead.User{user("101", "globex.example"), user("102", "globex.example")},
		Codecs: []string{"PCMU"},
	}
	return bulkhead.State{
		Revision: 1,
		Cells:    map[bulkhead.CellID]*bulkhead.Cell{"c1": {ID: "c1"}},
		Pools:    map[bulkhead.PoolID]*bulkhead.Pool{"p1": {ID: "p1", Cell: "c1", Profile: "standard"}},
		Nodes:    map[bulkhead.NodeID]*bulkhead.Node{"ast1": {ID: "ast1", Pool: "p1", Kind: bulkhead.Asterisk, SIP: "127.0.0.1:5060"}},
		Tenants:  map[bulkhead.TenantID]*bulkhead.Tenant{"acme": acme, "globex": globex},
	}
}
