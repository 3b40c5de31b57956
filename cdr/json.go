package cdr

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// AppendJSON appends a record to b: the bytes that json.Marshal makes of it,
// for a small part of what that costs. A record is encoded several times on
// its way, and there is nothing else that a call costs as much. The error says
// that a time is beyond the years 0 to 9999, or that a number is not finite.
func (r *Record) AppendJSON(b []byte) ([]byte, error) {
	w := jsonWriter{b: append(b, '{')}
	w.key("schema").number(int64(r.Schema))
	w.key("id").text(r.ID.String())
	w.key("kind").text(string(r.Kind))
	w.key("source").text(string(r.Source))
	w.list("sources", r.Sources)
	if len(r.Prov) > 0 {
		w.key("prov").open()
		var room [8]Source
		for _, s := range sortedKeys(room[:0], r.Prov) {
			w.key(string(s)).text(r.Prov[s].String())
		}
		w.close()
	}
	w.key("cell").text(string(r.Cell))
	w.optional("node", string(r.Node))
	w.optional("sbc", string(r.SBC))
	w.optional("pool", string(r.Pool))
	w.optional("tenant", string(r.Tenant))
	if r.Revision != 0 {
		w.key("revision")
		w.b = strconv.AppendUint(w.b, uint64(r.Revision), 10)
	}

	w.key("leg").text(r.Leg)
	w.key("call").text(r.Call)
	w.optional("sip_call_id", r.SIPCallID)
	w.optional("direction", string(r.Direction))
	w.optional("caller", r.Caller)
	w.optional("callee", r.Callee)

	w.key("start").time(r.Start)
	w.moment("ring", r.Ring)
	w.moment("answer", r.Answer)
	w.moment("end", r.End)

	w.count("sip_code", int64(r.SIPCode))
	w.count("q850", int64(r.Q850))
	w.optional("cause", r.Cause)
	w.optional("codec", r.Codec)
	w.optional("hangup_by", r.HangupBy)

	w.packets("rtp_in", r.RTPIn)
	w.packets("rtp_out", r.RTPOut)
	w.packets("rtp_lost", r.RTPLost)
	w.measure("jitter_ms", r.JitterMS)
	w.measure("mos", r.MOS)
	w.count("clock_offset_ns", int64(r.ClockOffset))

	if len(r.Attrs) > 0 {
		w.key("attrs").open()
		var room [MaxAttrs]string
		for _, k := range sortedKeys(room[:0], r.Attrs) {
			w.key(k).text(r.Attrs[k])
		}
		w.close()
	}
	w.optional("gap", r.Gap)
	w.close()
	return w.b, w.err
}

// sortedKeys returns the keys of m, in room if they fit.
func sortedKeys[K cmp.Ordered, V any](room []K, m map[K]V) []K {
	for k := range m {
		room = append(room, k)
	}
	slices.Sort(room)
	return room
}

// jsonWriter appends members of objects as encoding/json writes them.
type jsonWriter struct {
	b   []byte
	err error // the first one
}

func (w *jsonWriter) open()  { w.b = append(w.b, '{') }
func (w *jsonWriter) close() { w.b = append(w.b, '}') }

// key begins a member.
func (w *jsonWriter) key(name string) *jsonWriter {
	if w.b[len(w.b)-1] != '{' {
		w.b = append(w.b, ',')
	}
	w.text(name)
	w.b = append(w.b, ':')
	return w
}

func (w *jsonWriter) text(s string)    { w.b = AppendString(w.b, s) }
func (w *jsonWriter) number(n int64)   { w.b = strconv.AppendInt(w.b, n, 10) }
func (w *jsonWriter) time(t time.Time) { w.b = append(w.stamp(append(w.b, '"'), t), '"') }

func (w *jsonWriter) stamp(b []byte, t time.Time) []byte {
	out, err := t.AppendText(b)
	if err != nil {
		if w.err == nil {
			w.err = fmt.Errorf("encode time: %w", err)
		}
		return b
	}
	return out
}

func (w *jsonWriter) optional(name, s string) {
	if s != "" {
		w.key(name).text(s)
	}
}

func (w *jsonWriter) count(name string, n int64) {
	if n != 0 {
		w.key(name).number(n)
	}
}

func (w *jsonWriter) moment(name string, t time.Time) {
	if !t.IsZero() {
		w.key(name).time(t)
	}
}

func (w *jsonWriter) packets(name string, n *int64) {
	if n != nil {
		w.key(name).number(*n)
	}
}

func (w *jsonWriter) measure(name string, f *float64) {
	if f == nil {
		return
	}
	w.key(name)
	if a := math.Abs(*f); a == 0 || a >= 1e-6 && a < 1e21 {
		w.b = strconv.AppendFloat(w.b, *f, 'f', -1, 64)
		return
	}
	b, err := json.Marshal(*f) // with an exponent, or not at all
	if err != nil && w.err == nil {
		w.err = fmt.Errorf("encode %s: %w", name, err)
	}
	w.b = append(w.b, b...)
}

func (w *jsonWriter) list(name string, sources []Source) {
	if len(sources) == 0 {
		return
	}
	w.key(name)
	w.b = append(w.b, '[')
	for i, s := range sources {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		w.text(string(s))
	}
	w.b = append(w.b, ']')
}

// AppendString appends s as a JSON string, the same as json.Marshal does.
func AppendString(b []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ', c > '~', c == '"', c == '\\', c == '<', c == '>', c == '&':
			quoted, _ := json.Marshal(s) // of a string it does not fail
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
