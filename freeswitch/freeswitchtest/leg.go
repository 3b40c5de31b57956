package freeswitchtest

import (
	"cmp"
	"strconv"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// profile is a caller profile: the Caller-*, Hunt-* and Other-Leg-* fields.
type profile struct {
	direction, logical       string
	username, cidName, cid   string
	origName, origCID        string
	calleeName, callee       string // empty: not known yet, and the fields are absent
	addr, ani, dest, context string
	uuid, channel            string
	index                    int    // Profile-Index: 1, and one more with every transfer
	rdnis, transferSource    string // of a transferred leg; empty: the fields are absent
	t                        times
	copied                   bool // of an execute_extension: without Profile-Index
}

// times are a channel's, in microseconds since the epoch; 0: did not happen.
type times struct {
	created, answered, progress, progressMedia, hangup, bridged int64

	profile int64 // when the present profile was made; 0: with the channel
}

// appendTo writes the profile with a prefix, in the captured order.
func (p *profile) appendTo(f *fields, prefix string) {
	add := func(name, value string) { f.add(prefix+name, value) }
	at := func(name string, us int64) { f.add(prefix+name, strconv.FormatInt(us, 10)) }
	add("Direction", p.direction)
	add("Logical-Direction", p.logical)
	add("Username", p.username)
	add("Dialplan", "XML")
	add("Caller-ID-Name", p.cidName)
	add("Caller-ID-Number", p.cid)
	add("Orig-Caller-ID-Name", p.origName)
	add("Orig-Caller-ID-Number", p.origCID)
	if p.callee != "" {
		add("Callee-ID-Name", p.calleeName)
		add("Callee-ID-Number", p.callee)
	}
	add("Network-Addr", p.addr)
	add("ANI", p.ani)
	add("Destination-Number", p.dest)
	add("Unique-ID", p.uuid)
	add("Source", "mod_sofia")
	if p.transferSource != "" {
		add("Transfer-Source", p.transferSource)
	}
	add("Context", p.context)
	if p.rdnis != "" {
		add("RDNIS", p.rdnis)
	}
	add("Channel-Name", p.channel)
	if prefix != "Other-Leg-" && !p.copied {
		add("Profile-Index", strconv.Itoa(max(1, p.index)))
	}
	at("Profile-Created-Time", cmp.Or(p.t.profile, p.t.created))
	at("Channel-Created-Time", p.t.created)
	at("Channel-Answered-Time", p.t.answered)
	at("Channel-Progress-Time", p.t.progress)
	at("Channel-Progress-Media-Time", p.t.progressMedia)
	at("Channel-Hangup-Time", p.t.hangup)
	at("Channel-Transfer-Time", 0)
	at("Channel-Resurrect-Time", 0)
	at("Channel-Bridged-Time", p.t.bridged)
	at("Channel-Last-Hold", 0)
	at("Channel-Hold-Accum", 0)
	add("Screen-Bit", "true")
	add("Privacy-Hide-Name", "false")
	add("Privacy-Hide-Number", "false")
}

// leg is one channel. The goroutine of its call owns it; kill may be called
// from anywhere.
type leg struct {
	n        *Node
	uuid     string
	callUUID string
	outbound bool
	session  int // session_id

	state     string // Channel-State
	callState string // Channel-Call-State
	answer    string // Answer-State
	why       cause  // set once it hung up

	prof      profile
	otherType string // originator or originatee; empty: no other leg
	other     profile
	partner   string // uuid of the leg that it is bridged with
	sent      [2]string
	vars      fields
	app, data string
	posted    bool // its call record was taken

	media    *siptest.Media
	codec    siptest.Codec
	hasCodec bool
	mediaUp  bool   // media was negotiated, so that counts are reported
	event    uint8  // telephone-event's payload type; 0: none
	localSDP []byte // sent to the other side, once there is one

	killOnce sync.Once
	killed   chan struct{}
	killWhy  cause // readable once killed is closed
}

func newLeg(n *Node, outbound bool) *leg {
	id := newUUID()
	l := &leg{
		n: n, uuid: id, callUUID: id, outbound: outbound,
		state: "CS_INIT", callState: "DOWN", answer: "ringing", killed: make(chan struct{}),
	}
	l.prof.uuid = id
	l.prof.t.created = nowMicro()
	return l
}

func nowMicro() int64 { return time.Now().UnixMicro() }

// kill asks the call's goroutine to end the call.
func (l *leg) kill(why cause) {
	l.killOnce.Do(func() {
		l.killWhy = why
		close(l.killed)
	})
}

func (l *leg) direction() string {
	if l.outbound {
		return "outbound"
	}
	return "inbound"
}

// value returns a channel variable or a field of the caller profile, as
// ${...} and the field of a condition see it.
func (l *leg) value(name string) string {
	switch name {
	case "destination_number":
		return l.prof.dest
	case "caller_id_name":
		return l.prof.cidName
	case "caller_id_number":
		return l.prof.cid
	case "ani":
		return l.prof.ani
	case "network_addr":
		return l.prof.addr
	case "username":
		return l.prof.username
	case "context":
		return l.prof.context
	case "source":
		return "mod_sofia"
	case "dialplan":
		return "XML"
	}
	if v, ok := l.vars.get(name); ok {
		return v
	}
	return l.n.globals[name]
}

// channelFields are the fields of the channel itself, in the captured order.
// number is Channel-State-Number.
func (l *leg) channelFields(f *fields, number string) {
	f.add("Channel-State", l.state)
	f.add("Channel-Call-State", l.callState)
	f.add("Channel-State-Number", number)
	f.add("Channel-Name", l.prof.channel)
	f.add("Unique-ID", l.uuid)
	f.add("Call-Direction", l.direction())
	f.add("Presence-Call-Direction", l.direction())
	f.add("Channel-HIT-Dialplan", strconv.FormatBool(!l.outbound))
	f.add("Channel-Call-UUID", l.callUUID)
	f.add("Answer-State", l.answer)
	if l.why != "" {
		f.add("Hangup-Cause", string(l.why))
	}
	if l.hasCodec {
		c := l.codec.String()
		f.add("Channel-Read-Codec-Name", c)
		f.add("Channel-Read-Codec-Rate", "8000")
		f.add("Channel-Read-Codec-Bit-Rate", "64000")
		f.add("Channel-Write-Codec-Name", c)
		f.add("Channel-Write-Codec-Rate", "8000")
		f.add("Channel-Write-Codec-Bit-Rate", "64000")
	}
	l.prof.appendTo(f, "Caller-")
	if l.otherType != "" {
		f.add("Other-Type", l.otherType)
		l.other.appendTo(f, "Other-Leg-")
	}
}

func (l *leg) variableFields(f *fields) {
	for i := range l.vars {
		v := l.vars[i]
		v.name = "variable_" + v.name
		*f = append(*f, v)
	}
}

// emit fires a channel event and renews the leg's row of show channels in the
// same moment. first are fields that stand before the channel's own.
func (l *leg) emit(name string, p place, number string, first fields) {
	f := make(fields, 0, len(first)+90+len(l.vars))
	f = append(f, first...)
	l.channelFields(&f, number)
	l.variableFields(&f)
	update := func() { l.n.sessions.show(l.uuid, l.row()) }
	if name == "CHANNEL_DESTROY" {
		update = func() { l.n.sessions.hide(l.uuid) }
	}
	l.n.hub.fire(name, p, f, "", update)
}

// row is the leg as show channels lists it (capture esl/api-during-bridge.txt).
func (l *leg) row() row {
	created := time.UnixMicro(l.prof.t.created)
	account, _ := l.vars.get("accountcode")
	codec, rate, bits := "", "", ""
	if l.hasCodec {
		codec, rate, bits = l.codec.String(), "8000", "64000"
	}
	calleeDir := ""
	if l.prof.callee != "" {
		calleeDir = "SEND"
	}
	var f fields
	for _, c := range [...][2]string{
		{"uuid", l.uuid}, {"direction", l.direction()},
		{"created", created.Local().Format(time.DateTime)}, {"created_epoch", strconv.FormatInt(created.Unix(), 10)},
		{"name", l.prof.channel}, {"state", l.state}, {"cid_name", l.prof.cidName}, {"cid_num", l.prof.cid},
		{"ip_addr", l.prof.addr}, {"dest", l.prof.dest}, {"application", l.app}, {"application_data", l.data},
		{"dialplan", "XML"}, {"context", l.prof.context},
		{"read_codec", codec}, {"read_rate", rate}, {"read_bit_rate", bits},
		{"write_codec", codec}, {"write_rate", rate}, {"write_bit_rate", bits},
		{"secure", ""}, {"hostname", ""}, {"presence_id", ""}, {"presence_data", ""}, {"accountcode", account},
		{"callstate", l.callState}, {"callee_name", l.prof.calleeName}, {"callee_num", l.prof.callee},
		{"callee_direction", calleeDir}, {"call_uuid", l.callUUID},
		{"sent_callee_name", l.sent[0]}, {"sent_callee_num", l.sent[1]},
		{"initial_cid_name", l.prof.cidName}, {"initial_cid_num", l.prof.cid}, {"initial_ip_addr", l.prof.addr},
		{"initial_dest", l.prof.dest}, {"initial_dialplan", "XML"}, {"initial_context", l.prof.context},
	} {
		f.add(c[0], c[1])
	}
	return row{fields: f, partner: l.partner}
}
