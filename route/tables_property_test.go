package route_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// interpreter decides with nothing but the rows of a table, as the SBC's
// script does: it knows strings, splits them and looks them up.
type interpreter struct {
	rows   map[string]string
	probes int
}

func (k *interpreter) get(key string) string {
	k.probes++
	return k.rows[key]
}

// answer is what the SBC comes to: a tenant with its row, or a refusal.
type answer struct {
	tenant string
	set    int
	pool   string
	code   int
	reason string
}

func (k *interpreter) decide(host, source, number, user string) answer {
	owner := k.get("d:" + strings.ToLower(host))
	switch owner {
	case "":
		return answer{code: 404, reason: "unknown domain"}
	case "*":
		byNumber := k.get("n:" + strings.TrimPrefix(number, "+"))
		bySource := k.source(source)
		if bySource != "" && (byNumber == "" || byNumber == bySource) {
			return k.place(bySource)
		}
		return answer{code: 403, reason: "unlisted source"}
	}
	if k.source(source) == owner {
		return k.place(owner)
	}
	// The challenge: an HA1 is needed to pass it.
	if user != "" && k.get("u:"+user+"@"+owner) != "" {
		return k.place(owner)
	}
	return answer{code: 403, reason: "unlisted source"}
}

func (k *interpreter) place(tenant string) answer {
	f := strings.Split(k.get("t:"+tenant), "|")
	if len(f) != 10 {
		return answer{reason: fmt.Sprintf("row of tenant %q has %d fields", tenant, len(f))}
	}
	set, _ := strconv.Atoi(f[0])
	return answer{tenant: tenant, set: set, pool: f[2]}
}

// source finds the owner of the longest network around an address from its text.
func (k *interpreter) source(text string) string {
	sep, top, keys := ".", 2, map[string]string{}
	part := strings.Split(text, ".")
	if len(part) == 4 {
		three := strings.Join(part[:3], ".")
		keys["32"] = text
		keys["28"] = three + ":" + sixteenth(part[3])
		keys["24"] = three
		keys["20"] = part[0] + "." + part[1] + ":" + sixteenth(part[2])
	} else {
		sep, part = ":", strings.Split(text, ":")
		keys["128"] = text
		keys["64"] = strings.Join(part[:4], ":")
		keys["48"] = strings.Join(part[:3], ":")
	}
	gate := k.get("s:" + strings.Join(part[:top], sep))
	if gate == "" {
		return ""
	}
	owner, below, _ := strings.Cut(gate, "|")
	if below != "" {
		for level := range strings.SplitSeq(below, ",") {
			if t := k.get("s:" + keys[level]); t != "" {
				return t
			}
		}
	}
	return owner
}

func sixteenth(octet string) string {
	n, _ := strconv.Atoi(octet)
	return strconv.Itoa(n / 16)
}

// text is a source address as the table's keys have it: IPv4 dotted, IPv6 as
// eight groups without leading zeros.
func text(a netip.Addr) string {
	a = a.Unmap()
	if a.Is4() {
		return a.String()
	}
	b := a.As16()
	var groups []string
	for i := 0; i < 16; i += 2 {
		groups = append(groups, fmt.Sprintf("%x", int(b[i])<<8|int(b[i+1])))
	}
	return strings.Join(groups, ":")
}

// A table decides as Decide does: 100 calls in each of 100 random states.
func TestTablesDecideAsDecide(t *testing.T) {
	calls, kinds := 0, map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		x := route.New(w.state)
		tables := map[bulkhead.SBCID]route.Tables{}
		rows := map[bulkhead.SBCID]map[string]string{}
		for _, id := range w.sbcs {
			made, err := route.MakeTables(x, id)
			if err != nil {
				t.Fatal(err)
			}
			tables[id], rows[id] = made, checkTables(t, x, made)
		}
		for range 100 {
			c := route.Call{
				SBC: rapid.SampledFrom(w.sbcs).Draw(t, "sbc"), Domain: w.drawDomain(t), Source: w.drawSource(t),
				Number: w.drawNumber(t), User: drawFrom(t, "user", w.users, "", "9999"),
			}
			k := &interpreter{rows: rows[c.SBC]}
			got := k.decide(c.Domain, text(c.Source), c.Number, c.User)
			want := expected(route.Decide(x, c))
			if got != want {
				t.Fatalf("%+v:\n table:  %+v\n Decide: %+v", c, got, want)
			}
			if k.probes > 9 {
				t.Fatalf("%+v took %d probes", c, k.probes)
			}
			calls++
			kinds[fmt.Sprint(want.code, want.reason)]++
			if want.tenant != "" {
				checkPlan(t, x, c, rows[c.SBC])
			}
		}
	})
	t.Logf("%d calls: %v", calls, kinds)
	if !t.Failed() && (kinds["0"] < calls/50 || kinds["404unknown domain"] < calls/50 || kinds["403unlisted source"] < calls/50) {
		t.Errorf("%d calls are not a mix: %v", calls, kinds)
	}
}

func expected(p route.Plan) answer {
	if p.Tenant == "" {
		r := p.Actions[0].(route.Reject)
		return answer{code: r.Status, reason: r.Reason}
	}
	return answer{tenant: string(p.Tenant), set: p.Set, pool: string(p.Pool)}
}

