package freeswitchtest_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// Bulkhead's own event source hears a call on the node from beginning to end,
// and its form decoder understands the node's question.
func TestSourceHearsACall(t *testing.T) {
	far, err := siptest.NewPhone(siptest.PhonesConfig{}, siptest.PhoneConfig{User: "*"})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	forms := make(chan []byte, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		forms <- b
		_, _ = io.WriteString(w, `<document type="freeswitch/xml"><section name="dialplan"><context name="public"><extension name="x"><condition>
<action application="export" data="bulkhead_tenant=acme"/>
<action application="export" data="bulkhead_revision=7"/>
<action application="set" data="hangup_after_bridge=true"/>
<action application="bridge" data="sofia/internal/1002@acme.example;fs_path=sip:`+far.Group().Addr().String()+`"/>
</condition></extension></context></section></document>`)
	}))
	defer srv.Close()
	n, err := freeswitchtest.New(freeswitchtest.Config{ID: "fs1", XMLURLs: []string{srv.URL}, ESLPassword: "not the default", Heartbeat: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	nodeCtx, stopNode := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- n.Run(nodeCtx) }()

	src, err := freeswitch.NewSource(freeswitch.SourceConfig{
		Node: "fs1", Cell: "c1", ESL: freeswitch.Config{Addr: n.ESLAddr(), Password: "not the default"},
	}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan cdr.Event, 100)
	heard := make(chan error, 1)
	go func() { heard <- src.Run(ctx, func(e cdr.Event) { events <- e }) }()
	next := func(want cdr.EventType) cdr.Event {
		t.Helper()
		for {
			select {
			case e := <-events:
				if e.Type == want {
					return e
				}
				if e.Type != cdr.Heartbeat {
					t.Fatalf("got %s, want %s", e.Type, want)
				}
			case <-ctx.Done():
				t.Fatalf("no %s", want)
			}
		}
	}
	if e := next(cdr.Connected); e.Core != n.CoreUUID() || len(e.Live) != 0 {
		t.Errorf("%+v", e)
	}
	next(cdr.Heartbeat)
	near, err := siptest.NewPhone(siptest.PhonesConfig{}, siptest.PhoneConfig{User: "1001"})
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	call, err := near.Dial(ctx, "sip:1002@"+n.Addr().String(), siptest.DialOptions{Talk: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	a, b := next(cdr.Opened), next(cdr.Opened)
	next(cdr.Answered)
	next(cdr.Answered)
	endB, endA := next(cdr.Closed).Record, next(cdr.Closed).Record
	if a.Record.Leg != endA.Leg || b.Record.Leg != endB.Leg || endB.Call != endA.Leg || endA.Call != endA.Leg {
		t.Errorf("legs %+v %+v", endA, endB)
	}
	for _, r := range []cdr.Record{endA, endB} {
		if r.Tenant != "acme" || r.Revision != 7 || r.SIPCode != 200 || r.Q850 != 16 || r.Cause != "NORMAL_CLEARING" || r.Codec != "PCMU" ||
			r.Billed() < 200*time.Millisecond || r.RTPIn == nil || *r.RTPIn < 5 || r.RTPOut == nil || *r.RTPOut < 5 {
			t.Errorf("%+v", r)
		}
	}
	if endA.SIPCallID != call.ID() || endA.Caller != "1001" || endA.Callee != "1002" || endA.Direction != cdr.Inbound || endB.Direction != cdr.Outbound {
		t.Errorf("%+v", endA)
	}
	req, err := freeswitch.ParseRequest(<-forms)
	if err != nil || req.Section != freeswitch.SectionDialplan || req.Destination != "1002" || req.Context != "public" ||
		req.Leg != endA.Leg || req.NetworkIP != "127.0.0.1" || req.Hostname != "fs1" {
		t.Errorf("%+v %v", req, err)
	}
	stopNode()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if err := <-heard; err == nil {
		t.Error("the source did not notice that the node is gone")
	}
}
