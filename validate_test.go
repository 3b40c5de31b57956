package bulkhead

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

const someHA1 = "0123456789abcdef0123456789abcdef"

// validState is a small state in which nothing is wrong.
func validState() State {
	c := Change{
		Cells: []Cell{{ID: "cell1"}},
		Pools: []Pool{
			{ID: "standard", Cell: "cell1", Profile: ProfileStandard, Backup: "bulk"},
			{ID: "bulk", Cell: "cell1", Profile: ProfileHighVolume, Placement: Spread},
		},
		Nodes: []Node{
			{ID: "fs1", Pool: "standard", SIP: "127.0.0.1:5081", ESL: "127.0.0.1:8021"},
			{ID: "as1", Pool: "bulk", Kind: Asterisk, SIP: "[2001:db8::1]:5081", Weight: 50, Drain: true},
		},
		SBCs: []SBC{{ID: "sbc1", Cell: "cell1", SIP: "127.0.0.1:5060", Names: []string{"sbc.example"}}},
		Tenants: []Tenant{
			{
				ID: "acme", Name: "Acme, Inc. (Köln)", Cell: "cell1", Profile: ProfileStandard,
				Domains: []string{"acme.example"}, Sources: nets("10.1.0.0/16", "2001:db8:1::/48"),
				Numbers: []Number{{Number: "4930123", User: "1001"}},
				Users:   []User{{Extension: "1001", Name: "Ada", HA1: someHA1, CallerID: "4930123"}},
				Trunks:  []Trunk{{Name: "carrier", Host: "carrier.example", Port: 5060, Prefix: "00"}},
				Limits:  Limits{Calls: 10, CallsPerSecond: 5}, Codecs: []string{"opus", "PCMA"},
			},
			{ID: "bravo", Cell: "cell1", Profile: ProfileHighVolume, Domains: []string{"bravo.example"}},
		},
	}
	return State{}.Apply(&c)
}

