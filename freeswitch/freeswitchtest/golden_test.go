package freeswitchtest

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"
	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// The recorded form, decoded and encoded again, is the same bytes.
func TestFormEncodingIsTheCapturedOne(t *testing.T) {
	raw := readTestdata(t, "dialplan-bridge.txt")
	raw = strings.ReplaceAll(raw, "\r\n", "\n")
	_, body, _ := strings.Cut(raw, "\n\n")
	body, _, ok := strings.Cut(body, "\n===== answered")
	if !ok {
		t.Fatal("no body in the capture")
	}
	body = strings.TrimSpace(body)
	if diff := cmp.Diff(body, string(encodeForm(decodeForm(t, body)))); diff != "" {
		t.Errorf("(-captured +ours)\n%s", diff)
	}
}

// capturedEvents reads the JSON events of a recorded stream.
func capturedEvents(t *testing.T, name string) (raw []string) {
	t.Helper()
	s := readTestdata(t, name)
	for {
		i := strings.Index(s, "text/event-json\n\n")
		if i < 0 {
			return raw
		}
		head := s[:i]
		var size int
		if _, err := fmt.Sscanf(head[strings.LastIndex(head, "Content-Length:"):], "Content-Length: %d", &size); err != nil {
			t.Fatal(err)
		}
		s = s[i+len("text/event-json\n\n"):]
		raw = append(raw, s[:size])
		s = s[size:]
	}
}

// The recorded JSON events, decoded and encoded again, are the same bytes.
func TestJSONEncodingIsTheCapturedOne(t *testing.T) {
	for _, name := range []string{"json-bridge.txt", "json-bridge-busy.txt"} {
		events := capturedEvents(t, name)
		if len(events) < 5 {
			t.Fatalf("%s: %d events", name, len(events))
		}
		for _, raw := range events {
			if got := string(appendJSON(nil, decodeJSON(t, []byte(raw)))); got != raw {
				t.Fatalf("%s: (-captured +ours)\n%s", name, cmp.Diff(raw, got))
			}
		}
	}
}

// The recorded plain frames, decoded and encoded again, are the same bytes.
func TestPlainEncodingIsTheCapturedOne(t *testing.T) {
	s := readTestdata(t, "plain-calls.txt")
	n := 0
	for _, part := range strings.Split(s, "Content-Length: ")[1:] {
		size, rest, _ := strings.Cut(part, "\nContent-Type: text/event-plain\n\n")
		body := strings.Split(rest, "<<< EOF")[0]
		if fmt.Sprint(len(body)) != size {
			t.Fatalf("a body of %d bytes says %s", len(body), size)
		}
		ev := &event{}
		for _, line := range strings.Split(strings.TrimSuffix(body, "\n\n"), "\n") {
			k, v, _ := strings.Cut(line, ": ")
			ev.fields.add(k, percentDecode(t, v))
		}
		want := "Content-Length: " + size + "\nContent-Type: text/event-plain\n\n" + body
		if got := string(ev.frame(false)); got != want {
			t.Fatalf("(-captured +ours)\n%s", cmp.Diff(want, got))
		}
		n++
	}
	if n < 10 {
		t.Fatalf("%d events in the capture", n)
	}
}

// dialLike makes a call like those of the captures: with a display name, a
// P-Asserted-Identity and one X- header.
func dialLike(t *testing.T, n *Node, number string) (*siptest.Call, error) {
	t.Helper()
	g := newPhones(t)
	p := addPhone(t, g, siptest.PhoneConfig{User: "5550100", Name: "Alice Tester"})
	return p.Dial(testContext(t), target(n, number), siptest.DialOptions{
		Headers: []sip.Header{
			sip.NewHeader("P-Asserted-Identity", `"Alice Tester" <sip:+15550100@127.0.0.1>`),
			sip.NewHeader("X-Tenant", "t-42"),
		},
		Codecs: []siptest.Codec{siptest.PCMU},
	})
}

// capturedFormNames are the names of the recorded form, in order.
func capturedForm(t *testing.T) fields {
	t.Helper()
	var out fields
	for _, line := range strings.Split(strings.TrimSpace(readTestdata(t, "dialplan-bridge.fields.txt")), "\n") {
		if k, v, ok := strings.Cut(line, " = "); ok && !strings.HasPrefix(line, "#") {
			out.add(k, v)
		}
	}
	return out
}

