package freeswitchtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

const testT1 = 100 * time.Millisecond

// testContext ends before the test's own deadline.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// startNode runs a node and stops it with the test. stop ends it earlier.
func startNode(t *testing.T, cfg Config) (n *Node, stop func()) {
	t.Helper()
	if cfg.ID == "" {
		cfg.ID = "fs1"
	}
	if cfg.SIPT1 == 0 {
		cfg.SIPT1 = testT1
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	eventually(t, "the node serves", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.serving
	})
	return n, stop
}

// eventually polls until ok, for at most 30 s.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after 30 s still not: %s", what)
		}
	}
}

// request is one request that the stub of the configuration service got.
type request struct {
	ctx    context.Context // ends when the client gives up
	header http.Header
	proto  string
	remote string // who connected
	body   string
	form   []field // in order, decoded
}

func (r request) get(name string) string {
	v, _ := fields(r.form).get(name)
	return v
}

// xmlServer is a stub of the configuration service.
type xmlServer struct {
	*httptest.Server
	mu   sync.Mutex
	reqs []request
}

// newXMLServer answers each dialplan request with what answer writes.
func newXMLServer(t *testing.T, answer func(w http.ResponseWriter, r request)) *xmlServer {
	t.Helper()
	s := &xmlServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		body, err := io.ReadAll(hr.Body)
		if err != nil {
			t.Errorf("read the form: %v", err)
		}
		r := request{ctx: hr.Context(), header: hr.Header, proto: hr.Proto, remote: hr.RemoteAddr, body: string(body), form: decodeForm(t, string(body))}
		s.mu.Lock()
		s.reqs = append(s.reqs, r)
		s.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *xmlServer) requests() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]request(nil), s.reqs...)
}

// dialplan answers with these actions, each "application data".
func dialplan(actions ...string) string {
	var b strings.Builder
	b.WriteString("<?xml version=\"1.0\"?>\n<document type=\"freeswitch/xml\">\n<section name=\"dialplan\">\n<context name=\"public\">\n" +
		"<extension name=\"x\">\n<condition field=\"destination_number\" expression=\"^(.*)$\">\n")
	for _, a := range actions {
		app, data, _ := strings.Cut(a, " ")
		fmt.Fprintf(&b, "<action application=%q data=\"%s\"/>\n", app, strings.ReplaceAll(data, "&", "&amp;"))
	}
	b.WriteString("</condition>\n</extension>\n</context>\n</section>\n</document>\n")
	return b.String()
}

// always answers every request alike.
func always(xml string) func(http.ResponseWriter, request) {
	return func(w http.ResponseWriter, _ request) { _, _ = io.WriteString(w, xml) }
}

// decodeForm is an independent decoder: the first five fields are not encoded.
func decodeForm(t *testing.T, body string) []field {
	t.Helper()
	var out []field
	for i, kv := range strings.Split(body, "&") {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			t.Fatalf("form field %q has no value", kv)
		}
		if i >= 5 {
			v = percentDecode(t, v)
		}
		out = append(out, field{name: k, value: v})
	}
	return out
}

func percentDecode(t *testing.T, s string) string {
	t.Helper()
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		b.WriteByte(byte(n))
		i += 2
	}
	return b.String()
}

// newPhones starts user agents on a socket of their own.
// newPhones makes phones whose T1 is testT1, or the one given.
func newPhones(t *testing.T, t1 ...time.Duration) *siptest.Phones {
	t.Helper()
	p, err := siptest.NewPhones(siptest.PhonesConfig{T1: append(t1, testT1)[0]})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close phones: %v", err)
		}
	})
	return p
}

