package asterisk_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// source is what eventbridge asks of a source.
type source interface {
	Run(ctx context.Context, emit func(cdr.Event)) error
	Close()
}

// ear hears a source and keeps what it emits, over any number of Runs.
type ear struct {
	t      testing.TB
	source source

	mu     sync.Mutex
	events []cdr.Event
	change chan struct{} // closed at each event

	cancel context.CancelFunc
	done   chan error
}

func listen(t testing.TB, s source) *ear {
	e := &ear{t: t, source: s, change: make(chan struct{})}
	t.Cleanup(func() {
		e.stop()
		s.Close()
	})
	return e
}

// start begins a Run and waits for Connected, which it returns.
func (e *ear) start() cdr.Event {
	e.t.Helper()
	e.mu.Lock()
	from := len(e.events)
	e.mu.Unlock()
	for try := range 20 { // as a bridge does
		e.begin()
		got := make(chan cdr.Event, 1)
		select {
		case err := <-e.connected(from, got):
			e.cancel()
			e.cancel = nil
			e.t.Logf("Run %d: %v", try, err)
		case ev := <-got:
			return ev
		case <-time.After(15 * time.Second):
			e.t.Fatal("not connected within 15 s")
		}
	}
	e.t.Fatal("Run fails again and again")
	return cdr.Event{}
}

// connected sends the first Connected event to got; it returns where the Run's
// error comes.
func (e *ear) connected(from int, got chan<- cdr.Event) <-chan error {
	failed := make(chan error, 1)
	go func() {
		for {
			e.mu.Lock()
			ev, ok := find(e.events[from:], cdr.Connected, "")
			change := e.change
			e.mu.Unlock()
			if ok {
				got <- ev
				return
			}
			select {
			case <-change:
			case err := <-e.done:
				e.done <- err // for ended
				failed <- err
				return
			}
		}
	}()
	return failed
}

func (e *ear) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	e.cancel, e.done = cancel, done
	go func() { done <- e.source.Run(ctx, e.emit) }()
}

func (e *ear) emit(ev cdr.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, ev)
	close(e.change)
	e.change = make(chan struct{})
}

// stop ends the Run, which must say that that was all.
func (e *ear) stop() {
	if e.cancel == nil {
		return
	}
	e.cancel()
	if err := e.ended(); err != nil {
		e.t.Errorf("Run = %v after its context ended", err)
	}
}

// ended waits for the Run to end by itself and returns its error.
func (e *ear) ended() error {
	e.t.Helper()
	select {
	case err := <-e.done:
		e.cancel()
		e.cancel = nil
		return err
	case <-time.After(15 * time.Second):
		e.t.Fatal("Run does not return")
		return nil
	}
}

func find(evs []cdr.Event, typ cdr.EventType, leg string) (cdr.Event, bool) {
	for _, ev := range evs {
		if ev.Type == typ && (leg == "" || ev.Record.Leg == leg) {
			return ev, true
		}
	}
	return cdr.Event{}, false
}

// wait waits until f finds something among the events.
func (e *ear) wait(what string, f func([]cdr.Event) (cdr.Event, bool)) cdr.Event {
	e.t.Helper()
	deadline := time.After(15 * time.Second)
	for {
		e.mu.Lock()
		evs, change := slices.Clone(e.events), e.change
		e.mu.Unlock()
		if ev, ok := f(evs); ok {
			return ev
		}
		select {
		case <-change:
		case <-deadline:
			e.t.Fatalf("no %s within 15 s", what)
		}
	}
}

// bySIP waits for the record of the leg with the Call-ID, closed.
func (e *ear) bySIP(callID string) cdr.Record {
	e.t.Helper()
	return e.wait("record of call "+callID, func(evs []cdr.Event) (cdr.Event, bool) {
		for _, ev := range evs {
			if ev.Type == cdr.Closed && ev.Record.SIPCallID == callID {
				return ev, true
			}
		}
		return cdr.Event{}, false
	}).Record
}

