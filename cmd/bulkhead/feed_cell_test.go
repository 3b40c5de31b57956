package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead/internal/testenv"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
	"github.com/bulkhead-voip/bulkhead/registry"
	"github.com/bulkhead-voip/bulkhead/route"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// feedCell is a cell as it runs on several hosts, each with a data folder of
// its own: central configsvc with the registry in a Redis, an agent beside
// each node, a dispatcher beside Kamailio.
type feedCell struct {
	*testCell

	redis  *testenv.RedisServer
	store  []string // flags of who holds the store
	feed   string   // ip:port
	agents map[string]*proc
	all    map[string]string // admin address of each follower of the feed
	far    sync.Map          // by Call-ID: the *siptest.Call of a node that is no switch
}

// startFeedCell starts one. A node that is no switch asks nobody and answers
// every call: it has no agent.
func startFeedCell(t *testing.T, switches bool) *feedCell {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real processes")
	}
	local := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }
	host := func(name string) string { return filepath.Join(t.TempDir(), name) }
	c := &feedCell{
		testCell: &testCell{
			t: t, data: host("central"), tenants: 4, trunk: local(), sip: kamailiotest.FreePort(t),
			nodes: map[string]nodeAddr{"fs1": {"standard", local(), local()}, "fs3": {"dialers", local(), local()}},
			media: map[string]*proc{}, admin: map[string]string{},
		},
		redis: testenv.StartRedis(t, "--appendfsync", "always"), feed: local(), agents: map[string]*proc{}, all: map[string]string{},
	}
	c.store = []string{"--data", c.data, "--store", "unix://" + c.redis.Socket}
	file := filepath.Join(t.TempDir(), "cell.yaml")
	if err := os.WriteFile(file, []byte(c.yaml()), 0o600); err != nil {
		t.Fatal(err)
	}
	c.tool("apply", "-f", file)
	c.admin["configsvc"] = local()
	c.configsvc = spawn(t, append([]string{"configsvc", "--listen", local(), "--admin", c.admin["configsvc"], "--feed", c.feed}, c.store...)...)

	esl, err := dataDir(c.data).secret(eslSecret)
	if err != nil {
		t.Fatal(err)
	}
	// Each host gets the event socket's password, and a token of its own.
	follow := func(name, scope, id string) (flags []string) {
		data := host(name)
		if err := os.MkdirAll(filepath.Join(data, "secrets"), 0o700); err != nil {
			t.Fatal(err)
		}
		token := filepath.Join(data, "secrets", "own.token")
		c.all[name] = local()
		for path, text := range map[string]string{
			token: c.tool("token", "create", "--scope", scope, "--"+scope, id), filepath.Join(data, "secrets", eslSecret): esl,
		} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return []string{"--data", data, "--admin", c.all[name], "--central", "http://" + c.feed, "--token-file", token}
	}
	for id, n := range c.nodes {
		if !switches {
			c.answerAll(n.sip)
			continue
		}
		xml, flags := local(), follow("agent-"+id, "node", id)
		c.agents[id] = spawn(t, append([]string{"configsvc", "--agent", "--listen", xml}, flags...)...)
		waitReady(t, c.all["agent-"+id], 30*time.Second)
		c.media[id] = spawn(t, "media-node", "--id", id, "--data", flags[1], "--token-file", flags[7], "--sip", n.sip, "--esl", n.esl, "--xml-url", "http://"+xml+"/freeswitch/xml")
	}
	events := local()
	flags := follow("dispatcher", "sbc", "sbc1")
	token := secretIn(t, flags[7])
	c.kamailio = kamailiotest.Start(t, kamailio.Params{SBC: "sbc1", Listen: c.sip, Events: events, User: "sbc1", Token: token})
	c.dispatcher = spawn(t, append([]string{"dispatcher", "--sbc", "sbc1", "--kamailio", c.kamailio.Dir}, flags...)...)
	c.eventbridge = spawn(t, append([]string{"eventbridge", "--listen", events}, follow("eventbridge", "node", "fs1")...)...)
	for _, admin := range c.all {
		waitReady(t, admin, 30*time.Second)
	}
	return c
}

// answerAll answers every call at an address.
func (c *feedCell) answerAll(addr string) {
	c.t.Helper()
	group, err := siptest.NewPhones(siptest.PhonesConfig{Listen: addr})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { group.Close() })
	onCall := func(call *siptest.Call) { c.far.Store(call.ID(), call) }
	if _, err := group.Add(siptest.PhoneConfig{User: "*", Domain: addr, OnCall: onCall}); err != nil {
		c.t.Fatal(err)
	}
}

// tool runs a tool on the registry in the Redis.
func (c *feedCell) tool(args ...string) string {
	c.t.Helper()
	return tool(c.t, append(args, c.store...)...)
}

// waitRegistry waits until every follower says something of its registry.
func (c *feedCell) waitRegistry(what string, is func(readiness) bool) {
	c.t.Helper()
	for name, admin := range c.all {
		eventually(c.t, time.Minute, name+": "+what, func() string {
			said, err := readyAt(c.t, admin)
			if err != nil {
				return err.Error()
			}
			if !is(said) {
				return fmt.Sprintf("%+v", said)
			}
			return ""
		})
	}
}

// calls places calls until n more were answered, and fails if one was not.
func (c *feedCell) calls(n int, meanwhile func()) {
	c.t.Helper()
	tr := c.newTraffic(c.tenants, 500*time.Millisecond)
	tr.start(8)
	c.waitAnswered(tr, 5)
	if meanwhile != nil {
		meanwhile()
	}
	before, _ := tr.count()
	c.waitAnswered(tr, before+n)
	for _, p := range tr.finish() {
		if p.err != nil {
			c.t.Errorf("a call that began at %s failed: %v", p.begun.Format(time.StampMilli), p.err)
		}
	}
}

