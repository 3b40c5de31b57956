package freeswitch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

const password = "s3cret-esl"

// server accepts one client and plays script with it.
func server(t *testing.T, script func(s *session)) Config {
	t.Helper()
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
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		script(&session{t: t, c: nc, r: bufio.NewReader(nc)})
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return Config{Addr: l.Addr().String(), Password: password, CommandTimeout: 5 * time.Second}
}

type session struct {
	t *testing.T
	c net.Conn
	r *bufio.Reader
}

func (s *session) send(text string) { _, _ = s.c.Write([]byte(text)) }

// expect reads a command; "" means any.
func (s *session) expect(want string) string {
	line, err := s.r.ReadString('\n')
	blank, _ := s.r.ReadString('\n')
	line = strings.TrimSuffix(line, "\n")
	if want != "" && (err != nil || line != want || blank != "\n") {
		s.t.Errorf("client sent %q (%v), want %q", line, err, want)
	}
	return line
}

// drain reads until the client closes.
func (s *session) drain() { _, _ = io.Copy(io.Discard, s.r) }

func (s *session) authenticate() {
	s.send("Content-Type: auth/request\n\n")
	s.expect("auth " + password)
	s.send("Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
}

func framed(contentType, body string) string {
	return fmt.Sprintf("Content-Length: %d\nContent-Type: %s\n\n%s", len(body), contentType, body)
}

func dial(t *testing.T, cfg Config) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestDialErrors(t *testing.T) {
	tests := []struct {
		name   string
		script func(*session)
		change func(*Config)
		want   error
		not    string // must not be in the text
	}{
		{"wrong password", func(s *session) {
			s.send("Content-Type: auth/request\n\n")
			s.expect("")
			s.send("Content-Type: command/reply\nReply-Text: -ERR invalid\n\nContent-Type: text/disconnect-notice\nContent-Length: 4\n\nbye\n")
		}, nil, bulkhead.Denied, password},
		{"empty reply", func(s *session) {
			s.send("Content-Type: auth/request\n\n")
			s.expect("")
			s.send("Content-Type: command/reply\nReply-Text:\n\n")
		}, nil, bulkhead.Denied, password},
		{"address refused", func(s *session) { s.send(framed("text/rude-rejection", "Access Denied, go away.\n")) }, nil, bulkhead.Denied, password},
		{"another protocol", func(s *session) { s.send("220 mail.example ESMTP\r\n\r\n") }, nil, bulkhead.Invalid, password},
		{"negative length", func(s *session) { s.send("Content-Type: auth/request\nContent-Length: -1\n\n") }, nil, bulkhead.Invalid, password},
		{"closes", func(*session) {}, nil, bulkhead.Unavailable, password},
		{"says nothing", (*session).drain, func(c *Config) { c.AuthTimeout = 50 * time.Millisecond }, bulkhead.Unavailable, password},
		{"does not answer", func(s *session) { s.send("Content-Type: auth/request\n\n"); s.drain() }, func(c *Config) { c.AuthTimeout = 50 * time.Millisecond }, bulkhead.Unavailable, password},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := server(t, tt.script)
			if tt.change != nil {
				tt.change(&cfg)
			}
			_, err := Dial(t.Context(), cfg)
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if strings.Contains(err.Error(), tt.not) {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if _, err := Dial(t.Context(), Config{Addr: l.Addr().String(), Password: password}); !errors.Is(err, bulkhead.Unavailable) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("context ends", func(t *testing.T) {
		cfg := server(t, (*session).drain)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := Dial(ctx, cfg); err == nil || time.Since(start) > 3*time.Second {
			t.Errorf("error %v after %s", err, time.Since(start))
		}
	})
}

func TestConfigRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		want error
	}{
		{"default password", Config{Addr: "127.0.0.1:1", Password: "ClueCon"}, bulkhead.Denied},
		{"line end", Config{Addr: "127.0.0.1:1", Password: "a\n\napi shutdown"}, bulkhead.Invalid},
		{"no password", Config{Addr: "127.0.0.1:1"}, bulkhead.Invalid},
		{"no address", Config{Password: password}, bulkhead.Invalid},
	} {
		if _, err := Dial(t.Context(), tt.cfg); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if err := (Config{Addr: "x:1", Password: "ClueCon", AllowDefaultPassword: true}).validate(); err != nil {
		t.Errorf("default password, allowed: %v", err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(verb, Config{Addr: "x:1", Password: password}); strings.Contains(s, password) {
			t.Errorf("%s prints %q", verb, s)
		}
		if s := fmt.Sprintf(verb, SourceConfig{ESL: Config{Password: password}}); strings.Contains(s, password) {
			t.Errorf("%s prints %q", verb, s)
		}
	}
}

func TestCommands(t *testing.T) {
	cfg := server(t, func(s *session) {
		s.authenticate()
		s.expect("event json HEARTBEAT")
		s.send("Content-Type: command/reply\nReply-Text: +OK event listener enabled json\n\n")
		s.expect("event json NOSUCH")
		s.send("Content-Type: command/reply\nReply-Text: -ERR no keywords supplied\n\n")
		s.expect("api uuid_exists x")
		s.send("Content-Type: api/response\nContent-Length: 5\n\nfalse")
		s.expect("api nosuchcommand")
		s.send("Content-Type: api/response\nContent-Length: 38\n\n-ERR nosuchcommand Command not found!\n")
		s.expect("api silent")
		s.send("Content-Type: api/response\nContent-Length: 0\n\n")
		s.expect("noevents")
		s.send("Content-Type: command/reply\nReply-Text:\n\n")
		s.drain()
	})
	c := dial(t, cfg)
	ctx := t.Context()
	if r, err := c.Command(ctx, "event json HEARTBEAT"); err != nil || r != "event listener enabled json" {
		t.Errorf("reply %q, %v", r, err)
	}
	if _, err := c.Command(ctx, "event json NOSUCH"); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("refused command: %v", err)
	}
	if r, err := c.API(ctx, "uuid_exists x"); err != nil || r != "false" {
		t.Errorf("api: %q, %v", r, err)
	}
	if _, err := c.API(ctx, "nosuchcommand"); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("unknown api: %v", err)
	}
	if r, err := c.API(ctx, "silent"); err != nil || r != "" {
		t.Errorf("api without output: %q, %v", r, err)
	}
	for _, line := range []string{"", "a\nb", "a\r\nb", "status\n\napi shutdown", "a\x00"} {
		if _, err := c.Command(ctx, line); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("command %q: %v", line, err)
		}
	}
	if _, err := c.API(ctx, "x\n\napi shutdown"); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("api with a line end: %v", err)
	}
	if _, err := c.Command(ctx, "noevents"); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("empty reply: %v", err)
	}
}

