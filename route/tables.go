package route

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
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
//	t:TENANT         SET|ALGORITHM|POOL|REALM|BACKUP SET|BACKUP ALGORITHM|CALLS PER SECOND|CALLS|HEADER RULES|MANAGED
//	h:N@TENANT       header rule N, from 0: +Name: value, -Name or =Name: value
//	u:USER@TENANT    HA1
//	p:IP:PORT        node, a trusted peer
type Row struct{ Key, Value string }

// MakeTables lays out what the SBC must know; its sets are those of nodes of
// which nothing is known but their registry entries. Its errors are those of
// MakeSets.
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
		add("t:"+string(tid), x.tenantRow(h))
		for i, r := range h.tenant.Headers {
			add("h:"+strconv.Itoa(i)+"@"+string(tid), headerRow(r))
		}
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
	}
	slices.SortFunc(t.Rows, func(a, b Row) int { return strings.Compare(a.Key, b.Key) })
	var err error
	t.Sets, err = MakeSets(x, id, nil)
	return t, err
}

// TenantRow returns the value of a tenant's row t:TENANT at the SBCs of a cell,
// "" if it is not there.
func (x *Snapshot) TenantRow(cell bulkhead.CellID, id bulkhead.TenantID) string {
	h := x.home(id).in(cell)
	if h == nil {
		return ""
	}
	return x.tenantRow(h)
}

// tenantRow: sets and limits that are 0 are none.
func (x *Snapshot) tenantRow(h *home) string {
	backup, algorithm := x.backup(h)
	managed := 0
	if h.tenant.IsManaged() {
		managed = 1
	}
	return fmt.Sprintf("%d|%d|%s|%s|%d|%d|%d|%d|%d|%d", h.set, h.pool.algorithm(), h.pool.ID, h.tenant.Realm(), backup, algorithm,
		h.tenant.Limits.CallsPerSecond, h.tenant.Limits.Calls, len(h.tenant.Headers), managed)
}

// headerRow begins with the letter that says what is done.
func headerRow(r bulkhead.HeaderRule) string {
	switch r.Action {
	case bulkhead.RemoveHeader:
		return "-" + r.Name
	case bulkhead.ReplaceHeader:
		return "=" + r.Name + ": " + r.Value
	}
	return "+" + r.Name + ": " + r.Value
}

// backup returns the set of the tenant's backup pool, or zeros.
func (x *Snapshot) backup(h *home) (set, algorithm int) {
	b := x.pools[h.pool.Backup]
	if b == nil {
		return 0, 0
	}
	return b.setOf(&h.tenant), b.algorithm()
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