// The form of such a call has the recorded fields in the recorded order, all
// of them, and the same values wherever they do not depend on the call.
func TestFormFieldsAreTheCapturedOnes(t *testing.T) {
	srv := newXMLServer(t, always(dialplan("respond 486 Busy Here")))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}})
	_, err := dialLike(t, n, "1004")
	wantStatus(t, err, 486)
	reqs := srv.requests()
	if len(reqs) != 1 {
		t.Fatalf("%d requests", len(reqs))
	}
	r := reqs[0]
	want := capturedForm(t)
	var names, got []string
	for _, f := range want {
		names = append(names, f.name)
	}
	for _, f := range r.form {
		got = append(got, f.name)
	}
	if diff := cmp.Diff(names, got); diff != "" {
		t.Errorf("field names (-captured +ours)\n%s", diff)
	}
	varies := func(name string) bool {
		for _, part := range []string{"UUID", "Unique-ID", "uuid", "Time", "Date", "IPv", "Sequence", "stamp", "hostname", "Hostname",
			"Switchname", "session_id", "port", "uri", "Channel-Name", "channel_name", "call_id", "_tag", "full_", "sofia_profile_url",
			"user_agent", "switch_r_sdp", "sip_contact_user"} {
			if strings.Contains(name, part) {
				return true
			}
		}
		return false
	}
	for _, f := range want {
		if v, _ := fields(r.form).get(f.name); v != f.value && !varies(f.name) {
			t.Errorf("%s = %q, captured %q", f.name, v, f.value)
		}
	}
	if got, want := r.get("Hunt-Destination-Number"), "1004"; got != want {
		t.Errorf("Hunt-Destination-Number = %q", got)
	}
	wantHeader := http.Header{
		"User-Agent": {"freeswitch-xml/1.0"}, "Accept": {"*/*"}, "Content-Type": {"application/x-www-form-urlencoded"},
		"Content-Length": {fmt.Sprint(len(r.body))},
	}
	if diff := cmp.Diff(wantHeader, r.header); diff != "" || r.proto != "HTTP/1.1" {
		t.Errorf("headers over %s (-captured +ours)\n%s", r.proto, diff)
	}
}

// missing are the fields in which recorded events and ours differ, with the
// reason. That is the whole list.
var missing = map[string]string{
	"CHANNEL_ANSWER inbound variable_sip_to_tag":         "as CHANNEL_PROGRESS: there from CHANNEL_HANGUP on",
	"CHANNEL_BRIDGE inbound variable_sip_to_tag":         "as CHANNEL_PROGRESS: there from CHANNEL_HANGUP on",
	"outbound variable_sip_contact_params":               "the recorded callee's Contact had a parameter, siptest's has none",
	"outbound variable_rtp_2833_send_payload":            "the recorded callee took no telephone-event, siptest does",
	"outbound variable_rtp_2833_recv_payload":            "the recorded callee took no telephone-event, siptest does",
	"CHANNEL_PROGRESS inbound variable_sip_to_tag":       "the stack tells the tag with the answer only",
	"CHANNEL_PROGRESS inbound variable_switch_m_sdp":     "recorded with an answer in the same 20 ms, here the phone rings first",
	"CHANNEL_PROGRESS inbound variable_video_media_flow": "as switch_m_sdp: its place, not the field",
	"CHANNEL_PROGRESS inbound variable_text_media_flow":  "as switch_m_sdp: its place, not the field",
	"CHANNEL_PROGRESS inbound variable_audio_media_flow": "as switch_m_sdp: its place, not the field",
}

// compareEvents compares the field names of each event with the recorded ones.
func compareEvents(t *testing.T, capture string, got []eslEvent, skip map[string]string) {
	t.Helper()
	key := func(f fields) string {
		name, _ := f.get("Event-Name")
		dir, _ := f.get("Call-Direction")
		return name + " " + dir
	}
	ours := map[string]eslEvent{}
	for _, ev := range got {
		ours[key(ev.fields)] = ev
	}
	for _, raw := range capturedEvents(t, capture) {
		want := eslEvent{fields: decodeJSON(t, []byte(raw))}
		k := key(want.fields)
		if strings.HasPrefix(k, "HEARTBEAT") {
			continue
		}
		have, ok := ours[k]
		if !ok {
			t.Errorf("%s: no %s", capture, k)
			continue
		}
		drop := func(names []string) []string {
			var out []string
			for _, n := range names {
				if _, known := skip[k+" "+n]; !known && skip[want.get("Call-Direction")+" "+n] == "" {
					out = append(out, n)
				}
			}
			return out
		}
		if diff := cmp.Diff(drop(want.names()), drop(have.names())); diff != "" {
			t.Errorf("%s: %s (-captured +ours)\n%s", capture, k, diff)
		}
		for _, name := range []string{"Event-Calling-File", "Event-Calling-Function", "Event-Calling-Line-Number", "Channel-State",
			"Channel-Call-State", "Channel-State-Number", "Answer-State", "Hangup-Cause", "Channel-HIT-Dialplan", "Other-Type",
			"variable_hangup_cause_q850", "variable_sip_hangup_disposition", "variable_proto_specific_hangup_cause", "variable_DIALSTATUS",
			"variable_sip_term_status", "variable_endpoint_disposition", "variable_last_bridge_hangup_cause", "variable_account_code",
			"Caller-Caller-ID-Number", "Other-Leg-Logical-Direction", "variable_export_vars", "variable_max_forwards"} {
			if name == "Channel-Call-State" && strings.HasPrefix(k, "CHANNEL_PROGRESS") {
				continue
			}
			if w, h := want.get(name), have.get(name); w != h && !(k == "CHANNEL_PROGRESS inbound" && name == "variable_endpoint_disposition") {
				t.Errorf("%s: %s: %s = %q, captured %q", capture, k, name, h, w)
			}
		}
	}
}

