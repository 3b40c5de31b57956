package cdr

import (
	"math/bits"
	"strings"
)

// Fields is a set of those fields of a Record that have a source of their own.
// Its text is their JSON names, joined by commas.
type Fields uint32

// The fields that Fields can hold. What names a leg (schema, id, kind, cell,
// node, leg) is the same from every source.
const (
	FieldSBC Fields = 1 << iota
	FieldPool
	FieldTenant
	FieldRevision
	FieldCall
	FieldSIPCallID
	FieldDirection
	FieldCaller
	FieldCallee
	FieldStart
	FieldRing
	FieldAnswer
	FieldEnd
	FieldSIPCode
	FieldQ850
	FieldCause
	FieldCodec
	FieldHangupBy
	FieldRTPIn
	FieldRTPOut
	FieldRTPLost
	FieldJitterMS
	FieldMOS
	FieldClockOffset

	fieldCount = iota
)

var fieldNames = [fieldCount]string{
	"sbc", "pool", "tenant", "revision", "call", "sip_call_id", "direction", "caller", "callee", "start", "ring", "answer", "end",
	"sip_code", "q850", "cause", "codec", "hangup_by", "rtp_in", "rtp_out", "rtp_lost", "jitter_ms", "mos", "clock_offset_ns",
}

func (f Fields) String() string {
	var b strings.Builder
	for i := range fieldCount {
		if f&(1<<i) == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(fieldNames[i])
	}
	return b.String()
}

// MarshalText writes what String returns.
func (f Fields) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText wrote. Names that it does not know, of
// a newer version, are left out.
func (f *Fields) UnmarshalText(text []byte) error {
	*f = 0
	for name := range strings.SplitSeq(string(text), ",") {
		for i, known := range fieldNames {
			if name == known {
				*f |= 1 << i
			}
		}
	}
	return nil
}

// each calls fn with the number of every field of the set.
func (f Fields) each(fn func(i int)) {
	for f &= 1<<fieldCount - 1; f != 0; f &= f - 1 {
		fn(bits.TrailingZeros32(uint32(f)))
	}
}
