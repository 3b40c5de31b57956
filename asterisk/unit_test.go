package asterisk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func testConfig() Config {
	return Config{Node: "ast1", Cell: "c1", ARI: ARI{URL: "http://127.0.0.1:1/ari", User: "u", Password: "s3cret-ari"}}
}

func TestConfigRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no node":        func(c *Config) { c.Node = "" },
		"no user":        func(c *Config) { c.ARI.User = "" },
		"colon":          func(c *Config) { c.ARI.User = "a:b" },
		"line end":       func(c *Config) { c.ARI.Password = "a\r\nX: y" },
		"other scheme":   func(c *Config) { c.ARI.URL = "ftp://x/ari" },
		"password in it": func(c *Config) { c.ARI.URL = "http://u:p@x/ari" },
		"query":          func(c *Config) { c.ARI.URL = "http://x/ari?api_key=u:p" },
		"two apps":       func(c *Config) { c.ARI.App = "a,b" },
		"AMI without a port": func(c *Config) {
			c.AMI = AMI{Addr: "127.0.0.1", User: "u", Secret: "s"}
		},
		"AMI line end": func(c *Config) { c.AMI = AMI{Addr: "127.0.0.1:1", User: "u\r\nAction: x", Secret: "s"} },
	} {
		c := testConfig()
		change(&c)
		if _, err := NewSource(c, nil, nil); !errors.Is(err, bulkhead.Invalid) || strings.Contains(fmt.Sprint(err), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewOutbound(testConfig(), nil, nil); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("an outbound source with a URL: %v", err)
	}
	c := testConfig()
	c.AMI = AMI{Addr: "127.0.0.1:1", User: "u", Secret: "s3cret-ami"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(verb, c); strings.Contains(s, "s3cret") {
			t.Errorf("%s prints %q", verb, s)
		}
	}
}

func TestMetricsOfTwoSources(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	for _, node := range []bulkhead.NodeID{"a", "b", "a"} {
		c := testConfig()
		c.Node = node
		if _, err := NewSource(c, nil, reg); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := reg.Gather(); err != nil || len(got) == 0 {
		t.Errorf("%d metrics, %v", len(got), err)
	}
}

// fakeARI answers REST as told and hands every WebSocket to serve.
func fakeARI(t *testing.T, rest http.HandlerFunc, serve func(ctx context.Context, ws *websocket.Conn)) Config {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/ari/events", func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "u" || p != "s3cret-ari" || r.URL.Query().Get("subscribeAll") != "true" || strings.Contains(r.URL.String(), "s3cret") {
			t.Errorf("asked for %s by %q", r.URL, u)
		}
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer ws.CloseNow()
		serve(r.Context(), ws)
	})
	mux.HandleFunc("/ari/", func(w http.ResponseWriter, r *http.Request) {
		if rest != nil {
			rest(w, r)
			return
		}
		switch r.URL.Path {
		case "/ari/asterisk/info":
			_, _ = w.Write([]byte(`{"system":{"entity_id":"e"},"status":{"startup_time":"s"}}`))
		default:
			_, _ = w.Write([]byte(`[]`))
		}
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	c := testConfig()
	c.ARI.URL = srv.URL + "/ari"
	return c
}

func run(t *testing.T, c Config) ([]cdr.Event, error) {
	t.Helper()
	s, err := NewSource(c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out []cdr.Event
	err = s.Run(ctx, func(ev cdr.Event) { out = append(out, ev) })
	return out, err
}

// TestHalfOpen: a peer whose connection stays up but that says nothing any
// more, not even to pings, is given up in time.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	c := fakeARI(t, nil, func(context.Context, *websocket.Conn) { <-t.Context().Done() }) // never reads
	begin := time.Now()
	_, err := run(t, c)
	if !errors.Is(err, bulkhead.Unavailable) || !strings.Contains(err.Error(), "half-open") || time.Since(begin) > 10*time.Second {
		t.Errorf("Run = %v after %s", err, time.Since(begin))
	}
}

func TestHostileMessages(t *testing.T) {
	c := fakeARI(t, nil, func(ctx context.Context, ws *websocket.Conn) {
		for _, m := range []string{
			`not json`, `[]`, `{}`, `{"type":7}`, `"x"`, `null`, "\xff\xfe",
			`{"type":"ChannelCreated","timestamp":5,"channel":{"id":"1795396355.39","name":"PJSIP/a-1","state":"Ring","caller":{"number":["x"]},"dialplan":{"exten":"100` + "\xff" + `"},"channelvars":{"TENANT":"Not An Id","BIG":"` + strings.Repeat("ü", 5000) + `"}}}`,
			`{"type":"ChannelDestroyed","timestamp":"2026-11-23T01:12:38.860+0000","cause":"16","cause_txt":{"a":1},"tech_cause":99999,"channel":{"id":"1795396355.39","name":"PJSIP/a-1","state":"Ring"}}`,
		} {
			if ws.Write(ctx, websocket.MessageText, []byte(m)) != nil {
				return
			}
		}
		_ = ws.Write(ctx, websocket.MessageBinary, []byte{1})
		_ = ws.Close(websocket.StatusNormalClosure, "")
	})
	events, err := run(t, c)
	if !errors.Is(err, bulkhead.Unavailable) {
		t.Errorf("Run = %v", err)
	}
	rows := closed(events)
	if len(rows) != 1 {
		t.Fatalf("%d records of the one leg", len(rows))
	}
	r := rows[0]
	valid(t, &r)
	if r.Tenant != "" || r.Attrs[cdr.AttrBad+"tenant"] != "Not%20An%20Id" || !strings.HasPrefix(r.Callee, "100") || r.SIPCode != 603 || r.End.IsZero() {
		t.Errorf("record %+v", r)
	}
}

func TestRunErrors(t *testing.T) {
	wait := func(ctx context.Context, ws *websocket.Conn) { _, _, _ = ws.Read(ctx) }
	for name, tt := range map[string]struct {
		rest http.HandlerFunc
		want error
	}{
		"no such application": {http.NotFound, bulkhead.NotFound},
		"no startup time":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) }, bulkhead.Invalid},
		"list is no list": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte(`{"status":{"startup_time":"s"}}`))
		}, bulkhead.Invalid},
		"server error": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, bulkhead.Unavailable},
	} {
		if events, err := run(t, fakeARI(t, tt.rest, wait)); !errors.Is(err, tt.want) || len(events) != 0 {
			t.Errorf("%s: Run = %v, %d events", name, err, len(events))
		}
	}
	if _, err := run(t, testConfig()); !errors.Is(err, bulkhead.Unavailable) {
		t.Errorf("nobody listens: %v", err)
	}
	s, err := NewSource(testConfig(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx, func(cdr.Event) {}); err != nil {
		t.Errorf("Run of an ended context = %v", err)
	}
}

