package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
	"github.com/bulkhead-voip/bulkhead/registry"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// serviceAt starts one service with its admin API at an address that it keeps.
func serviceAt(t *testing.T, data, admin string, start func(*parts, *group) error) *running {
	t.Helper()
	f := &serviceFlags{Data: data, Admin: admin, LogLevel: "error"}
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

func centralAt(t *testing.T, data, admin string) *running {
	t.Helper()
	return serviceAt(t, data, admin, func(p *parts, g *group) error {
		if err := p.followStore(g, &storeFlags{}, "configsvc"); err != nil {
			return err
		}
		_, err := p.serveAPI(g)
		return err
	})
}

// deskCell is what a revision adds for an Asterisk whose phones register with it.
func deskCell(sip string) bulkhead.Change {
	t := bulkhead.Tenant{ID: "desk", Cell: "desks", Profile: "standard", Domains: []string{"desk.example"}, Codecs: []string{"PCMA"}}
	for i := range 5 {
		extension := fmt.Sprint(101 + i)
		sum := md5.Sum([]byte(extension + ":desk.example:secret"))
		t.Users = append(t.Users, bulkhead.User{Extension: extension, HA1: hex.EncodeToString(sum[:])})
	}
	return bulkhead.Change{
		Cells:   []bulkhead.Cell{{ID: "desks"}},
		Pools:   []bulkhead.Pool{{ID: "desks-std", Cell: "desks", Profile: "standard"}},
		Nodes:   []bulkhead.Node{{ID: "ast1", Pool: "desks-std", Kind: bulkhead.Asterisk, SIP: sip}},
		Tenants: []bulkhead.Tenant{t},
	}
}

// TestChaosAsteriskAgent: a real Asterisk asks an agent on its host, and everything
// else dies. Registrations and calls go on for as long as it takes
// (BULKHEAD_CHAOS_CUT seconds: 120, in which make test runs the other tests, and
// 600 in make chaos), through restarts of the agent and of Asterisk and with its
// caches emptied; when the centre is back, changes arrive.
func TestChaosAsteriskAgent(t *testing.T) {
	asterisktest.Need(t)
	if ranApart(t) {
		return
	}
	cut := time.Duration(fromEnv(t, "BULKHEAD_CHAOS_CUT", 120)) * time.Second
	data, agentData := filepath.Join(t.TempDir(), "central"), filepath.Join(t.TempDir(), "agent")
	// At an address where no other test listens: for minutes nobody holds the port.
	admin := fmt.Sprintf("127.0.7.1:%d", freePort(t))
	if err := dataDir(data).open(); err != nil {
		t.Fatal(err)
	}
	if err := seedDemo(t.Context(), dataDir(data), io.Discard); err != nil {
		t.Fatal(err)
	}
	centre := centralAt(t, data, admin)
	commit := func(c bulkhead.Change) {
		t.Helper()
		at := centre.live.Load().Revision()
		if _, err := centre.store.Commit(t.Context(), at, bulkhead.Revision{Author: "t", Change: c}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "the revision", func() string {
			if centre.live.Load().Revision() > at {
				return ""
			}
			return "not yet"
		})
	}
	commit(deskCell("127.0.7.1:5060"))
	file, _ := centre.tokenFile(t, registry.Token{Scope: registry.ScopeNode, Node: "ast1"})

	ask := fmt.Sprintf("127.0.7.1:%d", freePort(t))
	ast := asterisktest.Start(t, asterisktest.Options{Node: &asterisk.NodeParams{Node: "ast1", Token: secretIn(t, file), URLs: []string{"http://" + ask}}})
	if err := os.MkdirAll(filepath.Join(agentData, "secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(agentData, "secrets", cacheSecret), []byte(ast.Caches().Secret), 0o600); err != nil {
		t.Fatal(err)
	}
	startAgent := func() *running {
		t.Helper()
		return startService(t, agentData, func(p *parts, g *group) error {
			f := feedFlags{Central: []string{"http://" + admin}, TokenFile: file}
			if err := f.follow(p, g, "configsvc"); err != nil {
				return err
			}
			if _, err := startConfigsvc(p, g, listenFlags{Listen: ask}, nil); err != nil {
				return err
			}
			return startCaches(p, g, map[string]string{"ast1": ast.Caches().Addr})
		})
	}
	agent := startAgent()
	desk := newDesk(t, ast.SIP.String())
	a, _ := desk.phone(t, "101"), desk.phone(t, "102")
	desk.works(t, a, "8")

	centre.stop(t)
	end := time.Now().Add(cut)
	agent.stop(t)
	agent = startAgent() // from its disk; it empties Asterisk's caches
	desk.works(t, a, "8")
	_ = desk.phone(t, "103") // whom Asterisk has never seen
	onDisk(t, ast, "102@desk.example")
	ast.Restart()
	desk.works(t, a, "8") // 102 need not register again
	pace := time.NewTicker(time.Second)
	defer pace.Stop()
	for n := 0; n < 3 || time.Now().Before(end); n++ {
		desk.register(t, a)
		desk.works(t, a, "8")
		<-pace.C
	}

	centre = centralAt(t, data, admin)
	defer func() { centre.stop(t) }()
	defer func() { agent.stop(t) }()
	changed := *centre.live.Load().Tenant("desk")
	changed.Codecs = []string{"PCMU"}
	commit(bulkhead.Change{Tenants: []bulkhead.Tenant{changed}})
	eventually(t, time.Minute, "the change in Asterisk", func() string {
		if wrong := desk.call(a, "0"); wrong != "" {
			return fmt.Sprintf("%s; the agent has revision %d, the centre %d; %s", wrong, agent.live.Load().Revision(), centre.live.Load().Revision(), agent.cacheMetrics(t))
		}
		return ""
	})
}

// onDisk waits until Asterisk's database holds a contact: it is written once a
// second, and Restart does not let Asterisk finish. The file is read as it is: a
// reader's lock would make Asterisk drop what it is about to write.
func onDisk(t *testing.T, ast *asterisktest.Daemon, aor string) {
	t.Helper()
	eventually(t, 30*time.Second, aor+" in Asterisk's database", func() string {
		file, err := os.ReadFile(filepath.Join(ast.Dir, "var/astdb.sqlite3"))
		if err != nil {
			return err.Error()
		}
		if !bytes.Contains(file, []byte("/registrar/contact/"+aor)) {
			return "it is not there"
		}
		return ""
	})
}

// desk is phones at an Asterisk.
type desk struct {
	group *siptest.Phones
	media atomic.Value // of the call that rang last: the codec that was offered first
}

func newDesk(t *testing.T, proxy string) *desk {
	t.Helper()
	group, err := siptest.NewPhones(siptest.PhonesConfig{Proxy: proxy})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = group.Close() })
	return &desk{group: group}
}

