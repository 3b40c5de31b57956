package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// sbcHost is a Kamailio with its dispatcher, which follows the registry through
// a wire of its own.
type sbcHost struct {
	kamailio    *kamailiotest.Daemon
	feed        *wire
	data, admin string
	carrier     *siptest.Phone
	calls       int
}

// twoSBCs is a cell with two SBCs and two nodes of one pool, and the central
// configsvc that both follow.
type twoSBCs struct {
	t       *testing.T
	central string            // admin address
	data    string            // of central
	nodes   map[string]string // ip:port
	phones  map[string]*siptest.Phones
	sbcs    map[string]*sbcHost
}

func startTwoSBCs(t *testing.T) *twoSBCs {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real processes")
	}
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }
	c := &twoSBCs{
		t: t, central: local(), data: filepath.Join(t.TempDir(), "central"),
		nodes: map[string]string{"fs1": local(), "fs2": local()}, phones: map[string]*siptest.Phones{}, sbcs: map[string]*sbcHost{},
	}
	listen := map[string]string{"sbc1": kamailiotest.FreePort(t), "sbc2": kamailiotest.FreePort(t)}
	applyText(t, c.data, fmt.Sprintf(`cells: [{id: c1}]
sbcs: [{id: sbc1, cell: c1, sip: "%s"}, {id: sbc2, cell: c1, sip: "%s"}]
pools: [{id: p, cell: c1, profile: standard, placement: spread}]
nodes: [{id: fs1, pool: p, sip: "%s"}, {id: fs2, pool: p, sip: "%s"}]
tenants: [{id: t00, cell: c1, profile: standard, domains: [%s], sources: [127.20.0.0/24], numbers: [{number: "%s", user: "101"}], users: [{extension: "101", password: %s}]}]
`, listen["sbc1"], listen["sbc2"], c.nodes["fs1"], c.nodes["fs2"], domainOf(0), numberOf(0), testPassword))
	for id, addr := range c.nodes {
		group, err := siptest.NewPhones(siptest.PhonesConfig{Listen: addr})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { group.Close() })
		if _, err := group.Add(siptest.PhoneConfig{User: "*", Domain: addr}); err != nil {
			t.Fatal(err)
		}
		c.phones[id] = group
	}
	feed := local()
	spawn(t, "configsvc", "--data", c.data, "--listen", local(), "--admin", c.central, "--feed", feed)
	waitReady(t, c.central, 30*time.Second)
	for id, addr := range listen {
		s := &sbcHost{feed: newWire(t, id, feed), data: filepath.Join(t.TempDir(), id), admin: local()}
		// Neither Kamailio's own pings nor its fail-over bring a call off a node
		// that is dead within this test: only the dispatcher does.
		s.kamailio = kamailiotest.Start(t, kamailio.Params{SBC: bulkhead.SBCID(id), Listen: addr, NodeTimeout: 30 * time.Second, PingInterval: time.Hour})
		token := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(token, []byte(tool(t, "token", "create", "--scope", "sbc", "--sbc", id, "--data", c.data)), 0o600); err != nil {
			t.Fatal(err)
		}
		spawn(t, "dispatcher", "--sbc", id, "--kamailio", s.kamailio.Dir, "--data", s.data, "--admin", s.admin, "--central", "http://"+s.feed.addr(), "--token-file", token)
		var err error
		s.carrier, err = siptest.NewPhone(siptest.PhonesConfig{Listen: sourceOf(0) + ":0", Proxy: addr}, siptest.PhoneConfig{User: "15550100", Domain: "carrier.example"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.carrier.Close() })
		c.sbcs[id] = s
	}
	for id, s := range c.sbcs {
		waitReady(t, s.admin, 30*time.Second)
		c.takesCalls(id, "fs1", "fs2")
	}
	return c
}

// takesCalls wants an SBC's next calls to be answered by these nodes.
func (c *twoSBCs) takesCalls(sbc string, by ...string) {
	c.t.Helper()
	s := c.sbcs[sbc]
	on := map[string]int{}
	for range 8 {
		s.calls++
		p := place(s.carrier, 0, "+"+numberOf(0)+"@"+domainOf(0), fmt.Sprintf("%s-%s-%d", c.t.Name(), sbc, s.calls), 0)
		if p.err != nil {
			c.t.Errorf("a call through %s failed: %d %v", sbc, p.status, p.err)
		}
		on[p.node]++
	}
	for _, id := range by {
		if on[c.nodes[id]] == 0 {
			c.t.Errorf("of the calls through %s node %s answered none: %v", sbc, id, on)
		}
		delete(on, c.nodes[id])
	}
	if len(on) > 0 {
		c.t.Errorf("calls through %s went also to %v", sbc, on)
	}
}

// patch changes a node through the API.
func (c *twoSBCs) patch(node, body string) {
	c.t.Helper()
	token, err := dataDir(c.data).secret(adminToken)
	if err != nil {
		c.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPatch, "http://"+c.central+"/v1/nodes/"+node, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		c.t.Fatalf("PATCH of node %s: %s", node, res.Status)
	}
}

// TestTwoSBCs: a drain is every SBC's, by its own dispatcher. A dispatcher that
// is cut off from the registry moves calls off a dead node by its own probes.
func TestTwoSBCs(t *testing.T) {
	c := startTwoSBCs(t)
	c.patch("fs1", `{"drain": true}`)
	for id, s := range c.sbcs {
		eventually(t, 30*time.Second, id+" has drained fs1", func() string { return flagged(t, s.kamailio, c.nodes["fs1"], 'D') })
		c.takesCalls(id, "fs2")
	}
	c.patch("fs1", `{"drain": false}`)
	for id, s := range c.sbcs {
		eventually(t, 30*time.Second, id+" offers fs1 again", func() string { return flagged(t, s.kamailio, c.nodes["fs1"], 'A') })
	}

	lone := c.sbcs["sbc2"]
	lone.feed.l.Close() // nobody is there any more
	lone.feed.cut()
	eventually(t, time.Minute, "sbc2 knows that it is cut off", func() string {
		said, err := readyAt(t, lone.admin)
		if err != nil || said.status != http.StatusOK || said.Registry.Following {
			return fmt.Sprintf("%+v, %v", said, err)
		}
		return ""
	})
	c.patch("fs1", `{"drain": true}`) // it does not hear of this
	eventually(t, 30*time.Second, "sbc1 has drained fs1", func() string { return flagged(t, c.sbcs["sbc1"].kamailio, c.nodes["fs1"], 'D') })
	c.phones["fs2"].Close()
	eventually(t, 30*time.Second, "sbc2 knows that fs2 is dead, and has moved its calls", func() string {
		n, err := offeredBy(t, lone.data, lone.admin, "fs2")
		if err != nil || !n.Dead {
			return fmt.Sprintf("%+v, %v", n, err)
		}
		return flagged(t, lone.kamailio, c.nodes["fs2"], 'I')
	})
	c.takesCalls("sbc2", "fs1")
}
