// Package asterisk is the adapter to Asterisk: it makes call records of the
// events of ARI, with the Cdr events of AMI as a second report of the same
// legs.
//
//	           GET /ari/events (WebSocket), eventFilter, /channels
//	Asterisk <──────────────────────────────────────────────────── Source ──> emit(cdr.Event)
//	         ══ Cdr events of AMI ══> rows of a channel, joined ═════╝
//
//	Asterisk ── outbound WebSocket, keeps events while we are away ──> Outbound ──> emit(cdr.Event)
//	Asterisk ── channel event log on disk, whoever listens ──> CELLog ──> cdr.Record
//
//	Asterisk ── res_config_curl: endpoints, auths, aors, ... ──> AnswerRealtime ──> rows
//	Asterisk ── CURL(), once a call ──> AnswerCall ──> route.Decide ──> steps for [bulkhead]
//	Asterisk <── AMI: expire what changed ── Caches
//
// # What is a leg
//
// Every channel to a phone or a trunk, by its UniqueID, which both sources
// know: so their records have one id. Snoop, UnicastRTP, MulticastRTP,
// AudioSocket and WebSocket channels carry a copy of somebody's media; Local,
// Surrogate, Announcer, Recorder, CBAnn, CBRec and Message channels are tools
// inside of Asterisk. They are no legs, and have no record from either source.
//
// What became of a leg is told by the dialstatus of Dial events and by the
// order of events, never by the hangup cause alone: that is 127 for a call
// that its caller cancelled, and 0 for one that nobody answered. AMI's Cdr
// events are of callers only, in whole seconds. The channel event log has every
// leg, with microseconds: it makes records complete through a gap.
//
// # Versions
//
// Built on captures of Asterisk 22.10.1, and tested with that release by
// scripts/test-deps. Source asks for nothing that Asterisk 16 does not know,
// but has not been tried there. Outbound needs 22.
//
// # Modules
//
// res_http_websocket, res_stasis and res_ari with res_ari_applications,
// res_ari_asterisk, res_ari_channels and res_ari_events; for AMI cdr_manager;
// for the log cel_custom and func_strings; func_cdr and func_channel for what
// is asked of channels; for Outbound res_websocket_client. The files in conf/ are all that is added to the
// configuration; RenderConf fills them in.
//
// # Limits
//
//   - One message of ARI: 32 MiB. An event has about 1 kB, and the list of
//     channels that much a channel.
//   - Events that wait to be taken: Config.QueueBytes. At that limit the
//     connection is ended, not thinned, so that a gap is never silent.
//   - One message of AMI: 256 KiB, in lines of at most 16 KiB.
//   - Legs that are remembered while they go on: Config.MaxLegs.
//   - A broken connection is found within ARI.Ping + 4 s, 7 s by default.
//   - ARI prints milliseconds, so that is how fine the times are.
//
// # What cannot be known
//
//   - Asterisk makes no channel, and so no event, of a call to an extension
//     that does not exist, or of one that it does not authenticate.
//   - Asterisk keeps nothing for a Source that is away. A leg that began and
//     ended within the gap is lost to ARI; AMI may tell of its caller, the
//     channel event log tells of it.
//   - The channel event log does not have what was on the wire: no Call-ID, no
//     ringing, no media, and no SIP status where several make one cause.
//   - Of a leg that was answered in a gap, Asterisk is asked when that was. If
//     it ends before it could be asked, the last Dial's own measure is taken,
//     or the answer of its caller's leg; whatever is left, AMI fills in.
//   - RTP loss is as of the last RTCP report, which a call of a few seconds may
//     not have. Asterisk's media experience score is no MOS.
//   - Transfers that replace a channel by another (masquerade) are not captured.
//   - The time zone of AMI's times is worked out from the UniqueID and the
//     event's timestamp, or given by AMI.Location.
//
// # Known bad
//
//   - An application has one listener: a second one takes it, and the first is
//     told so once and then hears nothing on a connection that stays open. Give
//     every event bridge a name of its own.
//   - An event filter holds back everything that it does not name, the answers
//     of an outbound WebSocket and ApplicationReplaced included.
//   - CDR(...) among channelvars logs an error at every new channel.
//   - The client library CyCoreSystems/ari/v5 is used to test the server in
//     asterisktest, not here: its event bus drops what a slow subscriber does not
//     take, its types lack protocol_id and tech_cause, and importing them brings
//     a logger, an error and a protobuf library along.
package asterisk
