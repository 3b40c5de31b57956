package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// TestFarEndsOwn5xx: what a carrier or a phone answers, or what was decided, is
// not taken for a sick node: nobody is called twice, and the store blames no node.
func TestFarEndsOwn5xx(t *testing.T) {
	c := startCell(t, 1)
	var mu sync.Mutex
	heard := map[string]int{}
	busy := func(who string, code int) siptest.PhoneConfig {
		return siptest.PhoneConfig{User: "*", Domain: "carrier.example", OnInvite: func(*siptest.Incoming) siptest.Behaviour {
			mu.Lock()
			defer mu.Unlock()
			heard[who]++
			return siptest.Behaviour{Code: code}
		}}
	}
	counted := func() string {
		mu.Lock()
		defer mu.Unlock()
		defer clear(heard)
		return fmt.Sprint(heard)
	}
	// The tenant has two trunks, whose carriers both refuse.
	trunks := fmt.Sprintf("[{name: out, host: %s, port: %s, priority: 1}", strings.Split(c.trunk, ":")[0], strings.Split(c.trunk, ":")[1])
	second := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	for who, at := range map[string]string{"first": c.trunk, "second": second} {
		p, err := siptest.NewPhone(siptest.PhonesConfig{Listen: at}, busy(who, map[string]int{"first": 503, "second": 500}[who]))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
	}
	one := c.tenantYAML(0)
	head, _, _ := strings.Cut(one, "trunks:")
	c.apply("tenants:\n" + head + "trunks: " + trunks + fmt.Sprintf(", {name: more, host: 127.0.0.1, port: %s, priority: 2}]\n    dialling: {country: \"49\"}\n", strings.Split(second, ":")[1]))
	group := siptest.PhonesConfig{Listen: "127.20.0.7:0", Proxy: c.sip}
	caller, err := siptest.NewPhone(group, siptest.PhoneConfig{User: "102", Domain: domainOf(0), Password: testPassword})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { caller.Close() })
	const outside = "4930123456"
	calls := 0
	eventually(t, 30*time.Second, "two trunks", func() string {
		calls++
		counted()
		p := place(caller, 0, outside, fmt.Sprintf("refused-by-carriers-%d", calls), 0)
		if got := counted(); p.status != http.StatusInternalServerError || got != "map[first:1 second:1]" {
			return fmt.Sprintf("status %d (%v), and the carriers heard %s", p.status, p.err, got)
		}
		return ""
	})

	phone := busy("phone", http.StatusServiceUnavailable)
	phone.User, phone.Domain, phone.Password = "101", domainOf(0), testPassword
	refusing, err := siptest.NewPhone(siptest.PhonesConfig{Proxy: c.sip}, phone)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { refusing.Close() })
	if err := refusing.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p := place(c.carrier(sourceOf(0)), 0, "+"+numberOf(0)+"@"+domainOf(0), "refused-by-phone", 0); p.status != http.StatusServiceUnavailable {
		t.Errorf("a phone's 503 arrived as %d (%v)", p.status, p.err)
	}
	if got := counted(); got != "map[phone:1]" {
		t.Errorf("a phone that answers 503 was called %s times", got)
	}

	c.apply("tenants:\n" + head + "dialling: {country: \"49\"}\n")
	eventually(t, 30*time.Second, "no trunk", func() string {
		calls++
		if p := place(caller, 0, outside, fmt.Sprintf("no-trunk-%d", calls), 0); p.status != http.StatusNotFound {
			return fmt.Sprintf("status %d (%v)", p.status, p.err)
		}
		return ""
	})

	// What the SBC reports comes in order: with this, all of it is there.
	place(c.carrier(sourceOf(0)), 0, "1@nobody.example", "the-last", 0)
	eventually(t, 30*time.Second, "the last record", func() string {
		last := false
		for _, r := range c.records() {
			if r.Kind == cdr.Failover {
				t.Fatalf("a node is blamed: %+v", r)
			}
			last = last || r.SIPCallID == "the-last"
		}
		if !last {
			return "it is missing"
		}
		return ""
	})
}