// TestReplyDoesNotWaitBehindEvents: nobody calls Next, thousands of events
// come before the reply, and the reply arrives all the same; then the events
// are there in order, with the in-stream reply at its place.
func TestReplyDoesNotWaitBehindEvents(t *testing.T) {
	const n = 5000
	cfg := server(t, func(s *session) {
		s.authenticate()
		s.expect("api show channels as json")
		for i := range n {
			s.send(framed(typeEventJSON, fmt.Sprintf(`{"Event-Sequence":"%d"}`, i)))
		}
		s.send(framed(typeResponse, `{"row_count": 0}`))
		s.send(framed(typeEventJSON, "last"))
		s.expect("api status")
		s.send(framed(typeResponse, "UP"))
		s.drain()
	})
	c := dial(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if err := c.Request(ctx, "show channels as json"); err != nil {
		t.Fatal(err)
	}
	if r, err := c.API(ctx, "status"); err != nil || r != "UP" {
		t.Fatalf("%q, %v", r, err)
	}
	for i := range n {
		m, err := c.Next(ctx)
		if want := fmt.Sprintf(`{"Event-Sequence":"%d"}`, i); err != nil || string(m.Body) != want || m.Type != typeEventJSON {
			t.Fatalf("message %d: %s %q, %v", i, m.Type, m.Body, err)
		}
	}
	if m, err := c.Next(ctx); err != nil || m.Type != typeResponse || string(m.Body) != `{"row_count": 0}` {
		t.Fatalf("the reply: %+v, %v", m, err)
	}
	if m, err := c.Next(ctx); err != nil || string(m.Body) != "last" {
		t.Fatalf("the event behind it: %+v, %v", m, err)
	}
}

// TestBodiesUsedAgain: the memory of an event's body serves later events, and
// never one that still waits, nor the one that Next returned last, nor the
// answer to a Request, which two have.
func TestBodiesUsedAgain(t *testing.T) {
	const (
		sizes = spareUnits + 2 // the last are not used again
		batch = 2 * sizes
		n     = 100 * batch
	)
	body := func(i int) string { return strings.Repeat(string(rune('a'+i%25)), 1+i*7919%sizes*spareUnit) }
	more := make(chan struct{}, 1)
	cfg := server(t, func(s *session) {
		s.authenticate()
		s.expect("api show channels as json")
		for i := range n {
			if i%batch == 0 {
				select {
				case <-more:
				case <-t.Context().Done():
					return
				}
			}
			if i == n/2 {
				s.send(framed(typeResponse, strings.Repeat("r", 3*spareUnit)))
			}
			s.send(framed(typeEventJSON, body(i)))
		}
		s.drain()
	})
	c := dial(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	asked := make(chan error, 1)
	go func() { asked <- c.Request(ctx, "show channels as json") }()
	// ahead lets the reader read a batch, while the last body is in use.
	ahead := func() {
		more <- struct{}{}
		for waiting := 0; waiting < batch; {
			select {
			case <-c.wake:
			case <-ctx.Done():
				t.Fatal("the reader has not read what was sent")
			}
			c.mu.Lock()
			waiting = len(c.queue)
			c.mu.Unlock()
		}
	}
	var answer, last []byte
	arrays, small := map[*byte]bool{}, 0
	for i := 0; i < n; i++ {
		if i%batch == 0 {
			ahead()
			if i > 0 && string(last) != body(i-1) {
				t.Fatalf("event %d has changed before the next was asked for", i-1)
			}
		}
		m, err := c.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if m.Type == typeResponse {
			answer = m.Body
			m, err = c.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
		}
		if last = m.Body; string(last) != body(i) {
			t.Fatalf("event %d is %d bytes of %.1q, want %d of %.1q", i, len(last), last, len(body(i)), body(i))
		}
		if len(last) <= spareUnits*spareUnit {
			arrays[&last[0]] = true
			small++
		}
	}
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
	if string(answer) != strings.Repeat("r", 3*spareUnit) {
		t.Errorf("the answer has changed: %d bytes, %.40q", len(answer), answer)
	}
	// Some are lost to the garbage collector, to another processor's share and,
	// a quarter, to the race detector.
	if len(arrays) > small*9/10 {
		t.Errorf("%d pieces of memory for %d bodies", len(arrays), small)
	}
}

// TestQueueFullOfEmptyFrames: frames without a body are bounded too.
func TestQueueFullOfEmptyFrames(t *testing.T) {
	cfg := server(t, func(s *session) {
		s.authenticate()
		for range 100 {
			s.send(framed(typeEventJSON, ""))
		}
		s.drain()
	})
	cfg.QueueBytes = 10 * messageBytes
	c := dial(t, cfg)
	<-c.done
	n := 0
	for {
		if _, err := c.Next(t.Context()); err != nil {
			if !errors.Is(err, ErrQueueFull) {
				t.Errorf("error %v, want %v", err, ErrQueueFull)
			}
			break
		}
		n++
	}
	if n != 10 {
		t.Errorf("%d frames were queued, want 10", n)
	}
}

func TestQueueFull(t *testing.T) {
	cfg := server(t, func(s *session) {
		s.authenticate()
		for range 100 {
			s.send(framed(typeEventJSON, strings.Repeat("x", 1000)))
		}
		s.drain()
	})
	cfg.QueueBytes = 10 * (spareUnit + messageBytes)
	c := dial(t, cfg)
	<-c.done
	for i := range 10 {
		if _, err := c.Next(t.Context()); err != nil {
			t.Fatalf("queued message %d: %v", i, err)
		}
	}
	if _, err := c.Next(t.Context()); !errors.Is(err, ErrQueueFull) {
		t.Errorf("error %v, want %v", err, ErrQueueFull)
	}
	if _, err := c.API(t.Context(), "status"); !errors.Is(err, ErrQueueFull) {
		t.Errorf("command afterwards: %v", err)
	}
}

func TestConnectionEnds(t *testing.T) {
	tests := []struct {
		name   string
		script func(*session)
		want   error
		text   string
	}{
		{"the switch shuts down", func(s *session) { s.send(framed(typeDisconnect, "The system is being shut down.\n")) }, io.EOF, "The system is being shut down."},
		{"cut within a frame", func(s *session) { s.send("Content-Length: 100\nContent-Type: text/event-json\n\n{") }, io.ErrUnexpectedEOF, ""},
		{"garbage", func(s *session) { s.send("Content-Length: banana\n\n"); s.drain() }, bulkhead.Invalid, ""},
		{"a reply that nobody asked for", func(s *session) { s.send("Content-Type: command/reply\nReply-Text: +OK\n\n"); s.drain() }, bulkhead.Invalid, ""},
		{"silence", (*session).drain, bulkhead.Unavailable, "HEARTBEAT"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := server(t, func(s *session) { s.authenticate(); tt.script(s) })
			cfg.SilenceTimeout = 300 * time.Millisecond
			_, err := dial(t, cfg).Next(t.Context())
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

func TestCommandWithoutReply(t *testing.T) {
	cfg := server(t, func(s *session) { s.authenticate(); s.drain() })
	cfg.CommandTimeout = 50 * time.Millisecond
	c := dial(t, cfg)
	if _, err := c.API(t.Context(), "status"); !errors.Is(err, bulkhead.Unavailable) {
		t.Errorf("error %v", err)
	}
	if _, err := c.API(t.Context(), "status"); err == nil {
		t.Error("the connection goes on, so that a late reply would be the next command's")
	}
}

func TestCommandWhenConnectionEnds(t *testing.T) {
	cfg := server(t, func(s *session) { s.authenticate(); s.expect("api status") })
	c := dial(t, cfg)
	if _, err := c.API(t.Context(), "status"); !errors.Is(err, io.EOF) {
		t.Errorf("error %v", err)
	}
}

func TestClose(t *testing.T) {
	cfg := server(t, func(s *session) { s.authenticate(); s.drain() })
	c := dial(t, cfg)
	c.Close()
	c.Close()
	if _, err := c.Next(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c = dial(t, server(t, func(s *session) { s.authenticate(); s.drain() }))
	if _, err := c.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, err := c.API(ctx, "status"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