// joined merges everything that was closed: one record a leg.
func (e *ear) joined() map[string]cdr.Record {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[string]cdr.Record{}
	for _, ev := range e.events {
		if ev.Type != cdr.Closed {
			continue
		}
		r := ev.Record
		if old, ok := out[r.ID.String()]; ok {
			r = cdr.Merge(old, r)
		}
		out[r.ID.String()] = r
	}
	return out
}

// lab is an Asterisk with phones around it.
type lab struct {
	*asterisktest.Daemon
	t       testing.TB
	callees *siptest.Phones

	mu    sync.Mutex
	calls map[string]*siptest.Call // that callees answered, by Call-ID
}

// newLab starts phones, and an Asterisk that calls them: 1001 answers after
// 200 ms, 1002 is busy, 1003 rings for ever, 1004 declines, 1005 answers and
// hangs up after a second. 1999 rings for ever too.
func newLab(t testing.TB, opts asterisktest.Options) *lab {
	t.Helper()
	asterisktest.Need(t)
	l := &lab{t: t, calls: map[string]*siptest.Call{}}
	l.callees = l.group("127.0.9.1:0")
	_, err := l.callees.Add(siptest.PhoneConfig{User: "*", Domain: "phones", OnInvite: func(in *siptest.Incoming) siptest.Behaviour {
		switch in.Request().Recipient.User {
		case "1002":
			return siptest.Behaviour{Code: 486}
		case "1003", "1999":
			return siptest.Behaviour{Delay: time.Minute}
		case "1004":
			return siptest.Behaviour{Code: 603, Delay: 100 * time.Millisecond}
		case "1005":
			return siptest.Behaviour{Delay: 100 * time.Millisecond, Talk: time.Second}
		}
		return siptest.Behaviour{Delay: 200 * time.Millisecond}
	}, OnCall: func(c *siptest.Call) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.calls[c.ID()] = c
	}})
	if err != nil {
		t.Fatal(err)
	}
	opts.Phones = l.callees.Addr()
	l.Daemon = asterisktest.Start(t, opts)
	return l
}

func (l *lab) group(listen string) *siptest.Phones {
	l.t.Helper()
	g, err := siptest.NewPhones(siptest.PhonesConfig{Listen: listen})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := g.Close(); err != nil {
			l.t.Error(err)
		}
	})
	return g
}

// phone is a phone of a tenant: acme at 127.0.1.1, globex at 127.0.2.1, or nobody's.
func (l *lab) phone(ip, user string) *siptest.Phone {
	l.t.Helper()
	p, err := l.group(netip.MustParseAddr(ip).String() + ":0").Add(siptest.PhoneConfig{User: user, Domain: l.SIP.String()})
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// answered returns the callee's side of a call.
func (l *lab) answered(callID string) *siptest.Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls[callID]
}

// attempt is a call as its phones saw it.
type attempt struct {
	name, from, number string
	cancelAfter        time.Duration // before the answer
	talk               time.Duration // then the caller hangs up; 0: the other side does

	callID     string
	code       int // final status that the caller got
	start, end time.Time
	answer     time.Time
	call       *siptest.Call
}

func (l *lab) call(ctx context.Context, p *siptest.Phone, a *attempt) error {
	a.callID = fmt.Sprintf("call-%s-%d", a.name, time.Now().UnixNano())
	dial, cancel := context.WithCancel(ctx)
	defer cancel()
	if a.cancelAfter > 0 {
		defer time.AfterFunc(a.cancelAfter, cancel).Stop()
	}
	a.start = time.Now()
	c, err := p.Dial(dial, a.number, siptest.DialOptions{CallID: a.callID})
	if refused := (*siptest.StatusError)(nil); errors.As(err, &refused) {
		a.code, a.end = refused.Code, time.Now()
		return nil
	}
	if err != nil {
		a.code, a.end = 487, time.Now()
		if a.cancelAfter == 0 {
			return err
		}
		return nil
	}
	a.call, a.code, a.answer = c, 200, time.Now()
	if a.talk > 0 {
		timer := time.NewTimer(a.talk)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.Done():
		}
		a.end = time.Now()
		return c.Hangup(ctx)
	}
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		return errors.New("nobody hangs up")
	}
	a.end = time.Now()
	return nil
}

