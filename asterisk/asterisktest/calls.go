package asterisktest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Kind is what becomes of a generated call; each is that of a capture.
type Kind string

// The kinds of call.
const (
	Answered    Kind = "answered"    // ari-01: the caller hangs up
	Busy        Kind = "busy"        // ari-02
	Cancelled   Kind = "cancelled"   // ari-03
	NoAnswer    Kind = "no answer"   // ari-04
	Unavailable Kind = "unavailable" // ari-05: no leg to anybody
	ByDialplan  Kind = "by dialplan" // ari-10: answered by the dialplan, which hangs up
)

// kinds are drawn with these weights.
var kinds = []struct {
	Kind
	weight int
}{{Answered, 60}, {ByDialplan, 15}, {Busy, 10}, {Cancelled, 5}, {NoAnswer, 5}, {Unavailable, 5}}

// Tenants are whose calls a Load makes; the account code of a channel is the
// tenant of its call.
var Tenants = []string{"acme", "globex", "initech"}

// Load says what calls to generate.
type Load struct {
	Calls int
	Rate  float64 // calls a second; 0: as fast as it goes
	// Ring and Talk are the longest times of ringing and of talking; each call
	// draws its own.
	Ring, Talk time.Duration
	Seed       uint64 // of what is drawn: the same seed gives the same calls
	// Ledger gets every leg once it has ended. It is called from many
	// goroutines, one call at a time, and before the events of the end are sent.
	Ledger func(Leg)
}

// Leg is a call leg as it was: what its record must say.
type Leg struct {
	Leg     string    `json:"leg"`
	Call    string    `json:"call"`
	Kind    Kind      `json:"kind"`
	Tenant  string    `json:"tenant"`
	Caller  string    `json:"caller"`
	Callee  string    `json:"callee"`
	Inbound bool      `json:"inbound"`
	SIPCode int       `json:"sip_code"`
	Start   time.Time `json:"start"`
	Answer  time.Time `json:"answer,omitzero"`
	End     time.Time `json:"end"`
	Lost    bool      `json:"lost,omitempty"` // it ended with a crash: nobody was told
}

// generator makes the calls of one Load.
type generator struct {
	*Server
	load Load
	mu   sync.Mutex // of Ledger
}

