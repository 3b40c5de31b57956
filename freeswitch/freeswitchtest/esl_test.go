package freeswitchtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fiorix/go-eventsocket/eventsocket"
	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// The recorded conversation, said again, gets the recorded bytes, but for
// what depends on the switch.
func TestCommandRepliesAreTheCapturedOnes(t *testing.T) {
	n, _ := startNode(t, Config{})
	conn, err := net.Dial("tcp", n.ESLAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	varies := []string{"api sofia status", "api json", "sendevent"}
	parts := strings.Split(readTestdata(t, "commands.txt"), ">>> CLIENT SENDS: ")
	read := func(want string) string {
		got := make([]byte, len(want))
		n, err := io.ReadFull(conn, got)
		if err != nil {
			t.Fatalf("want %q, got %q: %v", want, got[:n], err)
		}
		return string(got)
	}
	if got := read(parts[0]); got != parts[0] {
		t.Fatalf("greeting %q", got)
	}
said:
	for _, p := range parts[1:] {
		cmd, want, _ := strings.Cut(p, "\n")
		cmd = strings.ReplaceAll(cmd, `\n`, "\n")
		for _, v := range varies {
			if strings.HasPrefix(cmd, v) {
				continue said
			}
		}
		if _, err := io.WriteString(conn, cmd); err != nil {
			t.Fatal(err)
		}
		want = firstFrames(t, want)
		if got := read(want); got != want {
			t.Fatalf("%q:\n%s", cmd, cmp.Diff(want, got))
		}
	}
	if b, err := io.ReadAll(conn); err != nil || len(strings.TrimSpace(string(b))) != 0 {
		t.Errorf("after exit: %q, %v", b, err)
	}
}

// firstFrames cuts off what the recording tool has put behind the frames.
func firstFrames(t *testing.T, s string) string {
	t.Helper()
	var out strings.Builder
	for strings.HasPrefix(s, "Content-Type:") {
		head, rest, _ := strings.Cut(s, "\n\n")
		size := 0
		if _, n, ok := strings.Cut(head, "Content-Length: "); ok {
			if _, err := fmt.Sscan(n, &size); err != nil {
				t.Fatal(err)
			}
		}
		out.WriteString(head + "\n\n" + rest[:size])
		s = rest[size:]
	}
	return out.String()
}

func TestAuthentication(t *testing.T) {
	n, _ := startNode(t, Config{ESLPassword: "right horse"})
	c := dialESL(t, n)
	if got := c.do("event plain HEARTBEAT"); got != "-ERR command not found" { // before-auth.txt
		t.Error(got)
	}
	if got := c.do("auth wrong"); got != "-ERR invalid" { // auth-wrong.txt
		t.Error(got)
	}
	if h, body := c.frame(); h.Get("Content-Type") != "text/disconnect-notice" || string(body) != goodbye || len(body) != 67 {
		t.Errorf("%v %q", h, body)
	}
	if _, _, err := c.read(); !errors.Is(err, io.EOF) {
		t.Errorf("then %v, want EOF", err)
	}
	if got := dialESL(t, n).do("auth right horse"); got != "+OK accepted" {
		t.Error(got)
	}
}

func TestAPI(t *testing.T) {
	n, _ := startNode(t, Config{ID: "node7"})
	c := listen(t, n, "BACKGROUND_JOB")
	if got := c.do("api global_getvar core_uuid"); got != n.CoreUUID() {
		t.Errorf("core_uuid %q", got)
	}
	if got := c.do("api status"); !strings.HasPrefix(got, "UP 0 years, 0 days") || !strings.Contains(got, "1000 session(s) max") {
		t.Errorf("status %q", got)
	}
	var st struct {
		Status   string
		Response struct {
			Sessions struct{ Count struct{ Limit int } }
		}
	}
	if err := json.Unmarshal([]byte(c.do(`api json {"command":"status","data":{}}`)), &st); err != nil || st.Status != "success" || st.Response.Sessions.Count.Limit != 1000 {
		t.Errorf("json status %+v, %v", st, err)
	}
	job := c.do("bgapi hostname")
	if !strings.HasPrefix(job, "+OK Job-UUID: ") {
		t.Error(job)
	}
	ev := c.next()
	if ev.get("Event-Name") != "BACKGROUND_JOB" || "+OK Job-UUID: "+ev.get("Job-UUID") != job || ev.get("_body") != "node7" {
		t.Errorf("%+v", ev)
	}
	if got := c.do("exit_not"); got != "+OK bye" { // fact 37
		t.Error(got)
	}
}

// Two clients each get every event; a filter keeps some from one of them; a
// reply stands between events, not in one.
func TestSubscriptionsAreEachClientsOwn(t *testing.T) {
	n, _ := startNode(t, Config{})
	a, b := listen(t, n, "CUSTOM test::x"), listen(t, n, "ALL")
	if got := b.do("filter Event-Subclass test::y"); got != "+OK filter added. [Event-Subclass]=[test::y]" {
		t.Error(got)
	}
	for _, sub := range []string{"test::x", "test::y"} {
		if got := a.do("sendevent CUSTOM\nEvent-Subclass: " + sub + "\nMy-Header: a b"); !strings.HasPrefix(got, "+OK ") && got != "" {
			t.Error(got)
		}
		if sub == "test::x" {
			if ev := a.next(); ev.get("Event-Subclass") != sub || ev.get("My-Header") != "a b" {
				t.Errorf("a got %+v", ev)
			}
		}
	}
	if ev := b.next(); ev.get("Event-Subclass") != "test::y" {
		t.Errorf("b got %+v", ev)
	}
}

// An independent client can drive the node.
func TestForeignClient(t *testing.T) {
	n, _ := startNode(t, Config{Heartbeat: 50 * time.Millisecond})
	if _, err := eventsocket.Dial(n.ESLAddr(), "wrong"); err == nil {
		t.Error("the wrong password was accepted")
	}
	for _, format := range []string{"json", "plain"} {
		c, err := eventsocket.Dial(n.ESLAddr(), "ClueCon")
		if err != nil {
			t.Fatal(err)
		}
		ev, err := c.Send("api status")
		if err != nil || !strings.HasPrefix(ev.Body, "UP ") {
			t.Fatalf("status: %v %v", ev, err)
		}
		if _, err := c.Send("events " + format + " HEARTBEAT"); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			ev, err := c.ReadEvent()
			if err != nil {
				t.Fatal(err)
			}
			if ev.Get("Event-Name") != "HEARTBEAT" || ev.Get("Event-Info") != "System Ready" || ev.Get("Max-Sessions") != "1000" {
				t.Errorf("%s: %v", format, ev)
			}
		}
		// It only returns from its reader when the connection breaks.
		c.Close()
	}
}

