package freeswitchtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// A phone calls a phone through the node; both hear the other, and the events
// count every packet that the phones count.
func TestBridgeCarriesSound(t *testing.T) {
	var invite *sip.Request
	far, calls := callee(t, func(in *siptest.Incoming) siptest.Behaviour { invite = in.Request(); return siptest.Behaviour{} })
	srv := newXMLServer(t, always(dialplan("export bulkhead_tenant=acme", "set sip_copy_custom_headers=false",
		"bridge sofia/internal/1002@acme.example;fs_path=sip:"+far.Addr().String())))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}, XMLUser: "fs1", XMLPassword: "token"})
	esl := listen(t, n, "CHANNEL_HANGUP_COMPLETE")
	near := addPhone(t, newPhones(t), siptest.PhoneConfig{User: "1001"})
	a, err := near.Dial(testContext(t), target(n, "1002"), siptest.DialOptions{Headers: []sip.Header{sip.NewHeader("X-Bulkhead-Tenant", "acme")}})
	if err != nil {
		t.Fatal(err)
	}
	b := <-calls
	eventually(t, "sound both ways", func() bool { return a.Stats().Audible > 20 && b.Stats().Audible > 20 })
	if err := b.Hangup(testContext(t)); err != nil {
		t.Error(err)
	}
	<-a.Done()
	evB, evA := esl.next(), esl.next()
	if evA.get("Call-Direction") != "inbound" || evB.get("Call-Direction") != "outbound" {
		t.Fatalf("%s before %s", evB.get("Call-Direction"), evA.get("Call-Direction"))
	}
	count := func(ev eslEvent, name string) (n int64) {
		if _, err := fmt.Sscan(ev.get("variable_rtp_audio_"+name+"_packet_count"), &n); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return n
	}
	sa, sb := a.Stats(), b.Stats()
	for _, c := range []struct {
		what      string
		node, end int64
	}{
		{"A in", count(evA, "in"), sa.Sent}, {"A out", count(evA, "out"), sa.Received},
		{"B in", count(evB, "in"), sb.Sent}, {"B out", count(evB, "out"), sb.Received},
	} {
		if c.node < 20 || c.node > c.end+5 || c.end > c.node+5 {
			t.Errorf("%s: the node counts %d packets, the phone %d", c.what, c.node, c.end)
		}
	}
	for _, ev := range []eslEvent{evA, evB} {
		if ev.get("variable_bulkhead_tenant") != "acme" || ev.get("variable_export_vars") != "bulkhead_tenant" {
			t.Errorf("%s leg: tenant %q", ev.get("Call-Direction"), ev.get("variable_bulkhead_tenant"))
		}
		if ev.get("variable_hangup_cause") != "NORMAL_CLEARING" || ev.get("variable_hangup_cause_q850") != "16" || ev.get("Caller-Channel-Answered-Time") == "0" {
			t.Errorf("%s leg: %s", ev.get("Call-Direction"), ev.get("variable_hangup_cause"))
		}
	}
	if evB.get("variable_originating_leg_uuid") != evA.get("Unique-ID") || evB.get("variable_sip_hangup_disposition") != "recv_bye" {
		t.Errorf("B: %q %q", evB.get("variable_originating_leg_uuid"), evB.get("variable_sip_hangup_disposition"))
	}
	// What went to the phone: the user's address, no header of the SBC's.
	if invite.Recipient.User != "1002" || invite.Recipient.Host != "acme.example" || len(invite.GetHeaders("Route")) != 0 ||
		invite.GetHeader("X-Bulkhead-Tenant") != nil || invite.CallID().Value() == a.ID() {
		t.Errorf("INVITE of B:\n%s", invite)
	}
	r := srv.requests()[0]
	if r.get("variable_sip_h_X-Bulkhead-Tenant") != "acme" || r.get("variable_sip_network_ip") != "127.0.0.1" || r.get("variable_sip_network_port") == "" {
		t.Errorf("form: %q", r.body)
	}
	if user, pass, ok := (&http.Request{Header: r.header}).BasicAuth(); !ok || user != "fs1" || pass != "token" {
		t.Errorf("Basic %q", user)
	}
}

