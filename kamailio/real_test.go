package kamailio_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
	"github.com/bulkhead-voip/bulkhead/route"
)

func TestStartsWithEmptyTables(t *testing.T) {
	d := kamailiotest.Start(t, kamailio.Params{})
	v, err := d.Client.Version(t.Context())
	if err != nil || !strings.HasPrefix(v, "kamailio 5") {
		t.Fatalf("Version() = %q, %v", v, err)
	}
	s := newSocket(t, "127.0.0.1", d.Addr)
	want(t, "call to nobody", s.ask(&call{ruri: "sip:100@acme.example"}), 404)
	want(t, "OPTIONS to the SBC", s.ask(&call{method: "OPTIONS", ruri: "sip:" + d.Addr.String()}), 200)
	n, err := d.Client.Counters(t.Context())
	if err != nil || n["refused_domain"] != 1 {
		t.Errorf("Counters() = %v, %v, want refused_domain 1", n, err)
	}
}

func TestDecisions(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{
		tenant("acme", "standard", "493010", "127.1.0.0/16", "127.3.4.5/32", "127.7.0.0/20"),
		tenant("beta", "standard", "493020", "127.2.0.0/24", "127.2.1.16/28", "127.2.1.7/32"),
		tenant("gamma", "high_volume", "493030", "127.3.4.0/32", "127.10.0.0/15"),
	}})
	sbc := "sip:" + w.Addr.String()
	for _, tt := range []struct {
		name, source, ruri, from string
		status                   int
		tenant                   bulkhead.TenantID // 486: which the node was told
	}{
		{name: "unknown domain", source: "127.1.2.3", ruri: "sip:1001@nobody.example", status: 404},
		{name: "own domain", source: "127.1.2.3", ruri: "sip:1001@acme.example", status: 486, tenant: "acme"},
		{name: "own second domain in capitals", source: "127.1.2.3", ruri: "sip:1001@WWW.Acme.EXAMPLE", status: 486, tenant: "acme"},
		{name: "somebody else's domain", source: "127.1.2.3", ruri: "sip:1001@beta.example", status: 403},
		{name: "unlisted source", source: "127.9.2.3", ruri: "sip:1001@beta.example", status: 403},
		{name: "unlisted source that says to be a user", source: "127.9.2.3", ruri: "sip:1001@beta.example", from: "sip:1001@beta.example", status: 407},
		{name: "own number", source: "127.1.2.3", ruri: "sip:+493010@" + w.Addr.String(), status: 486, tenant: "acme"},
		{name: "own number without plus", source: "127.1.2.3", ruri: "sip:493010@sbc.example", status: 486, tenant: "acme"},
		{name: "somebody else's number", source: "127.1.2.3", ruri: "sip:493020@" + w.Addr.String(), status: 403},
		{name: "nobody's number", source: "127.1.2.3", ruri: "sip:999@" + w.Addr.String(), status: 486, tenant: "acme"},
		{name: "no number", source: "127.1.2.3", ruri: sbc, status: 486, tenant: "acme"},
		{name: "number from an unlisted source", source: "127.9.2.3", ruri: "sip:493010@" + w.Addr.String(), status: 403},
		{name: "/32 under a gate of nobody's", source: "127.3.4.5", ruri: "sip:1@acme.example", status: 486, tenant: "acme"},
		{name: "neighbour of a /32", source: "127.3.4.6", ruri: "sip:1@acme.example", status: 403},
		{name: "/24", source: "127.2.0.99", ruri: "sip:1@beta.example", status: 486, tenant: "beta"},
		{name: "/28", source: "127.2.1.31", ruri: "sip:1@beta.example", status: 486, tenant: "beta"},
		{name: "outside of the /28", source: "127.2.1.32", ruri: "sip:1@beta.example", status: 403},
		{name: "/32 beside a /28", source: "127.2.1.7", ruri: "sip:1@beta.example", status: 486, tenant: "beta"},
		{name: "/20", source: "127.7.15.255", ruri: "sip:1@acme.example", status: 486, tenant: "acme"},
		{name: "outside of the /20", source: "127.7.16.1", ruri: "sip:1@acme.example", status: 403},
		{name: "/15", source: "127.11.200.1", ruri: "sip:1@gamma.example", status: 486, tenant: "gamma"},
		{name: "header in the Request-URI", source: "127.1.2.3", ruri: "sip:1001@acme.example?X-Bulkhead-Tenant=beta", status: 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := call{ruri: tt.ruri, from: tt.from, callID: fmt.Sprintf("%016x", serial())}
			want(t, tt.name, w.ask(tt.source, c), tt.status)
			id, invite := w.heardBy(c.callID)
			if got := header(invite, "X-Bulkhead-Tenant"); got != string(tt.tenant) {
				t.Errorf("node %q heard of tenant %q, want %q", id, got, tt.tenant)
			}
			if tt.tenant != "" && (header(invite, "X-Bulkhead-SBC") != "sbc1" || header(invite, "X-Bulkhead-Revision") != "2" || header(invite, "X-Bulkhead-User") != "") {
				t.Errorf("wrong headers:\n%s", invite)
			}
		})
	}
	for method, code := range map[string]int{"MESSAGE": 405, "SUBSCRIBE": 405, "OPTIONS": 200} {
		want(t, method, w.ask("127.9.9.9", call{method: method, ruri: "sip:acme.example"}), code)
	}
	want(t, "OPTIONS to an unknown domain", w.ask("127.9.9.9", call{method: "OPTIONS", ruri: "sip:nobody.example"}), 404)
}