// A client that does not read loses its connection, with the notice in the
// middle of a frame (client-that-does-not-read.txt); the others lose nothing.
func TestClientThatDoesNotRead(t *testing.T) {
	n, _ := startNode(t, Config{ESLQueue: 50})
	slow := listen(t, n, "CUSTOM flood")
	good := listen(t, n, "HEARTBEAT")
	text := strings.Repeat("x", 60000)
	const events = 3000
	for range events {
		var f fields
		f.add("Event-Subclass", "flood")
		f.add("Text", text)
		n.hub.fire("CUSTOM", place{}, f, "", nil)
		n.hub.mu.Lock()
		gone := len(n.hub.clients) == 1
		n.hub.mu.Unlock()
		if gone {
			break
		}
	}
	eventually(t, "the slow client is cut off", func() bool {
		n.hub.mu.Lock()
		defer n.hub.mu.Unlock()
		return len(n.hub.clients) == 1
	})
	rest, _ := io.ReadAll(slow.r)
	got := strings.Count(string(rest), "Event-Subclass")
	if got >= events {
		t.Errorf("it still got %d events", got)
	}
	n.heartbeat()
	if ev := good.next(); ev.get("Event-Name") != "HEARTBEAT" {
		t.Errorf("the other client got %+v", ev)
	}
}

