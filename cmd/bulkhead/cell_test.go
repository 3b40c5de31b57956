package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// testCell is a whole cell of real processes: Kamailio, the four services,
// and four media nodes, two a pool.
type testCell struct {
	t       *testing.T
	data    string
	tenants int
	sip     string // ip:port of Kamailio
	trunk   string // ip:port that the tenants' trunks lead to
	nodes   map[string]nodeAddr
	loads   map[string]string // where a node tells how busy it is; none: nowhere

	kamailio *kamailiotest.Daemon

	configsvc, dispatcher, eventbridge, cdrpipe *proc
	media                                       map[string]*proc

	admin map[string]string // by service
}

type nodeAddr struct{ pool, sip, esl string }

func tenantOf(i int) string { return fmt.Sprintf("t%02d", i) }
func domainOf(i int) string { return tenantOf(i) + ".example" }
func sourceOf(i int) string { return fmt.Sprintf("127.20.%d.1", i) }
func numberOf(i int) string { return fmt.Sprintf("4930%04d1", i) }
func poolOf(i int) string   { return []string{"standard", "dialers"}[i%2] }

const testPassword = "correct horse"

// tenantYAML is tenant i: one domain, a source network, a number, two users, a trunk.
func (c *testCell) tenantYAML(i int) string {
	profile := []string{"standard", "high_volume"}[i%2]
	host, port, _ := strings.Cut(c.trunk, ":")
	return fmt.Sprintf(`  - id: %s
    cell: c1
    profile: %s
    domains: [%s]
    sources: [127.20.%d.0/24]
    numbers: [{number: "%s", user: "101"}]
    users:
      - {extension: "101", password: %s}
      - {extension: "102", password: %s}
    trunks: [{name: out, host: %s, port: %s}]
    dialling: {country: "49"}
`, tenantOf(i), profile, domainOf(i), i, numberOf(i), testPassword, testPassword, host, port)
}

func (c *testCell) yaml() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cells: [{id: c1}]\nsbcs: [{id: sbc1, cell: c1, sip: \"%s\"}]\n", c.sip)
	b.WriteString("pools:\n  - {id: standard, cell: c1, profile: standard, placement: sticky}\n  - {id: dialers, cell: c1, profile: high_volume, placement: spread}\nnodes:\n")
	for _, id := range slices.Sorted(maps.Keys(c.nodes)) {
		n := c.nodes[id]
		fmt.Fprintf(&b, "  - {id: %s, pool: %s, sip: \"%s\", esl: \"%s\", agent: \"%s\"}\n", id, n.pool, n.sip, n.esl, c.loads[id])
	}
	b.WriteString("tenants:\n")
	for i := range c.tenants {
		b.WriteString(c.tenantYAML(i))
	}
	return b.String()
}

// apply puts YAML into the registry with the real command.
func (c *testCell) apply(yaml string) {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "apply.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		c.t.Fatal(err)
	}
	tool(c.t, "apply", "--data", c.data, "-f", file, "-m", "test")
}

// startCell starts everything and waits until Kamailio holds the tables. The
// nodes in tell tell how busy they are.
func startCell(t *testing.T, tenants int, tell ...string) *testCell {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real processes")
	}
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }
	c := &testCell{
		t: t, data: filepath.Join(t.TempDir(), "d"), tenants: tenants, trunk: local(),
		nodes: map[string]nodeAddr{
			"fs1": {"standard", local(), local()}, "fs2": {"standard", local(), local()},
			"fs3": {"dialers", local(), local()}, "fs4": {"dialers", local(), local()},
		},
		loads: map[string]string{}, media: map[string]*proc{}, admin: map[string]string{},
	}
	for _, id := range tell {
		c.loads[id] = local()
	}
	for _, s := range []string{"configsvc", "dispatcher", "eventbridge", "cdrpipe"} {
		c.admin[s] = local()
	}
	sbcEvents, xml := local(), local()
	token, err := dataDir(c.data).secret(sbcToken)
	if err != nil {
		t.Fatal(err)
	}
	c.kamailio = kamailiotest.Start(t, kamailio.Params{Listen: local(), Events: sbcEvents, User: "sbc1", Token: token})
	c.sip = c.kamailio.Addr.String()
	c.apply(c.yaml())

	c.configsvc = spawn(t, "configsvc", "--data", c.data, "--listen", xml, "--admin", c.admin["configsvc"])
	waitReady(t, c.admin["configsvc"], 30*time.Second)
	for id, n := range c.nodes {
		c.media[id] = spawn(t, "media-node", "--id", id, "--data", c.data, "--sip", n.sip, "--esl", n.esl,
			"--xml-url", "http://"+xml+"/freeswitch/xml", "--load", c.loads[id])
	}
	c.dispatcher = spawn(t, "dispatcher", "--data", c.data, "--sbc", "sbc1", "--kamailio", c.kamailio.Dir, "--admin", c.admin["dispatcher"])
	c.eventbridge = spawn(t, "eventbridge", "--data", c.data, "--listen", sbcEvents, "--admin", c.admin["eventbridge"])
	c.cdrpipe = spawn(t, "cdrpipe", "--data", c.data, "--admin", c.admin["cdrpipe"])
	for _, s := range []string{"dispatcher", "eventbridge", "cdrpipe"} {
		waitReady(t, c.admin[s], 30*time.Second)
	}
	return c
}

// phones registers user 101 of every tenant through Kamailio; each answers
// and talks until the other side hangs up. What each call's phone counted of
// RTP goes to heard, which may be nil.
func (c *testCell) phones(heard chan<- siptest.Stats) {
	c.t.Helper()
	group, err := siptest.NewPhones(siptest.PhonesConfig{Proxy: c.sip})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { group.Close() })
	onCall := func(call *siptest.Call) {
		<-call.Done()
		if heard != nil {
			heard <- call.Stats()
		}
	}
	for i := range c.tenants {
		p, err := group.Add(siptest.PhoneConfig{User: "101", Domain: domainOf(i), Password: testPassword, OnCall: onCall})
		if err != nil {
			c.t.Fatal(err)
		}
		if err := p.Register(c.t.Context()); err != nil {
			c.t.Fatalf("register 101@%s: %v", domainOf(i), err)
		}
	}
}
