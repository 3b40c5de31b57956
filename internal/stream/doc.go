// Package stream carries the records of a spool through a Redis Stream to a
// group of consumers, and frees the spool when these acknowledged them: what
// Redis loses in between is sent again. Every record arrives at least once.
//
//	spool ── Read ──> Forwarder ── send ──> {name}:stream ── Read ──> Consumer
//	  ^                  │  ^                                            │
//	  └───── Ack ────────┘  └── look ── {name}:acked:<group> <── Ack ────┘
//
// Every arrow at Redis that changes more than one key is one Lua script, so
// that it happens whole or not at all, also in the append-only file and on a
// replica. Redis 6.2 or later is needed. All keys of a stream share the hash
// tag {name}, so that they lie on one node of a Redis Cluster:
//
//	{name}:stream         the entries
//	{name}:sent           writer -> session and place behind its last entry
//	{name}:acked:<group>  writer -> session, place before which all is acknowledged, and islands
//
// # What an entry carries
//
// The payload, and who sent it: the writer, its session, the place behind the
// record before it and the place behind it in the writer's spool. So every
// entry names the one that it follows.
//
// # How a loss is noticed
//
// A Forwarder trusts nothing that it did not see Redis do. When it starts it
// draws a random session, and writes it with the place of its spool's last
// acknowledgement to sent and acked. The script that adds entries refuses when
// sent does not name this session and the very place where the new entries
// begin. A Redis that lost its end (a crash with appendfsync everysec, a
// failover to a replica that lagged) lost the end of sent with it, refuses,
// and gets the entries again from the place that sent names; nothing can be
// added behind a hole. A Redis that lost everything, or came back older than
// what the spool has freed, does not know the session or knows a place before
// the spool's: a new session begins at the spool's acknowledged place. The
// session does for every writer what an epoch of the stream would do for all.
//
// Whoever deletes only some of it (XTRIM or DEL by hand, a policy that evicts)
// is noticed too: the Forwarder knows the ids of its entries, and when a group
// has nothing left below an id whose place it has not acknowledged, a new
// session begins. Set maxmemory-policy noeviction nevertheless.
//
// A Redis 7.0 whose file was cut twice may add the first half of a transaction
// that it had dropped: some entries are then there twice, and none is missing.
//
// # Several consumers, and the order of acknowledgement
//
// Consumers of a group get different entries and acknowledge them in any
// order, but a spool can only be freed up to a place. So acked holds for every
// writer the place before which all of this session is acknowledged, and
// behind it the islands: runs that were acknowledged while something before
// them was not. An acknowledgement joins the runs that it touches, and the
// place moves over an island only when the last hole before it is filled. It
// never moves back within a session. The number of islands is bounded by that
// of the batches that consumers hold.
//
// # Bounds
//
// A stream never holds more than MaxLen entries: the Forwarder leaves the rest
// in the spool, as it does while Redis answers OOM. Acknowledging trims the
// stream up to the oldest entry that some group still needs, never past it.
package stream
