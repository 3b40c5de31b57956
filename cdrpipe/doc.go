// Package cdrpipe takes call records from a stream into a warehouse, and
// answers questions about them.
//
//	Stream ── Read ──> Consumer ── Insert ──> Warehouse ──> Routes
//	   ^                   │
//	   └────── Ack ────────┘  only after Insert
//
// A batch is acknowledged when it is durable in the warehouse. Until then it
// is tried again, forever, so a warehouse that is away delays records and
// loses none. A batch that comes twice, or is cut differently the second time,
// changes nothing: rows are addressed by cdr.ID, and of two reports of one leg
// cdr.Merge keeps one, in whatever order they come.
package cdrpipe