// Capture shutdown.txt: SHUTDOWN, then the ends of the live calls, then a
// notice and the end of the stream.
func TestCleanStop(t *testing.T) {
	far, calls := callee(t, nil)
	srv := newXMLServer(t, always(dialplan("bridge sofia/internal/9000@"+far.Addr().String())))
	n, stop := startNode(t, Config{XMLURLs: []string{srv.URL}})
	g := newPhones(t)
	call, err := addPhone(t, g, siptest.PhoneConfig{User: "1001"}).Dial(testContext(t), target(n, "1004"), siptest.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	<-calls
	esl := listen(t, n, "SHUTDOWN CHANNEL_HANGUP_COMPLETE")
	eventually(t, "both legs are shown", func() bool { return strings.Contains(esl.do("api show channels count"), "2 total") })
	stop()
	if ev := esl.next(); ev.get("Event-Name") != "SHUTDOWN" || ev.get("Event-Info") != "System Shutting Down" {
		t.Errorf("first %+v", ev)
	}
	for range 2 {
		if ev := esl.next(); ev.get("Event-Name") != "CHANNEL_HANGUP_COMPLETE" || ev.get("Hangup-Cause") != "SYSTEM_SHUTDOWN" ||
			ev.get("variable_hangup_cause_q850") != "16" {
			t.Errorf("%s %s", ev.get("Event-Name"), ev.get("Hangup-Cause"))
		}
	}
	if h, body := esl.frame(); h.Get("Content-Type") != "text/disconnect-notice" || string(body) != "The system is being shut down.\n" {
		t.Errorf("%v %q", h, body)
	}
	if _, _, err := esl.read(); !errors.Is(err, io.EOF) {
		t.Errorf("then %v, want EOF", err)
	}
	select {
	case <-call.Done():
	case <-time.After(5 * time.Second):
		t.Error("the caller was not told")
	}
}

// Run with a context that has ended frees the sockets at once.
func TestStopBeforeStart(t *testing.T) {
	n, err := New(Config{ID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := n.Run(ctx); err != nil {
		t.Error(err)
	}
	again, err := net.Listen("tcp", n.ESLAddr())
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

func TestCallsAreShown(t *testing.T) {
	far, calls := callee(t, nil)
	srv := newXMLServer(t, always(dialplan("bridge {origination_caller_id_number=5551000}sofia/internal/9000@"+far.Addr().String())))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}})
	esl := listen(t, n, "CHANNEL_BRIDGE")
	call, err := dialLike(t, n, "1004")
	if err != nil {
		t.Fatal(err)
	}
	<-calls
	esl.next()
	captured := strings.Split(readTestdata(t, "api-during-bridge.txt"), "CLIENT SENDS: ")
	for _, cmd := range []string{"api show channels as json", "api show calls as json"} {
		var want, got struct {
			Count int               `json:"row_count"`
			Rows  []json.RawMessage `json:"rows"`
		}
		for _, part := range captured {
			if strings.HasPrefix(part, cmd) {
				_, body, _ := strings.Cut(part, "\n\n")
				if err := json.NewDecoder(strings.NewReader(body[strings.Index(body, "{"):])).Decode(&want); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := json.Unmarshal([]byte(esl.do(cmd)), &got); err != nil {
			t.Fatal(err)
		}
		if got.Count != want.Count || len(got.Rows) != len(want.Rows) {
			t.Fatalf("%s: %d rows, captured %d", cmd, got.Count, want.Count)
		}
		for i := range want.Rows {
			w, g := decodeJSON(t, want.Rows[i]), decodeJSON(t, got.Rows[i])
			for j := range w {
				if j >= len(g) || g[j].name != w[j].name {
					t.Fatalf("%s: row %d: column %d is %s, captured %s", cmd, i, j, g[j].name, w[j].name)
				}
				for _, same := range []string{"state", "callstate", "direction", "cid_num", "dest", "callee_num", "callee_direction", "application", "sent_callee_num", "initial_cid_num"} {
					if w[j].name == same && g[j].value != w[j].value {
						t.Errorf("%s: row %d: %s = %q, captured %q", cmd, i, same, g[j].value, w[j].value)
					}
				}
			}
		}
	}
	if err := call.Hangup(testContext(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the legs are gone", func() bool { return n.Sessions() == 0 })
	if got := esl.do("api show channels as json"); got != "{\"row_count\": 0}\n" {
		t.Error(got)
	}
}

func FuzzReadCommand(f *testing.F) {
	for _, s := range []string{"auth ClueCon\n\n", "event json ALL\r\n\r\n", "sendevent X\nContent-Length: 3\n\nabc", "a\nContent-Length: 99999999999\n\n", "\n\n\nexit\n\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := bufio.NewReader(strings.NewReader(s))
		for range 100 {
			cmd, err := readCommand(r)
			if err != nil {
				return
			}
			if cmd.line == "" || len(cmd.body) > maxCommand {
				t.Fatalf("%+v", cmd)
			}
		}
	})
}

func ExampleNode_ESLAddr() {
	n, err := New(Config{ID: "fs1"})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	fmt.Println(strings.HasPrefix(n.ESLAddr(), "127.0.0.1:"), n.Run(ctx))
	// Output: true <nil>
}
