// Package spool is a log of records on disk: one process appends, any number
// of named readers, in this process or in others, follow. Either side may be
// killed at any moment and started again: a record whose append was
// acknowledged is delivered to every reader at least once, in order.
//
//	Append, Enqueue            a data folder                    OpenReader
//	      |          +--------------------------------+              |
//	      v          | 00000000000000000007.seg       |   Read       v
//	 queue (bytes) ->| 00000000000000000008.seg  <----+-------  Batch.Payloads
//	   one syncer:   | 00000000000000000009.seg       |              |
//	   write and     | cdrpipe.ack  <-----------------+-------  Batch.Ack
//	   fdatasync     | writer.lock, cdrpipe.ack.lock  |
//	                 +--------------------------------+
//
// The goroutine of the syncer starts in Open and ends in Close. A Reader has
// none.
//
// # Files
//
// Everything that matters is visible with ls:
//
//	<20 digits>.seg             records; the highest number is written to
//	<20 digits>.seg.quarantine  the same, but found damaged; still read, never deleted
//	<name>.ack                  how far a reader got; delete it to retire that reader
//	<name>.ack.quarantine       an ack file that could not be understood
//	writer.lock, *.ack.lock     held by a living writer or reader (flock); they stay
//
// A segment begins with the 8 bytes BHSPOOL1 and its number, followed by
// frames. All integers are little-endian.
//
//	offset  bytes
//	0       4      CRC32C of segment number, frame offset, bytes 4-15, payload
//	4       4      length of the payload
//	8       8      time of the append, microseconds since 1970
//	16      ...    payload
//
// The sum covers the place of the frame, so bytes of a payload that look like
// a frame are not mistaken for one when a reader searches behind damage.
//
// # Crashes and damage
//
// The writer never appends to a segment of an earlier run: Open cuts what was
// half written from the end of the last one and starts the next. So a position
// that a reader acknowledged stays right even if a power cut took back bytes
// that it had already read. The same is done after a failed write or sync.
//
// Bytes that are not a frame but have a good frame behind them, or stand in a
// segment that has a successor, are damage. They are skipped, the records
// before and after them are delivered, and the segment is set apart under the
// name .quarantine, so that positions in it stay right and no byte is lost.
package spool
