// Package freeswitch is the adapter to FreeSWITCH: it answers mod_xml_curl
// from a route.Snapshot, reads call events from mod_event_socket, and decodes
// the records of mod_json_cdr.
//
//	              POST /freeswitch/xml (configsvc)
//	FreeSWITCH ──────────────────────────────────> ParseRequest ─> Call ─> route.Decide
//	           <────────────────────────────────── RenderDialplan / directory <─┘
//
//	FreeSWITCH ── POST /freeswitch/cdr (eventbridge) ──> CDRDecoder ─> cdr.Record
//
//	FreeSWITCH ══ ESL ══> Conn: reader goroutine ══> bounded queue ══> Source.Run ──> emit(cdr.Event)
//
// # Versions
//
// Everything here is built on captures of FreeSWITCH 1.11.3-dev (commit
// cc93a683ca6e of 2026-08-21). The wire formats are those of 1.10 too, as far
// as its sources tell.
//
// # Modules
//
// The switch needs mod_sofia, mod_dptools, mod_commands, mod_dialplan_xml,
// mod_xml_curl (loaded before every other module whose configuration is to be
// asked for) and mod_event_socket; mod_json_cdr for a second report of each leg. The files in conf/ are the whole
// configuration that is particular to Bulkhead; RenderConf fills them in.
//
// # Limits
//
//   - One answer: at most 32 KiB (FreeSWITCH takes 1 MiB).
//   - One request: at most 64 KiB (a dialplan request has about 6 kB).
//   - One ESL frame: at most 64 KiB of headers and 16 MiB of body. The list of
//     live channels comes in one frame of about 1 kB a leg, so a node may hold
//     about 16,000 legs.
//   - Events that wait for the consumer of a Conn: Config.QueueBytes. At that
//     limit the connection is ended, not thinned: the events that were queued
//     are still handed out, and whoever reconnects knows that there was a gap.
//   - FreeSWITCH asks for one REGISTER at a time: an answer from the directory
//     that takes long delays every other phone's registration.
//
// # What reaches FreeSWITCH as code
//
// FreeSWITCH expands $${global} in the answer before it parses it, runs
// X-PRE-PROCESS commands in it, and expands ${variable} and ${api(args)} when
// it executes an action. XML escaping protects against none of this, so every
// string that came from SIP or from a tenant passes an allow-list before it is
// rendered; one that does not fit makes the call a rejected one.
//
// # Known bad releases
//
//   - Before 1.11.1: CVE-2026-49840, a negative Content-Length on the event
//     socket corrupts the heap before authentication. Bind mod_event_socket to
//     loopback and upgrade.
//   - Any release with the default ESL password ClueCon: whoever reaches the
//     port runs commands. Dial refuses that password unless told not to.
package freeswitch
