package dispatcher

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// answering is a node that answers each OPTIONS after the first so many with
// a status line.
func answering(t *testing.T, deafTo int, line string) string {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for i := 0; ; i++ {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if i < deafTo {
				continue
			}
			_, headers, _ := strings.Cut(string(buf[:n]), "\r\n")
			_, _ = c.WriteTo([]byte("SIP/2.0 200 OK\r\nCall-ID: of-somebody-else\r\n\r\n"), from)
			_, _ = c.WriteTo([]byte(line+"\r\n"+headers), from)
		}
	}()
	return c.LocalAddr().String()
}

func TestPing(t *testing.T) {
	for _, tt := range []struct {
		deafTo int
		line   string
		want   int
	}{{0, "SIP/2.0 200 OK", 200}, {0, "SIP/2.0 503 Full", 503}, {1, "SIP/2.0 404 Not Found", 404}} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		got, err := UDPPinger{}.Ping(ctx, "n1", answering(t, tt.deafTo, tt.line))
		cancel()
		if err != nil || got != tt.want {
			t.Errorf("Ping of a node that says %q after %d lost requests returned %d, %v", tt.line, tt.deafTo, got, err)
		}
	}
}

func TestPingOfTheDead(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := (UDPPinger{}).Ping(ctx, "n1", answering(t, 1000, "")); !errors.Is(err, bulkhead.Unavailable) {
		t.Errorf("Ping of a node that says nothing returned %v", err)
	}
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	long, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	start := time.Now()
	if _, err := (UDPPinger{}).Ping(long, "n1", c.LocalAddr().String()); !errors.Is(err, bulkhead.Unavailable) || time.Since(start) > 30*time.Second {
		t.Errorf("Ping of a closed port returned %v after %s", err, time.Since(start))
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte("SIP/2.0 200 OK\r\nVia: x\r\nCall-ID: abc\r\n\r\n"))
	f.Add([]byte("SIP/2.0 503 Service Unavailable\r\ni:abc\r\n\r\n"))
	f.Add([]byte("SIP/2.0 100 Trying\r\nCall-ID: abc\r\n\r\n"))
	f.Add([]byte("SIP/2.0 +20 OK\r\nCall-ID: abc\r\n\r\n"))
	f.Add([]byte("OPTIONS sip:a SIP/2.0\r\nCall-ID: abc\r\n\r\n"))
	f.Add([]byte("SIP/2.0 200\r\n\r\nCall-ID: abc\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		status, ok := parseReply(b, "abc")
		if ok && (status < 200 || status > 699 || !strings.Contains(string(b), "abc")) {
			t.Errorf("%q is %d", b, status)
		}
	})
}
