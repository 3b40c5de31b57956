package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
)

// startEventsOnly hears the nodes of a file: no registry, no SBC, and nothing
// on the PBX but a user for the bridge.
func startEventsOnly(p *parts, g *group, file *nodesFile, listen string, raw bool) (*bridge, error) {
	log := p.log.With("service", "eventbridge")
	rules, err := eventbridge.NewRules(file.rules)
	if err != nil {
		return nil, err
	}
	cfg := eventbridge.DefaultConfig()
	cfg.Cell, cfg.Rules, cfg.KeepRaw = file.cell, rules, raw
	passwords := map[bulkhead.NodeID]string{}
	var sources []eventbridge.Source
	dialIn := map[bulkhead.NodeID]http.Handler{}
	for i := range file.nodes {
		n := &file.nodes[i]
		source, err := newListedSource(file.cell, n, rules.Vars(), raw, log, p.reg)
		if err != nil {
			return nil, fmt.Errorf("%s: node %q: %w", n.pos, n.id, err)
		}
		sources = append(sources, source)
		if h, ok := source.(http.Handler); ok {
			dialIn[n.id] = h
		}
		if n.asterisk.celFile != "" {
			cfg.Follows = append(cfg.Follows, eventbridge.Follow{Node: n.id, Path: n.asterisk.celFile, Rows: asterisk.NewCELLog(file.cell, n.id)})
		}
		if n.jsonCDR != "" {
			passwords[n.id] = n.jsonCDR
		}
		if n.errDir != "" {
			cfg.Sweeps = append(cfg.Sweeps, eventbridge.Sweep{Node: n.id, Dir: n.errDir, Done: n.doneDir})
		}
	}
	cfg.DecodeCDR = freeswitch.CDRDecoder{Cell: file.cell, Vars: rules.Vars()}.Decode
	if len(passwords) > 0 {
		cfg.IsNode = func(node bulkhead.NodeID, password string) bool {
			want, ok := passwords[node]
			x, y := sha256.Sum256([]byte(want)), sha256.Sum256([]byte(password))
			return ok && subtle.ConstantTimeCompare(x[:], y[:]) == 1
		}
	}
	nobody := func(string, string) bool { return false } // there is no SBC
	b, err := serveBridge(p, g, cfg, listen, dialIn, nobody, log)
	if err != nil {
		return nil, err
	}
	log.Info("hearing", "nodes", len(sources), "rules", len(file.rules))
	return b, b.SetSources(sources)
}

// newListedSource makes the event source of one PBX by its kind.
func newListedSource(cell bulkhead.CellID, n *listedNode, vars []string, raw bool, log *slog.Logger, reg prometheus.Registerer) (eventbridge.Source, error) {
	switch n.kind {
	case bulkhead.FreeSWITCH:
		return freeswitch.NewSource(freeswitch.SourceConfig{
			Node: n.id, Cell: cell, Vars: vars, KeepRaw: raw,
			ESL: freeswitch.Config{Addr: n.events.address, Password: n.events.password},
		}, log, reg)
	case bulkhead.Asterisk:
		return newListedAsterisk(cell, n, log, reg)
	default:
		return nil, fmt.Errorf("events of %s are not supported by this version: %w", n.kind, bulkhead.Invalid)
	}
}

// newListedAsterisk makes the event source of an Asterisk, which connects to
// us if n says so.
func newListedAsterisk(cell bulkhead.CellID, n *listedNode, log *slog.Logger, reg prometheus.Registerer) (eventbridge.Source, error) {
	c := asterisk.Config{
		Node: n.id, Cell: cell, TenantVar: n.asterisk.variable,
		ARI: asterisk.ARI{User: n.events.user, Password: n.events.password, App: n.asterisk.app},
	}
	if ami := n.asterisk.second; ami != nil {
		c.AMI = asterisk.AMI{Addr: ami.address, User: ami.user, Secret: ami.password}
	}
	if n.asterisk.outbound {
		return asterisk.NewOutbound(c, log, reg)
	}
	c.ARI.URL = "http://" + n.events.address + "/ari"
	return asterisk.NewSource(c, log, reg)
}
