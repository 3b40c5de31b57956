package asterisk

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // AMI's challenge knows nothing better
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// The bounds of AMI messages.
const (
	maxLine    = 16 << 10 // bytes; a Cdr event's longest line has some hundred
	maxHeaders = 512      // lines of a message
	maxBytes   = 256 << 10
)

// message is an AMI message: an event, a response, or what a PBX of another
// version sends.
type message map[string]string

// amiReader reads AMI messages: lines "Key: value" up to an empty one.
type amiReader struct{ r *bufio.Reader }

func newAMIReader(nc net.Conn) *amiReader { return &amiReader{bufio.NewReaderSize(nc, maxLine)} }

// line reads one line without its end. A longer one than maxLine is
// bulkhead.Invalid.
func (a *amiReader) line() (string, error) {
	b, err := a.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", fmt.Errorf("a line is longer than %d bytes: %w", maxLine, bulkhead.Invalid)
	}
	if err != nil {
		return "", err
	}
	return string(bytes.TrimRight(b, "\r\n")), nil
}

// next reads one message. Of keys that come twice the last one stays. Lines
// without a colon are passed over: some events of Asterisk end in two empty lines.
func (a *amiReader) next() (message, error) {
	m := message{}
	size := 0
	for lines := 0; ; lines++ {
		l, err := a.line()
		if err != nil {
			return nil, err
		}
		size += len(l)
		if lines > maxHeaders || size > maxBytes {
			return nil, fmt.Errorf("a message has more than %d lines or %d bytes: %w", maxHeaders, maxBytes, bulkhead.Invalid)
		}
		if l == "" {
			if len(m) == 0 {
				lines = 0
				continue
			}
			return m, nil
		}
		if key, value, ok := strings.Cut(l, ":"); ok {
			m[key] = strings.TrimPrefix(value, " ")
		}
	}
}

// amiConn is a connection to AMI that is logged in. Its reader goroutine
// always drains the socket.
type amiConn struct {
	cfg      AMI
	nc       net.Conn
	messages chan message
	stop     chan struct{}
	once     sync.Once
	wg       sync.WaitGroup
	err      error // why the reader ended; read it after messages is closed
}

// dialAMI connects and logs in, for Cdr events only. The secret itself is not
// sent: AMI's MD5 challenge is answered. Errors are as those of Source.Run.
func dialAMI(ctx context.Context, cfg AMI) (*amiConn, error) {
	d := net.Dialer{Timeout: cfg.Timeout}
	nc, err := d.DialContext(ctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("connect to AMI %s: %w: %w", cfg.Addr, bulkhead.Unavailable, err)
	}
	cut := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	_ = nc.SetDeadline(time.Now().Add(cfg.Timeout))
	c := &amiConn{cfg: cfg, nc: nc, messages: make(chan message, 64), stop: make(chan struct{})}
	reader := newAMIReader(nc)
	err = c.login(reader)
	if !cut() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("log in to AMI %s: %w", cfg.Addr, err)
	}
	_ = nc.SetDeadline(time.Time{})
	c.wg.Add(1)
	go c.read(reader)
	return c, nil
}

func (c *amiConn) login(r *amiReader) error {
	banner, err := r.line()
	if err != nil {
		return fmt.Errorf("%w: %w", bulkhead.Unavailable, err)
	}
	if !strings.HasPrefix(banner, "Asterisk Call Manager/") {
		return fmt.Errorf("this is no AMI, it greets with %q: %w", text(banner), bulkhead.Invalid)
	}
	answer, err := c.ask(r, "Action: Challenge", "AuthType: MD5")
	if err != nil {
		return err
	}
	sum := md5.Sum([]byte(answer["Challenge"] + c.cfg.Secret)) //nolint:gosec // as above
	_, err = c.ask(r, "Action: Login", "AuthType: MD5", "Username: "+c.cfg.User, "Key: "+hex.EncodeToString(sum[:]), "Events: cdr")
	return err
}

// ask sends an action and waits for its response, before the reader runs.
func (c *amiConn) ask(r *amiReader, lines ...string) (message, error) {
	if err := c.write(lines...); err != nil {
		return nil, err
	}
	for {
		m, err := r.next()
		if err != nil {
			if !errors.Is(err, bulkhead.Invalid) {
				err = fmt.Errorf("%w: %w", bulkhead.Unavailable, err)
			}
			return nil, err
		}
		switch m["Response"] {
		case "":
			continue // an event
		case "Success":
			return m, nil
		}
		return nil, fmt.Errorf("it refuses (%s): check the user, the secret and the permit lines in manager.conf: %w", text(m["Message"]), bulkhead.Denied)
	}
}

// write sends an action. Its lines must hold no line ends.
func (c *amiConn) write(lines ...string) error {
	var b bytes.Buffer
	for _, l := range lines {
		if strings.ContainsAny(l, "\r\n") {
			return fmt.Errorf("an action's line holds a line end: %w", bulkhead.Invalid)
		}
		b.WriteString(l)
		b.WriteString("\r\n")
	}
	b.WriteString("\r\n")
	_ = c.nc.SetWriteDeadline(time.Now().Add(c.cfg.Timeout))
	if _, err := c.nc.Write(b.Bytes()); err != nil {
		return fmt.Errorf("%w: %w", bulkhead.Unavailable, err)
	}
	return nil
}

// read hands on messages until the connection ends or nothing, not even the
// answer to a ping, arrives in time.
func (c *amiConn) read(r *amiReader) {
	defer c.wg.Done()
	defer close(c.messages)
	for {
		_ = c.nc.SetReadDeadline(time.Now().Add(c.cfg.Ping + pongWait))
		m, err := r.next()
		if err != nil {
			if late := net.Error(nil); errors.As(err, &late) && late.Timeout() {
				err = fmt.Errorf("nothing was heard for %s, not even the answer to a ping: %w", c.cfg.Ping+pongWait, bulkhead.Unavailable)
			}
			c.err = fmt.Errorf("AMI %s: %w", c.cfg.Addr, err)
			return
		}
		select {
		case c.messages <- m:
		case <-c.stop:
			return
		}
	}
}

// ping sends a Ping; the answer only has to come.
func (c *amiConn) ping() error { return c.write("Action: Ping") }

// close ends the connection and joins its reader.
func (c *amiConn) close() {
	c.once.Do(func() {
		close(c.stop)
		_ = c.nc.Close()
	})
	c.wg.Wait()
}
