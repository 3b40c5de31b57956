package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
)

// asteriskFake is a fake Asterisk of a generator.
type asteriskFake struct {
	ID, HTTP, AMI string
	CELFile       string
}

const (
	asteriskPassword = "chaos-rest-interface"
	asteriskSecret   = "chaos-manager"
)

// addAsterisks adds fake Asterisks to a generator and to the list of nodes of
// a bridge: they take a third of the legs. The list of nodes ends with the rule
// for whose their legs are.
func addAsterisks(t *testing.T, n int, dir string, cfg *generatorConfig, nodes *strings.Builder) (wires []*wire) {
	t.Helper()
	for i := range n {
		a := asteriskFake{ID: fmt.Sprintf("ast%d", i+1), HTTP: fmt.Sprintf("127.0.0.1:%d", freePort(t)), AMI: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
		a.CELFile = filepath.Join(dir, a.ID, "bulkhead.csv")
		if err := os.MkdirAll(filepath.Dir(a.CELFile), 0o750); err != nil {
			t.Fatal(err)
		}
		w := newWire(t, a.ID, a.HTTP)
		wires = append(wires, w)
		fmt.Fprintf(nodes, "  - id: %s\n    kind: asterisk\n    address: %s\n    user: bulkhead\n    password: %s\n    cel_file: %s\n", a.ID, w.addr(), asteriskPassword, a.CELFile)
		if i%2 == 0 {
			fmt.Fprintf(nodes, "    ami: {address: %q, user: bulkhead, password: %s}\n", a.AMI, asteriskSecret)
		}
		cfg.Asterisks = append(cfg.Asterisks, a)
	}
	if n > 0 {
		nodes.WriteString("tenants:\n")
		for _, id := range asterisktest.Tenants {
			fmt.Fprintf(nodes, "  - {id: %s, match: {account_code: [%s]}}\n", id, id)
		}
	}
	return wires
}

// startAsterisks starts a generator's Asterisks; each runs until ctx ends.
func (c *generatorConfig) startAsterisks(ctx context.Context, run func(func())) ([]*asterisktest.Server, error) {
	var out []*asterisktest.Server
	for _, a := range c.Asterisks {
		s, err := asterisktest.NewServer(asterisktest.ServerConfig{
			Name: a.ID, HTTP: a.HTTP, AMI: a.AMI, User: "bulkhead", Password: asteriskPassword, Secret: asteriskSecret, CELFile: a.CELFile, Queue: 65536,
		})
		if err != nil {
			return nil, err
		}
		out = append(out, s)
		run(func() {
			if err := s.Run(ctx); err != nil {
				fmt.Fprintln(os.Stderr, "generator:", err)
			}
		})
	}
	return out, nil
}

// shareAsterisks takes a third of the legs from the other switches and makes
// their calls; ledger is called by many goroutines.
func (c *generatorConfig) shareAsterisks(ctx context.Context, servers []*asterisktest.Server, run func(func()), ledger func(freeswitchtest.SimulatedLeg)) {
	if len(servers) == 0 {
		return
	}
	const legsPerCall = 1.8 // as asterisktest draws them
	legs, rate := c.Legs/3, float64(c.Rate)/3
	c.Legs, c.Rate = c.Legs-legs, max(1, c.Rate-int(rate))
	micro := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.UnixMicro()
	}
	for i, s := range servers {
		load := asterisktest.Load{
			Calls: int(float64(legs) / legsPerCall / float64(len(servers))), Rate: rate / legsPerCall / float64(len(servers)),
			Ring: 200 * time.Millisecond, Talk: 3 * time.Second, Seed: c.Seed + uint64(i),
			Ledger: func(l asterisktest.Leg) {
				ledger(freeswitchtest.SimulatedLeg{UUID: l.Leg, Call: l.Call, Outbound: !l.Inbound, Created: micro(l.Start), Answered: micro(l.Answer), Hangup: micro(l.End), Tenant: l.Tenant})
			},
		}
		run(func() {
			if err := s.Generate(ctx, load); err != nil {
				fmt.Fprintln(os.Stderr, "generator:", err)
			}
			if st := s.Stats(); st.Unlogged > 0 {
				fmt.Fprintf(os.Stderr, "generator: %d rows of the channel event log are not written\n", st.Unlogged)
			}
		})
	}
}
