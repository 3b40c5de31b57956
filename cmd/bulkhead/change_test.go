package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// TestTenantAddedWhileCallsRun: a tenant that "bulkhead apply" adds takes
// calls soon after, on the same Kamailio process, and no call of the others fails.
func TestTenantAddedWhileCallsRun(t *testing.T) {
	c := startCell(t, 4)
	c.phones(nil)
	tr := c.newTraffic(4, 500*time.Millisecond)
	tr.start(20)
	c.waitAnswered(tr, 20)
	pid := c.kamailio.PID()

	const added = 4
	from := c.carrier(sourceOf(added))
	target := "+" + numberOf(added) + "@" + domainOf(added)
	if p := place(from, added, target, "too-early", 0); p.status != http.StatusNotFound {
		t.Fatalf("before it is there, the tenant's domain gets %d (%v), want 404", p.status, p.err)
	}
	c.apply("tenants:\n" + c.tenantYAML(added))
	applied := time.Now()
	// Its phone is not registered: 480 is the SBC's answer for a user it knows.
	eventually(t, 10*time.Second, "the new tenant's calls reach its node", func() string {
		if p := place(from, added, target, fmt.Sprintf("new-%d", time.Now().UnixNano()), 0); p.status != 480 {
			return fmt.Sprint(p.status, " ", p.err)
		}
		return ""
	})
	t.Logf("the new tenant took calls %v after the apply", time.Since(applied).Round(time.Millisecond))
	n, _ := tr.count()
	c.waitAnswered(tr, n+20)
	for _, p := range tr.finish() {
		if p.err != nil {
			t.Errorf("call %s of %s failed: %v", p.callID, tenantOf(p.tenant), p.err)
		}
	}
	if now := c.kamailio.PID(); now != pid || syscall.Kill(pid, 0) != nil {
		t.Errorf("Kamailio was restarted: process %d, before %d", now, pid)
	}
}

// TestRefusals: what belongs to nobody is refused, and the store says why.
func TestRefusals(t *testing.T) {
	c := startCell(t, 2)
	c.phones(nil)
	listed, unlisted := c.carrier(sourceOf(0)), c.carrier("127.30.0.1")
	for _, x := range []struct {
		name, target, reason string
		unlisted             bool
		status               int
		kind                 cdr.Kind
	}{
		{"unknown domain", "101@nobody.example", "unknown domain", false, 404, cdr.Refused},
		{"unknown number", "+4940999@" + domainOf(0), "", false, 404, cdr.Leg},
		{"unlisted source", "+" + numberOf(0) + "@" + domainOf(0), "unlisted source", true, 403, cdr.Refused},
		{"source of another tenant", "+" + numberOf(1) + "@" + domainOf(1), "unlisted source", false, 403, cdr.Refused},
	} {
		t.Run(x.name, func(t *testing.T) {
			from, callID := listed, "refused-"+strings.ReplaceAll(x.name, " ", "-")
			if x.unlisted {
				from = unlisted
			}
			if p := place(from, 0, x.target, callID, 0); p.status != x.status {
				t.Errorf("got %d (%v), want %d", p.status, p.err, x.status)
			}
			eventually(t, 15*time.Second, "the record", func() string {
				for _, r := range c.records() {
					if r.SIPCallID != callID {
						continue
					}
					if r.Kind != x.kind || r.SIPCode != x.status || !strings.Contains(r.Cause, x.reason) || (r.Kind == cdr.Refused && r.SBC != "sbc1") {
						return fmt.Sprintf("it is %+v", r)
					}
					return ""
				}
				return "none"
			})
		})
	}
}

// TestDeadNode: a call to a node that was killed goes on to the next one
// within the same INVITE, and the store says so.
func TestDeadNode(t *testing.T) {
	c := startCell(t, 4)
	c.phones(nil)
	from := c.carrier(sourceOf(1)) // a tenant of the pool that fs3 and fs4 share by weight
	c.dispatcher.kill()            // it would take the dead node out of the set before a call meets it
	c.media["fs3"].kill()
	const calls = 16
	var placing sync.WaitGroup
	for i := range calls { // at once, for what fails on the first takes the node out as well
		placing.Go(func() {
			p := place(from, 1, "+"+numberOf(1)+"@"+domainOf(1), fmt.Sprintf("dead-node-%d", i), 100*time.Millisecond)
			if p.err != nil {
				t.Errorf("call %d: %v", i, p.err)
			}
		})
	}
	placing.Wait()
	eventually(t, 15*time.Second, "records of the calls and of what failed", func() string {
		legs, failed := 0, 0
		for _, r := range c.records() {
			switch {
			case r.Kind == cdr.Failover && r.Node == "fs3" && r.SBC == "sbc1" && r.Tenant == "t01" && r.Cause != "":
				failed++
			case r.Kind == cdr.Leg && r.Direction == cdr.Inbound && r.Node == "fs4" && r.SIPCode == 200:
				legs++
			}
		}
		if legs != calls || failed == 0 {
			return fmt.Sprintf("%d answered on fs4, %d failovers from fs3", legs, failed)
		}
		return ""
	})
}

// TestPhoneInsideSourceNetwork: a phone in a listed network, beside the
// tenant's trunk, proves to be a user and may dial out; the trunk itself may not.
func TestPhoneInsideSourceNetwork(t *testing.T) {
	c := startCell(t, 1)
	carrier, err := siptest.NewPhone(siptest.PhonesConfig{Listen: c.trunk}, siptest.PhoneConfig{User: "*", Domain: "carrier.example"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { carrier.Close() })
	listen := siptest.PhonesConfig{Listen: "127.20.0.7:0", Proxy: c.sip}
	phone, err := siptest.NewPhone(listen, siptest.PhoneConfig{User: "102", Domain: domainOf(0), Password: testPassword})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { phone.Close() })
	const outside = "4930123456"
	if p := place(phone, 0, outside, "by-a-user", 100*time.Millisecond); p.err != nil {
		t.Errorf("a user's call to the trunk: %v", p.err)
	}
	if p := place(c.carrier("127.20.0.8"), 0, outside+"@"+domainOf(0), "by-the-trunk", 0); p.status != http.StatusNotFound {
		t.Errorf("a trunk's call to a trunk got %d (%v), want 404", p.status, p.err)
	}
	wrong, err := siptest.NewPhone(listen, siptest.PhoneConfig{User: "101", Domain: domainOf(0), Password: "guess"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { wrong.Close() })
	if p := place(wrong, 0, outside, "by-nobody", 0); p.status != http.StatusForbidden {
		t.Errorf("a wrong password got %d (%v), want 403", p.status, p.err)
	}
}