func (d *desk) phone(t *testing.T, extension string) *siptest.Phone {
	t.Helper()
	p, err := d.group.Add(siptest.PhoneConfig{User: extension, Domain: "desk.example", Password: "secret", OnInvite: func(in *siptest.Incoming) siptest.Behaviour {
		_, media, _ := strings.Cut(string(in.Request().Body()), "RTP/AVP ")
		media, _, _ = strings.Cut(media, " ")
		d.media.Store(media)
		return siptest.Behaviour{}
	}})
	if err != nil {
		t.Fatal(err)
	}
	d.register(t, p)
	return p
}

// register registers a phone, now or soon: while the agent starts, nobody answers.
func (d *desk) register(t *testing.T, p *siptest.Phone) {
	t.Helper()
	eventually(t, 30*time.Second, p.User()+" registers", func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.Register(ctx); err != nil {
			return err.Error()
		}
		return ""
	})
}

// call calls 102 and hangs up; it returns what is wrong, or "".
func (d *desk) call(from *siptest.Phone, codec string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, "102", siptest.DialOptions{})
	if err != nil {
		return err.Error()
	}
	if err := c.Hangup(ctx); err != nil {
		return err.Error()
	}
	if got := d.media.Load(); got != codec {
		return fmt.Sprint("offered ", got)
	}
	return ""
}

func (d *desk) works(t *testing.T, from *siptest.Phone, codec string) {
	t.Helper()
	eventually(t, 30*time.Second, "a call", func() string { return d.call(from, codec) })
}

// cacheMetrics prints how the expiry of Asterisk's caches stands.
func (r *running) cacheMetrics(t *testing.T) string {
	t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		if name, ok := strings.CutPrefix(f.GetName(), "bulkhead_asterisk_cache_"); ok {
			for _, m := range f.GetMetric() {
				out = append(out, fmt.Sprint(name, " ", m.GetCounter().GetValue()+m.GetGauge().GetValue()))
			}
		}
	}
	return strings.Join(out, ", ")
}
