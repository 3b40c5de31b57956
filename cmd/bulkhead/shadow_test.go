package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// operatorsDialplan is what the switch did before Bulkhead: it rings %[1]s.
const operatorsDialplan = `<document type="freeswitch/xml"><section name="dialplan"><context name="public">
<extension name="desk"><condition field="destination_number" expression="^4930(101)$">
  <action application="set" data="hangup_after_bridge=true"/><action application="bridge" data="sofia/internal/$1@%[1]s"/>
</condition></extension>
<extension name="moved"><condition field="destination_number" expression="^4930102$">
  <action application="set" data="hangup_after_bridge=true"/><action application="bridge" data="sofia/internal/104@%[1]s"/>
</condition></extension>
<extension name="closed"><condition field="destination_number" expression="^4930103$">
  <action application="playback" data="silence_stream://20"/><action application="answer"/><action application="hangup"/>
</condition></extension>
<extension name="later"><condition field="destination_number" expression="^4930201$">
  <action application="set" data="hangup_after_bridge=true"/><action application="bridge" data="sofia/internal/201@%[1]s"/>
</condition></extension>
</context></section></document>`

// shadowRegistry is a node beside which Bulkhead watches, at its two addresses,
// and two tenants, one of them not to be managed yet.
const shadowRegistry = `cells: [{id: c1}]
pools: [{id: p1, cell: c1, profile: standard}]
nodes:
  - {id: fs1, pool: p1, sip: "%s", esl: "%s", unmanaged: defer}
  - {id: ast1, pool: p1, sip: "127.0.0.9:5060", kind: asterisk, unmanaged: defer}
tenants:
  - id: acme
    cell: c1
    profile: standard
    domains: [acme.example]
    sources: [127.0.0.1/32]
    users: [{extension: "101", password: secret-101}, {extension: "102", password: secret-102}]
    announcements: [{name: closed, file: closed.wav}]
    numbers: [{number: "4930101", target: "user:101"}, {number: "4930102", target: "user:102"}, {number: "4930103", target: "announcement:closed"}]
  - id: later
    cell: c1
    profile: standard
    managed: false
    domains: [later.example]
    sources: [127.0.0.2/32]
    users: [{extension: "201", password: secret-201}]
    numbers: [{number: "4930201", target: "user:201"}]
`

// startShadow starts what stands beside a switch in a shadow: configsvc, a
// bridge, which the caller starts, and a pipe, over the registry in data.
func startShadow(t *testing.T, data, listen string, bridge func(*parts, *group) error) *running {
	t.Helper()
	r := startService(t, data, func(p *parts, g *group) error {
		if err := p.followStore(g, &storeFlags{}, ""); err != nil {
			return err
		}
		cmd := configsvcCmd{Shadow: true, ShadowSize: 1}
		shadow, err := cmd.shadow(p, g)
		if err != nil {
			return err
		}
		if _, err := startConfigsvc(p, g, listenFlags{Listen: listen}, shadow); err != nil {
			return err
		}
		if err := bridge(p, g); err != nil {
			return err
		}
		_, err = startCdrpipe(p, g, &warehouseFlags{Warehouse: sqliteStore})
		return err
	})
	t.Cleanup(func() { r.stop(t) })
	return r
}

// registryBridge starts a bridge to the switches that the registry has.
func registryBridge(p *parts, g *group) error {
	_, err := startEventbridge(p, g, "c1", "127.0.0.1:0", bridgeFlags{})
	return err
}

// bulkheadRun runs a command line that must do.
func bulkheadRun(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := execute(t.Context(), args, &out, &errs); code != exitOK {
		t.Fatalf("bulkhead %s: %d %s", strings.Join(args, " "), code, errs.String())
	}
	return out.String()
}

