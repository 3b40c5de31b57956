package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

// A start function builds its room out of the process's parts and adds it to
// the group. It binds before it returns. "bulkhead run" calls every one of
// them, each service's own subcommand one.

// startConfigsvc answers PBXs on listen.
func startConfigsvc(p *parts, g *group, listen string) (*configsvc.Server, error) {
	token, err := p.data.secret(nodeToken)
	if err != nil {
		return nil, err
	}
	cfg := configsvc.DefaultConfig()
	cfg.Listen, cfg.Token = listen, token
	s, err := configsvc.New(cfg, p.live, freeswitchDialect, p.log.With("service", "configsvc"), p.reg)
	if err != nil {
		return nil, err
	}
	g.run(services, "configsvc", s.Run)
	g.readyWhen("configsvc", s.Ready)
	return s, nil
}

// freeswitchDialect fits freeswitch.Answer to configsvc.
func freeswitchDialect(x *route.Snapshot, node bulkhead.NodeID, body, dst []byte) ([]byte, string) {
	answer, sum := freeswitch.Answer(x, node, body, dst)
	return answer, sum.Section + " " + sum.Outcome
}

// bridge is a started eventbridge.
type bridge struct {
	*eventbridge.Bridge
	addr net.Addr // where SBCs post their events
}

// startEventbridge hears every node of a cell that has an event socket, and
// takes the SBCs' events on listen.
func startEventbridge(p *parts, g *group, cell bulkhead.CellID, listen string) (*bridge, error) {
	log := p.log.With("service", "eventbridge")
	password, err := p.data.secret(eslSecret)
	if err != nil {
		return nil, err
	}
	o := spool.DefaultOptions()
	o.Logger, o.Registerer = log, p.reg
	stream, err := spool.Open(p.data.spool(), o)
	if err != nil {
		return nil, err
	}
	g.onClose("spool", stream.Close)
	cfg := eventbridge.DefaultConfig()
	cfg.Cell, cfg.Stream, cfg.Journal = cell, stream, p.data.journal()
	cfg.Logger, cfg.Registerer = log, p.reg
	cfg.DecodeSBC = func(body []byte) ([]cdr.Record, error) {
		return kamailio.DecodeEvents(cell, p.nodeAt, body)
	}
	b, err := eventbridge.New(cfg)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for SBC events on %s: %w", listen, err), b.Close())
	}
	srv := &http.Server{Handler: b.Routes(), ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	sources := &sources{cell: cell, password: password, log: log, parts: p, known: map[bulkhead.NodeID]*freeswitch.Source{}, esl: map[bulkhead.NodeID]string{}}
	g.run(services, "eventbridge", b.Run)
	g.run(services, "eventbridge sources", func(ctx context.Context) error { return sources.follow(ctx, b) })
	g.run(services, "eventbridge SBC events", func(ctx context.Context) error { return serve(ctx, srv, l) })
	g.readyWhen("eventbridge", b.Ready)
	p.mount([]string{"/status"}, b.Routes())
	return &bridge{b, l.Addr()}, nil
}

// nodeAt names the node that an SBC knows by its address.
func (p *parts) nodeAt(addr string) bulkhead.NodeID {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return ""
	}
	id, _ := p.live.Load().Peer(ap)
	return id
}

// sources keeps the bridge's sources equal to the nodes of the registry.
type sources struct {
	cell     bulkhead.CellID
	password string
	log      *slog.Logger
	parts    *parts
	known    map[bulkhead.NodeID]*freeswitch.Source
	esl      map[bulkhead.NodeID]string
}

func (s *sources) follow(ctx context.Context, b *eventbridge.Bridge) error {
	for {
		x, changed := s.parts.live.Next()
		if err := s.sync(x, b); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// sbcAt names the SBC of the cell at an address.
func (s *sources) sbcAt(a netip.AddrPort) (bulkhead.SBCID, bool) {
	x := s.parts.live.Load()
	id, ok := x.SBCAt(a)
	if !ok || x.SBC(id).Cell != s.cell {
		return "", false
	}
	return id, true
}

// sync hands the bridge one source for each node of the cell, the same one as
// before where nothing changed: its connection goes on.
func (s *sources) sync(x *route.Snapshot, b *eventbridge.Bridge) error {
	var want []eventbridge.Source
	nodes := x.Nodes()
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[id]
		if n.ESL == "" || x.CellOf(id) != s.cell || (n.Kind != "" && n.Kind != bulkhead.FreeSWITCH) {
			continue
		}
		if s.known[id] == nil || s.esl[id] != n.ESL {
			src, err := freeswitch.NewSource(freeswitch.SourceConfig{
				Node: id, Cell: s.cell, ESL: freeswitch.Config{Addr: n.ESL, Password: s.password},
				SBCAt: s.sbcAt,
			}, s.log, s.parts.reg)
			if err != nil {
				return fmt.Errorf("event source of node %q: %w", id, err)
			}
			s.known[id], s.esl[id] = src, n.ESL
		}
		want = append(want, s.known[id])
	}
	return b.SetSources(want)
}
