package freeswitch

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

const coreUUID = "4ee0e921-85bb-4119-9fd9-18a50b7da790"

// subscribe plays a FreeSWITCH up to the list of channels.
func (s *session) subscribe(channels string) {
	s.authenticate()
	s.expect(cmdSubscribe)
	s.send("Content-Type: command/reply\nReply-Text: +OK event listener enabled json\n\n")
	s.expect("api " + cmdCore)
	s.send(framed(typeResponse, coreUUID))
	s.expect("api " + cmdChannels)
	s.send(framed(typeResponse, channels))
}

// captured returns the frames of a capture that are of a type, as bytes.
func captured(t testing.TB, name, contentType string) (out []string) {
	t.Helper()
	frames, err := readAll(stream(t, name))
	if err != nil {
		t.Fatal(err)
	}
	for _, fr := range frames {
		if fr.contentType == contentType {
			out = append(out, string(fr.body))
		}
	}
	return out
}

func source(t *testing.T, cfg Config, reg prometheus.Registerer) *Source {
	t.Helper()
	s, err := NewSource(SourceConfig{Node: "fs1", Cell: "c1", ESL: cfg}, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSourceReplaysCapture plays a captured bridged call, with two channels
// already live, and a clean shutdown at the end.
func TestSourceReplaysCapture(t *testing.T) {
	live := captured(t, "api-during-bridge", typeResponse)[0]
	cfg := server(t, func(s *session) {
		s.subscribe(live)
		for _, body := range captured(t, "json-bridge", typeEventJSON) {
			s.send(framed(typeEventJSON, body))
		}
		s.send(framed("log/data", "unasked"))
		s.send(framed(typeEventJSON, "{broken"))
		s.send(framed(typeEventJSON, `{"Event-Name":"SHUTDOWN"}`))
		s.send(framed(typeEventJSON, `{"Event-Name":"CHANNEL_HANGUP_COMPLETE"}`))
		s.send(framed(typeDisconnect, "The system is being shut down.\n"))
	})
	reg := prometheus.NewRegistry()
	src := source(t, cfg, reg)
	var got []string
	var first cdr.Event
	err := src.Run(t.Context(), func(e cdr.Event) {
		if e.Type == cdr.Connected {
			first = e
		}
		line := string(e.Type) + " " + e.Record.Leg
		if e.Record.SIPCode != 0 {
			line += " " + e.Record.Cause
		}
		got = append(got, strings.TrimSpace(line))
	})
	if !errors.Is(err, bulkhead.Unavailable) || !strings.Contains(err.Error(), "The system is being shut down.") {
		t.Errorf("error %v", err)
	}
	const a, b = "6581e1a1-9509-4023-b790-54d9a7cc7836", "938b112e-aec7-4a2b-87b7-7f23b99883c2"
	want := []string{
		"connected", "heartbeat", "opened " + a, "opened " + b, "answered " + b, "answered " + a,
		"closed " + b + " NORMAL_CLEARING", "closed " + a + " NORMAL_CLEARING", "heartbeat",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("events, -want +got:\n%s", d)
	}
	if d := cmp.Diff([]string{"1c9230d2-762b-468e-8a3c-9554d682d4f1", "1209a284-664a-496f-9d3d-d0a9f6a67830"}, first.Live); d != "" || first.Core != coreUUID {
		t.Errorf("connected: core %q, %s", first.Core, d)
	}
	expected := `
# HELP bulkhead_freeswitch_events_ignored_total Messages of the event socket that no event was made of.
# TYPE bulkhead_freeswitch_events_ignored_total counter
bulkhead_freeswitch_events_ignored_total{node="fs1",reason="no leg"} 1
bulkhead_freeswitch_events_ignored_total{node="fs1",reason="not asked for"} 8
bulkhead_freeswitch_events_ignored_total{node="fs1",reason="undecodable"} 1
bulkhead_freeswitch_events_ignored_total{node="fs1",reason="unknown frame"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(expected), "bulkhead_freeswitch_events_ignored_total"); err != nil {
		t.Error(err)
	}
}

func TestOpenedAndAnswered(t *testing.T) {
	var got []cdr.Event
	src := source(t, Config{Addr: "x:1", Password: password}, nil)
	h := hearing{Source: src, core: coreUUID, emit: func(e cdr.Event) { got = append(got, e) }}
	for _, body := range captured(t, "json-bridge", typeEventJSON) {
		if err := h.message(Message{Type: typeEventJSON, Body: []byte(body)}); err != nil {
			t.Fatal(err)
		}
	}
	at := func(us int64) time.Time { return time.UnixMicro(us).UTC() }
	const a, b = "6581e1a1-9509-4023-b790-54d9a7cc7836", "938b112e-aec7-4a2b-87b7-7f23b99883c2"
	opened := cdr.Event{Type: cdr.Opened, Time: at(1795398458694917), Record: cdr.Record{
		Schema: 1, ID: cdr.NewID("c1", "fs1", b), Kind: cdr.Leg, Source: cdr.SourceESL, Cell: "c1", Node: "fs1",
		Leg: b, Call: a, Direction: cdr.Outbound, Caller: "5551000", Callee: "9000", Start: at(1795398458694917),
		Attrs: map[string]string{"context": "public", "profile": "internal"},
	}}
	if d := cmp.Diff(opened, got[2]); d != "" {
		t.Errorf("opened B leg, -want +got:\n%s", d)
	}
	if r := got[4]; r.Type != cdr.Answered || r.Record.Leg != a || !r.Record.Answer.Equal(at(1795398458714877)) || r.Record.SIPCode != 0 {
		t.Errorf("answered A leg: %+v", r)
	}
}

func TestSourceEnds(t *testing.T) {
	t.Run("context", func(t *testing.T) {
		cfg := server(t, func(s *session) { s.subscribe(`{"row_count": 0}`); s.drain() })
		ctx, cancel := context.WithCancel(t.Context())
		err := source(t, cfg, nil).Run(ctx, func(e cdr.Event) {
			if e.Type != cdr.Connected || len(e.Live) != 0 {
				t.Errorf("event %+v", e)
			}
			cancel()
		})
		if err != nil {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no core", func(t *testing.T) {
		cfg := server(t, func(s *session) {
			s.authenticate()
			s.expect(cmdSubscribe)
			s.send("Content-Type: command/reply\nReply-Text: +OK\n\n")
			s.expect("")
			s.send(framed(typeResponse, ""))
			s.drain()
		})
		if err := source(t, cfg, nil).Run(t.Context(), func(cdr.Event) {}); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("error %v", err)
		}
	})
	for _, channels := range []string{"", "{}", "[]", `{"row_count":2,"rows":[{"uuid":"a"}]}`, "-ERR no"} {
		t.Run("channels "+channels, func(t *testing.T) {
			cfg := server(t, func(s *session) { s.subscribe(channels); s.drain() })
			if err := source(t, cfg, nil).Run(t.Context(), func(cdr.Event) {}); !errors.Is(err, bulkhead.Invalid) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestNewSource(t *testing.T) {
	reg := prometheus.NewRegistry()
	log := slog.New(slog.DiscardHandler)
	good := SourceConfig{Node: "fs1", Cell: "c1", ESL: Config{Addr: "x:1", Password: password}}
	for _, node := range []bulkhead.NodeID{"fs1", "fs2", "fs1"} { // fs1 goes and comes back
		c := good
		c.Node = node
		s, err := NewSource(c, log, reg)
		if err != nil || s.Node() != node {
			t.Fatalf("node %s: %v", node, err)
		}
		s.m.overflows.Inc()
	}
	expected := `
# HELP bulkhead_freeswitch_queue_overflows_total Connections that were ended because the queue of received events was full.
# TYPE bulkhead_freeswitch_queue_overflows_total counter
bulkhead_freeswitch_queue_overflows_total{node="fs1"} 2
bulkhead_freeswitch_queue_overflows_total{node="fs2"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(expected), "bulkhead_freeswitch_queue_overflows_total"); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*SourceConfig){
		"no node": func(c *SourceConfig) { c.Node = "" }, "no cell": func(c *SourceConfig) { c.Cell = "" },
		"no password": func(c *SourceConfig) { c.ESL.Password = "" }, "default password": func(c *SourceConfig) { c.ESL.Password = "ClueCon" },
	} {
		c := good
		change(&c)
		if _, err := NewSource(c, log, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