// Without sip_copy_custom_headers=false the headers travel on.
func TestCustomHeadersAreCopied(t *testing.T) {
	got := make(chan string, 1)
	far, _ := callee(t, func(in *siptest.Incoming) siptest.Behaviour {
		got <- headerValue(in.Request(), "X-Tenant")
		return siptest.Behaviour{Code: 603}
	})
	srv := newXMLServer(t, always(dialplan("bridge sofia/internal/9000@"+far.Addr().String())))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}})
	_, err := dialLike(t, n, "1004")
	wantStatus(t, err, 603)
	if v := <-got; v != "t-42" {
		t.Errorf("X-Tenant %q", v)
	}
}

// The status of the B leg is the A leg's (source: mod_sofia.c), and the cause
// follows from it.
func TestRefusalsOfTheFarSide(t *testing.T) {
	for code, why := range map[int]string{
		486: "USER_BUSY", 404: "UNALLOCATED_NUMBER", 480: "NO_USER_RESPONSE", 503: "NORMAL_TEMPORARY_FAILURE", 603: "CALL_REJECTED",
	} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			far, _ := callee(t, func(*siptest.Incoming) siptest.Behaviour { return siptest.Behaviour{Code: code} })
			srv := newXMLServer(t, always(dialplan("bridge sofia/internal/9000@"+far.Addr().String())))
			n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}})
			esl := listen(t, n, "CHANNEL_HANGUP_COMPLETE")
			_, err := dialLike(t, n, "1004")
			wantStatus(t, err, code)
			for range 2 {
				if ev := esl.next(); ev.get("Hangup-Cause") != why {
					t.Errorf("%s: %s", ev.get("Call-Direction"), ev.get("Hangup-Cause"))
				}
			}
		})
	}
}

// What a call becomes for each kind of answer: the table of capture
// failures/xml_curl-answers.txt. 200 stands for "answered by the static
// dialplan" there, which is 503 here.
func TestAnswersOfTheXMLServer(t *testing.T) {
	const static = 503
	ok := dialplan("respond 603 Decline")
	oneLine := strings.ReplaceAll(ok, "\n", "")
	text := func(s string) func(http.ResponseWriter, request) { return always(s) }
	status := func(code int, body string) func(http.ResponseWriter, request) {
		return func(w http.ResponseWriter, _ request) { w.WriteHeader(code); _, _ = io.WriteString(w, body) }
	}
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter, request)
		want   int
	}{
		"not found":                  {text(`<document><section name="result"><result status="not found"/></section></document>`), static},
		"http 404":                   {status(404, ok), static},
		"http 500 with a document":   {status(500, ok), static},
		"http 201 with a document":   {status(201, ok), static},
		"http 204":                   {status(204, ""), static},
		"empty":                      {text(""), static},
		"mismatched tags":            {text("<document><section></document></section>"), static},
		"no XML":                     {text("hello"), static},
		"other context":              {text(strings.ReplaceAll(ok, `"public"`, `"other"`)), 404},
		"empty context":              {text(`<document><section name="dialplan"><context name="public"/></section></document>`), 404},
		"no extension matches":       {text(strings.ReplaceAll(ok, "^(.*)$", "^x$")), 404},
		"empty section":              {text(`<document><section name="dialplan"/></document>`), 404},
		"slower than the timeout":    {func(_ http.ResponseWriter, r request) { <-r.ctx.Done() }, static},
		"oversized":                  {text(ok + strings.Repeat(" ", 1<<20)), static},
		"closed without an answer":   {func(w http.ResponseWriter, _ request) { c, _, _ := w.(http.Hijacker).Hijack(); _ = c.Close() }, static},
		"one line with declaration":  {text(oneLine), static},
		"one line, no declaration":   {text(strings.TrimPrefix(oneLine, `<?xml version="1.0"?>`)), 603},
		"entities":                   {text(strings.ReplaceAll(ok, "<action ", `<action application="set" data="p=&lt;?&lt;!--"/><action `)), 603},
		"global context":             {text(strings.ReplaceAll(ok, `"public"`, `"global"`)), 603},
		"hangup":                     {text(dialplan("hangup USER_BUSY")), 486},
		"unknown application":        {text(dialplan("nosuchapp x")), 502},
		"respond with absolute code": {text(dialplan("respond 403 Forbidden")), 403},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newXMLServer(t, c.answer)
			n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}, XMLTimeout: 300 * time.Millisecond})
			_, err := dialLike(t, n, "2000")
			wantStatus(t, err, c.want)
		})
	}
}

