package freeswitch

import (
	"strconv"
	"unicode/utf8"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

// quarantine keeps what of a leg's fields could not be taken over as it came,
// percent-encoded among the attributes: a time or a number that is none, and a
// text with odd bytes or too many. One bad field must not cost the record.
func (e *Event) quarantine(r *cdr.Record) {
	bad := func(name, value string) {
		if len(r.Attrs) >= cdr.MaxAttrs {
			return
		}
		if r.Attrs == nil {
			r.Attrs = map[string]string{}
		}
		r.Attrs[cdr.AttrBad+name] = percent(value)
	}
	for _, f := range [...]struct{ name, value string }{
		{"start", e.Created}, {"ring", e.Progress}, {"ring_media", e.ProgressMedia}, {"answer", e.Answered}, {"end", e.HungUp},
	} {
		if f.value != "" && f.value != "0" && moment(f.value).IsZero() {
			bad(f.name, f.value)
		}
	}
	for _, f := range [...]struct {
		name, value string
		ok          bool
	}{
		{"q850", e.Q850, number(e.Q850) > 0 && number(e.Q850) < 128 || e.Q850 == "0"},
		{"revision", e.Revision, e.Revision == "0" || number(e.Revision) > 0},
		{"rtp_in", e.PacketsIn, r.RTPIn != nil},
		{"rtp_out", e.PacketsOut, r.RTPOut != nil},
		{"rtp_lost", e.Flaws, count(e.Flaws) != nil},
		{"jitter_ms", e.Variance, isNumber(e.Variance)},
		{"mos", e.MOS, isNumber(e.MOS)},
	} {
		if f.value != "" && !f.ok {
			bad(f.name, f.value)
		}
	}
	for _, f := range [...]struct{ name, value string }{
		{"leg", e.Leg}, {"caller", first(e.FromUser, e.CallerID)}, {"callee", e.Destination}, {"sip_call_id", e.SIPCallID},
		{"cause", e.Cause}, {"codec", e.ReadCodec}, {"domain", e.Domain}, {"account_code", e.Account},
	} {
		if len(f.value) > maxText || !utf8.ValidString(f.value) {
			bad(f.name, f.value)
		}
	}
}

func isNumber(s string) bool {
	_, err := strconv.ParseFloat(s, 64)
	return err == nil
}

// percent writes every byte that is not printable ASCII, and the percent sign,
// as %XX, and cuts at maxText bytes.
func percent(s string) string {
	const hex = "0123456789ABCDEF"
	out := make([]byte, 0, min(len(s), maxText))
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c <= '~' && c != '%' {
			out = append(out, c)
		} else {
			out = append(out, '%', hex[c>>4], hex[c&15])
		}
		if len(out) > maxText-3 {
			break
		}
	}
	return string(out)
}