func eventOrder(events []eslEvent) []string {
	var out []string
	for _, ev := range events {
		dir := "A"
		if ev.get("Call-Direction") == "outbound" {
			dir = "B"
		}
		out = append(out, strings.TrimPrefix(ev.get("Event-Name"), "CHANNEL_")+" "+dir)
	}
	return out
}

const channelEvents = "CHANNEL_CREATE CHANNEL_PROGRESS CHANNEL_PROGRESS_MEDIA CHANNEL_ANSWER CHANNEL_BRIDGE CHANNEL_UNBRIDGE " +
	"CHANNEL_HANGUP CHANNEL_HANGUP_COMPLETE CHANNEL_DESTROY"

// A bridged call that the caller ends: order and fields of
// esl/event-order-bridged-call.txt and esl/json-bridge.txt.
func TestBridgedCallEventsAreTheCapturedOnes(t *testing.T) {
	far, calls := callee(t, func(*siptest.Incoming) siptest.Behaviour { return siptest.Behaviour{Delay: 60 * time.Millisecond} })
	srv := newXMLServer(t, always(dialplan("set tenant_id=t-42", "export account_code=acc-7", "set hangup_after_bridge=true",
		"bridge {origination_caller_id_number=5551000}sofia/internal/9000@"+far.Addr().String())))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}})
	esl := listen(t, n, channelEvents)
	call, err := dialLike(t, n, "1004")
	if err != nil {
		t.Fatal(err)
	}
	<-calls
	events := esl.until("CHANNEL_BRIDGE", 1)
	if err := call.Hangup(testContext(t)); err != nil {
		t.Fatal(err)
	}
	events = append(events, esl.until("CHANNEL_DESTROY", 2)...)
	want := []string{"CREATE A", "CREATE B", "PROGRESS B", "PROGRESS A", "ANSWER B", "ANSWER A", "BRIDGE A",
		"HANGUP A", "HANGUP B", "UNBRIDGE A", "HANGUP_COMPLETE B", "DESTROY B", "HANGUP_COMPLETE A", "DESTROY A"}
	if diff := cmp.Diff(want, eventOrder(events)); diff != "" {
		t.Errorf("order (-want +got)\n%s", diff)
	}
	compareEvents(t, "json-bridge.txt", events, missing)
	last := 0
	for _, ev := range events {
		var seq int
		if _, err := fmt.Sscan(ev.get("Event-Sequence"), &seq); err != nil || seq <= last {
			t.Errorf("Event-Sequence %q after %d", ev.get("Event-Sequence"), last)
		}
		last = seq
	}
}

// A bridge to a busy number: order and fields of esl/json-bridge-busy.txt.
func TestBusyBridgeEventsAreTheCapturedOnes(t *testing.T) {
	stack, err := siptest.NewStack(siptest.StackConfig{T1: testT1, OnInvite: func(in *siptest.Incoming) { _ = in.Reject(486, "Busy Here") }})
	if err != nil {
		t.Fatal(err)
	}
	defer stack.Close()
	srv := newXMLServer(t, always(dialplan("set tenant_id=t-42", "set continue_on_fail=false", "bridge sofia/internal/9001@"+stack.Addr().String())))
	n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}})
	esl := listen(t, n, channelEvents)
	_, err = dialLike(t, n, "1005")
	wantStatus(t, err, 486)
	events := esl.until("CHANNEL_DESTROY", 2)
	want := []string{"CREATE A", "CREATE B", "HANGUP B", "HANGUP_COMPLETE B", "DESTROY B", "HANGUP A", "HANGUP_COMPLETE A", "DESTROY A"}
	if diff := cmp.Diff(want, eventOrder(events)); diff != "" {
		t.Errorf("order (-want +got)\n%s", diff)
	}
	compareEvents(t, "json-bridge-busy.txt", events, nil)
}