// Nothing listens: the next binding is asked; without one the static dialplan
// answers 503 at once.
func TestXMLServerIsDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + l.Addr().String() + "/fs/xml"
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	srv := newXMLServer(t, always(dialplan("respond 603 Decline")))
	n, _ := startNode(t, Config{XMLURLs: []string{dead, srv.URL}, XMLTimeout: time.Second})
	_, err = dialLike(t, n, "1007")
	wantStatus(t, err, 603)
	n, _ = startNode(t, Config{XMLURLs: []string{dead}, XMLTimeout: time.Second})
	begin := time.Now()
	_, err = dialLike(t, n, "1007")
	wantStatus(t, err, 503)
	if d := time.Since(begin); d > time.Second {
		t.Errorf("it took %s", d)
	}
}

// Each request has a connection of its own (connections-50-calls.txt).
func TestOneConnectionForEachRequest(t *testing.T) {
	srv := newXMLServer(t, always(dialplan("hangup USER_BUSY")))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}})
	for range 3 {
		_, err := dialLike(t, n, "1007")
		wantStatus(t, err, 486)
	}
	seen := map[string]bool{}
	for _, r := range srv.requests() {
		seen[r.remote] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d connections for 3 requests", len(seen))
	}
}

// enable-post-var leaves the named fields and the fixed five
// (dialplan-enable-post-var.txt).
func TestPostVars(t *testing.T) {
	srv := newXMLServer(t, always(dialplan("hangup USER_BUSY")))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}, XMLPostVars: []string{"variable_sip_h_X-Tenant", "Caller-Destination-Number", "nosuch"}})
	_, err := dialLike(t, n, "1007")
	wantStatus(t, err, 486)
	want := "hostname=fs1&section=dialplan&tag_name=&key_name=&key_value=&Caller-Destination-Number=1007&variable_sip_h_X-Tenant=t-42"
	if got := srv.requests()[0].body; got != want {
		t.Errorf("got %s", got)
	}
}

// A CANCEL while the phone rings ends the B leg too.
func TestCancelWhileRinging(t *testing.T) {
	canceled := make(chan struct{})
	far, _ := callee(t, func(in *siptest.Incoming) siptest.Behaviour {
		go func() { <-in.Canceled(); close(canceled) }()
		return siptest.Behaviour{Delay: 20 * time.Second}
	})
	srv := newXMLServer(t, always(dialplan("bridge sofia/internal/9000@"+far.Addr().String())))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}})
	esl := listen(t, n, channelEvents)
	ctx, cancel := context.WithCancel(testContext(t))
	near := addPhone(t, newPhones(t), siptest.PhoneConfig{User: "1001"})
	_, err := near.Dial(ctx, target(n, "1002"), siptest.DialOptions{OnRinging: func(int) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Dial: %v", err)
	}
	select {
	case <-canceled:
	case <-time.After(5 * time.Second):
		t.Error("the far phone still rings")
	}
	for _, ev := range esl.until("CHANNEL_DESTROY", 2) {
		if ev.get("Event-Name") == "CHANNEL_HANGUP_COMPLETE" && ev.get("Hangup-Cause") != "ORIGINATOR_CANCEL" {
			t.Errorf("%s: %s", ev.get("Call-Direction"), ev.get("Hangup-Cause"))
		}
	}
}

