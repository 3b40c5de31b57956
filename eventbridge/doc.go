// Package eventbridge hears the call events of many media nodes at once and
// makes durable records of them: one cdr.Record a call leg.
//
//	node A ─ Source.Run ─ emit ─> queue ─┐
//	node B ─ Source.Run ─ emit ─> queue ─┼─> recorder ── Append ──> Stream
//	node C ─ Source.Run ─ emit ─> queue ─┘      │
//	        (one goroutine a node)              └─ then ─> journal of open legs
//	SBC ─ POST /kamailio/events ─ Append ─────────────────> Stream
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
// # What a kill leaves
//
// A leg leaves the journal only after its record is durable in the stream. So
// after kill -9 a leg is in the stream, or in the journal, or in both; in the
// last case it is synthesised too, with the same id, and cdr.Merge keeps the
// full record. What was still in a queue lies after the time that the journal
// calls last heard, so the gap covers it.
package eventbridge