// Generate makes calls and returns when the last one has ended, or ctx has.
func (s *Server) Generate(ctx context.Context, load Load) error {
	g := &generator{Server: s, load: load}
	draw := rand.New(rand.NewPCG(load.Seed, load.Seed))
	var wg sync.WaitGroup
	defer wg.Wait()
	begin := time.Now()
	for i := range load.Calls {
		if load.Rate > 0 {
			at := begin.Add(time.Duration(float64(i) / load.Rate * float64(time.Second)))
			if !pause(ctx, time.Until(at)) {
				return ctx.Err()
			}
		}
		c := g.draw(draw, i)
		wg.Go(func() { g.run(ctx, c) })
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// call is one call and its two channels.
type call struct {
	kind           Kind
	tenant         string
	caller, callee string
	ring, talk     time.Duration

	epoch int
	a, b  *channelState
	legA  Leg
	legB  Leg
}

func (g *generator) draw(r *rand.Rand, i int) *call {
	c := &call{tenant: Tenants[r.IntN(len(Tenants))], caller: fmt.Sprint(1000 + r.IntN(1000)), callee: fmt.Sprint(2000 + r.IntN(1000))}
	n := r.IntN(100)
	for _, k := range kinds {
		if n -= k.weight; n < 0 {
			c.kind = k.Kind
			break
		}
	}
	within := func(d time.Duration) time.Duration {
		if d <= 0 {
			return 0
		}
		return time.Duration(r.Int64N(int64(d)))
	}
	c.ring, c.talk = within(g.load.Ring), within(g.load.Talk)
	return c
}

// clock is the time of an event, in milliseconds as ARI prints it.
func clock() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// run plays one call.
func (g *generator) run(ctx context.Context, c *call) {
	steps := []func(*call){g.begin}
	waits := []time.Duration{0}
	then := func(wait time.Duration, f func(*call)) { waits, steps = append(waits, wait), append(steps, f) }
	switch c.kind {
	case Unavailable:
		then(0, g.unavailable)
	case ByDialplan:
		then(0, g.answerA)
		then(c.talk, g.dialplanEnds)
	case Busy:
		then(0, g.dial)
		then(0, g.busy)
	case Cancelled:
		then(0, g.dial)
		then(0, g.ringing)
		then(c.ring, g.cancel)
	case NoAnswer:
		then(0, g.dial)
		then(0, g.ringing)
		then(c.ring, g.timeout)
	default:
		then(0, g.dial)
		then(0, g.ringing)
		then(c.ring, g.answerBoth)
		then(c.talk, g.callerEnds)
	}
	for i, step := range steps {
		pause(ctx, waits[i]) // a load that is called off ends its calls at once
		g.Server.mu.Lock()
		lost := i > 0 && c.epoch != g.epoch
		if !lost {
			step(c)
		}
		g.Server.mu.Unlock()
		if lost {
			g.lose(c)
			return
		}
	}
}

// lose writes down the legs of a call that a crash has ended.
func (g *generator) lose(c *call) {
	c.legA.Lost, c.legB.Lost = true, true
	if c.b != nil && c.legB.End.IsZero() {
		g.write(c.legB)
	}
	g.write(c.legA)
}

func (g *generator) write(l Leg) {
	if g.load.Ledger == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.load.Ledger(l)
}

// channel makes a channel. The server's lock is held, as in all that follows.
func (g *generator) channel(endpoint, state, linked, tenant string, now time.Time) *channelState {
	id := fmt.Sprintf("%d.%d", now.Unix(), g.sequence)
	if g.cfg.Name != "" {
		id = g.cfg.Name + "-" + id
	}
	ch := &channelState{channelObject: channelObject{
		ID: id, Name: fmt.Sprintf("PJSIP/%s-%08x", endpoint, g.sequence), State: state, Account: tenant,
		Dialplan: dialplanObject{Context: "tenant-" + tenant, Priority: 1}, Created: stamp(now), Language: "en",
		Vars: map[string]string{"TENANT": "", "DIALSTATUS": "", "ANSWEREDTIME_MS": "", "SIPDOMAIN": "", "RTPAUDIOQOS": "", "CHANNEL(hangupsource)": "", "CHANNEL(audionativeformat)": "(ulaw)"},
	}}
	g.sequence++
	if linked == "" {
		linked = id
	}
	ch.Vars["CHANNEL(linkedid)"] = linked
	g.channels[id] = ch
	return ch
}

func (g *generator) event(typ string, ch *channelState, now time.Time) *eventObject {
	return &eventObject{Type: typ, Timestamp: stamp(now), Channel: copyOf(&ch.channelObject)}
}

// begin is the caller's INVITE. Its variables and Call-ID come with later events.
func (g *generator) begin(c *call) {
	now := clock()
	c.epoch = g.epoch
	c.a = g.channel(c.tenant+"-"+c.caller, "Ring", "", c.tenant, now)
	c.a.Caller.Number, c.a.Dialplan.Exten = c.caller, c.callee
	g.cel("CHAN_START", c.a, "", now)
	g.publish(g.event("ChannelCreated", c.a, now))
	c.a.ProtocolID = c.a.ID + "@phone"
	c.a.Vars["TENANT"], c.a.Vars["SIPDOMAIN"] = c.tenant, "127.0.0.1"
	c.legA = Leg{Leg: c.a.ID, Call: c.a.ID, Kind: c.kind, Tenant: c.tenant, Caller: c.caller, Callee: c.callee, Inbound: true, Start: now}
}

func (g *generator) dial(c *call) {
	now := clock()
	c.a.Dialplan.App, c.a.Dialplan.AppData = "Dial", "PJSIP/"+c.tenant+"-"+c.callee
	c.b = g.channel(c.tenant+"-"+c.callee, "Down", c.a.ID, c.tenant, now)
	c.b.Dialplan.Exten = "s"
	g.cel("CHAN_START", c.b, "", now)
	g.publish(g.event("ChannelCreated", c.b, now))
	c.b.ProtocolID = c.b.ID + "@asterisk"
	c.b.Vars["TENANT"] = c.tenant
	c.b.Caller.Number, c.b.Connected.Number = c.callee, c.caller
	c.b.Dialplan.Exten, c.b.Dialplan.App, c.b.Dialplan.AppData = c.callee, "AppDial", "(Outgoing Line)"
	c.legB = Leg{Leg: c.b.ID, Call: c.a.ID, Kind: c.kind, Tenant: c.tenant, Caller: c.caller, Callee: c.callee, Start: now}
	g.dialEvent(c, "", now)
	c.a.Connected.Number = c.callee
}

// dialEvent says how the Dial stands. The caller's DIALSTATUS follows at its end.
func (g *generator) dialEvent(c *call, status string, now time.Time) {
	dialString, none := "", ""
	if status == "" {
		dialString = c.tenant + "-" + c.callee
	}
	g.publish(&eventObject{Type: "Dial", Timestamp: stamp(now), DialStatus: &status, Forward: &none, DialString: &dialString,
		Caller: copyOf(&c.a.channelObject), Peer: copyOf(&c.b.channelObject)})
	if status != "" && status != "RINGING" {
		c.a.Vars["DIALSTATUS"] = status
	}
}

func (g *generator) ringing(c *call) {
	now := clock()
	c.b.State = "Ringing"
	g.publish(g.event("ChannelStateChange", c.b, now))
	g.dialEvent(c, "RINGING", now)
}

func (g *generator) up(ch *channelState, l *Leg, now time.Time) {
	ch.State, ch.answered, l.Answer = "Up", now, now
	g.cel("ANSWER", ch, "", now)
	g.publish(g.event("ChannelStateChange", ch, now))
}

func (g *generator) answerA(c *call) { g.up(c.a, &c.legA, clock()) }

func (g *generator) answerBoth(c *call) {
	now := clock()
	g.up(c.b, &c.legB, now)
	g.dialEvent(c, "ANSWER", now)
	g.up(c.a, &c.legA, now)
}

// hangup is a ChannelHangupRequest: of the far end, or soft, where 16 is a
// flag of Asterisk's own.
func (g *generator) hangup(ch *channelState, soft bool, cause, tech int, now time.Time) {
	e := g.event("ChannelHangupRequest", ch, now)
	e.Cause, e.Soft, e.TechCause = &cause, soft, tech
	g.publish(e)
}

// destroy ends a channel: it goes from the list, then its event is sent.
func (g *generator) destroy(ch *channelState, l *Leg, code, cause, tech int, causeText string, end, now time.Time) {
	l.SIPCode, l.End = code, end
	g.write(*l)
	if !l.Answer.IsZero() {
		n := int(end.Sub(l.Answer) / (20 * time.Millisecond))
		ch.Vars["RTPAUDIOQOS"] = fmt.Sprintf("ssrc=1;themssrc=2;lp=0;rxjitter=0.000000;rxcount=%d;txjitter=0.000125;txcount=%d;rlp=0;rtt=0.000000;rxmes=0.000000;txmes=0.000000", n, n)
	}
	delete(g.channels, ch.ID)
	g.cel("HANGUP", ch, hangupExtra(ch, cause), now)
	e := g.event("ChannelDestroyed", ch, now)
	e.Cause, e.CauseText, e.TechCause = &cause, causeText, tech
	g.publish(e)
}

// end sends the caller's CDRs.
func (g *generator) end(c *call, disposition, lastApp string, now time.Time) {
	row := cdrRow{
		account: c.tenant, source: c.caller, destination: c.callee, context: "tenant-" + c.tenant,
		channel: c.a.Name, lastApp: lastApp, start: c.legA.Start, answer: c.legA.Answer, end: c.legA.End,
		disposition: disposition, uniqueID: c.a.ID, linkedID: c.a.ID, tenant: c.tenant,
	}
	if c.b != nil {
		row.peer = c.b.Name
	}
	rows := []cdrRow{row}
	if c.kind == Busy || c.kind == NoAnswer { // one more for the line after the Dial
		row.peer, row.lastApp, row.start = "", "Hangup", row.end
		rows = append(rows, row)
	}
	g.row(rows, now)
}

func (g *generator) callerEnds(c *call) {
	now := clock()
	g.hangup(c.a, false, 16, 0, now)
	c.a.Vars["CHANNEL(hangupsource)"], c.b.Vars["CHANNEL(hangupsource)"] = c.a.Name, c.a.Name
	c.a.Vars["ANSWEREDTIME_MS"] = fmt.Sprint(now.Sub(c.legA.Answer).Milliseconds())
	g.hangup(c.a, true, 16, 0, now)
	g.destroy(c.b, &c.legB, 200, 16, 0, "Normal Clearing", now, now)
	g.destroy(c.a, &c.legA, 200, 16, 0, "Normal Clearing", now, now)
	g.end(c, "ANSWERED", "Dial", now)
}

func (g *generator) dialplanEnds(c *call) {
	now := clock()
	g.hangup(c.a, true, 16, 0, now)
	c.a.Vars["CHANNEL(hangupsource)"] = "dialplan/builtin"
	g.destroy(c.a, &c.legA, 200, 16, 0, "Normal Clearing", now, now)
	g.end(c, "ANSWERED", "Hangup", now)
}

func (g *generator) busy(c *call) {
	now := clock()
	g.hangup(c.b, false, 17, 486, now)
	c.b.Vars["CHANNEL(hangupsource)"] = c.b.Name
	g.dialEvent(c, "BUSY", now)
	g.destroy(c.b, &c.legB, 486, 17, 486, "User busy", now, now)
	g.hangup(c.a, true, 16, 0, now)
	c.a.Vars["CHANNEL(hangupsource)"] = "dialplan/builtin"
	g.destroy(c.a, &c.legA, 486, 17, 486, "User busy", now, now)
	g.end(c, "BUSY", "Dial", now)
}

func (g *generator) cancel(c *call) {
	now := clock()
	g.hangup(c.a, false, 127, 487, now)
	c.a.Vars["CHANNEL(hangupsource)"] = c.a.Name
	g.dialEvent(c, "CANCEL", now)
	g.hangup(c.a, true, 16, 487, now)
	g.destroy(c.b, &c.legB, 487, 127, 500, "Interworking, unspecified", now, now)
	g.destroy(c.a, &c.legA, 487, 127, 487, "Interworking, unspecified", now, now)
	g.end(c, "NO ANSWER", "Dial", now)
}

func (g *generator) timeout(c *call) {
	now := clock()
	g.dialEvent(c, "NOANSWER", now)
	g.destroy(c.b, &c.legB, 487, 0, 0, "Unknown", now, now)
	g.hangup(c.a, true, 16, 0, now)
	c.a.Vars["CHANNEL(hangupsource)"] = "dialplan/builtin"
	g.destroy(c.a, &c.legA, 603, 16, 0, "Normal Clearing", now, now)
	g.end(c, "NO ANSWER", "Dial", now)
}

func (g *generator) unavailable(c *call) {
	now := clock()
	c.a.Vars["DIALSTATUS"] = "CHANUNAVAIL"
	g.hangup(c.a, true, 16, 0, now)
	c.a.Vars["CHANNEL(hangupsource)"] = "dialplan/builtin"
	g.destroy(c.a, &c.legA, 404, 3, 404, "No route to destination", now, now)
	g.end(c, "FAILED", "Dial", now)
}
