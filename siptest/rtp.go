package siptest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/rtp"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-voip/bulkhead"
)

// MediaConfig is the configuration of a MediaEngine.
type MediaConfig struct {
	// IP is the address that streams are bound to and that SDP names. Empty: 127.0.0.1.
	IP string
	// Logger; nil discards.
	Logger *slog.Logger
}

// frameTime is the length of a packet and the period of the clock.
const frameTime = 20 * time.Millisecond

// MediaEngine owns RTP streams and the one 20 ms clock that drives them all.
type MediaEngine struct {
	ip  netip.Addr
	log *slog.Logger

	mu     sync.Mutex
	open   map[*Media]struct{}
	closed bool
	done   chan struct{}
	wg     sync.WaitGroup
}

// NewMediaEngine starts the clock. Close it.
func NewMediaEngine(cfg MediaConfig) (*MediaEngine, error) {
	if cfg.IP == "" {
		cfg.IP = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(cfg.IP)
	if err != nil || ip.IsUnspecified() {
		return nil, fmt.Errorf("media address %q: give one numeric address, because SDP carries it: %w", cfg.IP, bulkhead.Invalid)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e := &MediaEngine{ip: ip.Unmap(), log: cfg.Logger, open: map[*Media]struct{}{}, done: make(chan struct{})}
	e.wg.Add(1)
	go e.tick()
	return e, nil
}

// Close closes every stream and stops the clock.
func (e *MediaEngine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	close(e.done)
	var open []*Media
	for m := range e.open {
		open = append(open, m)
	}
	e.mu.Unlock()
	var errs []error
	for _, m := range open {
		errs = append(errs, m.Close())
	}
	e.wg.Wait()
	return errors.Join(errs...)
}

// tick sends one frame of every sending stream each 20 ms. A tick that comes
// late is made up for, up to a quarter of a second, so that the rate stays
// 50 packets a second on a busy machine.
func (e *MediaEngine) tick() {
	defer e.wg.Done()
	t := time.NewTicker(frameTime)
	defer t.Stop()
	next := time.Now()
	var batch []*Media
	for {
		select {
		case <-e.done:
			return
		case <-t.C:
		}
		now := time.Now()
		if now.Sub(next) > 250*time.Millisecond {
			next = now
		}
		e.mu.Lock()
		batch = batch[:0]
		for m := range e.open {
			batch = append(batch, m)
		}
		e.mu.Unlock()
		for ; !next.After(now); next = next.Add(frameTime) {
			for _, m := range batch {
				m.sendFrame()
			}
		}
	}
}

// Media is one RTP endpoint: a UDP socket that sends G.711 and meters what it
// receives. It is safe for concurrent use.
type Media struct {
	e    *MediaEngine
	conn *net.UDPConn
	addr netip.AddrPort

	// Written by the reader under mu, so that Stats sees one moment.
	mu      sync.Mutex
	remote  netip.AddrPort
	latched bool // remote is where packets really come from
	sending bool
	header  rtp.Header
	frame   []byte
	out     []byte
	meter   meter
	stats   Stats
	peer    *Media
	hook    func([]byte)
	closed  bool
}

// Open makes an endpoint on an even port that the system chooses. It sends
// nothing before Send and meters from the first packet on.
func (e *MediaEngine) Open() (*Media, error) {
	conn, err := listenEven(e.ip)
	if err != nil {
		return nil, fmt.Errorf("open an RTP port on %s: %w", e.ip, err)
	}
	_ = conn.SetReadBuffer(1 << 18) // best effort
	stampArrivals(conn)
	m := &Media{
		e: e, conn: conn, addr: conn.LocalAddr().(*net.UDPAddr).AddrPort(),
		header: rtp.Header{Version: 2, SSRC: rand.Uint32(), SequenceNumber: uint16(rand.Uint32()), Timestamp: rand.Uint32()},
		out:    make([]byte, 12+frameSamples),
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, errors.Join(fmt.Errorf("open an RTP port: the media engine is closed: %w", bulkhead.Unavailable), conn.Close())
	}
	e.open[m] = struct{}{}
	e.wg.Add(1)
	e.mu.Unlock()
	go m.read()
	return m, nil
}

// listenEven tries a few times for an even port, which is customary for RTP
// (RFC 3550 section 11), and takes an odd one in the end.
func listenEven(ip netip.Addr) (*net.UDPConn, error) {
	for try := 0; ; try++ {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
		if err != nil {
			return nil, err
		}
		if try == 4 || conn.LocalAddr().(*net.UDPAddr).Port%2 == 0 {
			return conn, nil
		}
		if err := conn.Close(); err != nil {
			return nil, err
		}
	}
}

// Addr is the address that SDP must name.
func (m *Media) Addr() netip.AddrPort { return m.addr }

// SetRemote says where to send; packets that come from elsewhere move it there
// (symmetric RTP).
func (m *Media) SetRemote(addr netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remote, m.latched = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), false
}

// Send starts to send a tone of hz, which must be a multiple of 50 and below
// 4000, or silence if hz is 0, each 20 ms from the next tick on. Nothing leaves
// while the remote side is unknown.
func (m *Media) Send(c Codec, hz int) error {
	if !c.valid() || hz < 0 || hz >= 4000 || hz%50 != 0 {
		return fmt.Errorf("send %s at %d Hz: want PCMU or PCMA, and a multiple of 50 below 4000: %w", c, hz, bulkhead.Invalid)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.header.PayloadType, m.header.Marker = uint8(c), true
	m.frame, m.sending = c.frame(hz), true
	return nil
}

// Stop ends Send; receiving goes on.
func (m *Media) Stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sending = false
}

// OnPacket calls f with every valid RTP packet from the reader's goroutine. f
// must neither block nor keep the slice. Nil removes it.
func (m *Media) OnPacket(f func(packet []byte)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = f
}

// Bridge forwards every packet that a receives to b's remote side and the
// other way round, unchanged. Both meter what they receive and count what they
// forward as sent. Close either to end its half.
func Bridge(a, b *Media) {
	for _, p := range [][2]*Media{{a, b}, {b, a}} {
		p[0].mu.Lock()
		p[0].peer = p[1]
		p[0].mu.Unlock()
	}
}

// Unbridge undoes Bridge for this side.
func (m *Media) Unbridge() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peer = nil
}

