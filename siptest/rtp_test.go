package siptest_test

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

func newMedia(t *testing.T) *siptest.MediaEngine {
	t.Helper()
	e, err := siptest.NewMediaEngine(siptest.MediaConfig{IP: "127.0.0.6"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func open(t *testing.T, e *siptest.MediaEngine) *siptest.Media {
	t.Helper()
	m, err := e.Open()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMediaBridge is a B2BUA's pair between two phones, one of which is not
// told where to send: symmetric RTP finds out.
func TestMediaBridge(t *testing.T) {
	e := newMedia(t)
	a, legA, legB, b := open(t, e), open(t, e), open(t, e), open(t, e)
	siptest.Bridge(legA, legB)
	a.SetRemote(legA.Addr())
	legB.SetRemote(b.Addr())
	if err := a.Send(siptest.PCMA, 400); err != nil {
		t.Fatal(err)
	}
	if err := b.Send(siptest.PCMA, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "packets both ways", func() bool { return a.Stats().Received >= 10 && b.Stats().Received >= 10 })
	a.Stop()
	b.Stop()
	if s := b.Stats(); s.Audible != s.Received || s.Bytes != 160*s.Received || s.Lost != 0 || s.Source != legB.Addr() {
		t.Errorf("tone as received: %+v", s)
	}
	if s := a.Stats(); s.Audible != 0 || s.Source != legA.Addr() {
		t.Errorf("silence as received: %+v", s)
	}
	eventually(t, "the legs' counts", func() bool {
		x, y := legA.Stats(), legB.Stats()
		return x.Received == a.Stats().Sent && y.Received == b.Stats().Sent && y.Sent <= x.Received && b.Stats().Received == y.Sent
	})
	if err := a.Send(siptest.PCMU, 401); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("a tone that clicks: %v", err)
	}
	if err := legA.Close(); err != nil {
		t.Error(err)
	}
}

// TestMediaMetersLossAndOrder sends 0 to 9 across the wrap of the sequence
// number, without 4, and 7 after 8.
func TestMediaMetersLossAndOrder(t *testing.T) {
	m := open(t, newMedia(t))
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(m.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, i := range []int{0, 1, 2, 3, 5, 6, 8, 7, 9} {
		p := make([]byte, 172)
		p[0] = 0x80
		binary.BigEndian.PutUint16(p[2:], uint16(65533+i))
		binary.BigEndian.PutUint32(p[4:], uint32(160*i))
		binary.BigEndian.PutUint32(p[8:], 7)
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, junk := range []string{"x", "\x00aaaaaaaaaaaaaaaa", "\x9faaaaaaaaaaaaaa", "\xa0aaaaaaaaaaaaaa\xff"} {
		if _, err := conn.Write([]byte(junk)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the last datagram", func() bool { return m.Stats().Invalid == 4 })
	if s := m.Stats(); s.Received != 9 || s.Lost != 1 || s.OutOfOrder != 1 {
		t.Errorf("%+v, want 9 received, 1 lost, 1 out of order", s)
	}
}

// TestArrivalIsNotReading holds the reader up while a second packet comes: what
// counts is when it came, not when it was read.
func TestArrivalIsNotReading(t *testing.T) {
	m := open(t, newMedia(t))
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(m.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	release := make(chan struct{})
	t.Cleanup(func() { close(release) }) // before the engine ends
	m.OnPacket(func([]byte) { <-release })
	send := func() {
		p := make([]byte, 172)
		p[0] = 0x80
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	// The kernel may take a while until it begins to say when packets come.
	eventually(t, "a packet that came before it could be read", func() bool {
		n := m.Stats().Received
		send()
		eventually(t, "the first packet", func() bool { return m.Stats().Received > n })
		send()
		came := time.Now()
		release <- struct{}{}
		eventually(t, "the second packet", func() bool { return m.Stats().Received > n+1 })
		release <- struct{}{}
		return !m.Stats().Last.After(came)
	})
}

// TestManyMedia wants 50 packets a second from each of 200 streams, give or
// take what a busy machine may hold up, on one clock.
func TestManyMedia(t *testing.T) {
	e := newMedia(t)
	var pairs [][2]*siptest.Media
	for range 100 {
		a, b := open(t, e), open(t, e)
		a.SetRemote(b.Addr())
		b.SetRemote(a.Addr())
		for _, m := range []*siptest.Media{a, b} {
			if err := m.Send(siptest.PCMU, 400); err != nil {
				t.Fatal(err)
			}
		}
		pairs = append(pairs, [2]*siptest.Media{a, b})
	}
	start := time.Now()
	eventually(t, "25 packets at each", func() bool {
		for _, p := range pairs {
			if p[0].Stats().Received < 25 || p[1].Stats().Received < 25 {
				return false
			}
		}
		return true
	})
	if d := time.Since(start); d < 400*time.Millisecond {
		t.Errorf("25 packets took %v: faster than the clock", d)
	}
}
