// Package eventbridge hears the call events of many media nodes at once and
// makes durable records of them: one cdr.Record a call leg.
//
//	node A ─ Source.Run ─ emit ─> queue ─┐
//	node B ─ Source.Run ─ emit ─> queue ─┼─> recorder ── Append ──> Stream
//	node C ─ Source.Run ─ emit ─> queue ─┘      │
//	        (one goroutine a node)              └─ then ─> journal of open legs
//	SBC ─ POST /kamailio/events ─ Append ─────────────────> Stream
//	node ─ POST /freeswitch/cdr, files in its err-log-dir, log that it appends to ─ Append ─> Stream
//
// A reader never waits: emit puts into its node's bounded queue. At the limit
// the connection is given up and the time until it is back is a gap.
//
// # Gaps
//
// Whenever a node that was heard before is not heard any more (connection
// lost, queue limit, bridge killed or stopped, node taken out of the
// configuration), a cdr.Gap is written, from the last event that was
// processed until the node's legs were listed again. Legs that were open
// before and are not in that list ended in the gap: each gets a record with
// Source synthesised, what is known of it, Cause CauseGap, Gap set, and a zero
// End, since its end is not known. A node that stays away longer than
// Config.GiveUp gets these records then, and its gap stays open. A full record
// of the same leg always wins over such a one (cdr.Merge).
//
// Legs that are in the list lived through the gap: their record has Gap set,
// and reconciled among its Sources. So has one that began in the gap, of which
// only the list tells until it ends. A list may come from a table that lags
// behind the events, so a source lists once more (cdr.Listed): a leg that only
// the first list told of ended in the gap, too.
//
// # Second sources
//
// What mod_json_cdr posts, or leaves in its err-log-dir, and what Asterisk
// appends to its channel event log (Follow), is a second report of a leg, with
// the same id; cdr.Merge joins them. It is acknowledged, its file moved away, or
// noted as read, only when it is durable. If it comes while the node is not
// heard, the leg needs no synthesised record.
//
// # Tenants
//
// The tenant is what the switch says it is (Bulkhead's own variables), else
// what Config.Rules make of the leg's attributes, else that of the call's A
// leg, while that is open. What has none is stored without, counted, and
// listed by GET /v1/unmatched.
//
// # Clocks
//
// All times of a leg are the node's. How far the node's clock is ahead of ours
// is estimated from the events that came fastest, stands in each record, and
// puts answers without a time, such as a list of legs, on the node's clock.
//
// # What a kill leaves
//
// A leg leaves the journal only after its record is durable in the stream. So
// after kill -9 a leg is in the stream, or in the journal, or in both; in the
// last case it is synthesised too, with the same id, and cdr.Merge keeps the
// full record. What was still in a queue lies after the time that the journal
// calls last heard, so the gap covers it.
package eventbridge
