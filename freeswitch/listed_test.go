package freeswitch

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

// TestListedAgain: the channels are asked for a second time, and neither list
// claims a time of its own.
func TestListedAgain(t *testing.T) {
	first := captured(t, "api-during-bridge", typeResponse)[0]
	cfg := server(t, func(s *session) {
		s.subscribe(first)
		s.expect("api " + cmdChannels)
		s.send(framed(typeResponse, `{"row_count":1,"rows":[{"uuid":"late"}]}`))
		s.drain()
	})
	src := source(t, cfg, nil)
	src.cfg.Relist = 10 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var got []cdr.Event
	err := src.Run(ctx, func(e cdr.Event) {
		if got = append(got, e); e.Type == cdr.Listed {
			cancel()
		}
	})
	if err != nil || len(got) != 2 || got[0].Type != cdr.Connected || got[1].Type != cdr.Listed {
		t.Fatalf("%v, %+v", err, got)
	}
	if !got[0].Time.IsZero() || !got[1].Time.IsZero() || got[1].Live[0] != "late" {
		t.Errorf("%+v", got)
	}
	want := cdr.Record{
		Schema: 1, Kind: cdr.Leg, Source: cdr.SourceReconciled, Cell: "c1", Node: "fs1",
		Leg: "1209a284-664a-496f-9d3d-d0a9f6a67830", Call: "1c9230d2-762b-468e-8a3c-9554d682d4f1", Direction: cdr.Outbound,
		Caller: "5551000", Callee: "9000", Start: time.Unix(1795398626, 0).UTC(), Codec: "PCMU", Attrs: map[string]string{"context": "public"},
	}
	want.ID = cdr.NewID("c1", "fs1", want.Leg)
	if d := cmp.Diff(want, got[0].Found[1]); d != "" {
		t.Error(d)
	}
}

// TestSecondListMayFail: the connection goes on.
func TestSecondListMayFail(t *testing.T) {
	cfg := server(t, func(s *session) {
		s.subscribe(`{"row_count": 0}`)
		s.expect("api " + cmdChannels)
		s.send(framed(typeResponse, "-ERR no"))
		s.send(framed(typeEventJSON, `{"Event-Name":"HEARTBEAT"}`))
		s.drain()
	})
	src := source(t, cfg, nil)
	src.cfg.Relist = 10 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	heard := errors.New("not heard")
	if err := src.Run(ctx, func(e cdr.Event) {
		if e.Type == cdr.Heartbeat {
			heard = nil
			cancel()
		}
	}); err != nil || heard != nil {
		t.Error(err, heard)
	}
}

func TestRawAndVariables(t *testing.T) {
	src := source(t, Config{Addr: "x:1", Password: password}, nil)
	src.cfg.KeepRaw, src.cfg.Vars = true, []string{"tenant_id", "account_code", "accountcode", "no_such"}
	var got []cdr.Event
	backlog := 0
	h := hearing{Source: src, core: coreUUID, emit: func(e cdr.Event) { got = append(got, e) }, backlog: func() int { return backlog }}
	for _, body := range captured(t, "json-bridge", typeEventJSON) {
		if err := h.message(Message{Type: typeEventJSON, Body: []byte(body)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.message(Message{Type: typeEventJSON, Body: []byte(`{"Event-Name":"CHANNEL_CREATE","Unique-ID":"x","variable_accountcode":"7"}`)}); err != nil {
		t.Fatal(err)
	}
	backlog = rawBacklog + 1
	if err := h.message(Message{Type: typeEventJSON, Body: []byte(`{"Event-Name":"CHANNEL_HANGUP_COMPLETE","Unique-ID":"x"}`)}); err != nil {
		t.Fatal(err)
	}
	if e := got[len(got)-1]; e.Type != cdr.Closed || e.Raw != nil || testutil.ToFloat64(src.m.rawSkipped) != 1 {
		t.Errorf("with a backlog: %+v", e)
	}
	got = got[:len(got)-1]
	closed := 0
	for _, e := range got {
		if (e.Type == cdr.Closed) != (len(e.Raw) > 0) {
			t.Errorf("%s has a raw event of %d bytes", e.Type, len(e.Raw))
		}
		if e.Type != cdr.Closed {
			continue
		}
		closed++
		raw, err := cdr.Unpack(e.Raw)
		if err != nil || !json.Valid(raw) || !strings.Contains(string(raw), e.Record.Leg) {
			t.Errorf("raw event: %v", err)
		}
		want := map[string]string{"context": "public", "profile": "internal", "var:account_code": "acc-7"}
		if e.Record.Direction == cdr.Inbound {
			want["var:tenant_id"] = "t-42"
		}
		if d := cmp.Diff(want, e.Record.Attrs); d != "" {
			t.Error(d)
		}
	}
	// A variable that a field is made of is found under its name, too.
	last := got[len(got)-1].Record.Attrs
	if d := cmp.Diff(map[string]string{"account_code": "7", "var:accountcode": "7"}, last); closed != 2 || d != "" {
		t.Errorf("%d legs ended; %s", closed, d)
	}
}
