package freeswitch

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/bulkhead-voip/bulkhead"
)

// Event is what Bulkhead reads of a FreeSWITCH event. A CHANNEL_HANGUP_COMPLETE
// has some 280 fields; those not named here are skipped unread. A field that
// the event does not have is empty. Text is as the switch sent it: a caller's
// name may hold any bytes.
type Event struct {
	Name      string // Event-Name
	Core      string // Core-UUID
	Timestamp string // Event-Date-Timestamp, microseconds since 1970

	Leg       string // Unique-ID
	Direction string // Call-Direction
	Cause     string // Hangup-Cause
	ReadCodec string // Channel-Read-Codec-Name

	OtherLeg, OtherType          string // Other-Leg-Unique-ID, Other-Type
	OriginatingLeg, Originator   string // variable_originating_leg_uuid, variable_originator
	Created, Progress            string // Caller-Channel-Created-Time, -Progress-Time
	ProgressMedia                string // Caller-Channel-Progress-Media-Time
	Answered, HungUp             string // Caller-Channel-Answered-Time, -Hangup-Time
	CallerID, Destination        string // Caller-Caller-ID-Number, Caller-Destination-Number
	FromUser, SIPCallID          string // variable_sip_from_user, variable_sip_call_id
	NetworkIP, NetworkPort       string // variable_sip_network_ip, _port: who sent the INVITE
	Q850, Disposition            string // variable_hangup_cause_q850, variable_sip_hangup_disposition
	TermStatus, FailureStatus    string // variable_sip_term_status, variable_sip_invite_failure_status
	ProtoCause, BridgeProtoCause string // variable_proto_specific_hangup_cause, variable_last_bridge_...
	PacketsIn, PacketsOut        string // variable_rtp_audio_in_packet_count, _out_
	Spacing, Variance            string // variable_rtp_audio_in_mean_interval, _jitter_max_variance
	Flaws, MOS                   string // variable_rtp_audio_in_flaw_total, _mos

	// What a tenant rule may look at.
	Context, Profile, Domain, Account string // Caller-Context, variable_sofia_profile_name, _domain_name, _accountcode

	// The channel variables that a dialplan answer exports.
	Tenant, Pool, SBC, Revision, Status string
	// The headers that an SBC adds; anybody could have sent them.
	HeaderTenant, HeaderSBC, HeaderRevision string

	// Variables that were asked for by name; see Var.
	names, values []string
}

// Var returns the value of a channel variable that was asked for, or that a
// field of Event is made of.
func (e *Event) Var(name string) string {
	if slot := e.variable([]byte(name)); slot != nil {
		return *slot
	}
	return ""
}

// slot returns where a field's value belongs, or nil.
func (e *Event) slot(name []byte) *string {
	switch string(name) {
	case "Event-Name":
		return &e.Name
	case "Core-UUID":
		return &e.Core
	case "Event-Date-Timestamp":
		return &e.Timestamp
	case "Unique-ID":
		return &e.Leg
	case "Call-Direction":
		return &e.Direction
	case "Hangup-Cause":
		return &e.Cause
	case "Channel-Read-Codec-Name":
		return &e.ReadCodec
	case "Other-Leg-Unique-ID":
		return &e.OtherLeg
	case "Other-Type":
		return &e.OtherType
	case "Caller-Channel-Created-Time":
		return &e.Created
	case "Caller-Channel-Progress-Time":
		return &e.Progress
	case "Caller-Channel-Progress-Media-Time":
		return &e.ProgressMedia
	case "Caller-Channel-Answered-Time":
		return &e.Answered
	case "Caller-Channel-Hangup-Time":
		return &e.HungUp
	case "Caller-Caller-ID-Number":
		return &e.CallerID
	case "Caller-Destination-Number":
		return &e.Destination
	case "Caller-Context":
		return &e.Context
	}
	if v, ok := bytes.CutPrefix(name, []byte("variable_")); ok {
		return e.variable(v)
	}
	return nil
}

