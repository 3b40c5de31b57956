package main

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// twoCells is a platform whose cells have a node of each kind, an SBC and a
// tenant each. Their users have the same extensions, but secrets of their own.
func twoCells() bulkhead.Change {
	var c bulkhead.Change
	for i, tenant := range []bulkhead.TenantID{"acme", "globex"} {
		n := i + 1
		cell, pool := bulkhead.CellID(fmt.Sprint("c", n)), bulkhead.PoolID(fmt.Sprint("p", n))
		c.Cells = append(c.Cells, bulkhead.Cell{ID: cell})
		c.Pools = append(c.Pools, bulkhead.Pool{ID: pool, Cell: cell, Profile: "standard"})
		c.Nodes = append(c.Nodes,
			bulkhead.Node{ID: bulkhead.NodeID(fmt.Sprint("fs", n)), Pool: pool, SIP: fmt.Sprintf("127.0.0.%d:5071", n)},
			bulkhead.Node{ID: bulkhead.NodeID(fmt.Sprint("ast", n)), Pool: pool, Kind: bulkhead.Asterisk, SIP: fmt.Sprintf("127.0.0.%d:5072", n)})
		c.SBCs = append(c.SBCs, bulkhead.SBC{ID: bulkhead.SBCID(fmt.Sprint("s", n)), Cell: cell, SIP: fmt.Sprintf("127.0.0.%d:5060", n)})
		t := bulkhead.Tenant{
			ID: tenant, Cell: cell, Profile: "standard", Domains: []string{string(tenant) + ".example"}, Sources: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.0.%d.0/24", n))},
			Numbers: []bulkhead.Number{{Number: fmt.Sprintf("4930%d", n), Target: "group:all"}}, Dialling: bulkhead.Dialling{Country: "49", Area: "30", NationalPrefix: "0"},
			Groups: []bulkhead.Group{{Name: "all", Members: []bulkhead.Target{"user:101", "user:102"}, Then: "voicemail:101"}}, Codecs: []string{"PCMA", "PCMU"},
			Trunks: []bulkhead.Trunk{{Name: "k", Host: "192.0.2.1", Port: 5060}}, Record: bulkhead.RecordAll,
		}
		for _, extension := range []string{"101", "102"} {
			t.Users = append(t.Users, bulkhead.User{Extension: extension, Name: "Ann", HA1: fmt.Sprintf("%032x", 0xabcdef*n), Voicemail: true})
		}
		c.Tenants = append(c.Tenants, t)
	}
	return c
}

// seedTwoCells makes a registry with them.
func seedTwoCells(t *testing.T, data string) {
	t.Helper()
	if err := dataDir(data).open(); err != nil {
		t.Fatal(err)
	}
	store, err := registry.OpenSQLite(t.Context(), dataDir(data).registry())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Commit(t.Context(), 0, bulkhead.Revision{Author: "t", Change: twoCells()}); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}