func nets(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// broken returns the valid state after a change to acme.
func broken(change func(*Tenant)) State {
	s := validState()
	t := *s.Tenants["acme"]
	change(&t)
	return s.Apply(&Change{Tenants: []Tenant{t}})
}

func withUser(change func(*User)) State {
	return broken(func(t *Tenant) {
		u := t.Users[0]
		change(&u)
		t.Users = []User{u}
	})
}

func withTrunk(change func(*Trunk)) State {
	return broken(func(t *Tenant) {
		k := t.Trunks[0]
		change(&k)
		t.Trunks = []Trunk{k}
	})
}

func put(c Change) State { return validState().Apply(&c) }

func withNode(change func(*Node)) State {
	n := *validState().Nodes["fs1"]
	change(&n)
	return put(Change{Nodes: []Node{n}})
}

func withSBC(change func(*SBC)) State {
	b := *validState().SBCs["sbc1"]
	change(&b)
	return put(Change{SBCs: []SBC{b}})
}

func withPool(change func(*Pool)) State {
	p := *validState().Pools["standard"]
	change(&p)
	return put(Change{Pools: []Pool{p}})
}

func TestValidStates(t *testing.T) {
	for name, s := range map[string]State{
		"empty":            {},
		"small":            validState(),
		"trunk to an IP":   withTrunk(func(k *Trunk) { k.Host = "192.0.2.1" }),
		"trunk to an IPv6": withTrunk(func(k *Trunk) { k.Host = "2001:db8::1" }),
		"no trunk prefix":  withTrunk(func(k *Trunk) { k.Prefix = "" }),
		"longest id":       put(Change{Cells: []Cell{{ID: CellID(strings.Repeat("a", 63))}}}),
		"widest networks":  broken(func(t *Tenant) { t.Sources = nets("10.0.0.0/8", "2001:db8::/32") }),
		"narrowest":        broken(func(t *Tenant) { t.Sources = nets("10.0.0.1/32", "2001:db8::1/128", "2001:db8::/40", "2001:db8::/64") }),
		"own overlap":      broken(func(t *Tenant) { t.Sources = nets("10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/16") }),
		"same extension, another tenant": put(Change{Tenants: []Tenant{
			{ID: "bravo", Cell: "cell1", Profile: ProfileHighVolume, Domains: []string{"bravo.example"}, Users: []User{{Extension: "1001", HA1: someHA1}}},
		}}),
	} {
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestValidate: each rule alone, and the one error that it gives.
func TestValidate(t *testing.T) {
	for _, c := range []struct {
		field string
		state State
		words string
	}{
		{"cells[].id", put(Change{Cells: []Cell{{}}}), "is not an id"},
		{"cells[Cell].id", put(Change{Cells: []Cell{{ID: "Cell"}}}), `"Cell" is not an id`},
		{"cells[-a].id", put(Change{Cells: []Cell{{ID: "-a"}}}), "is not an id"},
		{"cells[a\n].id", put(Change{Cells: []Cell{{ID: "a\n"}}}), "is not an id"},
		{"cells[é].id", put(Change{Cells: []Cell{{ID: "é"}}}), "is not an id"},
		{"cells[" + strings.Repeat("a", 64) + "].id", put(Change{Cells: []Cell{{ID: CellID(strings.Repeat("a", 64))}}}), "1 to 63"},
		{"cells[c].max_tenants", put(Change{Cells: []Cell{{ID: "c", MaxTenants: -1}}}), "0 to 200000"},
		{"cells[c].max_tenants", put(Change{Cells: []Cell{{ID: "c", MaxTenants: 200001}}}), "0 to 200000"},
		{"cells[cell1].max_tenants", put(Change{Cells: []Cell{{ID: "cell1", MaxTenants: 1}}}), "2 tenants are in cell"},

		{"tenants[acme].trunks[0].register", broken(func(t *Tenant) {
			t.Profile = ProfileHighVolume // whose pool has an Asterisk
			t.Trunks = []Trunk{{Name: "k", Host: "k.example", Port: 5060, Username: "u", Password: "p", Register: true}}
		}), `node "as1" of the tenant's pool is an Asterisk`},

		{"pools[p!].id", put(Change{Pools: []Pool{{ID: "p!", Cell: "cell1", Profile: "x"}}}), "is not an id"},
		{"pools[p].cell", put(Change{Pools: []Pool{{ID: "p", Cell: "cell9", Profile: "x"}}}), `no cell "cell9"`},
		{"pools[p].profile", put(Change{Pools: []Pool{{ID: "p", Cell: "cell1"}}}), "is not an id"},
		{"pools[standard].placement", withPool(func(p *Pool) { p.Placement = "random" }), "neither sticky nor spread"},
		{"pools[standard].backup", withPool(func(p *Pool) { p.Backup = "standard" }), "its own backup"},
		{"pools[standard].backup", withPool(func(p *Pool) { p.Backup = "none" }), `no pool "none"`},
		{"pools[p2].backup", put(Change{Cells: []Cell{{ID: "cell2"}}, Pools: []Pool{{ID: "p2", Cell: "cell2", Profile: "x", Backup: "bulk"}}}), `no pool "bulk" in cell "cell2"`},

		{"nodes[N].id", put(Change{Nodes: []Node{{ID: "N", Pool: "bulk", SIP: "127.0.0.9:5060"}}}), "is not an id"},
		{"nodes[fs1].pool", withNode(func(n *Node) { n.Pool = "none" }), `no pool "none"`},
		{"nodes[fs1].kind", withNode(func(n *Node) { n.Kind = "yate" }), "neither freeswitch nor asterisk"},
		{"nodes[fs1].sip", withNode(func(n *Node) { n.SIP = "" }), "is not ip:port"},
		{"nodes[fs1].sip", withNode(func(n *Node) { n.SIP = "fs1.example:5060" }), "is not ip:port"},
		{"nodes[fs1].sip", withNode(func(n *Node) { n.SIP = "127.0.0.1" }), "is not ip:port"},
		{"nodes[fs1].sip", withNode(func(n *Node) { n.SIP = "127.0.0.1:0" }), "is not ip:port"},
		{"nodes[fs1].sip", withNode(func(n *Node) { n.SIP = "0.0.0.0:5060" }), "is not ip:port"},
		{"nodes[fs1].sip", withNode(func(n *Node) { n.SIP = "[fe80::1%e\"}]:5060" }), "is not ip:port"},
		{"nodes[fs1].sip", withNode(func(n *Node) { n.SIP = "127.0.0.1:05060" }), "write 127.0.0.1:5060"},
		{"nodes[fs1].sip", withNode(func(n *Node) { n.SIP = "[2001:DB8::2]:5060" }), "write [2001:db8::2]:5060"},
		{"nodes[fs1].esl", withNode(func(n *Node) { n.ESL = "127.0.0.1" }), "is not ip:port"},
		{"nodes[fs1].weight", withNode(func(n *Node) { n.Weight = 101 }), "0 to 100"},
		{"nodes[fs1].weight", withNode(func(n *Node) { n.Weight = -1 }), "0 to 100"},

		{"sbcs[S].id", put(Change{SBCs: []SBC{{ID: "S", Cell: "cell1", SIP: "127.0.0.9:5060"}}}), "is not an id"},
		{"sbcs[sbc1].cell", withSBC(func(b *SBC) { b.Cell = "cell9" }), `no cell "cell9"`},
		{"sbcs[sbc1].sip", withSBC(func(b *SBC) { b.SIP = "sbc:5060" }), "is not ip:port"},
		{"sbcs[sbc1].names[1]", withSBC(func(b *SBC) { b.Names = []string{"a.example", "A.example"} }), "lower-case host name"},

		{"tenants[A].id", put(Change{Tenants: []Tenant{{ID: "A", Cell: "cell1", Profile: "standard", Domains: []string{"a.example"}}}}), "is not an id"},
		{"tenants[acme].name", broken(func(t *Tenant) { t.Name = "${evil}" }), "not allowed"},
		{"tenants[acme].name", broken(func(t *Tenant) { t.Name = "a\r\nb" }), "not allowed"},
		{"tenants[acme].name", broken(func(t *Tenant) { t.Name = "\xff" }), "not allowed"},
		{"tenants[acme].name", broken(func(t *Tenant) { t.Name = strings.Repeat("ä", 65) }), "over 64"},
		{"tenants[acme].cell", broken(func(t *Tenant) { t.Cell = "cell9" }), `no cell "cell9"`},
		{"tenants[acme].profile", broken(func(t *Tenant) { t.Profile = "ai" }), `serves profile "ai"`},
		{"tenants[acme].domains", broken(func(t *Tenant) { t.Domains = nil }), "needs a domain"},
		{"tenants[acme].domains[1]", broken(func(t *Tenant) { t.Domains = []string{"a.example", "-a.example"} }), "host name"},
		{"tenants[acme].domains[0]", broken(func(t *Tenant) { t.Domains[0] = strings.Repeat("a.", 127) + "aa" }), "host name"},
		{"tenants[acme].domains[1]", broken(func(t *Tenant) { t.Domains = []string{"a.example", "a.example"} }), "belongs to both"},

		{"tenants[acme].sources[0]", broken(func(t *Tenant) { t.Sources = make([]netip.Prefix, 1) }), "is not a network"},
		{"tenants[acme].sources[0]", broken(func(t *Tenant) { t.Sources = nets("10.1.2.3/16") }), "write 10.1.0.0/16"},
		{"tenants[acme].sources[0]", broken(func(t *Tenant) { t.Sources = nets("0.0.0.0/0") }), "wider than /8"},
		{"tenants[acme].sources[0]", broken(func(t *Tenant) { t.Sources = nets("::ffff:10.0.0.0/112") }), "plain IPv4 or IPv6"},
		{"tenants[acme].sources[0]", broken(func(t *Tenant) { t.Sources = nets("2001:db8::/36") }), "/40 to /48, /56 to /64"},
		{"tenants[acme].sources[0]", broken(func(t *Tenant) { t.Sources = nets("2001:db8::/96") }), "/40 to /48, /56 to /64"},
		{"tenants[acme].sources[0]", broken(func(t *Tenant) { t.Sources = nets("::/0") }), "/40 to /48, /56 to /64"},

		{"tenants[acme].users[0].name", withUser(func(u *User) { u.Name = "<x>" }), "not allowed"},
		{"tenants[acme].users[0].ha1", withUser(func(u *User) { u.HA1 = "secret" }), "is not MD5"},
		{"tenants[acme].users[0].ha1", withUser(func(u *User) { u.HA1 = strings.ToUpper(someHA1) }), "lower-case"},
		{"tenants[acme].users[0].caller_id", withUser(func(u *User) { u.CallerID = "+4930" }), "E.164"},
		{"tenants[acme].users[1].extension", broken(func(t *Tenant) { t.Users = append(t.Users, User{Extension: "A@b", HA1: someHA1}) }), "not an extension"},
		{"tenants[acme].users[1].extension", broken(func(t *Tenant) { t.Users = append(t.Users, t.Users[0]) }), "there twice"},

		{"tenants[acme].numbers[0].number", broken(func(t *Tenant) { t.Numbers = []Number{{Number: "+4930", User: "1001"}} }), "E.164"},
		{"tenants[acme].numbers[0].number", broken(func(t *Tenant) { t.Numbers = []Number{{Number: "1234567890123456", User: "1001"}} }), "E.164"},
		{"tenants[acme].numbers[0].number", broken(func(t *Tenant) { t.Numbers = []Number{{Number: "030", User: "1001"}} }), "E.164"},
		{"tenants[acme].numbers[0].user", broken(func(t *Tenant) { t.Numbers = []Number{{Number: "4930", User: "1009"}} }), `no user "1009"`},
		{"tenants[acme].numbers[1].number", broken(func(t *Tenant) { t.Numbers = append(t.Numbers, t.Numbers[0]) }), "belongs to both"},

		{"tenants[acme].trunks[0].name", withTrunk(func(k *Trunk) { k.Name = "" }), "is not an id"},
		{"tenants[acme].trunks[0].host", withTrunk(func(k *Trunk) { k.Host = "a b" }), "host name"},
		{"tenants[acme].trunks[0].host", withTrunk(func(k *Trunk) { k.Host = "fe80::1%\";evil" }), "host name"},
		{"tenants[acme].trunks[0].port", withTrunk(func(k *Trunk) { k.Port = 0 }), "5060 is usual"},
		{"tenants[acme].trunks[0].prefix", withTrunk(func(k *Trunk) { k.Prefix = "+00" }), "0 to 15 digits"},
		{"tenants[acme].trunks[1].name", broken(func(t *Tenant) { t.Trunks = append(t.Trunks, t.Trunks[0]) }), "there twice"},

		{"tenants[acme].codecs[1]", broken(func(t *Tenant) { t.Codecs = []string{"PCMA", "pcmu"} }), "is not one of PCMU"},
		{"tenants[acme].limits.calls", broken(func(t *Tenant) { t.Limits.Calls = 100001 }), "0 to 100000"},
		{"tenants[acme].limits.calls", broken(func(t *Tenant) { t.Limits.Calls = -1 }), "0 to 100000"},
		{"tenants[acme].limits.calls_per_second", broken(func(t *Tenant) { t.Limits.CallsPerSecond = 10001 }), "0 to 10000"},
	} {
		t.Run(c.field+" "+c.words, func(t *testing.T) { onlyError(t, c.state, c.field, c.words) })
	}
}

// onlyError checks that one thing is wrong with a state.
func onlyError(t *testing.T, s State, field string, words ...string) {
	t.Helper()
	err := s.Validate()
	all := FieldErrors(err)
	if len(all) != 1 || all[0].Field != field {
		t.Fatalf("the errors are\n%v\nand should be one of the field %s", err, field)
	}
	if !errors.Is(err, all[0].Kind) {
		t.Errorf("errors.Is does not find the kind %q", all[0].Kind)
	}
	for _, w := range words {
		if !strings.Contains(all[0].Msg, w) {
			t.Errorf("the error does not say %q: %s", w, all[0].Msg)
		}
	}
}

// TestOwners: whoever claims what is another's, both are named.
func TestOwners(t *testing.T) {
	zulu := func(change func(*Tenant)) State {
		z := Tenant{ID: "zulu", Cell: "cell1", Profile: ProfileStandard, Domains: []string{"zulu.example"}, Users: []User{{Extension: "1", HA1: someHA1}}}
		change(&z)
		return put(Change{Tenants: []Tenant{z}})
	}
	for _, c := range []struct {
		field string
		state State
		words []string
	}{
		{"tenants[zulu].domains[1]", zulu(func(t *Tenant) { t.Domains = append(t.Domains, "acme.example") }), []string{"acme.example", `tenant "acme"`, `tenant "zulu"`}},
		{"tenants[zulu].domains[1]", zulu(func(t *Tenant) { t.Domains = append(t.Domains, "sbc.example") }), []string{"sbc.example", `SBC "sbc1"`, `tenant "zulu"`}},
		{"tenants[zulu].domains[1]", zulu(func(t *Tenant) { t.Domains = append(t.Domains, "127.0.0.1") }), []string{"127.0.0.1", `SBC "sbc1"`, `tenant "zulu"`}},
		{"tenants[zulu].numbers[0].number", zulu(func(t *Tenant) { t.Numbers = []Number{{Number: "4930123", User: "1"}} }), []string{"4930123", `tenant "acme"`, `tenant "zulu"`}},
		{"nodes[fs9].sip", put(Change{Nodes: []Node{{ID: "fs9", Pool: "bulk", SIP: "127.0.0.1:5081"}}}), []string{"127.0.0.1:5081", `node "fs1"`, `node "fs9"`}},
		{"nodes[fs9].esl", put(Change{Nodes: []Node{{ID: "fs8", Pool: "bulk", SIP: "127.0.0.1:6000", ESL: "127.0.0.1:7000"}, {ID: "fs9", Pool: "bulk", SIP: "127.0.0.1:6001", ESL: "127.0.0.1:7000"}}}), []string{"127.0.0.1:7000", `node "fs8"`, `node "fs9"`}},
		{"sbcs[sbc1].sip", put(Change{Nodes: []Node{{ID: "fs9", Pool: "bulk", SIP: "127.0.0.1:5060"}}}), []string{"127.0.0.1:5060", `node "fs9"`, `SBC "sbc1"`}},
		{"pools[standard].profile", put(Change{Pools: []Pool{{ID: "other", Cell: "cell1", Profile: ProfileStandard}}}), []string{`"other"`, `"standard"`, `cell "cell1"`}},
	} {
		t.Run(c.words[0], func(t *testing.T) {
			onlyError(t, c.state, c.field, c.words...)
			if err := c.state.Validate(); !errors.Is(err, Conflict) {
				t.Errorf("%v is no conflict", err)
			}
		})
	}
}

func TestNetworkOwners(t *testing.T) {
	for _, c := range []struct {
		acme, bravo string // networks, with spaces between
		field       string // of the error, or empty
		words       string
	}{
		{"10.0.0.0/16", "10.1.0.0/16", "", ""}, // siblings
		{"10.0.0.0/17", "10.0.128.0/17", "", ""},
		{"10.0.0.0/8", "11.0.0.0/8", "", ""},
		{"2001:db8::/48", "2001:db8:1::/48", "", ""},
		{"10.0.0.0/16", "10.0.0.0/16", "tenants[bravo].sources[0]", "network 10.0.0.0/16"}, // equal
		{"10.0.0.0/8", "10.9.8.7/32", "tenants[bravo].sources[0]", "network 10.0.0.0/8"},   // nested
		{"10.9.8.7/32", "10.0.0.0/8", "tenants[acme].sources[0]", "network 10.9.8.7/32"},
		{"10.0.0.0/8", "10.0.0.0/24", "tenants[bravo].sources[0]", "network 10.0.0.0/24"},
		{"2001:db8::/32", "2001:db8:1:2::/64", "tenants[bravo].sources[0]", "2001:db8::/32"},
		{"10.0.0.0/8 10.1.0.0/16", "11.0.0.0/16 10.2.0.0/16", "tenants[bravo].sources[1]", "10.2.0.0/16"}, // after a sibling of the inner one
		{"10.0.0.0/8 10.1.0.0/16", "10.1.2.0/24", "tenants[bravo].sources[0]", "10.1.0.0/16"},             // the innermost is named
		{"10.1.0.0/16 10.3.0.0/16", "10.2.0.0/16 10.4.0.0/16 9.0.0.0/8", "", ""},
	} {
		t.Run(c.acme+" "+c.bravo, func(t *testing.T) {
			s := broken(func(t *Tenant) { t.Sources = nets(strings.Fields(c.acme)...) })
			b := *s.Tenants["bravo"]
			b.Sources = nets(strings.Fields(c.bravo)...)
			s = s.Apply(&Change{Tenants: []Tenant{b}})
			if c.field == "" {
				if err := s.Validate(); err != nil {
					t.Error(err)
				}
				return
			}
			onlyError(t, s, c.field, c.words, `tenant "acme"`, `tenant "bravo"`)
		})
	}
}

// TestAllErrorsAtOnce: nothing is hidden behind the first error.
func TestAllErrorsAtOnce(t *testing.T) {
	s := State{}.Apply(&Change{Tenants: []Tenant{{ID: "a"}, {ID: "b"}}})
	var fields []string
	for _, fe := range FieldErrors(s.Validate()) {
		fields = append(fields, fe.Field)
	}
	want := "[tenants[a].profile tenants[a].domains tenants[a].cell tenants[b].profile tenants[b].domains tenants[b].cell]"
	if got := fmt.Sprint(fields); got != want {
		t.Errorf("fields %s, want %s", got, want)
	}
}

func TestFieldError(t *testing.T) {
	fe := &FieldError{Kind: NotFound, Field: "tenants[a].id", Pos: "in.yaml:3", Msg: "is wrong"}
	err := fmt.Errorf("outer: %w", errors.Join(errors.New("plain"), fe))
	if !errors.Is(err, NotFound) || errors.Is(err, Invalid) {
		t.Error("the kind is not found")
	}
	if all := FieldErrors(err); len(all) != 1 || all[0] != fe {
		t.Errorf("field errors %v", all)
	}
	if got := fe.Error(); got != "in.yaml:3: tenants[a].id: is wrong" {
		t.Errorf("reads %q", got)
	}
	if FieldErrors(nil) != nil {
		t.Error("field errors of no error")
	}
}