func (e *Event) variable(name []byte) *string {
	switch string(name) {
	case "originating_leg_uuid":
		return &e.OriginatingLeg
	case "originator":
		return &e.Originator
	case "sip_from_user":
		return &e.FromUser
	case "sip_call_id":
		return &e.SIPCallID
	case "sip_network_ip":
		return &e.NetworkIP
	case "sip_network_port":
		return &e.NetworkPort
	case "hangup_cause_q850":
		return &e.Q850
	case "sip_hangup_disposition":
		return &e.Disposition
	case "sip_term_status":
		return &e.TermStatus
	case "sip_invite_failure_status":
		return &e.FailureStatus
	case "proto_specific_hangup_cause":
		return &e.ProtoCause
	case "last_bridge_proto_specific_hangup_cause":
		return &e.BridgeProtoCause
	case "rtp_audio_in_packet_count":
		return &e.PacketsIn
	case "rtp_audio_out_packet_count":
		return &e.PacketsOut
	case "rtp_audio_in_mean_interval":
		return &e.Spacing
	case "rtp_audio_in_jitter_max_variance":
		return &e.Variance
	case "rtp_audio_in_flaw_total":
		return &e.Flaws
	case "rtp_audio_in_mos":
		return &e.MOS
	case "sofia_profile_name":
		return &e.Profile
	case "domain_name":
		return &e.Domain
	case "accountcode":
		return &e.Account
	case varTenant:
		return &e.Tenant
	case varPool:
		return &e.Pool
	case varSBC:
		return &e.SBC
	case varRevision:
		return &e.Revision
	case varStatus:
		return &e.Status
	case "sip_h_X-Bulkhead-Tenant":
		return &e.HeaderTenant
	case "sip_h_X-Bulkhead-SBC":
		return &e.HeaderSBC
	case "sip_h_X-Bulkhead-Revision":
		return &e.HeaderRevision
	}
	return e.asked(name)
}

// ask makes room for the values of variables by name.
func (e *Event) ask(vars []string) {
	if len(vars) > 0 {
		e.names, e.values = vars, make([]string, len(vars))
	}
}

func (e *Event) asked(name []byte) *string {
	for i, n := range e.names {
		if n == string(name) {
			return &e.values[i]
		}
	}
	return nil
}

// take stores a value. Of a field that occurs twice (Hangup-Cause does) the
// first one counts.
func take(slot *string, value string) {
	if *slot == "" {
		*slot = value
	}
}

// DecodeJSON reads the body of a text/event-json frame. Values may be strings
// or arrays of strings (an array counts as its first element), in any bytes.
// What is no JSON object, or has no Event-Name, is bulkhead.Invalid. The
// channel variables named in vars are kept for Var.
func DecodeJSON(body []byte, vars ...string) (Event, error) {
	var e Event
	e.ask(vars)
	s := scanner{b: body}
	err := s.document(func(name []byte) error {
		if slot := e.slot(name); slot != nil {
			return s.value(slot)
		}
		return s.skip(0)
	})
	if err != nil {
		return Event{}, fmt.Errorf("decode event of %d bytes at byte %d: %w: %w", len(body), s.i, bulkhead.Invalid, err)
	}
	if e.Name == "" {
		return Event{}, fmt.Errorf("decode event of %d bytes: it has no Event-Name: %w", len(body), bulkhead.Invalid)
	}
	return e, nil
}

// DecodePlain reads the body of a text/event-plain frame: "Name: value" lines
// with percent-encoded values. What has no Event-Name is bulkhead.Invalid.
// vars are as for DecodeJSON.
func DecodePlain(body []byte, vars ...string) (Event, error) {
	var e Event
	e.ask(vars)
	for line := range bytes.Lines(body) {
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break // an event's own body follows
		}
		name, value, ok := bytes.Cut(line, []byte(": "))
		if !ok {
			continue
		}
		if slot := e.slot(name); slot != nil {
			take(slot, unescape(string(value)))
		}
	}
	if e.Name == "" {
		return Event{}, fmt.Errorf("decode plain event of %d bytes: it has no Event-Name: %w", len(body), bulkhead.Invalid)
	}
	return e, nil
}

// unescape decodes %XX and leaves everything else, '+' too, as it is: that is
// what switch_url_encode writes.
func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	return string(appendUnescaped(make([]byte, 0, len(s)), s))
}

// appendUnescaped appends s with its percent escapes resolved; what is no
// escape stays as it is.
func appendUnescaped[T string | []byte](dst []byte, s T) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			hi, lo := unhex(s[i+1]), unhex(s[i+2])
			if hi < 16 && lo < 16 {
				dst = append(dst, hi<<4|lo)
				i += 2
				continue
			}
		}
		dst = append(dst, s[i])
	}
	return dst
}

// unhex returns the value of a hex digit, or 255.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// number reads a decimal number, or 0.
func number(s string) int64 {
	if s == "" {
		return 0 // most are, and an error would be made for each
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// moment reads microseconds since 1970; 0 and nonsense are the zero time.
func moment(s string) time.Time {
	if n := number(s); n > 0 && n < 1<<53 {
		return time.UnixMicro(n).UTC()
	}
	return time.Time{}
}

// maxText bounds a text in a record, in bytes.
const maxText = 256

// text makes what a caller sent fit for a record: valid UTF-8, bounded.
func text(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s[:min(len(s), 2*maxText)], "\uFFFD")
	}
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return s
}

// peer is the address that sent the INVITE; the zero AddrPort if it is not known.
func peer(ip, port string) netip.AddrPort {
	a, err := netip.ParseAddr(strings.Trim(ip, "[]"))
	p, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || p == 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p))
}
