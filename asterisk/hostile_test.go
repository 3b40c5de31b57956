package asterisk

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
)

// told is a source that has certain events, and a stream that keeps the bad
// fields of each leg.
type told struct {
	events []cdr.Event

	mu  sync.Mutex
	bad map[string]map[string]string // by leg and field
}

func (s *told) Node() bulkhead.NodeID { return "ast1" }

func (s *told) Run(ctx context.Context, emit func(cdr.Event)) error {
	for _, ev := range s.events {
		emit(ev)
	}
	<-ctx.Done()
	return nil
}

func (s *told) Append(_ context.Context, payloads ...[]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range payloads {
		e, err := cdr.Decode(p)
		if err != nil || e.Record == nil {
			continue
		}
		bad := map[string]string{}
		for k, v := range e.Record.Attrs {
			if field, ok := strings.CutPrefix(k, cdr.AttrBad); ok {
				bad[field] = v
			}
		}
		s.bad[e.Record.Leg] = bad
	}
	return nil
}

// TestHostileValues: whatever stands in a field, the record lands, and what
// could not be taken over is kept beside it and counted.
func TestHostileValues(t *testing.T) {
	src := &told{events: []cdr.Event{{Type: cdr.Connected, Core: "core"}}, bad: map[string]map[string]string{}}
	tr := newTracker(testIdentity, 8)
	src.events = append(src.events, track(t, tr, []byte(strings.Join([]string{
		`{"type":"ChannelCreated","timestamp":"2026-11-23T01:12:35.000+0000","channel":{"id":"1795396355.1","name":"PJSIP/a-1","state":"Ring","creationtime":"yesterday"}}`,
		`{"type":"ChannelVarset","timestamp":"2026-11-23T01:12:36.000+0000","variable":"RTPAUDIOQOS","value":"lp=-1;rxcount=1e3;txcount=x;txjitter=NaN","channel":{"id":"1795396355.1","name":"PJSIP/a-1","state":"Ring"}}`,
		`{"type":"ChannelDestroyed","timestamp":"%d/m","cause":1600,"tech_cause":99999,"channel":{"id":"1795396355.1","name":"PJSIP/a-1","state":"Up","channelvars":{"ANSWEREDTIME_MS":"-5","TENANT":"Not One"}}}`,
		`{"type":"ChannelCreated","timestamp":"2026-11-23T01:12:35.000+0000","channel":{"id":"1795396355.2","name":"PJSIP/a-2","state":"Ring","channelvars":{"RTPAUDIOQOS":"<unknown>"}}}`,
		`{"type":"ChannelDestroyed","timestamp":"2026-11-23T01:12:36.000+0000","cause":16,"channel":{"id":"1795396355.2","name":"PJSIP/a-2","state":"Up"}}`,
	}, "\n")))...)
	feed := newAMIFeed(AMI{}, testIdentity, discard(), newMetrics(nil, "ast1"))
	var rows assembler
	long := strings.Repeat("9", maxAttr+1)
	feed.row(message{
		"UniqueID": "1795396355.3", "LinkedID": "\xff", "Channel": "PJSIP/\xfe-1", "Source": "J\xf6rg", "Destination": long, "DestinationContext": "a\xff",
		"AccountCode": "%\xff", "Disposition": "ANS\xffWERED", "Sequence": "0x1", "StartTime": "0000-00-00 00:00:00", "AnswerTime": "1795396355", "EndTime": "2026-13-01 00:00:00",
		"Timestamp": "now", "Tenant": "Not One",
	}, &rows)
	feed.row(message{"UniqueID": "1795396355.4", "Channel": "PJSIP/a-3", "Source": "Jörg", "StartTime": "2026-11-23 01:12:35", "AnswerTime": "", "EndTime": "2026-11-23 01:12:36"}, &rows)
	feed.flush(&rows)
	src.events = append(src.events, feed.take()...)
	for _, r := range closed(src.events) {
		valid(t, &r)
	}

	want := map[string]map[string]string{
		"1795396355.1": {
			"start": "yesterday", "time": "%25d%2Fm", "q850": "1600", "sip_code": "99999", "rtp_lost": "-1", "rtp_in": "1e3", "rtp_out": "x", "jitter_ms": "NaN",
			"talked": "-5", "tenant": "Not%20One",
		},
		"1795396355.2": {"rtp": "%3Cunknown%3E"},
		"1795396355.3": {
			"call": "%FF", "endpoint": "%FE", "caller": "J%F6rg", "callee": long[1:], "context": "a%FF", "account_code": "%25%FF", "cause": "ANS%FFWERED",
			"sequence": "0x1", "start": "0000-00-00%2000:00:00", "answer": "1795396355", "end": "2026-13-01%2000:00:00", "sent": "now", "tenant": "Not%20One",
		},
		"1795396355.4": {},
	}
	reg := prometheus.NewRegistry()
	cfg := eventbridge.DefaultConfig()
	cfg.Cell, cfg.Stream, cfg.Journal, cfg.Registerer = "c1", src, t.TempDir(), reg
	b, err := eventbridge.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.SetSources([]eventbridge.Source{src}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- b.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	counted := map[string]float64{}
	landed := func() int {
		src.mu.Lock()
		defer src.mu.Unlock()
		return len(src.bad)
	}
	for deadline := time.Now().Add(20 * time.Second); counted["ari"] < 11 || counted["ami"] < 13 || landed() < len(want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%d records, counted %v, want 11 of ari and 13 of ami", landed(), counted)
			break
		}
		counted = quarantined(t, reg)
	}
	src.mu.Lock()
	defer src.mu.Unlock()
	if d := cmp.Diff(want, src.bad); d != "" {
		t.Error(d)
	}
}

// quarantined is the bridge's counter, by source.
func quarantined(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "bulkhead_eventbridge_quarantined_fields_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "source" {
					out[l.GetValue()] += m.GetCounter().GetValue()
				}
			}
		}
	}
	return out
}
