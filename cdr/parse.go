package cdr

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// parseEntry reads an entry of a record as Encode writes most: plain texts
// without an escape, and known names. Of anything else it says false, and
// encoding/json has the word. Where it says true, it has read what encoding/json
// would have read.
func parseEntry(b []byte) (e Entry, ok bool) {
	p := parser{b: b}
	p.object(func(name []byte) {
		switch {
		case string(name) == "record" && e.Record == nil:
			e.Record = new(Record)
			p.record(e.Record)
		case string(name) == "raw" && e.Raw == nil:
			e.Raw = p.base64()
		default:
			p.bad = true
		}
	})
	return e, !p.bad && len(p.b) == 0 && e.Record != nil
}

// parser reads JSON from the front of b.
type parser struct {
	b   []byte
	bad bool // it is not what this parser reads; b is of no use then
}

func (p *parser) record(r *Record) {
	p.object(func(name []byte) {
		switch string(name) {
		case "schema":
			r.Schema = int(p.integer())
		case "id":
			p.bad = r.ID.UnmarshalText(p.text()) != nil || p.bad
		case "kind":
			r.Kind = Kind(p.string())
		case "source":
			r.Source = Source(p.string())
		case "sources":
			r.Sources = p.sources()
		case "prov":
			p.bad = p.bad || r.Prov != nil // a second one would be added to it
			r.Prov = map[Source]Fields{}
			p.object(func(name []byte) {
				var f Fields
				source := Source(name)
				_, again := r.Prov[source]
				p.bad = f.UnmarshalText(p.text()) != nil || again || p.bad
				r.Prov[source] = f
			})
		case "cell":
			r.Cell = bulkhead.CellID(p.string())
		case "node":
			r.Node = bulkhead.NodeID(p.string())
		case "sbc":
			r.SBC = bulkhead.SBCID(p.string())
		case "pool":
			r.Pool = bulkhead.PoolID(p.string())
		case "tenant":
			r.Tenant = bulkhead.TenantID(p.string())
		case "revision":
			n := p.integer()
			p.bad = p.bad || n < 0
			r.Revision = bulkhead.RevisionNumber(n)
		case "leg":
			r.Leg = p.string()
		case "call":
			r.Call = p.string()
		case "sip_call_id":
			r.SIPCallID = p.string()
		case "direction":
			r.Direction = Direction(p.string())
		case "caller":
			r.Caller = p.string()
		case "callee":
			r.Callee = p.string()
		case "start":
			r.Start = p.time()
		case "ring":
			r.Ring = p.time()
		case "answer":
			r.Answer = p.time()
		case "end":
			r.End = p.time()
		case "sip_code":
			r.SIPCode = int(p.integer())
		case "q850":
			r.Q850 = int(p.integer())
		case "cause":
			r.Cause = p.string()
		case "codec":
			r.Codec = p.string()
		case "hangup_by":
			r.HangupBy = p.string()
		case "rtp_in":
			r.RTPIn = new(p.integer())
		case "rtp_out":
			r.RTPOut = new(p.integer())
		case "rtp_lost":
			r.RTPLost = new(p.integer())
		case "jitter_ms":
			r.JitterMS = new(p.float())
		case "mos":
			r.MOS = new(p.float())
		case "clock_offset_ns":
			r.ClockOffset = time.Duration(p.integer())
		case "attrs":
			p.bad = p.bad || r.Attrs != nil
			r.Attrs = map[string]string{}
			p.object(func(name []byte) {
				key := string(name)
				_, again := r.Attrs[key]
				p.bad = p.bad || again
				r.Attrs[key] = p.string()
			})
		case "gap":
			r.Gap = p.string()
		default:
			p.bad = true
		}
	})
}

// object calls member with the name of each member, which has to read its value.
func (p *parser) object(member func(name []byte)) {
	p.expect('{')
	if p.next('}') {
		return
	}
	for !p.bad {
		name := p.text()
		p.expect(':')
		if p.bad {
			return
		}
		member(name)
		if !p.next(',') {
			p.expect('}')
			return
		}
	}
}

// next takes c away if it is there.
func (p *parser) next(c byte) bool {
	if len(p.b) == 0 || p.b[0] != c {
		return false
	}
	p.b = p.b[1:]
	return true
}

func (p *parser) expect(c byte) { p.bad = !p.next(c) || p.bad }

// text reads a string of printable ASCII without an escape.
func (p *parser) text() []byte {
	if !p.next('"') {
		p.bad = true
		return nil
	}
	end := bytes.IndexByte(p.b, '"')
	if end < 0 {
		p.bad = true
		return nil
	}
	s := p.b[:end]
	for _, c := range s {
		if c < ' ' || c > '~' || c == '\\' {
			p.bad = true
			return nil
		}
	}
	p.b = p.b[end+1:]
	return s
}

func (p *parser) string() string { return string(p.text()) }

func (p *parser) time() (t time.Time) {
	p.bad = t.UnmarshalText(p.text()) != nil || p.bad
	return t
}

func (p *parser) base64() []byte {
	s := p.text()
	out := make([]byte, base64.StdEncoding.DecodedLen(len(s)))
	n, err := base64.StdEncoding.Decode(out, s)
	p.bad = err != nil || p.bad
	return out[:n]
}

func (p *parser) sources() (out []Source) {
	p.expect('[')
	for !p.bad {
		out = append(out, Source(p.string()))
		if !p.next(',') {
			p.expect(']')
			break
		}
	}
	return out
}

// digits takes a JSON number's integer part away, which has no more than 18 digits.
func (p *parser) digits() []byte {
	n := 0
	if len(p.b) > 0 && p.b[0] == '-' {
		n++
	}
	first := n
	for n < len(p.b) && '0' <= p.b[n] && p.b[n] <= '9' {
		n++
	}
	if n == first || n-first > 18 || p.b[first] == '0' && n-first > 1 {
		p.bad = true
		return nil
	}
	s := p.b[:n]
	p.b = p.b[n:]
	return s
}

func (p *parser) integer() int64 {
	s := p.digits()
	if p.bad {
		return 0
	}
	n, err := strconv.ParseInt(string(s), 10, 64)
	p.bad = err != nil
	return n
}

// float reads a number without an exponent.
func (p *parser) float() float64 {
	whole := p.b
	p.digits()
	if p.next('.') {
		n := 0
		for n < len(p.b) && '0' <= p.b[n] && p.b[n] <= '9' {
			n++
		}
		p.b, p.bad = p.b[n:], p.bad || n == 0
	}
	if p.bad {
		return 0
	}
	f, err := strconv.ParseFloat(string(whole[:len(whole)-len(p.b)]), 64)
	p.bad = err != nil
	return f
}
