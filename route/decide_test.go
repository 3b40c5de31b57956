package route_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ha1 = "0123456789abcdef0123456789abcdef"

// example is a state of two cells that share an SBC name and an address.
func example(t testing.TB) bulkhead.State {
	t.Helper()
	net := netip.MustParsePrefix
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "east"}, {ID: "west"}},
		Pools: []bulkhead.Pool{
			{ID: "east-std", Cell: "east", Profile: "standard", Backup: "east-ai"},
			{ID: "east-ai", Cell: "east", Profile: "ai", Placement: bulkhead.Spread},
			{ID: "west-std", Cell: "west", Profile: "standard"},
		},
		Nodes: []bulkhead.Node{
			{ID: "e1", Pool: "east-std", SIP: "127.0.0.1:7001"}, {ID: "e2", Pool: "east-std", SIP: "127.0.0.1:7002"},
			{ID: "e3", Pool: "east-ai", SIP: "127.0.0.1:7003"}, {ID: "w1", Pool: "west-std", SIP: "[2001:db8:f::1]:7004"},
		},
		SBCs: []bulkhead.SBC{
			{ID: "sbc-e", Cell: "east", SIP: "127.0.0.1:5060", Names: []string{"sip.example"}},
			{ID: "sbc-w", Cell: "west", SIP: "127.0.0.1:5070", Names: []string{"sip.example", "west.example"}},
			{ID: "sbc-6", Cell: "west", SIP: "[2001:db8:f::5]:5060"},
		},
		Tenants: []bulkhead.Tenant{
			{
				ID: "acme", Cell: "east", Profile: "standard", Domains: []string{"acme.example", "pbx.acme.example"},
				Sources: []netip.Prefix{net("198.51.100.0/24"), net("198.51.100.7/32"), net("2001:db8:a::/48")},
				Numbers: []bulkhead.Number{{Number: "49301001", User: "1001"}},
				Users:   []bulkhead.User{{Extension: "1001", HA1: ha1, CallerID: "49301001"}, {Extension: "1002", HA1: ha1}, {Extension: "fax", HA1: ha1}},
				Trunks: []bulkhead.Trunk{
					{Name: "any", Host: "192.0.2.1", Port: 5060}, {Name: "de", Host: "192.0.2.2", Port: 5060, Prefix: "49"},
					{Name: "berlin", Host: "192.0.2.3", Port: 5080, Prefix: "4930"},
				},
				Codecs: []string{"PCMA"}, Dialling: bulkhead.Dialling{Country: "49"}, Allow: []string{"national", "international"},
			},
			{
				ID: "bolt", Cell: "east", Profile: "ai", Domains: []string{"bolt.example"},
				Sources:  []netip.Prefix{net("203.0.113.0/28")},
				Numbers:  []bulkhead.Number{{Number: "49302001", User: "1001"}},
				Users:    []bulkhead.User{{Extension: "1001", HA1: ha1}},
				Trunks:   []bulkhead.Trunk{{Name: "us", Host: "carrier.example", Port: 5060, Prefix: "1"}},
				Dialling: bulkhead.Dialling{Country: "1"}, Allow: []string{"national", "international"},
			},
			{
				ID: "wolf", Cell: "west", Profile: "standard", Domains: []string{"wolf.example"},
				Sources: []netip.Prefix{net("192.0.2.0/24")},
				Numbers: []bulkhead.Number{{Number: "49303001", User: "1001"}},
				Users:   []bulkhead.User{{Extension: "1001", HA1: ha1}},
			},
		},
	}
	s := bulkhead.State{Revision: 6}.Apply(&c)
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return s
}

const (
	acmeSource = "198.51.100.20"
	boltSource = "203.0.113.15"
	wolfSource = "192.0.2.77"
	stranger   = "203.0.113.16"
)

func dial(l route.Leg) route.Action { return route.Dial{Legs: []route.Leg{l}} }

func dialUser(extension, realm, sbc string) route.Action {
	return dial(route.DialUser{Extension: extension, Realm: realm, SBC: sbc})
}

