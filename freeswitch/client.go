package freeswitch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// defaultPassword is what FreeSWITCH ships with, so everybody knows it.
const defaultPassword = "ClueCon"

// Config says how to reach an event socket. Zero durations and sizes stand
// for their defaults.
type Config struct {
	Addr     string // host:port of mod_event_socket
	Password string
	// AllowDefaultPassword lets the password be ClueCon, for test switches.
	AllowDefaultPassword bool

	DialTimeout    time.Duration // to connect; 5 s
	AuthTimeout    time.Duration // from connected to authenticated; 5 s
	CommandTimeout time.Duration // of one command, reply included; 10 s
	// SilenceTimeout ends a connection on which no frame arrived for so long,
	// not even a HEARTBEAT (every 20 s by default); 60 s. Negative: never.
	SilenceTimeout time.Duration
	// QueueBytes bounds the frames that wait for Next, 128 bytes for each and the
	// memory that its body takes: whole kB for one of up to 16 kB, and above that
	// its length or, over 64 kB, somewhat more; 64 MiB.
	QueueBytes int
}

// String leaves the password out.
func (c Config) String() string { return "event socket " + c.Addr }

// GoString leaves the password out.
func (c Config) GoString() string { return c.String() }

// LogValue leaves the password out.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&c.DialTimeout, 5*time.Second)
	set(&c.AuthTimeout, 5*time.Second)
	set(&c.CommandTimeout, 10*time.Second)
	set(&c.SilenceTimeout, time.Minute)
	if c.QueueBytes == 0 {
		c.QueueBytes = 64 << 20
	}
	return c
}

// validate refuses what must not reach the wire.
func (c Config) validate() error {
	switch {
	case c.Addr == "":
		return fmt.Errorf("event socket: no address: set the node's esl to host:port: %w", bulkhead.Invalid)
	case c.Password == "" || strings.ContainsAny(c.Password, "\r\n"):
		return fmt.Errorf("event socket %s: the password is empty or holds a line end: %w", c.Addr, bulkhead.Invalid)
	case c.Password == defaultPassword && !c.AllowDefaultPassword:
		return fmt.Errorf("event socket %s: the password is FreeSWITCH's default, which everybody knows: set another one in event_socket.conf.xml: %w", c.Addr, bulkhead.Denied)
	}
	return nil
}

// ErrQueueFull ends a connection whose consumer was too slow: Config.QueueBytes
// of frames were waiting. The connection is ended rather than single events
// left out, so that a gap is never silent.
var ErrQueueFull = fmt.Errorf("the queue of received events is full: %w", bulkhead.Unavailable)

// Message is what a Conn hands out in the order of the stream: an event, the
// reply to a Request, or a frame of an unknown type.
type Message struct {
	// Type is the frame's Content-Type, such as text/event-json. The reply to
	// a Request has api/response.
	Type string
	// Body of an event is good until the next call of Next.
	Body []byte
}

// Conn is an authenticated connection to an event socket. Its reader goroutine
// always drains the socket, so that a reply never waits behind events and the
// switch never queues for us. Its methods may be called concurrently; Next by
// one goroutine at a time.
type Conn struct {
	cfg  Config
	conn net.Conn
	done chan struct{} // closed when the reader has returned

	frames *frameReader // of the reader; Next gives bodies back
	spent  []byte       // body of the last event that Next returned

	send sync.Mutex // one command on the wire at a time

	mu      sync.Mutex
	pending *pending  // the command that waits for its reply
	queue   []Message // for Next
	bytes   int       // that the queue takes
	err     error     // why the reader returned
	notice  string    // text of the disconnect notice
	wake    chan struct{}
}

// pending is a command that waits for its reply.
type pending struct {
	inStream bool // the reply goes into the queue, as a Message
	reply    chan frame
}

