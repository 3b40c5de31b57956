package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
)

// TestKillControlPlane ends the dispatcher, the event bridge and cdrpipe with
// SIGKILL in the middle of traffic. No call may notice; afterwards the store
// has every leg that ended while somebody listened, once, and says of the
// others that they ended in a gap. A node that was drained before stays so.
func TestKillControlPlane(t *testing.T) {
	c := startCell(t, 6)
	c.phones(nil)
	c.secondDispatcher()
	c.drain("fs2")
	tr := c.newTraffic(6, 1500*time.Millisecond)
	tr.start(10)
	c.waitAnswered(tr, 20)

	alive := time.Now()
	c.eventbridge.kill()
	killed := time.Now() // from here on nobody listens
	c.dispatcher.kill()
	c.cdrpipe.kill()
	before, _ := tr.count()
	eventually(t, 30*time.Second, "calls that begin and end with everything dead", func() string {
		if n, _ := tr.count(); n < before+35 {
			return fmt.Sprintf("%d of %d", n-before, 35)
		}
		return ""
	})
	for _, p := range []*proc{c.dispatcher, c.eventbridge, c.cdrpipe} {
		p.start()
	}
	for _, s := range []string{"dispatcher", "eventbridge", "cdrpipe"} {
		waitReady(t, c.admin[s], 30*time.Second)
	}
	revived := time.Now()
	after, _ := tr.count()
	c.waitAnswered(tr, after+30)
	ledger := tr.finish()
	for _, p := range ledger {
		if p.err != nil {
			t.Errorf("call %s of %s failed while the control plane was killed: %v", p.callID, p.begun.Format(time.StampMilli), p.err)
		}
		if p.node == c.nodes["fs2"].sip {
			t.Errorf("call %s of %s went to the drained node", p.callID, p.begun.Format(time.StampMilli))
		}
	}
	c.checkLedger(ledger, alive, killed, revived)
}

// drain drains a node, and waits until Kamailio offers it nothing.
func (c *testCell) drain(node string) {
	c.t.Helper()
	tool(c.t, "node", "drain", node, "--data", c.data)
	eventually(c.t, 30*time.Second, "no calls for "+node, func() string { return flagged(c.t, c.kamailio, c.nodes[node].sip, 'D') })
}

// flagged returns "" if a node is in Kamailio's sets, and in each with that
// flag: A is active, I inactive, D disabled.
func flagged(t *testing.T, d *kamailiotest.Daemon, sip string, flag byte) string {
	t.Helper()
	list, err := d.Client.Call(t.Context(), "dispatcher.list", "short")
	if err != nil {
		return err.Error()
	}
	form := regexp.MustCompile(`"URI":\s*"sip:` + regexp.QuoteMeta(sip) + `[^"]*",\s*"FLAGS":\s*"(\w+)"`)
	found := form.FindAllSubmatch(list, -1)
	for _, f := range found {
		if f[1][0] != flag {
			return string(f[0])
		}
	}
	if len(found) == 0 {
		return "it is not in the list: " + string(list)
	}
	return ""
}

// secondDispatcher wants one beside a Kamailio that has one to end at once, and
// to say which process is in its way.
func (c *testCell) secondDispatcher() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	var said bytes.Buffer
	code := execute(ctx, []string{"dispatcher", "--data", c.data, "--sbc", "sbc1", "--kamailio", c.kamailio.Dir, "--admin", "127.0.0.1:0"}, io.Discard, &said)
	if want := fmt.Sprintf("another dispatcher (process %d)", c.dispatcher.cmd.Process.Pid); code == exitOK || !strings.Contains(said.String(), want) {
		c.t.Errorf("a second dispatcher ends with %d and says %s, want %q", code, &said, want)
	}
}

func (c *testCell) waitAnswered(tr *traffic, want int) {
	c.t.Helper()
	eventually(c.t, 30*time.Second, "answered calls", func() string {
		if n, refused := tr.count(); n < want {
			return fmt.Sprintf("%d of %d, %d refused", n, want, refused)
		}
		return ""
	})
}

