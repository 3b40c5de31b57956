package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/bulkhead-voip/bulkhead"
)

// fullState makes a cell with n tenants of 3 domains, 2 networks, 5 numbers,
// 10 users and a trunk each.
func fullState(n int) bulkhead.State {
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
		c.Tenants = append(c.Tenants, fullTenant(i, 0))
	}
	return bulkhead.State{}.Apply(&c)
}

// fullTenant makes tenant i. Its versions differ in the name of a user, in a
// number and in a network.
func fullTenant(i, version int) bulkhead.Tenant {
	t := bulkhead.Tenant{
		ID: tenantName(i), Name: fmt.Sprintf("Tenant %d", i), Cell: "c1", Profile: bulkhead.ProfileStandard,
		Domains: []string{tenantDomain(i), "sip." + tenantDomain(i), fmt.Sprintf("pbx%d.carrier.example", i)},
		Sources: []netip.Prefix{fullSource(2*i, 24+i%8), fullSource(2*i+1, 32-version%2)},
		Trunks:  []bulkhead.Trunk{{Name: "out", Host: "192.0.2.1", Port: 5060}},
		Codecs:  []string{"PCMA", "PCMU"},
	}
	for u := range 10 {
		t.Users = append(t.Users, bulkhead.User{
			Extension: fmt.Sprint(101 + u), Name: fmt.Sprintf("User %d", u), HA1: fmt.Sprintf("%016x%016x", i, u), CallerID: tenantNumber(i, 0),
		})
	}
	t.Users[0].Name = fmt.Sprintf("User of version %d", version)
	for d := range 4 {
		t.Numbers = append(t.Numbers, bulkhead.Number{Number: tenantNumber(i, d), User: t.Users[d].Extension})
	}
	t.Numbers = append(t.Numbers, bulkhead.Number{Number: tenantNumber(i, 4+version%2), User: "101"})
	return t
}

// fullSource makes the i-th network, in a /24 of its own. They are strewn
// over an eighth of the address space, as those of customers are: neighbours
// would make the index smaller than it is in use.
func fullSource(i, bits int) netip.Prefix {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 32<<24|uint32(i)*0x9e3779b1%(1<<21)<<8)
	return netip.PrefixFrom(netip.AddrFrom4(a), bits)
}
