package dispatcher

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// UDPPinger sends OPTIONS over UDP, from a port of its own each time: a node
// whose port is closed is known as soon as the kernel says so.
type UDPPinger struct{}

// pingAgain is when an OPTIONS is sent a second time.
const pingAgain = 200 * time.Millisecond

// Ping sends OPTIONS to a node at ip:port and returns the status of its
// answer. No answer before the context's deadline is bulkhead.Unavailable.
func (UDPPinger) Ping(ctx context.Context, _ bulkhead.NodeID, addr string) (int, error) {
	fail := func(err error) (int, error) {
		return 0, fmt.Errorf("OPTIONS to %s: %w: %w", addr, bulkhead.Unavailable, err)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", addr)
	if err != nil {
		return fail(err)
	}
	defer c.Close() //nolint:errcheck // nothing is buffered
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	id := make([]byte, 12)
	_, _ = rand.Read(id) // it never fails
	callID := hex.EncodeToString(id)
	msg := options(c.LocalAddr().String(), addr, callID)
	buf := make([]byte, 64<<10)
	for sent := 0; ; {
		if sent < 2 {
			if _, err := c.Write(msg); err != nil {
				return fail(err)
			}
			sent++
		}
		if sent == 1 {
			_ = c.SetReadDeadline(time.Now().Add(pingAgain))
		} else {
			_ = c.SetReadDeadline(time.Time{})
		}
		if ctx.Err() != nil { // its end may have come before the deadline above
			return fail(ctx.Err())
		}
		for {
			n, err := c.Read(buf)
			var late net.Error
			if errors.As(err, &late) && late.Timeout() && ctx.Err() == nil && sent == 1 {
				break // once more
			}
			if err != nil {
				return fail(errors.Join(err, ctx.Err()))
			}
			if status, ok := parseReply(buf[:n], callID); ok {
				return status, nil
			}
		}
	}
}

// options is the request (RFC 3261 section 11).
func options(from, to, callID string) []byte {
	return fmt.Appendf(nil, "OPTIONS sip:%[2]s SIP/2.0\r\n"+
		"Via: SIP/2.0/UDP %[1]s;rport;branch=z9hG4bK%[3]s\r\n"+
		"Max-Forwards: 70\r\n"+
		"From: <sip:ping@dispatcher.invalid>;tag=%[3]s\r\n"+
		"To: <sip:%[2]s>\r\n"+
		"Call-ID: %[3]s\r\n"+
		"CSeq: 1 OPTIONS\r\n"+
		"Contact: <sip:ping@%[1]s>\r\n"+
		"Content-Length: 0\r\n\r\n", from, to, callID)
}

// parseReply returns the status of a final reply to the request with a
// Call-ID of ours.
func parseReply(b []byte, callID string) (status int, ok bool) {
	line, rest, found := bytes.Cut(b, []byte("\r\n"))
	f := bytes.SplitN(line, []byte(" "), 3)
	if !found || len(f) < 2 || !bytes.Equal(f[0], []byte("SIP/2.0")) || len(f[1]) != 3 {
		return 0, false
	}
	status, err := strconv.Atoi(string(f[1]))
	if err != nil || status < 200 || status > 699 {
		return 0, false
	}
	for h := range bytes.SplitSeq(rest, []byte("\r\n")) {
		if len(h) == 0 {
			break
		}
		name, value, _ := bytes.Cut(h, []byte(":"))
		name = bytes.TrimSpace(name)
		if (bytes.EqualFold(name, []byte("Call-ID")) || bytes.EqualFold(name, []byte("i"))) && string(bytes.TrimSpace(value)) == callID {
			return status, true
		}
	}
	return 0, false
}
