package registry

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
)

// hostile is text that means something to somebody further on.
var hostile = []string{
	"\x00", "a\x00b", "\r\nX-Injected: yes", "line\nline", "\x1b[2J", "\x7f", "${uuid_kill(1)}", "${system(reboot)}", "$${secret}", "{a=b}", "'; DROP TABLE object; --",
	`"><script>alert(1)</script>`, "<!--", "]]>", "&lt;", "%s%n%x", "\xff\xfe", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\u202e\u2066", "\u2028", "\ufeff", "é\u0301",
	"../../etc/passwd", "a/b", "a|b", "a:b", "a@b", "sip:a@b;fs_path=sip:c", "*", " ", "\t", "", "A", "ä", "1.2.3.4.5", strings.Repeat("a", 64), strings.Repeat("9", 16), strings.Repeat("x", 10<<20),
}

// TestHostileText puts hostile text into every string that a change has. It
// is refused with the name of the field, or it is stored as it is and harms
// nobody; and the store is as it was, or holds exactly that.
func TestHostileText(t *testing.T) {
	fields := map[string]func(c *bulkhead.Change, s string){
		"cells.id":                func(c *bulkhead.Change, s string) { c.Cells = []bulkhead.Cell{{ID: bulkhead.CellID(s)}} },
		"pools.id":                func(c *bulkhead.Change, s string) { c.Pools[0].ID = bulkhead.PoolID(s) },
		"pools.cell":              func(c *bulkhead.Change, s string) { c.Pools[0].Cell = bulkhead.CellID(s) },
		"pools.profile":           func(c *bulkhead.Change, s string) { c.Pools[0].Profile = bulkhead.ProfileID(s) },
		"pools.placement":         func(c *bulkhead.Change, s string) { c.Pools[0].Placement = bulkhead.Placement(s) },
		"pools.backup":            func(c *bulkhead.Change, s string) { c.Pools[0].Backup = bulkhead.PoolID(s) },
		"nodes.id":                func(c *bulkhead.Change, s string) { c.Nodes[0].ID = bulkhead.NodeID(s) },
		"nodes.kind":              func(c *bulkhead.Change, s string) { c.Nodes[0].Kind = bulkhead.NodeKind(s) },
		"nodes.sip":               func(c *bulkhead.Change, s string) { c.Nodes[0].SIP = s },
		"nodes.esl":               func(c *bulkhead.Change, s string) { c.Nodes[0].ESL = s },
		"sbcs.id":                 func(c *bulkhead.Change, s string) { c.SBCs[0].ID = bulkhead.SBCID(s) },
		"sbcs.sip":                func(c *bulkhead.Change, s string) { c.SBCs[0].SIP = s },
		"sbcs.names":              func(c *bulkhead.Change, s string) { c.SBCs[0].Names = []string{s} },
		"tenants.id":              func(c *bulkhead.Change, s string) { c.Tenants[0].ID = bulkhead.TenantID(s) },
		"tenants.name":            func(c *bulkhead.Change, s string) { c.Tenants[0].Name = s },
		"tenants.cell":            func(c *bulkhead.Change, s string) { c.Tenants[0].Cell = bulkhead.CellID(s) },
		"tenants.profile":         func(c *bulkhead.Change, s string) { c.Tenants[0].Profile = bulkhead.ProfileID(s) },
		"tenants.domains":         func(c *bulkhead.Change, s string) { c.Tenants[0].Domains = []string{s} },
		"tenants.codecs":          func(c *bulkhead.Change, s string) { c.Tenants[0].Codecs = []string{s} },
		"tenants.users.extension": func(c *bulkhead.Change, s string) { c.Tenants[0].Users[0].Extension = s },
		"tenants.users.name":      func(c *bulkhead.Change, s string) { c.Tenants[0].Users[0].Name = s },
		"tenants.users.ha1":       func(c *bulkhead.Change, s string) { c.Tenants[0].Users[0].HA1 = s },
		"tenants.users.caller_id": func(c *bulkhead.Change, s string) { c.Tenants[0].Users[0].CallerID = s },
		"tenants.numbers.number":  func(c *bulkhead.Change, s string) { c.Tenants[0].Numbers[0].Number = s },
		"tenants.numbers.user":    func(c *bulkhead.Change, s string) { c.Tenants[0].Numbers[0].User = s },
		"tenants.trunks.name":     func(c *bulkhead.Change, s string) { c.Tenants[0].Trunks[0].Name = s },
		"tenants.trunks.host":     func(c *bulkhead.Change, s string) { c.Tenants[0].Trunks[0].Host = s },
		"tenants.trunks.prefix":   func(c *bulkhead.Change, s string) { c.Tenants[0].Trunks[0].Prefix = s },
		"delete.tenants":          func(c *bulkhead.Change, s string) { c.Delete.Tenants = []bulkhead.TenantID{bulkhead.TenantID(s)} },
		"delete.pools":            func(c *bulkhead.Change, s string) { c.Delete.Pools = []bulkhead.PoolID{bulkhead.PoolID(s)} },
	}
	eachStore(t, func(t *testing.T, open func() office) {
		s, other := open(), open()
		commit(t, s, 0, example(2))
		for field, put := range fields {
			for _, text := range hostile {
				if len(text) > 1<<20 && field != "tenants.name" && field != "tenants.id" && field != "delete.tenants" {
					continue // once is enough
				}
				before := head(t, s)
				c := frame()
				c.Tenants = []bulkhead.Tenant{tenant(5)}
				c.Tenants[0].Profile = "high_volume"
				c.Tenants[0].Trunks = []bulkhead.Trunk{{Name: "carrier", Host: "192.0.2.1", Port: 5060}}
				put(&c, text)
				what := fmt.Sprintf("%s = %.40q", field, text)
				r, err := s.Commit(t.Context(), before.Revision, bulkhead.Revision{Author: "a", Change: c})
				after := head(t, other)
				switch {
				case err == nil:
					if after.Revision != r.Number || after.Validate() != nil {
						t.Fatalf("%s: stored as revision %d, and the head is %d: %v", what, r.Number, after.Revision, after.Validate())
					}
				case errors.Is(err, bulkhead.Invalid) && len(bulkhead.FieldErrors(err)) > 0 && len(err.Error()) < 64<<10:
					if after.Revision != before.Revision {
						t.Fatalf("%s: refused, and the head is %d", what, after.Revision)
					}
					same(t, what, after, before)
				default:
					t.Fatalf("%s: %.300v", what, err)
				}
			}
		}
		testHostileAuthors(t, s)
		replayed, err := s.State(t.Context(), head(t, s).Revision)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the log and the head", head(t, other), replayed)
	})
}

