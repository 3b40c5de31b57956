package configsvc

import (
	"net/netip"
	"slices"

	"github.com/bulkhead-voip/bulkhead"
)

// plain is a kind of object whose JSON a request gives as it is stored.
func plain[T any](b *T, _ *T) (T, []issue) { return *b, nil }

func copied[T any](v *T) T { return *v }

func shown[T any](_ *principal, v *T) any { return v }

func cells() *collection[bulkhead.CellID, bulkhead.Cell, bulkhead.Cell] {
	id := func(v *bulkhead.Cell) *bulkhead.CellID { return &v.ID }
	return &collection[bulkhead.CellID, bulkhead.Cell, bulkhead.Cell]{
		name: "cells", param: "cell", limit: maxSmallBody, id: id, idOf: id,
		all:   func(s bulkhead.State) map[bulkhead.CellID]*bulkhead.Cell { return s.Cells },
		puts:  func(c *bulkhead.Change) *[]bulkhead.Cell { return &c.Cells },
		dels:  func(c *bulkhead.Change) *[]bulkhead.CellID { return &c.Delete.Cells },
		begin: copied[bulkhead.Cell], finish: plain[bulkhead.Cell], view: shown[bulkhead.Cell],
		check: func(v *bulkhead.Cell) error { return v.Validate() },
	}
}

func pools() *collection[bulkhead.PoolID, bulkhead.Pool, bulkhead.Pool] {
	id := func(v *bulkhead.Pool) *bulkhead.PoolID { return &v.ID }
	return &collection[bulkhead.PoolID, bulkhead.Pool, bulkhead.Pool]{
		name: "pools", param: "pool", limit: maxSmallBody, id: id, idOf: id,
		all:   func(s bulkhead.State) map[bulkhead.PoolID]*bulkhead.Pool { return s.Pools },
		puts:  func(c *bulkhead.Change) *[]bulkhead.Pool { return &c.Pools },
		dels:  func(c *bulkhead.Change) *[]bulkhead.PoolID { return &c.Delete.Pools },
		begin: copied[bulkhead.Pool], finish: plain[bulkhead.Pool], view: shown[bulkhead.Pool],
		check: func(v *bulkhead.Pool) error { return v.Validate() },
		filter: map[string]func(*bulkhead.Pool, string) bool{
			"cell":    func(v *bulkhead.Pool, want string) bool { return string(v.Cell) == want },
			"profile": func(v *bulkhead.Pool, want string) bool { return string(v.Profile) == want },
		},
	}
}

func nodes() *collection[bulkhead.NodeID, bulkhead.Node, bulkhead.Node] {
	id := func(v *bulkhead.Node) *bulkhead.NodeID { return &v.ID }
	return &collection[bulkhead.NodeID, bulkhead.Node, bulkhead.Node]{
		name: "nodes", param: "node", limit: maxSmallBody, id: id, idOf: id,
		all:   func(s bulkhead.State) map[bulkhead.NodeID]*bulkhead.Node { return s.Nodes },
		puts:  func(c *bulkhead.Change) *[]bulkhead.Node { return &c.Nodes },
		dels:  func(c *bulkhead.Change) *[]bulkhead.NodeID { return &c.Delete.Nodes },
		begin: copied[bulkhead.Node], finish: plain[bulkhead.Node], view: shown[bulkhead.Node],
		check: func(v *bulkhead.Node) error { return v.Validate() },
		filter: map[string]func(*bulkhead.Node, string) bool{
			"pool": func(v *bulkhead.Node, want string) bool { return string(v.Pool) == want },
			"kind": func(v *bulkhead.Node, want string) bool {
				return string(v.Kind) == want || v.Kind == "" && want == string(bulkhead.FreeSWITCH)
			},
		},
	}
}

func sbcs() *collection[bulkhead.SBCID, bulkhead.SBC, bulkhead.SBC] {
	id := func(v *bulkhead.SBC) *bulkhead.SBCID { return &v.ID }
	return &collection[bulkhead.SBCID, bulkhead.SBC, bulkhead.SBC]{
		name: "sbcs", param: "sbc", limit: maxSmallBody, id: id, idOf: id,
		all:   func(s bulkhead.State) map[bulkhead.SBCID]*bulkhead.SBC { return s.SBCs },
		puts:  func(c *bulkhead.Change) *[]bulkhead.SBC { return &c.SBCs },
		dels:  func(c *bulkhead.Change) *[]bulkhead.SBCID { return &c.Delete.SBCs },
		begin: copied[bulkhead.SBC], finish: plain[bulkhead.SBC], view: shown[bulkhead.SBC],
		check: func(v *bulkhead.SBC) error { return v.Validate() },
		filter: map[string]func(*bulkhead.SBC, string) bool{
			"cell": func(v *bulkhead.SBC, want string) bool { return string(v.Cell) == want },
		},
	}
}