func near(a, b time.Time) bool { return a.Sub(b).Abs() < 400*time.Millisecond }

// check compares the caller's record with what its phone saw.
func (a *attempt) check(t *testing.T, r cdr.Record) {
	t.Helper()
	if r.SIPCode != a.code || r.Direction != cdr.Inbound || r.Callee != a.number || r.Caller != a.from {
		t.Errorf("%s: the phone saw %d, record %+v", a.name, a.code, r)
	}
	if !near(r.Start, a.start) || !near(r.End, a.end) || r.Answer.IsZero() != a.answer.IsZero() || !a.answer.IsZero() && !near(r.Answer, a.answer) {
		t.Errorf("%s: the phone saw %s, %s, %s, record %s, %s, %s", a.name, a.start, a.answer, a.end, r.Start, r.Answer, r.End)
	}
	by := cdr.HangupSwitch
	if a.talk > 0 || a.cancelAfter > 0 {
		by = cdr.HangupPeer
	}
	if r.HangupBy != by {
		t.Errorf("%s: hung up by %q, want %q", a.name, r.HangupBy, by)
	}
	if a.call == nil {
		if r.RTPIn != nil && *r.RTPIn > 0 || r.Codec != "" {
			t.Errorf("%s: media of a call that was not answered: %+v", a.name, r)
		}
		return
	}
	s := a.call.Stats()
	if r.RTPIn == nil || r.RTPOut == nil || abs(*r.RTPIn-s.Sent) > 5 || abs(*r.RTPOut-s.Received) > 5 || r.Codec != "PCMU" || r.MOS != nil {
		t.Errorf("%s: the phone sent %d and received %d, record %+v", a.name, s.Sent, s.Received, r)
	}
	if r.JitterMS == nil || *r.JitterMS > 100 || r.RTPLost == nil || *r.RTPLost != 0 {
		t.Errorf("%s: jitter and loss %v, %v", a.name, r.JitterMS, r.RTPLost)
	}
}

func abs(n int64) int64 { return max(n, -n) }

