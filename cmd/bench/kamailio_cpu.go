package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
)

const (
	stateless = "#!define BULKHEAD_STATELESS\n"
	cpuRuns   = 5
	cpuCalls  = 6000
	cpuRate   = 2000 // a second
)

// startTables starts the shipped configuration with n tenants.
func startTables(ctx context.Context, n int, target, defines string, rules ...bulkhead.HeaderRule) (*sbc, error) {
	tables, err := sbcTables(n, target, rules...)
	if err != nil {
		return nil, err
	}
	s, err := startSBC(ctx, "", defines, noPings, kamailio.Memory(len(tables.Rows)))
	if err != nil {
		return nil, err
	}
	if err := s.client.Apply(ctx, tables); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// compare measures two SBCs in turn and returns the medians of what an INVITE
// costs each and of their ratio. The ratio is that of two runs one after the
// other: the machine may be half as fast a few seconds later. The first pair
// warms up.
func compare(ctx context.Context, runs int, a, b func(context.Context) (float64, error)) (x, y, ratio float64, err error) {
	var as, bs, ratios []float64
	for i := range runs + 1 {
		x, err := a(ctx)
		if err != nil {
			return 0, 0, 0, err
		}
		y, err := b(ctx)
		if err != nil {
			return 0, 0, 0, err
		}
		if i > 0 {
			as, bs, ratios = append(as, x), append(bs, y), append(ratios, x/y)
		}
	}
	return median(as), median(bs), median(ratios), nil
}

// inviteCPUFlat compares the cost of an INVITE with its ACK at 100,000 tenants
// and at 50.
func inviteCPUFlat(ctx context.Context) (_ []figure, err error) {
	const few, many = 50, 100_000
	small, err := startTables(ctx, few, "127.0.0.1:9", stateless)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, small.stop()) }()
	large, err := startTables(ctx, many, "127.0.0.1:9", stateless)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, large.stop()) }()
	x, y, ratio, err := compare(ctx, cpuRuns,
		func(ctx context.Context) (float64, error) {
			return sippLoad(ctx, large, sippRefused, many, cpuCalls, cpuRate)
		},
		func(ctx context.Context) (float64, error) {
			return sippLoad(ctx, small, sippRefused, few, cpuCalls, cpuRate)
		})
	if err != nil {
		return nil, err
	}
	return []figure{
		{name: "invite_cpu_flat", value: x, unit: "us/INVITE", ratio: ratio, bar: bar{"<=", 1.30}},
		{name: "invite_cpu_flat_50", value: y, unit: "us/INVITE"},
	}, nil
}

// inviteCPUVsRegex compares a configuration that has an if with a regular
// expression for each tenant with the shipped one.
func inviteCPUVsRegex(ctx context.Context) (_ []figure, err error) {
	const n = 5000
	ours, err := startTables(ctx, n, "127.0.0.1:9", stateless, bulkhead.HeaderRule{Action: bulkhead.ReplaceHeader, Name: "X-Tenant", Value: "1"})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	theirs, err := startSBC(ctx, regexConf(n), "", noPings, kamailio.Options{SharedMB: 64, PrivateMB: 512})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, theirs.stop()) }()
	// Few calls and slowly: each takes milliseconds.
	x, y, ratio, err := compare(ctx, cpuRuns,
		func(ctx context.Context) (float64, error) { return sippLoad(ctx, theirs, sippRefused, n, 100, 40) },
		func(ctx context.Context) (float64, error) { return sippLoad(ctx, ours, sippRefused, n, 2000, cpuRate) })
	if err != nil {
		return nil, err
	}
	return []figure{
		{name: "invite_cpu_vs_regex", value: x, unit: "us/INVITE", ratio: ratio, bar: bar{">=", 50}},
		{name: "invite_cpu_vs_regex_shipped", value: y, unit: "us/INVITE"},
	}, nil
}

// inviteCPUVsFloor compares whole calls through the shipped configuration with
// the same calls through the least that relays them, started with the same
// options. With Debian's default allocator instead of the shipped one both cost
// more, the least by so much that it is no cheaper.
func inviteCPUVsFloor(ctx context.Context) (_ []figure, err error) {
	const n = 500
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	target, err := freeUDP()
	if err != nil {
		return nil, err
	}
	if err := startNode(ctx, target); err != nil {
		return nil, err
	}
	ours, err := startTables(ctx, n, target, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	floor, err := startSBC(ctx, strings.ReplaceAll(floorConf, "TARGET", target), "", noPings, kamailio.Options{SharedMB: 128})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, floor.stop()) }()
	x, y, ratio, err := compare(ctx, 9,
		func(ctx context.Context) (float64, error) { return sippLoad(ctx, ours, sippAnswered, n, 1200, 600) },
		func(ctx context.Context) (float64, error) { return sippLoad(ctx, floor, sippAnswered, n, 1200, 600) })
	if err != nil {
		return nil, err
	}
	return []figure{
		{name: "invite_cpu_vs_floor", value: x, unit: "us/call", ratio: ratio, bar: bar{"<=", 1.5}},
		{name: "invite_cpu_vs_floor_floor", value: y, unit: "us/call"},
	}, nil
}

// benchConf is what the compared configurations have in common, outside of
// their routes.
const benchConf = `#!KAMAILIO
debug=1
log_stderror=yes
fork=yes
children=WORKERS
auto_aliases=no
disable_tcp=yes
listen=udp:LISTEN
loadmodule "kex.so"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "rr.so"
loadmodule "maxfwd.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "statistics.so"
loadmodule "jsonrpcs.so"
modparam("jsonrpcs", "transport", 4)
modparam("jsonrpcs", "dgram_socket", "DIR/rpc.sock")
modparam("statistics", "variable", "ready")
event_route[core:worker-one-init] {
    update_stat("ready", "+1");
}
`

// floorConf relays everything to one target, with state.
const floorConf = benchConf + `
request_route {
    $du = "sip:TARGET";
    t_relay();
}
`

// regexConf is what grows where each tenant gets its if: by domain or source,
// as the shipped tables find it too, its list of sources and one header rule.
func regexConf(n int) string {
	var b strings.Builder
	b.WriteString(benchConf)
	b.WriteString(`
request_route {
    if (!mf_process_maxfwd_header("10")) { sl_send_reply("483", "Too Many Hops"); exit; }
    if (has_totag()) { loose_route(); t_relay(); exit; }
    if (is_method("CANCEL|ACK")) { if (t_check_trans()) t_relay(); exit; }
    route(TENANT);
    sl_send_reply("403", "No such tenant");
    exit;
}
route[TENANT] {
`)
	for i := range n {
		fmt.Fprintf(&b, "    if ($rd =~ \"^%s$\" || $si == \"%[2]s\") {\n        if (src_ip != %[2]s) { sl_send_reply(\"403\", \"Forbidden\"); exit; }\n"+
			"        remove_hf(\"X-Tenant\");\n        append_hf(\"X-Tenant: %[3]s\\r\\n\");\n        $du = \"sip:127.0.0.1:9\";\n        route(OUT);\n    }\n",
			strings.ReplaceAll(tenantDomain(i), ".", `\.`), sbcSource(i), tenantName(i))
	}
	b.WriteString("}\nroute[OUT] {\n    sl_send_reply(\"404\", \"Routed\");\n    exit;\n}\n")
	return b.String()
}
