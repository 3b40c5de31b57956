// Package siptest is a small SIP and RTP toolkit in pure Go: the phones,
// carriers and the stand-in SBC with which Bulkhead is tested and shown on a
// machine that has neither Kamailio nor a PBX.
//
//	 Phones (user agents)            Proxy (SBC: registrar + stateful proxy)
//	     |        |                      |
//	     |      Stack (dialogs, RFC 3261 section 12)
//	     |        |                      |
//	  Media     endpoint (one UDP socket, transactions, RFC 3261 section 17)
//	     |
//	MediaEngine (one 20 ms clock for every stream, RFC 3550)
//
// Messages are parsed and printed by sipgo's package sip. Transactions are our
// own, for three reasons: sipgo's UDP transport refuses to send a message above
// 1300 bytes (a proxied INVITE of FreeSWITCH is larger), its timers are globals
// that a test may not touch, and it starts a goroutine for each datagram, which
// lets a BYE overtake the ACK before it.
//
// Goroutines: one reader for each endpoint, one clock for each MediaEngine, one
// reader for each Media, one handler for each new request. Each is joined by
// the Close (or the end of Run) of its owner.
//
// Limits: SIP over UDP to numeric addresses only, no DNS, no TCP, no TLS, no
// PRACK; G.711 only; a proxied request goes to one target at a time.
package siptest
