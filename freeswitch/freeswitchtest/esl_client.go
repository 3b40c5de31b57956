package freeswitchtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxLost is how many events more than its queue holds a client may lose
	// before it is cut off (capture esl/client-that-does-not-read.txt).
	maxLost = 500
	// maxCommand bounds one command with its headers and body.
	maxCommand = 64 << 10
	// farewell bounds the writing of the last words to a client.
	farewell = time.Second
)

const goodbye = "Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n"

// command is one frame of a client.
type command struct {
	line    string
	headers fields
	body    string
}

// client is one event socket connection. Its states are those of the protocol:
// greeted, authenticated, and closed.
type client struct {
	n     *Node
	conn  net.Conn
	queue chan *event

	mu      sync.Mutex // guards what offer reads
	all     bool
	names   map[string]bool // event names, and subclasses of CUSTOM
	asJSON  bool
	filters fields
	lost    int
	killed  bool

	authed bool
	closed bool // the conversation is over
}

// serve runs one connection until it ends, or until ctx ends, which is the
// node's shutdown.
func (n *Node) serveClient(ctx context.Context, conn net.Conn) {
	c := &client{n: n, conn: conn, queue: make(chan *event, n.cfg.ESLQueue), names: map[string]bool{}}
	commands := make(chan command)
	gone := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(commands)
		if err := readCommands(conn, commands, gone); err != nil {
			n.log.Debug("event socket client", "remote", conn.RemoteAddr().String(), "err", err)
		}
	})
	n.hub.join(c)
	c.loop(ctx, commands)
	n.hub.leave(c)
	close(gone)
	if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		n.log.Debug("close event socket client", "err", err)
	}
	reader.Wait()
}

// loop serves commands and events in one goroutine, as a real one does: a
// reply and an event never mix within a frame.
func (c *client) loop(ctx context.Context, commands <-chan command) {
	c.write("Content-Type: auth/request\n\n")
	for !c.closed {
		select {
		case cmd, ok := <-commands:
			if !ok {
				return
			}
			c.command(cmd)
		case ev := <-c.queue:
			c.mu.Lock()
			asJSON := c.asJSON
			c.mu.Unlock()
			c.writeBytes(ev.frame(asJSON))
		case <-ctx.Done():
			c.drain()
			c.setDeadline()
			c.notice("The system is being shut down.\n") // capture esl/shutdown.txt
			return
		}
	}
	c.mu.Lock()
	killed := c.killed
	c.mu.Unlock()
	if killed {
		// The notice stands in the middle of a frame, and what was queued is lost
		// (capture esl/client-that-does-not-read.txt).
		if err := c.conn.SetWriteDeadline(time.Now().Add(farewell)); err == nil {
			_, _ = io.WriteString(c.conn, noticeFrame("killed listener because of lost events\n")) // the client may be gone
		}
	}
}

// drain writes what is queued already, at shutdown.
func (c *client) drain() {
	c.setDeadline()
	for !c.closed {
		select {
		case ev := <-c.queue:
			c.mu.Lock()
			asJSON := c.asJSON
			c.mu.Unlock()
			c.writeBytes(ev.frame(asJSON))
		default:
			return
		}
	}
}

func (c *client) setDeadline() {
	if err := c.conn.SetWriteDeadline(time.Now().Add(farewell)); err != nil {
		c.closed = true
	}
}

// offer is called by the hub, under its lock; it never waits.
func (c *client) offer(ev *event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.killed || !c.wants(ev) {
		return
	}
	select {
	case c.queue <- ev:
		return
	default:
	}
	c.lost++
	if c.lost > maxLost {
		c.killed = true
		c.n.log.Error("event socket: killing listener because of too many lost events",
			"remote", c.conn.RemoteAddr().String(), "lost", c.lost, "queue", cap(c.queue))
		if err := c.conn.SetWriteDeadline(time.Now()); err != nil { // ends the write that hangs
			c.n.log.Debug("event socket deadline", "err", err)
		}
	}
}

// wants is called with the lock held. Filters are OR-ed (fact 37).
func (c *client) wants(ev *event) bool {
	if !c.all && !c.names[ev.name] && (ev.name != "CUSTOM" || !c.names[ev.subclass]) {
		return false
	}
	if len(c.filters) == 0 {
		return true
	}
	for _, f := range c.filters {
		if v, ok := ev.fields.get(f.name); ok && strings.Contains(strings.ToLower(v), strings.ToLower(f.value)) {
			return true
		}
	}
	return false
}

func (c *client) write(s string) { c.writeBytes([]byte(s)) }

func (c *client) writeBytes(b []byte) {
	if _, err := c.conn.Write(b); err != nil {
		c.closed = true
	}
}

// reply answers a command; further lines are headers of the reply.
func (c *client) reply(text string, headers ...string) {
	var b strings.Builder
	b.WriteString("Content-Type: command/reply\nReply-Text: " + text + "\n")
	for _, h := range headers {
		b.WriteString(h + "\n")
	}
	b.WriteString("\n")
	c.write(b.String())
}

func (c *client) notice(text string) { c.write(noticeFrame(text)) }

func noticeFrame(text string) string {
	return fmt.Sprintf("Content-Type: text/disconnect-notice\nContent-Length: %d\n\n%s", len(text), text)
}

// readCommands hands over one command after another until the connection or
// gone ends. A command ends with an empty line; Content-Length adds a body.
func readCommands(conn io.Reader, out chan<- command, gone <-chan struct{}) error {
	r := bufio.NewReader(conn)
	for {
		cmd, err := readCommand(r)
		if err != nil {
			return err
		}
		select {
		case out <- cmd:
		case <-gone:
			return nil
		}
	}
}

func readCommand(r *bufio.Reader) (command, error) {
	var cmd command
	size := 0
	for {
		line, err := readLine(r, maxCommand-size)
		if err != nil {
			return cmd, err
		}
		size += len(line) + 1
		line = strings.TrimRight(line, "\r")
		switch {
		case line == "" && cmd.line == "":
			continue // blank lines between commands
		case line == "":
			n, _ := cmd.headers.get("content-length")
			if n == "" {
				return cmd, nil
			}
			want, err := strconv.ParseUint(strings.TrimSpace(n), 10, 31)
			if err != nil || int(want) > maxCommand {
				return cmd, fmt.Errorf("event socket command with Content-Length %q, at most %d is read", clip(n, 20), maxCommand)
			}
			body := make([]byte, want)
			if _, err := io.ReadFull(r, body); err != nil {
				return cmd, err
			}
			cmd.body = string(body)
			return cmd, nil
		case cmd.line == "":
			cmd.line = line
		default:
			if k, v, ok := strings.Cut(line, ":"); ok {
				cmd.headers.add(strings.TrimSpace(k), strings.TrimSpace(v))
			}
		}
	}
}

// readLine reads one line without its newline, of at most limit bytes.
func readLine(r *bufio.Reader, limit int) (string, error) {
	var b []byte
	for {
		part, err := r.ReadSlice('\n')
		b = append(b, part...)
		if len(b) > limit {
			return "", fmt.Errorf("event socket command of more than %d bytes", maxCommand)
		}
		if err == nil {
			return string(b[:len(b)-1]), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return "", err
		}
	}
}
