package eventbridge

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

func TestRules(t *testing.T) {
	x, err := NewRules([]Rule{
		{"acme", "domain", "ACME.example", false},
		{"acme", "account_code", "acc-7", false},
		{"beta", "context", "tenant1", false},
		{"beta", "var:tenant_id", "t-42", false},
		{"gamma", "callee", "+4930", true},
		{"delta", "callee", "+49301", true},
		{"delta", "account_code", "d-", true},
		{"acme", "domain", "acme.example", false}, // twice the same is no conflict
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"tenant_id"}, x.Vars()); d != "" {
		t.Error(d)
	}
	attrs := func(kv ...string) cdr.Record {
		r := cdr.Record{Attrs: map[string]string{}}
		for p := range slices.Chunk(kv, 2) {
			r.Attrs[p[0]] = p[1]
		}
		return r
	}
	for name, c := range map[string]struct {
		r    cdr.Record
		want bulkhead.TenantID
	}{
		"nothing":                       {cdr.Record{}, ""},
		"no match":                      {attrs("domain", "other.example", "context", "public"), ""},
		"domain, any case":              {attrs("domain", "Acme.Example"), "acme"},
		"account code, to the letter":   {attrs("account_code", "ACC-7"), ""},
		"context":                       {attrs("context", "tenant1"), "beta"},
		"account code before context":   {attrs("context", "tenant1", "account_code", "acc-7"), "acme"},
		"variable before account code":  {attrs("account_code", "acc-7", "var:tenant_id", "t-42"), "beta"},
		"prefix":                        {cdr.Record{Callee: "+49309999"}, "gamma"},
		"longest prefix":                {cdr.Record{Callee: "493012"}, "delta"},
		"the prefix itself":             {cdr.Record{Callee: "4930"}, "gamma"},
		"shorter than any prefix":       {cdr.Record{Callee: "49"}, ""},
		"prefix of an attribute":        {attrs("account_code", "d-1"), "delta"},
		"whole values before prefixes":  {cdr.Record{Callee: "+49301", Attrs: map[string]string{"context": "tenant1"}}, "beta"},
		"a caller is no callee":         {cdr.Record{Caller: "+49301"}, ""},
		"an attribute that is no field": {attrs("callee", "+4930"), ""},
	} {
		if got := x.Tenant(&c.r); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if _, err := NewRules([]Rule{{"a", "domain", "X", false}, {"b", "domain", "x", false}}); !errors.Is(err, bulkhead.Conflict) {
		t.Errorf("two owners: %v", err)
	}
	for _, bad := range []Rule{{"", "domain", "x", false}, {"a", "", "x", false}, {"a", "domain", "", true}} {
		if _, err := NewRules([]Rule{bad}); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// TestTenantOfALeg: the switch's word counts before any rule, a later report's
// rule before an earlier one's, and a B leg has the tenant of its A leg.
func TestTenantOfALeg(t *testing.T) {
	rules, err := NewRules([]Rule{{"early", "context", "public", false}, {"acme", "account_code", "7", false}})
	if err != nil {
		t.Fatal(err)
	}
	n, fx := newNode("fs1", "c1"), &effects{}
	n.maxLegs, n.rules = 10, rules
	leg := func(typ cdr.EventType, name, call string, tenant bulkhead.TenantID, attrs map[string]string) {
		ev := event(typ, 1, name)
		ev.Record.Call, ev.Record.Tenant, ev.Record.Attrs = call, tenant, attrs
		n.apply(&item{event: ev}, at(0), fx)
	}
	public, account := map[string]string{"context": "public"}, map[string]string{"context": "public", "account_code": "7"}
	leg(cdr.Opened, "a", "a", "", public)
	leg(cdr.Answered, "a", "a", "", account)
	leg(cdr.Opened, "b", "a", "", nil)
	leg(cdr.Closed, "a", "a", "", account)
	leg(cdr.Closed, "b", "a", "", nil)
	leg(cdr.Opened, "c", "c", "", public)
	leg(cdr.Closed, "c", "c", "", account)
	leg(cdr.Closed, "said", "said", "own", account)
	leg(cdr.Closed, "none", "none", "", nil)
	got := map[string]bulkhead.TenantID{}
	for _, e := range fx.entries {
		got[e.Record.Leg] = e.Record.Tenant
	}
	if d := cmp.Diff(map[string]bulkhead.TenantID{"a": "acme", "b": "acme", "c": "acme", "said": "own", "none": ""}, got); d != "" {
		t.Error(d)
	}
}