// shadowTenants is what bulkhead shadow report says.
func shadowTenants(t *testing.T, data string) map[bulkhead.TenantID]configsvc.TenantShadow {
	t.Helper()
	out := map[bulkhead.TenantID]configsvc.TenantShadow{}
	for line := range strings.Lines(bulkheadRun(t, "shadow", "report", "--data", data, "--json")) {
		var s configsvc.TenantShadow
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out[s.Tenant] = s
	}
	return out
}

// TestShadowOfASwitch: 200 calls on a switch with a dialplan of its own, which
// goes on as if nobody watched; the report says what would have been otherwise.
func TestShadowOfASwitch(t *testing.T) {
	far, err := siptest.NewPhone(siptest.PhonesConfig{}, siptest.PhoneConfig{User: "*"})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	data, listen := filepath.Join(t.TempDir(), "data"), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if err := dataDir(data).open(); err != nil {
		t.Fatal(err)
	}
	token, err := dataDir(data).secret(nodeToken)
	if err != nil {
		t.Fatal(err)
	}
	password, err := dataDir(data).secret(eslSecret)
	if err != nil {
		t.Fatal(err)
	}
	node, err := freeswitchtest.New(freeswitchtest.Config{
		ID: "fs1", ESLPassword: password, XMLURLs: []string{"http://" + listen + "/freeswitch/xml"}, XMLUser: "fs1", XMLPassword: token,
		StaticXML: fmt.Sprintf(operatorsDialplan, far.Group().Addr()), MaxSessionsPerSecond: 10_000,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- node.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	applyText(t, data, fmt.Sprintf(shadowRegistry, node.Addr(), node.ESLAddr()))
	r := startShadow(t, data, listen, registryBridge)
	eventually(t, 30*time.Second, "the bridge hears the switch", func() string { return strings.Join(slices.Collect(maps.Values(r.g.notReady())), ", ") })

	var wg sync.WaitGroup
	for _, from := range []struct {
		listen string
		calls  map[string]int
	}{
		{"127.0.0.1:0", map[string]int{"4930101": 80, "4930102": 40, "4930103": 30, "4930999": 30}},
		{"127.0.0.2:0", map[string]int{"4930201": 20}},
	} {
		near, err := siptest.NewPhone(siptest.PhonesConfig{Listen: from.listen}, siptest.PhoneConfig{User: "4915550100"})
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		turns := make(chan struct{}, 8)
		for number, n := range from.calls {
			for range n {
				turns <- struct{}{}
				wg.Go(func() {
					defer func() { <-turns }()
					call, err := near.Dial(t.Context(), "sip:"+number+"@"+node.Addr().String(), siptest.DialOptions{Talk: 20 * time.Millisecond})
					if err == nil {
						<-call.Done()
					} else if number != "4930999" { // the switch's own 404
						t.Errorf("%s: %v", number, err)
					}
				})
			}
		}
	}
	wg.Wait()
	eventually(t, time.Minute, "the report", func() string {
		got := shadowTenants(t, data)
		acme, none := got["acme"], got[""]
		acme.How = nil
		if acme.Calls != 180 || acme.Same != 110 || acme.Different != 40 || acme.NotKnown != 30 || none.Calls != 20 || none.Unmanaged != 20 {
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
	text := bulkheadRun(t, "shadow", "report", "--data", data)
	for _, want := range []string{"acme            180    110   40", "40  different: would call user 102, called 104", "30  not known: would go to play closed.wav"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report does not say %q:\n%s", want, text)
		}
	}
	if n := strings.Count(bulkheadRun(t, "shadow", "report", "--data", data, "--calls"), "\n"); n != 41 {
		t.Errorf("%d lines, want those of 40 calls", n)
	}
}

func applyText(t *testing.T, data, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "state.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	bulkheadRun(t, "apply", "--data", data, "-f", file)
}

// TestShadowInEveryDialect: each hears its own "not mine", and the decisions
// are compared alike.
func TestShadowInEveryDialect(t *testing.T) {
	data, listen := filepath.Join(t.TempDir(), "data"), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	applyText(t, data, fmt.Sprintf(shadowRegistry, "127.0.0.1:5060", "127.0.0.1:1"))
	startShadow(t, data, listen, registryBridge)
	token, err := dataDir(data).secret(nodeToken)
	if err != nil {
		t.Fatal(err)
	}
	post := func(node, path, body, want string, status int) {
		t.Helper()
		method := http.MethodPost
		if body == "" {
			method = http.MethodGet
		}
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+listen+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(node, token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != status || !strings.Contains(string(got), want) || want == "" && len(got) > 0 {
			t.Errorf("%s: %d %q %v, want %d %q", path, resp.StatusCode, got, err, status, want)
		}
	}
	post("fs1", "/freeswitch/xml", "hostname=x&section=dialplan&tag_name=&key_name=&key_value=&Hunt-Destination-Number=4930101&Hunt-Context=public&"+
		"Unique-ID=uuid-xml&Call-Direction=inbound&variable_sip_network_ip=127.0.0.1&variable_sip_network_port=5090&variable_sip_req_host=127.0.0.1", `status="not found"`, 200)
	post("fs1", "/freeswitch/xml", "hostname=x&section=directory&tag_name=domain&key_name=name&key_value=acme.example&user=101&domain=acme.example", `status="not found"`, 200)
	post("fs1", "/freeswitch/curl?dest=4930102&context=public&uuid=uuid-curl&direction=inbound&ip=127.0.0.1&port=5090&host=127.0.0.1", "", "^^;bulkhead_action=defer", 200)
	post("fs1", "/freeswitch/curl?format=json&dest=4930102&context=public&uuid=uuid-json&direction=inbound&ip=127.0.0.1&port=5090&host=127.0.0.1", "", `"deferred":true`, 200)
	post("ast1", "/asterisk/call", "exten=101&endpoint=101%40acme.example&callid=call-ast&from=102", "v=1&do=defer", 200)
	post("ast1", "/asterisk/realtime/ps_endpoints/single", "id=101%40acme.example", "", 200)
	post("ast1", "/asterisk/realtime/ps_contacts/store", "id=x", "0\n", 200)
	post("sbc1", "/kamailio/route?d=acme.example&s=127.0.0.1&n=101", "", "", 404)

	store, err := cdrpipe.OpenSQLite(t.Context(), dataDir(data).cdrs())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	start := time.Now().UTC()
	var entries []cdr.Entry
	for i, l := range []cdr.Record{
		{Node: "fs1", Leg: "uuid-xml", Call: "uuid-xml", Direction: cdr.Inbound},
		{Node: "fs1", Leg: "uuid-xml-b", Call: "uuid-xml", Direction: cdr.Outbound, Callee: "101"},
		{Node: "fs1", Leg: "uuid-curl", Call: "uuid-curl", Direction: cdr.Inbound},
		{Node: "fs1", Leg: "uuid-curl-b", Call: "uuid-curl", Direction: cdr.Outbound, Callee: "104"},
		{Node: "ast1", Leg: "17.1", Call: "17.1", Direction: cdr.Inbound, SIPCallID: "call-ast"},
		{Node: "ast1", Leg: "17.2", Call: "17.1", Direction: cdr.Outbound, Callee: "101"},
	} {
		l.Schema, l.Kind, l.Source, l.Cell, l.SIPCode, l.Q850 = cdr.SchemaVersion, cdr.Leg, cdr.SourceESL, "c1", 200, 16
		l.ID = cdr.NewID(l.Cell, string(l.Node), l.Leg)
		l.Start = start.Add(time.Duration(i) * time.Millisecond)
		l.Answer, l.End = l.Start.Add(time.Second), l.Start.Add(2*time.Second)
		entries = append(entries, cdr.Entry{Record: &l})
	}
	if err := store.Insert(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the report", func() string {
		got := shadowTenants(t, data)["acme"]
		if got.Calls != 4 || got.Same != 2 || got.Different != 1 || got.NotKnown != 1 { // of uuid-json there is no record
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
}
