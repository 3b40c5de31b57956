package freeswitch

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// The commands of a Source, in the order in which it sends them.
const (
	cmdSubscribe = "event json CHANNEL_CREATE CHANNEL_ANSWER CHANNEL_HANGUP_COMPLETE HEARTBEAT SHUTDOWN"
	cmdCore      = "global_getvar core_uuid"
	cmdChannels  = "show channels as json"
)

// SourceConfig says which node to listen to.
type SourceConfig struct {
	Node bulkhead.NodeID
	Cell bulkhead.CellID
	ESL  Config
	// SBCAt tells whether an address is that of an SBC of the cell. It is asked
	// for legs that no dialplan answer of ours has marked. Nil: their tenant
	// stays unknown.
	SBCAt func(netip.AddrPort) (bulkhead.SBCID, bool)
	// Vars names channel variables whose values a record keeps among its
	// attributes, for tenant rules.
	Vars []string
	// KeepRaw hands on the event that ended a leg, compressed. That takes longer
	// than everything else about an event, so it is left out, and counted, while
	// more than rawBacklog bytes of events wait.
	KeepRaw bool
	// Relist is how long after Connected the live channels are asked for once
	// more. 0: 5 s, which is well above the delay of the switch's table.
	Relist time.Duration
}

const (
	defaultRelist = 5 * time.Second
	rawBacklog    = 1 << 20
)

// Source hears the call events of one FreeSWITCH.
type Source struct {
	cfg SourceConfig
	log *slog.Logger
	m   *metrics
}

// NewSource returns a source. Its metrics are registered with reg under the
// label node; reg may be nil. A wrong configuration is bulkhead.Invalid or, for
// the default password, bulkhead.Denied.
func NewSource(cfg SourceConfig, log *slog.Logger, reg prometheus.Registerer) (*Source, error) {
	if cfg.Node == "" || cfg.Cell == "" {
		return nil, fmt.Errorf("freeswitch source: node and cell must be named: %w", bulkhead.Invalid)
	}
	if err := cfg.ESL.validate(); err != nil {
		return nil, fmt.Errorf("freeswitch source %s: %w", cfg.Node, err)
	}
	return &Source{cfg: cfg, log: log.With("node", cfg.Node), m: newMetrics(reg, cfg.Node)}, nil
}

// Node returns the node that the source listens to.
func (s *Source) Node() bulkhead.NodeID { return s.cfg.Node }

// Run is one connection: it subscribes, asks for the core's uuid, asks for the
// live channels, emits cdr.Connected at the place of that answer in the stream
// and everything else as it comes. An event before Connected may be of a leg
// that Connected lists. The switch keeps its list of channels with a delay, so
// a leg may be missing from it that began just before, or still be in it though
// it ended just before; that is why the list is asked for once more, and
// emitted as cdr.Listed. Neither has a time: the answers carry none.
//
// emit is called from one goroutine. It returns nil when ctx ends, else the
// error that ended the connection. Nothing is kept for a listener that is away,
// so every return means a gap.
func (s *Source) Run(ctx context.Context, emit func(cdr.Event)) error {
	err := s.run(ctx, emit)
	if ctx.Err() != nil {
		return nil
	}
	if errors.Is(err, ErrQueueFull) {
		s.m.overflows.Inc()
	}
	return fmt.Errorf("events of node %s: %w", s.cfg.Node, err)
}

func (s *Source) run(ctx context.Context, emit func(cdr.Event)) error {
	conn, err := Dial(ctx, s.cfg.ESL)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Command(ctx, cmdSubscribe); err != nil {
		return err
	}
	core, err := conn.API(ctx, cmdCore)
	if err != nil {
		return err
	}
	core = text(strings.TrimSpace(core))
	if core == "" {
		return fmt.Errorf("the switch has no global variable core_uuid: a restart could not be noticed: %w", bulkhead.Invalid)
	}
	if err := conn.Request(ctx, cmdChannels); err != nil {
		return err
	}
	defer s.relist(ctx, conn)()
	h := hearing{Source: s, core: core, emit: emit, backlog: conn.Backlog}
	for {
		m, err := conn.Next(ctx)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the switch closed the connection: %w: %w", bulkhead.Unavailable, err)
		}
		if err != nil {
			return err
		}
		if err := h.message(m); err != nil {
			return err
		}
	}
}

