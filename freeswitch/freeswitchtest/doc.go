// Package freeswitchtest is a media node in pure Go that behaves like a
// FreeSWITCH as far as recorded traffic of a real one (1.11.3-dev) shows it:
// what it sends to mod_xml_curl's server, what it does with the answer, and
// what an event socket client reads. Bulkhead's tests and its one-machine mode
// run on it; it is no PBX for production.
//
//	SBC ── INVITE ──> Node ── INVITE ──> SBC (a user) or carrier (a trunk)
//	                   │ ^
//	form (POST, one    │ │ dialplan XML
//	TCP connection     v │
//	each)           configuration service
//
//	event socket clients <── one queue each <── hub (one sequence) <── legs
//
// One goroutine runs each call and owns both of its legs; what others see of a
// leg (show channels) is a copy that is swapped at each event. One goroutine
// reads and one serves each event socket client. Run joins them all.
//
// A comment that says "capture" names the recorded file that shows the
// behaviour; "source" means that it was read in FreeSWITCH's source, where no
// recording shows it.
//
// What is left out: registration and SIP authentication (a Bulkhead SBC does
// them), TLS and TCP, codecs other than G.711, transcoding, transfers, DTMF,
// re-INVITEs with another description, dial strings with several targets,
// gateways, the events that no client of Bulkhead subscribes
// (CHANNEL_STATE, CHANNEL_CALLSTATE, CHANNEL_EXECUTE, CALL_UPDATE, CODEC), event
// xml, outbound event sockets, the other sections of mod_xml_curl but for the
// look-up of a directory user and its cache. X-PRE-PROCESS commands in an answer are dropped and logged, never run.
package freeswitchtest
