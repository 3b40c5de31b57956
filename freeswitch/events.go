package freeswitch

import (
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
}

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
// that Connected lists, and since the switch keeps its list of channels with a
// delay, a leg may be missing from it whose Opened was emitted just before.
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
	for {
		m, err := conn.Next(ctx)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the switch closed the connection: %w: %w", bulkhead.Unavailable, err)
		}
		if err != nil {
			return err
		}
		if err := s.message(m, core, emit); err != nil {
			return err
		}
	}
}

// message maps one message of the stream.
func (s *Source) message(m Message, core string, emit func(cdr.Event)) error {
	var e Event
	var err error
	switch m.Type {
	case typeEventJSON:
		e, err = DecodeJSON(m.Body)
	case typeEventPlain: // somebody else's command cannot switch ours, but a proxy may
		e, err = DecodePlain(m.Body)
	case typeResponse:
		live, err := decodeChannels(m.Body)
		if err != nil {
			return err
		}
		// The answer carries no time, so this one is by our own clock.
		emit(cdr.Event{Type: cdr.Connected, Time: time.Now().UTC(), Core: core, Live: live})
		return nil
	default:
		s.m.ignored.WithLabelValues("unknown frame").Inc()
		return nil
	}
	if err != nil {
		s.m.ignored.WithLabelValues("undecodable").Inc()
		s.log.Warn("event left out", "err", err)
		return nil
	}
	s.event(&e, emit)
	return nil
}

// event maps one event.
func (s *Source) event(e *Event, emit func(cdr.Event)) {
	o := origin{node: s.cfg.Node, cell: s.cfg.Cell, sbcAt: s.cfg.SBCAt}
	out := cdr.Event{Time: moment(e.Timestamp)}
	switch e.Name {
	case "CHANNEL_CREATE":
		out.Type, out.Record = cdr.Opened, o.record(e)
	case "CHANNEL_ANSWER":
		out.Type, out.Record = cdr.Answered, o.record(e)
	case "CHANNEL_HANGUP_COMPLETE":
		out.Type, out.Record = cdr.Closed, o.close(e)
	case "HEARTBEAT":
		out.Type = cdr.Heartbeat
	case "SHUTDOWN":
		s.log.Info("the switch shuts down")
		s.m.events.WithLabelValues("shutdown").Inc()
		return
	default:
		s.m.ignored.WithLabelValues("not asked for").Inc()
		return
	}
	if out.Type != cdr.Heartbeat && e.Leg == "" {
		s.m.ignored.WithLabelValues("no leg").Inc()
		s.log.Warn("event left out: it has no Unique-ID", "event", e.Name)
		return
	}
	s.m.events.WithLabelValues(string(out.Type)).Inc()
	emit(out)
}

// decodeChannels reads the answer to cmdChannels. Without channels it has no
// rows at all (captures: commands).
func decodeChannels(body []byte) ([]string, error) {
	var list struct {
		Count *int `json:"row_count"`
		Rows  []struct {
			UUID string `json:"uuid"`
		} `json:"rows"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("decode the list of channels: %w: %w", bulkhead.Invalid, err)
	}
	if list.Count == nil || *list.Count != len(list.Rows) {
		return nil, fmt.Errorf("decode the list of channels: it says another number of rows than the %d it has: %w", len(list.Rows), bulkhead.Invalid)
	}
	live := make([]string, 0, len(list.Rows))
	for _, r := range list.Rows {
		live = append(live, r.UUID)
	}
	return live, nil
}

// metrics of a source.
type metrics struct {
	events    *prometheus.CounterVec // by type
	ignored   *prometheus.CounterVec // by reason
	overflows prometheus.Counter
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