func addPhone(t *testing.T, g *siptest.Phones, cfg siptest.PhoneConfig) *siptest.Phone {
	t.Helper()
	p, err := g.Add(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// callee is a phone that takes every call and reports it.
func callee(t *testing.T, behave func(*siptest.Incoming) siptest.Behaviour) (*siptest.Phones, <-chan *siptest.Call) {
	t.Helper()
	g := newPhones(t)
	calls := make(chan *siptest.Call, 200)
	addPhone(t, g, siptest.PhoneConfig{User: "*", OnInvite: behave, OnCall: func(c *siptest.Call) { calls <- c }})
	return g, calls
}

// target is a URI at the node.
func target(n *Node, number string) string { return "sip:" + number + "@" + n.Addr().String() }

func wantStatus(t *testing.T, err error, code int) {
	t.Helper()
	var st *siptest.StatusError
	if !errors.As(err, &st) || st.Code != code {
		t.Fatalf("call: %v, want status %d", err, code)
	}
}

// eslEvent is one received event, in order and with its duplicates.
type eslEvent struct {
	fields fields
}

func (e eslEvent) get(name string) string {
	v, _ := e.fields.get(name)
	return v
}

func (e eslEvent) names() []string {
	var out []string
	for _, f := range e.fields {
		out = append(out, f.name)
	}
	return out
}

// eslConn is a raw event socket client.
type eslConn struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func dialESL(t *testing.T, n *Node) *eslConn {
	t.Helper()
	conn, err := net.Dial("tcp", n.ESLAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &eslConn{t: t, conn: conn, r: bufio.NewReader(conn)}
	if h, _ := c.frame(); h.Get("Content-Type") != "auth/request" {
		t.Fatalf("greeting: %v", h)
	}
	return c
}

// frame reads one frame.
func (c *eslConn) frame() (textproto.MIMEHeader, []byte) {
	c.t.Helper()
	h, body, err := c.read()
	if err != nil {
		c.t.Fatalf("read frame: %v", err)
	}
	return h, body
}

func (c *eslConn) read() (textproto.MIMEHeader, []byte, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, nil, err
	}
	h := textproto.MIMEHeader{}
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return h, nil, err
		}
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			break
		}
		k, v, _ := strings.Cut(line, ": ")
		h.Add(k, v)
	}
	size, _ := strconv.Atoi(h.Get("Content-Length"))
	body := make([]byte, size)
	_, err := io.ReadFull(c.r, body)
	return h, body, err
}

// do sends a command and returns the text of its reply or answer.
func (c *eslConn) do(cmd string) string {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, cmd+"\n\n"); err != nil {
		c.t.Fatal(err)
	}
	h, body := c.frame()
	switch h.Get("Content-Type") {
	case "command/reply":
		return h.Get("Reply-Text")
	case "api/response":
		return string(body)
	}
	c.t.Fatalf("%s: got a %s", cmd, h.Get("Content-Type"))
	return ""
}

// listen authenticates and subscribes in JSON.
func listen(t *testing.T, n *Node, names string) *eslConn {
	t.Helper()
	c := dialESL(t, n)
	if got := c.do("auth ClueCon"); got != "+OK accepted" {
		t.Fatal(got)
	}
	if got := c.do("event json " + names); got != "+OK event listener enabled json" {
		t.Fatal(got)
	}
	return c
}

// next reads one JSON event.
func (c *eslConn) next() eslEvent {
	c.t.Helper()
	h, body := c.frame()
	if h.Get("Content-Type") != "text/event-json" {
		c.t.Fatalf("got %v %s", h, body)
	}
	return eslEvent{fields: decodeJSON(c.t, body)}
}

// until reads events up to the n-th of that name.
func (c *eslConn) until(name string, n int) []eslEvent {
	c.t.Helper()
	var out []eslEvent
	for n > 0 {
		ev := c.next()
		out = append(out, ev)
		if ev.get("Event-Name") == name {
			n--
		}
	}
	return out
}

// decodeJSON reads one flat object in order.
func decodeJSON(t *testing.T, body []byte) fields {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(body))
	tok := func() json.Token {
		v, err := d.Token()
		if err != nil {
			t.Fatalf("event %.200s: %v", body, err)
		}
		return v
	}
	if tok() != json.Delim('{') {
		t.Fatalf("event %.200s is no object", body)
	}
	var f fields
	for d.More() {
		name := tok().(string)
		switch v := tok().(type) {
		case string:
			f.add(name, v)
		case json.Delim:
			list := []string{}
			for d.More() {
				list = append(list, tok().(string))
			}
			tok()
			f = append(f, field{name: name, array: list})
		default:
			t.Fatalf("field %s is a %T", name, v)
		}
	}
	return f
}

// readTestdata reads a recorded file.
func readTestdata(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