// TestQueueFull: what cannot be taken in time ends the connection.
func TestQueueFull(t *testing.T) {
	release := make(chan struct{})
	c := fakeARI(t, func(w http.ResponseWriter, r *http.Request) {
		<-release // nothing is taken before the list has come
		_, _ = w.Write([]byte(`[]`))
	}, func(ctx context.Context, ws *websocket.Conn) {
		defer close(release)
		for range 100 {
			if ws.Write(ctx, websocket.MessageText, bytes.Repeat([]byte("x"), 10000)) != nil {
				break
			}
		}
		_, _, _ = ws.Read(ctx)
	})
	c.QueueBytes = 100_000
	if _, err := run(t, c); !errors.Is(err, ErrQueueFull) {
		t.Errorf("Run = %v, want ErrQueueFull", err)
	}
}

func TestOutboundAuthentication(t *testing.T) {
	c := testConfig()
	c.ARI.URL = ""
	o, err := NewOutbound(c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(o)
	defer srv.Close()
	for _, password := range []string{"", "wrong"} {
		req, _ := http.NewRequest(http.MethodGet, srv.URL, nil)
		if password != "" {
			req.SetBasicAuth("u", password)
		}
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("password %q: %s", password, resp.Status)
		}
	}
}

func TestAMILogin(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		want   error
	}{
		"refused":          {"Asterisk Call Manager/11.0.0\r\nResponse: Error\r\nMessage: Authentication failed\r\n\r\n", bulkhead.Denied},
		"another protocol": {"220 mail.example ESMTP\r\n", bulkhead.Invalid},
		"long line":        {strings.Repeat("x", maxLine+1), bulkhead.Invalid},
		"closes":           {"", bulkhead.Unavailable},
		"endless message":  {"Asterisk Call Manager/11.0.0\r\n" + strings.Repeat("K: v\r\n", maxHeaders+2), bulkhead.Invalid},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			nc, err := l.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			_, _ = nc.Write([]byte(tt.script))
			if tt.script != "" {
				_ = nc.SetReadDeadline(time.Now().Add(time.Second))
				_, _ = nc.Read(make([]byte, 1024))
			}
		}()
		_, err = dialAMI(t.Context(), AMI{Addr: l.Addr().String(), User: "u", Secret: "s3cret-ami", Timeout: 2 * time.Second})
		if !errors.Is(err, tt.want) || strings.Contains(fmt.Sprint(err), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
		l.Close()
		<-done
	}
}

