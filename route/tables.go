package route

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
)

// The dispatcher algorithms that sets are selected by (Kamailio's dispatcher
// module, ds_select_dst).
const (
	ByPriority = 8
	ByWeight   = 9
)

// Tables is everything that one SBC must know to decide as Decide does.
type Tables struct {
	SBC      bulkhead.SBCID
	Revision bulkhead.RevisionNumber
	Rows     []Row // in the order of their keys
	Sets     []Set // in the order of their ids
}

// Row is one key of the SBC's table. The first letter of the key says what it is:
//
//	d:DOMAIN         tenant, or * for an address or name of the SBCs themselves
//	n:NUMBER         tenant
//	s:NETWORK        tenant; of the widest level, the gate: TENANT|LEVELS
//	t:TENANT         SET|ALGORITHM|POOL|REALM|BACKUP SET|BACKUP ALGORITHM (0|0: none)
//	u:USER@TENANT    HA1
//	p:IP:PORT        node, a trusted peer
type Row struct{ Key, Value string }

// Set is a dispatcher set: the nodes that a group of tenants may be sent to.
type Set struct {
	ID        int // 1 to 2^31-1, the same in every revision
	Pool      bulkhead.PoolID
	Home      bulkhead.NodeID // empty: the whole pool, by weight
	Algorithm int             // ByPriority or ByWeight
	Targets   []Target
}

// Target is a node in a set.
type Target struct {
	Node     bulkhead.NodeID
	URI      string // sip:ip:port
	Priority int    // higher is tried first
	Weight   int    // 1 to 100
	Disabled bool   // drained: takes no new calls
}

// MakeTables lays out what the SBC must know. Its errors are bulkhead.NotFound
// for an SBC that is not in the snapshot and bulkhead.Conflict when two sets
// hash to one id.
func MakeTables(x *Snapshot, id bulkhead.SBCID) (Tables, error) {
	sbc := x.SBC(id)
	if sbc == nil {
		return Tables{}, fmt.Errorf("tables for SBC %q: %w", id, bulkhead.NotFound)
	}
	t := Tables{SBC: id, Revision: x.Revision()}
	add := func(key, value string) { t.Rows = append(t.Rows, Row{key, value}) }
	for self := range x.self {
		if self.cell == sbc.Cell {
			add("d:"+self.host, "*")
		}
	}
	owner := map[netip.Prefix]bulkhead.TenantID{}
	for _, h := range x.tenants.all() {
		if h.in(sbc.Cell) == nil {
			continue
		}
		tid := h.tenant.ID
		backup, algorithm := x.backup(h)
		add("t:"+string(tid), fmt.Sprintf("%d|%d|%s|%s|%d|%d", h.set, h.pool.algorithm(), h.pool.ID, h.tenant.Realm(), backup, algorithm))
		for _, d := range h.tenant.Domains {
			add("d:"+d, string(tid))
		}
		for _, n := range h.tenant.Numbers {
			add("n:"+n.Number, string(tid))
		}
		for _, u := range h.tenant.Users {
			add("u:"+u.Extension+"@"+string(tid), u.HA1)
		}
		for _, p := range h.tenant.Sources {
			owner[p] = tid
		}
	}
	t.Rows = append(t.Rows, sourceRows(owner)...)
	for _, p := range x.pools {
		if p.Cell != sbc.Cell {
			continue
		}
		for _, n := range p.nodes {
			add(peerKey(n.SIP), string(n.ID))
		}
		t.Sets = append(t.Sets, p.sets()...)
	}
	slices.SortFunc(t.Rows, func(a, b Row) int { return strings.Compare(a.Key, b.Key) })
	slices.SortFunc(t.Sets, func(a, b Set) int { return a.ID - b.ID })
	for i := 1; i < len(t.Sets); i++ {
		if a, b := t.Sets[i-1], t.Sets[i]; a.ID == b.ID {
			return Tables{}, fmt.Errorf("tables for SBC %q: pools %q and %q both need set %d: rename one: %w", id, a.Pool, b.Pool, a.ID, bulkhead.Conflict)
		}
	}
	return t, nil
}

// backup returns the set of the tenant's backup pool, or zeros.
func (x *Snapshot) backup(h *home) (set, algorithm int) {
	b := x.pools[h.pool.Backup]
	if b == nil {
		return 0, 0
	}
	return b.setOf(h.tenant.ID), b.algorithm()
}

// peerKey is the key of a node's row, composed as kamailio.cfg does from the
// text of a packet's source: $si:$sp, IPv6 without brackets.
func peerKey(sip string) string {
	ap := addrPort(sip)
	return "p:" + ap.Addr().String() + ":" + strconv.Itoa(int(ap.Port()))
}

func (p *pool) algorithm() int {
	if p.Placement == bulkhead.Spread {
		return ByWeight
	}
	return ByPriority
}

// sets returns the pool's dispatcher sets: one for all of it when it spreads
// by weight, else one for each node as the home. A drained node is nobody's
// home, but its set stays: rows that are one step behind still name it. The
// set of home "" exists for the time when every node is drained.
func (p *pool) sets() []Set {
	if p.Placement == bulkhead.Spread {
		return []Set{p.set("", p.nodes)}
	}
	all := true
	var out []Set
	for _, home := range p.nodes {
		all = all && home.Drain
		order := slices.DeleteFunc(p.order(string(home.ID)), func(n *bulkhead.Node) bool { return n == home })
		out = append(out, p.set(home.ID, append([]*bulkhead.Node{home}, order...)))
	}
	if all {
		out = append(out, p.set("", p.nodes))
	}
	return out
}

func (p *pool) set(home bulkhead.NodeID, order []*bulkhead.Node) Set {
	s := Set{ID: setID(p.ID, home), Pool: p.ID, Home: home, Algorithm: p.algorithm()}
	for i, n := range order {
		s.Targets = append(s.Targets, Target{
			Node: n.ID, URI: "sip:" + n.SIP, Priority: len(order) - i, Weight: cmp.Or(n.Weight, 100), Disabled: n.Drain,
		})
	}
	return s
}
