package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/dispatcher"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// offered returns what the dispatcher offers a node, and why.
func (c *testCell) offered(node string) (dispatcher.NodeStatus, error) {
	return offeredBy(c.t, c.data, c.admin["dispatcher"], node)
}

// offeredBy is offered of the dispatcher with a data folder and an admin address.
func offeredBy(t *testing.T, data, admin, node string) (dispatcher.NodeStatus, error) {
	token, err := dataDir(data).secret(adminToken)
	if err != nil {
		return dispatcher.NodeStatus{}, err
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+admin+"/v1/dispatcher/nodes", http.NoBody)
	if err != nil {
		return dispatcher.NodeStatus{}, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return dispatcher.NodeStatus{}, err
	}
	defer res.Body.Close()
	var got struct{ Nodes []dispatcher.NodeStatus }
	if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
		return dispatcher.NodeStatus{}, err
	}
	for _, n := range got.Nodes {
		if string(n.Node) == node {
			return n, nil
		}
	}
	return dispatcher.NodeStatus{}, fmt.Errorf("the dispatcher does not list node %s: %+v", node, got)
}

// burn uses up the CPU of a control group until the returned function is called.
func burn(t *testing.T, group *testenv.CPUGroup) (stop func()) {
	t.Helper()
	var burning []*exec.Cmd
	stop = func() {
		for _, cmd := range burning {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		burning = nil
	}
	t.Cleanup(stop)
	for range 2 {
		cmd := exec.Command("sh", "-c", "read go; while :; do :; done")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		burning = append(burning, cmd)
		if err := group.Add(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in) // not before it is in the group
	}
	return stop
}

// avoided waits until the newest calls of the tenant all went elsewhere than
// to addr, and returns when the last one that did not was begun.
func (tr *traffic) avoided(tenant int, addr string, newest int) (last time.Time) {
	tr.t.Helper()
	eventually(tr.t, 30*time.Second, "no new calls for "+addr, func() string {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		n := 0
		last = time.Time{}
		for _, p := range tr.ledger {
			switch {
			case p.tenant != tenant || p.answered.IsZero():
			case p.node == addr:
				n = 0
				if p.begun.After(last) {
					last = p.begun
				}
			case p.begun.After(last):
				n++
			}
		}
		if n < newest {
			return fmt.Sprintf("%d calls went elsewhere since the last", n)
		}
		return ""
	})
	return last
}

// lastNode returns the ip:port of the node that took the newest call of a tenant.
func (tr *traffic) lastNode(tenant int) (addr string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, p := range tr.ledger {
		if p.tenant == tenant {
			addr = p.node
		}
	}
	return addr
}

// movedWithin is five times what is wanted of an idle machine.
const movedWithin = 10 * time.Second

// TestOverloadAndLossOfNodes: a node's CPU is burnt for real, in a control
// group of its own; then its neighbour is killed, and a node of the other pool
// stopped. New calls go elsewhere, running ones on the busy node go on, and
// not one call fails but those that were being set up on a node that died.
func TestOverloadAndLossOfNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("starts real processes")
	}
	// Both of them: what a node without a quota tells is how busy this machine
	// is, tests and all. So little that it is used up also on a busy one.
	groups := map[string]*testenv.CPUGroup{"fs3": testenv.CPUs(t, 0.3), "fs4": testenv.CPUs(t, 0.3)}
	c := startCell(t, 2, "fs3", "fs4")
	c.phones(nil)
	for id, group := range groups {
		if err := group.Add(c.media[id].cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	busy, idle := c.nodes["fs3"].sip, c.nodes["fs4"].sip

	// Calls that run on the node for the whole time.
	var running []*siptest.Call
	patient := c.carrier("127.20.1.2")
	for i := 0; len(running) < 2; i++ {
		if i == 40 {
			t.Fatal("40 calls went to one node of two")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		call, err := patient.Dial(ctx, "+"+numberOf(1)+"@"+domainOf(1), siptest.DialOptions{CallID: fmt.Sprintf("running-%d", i)})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if nodeOf(call) == busy {
			running = append(running, call)
		} else if err := call.Hangup(t.Context()); err != nil {
			t.Error(err)
		}
	}
	tr := c.newTraffic(2, 300*time.Millisecond)
	tr.start(10)
	// They look every few seconds which group they are in. Until then they tell
	// how busy this machine is.
	for id := range groups {
		eventually(t, 40*time.Second, id+" tells the load of its group, and takes calls", func() string {
			n, err := c.offered(id)
			if err != nil || n.Load == nil || !n.Load.Group || n.Weight == 0 {
				return fmt.Sprintf("%+v %v", n, err)
			}
			return ""
		})
	}
	eventually(t, 20*time.Second, "calls on both nodes", func() string {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		on := map[string]int{}
		for _, p := range tr.ledger {
			on[p.node]++
		}
		if on[busy] == 0 || on[idle] == 0 {
			return fmt.Sprint(on)
		}
		return ""
	})

	before := make([]siptest.Stats, len(running))
	for i, call := range running {
		before[i] = call.Stats()
	}
	stop := burn(t, groups["fs3"])
	burnt := time.Now()
	eventually(t, movedWithin, "the overloaded node is offered nothing", func() string {
		n, err := c.offered("fs3")
		if err != nil || n.Weight > 0 {
			return fmt.Sprintf("%+v %v", n, err)
		}
		return ""
	})
	moved := tr.avoided(1, busy, 10).Sub(burnt)
	t.Logf("the last new call came %s after the spike", moved.Round(time.Millisecond))
	if moved > movedWithin {
		t.Errorf("the last new call to the overloaded node came %s after the spike, want at most %s", moved.Round(time.Millisecond), movedWithin)
	}
	for i, call := range running {
		// What this process could send in the time is what it could have got.
		var sent, got int64
		eventually(t, 20*time.Second, fmt.Sprintf("three seconds of running call %d", i), func() string {
			s := call.Stats()
			sent, got = s.Sent-before[i].Sent, s.Received-before[i].Received
			if sent < 150 {
				return fmt.Sprintf("%d packets sent", sent)
			}
			return ""
		})
		if got < sent*3/4 {
			t.Errorf("running call %d got %d RTP packets while it sent %d, want three quarters at least", i, got, sent)
		}
		t.Logf("running call %d got %d RTP packets while it sent %d", i, got, sent)
		select {
		case <-call.Done():
			t.Errorf("running call %d has ended", i)
		default:
		}
	}
	stop()
	for _, call := range running {
		if err := call.Hangup(t.Context()); err != nil {
			t.Errorf("end of a running call: %v", err)
		}
	}

	// The busy node is the only one left of its pool, and takes calls again at
	// once. The other tenant's home hangs.
	home := tr.lastNode(0)
	id := map[string]string{c.nodes["fs1"].sip: "fs1", c.nodes["fs2"].sip: "fs2"}[home]
	if id == "" {
		t.Fatalf("calls of the sticky tenant go to %q", home)
	}
	hung := c.media[id].cmd.Process
	t.Cleanup(func() { _ = hung.Signal(syscall.SIGCONT) }) // before it is asked to end
	lost := time.Now()
	c.media["fs4"].kill()
	if err := hung.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for tenant, addr := range []string{home, idle} {
		t.Logf("the last call that lost node %s answered came %s before its loss", addr, lost.Sub(tr.avoided(tenant, addr, 10)).Round(time.Millisecond))
	}
	if err := hung.Signal(syscall.SIGCONT); err != nil { // it still has to answer some BYE
		t.Error(err)
	}
	calls := tr.finish()
	for _, p := range calls {
		// A node that dies after its 100 takes the call with it: nobody can tell
		// that from a phone that rings.
		begun := p.begun.Before(lost) && p.ended.After(lost)
		if p.answered.IsZero() && !begun {
			t.Errorf("call %s of tenant %d failed: %d %v", p.callID, p.tenant, p.status, p.err)
		}
	}
	t.Logf("%d calls", len(calls))
}