// TestManyErrors: a change of which everything is wrong is refused in a few words.
func TestManyErrors(t *testing.T) {
	s := newSQLite(t)
	c := example(3000)
	for i := range c.Tenants {
		c.Tenants[i].Name = strings.Repeat("<", 1000)
	}
	_, err := s.Commit(t.Context(), 0, bulkhead.Revision{Author: "a", Change: c})
	if n := len(bulkhead.FieldErrors(err)); !errors.Is(err, bulkhead.Invalid) || n != maxChangeErrors || len(err.Error()) > 100<<10 {
		t.Errorf("%d errors in %d bytes: %.200v", n, len(err.Error()), err)
	}
}

func testHostileAuthors(t *testing.T, s office) {
	t.Helper()
	for _, text := range hostile {
		base := head(t, s).Revision
		for _, r := range []bulkhead.Revision{{Author: text}, {Author: "a", Message: text}} {
			r.Change = bulkhead.Change{Cells: []bulkhead.Cell{{ID: "cell1", MaxTenants: 100 + int(base)}}}
			got, err := s.Commit(t.Context(), base, r)
			if err != nil {
				if !errors.Is(err, bulkhead.Invalid) || len(err.Error()) > 1000 {
					t.Fatalf("%.40q: %.300v", text, err)
				}
				continue
			}
			base = got.Number
			log, err := s.Log(t.Context(), base, 1)
			if err != nil || len(log) != 1 || log[0].Author != r.Author || log[0].Message != r.Message {
				t.Fatalf("%.40q: came back as %+v, %v", text, log, err)
			}
			if strings.ContainsAny(log[0].Author, "\r\n\x00\x1b") || strings.ContainsAny(log[0].Message, "\r\x00\x1b") {
				t.Errorf("%.40q was stored", text)
			}
		}
	}
}

// TestTwoOwners: a domain, a number and overlapping networks have one owner,
// in one commit and in two that race; the refusal names both.
func TestTwoOwners(t *testing.T) {
	claims := map[string]func(*bulkhead.Tenant){
		"domain": func(n *bulkhead.Tenant) { n.Domains = append(n.Domains, "both.example") },
		"number": func(n *bulkhead.Tenant) {
			n.Numbers = append(n.Numbers, bulkhead.Number{Number: "4915999", User: "1001"})
		},
		"the same network": func(n *bulkhead.Tenant) { n.Sources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} },
		"a network inside another": func(n *bulkhead.Tenant) {
			n.Sources = []netip.Prefix{netip.MustParsePrefix(map[bulkhead.TenantID]string{"t00001": "192.0.0.0/16", "t00002": "192.0.2.7/32"}[n.ID])}
		},
		"IPv6 networks": func(n *bulkhead.Tenant) {
			n.Sources = []netip.Prefix{netip.MustParsePrefix(map[bulkhead.TenantID]string{"t00001": "2001:db8:7::/48", "t00002": "2001:db8:7:1::/64"}[n.ID])}
		},
	}
	eachStore(t, func(t *testing.T, open func() office) {
		a, b := open(), open()
		commit(t, a, 0, example(1))
		for name, claim := range claims {
			one, two := tenant(1), tenant(2)
			claim(&one)
			claim(&two)
			base := head(t, a).Revision
			refused := func(how string, err error) {
				t.Helper()
				if !errors.Is(err, bulkhead.Invalid) || !strings.Contains(err.Error(), `"t00001"`) || !strings.Contains(err.Error(), `"t00002"`) {
					t.Errorf("%s, %s: %v", name, how, err)
				}
			}
			_, err := a.Commit(t.Context(), base, bulkhead.Revision{Author: "a", Change: bulkhead.Change{Tenants: []bulkhead.Tenant{one, two}}})
			refused("in one commit", err)
			// Racing: both have read the same head; the loser reads again.
			commit(t, a, base, bulkhead.Change{Tenants: []bulkhead.Tenant{one}})
			theirs := bulkhead.Revision{Author: "b", Change: bulkhead.Change{Tenants: []bulkhead.Tenant{two}}}
			if _, err := b.Commit(t.Context(), base, theirs); !errors.Is(err, bulkhead.Conflict) {
				t.Errorf("%s, on the old base: %v", name, err)
			}
			_, err = b.Commit(t.Context(), base+1, theirs)
			refused("racing", err)
			commit(t, b, base+1, bulkhead.Change{Delete: bulkhead.Deletion{Tenants: []bulkhead.TenantID{"t00001"}}})
		}
	})
}
