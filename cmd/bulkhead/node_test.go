package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// runTool executes a command line in this process.
func runTool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, errs bytes.Buffer
	if code := execute(context.WithoutCancel(t.Context()), args, &out, &errs); code != exitOK {
		return out.String(), fmt.Errorf("exit code %d: %s", code, errs.String())
	}
	return out.String(), nil
}

// toolRun is a command line that is executed meanwhile.
type toolRun struct {
	out, errs lockedBuffer
	done      chan struct{} // closed when it has ended with code
	code      int
}

func startTool(t *testing.T, args ...string) *toolRun {
	t.Helper()
	r := &toolRun{done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	go func() {
		defer close(r.done)
		r.code = execute(ctx, args, &r.out, &r.errs)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.done
	})
	return r
}

// goesOn wants the command not to end while the call has four seconds of audio
// there and back: longer than a node without calls is waited for.
func (r *toolRun) goesOn(t *testing.T, call *siptest.Call) {
	t.Helper()
	before := call.Stats()
	var sent, got int64
	eventually(t, 30*time.Second, "four seconds of the running call", func() string {
		s := call.Stats()
		sent, got = s.Sent-before.Sent, s.Received-before.Received
		if sent < 200 {
			return fmt.Sprintf("%d packets sent", sent)
		}
		return ""
	})
	select {
	case <-r.done:
		t.Errorf("it did not wait for the running call: code %d, %s%s", r.code, &r.out, &r.errs)
	case <-call.Done():
		t.Error("the running call has ended")
	default:
	}
	if got < sent*3/4 {
		t.Errorf("the running call got %d of %d packets back", got, sent)
	}
	if out := r.out.String(); !strings.HasSuffix(out, "node fs1: 1 sessions\n") {
		t.Errorf("while a call runs it says %q", out)
	}
}

// wait waits for the command's end.
func (r *toolRun) wait(t *testing.T) {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(time.Minute):
		t.Fatalf("it does not end: %s%s", &r.out, &r.errs)
	}
}

// ends wants the command to end well.
func (r *toolRun) ends(t *testing.T) {
	t.Helper()
	if r.wait(t); r.code != exitOK {
		t.Errorf("exit code %d: %s%s", r.code, &r.out, &r.errs)
	}
}

// echoes is a dialplan that answers every call and sends its audio back.
const echoes = `<document type="freeswitch/xml"><section name="dialplan"><context name="public"><extension name="echo"><condition>
<action application="answer"/><action application="echo"/></condition></extension></context></section></document>`

