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
	"path/filepath"
	"slices"
	"time"

	"github.com/go-chi/chi/v5"

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

// startConfigsvc answers PBXs. With a shadow, all answers are "not mine".
func startConfigsvc(p *parts, g *group, l listenFlags, shadow *configsvc.Shadow) (*configsvc.Server, error) {
	certificates, err := l.config()
	if err != nil {
		return nil, err
	}
	cfg := configsvc.DefaultConfig()
	cfg.Listen, cfg.TLS, cfg.Shadow = l.Listen, certificates, shadow
	cfg.IsNode, cfg.IsSBC, cfg.Age = p.isNode, p.isSBC, p.age
	s, err := configsvc.New(cfg, p.live, dialects(), p.log.With("service", "configsvc"), p.reg)
	if err != nil {
		return nil, err
	}
	g.run(services, "configsvc", s.Run)
	g.readyWhen("configsvc", s.Ready)
	return s, nil
}

// bridge is a started eventbridge.
type bridge struct {
	*eventbridge.Bridge
	addr net.Addr // where SBCs and nodes post
}

// bridgeFlags are what an operator may say of an event bridge.
type bridgeFlags struct {
	Sweep map[string]string `help:"Folder of a node's json_cdr err-log-dir, swept; stored files are moved to its folder done. Repeatable." placeholder:"NODE=DIR"`
	Raw   bool              `help:"Keep the switches' own events beside the records." default:"true" negatable:""`
}

// startEventbridge hears every node of a cell that has an event socket, and
// takes the SBCs' events, and what the nodes post of their legs, on listen.
func startEventbridge(p *parts, g *group, cell bulkhead.CellID, listen string, flags bridgeFlags) (*bridge, error) {
	log := p.log.With("service", "eventbridge")
	password, err := p.data.secret(eslSecret)
	if err != nil {
		return nil, err
	}
	sources := &sources{
		cell: cell, password: password, raw: flags.Raw, log: log, parts: p,
		known: map[bulkhead.NodeID]*freeswitch.Source{}, esl: map[bulkhead.NodeID]string{},
	}
	cfg := eventbridge.DefaultConfig()
	cfg.Cell, cfg.KeepRaw = cell, flags.Raw
	cfg.DecodeSBC = func(body []byte) ([]cdr.Record, error) {
		return kamailio.DecodeEvents(cell, p.nodeAt, body)
	}
	cfg.DecodeCDR = freeswitch.CDRDecoder{Cell: cell, SBCAt: sources.sbcAt}.Decode
	cfg.IsNode = func(node bulkhead.NodeID, password string) bool {
		x := p.live.Load()
		return x.CellOf(node) == cell && p.isNode(x, node, password)
	}
	for node, dir := range flags.Sweep {
		cfg.Sweeps = append(cfg.Sweeps, eventbridge.Sweep{Node: bulkhead.NodeID(node), Dir: dir, Done: filepath.Join(dir, "done")})
	}
	isSBC := func(id, password string) bool {
		x := p.live.Load()
		sbc := x.SBC(bulkhead.SBCID(id))
		return sbc != nil && sbc.Cell == cell && p.isSBC(x, sbc.ID, password)
	}
	b, err := serveBridge(p, g, cfg, listen, nil, isSBC, log)
	if err != nil {
		return nil, err
	}
	g.run(services, "eventbridge sources", func(ctx context.Context) error { return sources.follow(ctx, b.Bridge) })
	return b, nil
}

// posts serves what SBCs and nodes post to a bridge, and the WebSockets that
// nodes open, and nothing else of it: status is for the admin API. Nodes prove
// themselves to the bridge or their source, SBCs here.
func posts(events http.Handler, dialIn map[bulkhead.NodeID]http.Handler, isSBC func(id, token string) bool) http.Handler {
	r := chi.NewRouter()
	r.Post("/freeswitch/cdr", events.ServeHTTP)
	r.Get("/asterisk/{node}", func(w http.ResponseWriter, r *http.Request) {
		node := dialIn[bulkhead.NodeID(chi.URLParam(r, "node"))]
		if node == nil {
			problem(w, http.StatusNotFound, "no node of this name connects to this bridge: the list of nodes must have it, with outbound: true")
			return
		}
		node.ServeHTTP(w, r)
	})
	r.Post("/kamailio/events", func(w http.ResponseWriter, r *http.Request) {
		if id, token, _ := r.BasicAuth(); !isSBC(id, token) {
			w.Header().Set("WWW-Authenticate", "Basic")
			problem(w, http.StatusUnauthorized, "send the SBC's id and its token by HTTP Basic; bulkhead config kamailio writes both")
			return
		}
		events.ServeHTTP(w, r)
	})
	return r
}

// serveBridge runs a bridge over the process's spool. Its sources are the
// caller's to set; dialIn are those of them to which their node connects.
func serveBridge(p *parts, g *group, cfg eventbridge.Config, listen string, dialIn map[bulkhead.NodeID]http.Handler, isSBC func(id, token string) bool, log *slog.Logger) (*bridge, error) {
	o := spool.DefaultOptions()
	o.Logger, o.Registerer = log, p.reg
	stream, err := spool.Open(p.data.spool(), o)
	if err != nil {
		return nil, err
	}
	g.onClose("spool", stream.Close)
	cfg.Stream, cfg.Journal = stream, p.data.journal()
	cfg.Logger, cfg.Registerer = log, p.reg
	b, err := eventbridge.New(cfg)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for events on %s: %w; choose another address with --listen", listen, err), b.Close())
	}
	srv := &http.Server{Handler: posts(b.Routes(), dialIn, isSBC), ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	g.run(services, "eventbridge", b.Run)
	g.run(services, "eventbridge listener", func(ctx context.Context) error { return serve(ctx, srv, l) })
	g.readyWhen("eventbridge", b.Ready)
	p.mount([]string{"/status", "/v1/unmatched"}, b.Routes())
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
	raw      bool
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
				SBCAt: s.sbcAt, KeepRaw: s.raw,
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
