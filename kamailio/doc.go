// Package kamailio is the adapter of the SBC: the shipped configuration, the
// client of Kamailio's JSON-RPC, the writer of its tables, the reader of its
// events, and what starts it as a child.
//
//	dispatcher ── Apply, Verify ──> tables.sqlite, dispatcher.list ──(start, reload)──> Kamailio
//	                 └───────────── rpc.sock (unix datagrams) ────────────────────────────> │
//	eventbridge <── POST /kamailio/events (NDJSON) ── one process of Kamailio's own ────────┘
//
// # Versions
//
// Kamailio 5.6.3, as Debian 12 has it, with its packages kamailio,
// kamailio-extra-modules, kamailio-utils-modules and kamailio-sqlite-modules.
//
// # Modules
//
// tm, tmx, sl, rr, pv, maxfwd, sanity, textops, siputils, ipops, cfgutils,
// xlog, kex, statistics, jsonrpcs (datagram transport only), db_sqlite,
// htable, usrloc, registrar, auth, dispatcher, mqueue, rtimer, http_client.
//
// # Limits
//
//   - SIP over UDP. The nodes and the SBC's own address are IPv4; callers may
//     come over IPv6 to a second address (Params.Listen6).
//   - Phones are reached at the contact they registered, which must be a
//     numeric address: no NAT traversal, no DNS.
//   - Within a call, an outsider's request is relayed only to the ip:port of a
//     node of the tables. A node that is taken out of them no longer hears its
//     callers: drain it first.
//   - A node is known by the ip:port it sends from. Who can forge UDP sources
//     inside the cell's network can speak as a node: filter at its edge.
//   - A registration is on disk before it is answered, one at a time: their
//     rate is that of the disk's fsync.
//   - At most five nodes of a pool and five of its backup are tried a call.
//   - 10,000 events wait in shared memory for the event bridge; beyond that,
//     and when Kamailio ends, they are lost. stats.fetch script: counts them.
//   - Dispatcher sets are read back up to about 900 targets, rows by sample.
//   - Kamailio and the dispatcher run as one user: the RPC socket takes
//     core.kill from whoever may write to it.
//
// # Known bad
//
//   - dispatcher with reload_delta 0 crashes when reloads follow each other
//     (5.6.3); the shipped configuration has 1.
//   - db_sqlite of 5.6.3 sets no busy timeout: what is written at once is lost
//     with an error. The files are in WAL mode and registrations are saved one
//     at a time for that reason.
//   - dispatcher's algorithm 9 fills 100 places in the order of the list:
//     weights that add up to more leave the last nodes without a call.
package kamailio