// Dial connects and authenticates. Errors: bulkhead.Unavailable when the
// switch cannot be reached or does not answer in time, bulkhead.Denied when it
// refuses the password or our address, bulkhead.Invalid for a wrong Config or
// a peer that is no event socket. Close must be called.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: cfg.DialTimeout}
	nc, err := d.DialContext(ctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("connect to event socket %s: %w: %w", cfg.Addr, bulkhead.Unavailable, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	frames := newFrameReader(nc)
	_ = nc.SetDeadline(time.Now().Add(cfg.AuthTimeout))
	err = authenticate(nc, frames, cfg)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	_ = nc.SetDeadline(time.Time{})
	c := &Conn{cfg: cfg, conn: nc, frames: frames, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	go c.read()
	return c, nil
}

// authenticate does what a FreeSWITCH expects of a new client.
func authenticate(nc net.Conn, frames *frameReader, cfg Config) error {
	fail := func(err error) error {
		return fmt.Errorf("authenticate to event socket %s: %w: %w", cfg.Addr, bulkhead.Unavailable, err)
	}
	fr, err := frames.next()
	switch {
	case errors.Is(err, bulkhead.Invalid):
		return fmt.Errorf("authenticate to %s: this is no event socket: %w", cfg.Addr, err)
	case err != nil:
		return fail(err)
	case fr.contentType == typeRudeRejection:
		return fmt.Errorf("event socket %s refuses our address: add it to apply-inbound-acl of event_socket.conf.xml: %w", cfg.Addr, bulkhead.Denied)
	case fr.contentType != typeAuthRequest:
		return fmt.Errorf("authenticate to %s: this is no event socket, it greets with %q: %w", cfg.Addr, clip(fr.contentType), bulkhead.Invalid)
	}
	if _, err := nc.Write([]byte("auth " + cfg.Password + "\n\n")); err != nil {
		return fail(err)
	}
	for {
		fr, err := frames.next()
		if err != nil {
			return fail(err)
		}
		if fr.contentType != typeReply {
			continue
		}
		if !strings.HasPrefix(fr.reply, "+OK") {
			return fmt.Errorf("event socket %s refuses the password (%s): %w", cfg.Addr, clip(fr.reply), bulkhead.Denied)
		}
		return nil
	}
}

// read drains the socket until it ends.
func (c *Conn) read() {
	defer close(c.done)
	for {
		if c.cfg.SilenceTimeout > 0 {
			_ = c.conn.SetReadDeadline(time.Now().Add(c.cfg.SilenceTimeout))
		}
		fr, err := c.frames.next()
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			err = fmt.Errorf("nothing was heard for %s, not even a HEARTBEAT: %w: %w", c.cfg.SilenceTimeout, bulkhead.Unavailable, err)
		}
		if err == nil {
			err = c.deliver(fr)
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

// messageBytes is what a queued message takes beside its body: frames without
// one are not for nothing.
const messageBytes = 128

// deliver hands a frame to the command that waits for it or to the queue.
func (c *Conn) deliver(fr frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch fr.contentType {
	case typeReply, typeResponse:
		p := c.pending
		if p == nil {
			return fmt.Errorf("a reply to no command: %w", bulkhead.Invalid)
		}
		c.pending = nil
		p.reply <- fr // never blocks: it has room for one
		if !p.inStream {
			return nil
		}
	case typeDisconnect:
		c.notice = clip(strings.TrimSpace(string(fr.body)))
		return nil
	}
	if c.bytes+cap(fr.body)+messageBytes > c.cfg.QueueBytes {
		return ErrQueueFull
	}
	c.bytes += cap(fr.body) + messageBytes
	c.queue = append(c.queue, Message{Type: fr.contentType, Body: fr.body})
	c.signal()
	return nil
}

// end records why the connection is over and closes the socket.
func (c *Conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.Close()
	if c.err == nil {
		if c.notice != "" {
			err = fmt.Errorf("%q: %w", c.notice, err)
		}
		c.err = fmt.Errorf("event socket %s: %w", c.cfg.Addr, err)
	}
	c.signal()
}

// signal wakes Next. The lock is held.
func (c *Conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Next returns the next message of the stream and waits for one if need be.
// After the connection ended it returns what was queued before, and then the
// reason: io.EOF wrapped when the switch closed it, ErrQueueFull,
// bulkhead.Unavailable after silence, net.ErrClosed after Close.
func (c *Conn) Next(ctx context.Context) (Message, error) {
	for {
		c.mu.Lock()
		if len(c.queue) > 0 {
			m := c.queue[0]
			c.queue[0] = Message{}
			c.queue = c.queue[1:]
			c.bytes -= cap(m.Body) + messageBytes
			c.mu.Unlock()
			c.frames.reuse(c.spent)
			c.spent = nil
			if m.Type == typeEventJSON || m.Type == typeEventPlain { // who asked has the body of an answer too
				c.spent = m.Body
			}
			return m, nil
		}
		err := c.err
		c.mu.Unlock()
		if err != nil {
			return Message{}, err
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return Message{}, ctx.Err()
		}
	}
}

// Backlog is how many bytes of messages wait for Next.
func (c *Conn) Backlog() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// Command sends a command such as "event json HEARTBEAT" and returns its
// Reply-Text, without the leading "+OK". What the switch answers with anything
// else is bulkhead.Invalid; no answer in time is bulkhead.Unavailable and ends
// the connection, since a late reply would be taken for the next command's.
func (c *Conn) Command(ctx context.Context, command string) (string, error) {
	fr, err := c.exchange(ctx, command, false)
	if err != nil {
		return "", err
	}
	reply, ok := strings.CutPrefix(fr.reply, "+OK")
	if !ok || fr.contentType != typeReply {
		return "", fmt.Errorf("event socket %s refuses %q: %s: %w", c.cfg.Addr, verb(command), clip(fr.reply), bulkhead.Invalid)
	}
	return strings.TrimSpace(reply), nil
}

// API runs an API command of the switch, such as "show channels as json", and
// returns what it printed. The flow of events pauses while it runs. Errors are
// as those of Command; "-ERR ..." and "-USAGE ..." are bulkhead.Invalid.
func (c *Conn) API(ctx context.Context, command string) (string, error) {
	fr, err := c.exchange(ctx, "api "+command, false)
	if err != nil {
		return "", err
	}
	return c.apiText(command, fr)
}

// Request runs an API command whose output Next returns as a Message of type
// api/response, at its place among the events.
func (c *Conn) Request(ctx context.Context, command string) error {
	fr, err := c.exchange(ctx, "api "+command, true)
	if err != nil {
		return err
	}
	_, err = c.apiText(command, fr)
	return err
}

func (c *Conn) apiText(command string, fr frame) (string, error) {
	text := string(fr.body)
	if fr.contentType != typeResponse {
		text = fr.reply
	}
	if fr.contentType != typeResponse || strings.HasPrefix(text, "-ERR") || strings.HasPrefix(text, "-USAGE") {
		return "", fmt.Errorf("event socket %s: api %s: %s: %w", c.cfg.Addr, verb(command), clip(strings.TrimSpace(text)), bulkhead.Invalid)
	}
	return text, nil
}

// verb is the part of a command that an error message may show.
func verb(command string) string {
	v, _, _ := strings.Cut(command, " ")
	return clip(v)
}

// exchange sends a line and waits for its reply.
func (c *Conn) exchange(ctx context.Context, line string, inStream bool) (frame, error) {
	if line == "" || strings.ContainsAny(line, "\r\n\x00") {
		return frame{}, fmt.Errorf("event socket: a command is empty or holds a line end, which would begin another command: %w", bulkhead.Invalid)
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CommandTimeout)
	defer cancel()
	c.send.Lock()
	defer c.send.Unlock()
	if err := ctx.Err(); err != nil {
		return frame{}, fmt.Errorf("event socket %s: %q not sent: %w", c.cfg.Addr, verb(line), err)
	}
	p := &pending{inStream: inStream, reply: make(chan frame, 1)}
	c.mu.Lock()
	if err := c.err; err != nil {
		c.mu.Unlock()
		return frame{}, err
	}
	c.pending = p
	c.mu.Unlock()

	deadline, _ := ctx.Deadline()
	_ = c.conn.SetWriteDeadline(deadline)
	if _, err := c.conn.Write([]byte(line + "\n\n")); err != nil {
		c.end(err)
		return frame{}, fmt.Errorf("send %q to event socket %s: %w: %w", verb(line), c.cfg.Addr, bulkhead.Unavailable, err)
	}
	select {
	case fr := <-p.reply:
		return fr, nil
	case <-c.done:
		select { // the reply may have been the last thing read
		case fr := <-p.reply:
			return fr, nil
		default:
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		return frame{}, c.err
	case <-ctx.Done():
		err := fmt.Errorf("no reply to %q: %w: %w", verb(line), bulkhead.Unavailable, ctx.Err())
		c.end(err)
		return frame{}, fmt.Errorf("event socket %s: %w", c.cfg.Addr, err)
	}
}

// Close ends the connection and its goroutine. What was queued can still be
// read with Next. Only the first call has an effect.
func (c *Conn) Close() error {
	c.end(net.ErrClosed)
	<-c.done
	return nil
}
