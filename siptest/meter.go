package siptest

import (
	"net/netip"
	"time"
)

// Stats is what one Media has sent and received.
type Stats struct {
	Sent       int64          // RTP packets sent, forwarded ones included
	SendErrors int64          // packets that the socket refused
	Received   int64          // valid RTP packets received
	Bytes      int64          // payload bytes received
	Audible    int64          // received packets with a sample other than silence
	Lost       int64          // expected minus received (RFC 3550 A.3), never below 0
	OutOfOrder int64          // packets older than one before them, duplicates included
	Invalid    int64          // datagrams that were not RTP version 2
	Jitter     time.Duration  // interarrival jitter (RFC 3550 A.8)
	First      time.Time      // arrival of the first packet, by the kernel; zero: none
	Last       time.Time      // arrival of the last packet, by the kernel; zero: none
	Source     netip.AddrPort // where the last packet came from
}

// meter keeps the receiver's side of RFC 3550 appendix A for one stream. A new
// SSRC starts a new sequence; what was lost before it stays counted.
type meter struct {
	started  bool
	ssrc     uint32
	base     uint32 // first sequence number of this SSRC
	max      uint16 // highest sequence number seen
	cycles   uint32 // 65536 for each wrap
	got      int64  // packets of this SSRC
	lost     int64  // of earlier SSRCs
	ooo      int64
	transit  int64 // relative transit time, in 1/8000 s
	jitter16 int64 // 16 times the jitter, in 1/8000 s
}

func (m *meter) packet(ssrc uint32, seq uint16, ts uint32, arrival time.Time) {
	at := arrival.UnixMicro() * 8 / 1000 // 8000 Hz clock
	if !m.started || ssrc != m.ssrc {
		m.lost = m.lostNow()
		*m = meter{started: true, ssrc: ssrc, base: uint32(seq), max: seq, got: 1, lost: m.lost, ooo: m.ooo, jitter16: m.jitter16}
		m.transit = int64(uint32(at) - ts)
		return
	}
	m.got++
	switch delta := seq - m.max; {
	case delta == 0 || delta >= 0x8000:
		m.ooo++
	default:
		if seq < m.max {
			m.cycles += 1 << 16
		}
		m.max = seq
	}
	transit := int64(uint32(at) - ts)
	d := int64(int32(uint32(transit) - uint32(m.transit)))
	m.transit = transit
	if d < 0 {
		d = -d
	}
	m.jitter16 += d - (m.jitter16+8)>>4
}

// lostNow is the number of packets lost so far; duplicates can make up for
// losses, as in the RFC.
func (m *meter) lostNow() int64 {
	if !m.started {
		return 0
	}
	expected := int64(m.cycles+uint32(m.max)-m.base) + 1
	return m.lost + max(0, expected-m.got)
}

func (m *meter) jitter() time.Duration {
	return time.Duration(m.jitter16) * time.Second / (16 * 8000)
}