func tenants() *collection[bulkhead.TenantID, bulkhead.Tenant, tenantBody] {
	return &collection[bulkhead.TenantID, bulkhead.Tenant, tenantBody]{
		name: "tenants", param: "tenant", limit: MaxBody,
		id:    func(v *bulkhead.Tenant) *bulkhead.TenantID { return &v.ID },
		idOf:  func(b *tenantBody) *bulkhead.TenantID { return &b.ID },
		all:   func(s bulkhead.State) map[bulkhead.TenantID]*bulkhead.Tenant { return s.Tenants },
		puts:  func(c *bulkhead.Change) *[]bulkhead.Tenant { return &c.Tenants },
		dels:  func(c *bulkhead.Change) *[]bulkhead.TenantID { return &c.Delete.Tenants },
		begin: beginTenant, finish: (*tenantBody).finish,
		check: func(v *bulkhead.Tenant) error { return v.Validate() },
		view:  func(p *principal, t *bulkhead.Tenant) any { return viewTenant(p, t) },
		admit: guard{tenantReads: true},
		filter: map[string]func(*bulkhead.Tenant, string) bool{
			"cell":    func(t *bulkhead.Tenant, want string) bool { return string(t.Cell) == want },
			"profile": func(t *bulkhead.Tenant, want string) bool { return string(t.Profile) == want },
			"domain":  func(t *bulkhead.Tenant, want string) bool { return slices.Contains(t.Domains, want) },
			"number": func(t *bulkhead.Tenant, want string) bool {
				return slices.ContainsFunc(t.Numbers, func(n bulkhead.Number) bool { return n.Number == want })
			},
			"address": func(t *bulkhead.Tenant, want string) bool {
				a, err := netip.ParseAddr(want)
				return err == nil && slices.ContainsFunc(t.Sources, func(p netip.Prefix) bool { return p.Contains(a) })
			},
		},
	}
}

func users() *entries[bulkhead.User, userBody] {
	return &entries[bulkhead.User, userBody]{
		name: "users", param: "extension", admit: guard{tenantReads: true, tenantWrites: true},
		list:  func(t *bulkhead.Tenant) *[]bulkhead.User { return &t.Users },
		key:   func(u *bulkhead.User) *string { return &u.Extension },
		keyOf: func(b *userBody) *string { return &b.Extension },
		begin: beginUser,
		finish: func(b *userBody, t *bulkhead.Tenant, old *bulkhead.User) (bulkhead.User, []issue) {
			return b.finish(t.Realm(), t.Realm(), old, "")
		},
		view: func(p *principal, u *bulkhead.User) any { return viewUser(p, u) },
		may:  mayWriteUser,
	}
}

func numbers() *entries[bulkhead.Number, bulkhead.Number] {
	key := func(n *bulkhead.Number) *string { return &n.Number }
	return &entries[bulkhead.Number, bulkhead.Number]{
		name: "numbers", param: "number", admit: guard{tenantReads: true, tenantWrites: true},
		list: func(t *bulkhead.Tenant) *[]bulkhead.Number { return &t.Numbers },
		key:  key, keyOf: key, begin: copied[bulkhead.Number],
		finish: func(b *bulkhead.Number, _ *bulkhead.Tenant, _ *bulkhead.Number) (bulkhead.Number, []issue) {
			return *b, nil
		},
		view: shown[bulkhead.Number], may: mayWriteNumber,
	}
}

func trunks() *entries[bulkhead.Trunk, bulkhead.Trunk] {
	key := func(k *bulkhead.Trunk) *string { return &k.Name }
	return &entries[bulkhead.Trunk, bulkhead.Trunk]{
		name: "trunks", param: "trunk", admit: guard{tenantReads: true},
		list: func(t *bulkhead.Tenant) *[]bulkhead.Trunk { return &t.Trunks },
		key:  key, keyOf: key, begin: copied[bulkhead.Trunk],
		finish: func(b *bulkhead.Trunk, t *bulkhead.Tenant, _ *bulkhead.Trunk) (bulkhead.Trunk, []issue) {
			return keepPassword(*b, t), nil
		},
		view: func(p *principal, k *bulkhead.Trunk) any { return viewTrunk(p, k) },
	}
}

func domains() *list[string] {
	return &list[string]{name: "domains", list: func(t *bulkhead.Tenant) *[]string { return &t.Domains }}
}

func sources() *list[netip.Prefix] {
	return &list[netip.Prefix]{name: "sources", list: func(t *bulkhead.Tenant) *[]netip.Prefix { return &t.Sources }}
}