func TestForgedHeaders(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010", "127.1.0.0/16")}})
	c := call{ruri: "sip:1001@acme.example", callID: "forged-headers-1", extra: "X-Bulkhead-Tenant: beta\r\nx-bulkhead-user: 1001\r\n" +
		"X-Bulkhead-SBC : sbc9\r\nX-BULKHEAD-REVISION\t: 99\r\nX-Bulkhead-User: a\r\n b\r\nX-Bulkhead-Tenant: beta\r\nRoute: <sip:127.0.0.9:9;lr>\r\n"}
	want(t, "forged", w.ask("127.1.2.3", c), 486)
	_, invite := w.heardBy(c.callID)
	var got []string
	for line := range strings.SplitSeq(invite, "\r\n") {
		if strings.Contains(strings.ToLower(line), "x-bulkhead") || strings.HasPrefix(line, "Route:") {
			got = append(got, line)
		}
	}
	if s := strings.Join(got, ","); s != "X-Bulkhead-Tenant: acme,X-Bulkhead-SBC: sbc1,X-Bulkhead-Revision: 2" {
		t.Errorf("the node got %s", s)
	}
	// FreeSWITCH and Asterisk end a header at a CR alone too. A zero must not hide what follows it.
	for i, extra := range []string{"Subject: a\rX-Bulkhead-User: 1001\r\n", "X-Bulkhead-User: 1\rx-bulkHEAD-tenant: beta\r\n", "Subject: a\x00b\r\rX-Bulkhead-User: 1001\r\n"} {
		c := call{ruri: "sip:1001@acme.example", callID: fmt.Sprintf("forged-within-%d", i), extra: extra}
		want(t, "a header within another", w.ask("127.1.2.3", c), 400)
		if id, invite := w.heardBy(c.callID); id != "" {
			t.Errorf("node %q got\n%q", id, invite)
		}
	}
}

func TestIPv6Source(t *testing.T) {
	port := kamailiotest.FreePort(t)
	w := newWorld(t, kamailio.Params{Listen6: "[::1]:" + port[len("127.0.0.1:"):]})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{
		tenant("acme", "standard", "493010", "::1/128"), tenant("beta", "standard", "493020", "2001:db8::/48"),
	}})
	s := newSocket(t, "::1", netip.MustParseAddrPort(w.Params.Listen6))
	c := call{ruri: "sip:1001@acme.example", callID: "ipv6-source-1"}
	want(t, "listed", s.ask(&c), 486)
	if _, invite := w.heardBy(c.callID); header(invite, "X-Bulkhead-Tenant") != "acme" {
		t.Errorf("wrong headers:\n%s", invite)
	}
	want(t, "unlisted", s.ask(&call{ruri: "sip:1001@beta.example"}), 403)
	for _, n := range w.nodes {
		n.set("200 OK")
	}
	answeredCall(t, w, s, call{ruri: "sip:1001@acme.example", callID: "ipv6-answered-1"})
}

