package asterisk

import (
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// The channel variables that have a meaning of their own here. All are named
// by channelvars in ari.conf; CHANNEL(...) are dialplan functions, which
// Asterisk evaluates there.
const (
	varLinkedID     = "CHANNEL(linkedid)"
	varHangupSource = "CHANNEL(hangupsource)"
	varFormat       = "CHANNEL(audionativeformat)"
	varDialStatus   = "DIALSTATUS"
	varDomain       = "SIPDOMAIN"
	varQuality      = "RTPAUDIOQOS"
	varTalked       = "ANSWEREDTIME_MS"
)

const (
	maxAttr = 256 // bytes of an attribute
	maxName = 256 // bytes of a channel's id
)

// identity says whose records are made.
type identity struct {
	cell      bulkhead.CellID
	node      bulkhead.NodeID
	tenantVar string
}

// blank is the record of a leg of which only the name is known.
func (i *identity) blank(leg string, source cdr.Source) cdr.Record {
	return cdr.Record{
		Schema: cdr.SchemaVersion, Kind: cdr.Leg, Source: source,
		ID:   cdr.NewID(i.cell, string(i.node), leg),
		Cell: i.cell, Node: i.node, Leg: leg, Call: leg,
	}
}

var tenantForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// setTenant takes a tenant's id from the switch; anything else is kept as an
// attribute only.
func setTenant(r *cdr.Record, value string) {
	switch {
	case value == "":
	case tenantForm.MatchString(value):
		r.Tenant = bulkhead.TenantID(value)
	default:
		setBad(r, "tenant", value)
	}
}

// setBad keeps a value that could not be taken over as it came, under the name
// of its field. Whoever stores the record counts it.
func setBad(r *cdr.Record, field, value string) {
	value = url.PathEscape(value[:min(len(value), maxAttr)])
	if len(value) > maxAttr {
		value = value[:maxAttr]
		if i := strings.LastIndexByte(value, '%'); i > maxAttr-3 { // an escape is not cut in two
			value = value[:i]
		}
	}
	setAttr(r, cdr.AttrBad+field, value)
}

// setAttr keeps a word of the switch that a rule may look at.
func setAttr(r *cdr.Record, key, value string) {
	if value == "" || len(key) > maxAttr {
		return
	}
	if r.Attrs == nil {
		r.Attrs = map[string]string{}
	}
	if _, has := r.Attrs[key]; !has && len(r.Attrs) >= cdr.MaxAttrs {
		return
	}
	r.Attrs[key] = text(value)
}

// text bounds a word of the switch and makes it valid UTF-8.
func text(s string) string {
	if len(s) > maxAttr {
		s = s[:maxAttr]
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
		for len(s) > maxAttr {
			_, n := utf8.DecodeLastRuneInString(s)
			s = s[:len(s)-n]
		}
	}
	return s
}

// setQuality reads RTPAUDIOQOS, which chan_pjsip sets when the media ends:
// ssrc=..;themssrc=..;lp=0;rxjitter=0.000000;rxcount=250;txjitter=..;txcount=0;...
// lp is what did not arrive, as of the last RTCP report. txjitter, by its name
// that of what is sent, is in truth the one that Asterisk measured of what
// arrives (it has a value on a leg to which nothing is sent); rxjitter is the
// one that the far end reported. Where no packet arrived, loss and jitter are
// not known. Asterisk's media experience score is no MOS.
func setQuality(r *cdr.Record, qos string) {
	var jitter *float64
	var lost *int64
	known := false
	for field := range strings.SplitSeq(qos, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		number := func(field string) *int64 {
			known = true
			n := count(value)
			if n == nil {
				setBad(r, field, value)
			}
			return n
		}
		switch name {
		case "rxcount":
			r.RTPIn = number("rtp_in")
		case "txcount":
			r.RTPOut = number("rtp_out")
		case "lp":
			lost = number("rtp_lost")
		case "txjitter": // seconds
			known = true
			if f, err := strconv.ParseFloat(value, 64); err == nil && f >= 0 && f < 1e6 {
				f *= 1000
				jitter = &f
			} else {
				setBad(r, "jitter_ms", value)
			}
		}
	}
	if !known {
		setBad(r, "rtp", qos)
	}
	if r.RTPIn != nil && *r.RTPIn > 0 {
		r.RTPLost, r.JitterMS = lost, jitter
	}
}

func count(s string) *int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return nil
	}
	return &n
}

// codec is the first format of CHANNEL(audionativeformat), which is (ulaw) or
// (ulaw|alaw), by its SDP encoding name.
func codec(formats string) string {
	first, _, _ := strings.Cut(strings.Trim(formats, "()"), "|")
	switch first {
	case "none", "nothing":
		return ""
	case "ulaw":
		return "PCMU"
	case "alaw":
		return "PCMA"
	case "g722":
		return "G722"
	case "g729":
		return "G729"
	}
	return text(first)
}

// finalStatus tells whether code is a final SIP status that is no success.
func finalStatus(code int) bool { return code >= 300 && code <= 699 }

// statusOf is the SIP status that chan_pjsip sends for a hangup cause
// (hangup_cause2sip of 22.10.1); 603 is what it sends for any other.
func statusOf(cause int) int {
	switch cause {
	case 1, 2, 3:
		return 404
	case 17:
		return 486
	case 18:
		return 408
	case 19, 20, 31:
		return 480
	case 21:
		return 403
	case 22:
		return 410
	case 27:
		return 502
	case 28:
		return 484
	case 29:
		return 501
	case 34, 42, 66:
		return 503
	case 38, 127:
		return 500
	case 58:
		return 488
	}
	return 603
}