// TestCentralDies ends the central configsvc and its Redis with SIGKILL: calls
// go on, what is started meanwhile serves from disk and says so, and what is
// changed afterwards arrives by itself.
func TestCentralDies(t *testing.T) {
	c := startFeedCell(t, true)
	c.phones(nil)
	c.calls(20, func() {
		c.configsvc.kill()
		c.redis.Kill()
	})
	c.waitRegistry("says that it is not followed", func(r readiness) bool {
		return r.status == 200 && r.Registry.Source == registry.FromStore && !r.Registry.Following && r.Registry.AgeSeconds > 0
	})

	for _, p := range []*proc{c.agents["fs1"], c.agents["fs3"], c.dispatcher, c.eventbridge} {
		p.kill()
		p.start()
	}
	c.waitRegistry("serves from disk and says so", func(r readiness) bool {
		return r.status == 200 && r.Registry.Source == registry.FromDisk && r.Registry.Revision == 1 && r.Registry.AgeSeconds > 0 && r.Registry.Error != ""
	})
	c.calls(10, nil)

	// Central starts before its store does, and serves what it has.
	c.configsvc.start()
	waitReady(t, c.admin["configsvc"], time.Minute)
	if said, err := readyAt(t, c.admin["configsvc"]); err != nil || said.Registry.Source != registry.FromDisk {
		t.Errorf("central without its store: %+v, %v", said, err)
	}
	c.redis.Start()
	file := filepath.Join(t.TempDir(), "more.yaml")
	more := strings.Replace(c.tenantYAML(6), "users:", "name: New\n    users:", 1)
	if err := os.WriteFile(file, []byte("tenants:\n"+more), 0o600); err != nil {
		t.Fatal(err)
	}
	c.tool("apply", "-f", file)
	c.waitRegistry("follows again", func(r readiness) bool {
		return r.status == 200 && r.Registry.Following && r.Registry.Source == registry.FromStore && r.Registry.Revision == 2
	})
	// The new tenant's calls are decided in Kamailio and at the agent.
	c.carrierCall(6)
	c.calls(10, nil)
}

// TestEverythingDies ends all of Bulkhead and its Redis with SIGKILL and starts
// none of it again: calls go on, a Kamailio that is restarted then has every
// row and set, calls that run meanwhile can be ended, and calls go on.
func TestEverythingDies(t *testing.T) {
	c := startFeedCell(t, false)
	head, err := (&toolFlags{Data: c.data, storeFlags: storeFlags{Store: c.store[3]}}).head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tables, err := route.MakeTables(route.New(head), "sbc1")
	if err != nil {
		t.Fatal(err)
	}
	// The tables are those of nodes that are well. A busy machine may have made
	// one look sick, which its sets say from then on.
	examine := func() []string {
		d, err := c.kamailio.Client.Examine(t.Context(), tables)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Sorted(slices.Values(d))
	}
	var held []string
	c.calls(12, func() {
		for _, p := range []*proc{c.configsvc, c.dispatcher, c.eventbridge} {
			p.kill()
		}
		c.redis.Kill()
		held = examine()
	})
	near, far := c.runningCalls()
	c.kamailio.Restart()
	// What a dialog needs is in its Routes, whoever of the two ends it.
	for _, end := range []*siptest.Call{near[0], far[1]} {
		if err := end.Hangup(t.Context()); err != nil {
			t.Errorf("the end of a call that ran over the restart: %v", err)
		}
	}
	for i, other := range []*siptest.Call{far[0], near[1]} {
		select {
		case <-other.Done():
		case <-time.After(10 * time.Second):
			t.Errorf("the other side of call %d has not heard of its end", i)
		}
	}
	got := examine()
	if d := cmp.Diff(held, got); d != "" {
		t.Errorf("Kamailio holds other tables after its restart:\n%s", d)
	}
	if i := slices.IndexFunc(got, func(s string) bool { return !strings.Contains(s, " has priority ") }); i >= 0 {
		t.Errorf("Kamailio differs from the %d rows and %d sets of revision %d: %q", len(tables.Rows), len(tables.Sets), tables.Revision, got)
	}
	c.calls(8, nil)
}

// runningCalls has two calls that run, and returns both ends of each.
func (c *feedCell) runningCalls() (near, far [2]*siptest.Call) {
	c.t.Helper()
	for i := range near {
		call, err := c.carrier(sourceOf(i)).Dial(c.t.Context(), "+"+numberOf(i)+"@"+domainOf(i), siptest.DialOptions{})
		if err != nil {
			c.t.Fatal(err)
		}
		eventually(c.t, 10*time.Second, "the call at its node", func() string {
			other, ok := c.far.Load(call.ID())
			if !ok {
				return "it is not there"
			}
			near[i], far[i] = call, other.(*siptest.Call) //nolint:forcetypeassert // nothing else is in it
			return ""
		})
	}
	return near, far
}

// carrierCall places a call to a tenant that has no phone: it is the tenant's
// node that says so, and not the SBC that nobody knows him.
func (c *feedCell) carrierCall(tenant int) {
	c.t.Helper()
	from, try := c.carrier(sourceOf(tenant)), 0
	// The dispatcher has the revision; Kamailio gets it a moment later.
	eventually(c.t, time.Minute, "a call to the new tenant is answered 480 by its node", func() string {
		try++
		p := place(from, tenant, "+"+numberOf(tenant)+"@"+domainOf(tenant), fmt.Sprintf("%s-new-%d", c.t.Name(), try), 0)
		if p.status == 480 {
			return ""
		}
		return fmt.Sprintf("status %d, %v", p.status, p.err)
	})
}