// callOn has a call that runs on a node.
func callOn(t *testing.T, data, node string) *siptest.Call {
	t.Helper()
	head, err := (&toolFlags{Data: data}).head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	phone, err := siptest.NewPhone(siptest.PhonesConfig{}, siptest.PhoneConfig{User: "15550100", Domain: "carrier.example"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { phone.Close() })
	call, err := phone.Dial(t.Context(), "100@"+head.Nodes[bulkhead.NodeID(node)].SIP, siptest.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return call
}

// runNode runs a media node with the secret of a registry's.
func runNode(t *testing.T, data, id string) *freeswitchtest.Node {
	t.Helper()
	password, err := dataDir(data).secret(eslSecret)
	if err != nil {
		t.Fatal(err)
	}
	n, err := freeswitchtest.New(freeswitchtest.Config{ID: id, ESLPassword: password, StaticXML: echoes})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return n
}

// poolOfNodes is a registry with a pool of two media nodes that run.
func poolOfNodes(t *testing.T) string {
	t.Helper()
	data := filepath.Join(t.TempDir(), "d")
	yaml := "cells: [{id: c1}]\npools: [{id: p, cell: c1, profile: standard}]\nnodes:\n"
	for _, id := range []string{"fs1", "fs2"} {
		n := runNode(t, data, id)
		yaml += fmt.Sprintf("  - {id: %s, pool: p, sip: \"%s\", esl: \"%s\"}\n", id, n.Addr(), n.ESLAddr())
	}
	file := filepath.Join(t.TempDir(), "pool.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runTool(t, "apply", "--data", data, "-f", file); err != nil {
		t.Fatal(err)
	}
	return data
}

func TestNodeDrainAndDisable(t *testing.T) {
	data := poolOfNodes(t)
	for _, tt := range []struct{ args, say, export string }{
		{"node drain fs1 --wait", "0 sessions", "drain: true"},
		{"node drain fs1", "nothing to do", "drain: true"},
		{"node disable fs1", "disable, revision", "disabled: true"},
		{"node enable fs1", "enable, revision", "drain: true"},
		{"node undrain fs1", "undrain, revision", "fs1"},
	} {
		out, err := runTool(t, append(strings.Fields(tt.args), "--data", data)...)
		if err != nil || !strings.Contains(out, tt.say) {
			t.Errorf("bulkhead %s says %q, %v", tt.args, out, err)
		}
		state, err := runTool(t, "export", "--data", data)
		if err != nil || !strings.Contains(state, tt.export) {
			t.Errorf("after bulkhead %s the registry says %s, %v", tt.args, state, err)
		}
	}
	if state, err := runTool(t, "export", "--data", data); err != nil || strings.Contains(state, "drain:") || strings.Contains(state, "disabled:") {
		t.Errorf("after all the registry says %s, %v", state, err)
	}
	if _, err := runTool(t, "node", "drain", "nobody", "--data", data); err == nil {
		t.Error("a node that is not there was drained")
	}
}

// TestDrainWaitsForItsCalls: a running call goes on to its end, which the
// command waits for, or its deadline.
func TestDrainWaitsForItsCalls(t *testing.T) {
	t.Parallel() // it waits most of its time
	data := poolOfNodes(t)
	call := callOn(t, data, "fs1")
	late := startTool(t, "node", "drain", "fs1", "--wait", "--deadline", "1s", "--data", data)
	if late.wait(t); late.code == exitOK || !strings.Contains(late.errs.String(), "still has 1 sessions after 1s; it stays drained") {
		t.Errorf("past its deadline it says %s%s", &late.out, &late.errs)
	}
	waiting := startTool(t, "node", "drain", "fs1", "--wait", "--data", data)
	waiting.goesOn(t, call)
	if err := call.Hangup(t.Context()); err != nil {
		t.Errorf("end of the running call: %v", err)
	}
	waiting.ends(t)
	if out := waiting.out.String(); !strings.HasSuffix(out, "node fs1: 1 sessions\nnode fs1: 0 sessions\n") {
		t.Errorf("in all it says %q", out)
	}
}

// An upgrade goes node by node, each after its calls, and stops at the first
// failure, with that node drained and the others as they were.
func TestPoolUpgrade(t *testing.T) {
	t.Parallel() // it waits most of its time
	data := poolOfNodes(t)
	done := filepath.Join(t.TempDir(), "done")
	upgrade := []string{"pool", "upgrade", "p", "--data", data, "--hook", "echo $NODE >> " + done}
	call := callOn(t, data, "fs1")
	late := startTool(t, append(upgrade, "--deadline", "1s")...)
	late.wait(t)
	if said := late.errs.String(); late.code == exitOK || !strings.Contains(said, `stops at node "fs1"`) || !strings.Contains(said, "still has 1 sessions after 1s") {
		t.Errorf("past its deadline an upgrade says %s%s", &late.out, said)
	}
	if state, _ := runTool(t, "export", "--data", data); strings.Count(state, "drain: true") != 1 {
		t.Errorf("after the deadline the registry says %s", state)
	}
	if _, err := runTool(t, "node", "undrain", "fs1", "--data", data); err != nil {
		t.Fatal(err)
	}
	upgrading := startTool(t, upgrade...)
	upgrading.goesOn(t, call)
	if b, err := os.ReadFile(done); err == nil {
		t.Errorf("the hook ran for %q while a call ran", b)
	}
	if err := call.Hangup(t.Context()); err != nil {
		t.Errorf("end of the running call: %v", err)
	}
	upgrading.ends(t)
	if b, err := os.ReadFile(done); err != nil || string(b) != "fs1\nfs2\n" {
		t.Errorf("the hook ran for %q, %v", b, err)
	}
	if state, _ := runTool(t, "export", "--data", data); strings.Contains(state, "drain:") {
		t.Errorf("after the upgrade the registry says %s", state)
	}
	out, err := runTool(t, "pool", "upgrade", "p", "--data", data, "--hook", "exit 3")
	if err == nil || !strings.Contains(err.Error(), `stops at node "fs1"`) {
		t.Errorf("an upgrade that fails says %q, %v", out, err)
	}
	if state, _ := runTool(t, "export", "--data", data); strings.Count(state, "drain: true") != 1 {
		t.Errorf("after the failure the registry says %s", state)
	}
}

// TestPoolUpgradeVerifies: a node that takes no calls after its hook is a
// failure, one that takes them a moment later is none.
func TestPoolUpgradeVerifies(t *testing.T) {
	t.Parallel() // it waits most of its time
	data := poolOfNodes(t)
	var refuse atomic.Int64 // so many OPTIONS
	stack, err := siptest.NewStack(siptest.StackConfig{OnRequest: func(req *sip.Request, _ netip.AddrPort) *sip.Response {
		if refuse.Add(-1) < 0 {
			return nil // 200
		}
		return sip.NewResponseFromRequest(req, 503, "Service Unavailable", nil)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stack.Close() })
	file := filepath.Join(t.TempDir(), "more.yaml")
	yaml := fmt.Sprintf("pools: [{id: q, cell: c1, profile: high_volume}]\nnodes: [{id: fs3, pool: q, sip: \"%s\", esl: \"%s\"}]\n", stack.Addr(), runNode(t, data, "fs3").ESLAddr())
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runTool(t, "apply", "--data", data, "-f", file); err != nil {
		t.Fatal(err)
	}
	upgrade := []string{"pool", "upgrade", "q", "--data", data, "--hook", "true"}
	refuse.Store(1000)
	out, err := runTool(t, append(upgrade, "--verify", "1s")...)
	if err == nil || !strings.Contains(err.Error(), `stops at node "fs3"`) || !strings.Contains(err.Error(), "after its hook, for 1s") {
		t.Errorf("an upgrade of a node that refuses afterwards says %q, %v", out, err)
	}
	if state, _ := runTool(t, "export", "--data", data); strings.Count(state, "drain: true") != 1 {
		t.Errorf("after the failure the registry says %s", state)
	}
	refuse.Store(1)
	if out, err := runTool(t, upgrade...); err != nil || refuse.Load() >= 0 {
		t.Errorf("an upgrade of a node that takes a moment says %q, %v; it was asked until %d", out, err, refuse.Load())
	}
}