// relist asks for the live channels once more, later. stop gives that up.
func (s *Source) relist(ctx context.Context, conn *Conn) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTimer(cmp.Or(s.cfg.Relist, defaultRelist))
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
			if err := conn.Request(ctx, cmdChannels); err != nil && ctx.Err() == nil {
				s.log.Warn("live channels were not listed again", "err", err)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// hearing is one connection of a source.
type hearing struct {
	*Source
	core    string
	emit    func(cdr.Event)
	backlog func() int // bytes of events that wait
	listed  bool       // the live channels were listed before
	packer  cdr.Packer
}

// message maps one message of the stream.
func (h *hearing) message(m Message) error {
	var e Event
	var err error
	switch m.Type {
	case typeEventJSON:
		e, err = DecodeJSON(m.Body, h.cfg.Vars...)
	case typeEventPlain: // somebody else's command cannot switch ours, but a proxy may
		e, err = DecodePlain(m.Body, h.cfg.Vars...)
	case typeResponse:
		return h.channels(m.Body)
	default:
		h.m.ignored.WithLabelValues("unknown frame").Inc()
		return nil
	}
	if err != nil {
		h.m.ignored.WithLabelValues("undecodable").Inc()
		h.log.Warn("event left out", "err", err)
		return nil
	}
	h.event(&e, m.Body)
	return nil
}

// channels maps a list of the live channels.
func (h *hearing) channels(body []byte) error {
	live, found, err := h.origin().decodeChannels(body)
	switch {
	case err == nil && !h.listed:
		h.listed = true
		h.emit(cdr.Event{Type: cdr.Connected, Core: h.core, Live: live, Found: found})
	case err == nil:
		h.emit(cdr.Event{Type: cdr.Listed, Live: live, Found: found})
	case !h.listed:
		return err
	default:
		h.m.ignored.WithLabelValues("undecodable").Inc()
		h.log.Warn("second list of channels left out", "err", err)
	}
	return nil
}

func (s *Source) origin() origin {
	return origin{node: s.cfg.Node, cell: s.cfg.Cell, sbcAt: s.cfg.SBCAt, source: cdr.SourceESL, vars: s.cfg.Vars}
}

// event maps one event.
func (h *hearing) event(e *Event, body []byte) {
	o := h.origin()
	out := cdr.Event{Time: moment(e.Timestamp)}
	switch e.Name {
	case "CHANNEL_CREATE":
		out.Type, out.Record = cdr.Opened, o.record(e)
	case "CHANNEL_ANSWER":
		out.Type, out.Record = cdr.Answered, o.record(e)
	case "CHANNEL_HANGUP_COMPLETE":
		out.Type, out.Record = cdr.Closed, o.close(e)
		if h.cfg.KeepRaw && h.backlog() <= rawBacklog {
			out.Raw = h.packer.Pack(body)
		} else if h.cfg.KeepRaw {
			h.m.rawSkipped.Inc()
		}
	case "HEARTBEAT":
		out.Type = cdr.Heartbeat
	case "SHUTDOWN":
		h.log.Info("the switch shuts down")
		h.m.events.WithLabelValues("shutdown").Inc()
		return
	default:
		h.m.ignored.WithLabelValues("not asked for").Inc()
		return
	}
	if out.Type != cdr.Heartbeat && e.Leg == "" {
		h.m.ignored.WithLabelValues("no leg").Inc()
		h.log.Warn("event left out: it has no Unique-ID", "event", e.Name)
		return
	}
	h.m.events.WithLabelValues(string(out.Type)).Inc()
	h.emit(out)
}

// decodeChannels reads the answer to cmdChannels: the legs that live, and what
// the list says of each. Without channels it has no rows at all (captures:
// commands). Its times have whole seconds.
func (o origin) decodeChannels(body []byte) (live []string, found []cdr.Record, err error) {
	var list struct {
		Count *int `json:"row_count"`
		Rows  []struct {
			UUID      string `json:"uuid"`
			Direction string `json:"direction"`
			Created   string `json:"created_epoch"`
			Caller    string `json:"cid_num"`
			Callee    string `json:"dest"`
			Codec     string `json:"read_codec"`
			Call      string `json:"call_uuid"`
			Context   string `json:"context"`
			Account   string `json:"accountcode"`
		} `json:"rows"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, nil, fmt.Errorf("decode the list of channels: %w: %w", bulkhead.Invalid, err)
	}
	if list.Count == nil || *list.Count != len(list.Rows) {
		return nil, nil, fmt.Errorf("decode the list of channels: it says another number of rows than the %d it has: %w", len(list.Rows), bulkhead.Invalid)
	}
	live = make([]string, 0, len(list.Rows))
	o.source, o.vars = cdr.SourceReconciled, nil
	for i := range list.Rows {
		row := &list.Rows[i]
		e := Event{
			Leg: row.UUID, Direction: row.Direction, CallerID: row.Caller, Destination: row.Callee, ReadCodec: row.Codec,
			OriginatingLeg: row.Call, Context: row.Context, Account: row.Account,
		}
		if n := number(row.Created); n > 0 {
			e.Created = row.Created + "000000"
		}
		live = append(live, row.UUID)
		found = append(found, o.record(&e))
	}
	return live, found, nil
}

// metrics of a source.
type metrics struct {
	events    *prometheus.CounterVec // by type
	ignored   *prometheus.CounterVec // by reason
	overflows prometheus.Counter

	rawSkipped prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, node bulkhead.NodeID) *metrics {
	if reg != nil {
		reg = prometheus.WrapRegistererWith(prometheus.Labels{"node": string(node)}, reg)
	}
	return &metrics{
		events: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_freeswitch_events_total",
			Help: "Call events and heartbeats received from the event socket.",
		}, []string{"type"})),
		ignored: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_freeswitch_events_ignored_total",
			Help: "Messages of the event socket that no event was made of.",
		}, []string{"reason"})),
		rawSkipped: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_freeswitch_raw_skipped_total",
			Help: "Events that were not kept beside their record because too many others waited.",
		})),
		overflows: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_freeswitch_queue_overflows_total",
			Help: "Connections that were ended because the queue of received events was full.",
		})),
	}
}

// register registers c, or returns the collector of an earlier source of the
// same node: sources come and go as nodes are configured.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg == nil {
		return c
	}
	var there prometheus.AlreadyRegisteredError
	if err := reg.Register(c); errors.As(err, &there) {
		if old, ok := there.ExistingCollector.(C); ok {
			return old
		}
	}
	return c
}
