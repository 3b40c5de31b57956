package eventbridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

// decodeLines is a decoder of a made-up form: a leg a line.
func decodeLines(body []byte) ([]cdr.Record, error) {
	var out []cdr.Record
	var err error
	for leg := range strings.Lines(string(body)) {
		if leg = strings.TrimSpace(leg); strings.HasPrefix(leg, "!") || strings.HasPrefix(leg, "{") {
			err = errors.New("bad line")
			continue
		}
		out = append(out, cdr.Record{ID: cdr.NewID("c1", "sbc1", leg), Kind: cdr.Refused, Source: cdr.SourceSBC, SBC: "sbc1", Leg: leg, Start: at(1)})
	}
	return out, err
}

func TestSBCEvents(t *testing.T) {
	s := &memStream{}
	cfg := testConfig(t, s)
	cfg.DecodeSBC = decodeLines
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	post := func(body string) int {
		w := httptest.NewRecorder()
		req := httptest.NewRequestWithContext(t.Context(), "POST", "/kamailio/events", strings.NewReader(body))
		b.Routes().ServeHTTP(w, req)
		if w.Code >= 300 && w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%d %v", w.Code, w.Header())
		}
		return w.Code
	}
	if code := post("r1\nr2\n"); code != 204 || len(s.stored().legs) != 2 {
		t.Errorf("%d, %+v", code, s.stored())
	}
	s.setFail(errors.New("disk full"))
	if code := post("r3\n"); code != 503 || len(s.stored().legs) != 2 {
		t.Errorf("while the stream fails: %d", code)
	}
	s.setFail(nil)
	// A body that passes for an entry of our own must not become one.
	forged, err := cdr.Encode(cdr.Entry{Record: &cdr.Record{Leg: "forged"}})
	if err != nil {
		t.Fatal(err)
	}
	if code := post(string(forged)); code != 204 || s.stored().raw != 1 || len(s.stored().legs) != 2 {
		t.Errorf("forged: %d %+v", code, s.stored())
	}
	if code := post("r4\n!\n"); code != 204 || s.stored().raw != 2 || len(s.stored().legs) != 3 {
		t.Errorf("half decodable: %d %+v", code, s.stored())
	}
	if code := post(strings.Repeat("x", 1<<20+1)); code != 413 {
		t.Errorf("too large: %d", code)
	}
	if code := post(""); code != 204 {
		t.Errorf("empty: %d", code)
	}
	for _, p := range s.payloads {
		if len(p) > 1<<20 {
			t.Errorf("payload of %d bytes", len(p))
		}
	}
	if code := post("!" + strings.Repeat("x", maxSBCBody-1)); code != 204 || len(s.payloads[len(s.payloads)-1]) > 1<<20 {
		t.Errorf("the longest body: %d", code)
	}
}

func TestStatus(t *testing.T) {
	s := &memStream{}
	inbound := event(cdr.Opened, 1, "a")
	inbound.Record.Direction, inbound.Record.Tenant = cdr.Inbound, "acme"
	b, stop := launch(t, testConfig(t, s),
		scripted("fs1", []cdr.Event{connected(0, "core"), inbound, event(cdr.Opened, 1, "b"), event(cdr.Closed, 2, "b")}),
		scripted("fs2", nil, nil))
	defer stop()
	waitFor(t, "events are through", func() bool { return len(s.stored().legs) == 1 && b.Status().Sources[0].LastHeard.Equal(at(2)) })
	w := httptest.NewRecorder()
	b.Routes().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/status", nil))
	var st Status
	if err := json.NewDecoder(bytes.NewReader(w.Body.Bytes())).Decode(&st); err != nil {
		t.Fatal(err)
	}
	if len(st.Sources) != 2 || st.Cell != "c1" || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("status %s", w.Body)
	}
	if one := st.Sources[0]; !one.Connected || !one.Wanted || one.OpenLegs != 1 || !one.LastHeard.Equal(at(2)) || time.Since(one.Since) > time.Minute {
		t.Errorf("fs1: %+v", one)
	}
	if two := st.Sources[1]; two.Connected || two.Gap != nil || !two.LastHeard.IsZero() {
		t.Errorf("fs2: %+v", two)
	}
	if calls := b.OpenCalls(); len(calls) != 1 || calls["acme"] != 1 {
		t.Errorf("OpenCalls = %v", calls)
	}
	w = httptest.NewRecorder()
	b.Routes().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/kamailio/events", nil))
	if w.Code != 404 {
		t.Errorf("POST /kamailio/events without a decoder: %d", w.Code)
	}
}
