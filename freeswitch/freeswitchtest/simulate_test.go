package freeswitchtest

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// postedDocument is what the test reads of a record.
type postedDocument struct {
	Variables map[string]string `json:"variables"`
	Callflow  []struct {
		Times map[string]string `json:"times"`
	} `json:"callflow"`
}

// cdrServer takes records, or refuses them while down.
type cdrServer struct {
	mu   sync.Mutex
	down bool
	docs map[string]postedDocument // by uuid of the query
}

func (s *cdrServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	var d postedDocument
	if s.down || err != nil || json.Unmarshal(body, &d) != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	s.docs[r.URL.Query().Get("uuid")] = d
}

// TestSimulatedCallsPostTheirRecords: facts 20, 21, 24 and 26; captures
// cdr/json-bridge-*.txt and cdr/failures.txt.
func TestSimulatedCallsPostTheirRecords(t *testing.T) {
	server := &cdrServer{docs: map[string]postedDocument{}}
	web := httptest.NewServer(server)
	defer web.Close()
	dir := t.TempDir()
	n, err := New(Config{ID: "fs1", ESLPassword: "secret-for-test", CDR: CDRConfig{
		URLs: []string{web.URL}, Retries: 1, Delay: time.Millisecond, Timeout: time.Second, ErrLogDir: dir,
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	call := SimulatedCall{Caller: "15550100", Callee: "1001", Talk: time.Millisecond, Variables: map[string]string{"bulkhead_tenant": "a&b c"}}
	legs := n.Simulate(ctx, call)
	if len(legs) != 2 || legs[0].Call != legs[1].Call || legs[0].Outbound || !legs[1].Outbound {
		t.Fatalf("legs are %+v", legs)
	}
	for _, l := range legs {
		d, ok := server.docs[l.UUID]
		if !ok || !l.Posted {
			t.Fatalf("leg %s was not posted: %+v", l.UUID, l)
		}
		if v, err := url.PathUnescape(d.Variables["bulkhead_tenant"]); err != nil || v != "a&b c" || d.Variables["bulkhead_tenant"] == v {
			t.Errorf("a value was sent as %q, want it percent-encoded", d.Variables["bulkhead_tenant"])
		}
		if d.Variables["uuid"] != l.UUID || d.Callflow[0].Times["hangup_time"] == "0" {
			t.Errorf("record %+v", d)
		}
	}
	server.mu.Lock()
	server.down = true
	server.mu.Unlock()
	busy := n.Simulate(ctx, SimulatedCall{Caller: "1", Callee: "2", Talk: -1})
	if len(busy) != 2 || busy[0].Cause != "USER_BUSY" || busy[0].Answered != 0 {
		t.Errorf("busy legs are %+v", busy)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	for _, l := range busy {
		if !slices.Contains(names, l.UUID+".cdr.json") || l.Posted {
			t.Errorf("no backup file of leg %s in %v: %+v", l.UUID, names, l)
		}
		b, err := os.ReadFile(filepath.Join(dir, l.UUID+".cdr.json"))
		if err != nil || len(b) == 0 || b[len(b)-1] != '\n' || !json.Valid(b) {
			t.Errorf("backup file of leg %s: %q, %v", l.UUID, b, err)
		}
	}
	if n.Ended() != 4 {
		t.Errorf("%d legs ended, want 4", n.Ended())
	}
}