// checkPlan checks that a node, told the tenant, plans the same, and that a
// user it dials by way of the SBC is found there.
func checkPlan(t *rapid.T, x *route.Snapshot, c route.Call, rows map[string]string) {
	first := route.Decide(x, c)
	c.Tenant = first.Tenant
	c.Domain, c.Source = "", netip.Addr{}
	p := route.Decide(x, c)
	if expected(p) != expected(first) || !cmp.Equal(p.Actions, first.Actions) {
		t.Fatalf("%+v: a node plans %+v, the SBC %+v", c, p, first)
	}
	// An unmanaged tenant is located all the same, but its call is not ours.
	if managed := x.Tenant(p.Tenant).IsManaged(); p.Managed != managed || managed == cmp.Equal(p.Actions, []route.Action{route.Unmanaged}) {
		t.Fatalf("%+v: managed is %v, planned %+v", c, managed, p)
	}
	dial, _ := p.Actions[0].(route.Dial)
	for _, leg := range dial.Legs {
		if d, ok := leg.(route.DialUser); ok && (rows["d:"+d.Realm] != string(p.Tenant) || rows["u:"+d.Extension+"@"+string(p.Tenant)] == "") {
			t.Fatalf("the SBC does not know %+v of tenant %q", d, p.Tenant)
		}
	}
}

// checkTables checks what holds of every table and returns its rows.
func checkTables(t *rapid.T, x *route.Snapshot, tables route.Tables) map[string]string {
	rows := map[string]string{}
	for i, r := range tables.Rows {
		if i > 0 && tables.Rows[i-1].Key >= r.Key {
			t.Fatalf("row %q does not come after %q", r.Key, tables.Rows[i-1].Key)
		}
		if r.Value == "" {
			t.Fatalf("row %q is empty: an SBC takes it for none", r.Key)
		}
		rows[r.Key] = r.Value
	}
	sets := map[int]route.Set{}
	for _, s := range tables.Sets {
		if s.ID < 1 || s.ID > 1<<31-1 || sets[s.ID].ID != 0 {
			t.Fatalf("set %d of pool %q is out of range or there twice", s.ID, s.Pool)
		}
		sets[s.ID] = s
		checkSet(t, x, s)
	}
	for key, value := range rows {
		if id, ok := strings.CutPrefix(key, "t:"); ok {
			checkTenantRow(t, x, bulkhead.TenantID(id), value, sets)
		}
	}
	for id := range x.State().Nodes {
		n := x.Node(id)
		mine := x.CellOf(id) == x.State().SBCs[tables.SBC].Cell
		if got := rows["p:"+n.SIP]; (got == string(id)) != mine {
			t.Fatalf("row of node %q is %q, want it there only for its cell", id, got)
		}
	}
	return rows
}

func checkTenantRow(t *rapid.T, x *route.Snapshot, id bulkhead.TenantID, value string, sets map[int]route.Set) {
	f := strings.Split(value, "|")
	set, _ := strconv.Atoi(f[0])
	backup, _ := strconv.Atoi(f[4])
	s, ok := sets[set]
	if !ok || strconv.Itoa(s.Algorithm) != f[1] || string(s.Pool) != f[2] || x.Tenant(id).Realm() != f[3] {
		t.Fatalf("tenant %q has row %q and set %+v", id, value, s)
	}
	pool := x.State().Pools[s.Pool]
	if pool.Profile != x.Tenant(id).Profile || pool.Cell != x.Tenant(id).Cell {
		t.Fatalf("tenant %q is in pool %+v", id, pool)
	}
	b, ok := sets[backup]
	if ok != (pool.Backup != "") || b.Pool != pool.Backup || (ok && strconv.Itoa(b.Algorithm) != f[5]) || (!ok && f[5] != "0") {
		t.Fatalf("tenant %q has row %q and backup set %+v, want pool %q", id, value, b, pool.Backup)
	}
}

// checkSet: home first unless it is drained or calls go to the backup pool,
// drained nodes disabled and behind all others, nobody twice.
func checkSet(t *rapid.T, x *route.Snapshot, s route.Set) {
	seen, own := map[bulkhead.NodeID]bool{}, 0
	backup := x.State().Pools[s.Pool].Backup
	for i, to := range s.Targets {
		n := x.Node(to.Node)
		if seen[to.Node] || n.Pool != s.Pool && n.Pool != backup || to.Disabled != (n.Drain || n.Disabled) || to.Down || to.URI != "sip:"+n.SIP {
			t.Fatalf("set %+v: target %+v for node %+v", s, to, n)
		}
		if to.Disabled && to.Weight > 0 || to.Weight == 0 && !to.Disabled && backup == "" {
			t.Fatalf("set %+v: weight %d for node %+v", s, to.Weight, n)
		}
		if i > 0 && (to.Priority >= s.Targets[i-1].Priority || s.Targets[i-1].Disabled && !to.Disabled) {
			t.Fatalf("set %+v: target %d does not come after the one before", s, i)
		}
		seen[to.Node] = true
		if n.Pool == s.Pool {
			own++
		}
	}
	if home := x.Node(s.Home); home != nil && !home.Drain && !home.Disabled && s.Targets[0].Node != s.Home && own == len(s.Targets) {
		t.Fatalf("set %+v: home is not first", s)
	}
	nodes := 0
	for _, n := range x.State().Nodes {
		if n.Pool == s.Pool {
			nodes++
		}
	}
	if nodes != own && len(s.Targets) < 6 {
		t.Fatalf("set %+v has %d targets of its pool, which has %d nodes", s, own, nodes)
	}
}
