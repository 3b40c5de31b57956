package siptest

import "math"

// Codec is a G.711 law. Its value is the static RTP payload type (RFC 3551
// section 6).
type Codec uint8

// The codecs of this package, 8000 Hz, one byte a sample.
const (
	PCMU Codec = 0
	PCMA Codec = 8
)

// String returns the encoding name that SDP uses.
func (c Codec) String() string {
	switch c {
	case PCMU:
		return "PCMU"
	case PCMA:
		return "PCMA"
	}
	return "unknown"
}

func (c Codec) valid() bool { return c == PCMU || c == PCMA }

// frameSamples is 20 ms at 8000 Hz.
const frameSamples = 160

// silence is the code of a zero sample.
func (c Codec) silence() byte { return c.encode(0) }

// frame is 20 ms of a sine, or of silence if hz is 0. hz must be a multiple of
// 50, so that the frame repeats without a click.
func (c Codec) frame(hz int) []byte {
	out := make([]byte, frameSamples)
	for i := range out {
		s := 8000 * math.Sin(2*math.Pi*float64(hz)*float64(i)/8000)
		out[i] = c.encode(int16(s))
	}
	return out
}

// encode compresses one 16-bit sample (ITU-T G.711).
func (c Codec) encode(s int16) byte {
	if c == PCMA {
		return alaw(s)
	}
	return ulaw(s)
}

func ulaw(s int16) byte {
	const bias, clip = 0x84, 32635
	v, sign := int(s), byte(0)
	if v < 0 {
		v, sign = -v, 0x80
	}
	v = min(v, clip) + bias
	exp := 7
	for mask := 0x4000; exp > 0 && v&mask == 0; mask >>= 1 {
		exp--
	}
	return ^(sign | byte(exp<<4) | byte(v>>(exp+3))&0x0f)
}

func alaw(s int16) byte {
	v, sign := int(s), byte(0x80)
	if v < 0 {
		v, sign = -v-1, 0
	}
	v >>= 3 // 13 bits
	var out byte
	if v < 32 {
		out = byte(v >> 1)
	} else {
		exp := 1
		for v >= 64 {
			v >>= 1
			exp++
		}
		out = byte(exp<<4) | byte(v>>1)&0x0f
	}
	return (out | sign) ^ 0x55
}