// TestSameAsDecide asks the real SBC and route.Decide about the same random
// calls of random tenants.
func TestSameAsDecide(t *testing.T) {
	w := newWorld(t, kamailio.Params{})
	r := rand.New(rand.NewPCG(1, 2))
	address := func() netip.Addr {
		return netip.AddrFrom4([4]byte{127, byte(16 + r.IntN(4)), byte(r.IntN(3) * 9), byte(r.IntN(256))})
	}
	var ids []bulkhead.TenantID
	for i := range 60 {
		id := bulkhead.TenantID(fmt.Sprintf("t%d", i))
		profile := bulkhead.ProfileStandard
		if i%3 == 0 {
			profile = bulkhead.ProfileHighVolume
		}
		tn := tenant(id, profile, fmt.Sprintf("49%d", 100+i))
		for range 4 {
			tn.Sources = append(tn.Sources, netip.PrefixFrom(address(), 12+r.IntN(21)).Masked())
			if next := w.state.Apply(&bulkhead.Change{Tenants: []bulkhead.Tenant{tn}}); next.Validate() != nil {
				tn.Sources = tn.Sources[:len(tn.Sources)-1] // overlaps somebody else's
			}
		}
		w.state = w.state.Apply(&bulkhead.Change{Tenants: []bulkhead.Tenant{tn}})
		ids = append(ids, id)
	}
	w.apply(bulkhead.Change{})
	x := route.New(w.state)
	sets := map[int]route.Set{}
	for _, s := range w.tables().Sets {
		sets[s.ID] = s
	}
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	reached, refused := 0, 0
	for i := range 400 {
		owner := ids[r.IntN(len(ids))]
		source := address()
		if p := w.state.Tenants[owner].Sources; len(p) > 0 && r.IntN(2) == 0 {
			source = p[r.IntN(len(p))].Addr()
		}
		domain := pick(string(owner)+".example", "www."+string(owner)+".example", "nobody.example", w.Addr.Addr().String(), "sbc.example")
		number := pick("1001", "+49"+fmt.Sprint(100+r.IntN(70)), "49"+fmt.Sprint(100+r.IntN(70)), "1", "abc", w.state.Tenants[owner].Numbers[0].Number)
		c := call{ruri: "sip:" + number + "@" + domain, callID: fmt.Sprintf("decide-%06d-%d", i, r.IntN(1e9))}
		q := route.Call{SBC: "sbc1", Domain: domain, Source: source, Number: number}
		if r.IntN(3) == 0 && strings.Contains(domain, string(owner)+".") {
			c.from, c.auth = "sip:1002@"+string(owner)+".example", "pw-1002"
			q.User = "1002"
		}
		plan := route.Decide(x, q)
		answer := w.ask(source.String(), c)
		id, invite := w.heardBy(c.callID)
		if plan.Tenant == "" {
			refused++
			if reject := plan.Actions[0].(route.Reject); status(answer) != reject.Status || id != "" {
				t.Errorf("%+v: SBC said %d and asked %q, Decide says %+v", q, status(answer), id, reject)
			}
			continue
		}
		reached++
		if got := header(invite, "X-Bulkhead-Tenant"); got != string(plan.Tenant) {
			t.Errorf("%+v: SBC says %q (%d), Decide says %q", q, got, status(answer), plan.Tenant)
		}
		set := sets[plan.Set]
		if set.Home != "" && id != set.Home {
			t.Errorf("%+v: SBC asked %q, its home is %q", q, id, set.Home)
		}
		if n := x.Node(id); n == nil || n.Pool != plan.Pool {
			t.Errorf("%+v: SBC asked %q, Decide's pool is %q", q, id, plan.Pool)
		}
	}
	t.Logf("%d calls reached a node, %d were refused", reached, refused)
	if reached < 100 || refused < 50 {
		t.Errorf("the draw is poor: %d calls reached a node, %d were refused", reached, refused)
	}
}
