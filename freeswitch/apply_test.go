package freeswitch

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// TestUsersChanged: the switch's cache is emptied when a user may be another
// one there, and for nothing else.
func TestUsersChanged(t *testing.T) {
	base := snapshot(t, "10.0.1.9:5060").State()
	node := *base.Nodes["fs1"]
	node.Cacheable = 60
	base = base.Apply(&bulkhead.Change{Nodes: []bulkhead.Node{node}})
	with := func(c bulkhead.Change) *route.Snapshot { return route.New(base.Apply(&c)) }
	tenant := func(change func(*bulkhead.Tenant)) *route.Snapshot {
		k := *base.Tenants["acme"]
		k.Users = append([]bulkhead.User(nil), k.Users...)
		change(&k)
		return with(bulkhead.Change{Tenants: []bulkhead.Tenant{k}})
	}
	from := route.New(base)
	other := *base.Tenants["other"]
	other.Users = []bulkhead.User{{Extension: "7", HA1: ha1}}
	uncached := node
	uncached.Cacheable = 0
	no := false
	for name, c := range map[string]struct {
		from, to *route.Snapshot
		want     bool
	}{
		"the first":                {nil, from, true},
		"nothing":                  {from, from, false},
		"a limit":                  {from, tenant(func(k *bulkhead.Tenant) { k.Limits.Calls = 7 }), false},
		"a password":               {from, tenant(func(k *bulkhead.Tenant) { k.Users[0].HA1 = "ffffffffffffffffffffffffffffffff" }), true},
		"a caller id":              {from, tenant(func(k *bulkhead.Tenant) { k.Users[1].CallerID = "15550001" }), true},
		"a user less":              {from, tenant(func(k *bulkhead.Tenant) { k.Users = k.Users[:1] }), true},
		"a domain":                 {from, tenant(func(k *bulkhead.Tenant) { k.Domains = append(k.Domains, "more.example") }), true},
		"managed no more":          {from, tenant(func(k *bulkhead.Tenant) { k.Managed = &no }), true},
		"the tenant is gone":       {from, with(bulkhead.Change{Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{"acme"}}}), true},
		"a tenant of another cell": {from, with(bulkhead.Change{Tenants: []bulkhead.Tenant{other}}), false},
		"it may keep them no more": {from, with(bulkhead.Change{Nodes: []bulkhead.Node{uncached}}), true},
		"it may not keep any":      {with(bulkhead.Change{Nodes: []bulkhead.Node{uncached}}), with(bulkhead.Change{Nodes: []bulkhead.Node{uncached}, Tenants: []bulkhead.Tenant{other}}), false},
		"the SBC has moved":        {from, with(bulkhead.Change{SBCs: []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: "10.0.1.8:5060"}}}), true},
	} {
		if got := usersChanged(c.from, c.to, "fs1"); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if _, err := NewCaches("", Config{Addr: "a:1", Password: "x"}, nil, slog.New(slog.DiscardHandler), nil); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("no node: %v", err)
	}
	if _, err := NewCaches("fs1", Config{Addr: "a:1", Password: "ClueCon"}, nil, slog.New(slog.DiscardHandler), nil); !errors.Is(err, bulkhead.Denied) {
		t.Errorf("the default password: %v", err)
	}
}
