package freeswitchtest_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
	"github.com/bulkhead-voip/bulkhead/route"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// What a real switch needs to be told; see docs/freeswitch-real.md.
const (
	realEnv     = "BULKHEAD_FREESWITCH"      // host:port:password of its event socket
	realSIPEnv  = "BULKHEAD_FREESWITCH_SIP"  // ip:port of its profile internal
	realSBCEnv  = "BULKHEAD_FREESWITCH_SBC"  // ip:port at which the test is the SBC
	realXMLEnv  = "BULKHEAD_FREESWITCH_XML"  // ip:port at which the test answers mod_xml_curl
	realConfEnv = "BULKHEAD_FREESWITCH_CONF" // folder that the configuration is written into

	realToken = "token-of-the-attach-mode"
)

// stand is a switch, real or not, with the test as its SBC, its phones and
// its configuration service.
type stand struct {
	sip, sbc, xml string
	listener      net.Listener // at xml; nil: not yet
	esl           freeswitch.Config
	live          *route.Live
	down          atomic.Bool // the configuration service is
	phones        *siptest.Phones
	caller        *siptest.Phone

	mu      sync.Mutex
	records []cdr.Record // of legs that have ended
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// realSwitch returns what the environment says of a real switch; nil: nothing.
func realSwitch(t *testing.T) *stand {
	t.Helper()
	v := os.Getenv(realEnv)
	if v == "" {
		return nil
	}
	parts := strings.SplitN(v, ":", 3)
	if len(parts) != 3 {
		t.Fatalf("%s is not host:port:password", realEnv)
	}
	return &stand{
		sip: env(realSIPEnv, net.JoinHostPort(parts[0], "5080")), sbc: env(realSBCEnv, "127.0.0.1:5066"), xml: env(realXMLEnv, "127.0.0.1:8080"),
		esl: freeswitch.Config{Addr: net.JoinHostPort(parts[0], parts[1]), Password: parts[2], AllowDefaultPassword: true},
	}
}

// TestRealConfiguration writes the shipped configuration, filled in for the
// stand of TestScenarios, but for that of the event socket.
func TestRealConfiguration(t *testing.T) {
	s, dir := realSwitch(t), os.Getenv(realConfEnv)
	if s == nil || dir == "" {
		t.Skip("no real FreeSWITCH: set " + realEnv + " and " + realConfEnv)
	}
	files, err := freeswitch.RenderConf(freeswitch.Params{
		Node: "fs1", Token: realToken, URLs: []string{"http://" + s.xml + "/freeswitch/xml"}, SIP: s.sip, SBCs: []string{s.sbc},
		ESL: s.esl.Addr, ESLPassword: "not-written",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.Contains(f.Path, "event_socket") {
			continue
		}
		path := filepath.Join(dir, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Text, 0o640); err != nil {
			t.Fatal(err)
		}
		t.Log(path)
	}
}

// TestScenarios runs the same calls on the node of this package and, where the
// environment names one, on a real FreeSWITCH.
func TestScenarios(t *testing.T) {
	t.Run("freeswitchtest", func(t *testing.T) { scenarios(t, fakeSwitch(t)) })
	t.Run("FreeSWITCH", func(t *testing.T) {
		s := realSwitch(t)
		if s == nil {
			t.Skip("no real FreeSWITCH: set " + realEnv + "=host:port:password; see docs/freeswitch-real.md")
		}
		scenarios(t, s)
	})
}

func fakeSwitch(t *testing.T) *stand {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	xml := l.Addr().String()
	n, err := freeswitchtest.New(freeswitchtest.Config{
		ID: "fs1", ESLPassword: "not the default", Context: freeswitch.Context, Heartbeat: time.Second,
		XMLURLs: []string{"http://" + xml + "/freeswitch/xml"}, XMLUser: "fs1", XMLPassword: realToken, XMLTimeout: 20 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return &stand{sip: n.Addr().String(), sbc: "127.0.0.1:0", xml: xml, listener: l, esl: freeswitch.Config{Addr: n.ESLAddr(), Password: "not the default"}}
}

// start brings up what stands around the switch.
func (s *stand) start(t *testing.T) {
	t.Helper()
	var err error
	if s.phones, err = siptest.NewPhones(siptest.PhonesConfig{Listen: s.sbc}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.phones.Close(); err != nil {
			t.Error(err)
		}
	})
	s.sbc = s.phones.Addr().String()
	for user, behave := range map[string]func(*siptest.Incoming) siptest.Behaviour{
		"101": nil,
		"102": func(*siptest.Incoming) siptest.Behaviour { return siptest.Behaviour{Code: 486} },
		"103": func(*siptest.Incoming) siptest.Behaviour { return siptest.Behaviour{Code: 486} },
		"104": func(*siptest.Incoming) siptest.Behaviour { return siptest.Behaviour{Delay: time.Minute} },
	} {
		if _, err := s.phones.Add(siptest.PhoneConfig{User: user, OnInvite: behave}); err != nil {
			t.Fatal(err)
		}
	}
	if s.caller, err = s.phones.Add(siptest.PhoneConfig{User: "4930123456"}); err != nil {
		t.Fatal(err)
	}
	ha1 := strings.Repeat("0a", 16)
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1"}}, Pools: []bulkhead.Pool{{ID: "p1", Cell: "c1", Profile: "standard"}},
		Nodes: []bulkhead.Node{{ID: "fs1", Pool: "p1", SIP: s.sip}}, SBCs: []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: s.sbc}},
		Tenants: []bulkhead.Tenant{{
			ID: "acme", Cell: "c1", Profile: "standard", Domains: []string{"acme.example"}, Codecs: []string{"PCMU", "PCMA"},
			Users: []bulkhead.User{
				{Extension: "101", HA1: ha1}, {Extension: "102", HA1: ha1}, {Extension: "104", HA1: ha1},
				{Extension: "103", HA1: ha1, Forward: &bulkhead.Forward{Busy: "user:101"}},
			},
			Groups:  []bulkhead.Group{{Name: "all", Ring: bulkhead.Sequential, Members: []bulkhead.Target{"user:102", "user:101"}}},
			Numbers: []bulkhead.Number{{Number: "4930100", Target: "group:all"}},
		}},
	}
	state := bulkhead.State{}.Apply(&c)
	if err := state.Validate(); err != nil {
		t.Fatal(err)
	}
	s.live = &route.Live{}
	s.live.Store(route.New(state))
	s.serve(t)
	s.hear(t)
}