// A CANCEL during the fetch is answered at once, but the leg ends with the
// HTTP request (cancel-while-http-request-runs.txt).
func TestCancelDuringTheFetch(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	srv := newXMLServer(t, func(w http.ResponseWriter, _ request) {
		close(asked)
		<-answer
		_, _ = io.WriteString(w, dialplan("answer", "park"))
	})
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}})
	esl := listen(t, n, "CHANNEL_HANGUP_COMPLETE")
	stack, err := siptest.NewStack(siptest.StackConfig{T1: testT1})
	if err != nil {
		t.Fatal(err)
	}
	defer stack.Close()
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error, 1)
	go func() {
		_, err := stack.Invite(ctx, siptest.Invitation{
			URI: sip.Uri{Scheme: "sip", User: "1002", Host: "127.0.0.1", Port: int(n.Addr().Port())}, From: sip.Uri{User: "1001"},
			Body: siptest.Offer(stack.Addr()),
		})
		done <- err
	}()
	<-asked
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	var canceled <-chan struct{}
	n.mu.Lock()
	for c := range n.calls {
		canceled = c.inc.Canceled()
	}
	n.mu.Unlock()
	select {
	case <-canceled: // 487 was sent
	case <-time.After(5 * time.Second):
		t.Fatal("the CANCEL did not come")
	}
	if n.Sessions() != 1 {
		t.Error("the leg ended before the fetch")
	}
	close(answer)
	if ev := esl.next(); ev.get("Hangup-Cause") != "ORIGINATOR_CANCEL" || ev.get("Caller-Channel-Answered-Time") != "0" {
		t.Errorf("%s", ev.get("Hangup-Cause"))
	}
}

// answer, playback of a tone, hangup: capture xml_curl/dialplan-answer.txt.
func TestPlayback(t *testing.T) {
	srv := newXMLServer(t, always(dialplan("set tenant_id=t-42", "answer", "playback tone_stream://%(100,100,440);loops=2", "hangup NORMAL_CLEARING")))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}})
	esl := listen(t, n, "CHANNEL_HANGUP_COMPLETE")
	call, err := dialLike(t, n, "1000")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-call.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the node did not hang up")
	}
	if s := call.Stats(); s.Received < 15 || s.Audible < 7 || s.Audible >= s.Received || !call.RemoteHangup() {
		t.Errorf("%+v", s)
	}
	if ev := esl.next(); ev.get("variable_sip_hangup_disposition") != "send_bye" || ev.get("variable_current_application") != "hangup" {
		t.Errorf("%+v", ev)
	}
}

// Both legs of a call that would pass the limit are refused: the A leg with
// 503, the B leg by 502 of its A leg.
func TestLimitOfSessions(t *testing.T) {
	srv := newXMLServer(t, always(dialplan("bridge sofia/internal/9000@127.0.0.1:9")))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}, MaxSessions: 1})
	_, err := dialLike(t, n, "1000")
	wantStatus(t, err, 502)
	eventually(t, "the leg is gone", func() bool { return n.Sessions() == 0 })
	n2, _ := startNode(t, Config{MaxSessionsPerSecond: 1})
	_, err = dialLike(t, n2, "1000")
	wantStatus(t, err, 503)
	for range 3 { // a second may have begun between two of them
		if _, err = dialLike(t, n2, "1000"); strings.Contains(err.Error(), "Maximum Calls In Progress") {
			return
		}
	}
	t.Errorf("calls over the rate: %v", err)
}