func TestRealCalls(t *testing.T) {
	t.Parallel()
	l := newLab(t, asterisktest.Options{})
	s, err := asterisk.NewSource(l.Config(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	e := listen(t, s)
	if ev := e.start(); len(ev.Live) != 0 || ev.Core == "" {
		t.Errorf("connected: %+v", ev)
	}
	acme, globex, plain := l.phone("127.0.1.1", "8001"), l.phone("127.0.2.1", "8002"), l.phone("127.0.0.1", "8003")
	calls := []*attempt{
		{name: "answered", number: "1001", talk: 2 * time.Second},
		{name: "callee-hangs-up", number: "1005"},
		{name: "busy", number: "1002"},
		{name: "declined", number: "1004"},
		{name: "cancelled", number: "1003", cancelAfter: 700 * time.Millisecond},
		{name: "no-answer", number: "2003"},
		{name: "group", number: "3001", talk: time.Second},
		{name: "failover", number: "5002", talk: time.Second},
		{name: "no-endpoint", number: "6000"},
		{name: "by-dialplan", number: "4000"},
		{name: "unknown", number: "8888"},
	}
	var wg sync.WaitGroup
	for _, a := range calls {
		a.from = "8001"
		wg.Go(func() {
			if err := l.call(t.Context(), acme, a); err != nil {
				t.Errorf("%s: %v", a.name, err)
			}
		})
	}
	other := &attempt{name: "to-a-shared-trunk", from: "8001", number: "7001", talk: time.Second}
	alone := &attempt{name: "no-tenant", from: "8003", number: "4000"}
	coded := &attempt{name: "account-code", from: "8002", number: "4000"}
	for a, p := range map[*attempt]*siptest.Phone{other: acme, alone: plain, coded: globex} {
		wg.Go(func() {
			if err := l.call(t.Context(), p, a); err != nil {
				t.Errorf("%s: %v", a.name, err)
			}
		})
	}
	wg.Wait()

	legs := map[string]int{"answered": 2, "callee-hangs-up": 2, "busy": 2, "declined": 2, "cancelled": 2, "no-answer": 2, "group": 3, "failover": 3, "no-endpoint": 1, "by-dialplan": 1}
	total := 2 + 1 + 1
	for _, n := range legs {
		total += n
	}
	// Both sources of every caller, and ARI of all others.
	e.wait("record of each leg from each source", func([]cdr.Event) (cdr.Event, bool) {
		both := 0
		all := e.joined()
		for _, r := range all {
			if len(r.Reporters()) == 2 {
				both++
			}
		}
		return cdr.Event{}, len(all) >= total && both >= len(calls)-1+3
	})
	joined := e.joined()
	if len(joined) != total {
		t.Errorf("%d records of %d legs", len(joined), total)
	}
	for _, a := range calls {
		if a.name == "unknown" {
			if a.code != 404 {
				t.Errorf("unknown: the phone saw %d", a.code)
			}
			continue // Asterisk makes no channel of it, so there is nothing to tell
		}
		caller := byCallID(joined, a.callID)
		a.check(t, caller)
		n := 0
		for _, r := range joined {
			if r.Call != caller.Leg {
				continue
			}
			n++
			if r.Tenant != "acme" || r.Attrs["account_code"] != "acct-acme" && r.Attrs["endpoint"] == "acme" {
				t.Errorf("%s: tenant of leg %+v", a.name, r)
			}
			if r.Direction == cdr.Outbound {
				l.checkCallee(t, a, r)
			}
		}
		if n != legs[a.name] {
			t.Errorf("%s: %d legs, want %d", a.name, n, legs[a.name])
		}
	}
	for a, tenant := range map[*attempt]string{other: "acme", alone: "", coded: ""} {
		r := byCallID(joined, a.callID)
		a.check(t, r)
		for _, leg := range joined {
			if leg.Call == r.Leg && string(leg.Tenant) != tenant {
				t.Errorf("%s: tenant %q of leg %+v", a.name, leg.Tenant, leg)
			}
		}
		if a == coded && r.Attrs["account_code"] != "globex" {
			t.Errorf("%s: %+v", a.name, r)
		}
	}
	l.checkCEL(joined)
}

// checkCallee compares the record of a leg that was dialled with what its
// phone saw.
func (l *lab) checkCallee(t *testing.T, a *attempt, r cdr.Record) {
	t.Helper()
	c := l.answered(r.SIPCallID)
	if (c != nil) != (r.SIPCode == 200) || (c != nil) != !r.Answer.IsZero() {
		t.Errorf("%s: answered %t, record %+v", a.name, c != nil, r)
		return
	}
	if c != nil {
		by := cdr.HangupSwitch
		if !c.RemoteHangup() {
			by = cdr.HangupPeer
		}
		if s := c.Stats(); r.HangupBy != by || r.RTPIn == nil || abs(*r.RTPIn-s.Sent) > 5 || r.Codec != "PCMU" {
			t.Errorf("%s: the called phone saw %+v, want hung up by %s, record %+v", a.name, s, by, r)
		}
		return
	}
	want := map[string]int{"busy": 486, "declined": 603, "cancelled": 487, "no-answer": 487, "group": 487, "failover": 486}[a.name]
	by := cdr.HangupSwitch
	if want == 486 || want == 603 {
		by = cdr.HangupPeer
	}
	if r.SIPCode != want || r.HangupBy != by || r.Caller != a.from {
		t.Errorf("%s: want %d by %s, record %+v", a.name, want, by, r)
	}
}

func byCallID(records map[string]cdr.Record, callID string) cdr.Record {
	for _, r := range records {
		if r.SIPCallID == callID {
			return r
		}
	}
	return cdr.Record{}
}