func TestDecide(t *testing.T) {
	rings := func(extension string) route.Action { return dialUser(extension, "acme.example", "127.0.0.1:5060") }
	trunk := func(name, host string, port uint16, number, callerID string) route.Action {
		return dial(route.DialTrunk{Trunk: name, Host: host, Port: port, Number: number, CallerID: callerID})
	}
	for name, c := range map[string]struct {
		sbc, domain, source, number, user string
		tenant                            bulkhead.TenantID
		action                            route.Action
	}{
		"number to user":                    {"sbc-e", "acme.example", acmeSource, "49301001", "", "acme", rings("1001")},
		"number with plus":                  {"sbc-e", "acme.example", acmeSource, "+49301001", "", "acme", rings("1001")},
		"number with two plus":              {"sbc-e", "acme.example", acmeSource, "++49301001", "", "acme", route.UnknownNumber},
		"user to user":                      {"sbc-e", "acme.example", stranger, "1002", "1001", "acme", rings("1002")},
		"user to user without digits":       {"sbc-e", "acme.example", stranger, "fax", "1001", "acme", rings("fax")},
		"user to own number":                {"sbc-e", "acme.example", stranger, "+49301001", "1002", "acme", rings("1001")},
		"second domain":                     {"sbc-e", "pbx.acme.example", acmeSource, "1001", "", "acme", rings("1001")},
		"domain in capitals":                {"sbc-e", "ACME.Example", acmeSource, "1001", "", "acme", rings("1001")},
		"IPv6 source":                       {"sbc-e", "acme.example", "2001:db8:a:ffff::9", "1001", "", "acme", rings("1001")},
		"IPv6 source beside the network":    {"sbc-e", "acme.example", "2001:db8:b::9", "1001", "", "", route.UnlistedSource},
		"IPv4-mapped source":                {"sbc-e", "acme.example", "::ffff:198.51.100.20", "1001", "", "acme", rings("1001")},
		"longest trunk prefix":              {"sbc-e", "acme.example", stranger, "+493055", "1001", "acme", trunk("berlin", "192.0.2.3", 5080, "493055", "49301001")},
		"shorter trunk prefix":              {"sbc-e", "acme.example", stranger, "498955", "1001", "acme", trunk("de", "192.0.2.2", 5060, "498955", "49301001")},
		"trunk without prefix":              {"sbc-e", "acme.example", stranger, "44207946", "1002", "acme", trunk("any", "192.0.2.1", 5060, "44207946", "49301001")},
		"other tenant's number by trunk":    {"sbc-e", "acme.example", stranger, "49302001", "1001", "acme", trunk("berlin", "192.0.2.3", 5080, "49302001", "49301001")},
		"no E.164 number":                   {"sbc-e", "acme.example", stranger, "0044207", "1002", "acme", route.UnknownNumber},
		"no trunk takes it":                 {"sbc-e", "bolt.example", stranger, "4930", "1001", "bolt", route.NoTrunk},
		"trunk not for a source network":    {"sbc-e", "acme.example", acmeSource, "493055", "", "acme", route.UnknownNumber},
		"trunk not for an unknown user":     {"sbc-e", "acme.example", acmeSource, "493055", "1009", "acme", route.UnknownNumber},
		"unknown extension":                 {"sbc-e", "acme.example", acmeSource, "x", "", "acme", route.UnknownNumber},
		"no number":                         {"sbc-e", "acme.example", stranger, "", "1001", "acme", route.UnknownNumber},
		"21 digits":                         {"sbc-e", "acme.example", stranger, "123456789012345678901", "1001", "acme", route.UnknownNumber},
		"unknown domain":                    {"sbc-e", "nobody.example", acmeSource, "1001", "", "", route.UnknownDomain},
		"no domain":                         {"sbc-e", "", acmeSource, "1001", "", "", route.UnknownDomain},
		"unlisted source":                   {"sbc-e", "acme.example", stranger, "1001", "", "", route.UnlistedSource},
		"other tenant's source":             {"sbc-e", "acme.example", boltSource, "1001", "", "", route.UnlistedSource},
		"not a user of that tenant":         {"sbc-e", "bolt.example", stranger, "1001", "1002", "", route.UnlistedSource},
		"other cell's domain":               {"sbc-e", "wolf.example", wolfSource, "1001", "", "", route.UnknownDomain},
		"other cell's domain and user":      {"sbc-e", "wolf.example", stranger, "1001", "1001", "", route.UnknownDomain},
		"self: number and its source":       {"sbc-e", "127.0.0.1", acmeSource, "+49301001", "", "acme", rings("1001")},
		"self by name":                      {"sbc-e", "SIP.example", acmeSource, "49301001", "", "acme", rings("1001")},
		"self by the name of both cells":    {"sbc-w", "sip.example", wolfSource, "49303001", "", "wolf", dialUser("1001", "wolf.example", "127.0.0.1:5070")},
		"self by IPv6 address":              {"sbc-6", "[2001:DB8:f::5]", wolfSource, "49303001", "", "wolf", dialUser("1001", "wolf.example", "[2001:db8:f::5]:5060")},
		"self by the other SBC's address":   {"sbc-6", "127.0.0.1", wolfSource, "49303001", "", "wolf", dialUser("1001", "wolf.example", "[2001:db8:f::5]:5060")},
		"self by other cell's name":         {"sbc-e", "west.example", acmeSource, "49301001", "", "", route.UnknownDomain},
		"self: number, other's source":      {"sbc-e", "127.0.0.1", boltSource, "49301001", "", "", route.UnlistedSource},
		"self: number, no source":           {"sbc-e", "127.0.0.1", stranger, "49301001", "", "", route.UnlistedSource},
		"self: unknown number, source":      {"sbc-e", "127.0.0.1", acmeSource, "49309999", "", "acme", route.UnknownNumber},
		"self: extension, source":           {"sbc-e", "127.0.0.1", acmeSource, "1002", "", "acme", rings("1002")},
		"self: nothing known":               {"sbc-e", "127.0.0.1", stranger, "49309999", "", "", route.UnlistedSource},
		"self: other cell's number, source": {"sbc-e", "127.0.0.1", acmeSource, "49303001", "", "acme", route.UnknownNumber},
		"self: number, other cell's source": {"sbc-e", "127.0.0.1", wolfSource, "49301001", "", "", route.UnlistedSource},
		"self: digest does not help":        {"sbc-e", "127.0.0.1", stranger, "49301001", "1001", "", route.UnlistedSource},
		"unknown SBC":                       {"sbc-x", "acme.example", acmeSource, "1001", "", "", route.UnknownSBC},
	} {
		t.Run(name, func(t *testing.T) {
			p := route.Decide(route.New(example(t)), route.Call{
				SBC: bulkhead.SBCID(c.sbc), Domain: c.domain, Source: netip.MustParseAddr(c.source), Number: c.number, User: c.user,
			})
			if p.Tenant != c.tenant {
				t.Errorf("tenant is %q, want %q", p.Tenant, c.tenant)
			}
			if diff := cmp.Diff([]route.Action{c.action}, p.Actions); diff != "" {
				t.Errorf("actions differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecideForALocatedTenant(t *testing.T) {
	x := route.New(example(t))
	for name, c := range map[string]struct {
		call   route.Call
		tenant bulkhead.TenantID
		action route.Action
	}{
		"source and domain are not looked at": {
			route.Call{SBC: "sbc-e", Tenant: "acme", Domain: "127.0.0.1:7001", Number: "49301001"}, "acme",
			dialUser("1001", "acme.example", "127.0.0.1:5060"),
		},
		"user of the tenant": {
			route.Call{SBC: "sbc-e", Tenant: "bolt", Number: "+1555", User: "1001"}, "bolt",
			dial(route.DialTrunk{Trunk: "us", Host: "carrier.example", Port: 5060, Number: "1555", CallerID: "49302001"}),
		},
		"no user":               {route.Call{SBC: "sbc-e", Tenant: "bolt", Number: "+1555"}, "bolt", route.UnknownNumber},
		"other tenant's user":   {route.Call{SBC: "sbc-e", Tenant: "bolt", Number: "+1555", User: "1002"}, "bolt", route.UnknownNumber},
		"other tenant's number": {route.Call{SBC: "sbc-e", Tenant: "bolt", Number: "49301001"}, "bolt", route.UnknownNumber},
		"other cell's tenant":   {route.Call{SBC: "sbc-e", Tenant: "wolf", Number: "1001"}, "", route.UnknownTenant},
		"no such tenant":        {route.Call{SBC: "sbc-e", Tenant: "nobody", Number: "1001"}, "", route.UnknownTenant},
		"no such SBC":           {route.Call{Tenant: "acme", Number: "1001"}, "", route.UnknownSBC},
	} {
		t.Run(name, func(t *testing.T) {
			p := route.Decide(x, c.call)
			if p.Tenant != c.tenant || p.SBC != c.call.SBC || p.Revision != 7 {
				t.Errorf("got %+v, want tenant %q and revision 7", p, c.tenant)
			}
			if diff := cmp.Diff([]route.Action{c.action}, p.Actions); diff != "" {
				t.Errorf("actions differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanNamesThePool(t *testing.T) {
	x := route.New(example(t))
	p := route.Decide(x, route.Call{SBC: "sbc-e", Tenant: "acme", Number: "1001"})
	if p.Pool != "east-std" || p.Cell != "east" || !cmp.Equal(p.Codecs, []string{"PCMA"}) {
		t.Errorf("got %+v", p)
	}
	p = route.Decide(x, route.Call{SBC: "sbc-e", Domain: "nobody.example"})
	if p.Pool != "" || p.Set != 0 || p.Cell != "east" {
		t.Errorf("a refusal has %+v", p)
	}
}

func TestPeers(t *testing.T) {
	x := route.New(example(t))
	for addr, want := range map[string]bulkhead.NodeID{
		"127.0.0.1:7001": "e1", "[::ffff:127.0.0.1]:7001": "e1", "[2001:db8:f::1]:7004": "w1",
		"127.0.0.1:7009": "", "127.0.0.2:7001": "", "127.0.0.1:5060": "",
	} {
		if got, ok := x.Peer(netip.MustParseAddrPort(addr)); got != want || ok != (want != "") {
			t.Errorf("node at %s is %q, want %q", addr, got, want)
		}
	}
	for addr, want := range map[string]bulkhead.SBCID{
		"127.0.0.1:5060": "sbc-e", "[::ffff:127.0.0.1]:5070": "sbc-w", "[2001:db8:f::5]:5060": "sbc-6", "127.0.0.1:7001": "",
	} {
		if got, ok := x.SBCAt(netip.MustParseAddrPort(addr)); got != want || ok != (want != "") {
			t.Errorf("SBC at %s is %q, want %q", addr, got, want)
		}
	}
	for node, want := range map[bulkhead.NodeID]bulkhead.CellID{"e3": "east", "w1": "west", "nobody": ""} {
		if got := x.CellOf(node); got != want {
			t.Errorf("cell of %q is %q, want %q", node, got, want)
		}
	}
}

func TestSnapshotLooksUp(t *testing.T) {
	x := route.New(example(t))
	if k := x.TenantByDomain("PBX.acme.example"); k == nil || k.ID != "acme" {
		t.Errorf("tenant by domain is %v", k)
	}
	if k := x.TenantByDomain("nobody.example"); k != nil {
		t.Errorf("nobody's domain is %v", k)
	}
	if k := x.TenantBySource(netip.MustParseAddr("203.0.113.3")); k == nil || k.ID != "bolt" {
		t.Errorf("tenant by source is %v", k)
	}
	if k := x.TenantBySource(netip.MustParseAddr(stranger)); k != nil {
		t.Errorf("a stranger is %v", k)
	}
	if x.Tenant("nobody") != nil || x.User("acme", "x") != nil || x.Node("x") != nil {
		t.Error("somebody was found who is not there")
	}
}

func TestLive(t *testing.T) {
	var l route.Live
	if l.Load() != nil {
		t.Error("the zero Live holds a snapshot")
	}
	x, changed := l.Next()
	if x != nil {
		t.Error("Next of the zero Live gave a snapshot")
	}
	_, same := l.Next()
	s := route.New(example(t))
	l.Store(s)
	for _, c := range []<-chan struct{}{changed, same} {
		select {
		case <-c:
		default:
			t.Error("Store did not close the channel of Next")
		}
	}
	x, changed = l.Next()
	if x != s || l.Load() != s {
		t.Error("the snapshot stored is not the current one")
	}
	select {
	case <-changed:
		t.Error("the channel is closed before the next Store")
	default:
	}
}