// Nobody answers the B leg's INVITE: 408 after 64*T1, as sofia makes it.
func TestFarSideIsSilent(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	srv := newXMLServer(t, always(dialplan("bridge sofia/internal/9000@"+silent.LocalAddr().String())))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}, SIPT1: 10 * time.Millisecond})
	esl := listen(t, n, "CHANNEL_HANGUP_COMPLETE")
	_, err = dialLike(t, n, "1000")
	wantStatus(t, err, 408)
	if ev := esl.next(); ev.get("Hangup-Cause") != "RECOVERY_ON_TIMER_EXPIRE" {
		t.Error(ev.get("Hangup-Cause"))
	}
	srv2 := newXMLServer(t, always(dialplan("set call_timeout=1", "bridge sofia/internal/9000@"+silent.LocalAddr().String())))
	n2, _ := startNode(t, Config{XMLURLs: []string{srv2.URL}, SIPT1: 500 * time.Millisecond})
	_, err = dialLike(t, n2, "1000")
	wantStatus(t, err, 480) // NO_ANSWER
}

func TestOptions(t *testing.T) {
	n, _ := startNode(t, Config{})
	stack, err := siptest.NewStack(siptest.StackConfig{T1: testT1})
	if err != nil {
		t.Fatal(err)
	}
	defer stack.Close()
	for method, want := range map[sip.RequestMethod]int{sip.OPTIONS: 200, sip.REGISTER: 403, sip.SUBSCRIBE: 405} {
		res, err := stack.Do(testContext(t), sip.NewRequest(method, sip.Uri{Scheme: "sip", Host: "127.0.0.1", Port: int(n.Addr().Port())}), n.Addr())
		if err != nil || res.StatusCode != want {
			t.Errorf("%s: %v %v", method, res, err)
		}
	}
}

// 60 calls at 20 a second, all of them answered, with sound, and with all
// events of both legs. How much of the sound arrives is for a quiet machine:
// see TestBridgeCarriesSound.
func TestManyCalls(t *testing.T) {
	const calls, perSecond = 60, 20
	patient := 500 * time.Millisecond // T1: no transaction ends before 32 s
	far := newPhones(t, patient)
	addPhone(t, far, siptest.PhoneConfig{User: "*"})
	srv := newXMLServer(t, always(dialplan("export bulkhead_tenant=acme", "set hangup_after_bridge=true", "bridge sofia/internal/9000@"+far.Addr().String())))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}, XMLTimeout: 30 * time.Second, SIPT1: patient})
	esl := listen(t, n, "CHANNEL_CREATE CHANNEL_ANSWER CHANNEL_HANGUP_COMPLETE")
	near := addPhone(t, newPhones(t, patient), siptest.PhoneConfig{User: "1001"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / perSecond)
	defer tick.Stop()
	for i := range calls {
		<-tick.C
		wg.Go(func() {
			call, err := near.Dial(ctx, target(n, "1002"), siptest.DialOptions{CallID: fmt.Sprintf("call-%d", i), Talk: time.Second})
			if err != nil {
				t.Errorf("call %d: %v", i, err)
				return
			}
			<-call.Done()
			if s := call.Stats(); s.Audible == 0 {
				t.Errorf("call %d: %+v", i, s)
			}
		})
	}
	events := map[string]int{}
	legs := map[string]int{}
	for events["CHANNEL_HANGUP_COMPLETE"] < 2*calls {
		ev := esl.next()
		events[ev.get("Event-Name")]++
		legs[ev.get("Unique-ID")]++
		if ev.get("Event-Name") == "CHANNEL_HANGUP_COMPLETE" && ev.get("variable_bulkhead_tenant") != "acme" {
			t.Errorf("a leg without its tenant")
		}
	}
	wg.Wait()
	if events["CHANNEL_CREATE"] != 2*calls || events["CHANNEL_ANSWER"] != 2*calls || len(legs) != 2*calls {
		t.Errorf("%v of %d legs", events, len(legs))
	}
	for id, n := range legs {
		if n != 3 {
			t.Errorf("leg %s has %d events", id, n)
		}
	}
	eventually(t, "all legs are gone", func() bool { return n.Sessions() == 0 })
	eventually(t, "all dialogs are closed", func() bool { return n.stack.Dialogs() == 0 })
}