// TestRowsInAnyOrder: the record does not depend on the order of the rows.
func TestRowsInAnyOrder(t *testing.T) {
	var rows []row
	for _, m := range amiMessages(t, capture(t, "ami-09-*.txt")) {
		if m["Event"] == "Cdr" {
			r, err := decodeRow(m)
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, r)
		}
	}
	want := testIdentity.merge(rows, nil)
	for range 20 {
		shuffled := slices.Clone(rows)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		shuffled = append(shuffled, shuffled[0]) // and twice does no harm
		if d := cmp.Diff(want, testIdentity.merge(shuffled, nil)); d != "" {
			t.Fatal(d)
		}
	}
}

// TestZones: AMI prints times of Asterisk's zone, also where the clock changes
// during the call.
func TestZones(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err)
	}
	newYork, _ := time.LoadLocation("America/New_York")
	for name, tt := range map[string]struct {
		zone  *time.Location
		start time.Time
	}{
		"winter":             {berlin, time.Date(2026, 1, 31, 23, 59, 30, 0, time.UTC)},
		"summer":             {berlin, time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)},
		"into summer":        {berlin, time.Date(2026, 3, 29, 0, 59, 50, 0, time.UTC)},
		"out of summer":      {berlin, time.Date(2026, 10, 25, 0, 59, 50, 0, time.UTC)},
		"within the hour":    {berlin, time.Date(2026, 10, 25, 1, 30, 0, 0, time.UTC)},
		"west, month's end":  {newYork, time.Date(2026, 3, 1, 3, 59, 50, 0, time.UTC)},
		"west, into summer":  {newYork, time.Date(2026, 3, 8, 6, 59, 50, 0, time.UTC)},
		"quarter of an hour": {time.FixedZone("", 5*3600+45*60), time.Date(2026, 2, 28, 18, 0, 0, 0, time.UTC)},
	} {
		const layout = "2006-01-02 15:04:05"
		answer, end := tt.start.Add(5*time.Second), tt.start.Add(65*time.Second)
		r, err := decodeRow(message{
			"UniqueID": fmt.Sprintf("ast1-%d.7", tt.start.Unix()), "Channel": "PJSIP/a-1", "Disposition": "ANSWERED",
			"StartTime": tt.start.In(tt.zone).Format(layout), "AnswerTime": answer.In(tt.zone).Format(layout), "EndTime": end.In(tt.zone).Format(layout),
			"Timestamp": fmt.Sprintf("%d.000123", end.Unix()),
		})
		if err != nil {
			t.Fatal(err)
		}
		got := testIdentity.merge([]row{r}, nil)
		if !got.Start.Equal(tt.start) || !got.Answer.Equal(answer) || !got.End.Equal(end) || got.Billed() != time.Minute {
			t.Errorf("%s: %s, %s, %s, want %s", name, got.Start, got.Answer, got.End, tt.start)
		}
		if name == "winter" || name == "summer" {
			if got := testIdentity.merge([]row{r}, tt.zone); !got.Start.Equal(tt.start) || !got.End.Equal(end) {
				t.Errorf("%s with a zone: %s, %s", name, got.Start, got.End)
			}
		}
	}
}

func TestDialled(t *testing.T) {
	for in, want := range map[string]string{
		"acme-1002": "", "+441632960001@trunk": "+441632960001", "trunk/sip:+4416@192.0.2.1:5060": "+4416",
		"trunk/sips:100@x;transport=tls": "100", "@": "", "": "",
	} {
		if got := dialled(in); got != want {
			t.Errorf("dialled(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRenderConf(t *testing.T) {
	files, err := RenderConf(Params{Password: "a-password", OutboundURL: "wss://bridge.example/ari", Bridges: []string{"192.0.2.7"}})
	if err != nil {
		t.Fatal(err)
	}
	all := ""
	for _, f := range files {
		all += f.Path + "\n" + string(f.Text)
	}
	for _, want := range []string{"password = a-password", "secret = a-password", "permit = 192.0.2.7/32", "tls_enabled = yes", "uri = wss://bridge.example/ari", "write =\n", "read = cdr"} {
		if !strings.Contains(all, want) {
			t.Errorf("the files lack %q:\n%s", want, all)
		}
	}
	for name, p := range map[string]Params{
		"no password":       {},
		"comment":           {Password: "12345678;x"},
		"line end":          {Password: "12345678\nwrite = all"},
		"section":           {Password: "12345678", User: "x]\n[y"},
		"general":           {Password: "12345678", User: "general"},
		"variable":          {Password: "12345678", TenantVar: "A)\n"},
		"address":           {Password: "12345678", AMI: "localhost:5038"},
		"URL with password": {Password: "12345678", OutboundURL: "ws://u:p@x/"},
		"URL with line end": {Password: "12345678", OutboundURL: "ws://x/\nfoo"},
		"bridge":            {Password: "12345678", Bridges: []string{"0.0.0.0/0"}},
	} {
		if _, err := RenderConf(p); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
