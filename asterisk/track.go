package asterisk

import (
	"cmp"
	"strconv"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

// maxUnsure bounds the legs that wait for their caller to tell more.
const maxUnsure = 32

// leg is what is known of a channel that is a call leg.
type leg struct {
	record  cdr.Record
	up      bool          // it was answered, perhaps before we listened
	status  string        // dialstatus of the Dial that made it, last word
	dialled string        // dialstatus of the last Dial that it made
	source  string        // CHANNEL(hangupsource)
	talked  time.Duration // ANSWEREDTIME_MS of the last Dial that it made
	format  string        // CHANNEL(audionativeformat); what was offered, until the leg is up
	name    string
	whole   bool // its end will be heard, since it was there when we began to listen or later

	unsure []cdr.Record // legs that it dialled, closed without the time of their answer

	hung     time.Time // first hangup request of its far end
	hungCode int       // its SIP status

	told   [4]string // what the last event that was emitted said
	listed int       // the listing that it was last seen in
}

// tracker makes call events of ARI events. It belongs to one goroutine. Its
// legs outlive a connection, so that a leg that goes on through a gap keeps
// what was known of it.
type tracker struct {
	identity
	legs    map[string]*leg
	maxLegs int
	listing int                 // counts seeds
	ended   map[string]struct{} // legs that ended on a connection before its seed; nil after it

	untracked int // legs that were not remembered, because maxLegs were
}

func newTracker(id identity, maxLegs int) *tracker {
	return &tracker{identity: id, legs: map[string]*leg{}, maxLegs: maxLegs}
}

// apply takes one event and emits what it tells of call legs.
func (t *tracker) apply(e *event, emit func(cdr.Event)) {
	at := moment(e.Timestamp)
	switch e.Type {
	case typeCreated:
		if l := t.of(e, e.Channel, at); l != nil {
			t.answer(l, e.Channel, at)
			t.tell(l, cdr.Opened, at, emit)
		}
	case typeState:
		if l := t.of(e, e.Channel, at); l != nil {
			if e.Channel.State == "Ringing" && !l.up && l.record.Ring.IsZero() {
				l.record.Ring = at
			}
			if l.record.Answer.IsZero() {
				l.up = false // a list may have been faster than the event
			}
			if t.answer(l, e.Channel, at) {
				t.tell(l, cdr.Answered, at, emit)
			}
		}
	case typeDial:
		t.dial(e, at, emit)
	case typeVarset:
		if l := t.of(e, e.Channel, at); l != nil {
			t.variable(l, e.Variable, e.Value, false)
		}
	case typeHangup:
		if l := t.of(e, e.Channel, at); l != nil && !e.Soft && l.hung.IsZero() {
			l.hung, l.hungCode = at, e.TechCause
		}
	case typeDestroyed:
		if l := t.of(e, e.Channel, at); l != nil {
			delete(t.legs, l.record.Leg)
			if t.ended != nil {
				t.ended[l.record.Leg] = struct{}{}
			}
			r := t.close(l, e, at)
			emit(cdr.Event{Type: cdr.Closed, Time: at, Record: r})
			for _, callee := range l.unsure {
				if guess(&callee, l, &r) {
					emit(cdr.Event{Type: cdr.Closed, Time: at, Record: callee})
				}
			}
		}
	}
}

// of is see for a channel of an event of the time at, whose values that are none
// it keeps.
func (t *tracker) of(e *event, ch *channel, at time.Time) *leg {
	l := t.see(ch, e.Type == typeCreated)
	if l == nil {
		return nil
	}
	if e.Timestamp != "" && at.IsZero() {
		setBad(&l.record, "time", e.Timestamp)
	}
	if e.Type == typeDestroyed && (e.Cause < 0 || e.Cause > 127) {
		setBad(&l.record, "q850", strconv.Itoa(e.Cause))
	}
	if !e.Soft && (e.TechCause < 0 || e.TechCause > 699) {
		setBad(&l.record, "sip_code", strconv.Itoa(e.TechCause))
	}
	return l
}

// see returns the leg of a channel and takes from the channel what it tells;
// nil if the channel is no leg. created: the channel has just begun.
func (t *tracker) see(ch *channel, created bool) *leg {
	if ch == nil || ch.ID == "" || len(ch.ID) > maxName {
		return nil
	}
	l := t.legs[ch.ID]
	if l == nil {
		if !isLeg(ch.Name) {
			return nil
		}
		l = t.begin(ch, created)
	}
	r := &l.record
	l.name = cmp.Or(ch.Name, l.name)
	r.SIPCallID = cmp.Or(text(ch.ProtocolID), r.SIPCallID)
	if r.Direction == cdr.Outbound { // a Dial event says it better, if it is heard
		r.Caller, r.Callee = text(cmp.Or(r.Caller, ch.Connected.Number)), text(cmp.Or(r.Callee, ch.Caller.Number))
	}
	setAttr(r, "account_code", ch.AccountCode)
	for name, value := range ch.Vars {
		t.variable(l, name, value, true)
	}
	return l
}

func (t *tracker) begin(ch *channel, created bool) *leg {
	l := &leg{record: t.blank(ch.ID, cdr.SourceARI), whole: created, listed: t.listing}
	r := &l.record
	if r.Start = moment(ch.Created); r.Start.IsZero() && ch.Created != "" {
		setBad(r, "start", ch.Created)
	}
	switch {
	case ch.Dialplan.App == "AppDial" || ch.Dialplan.App == "AppDial2":
		r.Direction = cdr.Outbound
	case ch.State == "Ring", ch.Vars[varDomain] != "": // chan_pjsip sets it for callers only
		r.Direction = cdr.Inbound
	case ch.State == "Up" && !created:
		// It may have called us or been called: nothing tells any more.
	default:
		r.Direction = cdr.Outbound
	}
	if r.Direction == cdr.Outbound {
		r.Caller, r.Callee = text(ch.Connected.Number), text(ch.Caller.Number)
	} else {
		r.Caller, r.Callee = text(ch.Caller.Number), text(ch.Dialplan.Exten)
	}
	l.up = ch.State == "Up" && !created
	setAttr(r, "context", ch.Dialplan.Context)
	setAttr(r, "endpoint", endpoint(ch.Name))
	if len(t.legs) >= t.maxLegs {
		t.untracked++
		return l
	}
	t.legs[ch.ID] = l
	return l
}

// variable takes one channel variable. named: channelvars names it, so that it
// may be meant for a rule.
func (t *tracker) variable(l *leg, name, value string, named bool) {
	if value == "" {
		return
	}
	r := &l.record
	switch name {
	case varLinkedID:
		if len(value) <= maxName {
			r.Call = text(value)
		}
	case varHangupSource:
		l.source = value
	case varDialStatus:
		l.dialled = value
	case varTalked:
		if ms, err := strconv.ParseUint(value, 10, 40); err == nil {
			l.talked = time.Duration(ms) * time.Millisecond
		} else {
			setBad(r, "talked", value)
		}
	case varDomain:
		setAttr(r, "domain", value)
	case varQuality:
		setQuality(r, value)
	case varFormat:
		l.format = value
	case t.tenantVar:
		setTenant(r, value)
	default:
		if named {
			setAttr(r, cdr.AttrVar+name, value)
		}
	}
}

// answer notes that the channel is up, and tells whether that is news.
func (t *tracker) answer(l *leg, ch *channel, at time.Time) bool {
	if l.up || ch.State != "Up" {
		return false
	}
	l.up = true
	l.record.Answer = at
	return true
}

// dial takes a Dial event: it says what became of an attempt, and joins the
// legs where linkedid is not among the channelvars.
func (t *tracker) dial(e *event, at time.Time, emit func(cdr.Event)) {
	caller, peer := t.of(e, e.Caller, at), t.of(e, e.Peer, at)
	ringing := e.DialStatus == "RINGING" || e.DialStatus == "PROGRESS"
	if caller != nil {
		switch {
		case ringing && !caller.up && caller.record.Ring.IsZero():
			caller.record.Ring = at
		case e.DialStatus != "" && !ringing:
			caller.dialled = e.DialStatus
		}
	}
	if peer != nil {
		t.peer(peer, caller, e)
		switch {
		case ringing && !peer.up && peer.record.Ring.IsZero():
			peer.record.Ring = at
		case e.DialStatus != "" && !ringing:
			peer.status = e.DialStatus
		}
	}
	for _, side := range []struct {
		*leg
		*channel
	}{{peer, e.Peer}, {caller, e.Caller}} {
		switch {
		case side.leg == nil:
		case t.answer(side.leg, side.channel, at):
			t.tell(side.leg, cdr.Answered, at, emit)
		case side.leg.told != side.leg.summary():
			t.tell(side.leg, cdr.Opened, at, emit)
		}
	}
}

// peer takes what a Dial event says of the leg that is dialled.
func (t *tracker) peer(l, caller *leg, e *event) {
	r := &l.record
	r.Direction = cdr.Outbound
	if e.DialStatus == "" || r.Callee == "" {
		r.Callee = text(cmp.Or(dialled(e.DialString), e.Peer.Caller.Number, r.Callee, e.DialString))
	}
	r.Caller = text(cmp.Or(r.Caller, e.Peer.Connected.Number))
	if caller == nil {
		return
	}
	if r.Call == r.Leg {
		r.Call = caller.record.Call
	}
	// A trunk that tenants share names none: the leg is the caller's.
	r.Tenant = cmp.Or(r.Tenant, caller.record.Tenant)
}

// summary is what a record of a leg that ends unseen should have.
func (l *leg) summary() [4]string {
	return [4]string{string(l.record.Tenant), l.record.Callee, l.record.SIPCallID, l.record.Call}
}

func (t *tracker) tell(l *leg, typ cdr.EventType, at time.Time, emit func(cdr.Event)) {
	l.told = l.summary()
	emit(cdr.Event{Type: typ, Time: at, Record: l.copy()})
}

// copy returns the record as it is now.
func (l *leg) copy() cdr.Record {
	r := l.record
	if r.Attrs != nil {
		attrs := make(map[string]string, len(r.Attrs))
		for k, v := range r.Attrs {
			attrs[k] = v
		}
		r.Attrs = attrs
	}
	return r
}

// close is the whole record of a leg that has ended.
func (t *tracker) close(l *leg, e *event, at time.Time) cdr.Record {
	r := l.copy()
	r.End = at
	byPeer := !l.hung.IsZero()
	if byPeer {
		r.End = l.hung
	}
	if e.Cause > 0 && e.Cause < 128 {
		r.Q850 = e.Cause
	}
	switch {
	case byPeer || l.source != "" && l.source == l.name:
		r.HangupBy = cdr.HangupPeer
	case l.whole || l.source != "":
		r.HangupBy = cdr.HangupSwitch
	}
	if l.up || e.Channel.State == "Up" {
		r.SIPCode, r.Cause, r.Codec = 200, text(e.CauseText), codec(l.format)
		t.guessAnswer(l, &r)
		return r
	}
	if r.Direction == cdr.Outbound {
		r.Cause = text(cmp.Or(l.status, e.CauseText))
		r.SIPCode = l.refusal(e, byPeer)
	} else {
		r.Cause = text(cmp.Or(l.dialled, e.CauseText))
		r.SIPCode = l.sent(e, byPeer)
		if byPeer && r.SIPCode == 487 {
			r.Cause = "CANCEL"
		}
	}
	return r
}

// guessAnswer is for a leg that was answered in a gap and ended before it
// could be asked when: a caller's last Dial has measured it, and a leg that
// was dialled was answered some milliseconds before its caller. If its caller
// does not know yet, the leg is closed once more when that ends: cdr.Merge
// joins both.
func (t *tracker) guessAnswer(l *leg, r *cdr.Record) {
	if !r.Answer.IsZero() {
		return
	}
	caller := t.legs[r.Call]
	if caller == nil {
		caller = l
	}
	if !guess(r, caller, &caller.record) && caller != l && len(caller.unsure) < maxUnsure {
		caller.unsure = append(caller.unsure, *r)
	}
}

// guess takes the answer of a leg from what its caller's leg knows, if that is
// within the leg's life.
func guess(r *cdr.Record, caller *leg, known *cdr.Record) bool {
	at := known.Answer
	if at.IsZero() && caller.talked > 0 {
		end := known.End
		if end.IsZero() {
			end = r.End
		}
		at = end.Add(-caller.talked)
	}
	if at.IsZero() || at.Before(r.Start) || at.After(r.End) {
		return false
	}
	// It is worked out, not heard: a log that has it to the microsecond knows better.
	r.Answer = at
	r.Prov = map[cdr.Source]cdr.Fields{cdr.SourceReconciled: cdr.FieldAnswer}
	return true
}

// refusal is the final status of the INVITE of a leg that was dialled and not
// answered: what its far end said, or 487 when the switch gave it up. The
// tech_cause of ChannelDestroyed will not do for the latter: it is what the
// switch made of its own cause.
func (l *leg) refusal(e *event, byPeer bool) int {
	if !byPeer {
		return 487
	}
	for _, code := range []int{l.hungCode, e.TechCause} {
		if finalStatus(code) {
			return code
		}
	}
	return statusOf(e.Cause)
}

// sent is the final status that the switch sent to a caller that it did not
// answer.
func (l *leg) sent(e *event, byPeer bool) int {
	switch {
	case byPeer && finalStatus(l.hungCode):
		return l.hungCode
	case byPeer:
		return 487
	case finalStatus(e.TechCause):
		return e.TechCause
	}
	return statusOf(e.Cause)
}

// open says that a connection begins, whose events may come before its seed.
func (t *tracker) open() { t.ended = map[string]struct{}{} }

// seed takes the list of live channels of a new connection. It returns the
// names of the legs among them, what is known of each, and those whose answer
// was not heard. Legs of earlier connections that are in no list any more are
// forgotten with the next seed, since their end may still be on its way.
func (t *tracker) seed(list []channel) (live []string, found []cdr.Record, unanswered []*leg) {
	for id, l := range t.legs {
		if l.listed < t.listing {
			delete(t.legs, id)
		}
		l.whole = false
	}
	t.listing++
	ended := t.ended
	t.ended = nil
	for i := range list {
		ch := &list[i]
		if _, gone := ended[ch.ID]; gone || !isLeg(ch.Name) {
			continue
		}
		l := t.see(ch, false)
		if l == nil {
			continue
		}
		l.listed, l.whole = t.listing, true // its end is still to come
		if ch.State == "Up" {
			l.up = true
			if l.record.Answer.IsZero() {
				unanswered = append(unanswered, l)
			}
		}
		live = append(live, ch.ID)
	}
	for _, id := range live {
		if l := t.legs[id]; l != nil {
			r := l.copy()
			r.Source = cdr.SourceReconciled
			found = append(found, r)
		}
	}
	return live, found, unanswered
}
