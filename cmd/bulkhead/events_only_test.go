package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
)

// documented returns the code block of docs/attach-events.md that begins with
// a line, so that a test does what the document says.
func documented(t *testing.T, begin string) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/attach-events.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "\n"+begin)
	block, _, closed := strings.Cut(rest, "\n```\n")
	if !ok || !closed {
		t.Fatalf("the document has no block that begins with %q", begin)
	}
	return begin + block
}

// replaced puts the test's own values in place of the document's, each of
// which must be there.
func replaced(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("the document does not say %q", pairs[i])
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// eventsOnly is a switch that was configured without Bulkhead, and the two
// processes of docs/attach-events.md beside it.
type eventsOnly struct {
	t            *testing.T
	node         *freeswitchtest.Node
	data, errDir string
	admin        string
	bridge       *proc
	legs         map[string]freeswitchtest.SimulatedLeg
}

func startEventsOnlyTest(t *testing.T) *eventsOnly {
	t.Helper()
	dir := t.TempDir()
	e := &eventsOnly{t: t, data: filepath.Join(dir, "data"), errDir: filepath.Join(dir, "json_cdr"), legs: map[string]freeswitchtest.SimulatedLeg{}}
	listen, pipeAdmin := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	e.admin = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	for name, secret := range map[string]string{"pbx1.password": "esl-for-test", "pbx1.cdr-password": "cdr-for-test"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(e.errDir, 0o750); err != nil {
		t.Fatal(err)
	}
	node, err := freeswitchtest.New(freeswitchtest.Config{
		ID: "vm", ESLPassword: "esl-for-test", Heartbeat: time.Second, CDR: freeswitchtest.CDRConfig{
			URLs: []string{"http://pbx1:cdr-for-test@" + listen + "/freeswitch/cdr"}, Timeout: 2 * time.Second, ErrLogDir: e.errDir,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	e.node = node
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- node.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("media node: %v", err)
		}
	})
	file := replaced(t, documented(t, "cell: main"),
		"127.0.0.1:8021", node.ESLAddr(), "/etc/bulkhead/pbx1.password", filepath.Join(dir, "pbx1.password"),
		"/etc/bulkhead/pbx1.cdr-password", filepath.Join(dir, "pbx1.cdr-password"), "/var/lib/freeswitch/json_cdr", e.errDir)
	nodes := filepath.Join(dir, "nodes.yaml")
	if err := os.WriteFile(nodes, []byte(file), 0o640); err != nil {
		t.Fatal(err)
	}
	run := strings.Split(strings.TrimSpace(replaced(t, documented(t, "bulkhead eventbridge"), "/etc/bulkhead/nodes.yaml", nodes, "/var/lib/bulkhead", e.data)), "\n")
	if len(run) != 2 {
		t.Fatalf("the document runs %q", run)
	}
	e.bridge = spawn(t, append(strings.Fields(run[0])[1:], "--listen", listen, "--admin", e.admin)...)
	spawn(t, append(strings.Fields(run[1])[1:], "--admin", pipeAdmin)...)
	waitReady(t, e.admin, 30*time.Second)
	waitReady(t, pipeAdmin, 30*time.Second)
	return e
}

// call places calls at once and waits for their end.
func (e *eventsOnly) call(n int, talk time.Duration, callee string, vars map[string]string) {
	e.t.Helper()
	results := make(chan []freeswitchtest.SimulatedLeg, n)
	for range n {
		go func() {
			results <- e.node.Simulate(e.t.Context(), freeswitchtest.SimulatedCall{Caller: "5550100", Callee: callee, Variables: vars, Talk: talk})
		}()
	}
	for range n {
		legs := <-results
		if len(legs) != 2 {
			e.t.Fatalf("a call had %d legs", len(legs))
		}
		for _, l := range legs {
			e.legs[l.UUID] = l
		}
	}
}

func (e *eventsOnly) records() map[string]cdrpipe.Row {
	e.t.Helper()
	out := map[string]cdrpipe.Row{}
	for _, r := range decodeLines[cdrpipe.Row](e.t, tool(e.t, "cdr", "--json", "--data", e.data)) {
		if _, twice := out[r.Leg]; twice {
			e.t.Errorf("leg %s is there twice", r.Leg)
		}
		out[r.Leg] = r
	}
	return out
}

// settled waits until every leg has a record that tells its end.
func (e *eventsOnly) settled(what string) map[string]cdrpipe.Row {
	e.t.Helper()
	var rows map[string]cdrpipe.Row
	eventually(e.t, 40*time.Second, what, func() string {
		rows = e.records()
		for id := range e.legs {
			if r, ok := rows[id]; !ok || r.End.IsZero() {
				return fmt.Sprintf("%d of %d records; leg %s has %+v", len(rows), len(e.legs), id, r.Record)
			}
		}
		return ""
	})
	for id, l := range e.legs {
		r := rows[id]
		want := int64(0)
		if l.Answered > 0 {
			want = l.Hangup - l.Answered
		}
		if got := r.Billed().Microseconds(); got != want || r.Start.UnixMicro() != l.Created || r.Call != l.Call {
			e.t.Errorf("leg %s: billed %d us, want %d; %+v", id, got, want, r.Record)
		}
	}
	return rows
}

func (e *eventsOnly) unmatched() eventbridge.UnmatchedList {
	e.t.Helper()
	token, err := os.ReadFile(filepath.Join(e.data, "secrets", adminToken))
	if err != nil {
		e.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(e.t.Context(), http.MethodGet, "http://"+e.admin+"/v1/unmatched", nil)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	var out eventbridge.UnmatchedList
	if err != nil || json.Unmarshal(body, &out) != nil {
		e.t.Fatalf("%s %v: %s", resp.Status, err, body)
	}
	return out
}

// TestEventsOnly follows docs/attach-events.md beside a FreeSWITCH: tenants by
// rules, legs that nobody owns, and a bridge that is killed and comes back.
func TestEventsOnly(t *testing.T) {
	e := startEventsOnlyTest(t)
	e.call(5, 100*time.Millisecond, "2000", map[string]string{"accountcode": "acc-7"})
	e.call(5, 100*time.Millisecond, "2001", map[string]string{"domain_name": "ACME.example"})
	e.call(5, 100*time.Millisecond, "2002", map[string]string{"tenant_name": "Beta Ltd"})
	e.call(5, 100*time.Millisecond, "+49301234", nil)
	e.call(3, -1, "3000", nil)
	want := map[string]string{"2000": "acme", "2001": "acme", "2002": "beta", "+49301234": "beta", "3000": ""}
	for id, r := range e.settled("first calls") {
		if string(r.Tenant) != want[r.Callee] || r.Source != cdr.SourceESL || r.Node != "pbx1" || r.Cell != "main" {
			t.Errorf("leg %s: %+v", id, r.Record)
		}
	}
	// Each leg is reported twice, by the event and by the posted record, and counted once.
	var legs uint64
	list := e.unmatched()
	for _, k := range list.Kinds {
		legs += k.Legs
		if k.Node != "pbx1" || k.Callee != "3000" || k.Attrs["context"] != "public" {
			t.Errorf("unmatched %+v", k)
		}
	}
	if list.Legs != 6 || legs != 6 {
		t.Errorf("unmatched %+v", list)
	}

	// The bridge dies while calls go on and end: the switch's files tell.
	during := make(chan struct{})
	go func() {
		defer close(during)
		e.call(5, 1500*time.Millisecond, "2000", map[string]string{"accountcode": "acc-7"})
	}()
	eventually(t, 10*time.Second, "calls up", func() string {
		if n := e.node.Sessions(); n < 10 {
			return fmt.Sprintf("%d sessions", n)
		}
		return ""
	})
	e.bridge.kill()
	<-during
	e.call(5, 10*time.Millisecond, "2000", map[string]string{"accountcode": "acc-7"})
	files, err := filepath.Glob(filepath.Join(e.errDir, "*.cdr.json"))
	if err != nil || len(files) != 20 {
		t.Fatalf("%d files in the err-log-dir, %v", len(files), err)
	}
	e.bridge.start()
	waitReady(t, e.admin, 30*time.Second)
	sources := map[cdr.Source]int{}
	for _, r := range e.settled("calls in the gap") {
		sources[r.Source]++
		if r.Callee == "2000" && r.Tenant != "acme" {
			t.Errorf("leg %s: %+v", r.Leg, r.Record)
		}
	}
	if sources[cdr.SourceFile] != 20 || sources[cdr.SourceESL] != 46 {
		t.Errorf("sources %v", sources)
	}
	eventually(t, 10*time.Second, "files away", func() string {
		left, _ := filepath.Glob(filepath.Join(e.errDir, "*.cdr.json"))
		done, _ := filepath.Glob(filepath.Join(e.errDir, "done", "*.cdr.json"))
		if len(left) != 0 || len(done) != 20 {
			return fmt.Sprintf("%d left, %d done", len(left), len(done))
		}
		return ""
	})
	if gaps := tool(t, "cdr", "--gaps", "--data", e.data); !strings.Contains(gaps, "bridge restarted") {
		t.Errorf("gaps: %s", gaps)
	}
	if _, err := os.Stat(filepath.Join(e.data, "registry.db")); !os.IsNotExist(err) {
		t.Errorf("events only have a registry: %v", err)
	}
}

// TestEventsOnlyRefusesWhatItCannotHear: a node that cannot be heard is an error at
// once, with its place in the file.
func TestEventsOnlyRefusesWhatItCannotHear(t *testing.T) {
	for _, c := range [][2]string{
		{"{id: pbx1, address: '127.0.0.1:1', password: ClueCon}", "nodes.yaml:2: node \"pbx1\""},
		{"{id: pbx1, address: 'h', password: x}", "nodes.yaml:2: nodes[0].address"},
	} {
		dir := t.TempDir()
		nodes := filepath.Join(dir, "nodes.yaml")
		if err := os.WriteFile(nodes, []byte("nodes:\n - "+c[0]+"\n"), 0o640); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		code := execute(t.Context(), []string{"eventbridge", "--nodes", nodes, "--data", filepath.Join(dir, "d"), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"}, io.Discard, &out)
		if code != exitFailure || !strings.Contains(out.String(), c[1]) {
			t.Errorf("%s: %d %s", c[0], code, out.String())
		}
	}
}
