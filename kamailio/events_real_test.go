package kamailio_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/kamailio"
)

// receiver is an event bridge. down makes it refuse.
type receiver struct {
	addr string
	down atomic.Bool
	hits atomic.Int64
	// unauthorized counts the posts without the right credentials, if user is set.
	user, token  string
	unauthorized atomic.Int64
}

func newReceiver(t testing.TB, got chan []cdr.Record) *receiver {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{addr: ln.Addr().String()}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		r.hits.Add(1)
		if user, token, _ := req.BasicAuth(); user != r.user || token != r.token {
			r.unauthorized.Add(1)
			rw.Header().Set("WWW-Authenticate", `Basic realm="bulkhead"`)
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.down.Load() || err != nil {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if req.Method != http.MethodPost || req.URL.Path != "/kamailio/events" {
			t.Errorf("the SBC asked for %s %s", req.Method, req.URL.Path)
		}
		records, err := kamailio.DecodeEvents("c1", func(addr string) bulkhead.NodeID { return bulkhead.NodeID("at " + addr) }, body)
		if err != nil {
			t.Errorf("the SBC posted %q: %v", body, err)
		}
		got <- records
		rw.WriteHeader(http.StatusNoContent)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return r
}

// wantEvent waits for the report of a call and returns it.
func wantEvent(t *testing.T, got chan []cdr.Record, kind, callID, node, code string) cdr.Record {
	t.Helper()
	timeout := time.After(answerTimeout)
	for {
		select {
		case records := <-got:
			for _, r := range records {
				if string(r.Kind) == kind && r.SIPCallID == callID && (node == "" || r.Node == bulkhead.NodeID("at "+node)) {
					if s := r.SIPCode; code != "" && code != itoa(s) {
						t.Errorf("%s of %s has code %d, want %s", kind, callID, s, code)
					}
					return r
				}
			}
		case <-timeout:
			t.Fatalf("no %s of %s at %q was reported", kind, callID, node)
		}
	}
}

func itoa(n int) string {
	return string([]byte{byte('0' + n/100), byte('0' + n/10%10), byte('0' + n%10)})
}

// TestEventsWithCredentials wants them with the first post already.
func TestEventsWithCredentials(t *testing.T) {
	got := make(chan []cdr.Record, 100)
	srv := newReceiver(t, got)
	srv.user, srv.token = "sbc-1.a", strings.Repeat("aZ0_-", 40)
	w := newWorld(t, kamailio.Params{Events: srv.addr, User: srv.user, Token: srv.token})
	c := call{ruri: "sip:1@nobody.example", callID: "authorized-1"}
	want(t, "unknown domain", w.ask("127.5.5.5", c), 404)
	wantEvent(t, got, "refused", c.callID, "", "404")
	if n := srv.unauthorized.Load(); n != 0 {
		t.Errorf("%d posts came without the credentials", n)
	}
	if strings.Contains(w.Log(), srv.token) {
		t.Error("the token stands in the log")
	}
	local := filepath.Join(w.Dir, kamailio.LocalFile)
	if st, err := os.Stat(local); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v; it holds a secret", local, st.Mode(), err)
	}
}

func TestEvents(t *testing.T) {
	got := make(chan []cdr.Record, 100)
	srv := newReceiver(t, got)
	srv.down.Store(true)
	w := newWorld(t, kamailio.Params{Events: srv.addr})
	w.apply(bulkhead.Change{Tenants: []bulkhead.Tenant{tenant("acme", "standard", "493010")}})
	before := time.Now().Truncate(time.Microsecond)
	want(t, "unknown domain", w.ask("127.5.5.5", call{ruri: "sip:+493099@nobody.example", from: "sip:alice@x.example", callID: "unknown-domain-1"}), 404)
	want(t, "unlisted source", w.ask("127.5.5.5", call{ruri: "sip:1001@acme.example", callID: "unlisted-source-1"}), 403)
	want(t, "challenge", w.ask("127.5.5.5", call{ruri: "sip:1001@acme.example", from: "sip:1001@acme.example", callID: "challenged-1"}), 407)
	want(t, "bad credentials", w.ask("127.5.5.5", call{ruri: "sip:1001@acme.example", from: "sip:1001@acme.example", callID: "bad-credentials-1", auth: "x"}), 403)
	nasty := strings.Repeat("%22%5c$var(x);a=1&", 30)
	want(t, "no From user", w.ask("127.5.5.5", call{ruri: "sip:nobody.example", from: "sip:x.example", callID: `no-user-$var(x){"}'`}), 404)
	want(t, "nasty text", w.ask("127.5.5.5", call{ruri: "sip:" + nasty + "@nobody.example", from: "sip:" + nasty + "@x.example", callID: "nasty-" + strings.Repeat("x", 300)}), 404)
	for i := range 120 { // more than one batch holds
		w.ask(fmt.Sprintf("127.6.0.%d", 1+i), call{ruri: "sip:1@nobody.example", callID: "flood-" + itoa(i) + "-xxxx"})
	}
	for i := range 30 { // one source: more than is reported of it
		w.ask("127.7.7.7", call{ruri: "sip:1@nobody.example", callID: "insistent-" + itoa(i)})
	}
	eventually(t, "a second try to post", func() bool { return srv.hits.Load() >= 2 })
	srv.down.Store(false)

	byCall := map[string]cdr.Record{}
	for timeout := time.After(answerTimeout); len(byCall) < 145; {
		select {
		case records := <-got:
			for _, r := range records {
				byCall[r.SIPCallID] = r
			}
		case <-timeout:
			t.Fatalf("%d calls were reported, want 145", len(byCall))
		}
	}
	r := byCall["unknown-domain-1"]
	if r.Kind != cdr.Refused || r.Cause != "unknown domain" || r.SIPCode != 404 || r.Q850 != 3 || r.Caller != "alice" || r.Callee != "+493099" || r.Tenant != "" || r.SBC != "sbc1" || r.Revision != 2 {
		t.Errorf("unknown domain was reported as %+v", r)
	}
	if r.Start.Before(before) || r.Start.After(time.Now()) || !r.End.Equal(r.Start) {
		t.Errorf("it happened at %s, reported is %s to %s", before, r.Start, r.End)
	}
	if r := byCall["unlisted-source-1"]; r.Cause != "unlisted source" || r.SIPCode != 403 || r.Q850 != 21 {
		t.Errorf("unlisted source was reported as %+v", r)
	}
	if r := byCall["bad-credentials-1"]; r.Cause != "bad credentials" || r.SIPCode != 403 {
		t.Errorf("bad credentials were reported as %+v", r)
	}
	if _, ok := byCall["challenged-1"]; ok {
		t.Error("a challenge was reported as a refusal")
	}
	if r, ok := byCall["no-user-_var_x_____"]; !ok || r.Caller != "" || r.Callee != "" {
		t.Errorf("a call without users was reported as %+v", r)
	}
	n, err := w.Client.Counters(t.Context())
	if err != nil || n["events_post_failures"] == 0 || n["events_lost"] != 0 || n["refused_source"] != 1 || n["refused_credentials"] != 1 || n["refused_domain"] != 153 || n["refusals_unreported"] != 10 {
		t.Errorf("Counters() = %v, %v", n, err)
	}
}
