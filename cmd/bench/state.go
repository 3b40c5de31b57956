package main

import (
	"fmt"
	"net/netip"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	benchSBC  = "127.0.0.1:5060"
	benchNode = "fs1"
)

// tenantName, tenantDomain and tenantNumber name what state makes.
func tenantName(i int) bulkhead.TenantID { return bulkhead.TenantID(fmt.Sprintf("t%06d", i)) }
func tenantDomain(i int) string          { return fmt.Sprintf("t%06d.example", i) }
func tenantNumber(i, n int) string       { return fmt.Sprintf("49%07d%d", i, n) }
func tenantSource(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// state makes a cell with n tenants, each with a domain, a source address,
// two numbers, three users and a trunk.
func state(n int) bulkhead.State {
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1", MaxTenants: 200000}},
		SBCs:  []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: benchSBC}},
		Pools: []bulkhead.Pool{{ID: "std", Cell: "c1", Profile: bulkhead.ProfileStandard}},
	}
	for i := range 4 {
		c.Nodes = append(c.Nodes, bulkhead.Node{
			ID: bulkhead.NodeID(fmt.Sprintf("fs%d", i+1)), Pool: "std", SIP: fmt.Sprintf("127.0.0.1:%d", 5081+i),
		})
	}
	for i := range n {
		t := bulkhead.Tenant{
			ID: tenantName(i), Cell: "c1", Profile: bulkhead.ProfileStandard,
			Domains: []string{tenantDomain(i)},
			Sources: []netip.Prefix{netip.PrefixFrom(tenantSource(i), 32)},
			Trunks:  []bulkhead.Trunk{{Name: "out", Host: "192.0.2.1", Port: 5060}},
			Codecs:  []string{"PCMA", "PCMU"},
		}
		for u := range 3 {
			t.Users = append(t.Users, bulkhead.User{Extension: fmt.Sprint(101 + u), HA1: "00112233445566778899aabbccddeeff"})
		}
		for d := range 2 {
			t.Numbers = append(t.Numbers, bulkhead.Number{Number: tenantNumber(i, d), User: "101"})
		}
		c.Tenants = append(c.Tenants, t)
	}
	return bulkhead.State{}.Apply(&c)
}
