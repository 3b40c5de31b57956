// Package configsvc answers the PBXs' per-call questions over HTTP: it checks
// who asks, hands the question and the current snapshot to the dialect that
// the question is written in, and sends the dialect's answer back.
//
//	PBX ── POST /freeswitch/xml ──> Server ── Dialect.Answer(snapshot, question) ──> answer
//	                                  │
//	                                  └── *route.Live, swapped whole by whoever follows the registry
//
// Each dialect has its own path. A tenant whose questions come faster than
// Config.TenantRate waits for its own turns and delays nobody else.
//
// With a Shadow every answer is the dialect's "not mine", and what would have
// been done is kept on disk; ShadowReport compares that with call records.
//
// A Server holds no state of its own between two questions, so a restart
// costs nothing but the time it takes.
package configsvc
