package asterisk_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// hold makes a call that stays up until it is hung up.
func (l *lab) hold(p *siptest.Phone, number string) (*siptest.Call, time.Time) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := p.Dial(ctx, number, siptest.DialOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	return c, time.Now()
}

func hangUp(t *testing.T, c *siptest.Call) time.Time {
	t.Helper()
	now := time.Now()
	if err := c.Hangup(t.Context()); err != nil {
		t.Error(err)
	}
	return now
}

// liveLegs asks Asterisk itself, by another way.
func (l *lab) liveLegs() []string {
	l.t.Helper()
	body, err := l.ARI(context.Background(), "GET", "/channels")
	if err != nil {
		l.t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile(`\{"id":"([^"]+)","name":"PJSIP/`).FindAllStringSubmatch(string(body), -1) {
		out = append(out, m[1])
	}
	slices.Sort(out)
	return out
}

// filtered asks Asterisk whether it sends a listener only what he reads.
func (l *lab) filtered() {
	l.t.Helper()
	body, err := l.ARI(context.Background(), "GET", "/applications/bulkhead-events")
	if err != nil {
		l.t.Fatal(err)
	}
	var got struct {
		Allowed []struct {
			Type string `json:"type"`
		} `json:"events_allowed"`
	}
	if err := json.Unmarshal(body, &got); err != nil {
		l.t.Fatal(err)
	}
	var types []string
	for _, a := range got.Allowed {
		types = append(types, a.Type)
	}
	slices.Sort(types)
	want := []string{
		"ApplicationRegistered", "ApplicationReplaced", "ChannelCreated", "ChannelDestroyed", "ChannelHangupRequest", "ChannelStateChange", "Dial", "RESTResponse",
	}
	if !slices.Equal(types, want) {
		l.t.Errorf("Asterisk sends %q, want %q: %s", types, want, body)
	}
}

// TestRealGap takes the reader away while calls begin, are answered and end,
// and a second reader, which knows nothing, comes after it.
func TestRealGap(t *testing.T) {
	t.Parallel()
	l := newLab(t, asterisktest.Options{})
	cfg := l.Config()
	cfg.AMI.Addr = "" // so that nothing but ARI tells
	first, err := asterisk.NewSource(cfg, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := asterisk.NewSource(cfg, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := l.phone("127.0.1.1", "8001")
	e, new := listen(t, first), listen(t, second)
	e.start()
	l.filtered()
	through, throughAt := l.hold(p, "1001")
	ends, _ := l.hold(p, "1001")
	tapped, tappedAt := l.hold(p, "4001")
	e.wait("tapped leg", func(evs []cdr.Event) (cdr.Event, bool) {
		for _, ev := range evs {
			if ev.Type == cdr.Answered && ev.Record.SIPCallID == tapped.ID() {
				return ev, true
			}
		}
		return cdr.Event{}, false
	})
	e.stop()

	hangUp(t, ends)
	begun, begunAt := l.hold(p, "1001")
	tap := l.wholeCall(tapped.ID())
	if _, err := l.ARI(t.Context(), "POST", "/channels/"+tap+"/snoop?spy=in&app=bulkhead-tap"); err == nil {
		t.Log("the snoop's application does not exist, and it is there all the same")
	}

	want := l.liveLegs()
	if len(want) != 5 { // two of two legs, one of one
		t.Fatalf("Asterisk has legs %v", want)
	}
	check := func(e *ear) {
		t.Helper()
		ev := e.start()
		l.filtered()
		slices.Sort(ev.Live)
		if !slices.Equal(ev.Live, want) || len(ev.Found) != len(want) {
			t.Errorf("live %v, found %d, want %v", ev.Live, len(ev.Found), want)
		}
		for _, r := range ev.Found {
			if r.Source != cdr.SourceReconciled || r.Start.IsZero() {
				t.Errorf("found %+v", r)
			}
		}
	}
	check(e)
	e.stop() // one listener an application
	check(new)
	listed := new.wait("listing", func(evs []cdr.Event) (cdr.Event, bool) { return find(evs, cdr.Listed, "") })
	if slices.Sort(listed.Live); !slices.Equal(listed.Live, want) {
		t.Errorf("listed %v, want %v", listed.Live, want)
	}
	for _, c := range []struct {
		call *siptest.Call
		at   time.Time
	}{{through, throughAt}, {begun, begunAt}, {tapped, tappedAt}} {
		end := hangUp(t, c.call)
		r := new.bySIP(c.call.ID())
		if !near(r.Answer, c.at) || !near(r.End, end) || r.SIPCode != 200 || r.Tenant != "acme" || r.HangupBy != cdr.HangupPeer {
			t.Errorf("answered %s, ended %s, record %+v", c.at, end, r)
		}
	}
	new.wait("record of each leg", func([]cdr.Event) (cdr.Event, bool) { return cdr.Event{}, len(new.joined()) == len(want) })
	for _, r := range new.joined() {
		if !slices.Contains(want, r.Leg) {
			t.Errorf("a record of what is no leg: %+v", r)
		}
		if caller, ok := byLeg(new, r.Call); r.Direction == cdr.Outbound && (!ok || !near(r.Answer, caller.Answer)) {
			t.Errorf("leg %s was answered at %s, its caller at %s", r.Leg, r.Answer, caller.Answer)
		}
	}
}

func byLeg(e *ear, leg string) (cdr.Record, bool) {
	for _, r := range e.joined() {
		if r.Leg == leg {
			return r, true
		}
	}
	return cdr.Record{}, false
}

// wholeCall returns the channel with the Call-ID.
func (l *lab) wholeCall(callID string) string {
	l.t.Helper()
	body, err := l.ARI(context.Background(), "GET", "/channels")
	if err != nil {
		l.t.Fatal(err)
	}
	for _, part := range strings.Split(string(body), `{"id":"`) {
		if strings.Contains(part, callID) {
			id, _, _ := strings.Cut(part, `"`)
			return id
		}
	}
	l.t.Fatalf("no channel of %s in %s", callID, body)
	return ""
}

// TestRealReplaced: the second listener of an application takes it, and the
// first one says so.
func TestRealReplaced(t *testing.T) {
	t.Parallel()
	l := newLab(t, asterisktest.Options{})
	var ears [2]*ear
	for i := range ears {
		s, err := asterisk.NewSource(l.Config(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		ears[i] = listen(t, s)
		ears[i].start()
	}
	if err := ears[0].ended(); !errors.Is(err, asterisk.ErrReplaced) || !errors.Is(err, bulkhead.Conflict) {
		t.Errorf("Run = %v, want ErrReplaced", err)
	}
	// AMI is heard by both; ARI by the second.
	c, _ := l.hold(l.phone("127.0.1.1", "8001"), "1001")
	hangUp(t, c)
	ears[1].bySIP(c.ID())
}

// TestRealRestart: a killed Asterisk ends the Run, and the next one has
// another Core.
func TestRealRestart(t *testing.T) {
	t.Parallel()
	l := newLab(t, asterisktest.Options{})
	s, err := asterisk.NewSource(l.Config(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	e := listen(t, s)
	before := e.start()
	l.Kill()
	if err := e.ended(); !errors.Is(err, bulkhead.Unavailable) {
		t.Errorf("Run = %v", err)
	}
	e.begin()
	if err := e.ended(); !errors.Is(err, bulkhead.Unavailable) {
		t.Errorf("Run without an Asterisk = %v", err)
	}
	l.Restart()
	if after := e.start(); after.Core == before.Core {
		t.Errorf("Core stays %q through a restart", after.Core)
	}
	// A stopped process keeps its sockets, as a lost network does.
	stopped := time.Now()
	if err := syscall.Kill(l.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(l.PID(), syscall.SIGCONT) }()
	if err := e.ended(); !errors.Is(err, bulkhead.Unavailable) || time.Since(stopped) > 10*time.Second {
		t.Errorf("Run = %v after %s", err, time.Since(stopped))
	}
}

// TestRealReadOnly: a user who may not write gets no filter, and everything
// else goes on.
func TestRealReadOnly(t *testing.T) {
	t.Parallel()
	l := newLab(t, asterisktest.Options{Conf: map[string]string{
		"ari.conf": "[general]\nenabled=yes\n[bulkhead]\ntype=user\nread_only=yes\npassword=test-password-1\npassword_format=plain\n",
	}})
	cfg := l.Config()
	wrong := cfg
	wrong.ARI.Password = "not this"
	s, err := asterisk.NewSource(wrong, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	e := listen(t, s)
	e.begin()
	if err := e.ended(); !errors.Is(err, bulkhead.Denied) || strings.Contains(err.Error(), wrong.ARI.Password) {
		t.Errorf("Run with a wrong password = %v", err)
	}
	if s, err = asterisk.NewSource(cfg, nil, nil); err != nil {
		t.Fatal(err)
	}
	e = listen(t, s)
	e.start()
	c, at := l.hold(l.phone("127.0.1.1", "8001"), "1001")
	end := hangUp(t, c)
	r := e.bySIP(c.ID())
	// No channelvars, but the events of variables tell the same.
	if !near(r.Answer, at) || !near(r.End, end) || r.Tenant != "acme" || r.SIPCode != 200 || r.RTPIn == nil {
		t.Errorf("record %+v", r)
	}
	e.wait("record of the other leg", func([]cdr.Event) (cdr.Event, bool) { return cdr.Event{}, len(e.joined()) == 2 })
	for _, leg := range e.joined() {
		if leg.Call != r.Leg {
			t.Errorf("leg %s is of call %s: without linkedid the Dial events join the legs", leg.Leg, leg.Call)
		}
	}
}

// TestRealOutbound: Asterisk connects to us. A call that began and ended while
// we were away arrives whole before Connected, with its own times; one that
// goes on is in the list.
func TestRealOutbound(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(nil)
	url := "ws://" + server.Listener.Addr().String() + "/asterisk/ari"
	l := newLab(t, asterisktest.Options{Params: asterisk.Params{OutboundURL: url}})
	cfg := l.Config()
	cfg.ARI.URL, cfg.AMI.Addr = "", ""
	o, err := asterisk.NewOutbound(cfg, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	server.Config.Handler = o
	server.Start()
	t.Cleanup(server.Close)
	e := listen(t, o)
	e.start()
	l.filtered()
	p := l.phone("127.0.1.1", "8001")
	through, throughAt := l.hold(p, "1001")
	e.wait("answer", func(evs []cdr.Event) (cdr.Event, bool) { return find(evs, cdr.Answered, "") })
	e.stop() // and so the connection ends

	within, withinAt := l.hold(p, "1001")
	withinEnd := hangUp(t, within)
	begun, begunAt := l.hold(p, "1001")
	e.mu.Lock()
	seen := len(e.events)
	e.mu.Unlock()
	connected := e.start()
	l.filtered()
	e.mu.Lock()
	after := slices.Clone(e.events[seen:])
	e.mu.Unlock()

	place := slices.IndexFunc(after, func(ev cdr.Event) bool { return ev.Type == cdr.Connected })
	i := slices.IndexFunc(after, func(ev cdr.Event) bool { return ev.Type == cdr.Closed && ev.Record.SIPCallID == within.ID() })
	if i < 0 || i > place {
		t.Fatalf("the call within the gap is closed at %d, Connected is at %d", i, place)
	}
	if r := after[i].Record; !near(r.Answer, withinAt) || !near(r.End, withinEnd) || r.SIPCode != 200 || r.HangupBy != cdr.HangupPeer || r.Source != cdr.SourceARI {
		t.Errorf("the call within the gap: %+v, answered %s, ended %s", r, withinAt, withinEnd)
	}
	// Each leg's events are in order; those of different legs come from
	// different threads of Asterisk, and may be a millisecond apart the wrong way.
	latest := map[string]time.Time{}
	for _, ev := range after[:place] {
		if ev.Time.Before(latest[ev.Record.Leg]) {
			t.Errorf("leg %s: what was kept is out of order: %s after %s", ev.Record.Leg, ev.Time, latest[ev.Record.Leg])
		}
		latest[ev.Record.Leg] = ev.Time
	}
	want := l.liveLegs()
	if slices.Sort(connected.Live); !slices.Equal(connected.Live, want) || len(want) != 4 {
		t.Errorf("live %v, want %v", connected.Live, want)
	}
	for _, c := range []struct {
		call *siptest.Call
		at   time.Time
	}{{through, throughAt}, {begun, begunAt}} {
		end := hangUp(t, c.call)
		if r := e.bySIP(c.call.ID()); !near(r.Answer, c.at) || !near(r.End, end) || r.Tenant != "acme" {
			t.Errorf("answered %s, ended %s, record %+v", c.at, end, r)
		}
	}
	for _, r := range e.joined() {
		if r.Answer.IsZero() || r.End.IsZero() {
			t.Errorf("record %+v", r)
		}
	}
	e.stop()
	l.Kill() // else it goes on to connect while the server closes
}