// serve answers mod_xml_curl.
func (s *stand) serve(t *testing.T) {
	t.Helper()
	if s.listener == nil {
		var err error
		if s.listener, err = net.Listen("tcp", s.xml); err != nil {
			t.Fatal(err)
		}
	}
	srv := &http.Server{ReadTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		node, password, _ := r.BasicAuth()
		body, err := io.ReadAll(r.Body)
		if s.down.Load() || err != nil || password != realToken {
			panic(http.ErrAbortHandler) // the connection is closed
		}
		answer, _ := freeswitch.Answer(s.live.Load(), bulkhead.NodeID(node), time.Now(), body, nil)
		_, _ = w.Write(answer)
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(s.listener) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// hear collects the records of legs that end.
func (s *stand) hear(t *testing.T) {
	t.Helper()
	src, err := freeswitch.NewSource(freeswitch.SourceConfig{Node: "fs1", Cell: "c1", ESL: s.esl}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var connected atomic.Bool
	done := make(chan error, 1)
	go func() {
		done <- src.Run(ctx, func(e cdr.Event) {
			connected.Store(true)
			if e.Type == cdr.Closed {
				s.mu.Lock()
				s.records = append(s.records, e.Record)
				s.mu.Unlock()
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	until(t, "the event socket is heard", func() bool {
		select {
		case err := <-done:
			done <- err
			t.Fatalf("event socket: %v", err)
		default:
		}
		return connected.Load()
	})
}

// dial calls as the SBC sends calls to a node.
func (s *stand) dial(ctx context.Context, number string, o siptest.DialOptions) (*siptest.Call, error) {
	o.Headers = append(o.Headers, sip.NewHeader("X-Bulkhead-Tenant", "acme"), sip.NewHeader("X-Bulkhead-SBC", "sbc1"), sip.NewHeader("X-Bulkhead-Revision", "1"))
	return s.caller.Dial(ctx, "sip:"+number+"@"+s.sip, o)
}

// legs returns the records of a call when they are as many as they should be.
func (s *stand) legs(t *testing.T, callID string, n int) []cdr.Record {
	t.Helper()
	var out []cdr.Record
	until(t, "all legs of the call have ended", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		a := ""
		for i := range s.records {
			if s.records[i].SIPCallID == callID {
				a = s.records[i].Leg
			}
		}
		out = out[:0]
		for i := range s.records {
			if a != "" && s.records[i].Call == a {
				out = append(out, s.records[i])
			}
		}
		return len(out) >= n
	})
	if len(out) != n {
		t.Errorf("%d legs, want %d: %+v", len(out), n, out)
	}
	return out
}

func scenarios(t *testing.T, s *stand) {
	s.start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	answered := func(t *testing.T, number string, legs int) {
		t.Helper()
		call, err := s.dial(ctx, number, siptest.DialOptions{Talk: 500 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		<-call.Done()
		if call.Stats().Audible == 0 {
			t.Error("nothing was heard")
		}
		for _, r := range s.legs(t, call.ID(), legs) {
			if r.Tenant != "acme" || r.SBC != "sbc1" || r.Pool != "p1" || r.Direction == cdr.Inbound && (r.Caller != "4930123456" || r.Callee != number || r.SIPCode != 200) {
				t.Errorf("%+v", r)
			}
		}
	}
	refused := func(t *testing.T, number string, code int) {
		t.Helper()
		_, err := s.dial(ctx, number, siptest.DialOptions{})
		var status *siptest.StatusError
		if !errors.As(err, &status) || status.Code != code {
			t.Fatalf("%s: %v, want %d", number, err, code)
		}
	}
	t.Run("a user answers", func(t *testing.T) { answered(t, "101", 2) })
	t.Run("a user is busy", func(t *testing.T) { refused(t, "102", 486) })
	t.Run("a busy user forwards", func(t *testing.T) { answered(t, "103", 3) })
	t.Run("one after the other", func(t *testing.T) { answered(t, "4930100", 3) })
	t.Run("nobody's number", func(t *testing.T) { refused(t, "4930999", 404) })
	t.Run("the caller gives up", func(t *testing.T) {
		ctx, giveUp := context.WithCancel(ctx)
		defer giveUp()
		const id = "given-up-by-the-caller"
		if _, err := s.dial(ctx, "104", siptest.DialOptions{CallID: id, OnRinging: func(code int) {
			if code >= 180 {
				giveUp()
			}
		}}); err == nil {
			t.Fatal("answered")
		}
		for _, r := range s.legs(t, id, 2) {
			if !r.Answer.IsZero() {
				t.Errorf("%+v", r)
			}
		}
	})
	t.Run("nobody answers mod_xml_curl", func(t *testing.T) {
		s.down.Store(true)
		refused(t, "101", 503)
		s.down.Store(false)
		answered(t, "101", 2)
	})
	t.Run("not from the SBC", func(t *testing.T) {
		host, _, err := net.SplitHostPort(s.sbc)
		if err != nil {
			t.Fatal(err)
		}
		// The same host, another port: the switch's list lets it in, we do not.
		stranger, err := siptest.NewPhone(siptest.PhonesConfig{Listen: net.JoinHostPort(host, "0")}, siptest.PhoneConfig{User: "4930123456"})
		if err != nil {
			t.Fatal(err)
		}
		defer stranger.Close()
		_, err = stranger.Dial(ctx, "sip:101@"+s.sip, siptest.DialOptions{Headers: []sip.Header{sip.NewHeader("X-Bulkhead-Tenant", "acme"), sip.NewHeader("X-Bulkhead-SBC", "sbc1")}})
		var status *siptest.StatusError
		if !errors.As(err, &status) || status.Code != 403 {
			t.Errorf("%v, want 403", err)
		}
	})
}
