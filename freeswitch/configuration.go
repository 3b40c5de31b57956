package freeswitch

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// answerConfiguration answers for the files that depend on the registry, on
// nodes that are Bulkhead's alone: the profile with the gateways of the cell's
// tenants, and the list of the SBCs. An answer replaces the switch's own file
// whole, so a node that works beside what it did before keeps its own; its
// gateways come by the directory. Everything else is "not found".
func answerConfiguration(x *route.Snapshot, node bulkhead.NodeID, req *Request, dst []byte) ([]byte, Summary) {
	sum := Summary{Section: SectionConfiguration, Outcome: "not found"}
	if x == nil {
		return RenderNotFound(dst), sum
	}
	sum.Revision = x.Revision()
	cell := x.CellOf(node)
	if cell == "" || worksAlone(x, node, cell) || req.TagName != "configuration" || req.KeyName != "name" {
		return RenderNotFound(dst), sum
	}
	start := len(dst)
	switch req.KeyValue {
	case "acl.conf":
		dst = renderACL(dst, x, cell)
	case "sofia.conf":
		var ok bool
		if dst, ok = renderSofia(dst, x, node, cell); !ok {
			return RenderNotFound(dst[:start]), sum
		}
	default:
		return RenderNotFound(dst), sum
	}
	sum.Outcome = "found"
	return dst, sum
}

const configurationHead = documentHead + "  <section name=\"configuration\">\n"

// renderACL appends the list of the SBCs, as acl.conf.xml has it.
func renderACL(dst []byte, x *route.Snapshot, cell bulkhead.CellID) []byte {
	dst = append(dst, configurationHead+"    <configuration name=\"acl.conf\" description=\"network lists\">\n      <network-lists>\n"+
		"        <list name=\"bulkhead_sbc\" default=\"deny\">\n"...)
	for _, s := range sbcsOf(x, cell) {
		if a, err := netip.ParseAddrPort(s.SIP); err == nil {
			dst = append(dst, "          <node type=\"allow\" cidr=\""...)
			dst = escape(dst, cidr(a.Addr()))
			dst = append(dst, "\"/>\n"...)
		}
	}
	return append(dst, "        </list>\n      </network-lists>\n    </configuration>\n  </section>\n"+documentTail...)
}

// renderSofia appends the shipped profile with the gateways in it; false if
// the node's address cannot be read.
func renderSofia(dst []byte, x *route.Snapshot, node bulkhead.NodeID, cell bulkhead.CellID) ([]byte, bool) {
	a, err := netip.ParseAddrPort(x.Node(node).SIP)
	if err != nil {
		return dst, false
	}
	profile, err := renderProfile(a)
	if err != nil {
		return dst, false
	}
	head, tail, ok := bytes.Cut(profile, []byte("<settings>"))
	if !ok {
		return dst, false
	}
	dst = append(dst, configurationHead+"    <configuration name=\"sofia.conf\" description=\"from Bulkhead\">\n"+
		"      <global_settings/>\n      <profiles>\n"...)
	dst = append(dst, head...)
	dst = appendGateways(append(dst, "<gateways>\n"...), x, cell)
	dst = append(dst, "    </gateways>\n    <settings>"...)
	dst = append(dst, bytes.TrimSpace(tail)...)
	return append(dst, "\n      </profiles>\n    </configuration>\n  </section>\n"+documentTail...), true
}

// renderGatewayDomain appends the gateways in the form that a profile reads
// out of the directory.
func renderGatewayDomain(dst []byte, x *route.Snapshot, cell bulkhead.CellID) []byte {
	dst = append(dst, directoryHead+GatewayDomain+"\">\n      <groups><group name=\"default\"><users><user id=\"bulkhead.gateways\"><gateways>\n"...)
	dst = appendGateways(dst, x, cell)
	return append(dst, "    </gateways></user></users></group></groups>\n    </domain>\n  </section>\n"+documentTail...)
}

// maxGatewayBytes bounds the list of gateways: FreeSWITCH takes an answer of
// up to 1 MiB. A gateway has about 500 bytes.
const maxGatewayBytes = 1<<20 - 64<<10

// appendGateways appends the gateways of the trunks that want credentials, of
// the managed tenants of a cell, in the order of their names.
func appendGateways(dst []byte, x *route.Snapshot, cell bulkhead.CellID) []byte {
	var tenants []*bulkhead.Tenant
	for t := range x.Tenants() {
		if t.Cell == cell && t.IsManaged() && len(t.Trunks) > 0 {
			tenants = append(tenants, t)
		}
	}
	slices.SortFunc(tenants, func(a, b *bulkhead.Tenant) int { return cmp.Compare(a.ID, b.ID) })
	start := len(dst)
	for _, t := range tenants {
		for i := range t.Trunks {
			if k := &t.Trunks[i]; k.Username != "" || k.Register {
				dst = appendGateway(dst, t.ID, k)
			}
		}
		if len(dst)-start > maxGatewayBytes {
			break
		}
	}
	return dst
}

// appendGateway appends one gateway, or nothing if a value cannot stand in it:
// FreeSWITCH's pre-processor would find $ in a password before the parser does.
func appendGateway(dst []byte, tenant bulkhead.TenantID, k *bulkhead.Trunk) []byte {
	host, ok := hostPort(k.Host, k.Port)
	realm := k.Realm
	if realm == "" {
		realm = k.Host
	}
	if !ok || !isID(string(tenant)) || !isID(k.Name) || !isSecret(k.Username) || !isSecret(string(k.Password)) || !isSecret(realm) {
		return dst
	}
	dst = append(dst, "      <gateway name=\""...)
	dst = append(dst, gatewayName(tenant, k.Name)...)
	dst = append(dst, "\">\n"...)
	for _, v := range [...]struct{ name, value string }{
		{"username", k.Username}, {"password", string(k.Password)}, {"realm", realm}, {"proxy", host},
		{"register", strconv.FormatBool(k.Register)}, {"caller-id-in-from", "true"},
		// An INVITE to the gateway is no tenant's by itself: the number decides.
		{"context", Context}, {"retry-seconds", "30"},
	} {
		dst = element(dst, "param", v.name, v.value)
	}
	return append(dst, "      </gateway>\n"...)
}

// sbcsOf returns the SBCs of a cell in the order of their ids.
func sbcsOf(x *route.Snapshot, cell bulkhead.CellID) []*bulkhead.SBC {
	var out []*bulkhead.SBC
	for _, s := range x.SBCs() {
		if s.Cell == cell {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *bulkhead.SBC) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