// checkLedger holds the store against what the callers saw. A second either
// side of the kill and of the revival belongs to neither.
func (c *testCell) checkLedger(ledger []placed, alive, killed, revived time.Time) {
	t := c.t
	t.Helper()
	var must []placed
	for _, p := range ledger {
		if p.ended.Before(alive.Add(-time.Second)) || p.ended.After(revived.Add(time.Second)) {
			must = append(must, p)
		}
	}
	find := func() (byCall map[string][]cdrpipe.Row, missing int) {
		byCall = map[string][]cdrpipe.Row{}
		for _, r := range c.records() {
			if r.Kind == cdr.Leg && r.Direction != cdr.Outbound {
				byCall[r.SIPCallID] = append(byCall[r.SIPCallID], r)
			}
		}
		for _, p := range must {
			if len(byCall[p.callID]) == 0 {
				missing++
			}
		}
		return byCall, missing
	}
	var byCall map[string][]cdrpipe.Row
	eventually(t, 20*time.Second, "records of calls that ended while somebody listened", func() string {
		var missing int
		if byCall, missing = find(); missing > 0 {
			return fmt.Sprintf("%d of %d missing", missing, len(must))
		}
		return ""
	})
	gaps := tool(t, "cdr", "--gaps", "--data", c.data)
	inGap, unseen := 0, 0
	for _, p := range ledger {
		rows := byCall[p.callID]
		if len(rows) > 1 {
			t.Errorf("call %s has %d A-leg records", p.callID, len(rows))
		}
		switch {
		case p.begun.Before(alive.Add(-500*time.Millisecond)) && p.ended.After(killed.Add(100*time.Millisecond)) && p.ended.Before(revived.Add(-2*time.Second)):
			// Begun while somebody listened, ended unseen.
			inGap++
			if len(rows) != 1 || rows[0].Source != cdr.SourceSynthesised || rows[0].Gap == "" {
				t.Errorf("call %s ended in the gap, its records are %+v; want a synthesised one", p.callID, rows)
			} else if !strings.Contains(gaps, rows[0].Gap) || !strings.Contains(gaps, rows[0].Leg) {
				t.Errorf("no gap names leg %s of call %s: %s", rows[0].Leg, p.callID, gaps)
			}
		case p.begun.After(killed) && p.ended.Before(revived.Add(-2*time.Second)):
			unseen++
		case len(rows) == 1 && rows[0].Source == cdr.SourceESL && p.begun.After(revived.Add(time.Second)) && rows[0].SIPCode != 200:
			t.Errorf("record of call %s: %+v", p.callID, rows[0])
		}
	}
	if inGap == 0 {
		t.Error("no call ended in the gap: the test showed nothing")
	}
	t.Logf("%d calls, %d ended in the gap and are named, %d began and ended unseen", len(ledger), inGap, unseen)
}

// TestKillConfigsvc: without configsvc a call gets a 503, at once and not
// silence; with it back, calls are answered again.
func TestKillConfigsvc(t *testing.T) {
	c := startCell(t, 2)
	c.phones(nil)
	from := c.carrier(sourceOf(0))
	target := "+" + numberOf(0) + "@" + domainOf(0)
	if p := place(from, 0, target, "before", 100*time.Millisecond); p.err != nil {
		t.Fatalf("before the kill: %v", p.err)
	}
	c.configsvc.kill()
	dead := place(from, 0, target, "dead", 0)
	if dead.status != http.StatusServiceUnavailable {
		t.Errorf("with configsvc dead the caller got %d (%v), want 503", dead.status, dead.err)
	}
	if took := dead.ended.Sub(dead.begun); took > 5*time.Second {
		t.Errorf("the 503 took %v: it must come at once", took)
	}
	c.configsvc.start()
	restarted := time.Now()
	eventually(t, 10*time.Second, "answered again", func() string {
		if p := place(from, 0, target, fmt.Sprintf("after-%d", time.Now().UnixNano()), 100*time.Millisecond); p.err != nil {
			return p.err.Error()
		}
		return ""
	})
	t.Logf("503 after %v; answered again %v after the restart", dead.ended.Sub(dead.begun).Round(time.Millisecond), time.Since(restarted).Round(time.Millisecond))
}