// Stats returns what was counted so far; it stays readable after Close.
func (m *Media) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stats
	s.Lost, s.OutOfOrder, s.Jitter = m.meter.lostNow(), m.meter.ooo, m.meter.jitter()
	return s
}

// Close frees the port.
func (m *Media) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed, m.sending, m.peer = true, false, nil
	m.mu.Unlock()
	m.e.mu.Lock()
	delete(m.e.open, m)
	m.e.mu.Unlock()
	return m.conn.Close()
}

func (m *Media) sendFrame() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.sending || !m.remote.IsValid() {
		return
	}
	n, err := m.header.MarshalTo(m.out)
	if err != nil {
		m.stats.SendErrors++
		return
	}
	n += copy(m.out[n:], m.frame)
	m.header.Marker = false
	m.header.SequenceNumber++
	m.header.Timestamp += frameSamples
	m.write(m.out[:n])
}

// write is called with the lock held.
func (m *Media) write(b []byte) {
	if _, err := m.conn.WriteToUDPAddrPort(b, m.remote); err != nil {
		m.stats.SendErrors++
		return
	}
	m.stats.Sent++
}

// forward sends another endpoint's packet.
func (m *Media) forward(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed && m.remote.IsValid() {
		m.write(b)
	}
}

func (m *Media) read() {
	defer m.e.wg.Done()
	buf, control := make([]byte, 2048), make([]byte, unix.CmsgSpace(stampBytes))
	for {
		n, stamped, _, src, err := m.conn.ReadMsgUDPAddrPort(buf, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the error of an earlier send
		}
		m.receive(buf[:n], netip.AddrPortFrom(src.Addr().Unmap(), src.Port()), arrival(control[:stamped]))
	}
}

// stampBytes is the length of a timestamp of the kernel's, two 64-bit numbers.
const stampBytes = 16

// stampArrivals asks the kernel when each packet came. When this process got
// round to reading it says how busy this host is, not how the stream fares.
func stampArrivals(conn *net.UDPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return // as below
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) // best effort: arrival has another answer
	})
}

// arrival returns when a packet came, by what the kernel said with it; now, if
// it said nothing.
func arrival(control []byte) time.Time {
	if len(control) < unix.CmsgLen(stampBytes) {
		return time.Now()
	}
	h, b, _, err := unix.ParseOneSocketControlMessage(control)
	if err != nil || h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_TIMESTAMPNS || len(b) < stampBytes {
		return time.Now()
	}
	return time.Unix(int64(binary.NativeEndian.Uint64(b)), int64(binary.NativeEndian.Uint64(b[8:])))
}

func (m *Media) receive(b []byte, src netip.AddrPort, now time.Time) {
	payload, ok := rtpPayload(b)
	m.mu.Lock()
	if !ok {
		m.stats.Invalid++
		m.mu.Unlock()
		return
	}
	if !m.latched {
		m.remote, m.latched = src, true
	}
	m.meter.packet(binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:]), now)
	s := &m.stats
	s.Received++
	s.Bytes += int64(len(payload))
	if s.First.IsZero() {
		s.First = now
	}
	s.Last, s.Source = now, src
	quiet := PCMU.silence()
	if Codec(b[1]&0x7f) == PCMA {
		quiet = PCMA.silence()
	}
	if bytes.Count(payload, []byte{quiet}) < len(payload) {
		s.Audible++
	}
	peer, hook := m.peer, m.hook
	m.mu.Unlock()
	if hook != nil {
		hook(b)
	}
	if peer != nil {
		peer.forward(b)
	}
}

// rtpPayload checks the fixed header by hand (RFC 3550 section 5.1), because
// this runs for each of thousands of packets a second.
func rtpPayload(b []byte) ([]byte, bool) {
	if len(b) < 12 || b[0]>>6 != 2 {
		return nil, false
	}
	n := 12 + 4*int(b[0]&0x0f)
	if b[0]&0x10 != 0 {
		if len(b) < n+4 {
			return nil, false
		}
		n += 4 + 4*int(binary.BigEndian.Uint16(b[n+2:]))
	}
	if len(b) < n {
		return nil, false
	}
	end := len(b)
	if b[0]&0x20 != 0 {
		pad := int(b[end-1])
		if pad == 0 || end-pad < n {
			return nil, false
		}
		end -= pad
	}
	return b[n:end], true
}
