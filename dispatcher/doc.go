// Package dispatcher keeps one SBC holding the tables of the newest revision.
//
//	observe --> apply --> verify --> rest
//	   ^          |       |  |       | |
//	   |          |failed |  |again  | |VerifyEvery has passed: verify
//	   |          v       v  |       | |
//	   +<-------- pause <-+  |       | |
//	   +<--------------------+       | |
//	   +<----------------------------+-+  new snapshot: apply
//
// One goroutine, the caller of Run, does all of it, so at most one Apply or
// Verify is in flight. Snapshots that come meanwhile wait, and only the newest
// of them is applied. An SBC that is away is no special case: the attempt
// fails and is repeated until the SBC is back.
//
// The package is the room of that name, not Kamailio's dispatcher module.
package dispatcher
