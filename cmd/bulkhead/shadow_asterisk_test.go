package main

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// operatorsAsterisk is what an Asterisk did before Bulkhead.
var operatorsAsterisk = map[string]string{
	"extensions.conf": `
[from-carrier]
exten => _493010[15],1,Dial(PJSIP/phones/sip:${EXTEN:4}@{{.Phones}},20)
 same => n,Hangup()
exten => 4930102,1,Dial(PJSIP/phones/sip:104@{{.Phones}},20)
 same => n,Hangup()
exten => 4930103,1,Answer()
 same => n,Hangup()
exten => 4930107,1,Dial(PJSIP/phones/sip:101@{{.Phones}},20)
 same => n,Hangup()
exten => 4930201,1,Dial(PJSIP/phones/sip:201@{{.Phones}},20)
 same => n,Hangup()
`,
	"pjsip.conf": `
[udp]
type = transport
protocol = udp
bind = 127.0.0.1:{{.SIPPort}}
[carrier]
type = endpoint
context = from-carrier
disallow = all
allow = ulaw
[carrier-id]
type = identify
endpoint = carrier
match = 127.0.9.0/24
[phones]
type = endpoint
context = from-carrier
disallow = all
allow = ulaw
`,
}

const shadowAsteriskRegistry = `cells: [{id: c1}]
pools: [{id: p1, cell: c1, profile: standard}]
nodes: [{id: ast1, pool: p1, sip: "%s", kind: asterisk, unmanaged: defer}]
tenants:
  - id: acme
    cell: c1
    profile: standard
    domains: [acme.example]
    users: [{extension: "101", password: secret-101}, {extension: "102", password: secret-102}, {extension: "105", password: secret-105}]
    announcements: [{name: closed, file: closed.wav}]
    numbers:
      - {number: "4930101", target: "user:101"}
      - {number: "4930102", target: "user:102"}
      - {number: "4930103", target: "announcement:closed"}
      - {number: "4930105", target: "user:105"}
      - {number: "4930106", target: "reject:404"}
      - {number: "4930107", target: "reject:486"}
  - id: later
    cell: c1
    profile: standard
    managed: false
    domains: [later.example]
    users: [{extension: "201", password: secret-201}]
    numbers: [{number: "4930201", target: "user:201"}]
`

// TestShadowOfAnAsterisk: 200 calls on a real Asterisk that was there before,
// whose files are its own and whose records come through the bridge and the
// pipe; the report says of each what this test knows of it.
func TestShadowOfAnAsterisk(t *testing.T) {
	asterisktest.Need(t)
	phones := phonesAt(t, "127.0.0.1:0")
	if _, err := phones.Add(siptest.PhoneConfig{User: "*", OnInvite: func(in *siptest.Incoming) siptest.Behaviour {
		if in.Request().Recipient.User == "105" {
			return siptest.Behaviour{Code: 486}
		}
		return siptest.Behaviour{}
	}}); err != nil {
		t.Fatal(err)
	}
	ast := asterisktest.Start(t, asterisktest.Options{Conf: operatorsAsterisk, Phones: phones.Addr()})
	etc := filepath.Join(ast.Dir, "etc")
	before := filesIn(t, etc)

	data, listen := filepath.Join(t.TempDir(), "data"), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	applyText(t, data, fmt.Sprintf(shadowAsteriskRegistry, ast.SIP))
	bulkheadRun(t, "config", "asterisk", "--attach", "--write", "--data", data, "--node", "ast1", "--dir", etc,
		"--endpoint", "carrier=from-carrier", "--url", "http://"+listen)
	ast.Restart()
	r := startShadow(t, data, listen, func(p *parts, g *group) error {
		source, err := asterisk.NewSource(ast.Config(), p.log, p.reg)
		if err != nil {
			return err
		}
		cfg := eventbridge.DefaultConfig()
		cfg.Cell = "c1"
		b, err := serveBridge(p, g, cfg, "127.0.0.1:0", nil, func(string, string) bool { return false }, p.log)
		if err != nil {
			return err
		}
		return b.SetSources([]eventbridge.Source{source})
	})
	eventually(t, 30*time.Second, "the bridge hears the Asterisk", func() string { return strings.Join(slices.Collect(maps.Values(r.g.notReady())), ", ") })

	const none = configsvc.Unmanaged
	type kind struct {
		number  string
		calls   int
		code    int // of a refusal; 0: it is answered
		verdict configsvc.Verdict
		how     string
	}
	kinds := []kind{
		{"4930101", 60, 0, configsvc.Same, ""},
		{"4930105", 20, 486, configsvc.Same, ""},
		{"4930106", 20, 404, configsvc.Same, ""},
		{"4930102", 30, 0, configsvc.Different, "would call user 102, called 104"},
		{"4930107", 10, 0, configsvc.Different, "would be rejected with 486 (as configured), called 101"},
		{"4930103", 20, 0, configsvc.NotKnown, "would go to play closed.wav, the node answered by itself: with what is not recorded"},
		{"4930201", 20, 0, none, ""},
		{"4930999", 20, 404, none, ""},
	}
	near, err := siptest.NewPhone(siptest.PhonesConfig{Listen: "127.0.9.1:0"}, siptest.PhoneConfig{User: "4915550100"})
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	var wg sync.WaitGroup
	different := map[string]string{} // by Call-ID
	turns := make(chan struct{}, 6)
	for _, k := range kinds {
		for i := range k.calls {
			id := fmt.Sprintf("%s-%d@shadow.example", k.number, i)
			if k.verdict == configsvc.Different {
				different[id] = k.how
			}
			turns <- struct{}{}
			wg.Go(func() {
				defer func() { <-turns }()
				call, err := near.Dial(t.Context(), "sip:"+k.number+"@"+ast.SIP.String(), siptest.DialOptions{CallID: id, Talk: 20 * time.Millisecond})
				refused := (*siptest.StatusError)(nil)
				switch {
				case err == nil:
					<-call.Done()
					err = errors.New("it was answered")
					if k.code == 0 {
						err = nil
					}
				case errors.As(err, &refused) && refused.Code == k.code:
					err = nil
				}
				if err != nil {
					t.Errorf("%s: %v", k.number, err)
				}
			})
		}
	}
	wg.Wait()

	eventually(t, time.Minute, "the report", func() string {
		got := shadowTenants(t, data)
		acme, others := got["acme"], got[""]
		acme.How = nil
		if acme.Calls != 160 || acme.Same != 100 || acme.Different != 40 || acme.NotKnown != 20 || others.Calls != 40 || others.Unmanaged != 40 {
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
	for _, h := range shadowTenants(t, data)["acme"].How {
		if !slices.ContainsFunc(kinds, func(k kind) bool { return k.how == h.How && k.calls == h.Calls && k.verdict == h.Verdict }) {
			t.Errorf("%d calls were %s: %q", h.Calls, h.Verdict, h.How)
		}
	}
	for _, c := range decodeLines[configsvc.Comparison](t, bulkheadRun(t, "shadow", "report", "--data", data, "--calls", "--json")) {
		if id := c.Decision.SIPCallID; different[id] != c.How {
			t.Errorf("%s: %q, want %q", id, c.How, different[id])
		} else {
			delete(different, id)
		}
	}
	if len(different) > 0 {
		t.Errorf("%d calls that went differently are not listed", len(different))
	}

	bulkheadRun(t, "detach", "--data", data, "--node", "ast1", "--dir", etc, "--write")
	if !maps.Equal(before, filesIn(t, etc)) {
		t.Error("the files are not as they were")
	}
}
