// Package cdr holds the call detail record of Bulkhead: one record a call
// leg, from whichever source reported it first, with an id that every source
// computes alike.
package cdr

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// ID identifies a record. It is the same however often, and from whichever
// source, the leg is reported.
type ID [16]byte

// NewID derives the id of a leg from its cell, its node and the leg's own
// name there: the FreeSWITCH channel uuid, the Asterisk UniqueID, or for what
// an SBC reports its Call-ID, CSeq and branch.
func NewID(cell bulkhead.CellID, node, leg string) ID {
	var room [256]byte
	b := room[:0]
	for _, part := range [...]string{string(cell), node, leg} {
		b = append(strconv.AppendInt(b, int64(len(part)), 10), ':')
		b = append(b, part...)
	}
	sum := sha256.Sum256(b)
	var id ID
	copy(id[:], sum[:])
	return id
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText writes the id as 32 lower-case hex digits.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads 32 hex digits.
func (id *ID) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(id) {
		return fmt.Errorf("cdr id %q is not 32 hex digits: %w", text, bulkhead.Invalid)
	}
	copy(id[:], b)
	return nil
}

// Kind says what a record is about.
type Kind string

// The kinds of record.
const (
	// Leg is a call leg on a media node.
	Leg Kind = "leg"
	// Refused is a call that the SBC refused, so that no node saw it.
	Refused Kind = "refused"
	// Failover is an attempt on a node that failed, after which the SBC took
	// the next node within the same INVITE transaction.
	Failover Kind = "failover"
)

// Source names who reported a record.
type Source string

// The sources of a record.
const (
	SourceESL         Source = "esl"         // FreeSWITCH event socket
	SourceHTTP        Source = "http"        // FreeSWITCH mod_json_cdr, posted
	SourceFile        Source = "file"        // what the switch itself left on disk: mod_json_cdr in its err-log-dir, Asterisk in its channel event log
	SourceARI         Source = "ari"         // Asterisk REST interface events
	SourceAMI         Source = "ami"         // Asterisk manager interface, Cdr events
	SourceSBC         Source = "sbc"         // Kamailio
	SourceReconciled  Source = "reconciled"  // the switch's own list of live legs, asked after a gap
	SourceSynthesised Source = "synthesised" // the leg ended unseen, in a gap
)

// Direction is seen from the node.
type Direction string

// The directions of a leg.
const (
	Inbound  Direction = "inbound"
	Outbound Direction = "outbound"
)

// Who ended a leg.
const (
	HangupPeer   = "peer"   // the far end of the leg: BYE or CANCEL, or its refusal
	HangupSwitch = "switch" // the node itself: its dialplan, the other leg, a limit
)

// SchemaVersion numbers the meaning of Record's fields. A field that is added,
// and may be absent, does not change it: Decode reads older entries with that
// field empty, and leaves out what a newer version added.
const SchemaVersion = 1

// Record is one call leg, or one thing that an SBC did instead of making one.
// Times are UTC with microseconds; a zero time means that it did not happen
// or is not known.
type Record struct {
	Schema int    `json:"schema"`
	ID     ID     `json:"id"`
	Kind   Kind   `json:"kind"`
	Source Source `json:"source"` // the best of those that reported the leg

	// Sources are all that reported the leg, sorted. Empty: Source alone did.
	Sources []Source `json:"sources,omitempty"`
	// Prov says for the fields that did not come from Source where they came
	// from. A source may stand here that is not among Sources: it told of the
	// leg while that went on.
	Prov map[Source]Fields `json:"prov,omitempty"`

	Cell     bulkhead.CellID         `json:"cell"`
	Node     bulkhead.NodeID         `json:"node,omitempty"`
	SBC      bulkhead.SBCID          `json:"sbc,omitempty"`
	Pool     bulkhead.PoolID         `json:"pool,omitempty"`
	Tenant   bulkhead.TenantID       `json:"tenant,omitempty"` // empty: unknown
	Revision bulkhead.RevisionNumber `json:"revision,omitempty"`

	Leg       string    `json:"leg"`  // the switch's own name of the leg
	Call      string    `json:"call"` // joins the legs of one call: the A leg's name
	SIPCallID string    `json:"sip_call_id,omitempty"`
	Direction Direction `json:"direction,omitempty"`
	Caller    string    `json:"caller,omitempty"`
	Callee    string    `json:"callee,omitempty"`

	Start  time.Time `json:"start"`
	Ring   time.Time `json:"ring,omitzero"`
	Answer time.Time `json:"answer,omitzero"`
	End    time.Time `json:"end,omitzero"`

	SIPCode int    `json:"sip_code,omitempty"` // final SIP status, 200 when answered; 0 unknown
	Q850    int    `json:"q850,omitempty"`     // ITU-T Q.850 cause, 0 unknown
	Cause   string `json:"cause,omitempty"`    // the switch's own word, or the SBC's reason
	Codec   string `json:"codec,omitempty"`

	// HangupBy says who ended the leg: HangupPeer, HangupSwitch, or empty when unknown.
	HangupBy string `json:"hangup_by,omitempty"`

	// What the switch measured of RTP; nil: not reported, which is not zero.
	RTPIn    *int64   `json:"rtp_in,omitempty"`    // packets received
	RTPOut   *int64   `json:"rtp_out,omitempty"`   // packets sent
	RTPLost  *int64   `json:"rtp_lost,omitempty"`  // packets that did not arrive
	JitterMS *float64 `json:"jitter_ms,omitempty"` // mean, of what arrived
	MOS      *float64 `json:"mos,omitempty"`       // 1 to 5, as the switch estimates it

	// ClockOffset is the node's clock minus the bridge's, as far as the
	// bridge could tell; the record's times are the node's.
	ClockOffset time.Duration `json:"clock_offset_ns,omitempty"`

	// Attrs are the switch's own words that a tenant rule may look at:
	// domain, account_code, context, profile, and the variables that rules
	// name, as var:NAME. A value that could not be taken over as it came, so
	// that its field is empty or holds less, stands here percent-encoded under
	// AttrBad and the field's name. At most MaxAttrs, each value at most 256 bytes.
	Attrs map[string]string `json:"attrs,omitempty"`

	// Gap is the id of the gap that the leg lived through or ended in; the
	// greatest one if there were several.
	Gap string `json:"gap,omitempty"`
}

// What Record.Attrs holds.
const (
	MaxAttrs = 32
	AttrBad  = "bad:" // begins the key of a value that could not be taken over as it came
	AttrVar  = "var:" // begins the key of a channel variable
)

// Reporters returns all sources that reported the leg, sorted.
func (r *Record) Reporters() []Source {
	if len(r.Sources) == 0 && r.Source != "" {
		return []Source{r.Source}
	}
	return r.Sources
}

// Billed returns the time from answer to end, never negative; zero when the
// leg was not answered or its end is not known.
func (r *Record) Billed() time.Duration {
	if r.Answer.IsZero() || r.End.IsZero() {
		return 0
	}
	return max(0, r.End.Sub(r.Answer))
}

// PDD returns the post-dial delay: from the begin of the leg to its ringing,
// or to its answer where nothing rang. Zero when neither happened.
func (r *Record) PDD() time.Duration {
	first := r.Ring
	if first.IsZero() {
		first = r.Answer
	}
	if first.IsZero() || r.Start.IsZero() {
		return 0
	}
	return max(0, first.Sub(r.Start))
}

// Gap is a time in which a node's events were not heard.
type Gap struct {
	ID     string          `json:"id"`
	Cell   bulkhead.CellID `json:"cell"`
	Node   bulkhead.NodeID `json:"node"`
	From   time.Time       `json:"from"`
	To     time.Time       `json:"to,omitzero"` // zero: still open
	Reason string          `json:"reason"`
	Legs   []string        `json:"legs,omitempty"` // legs that ended in the gap, unseen
}

// Entry is what travels from an event bridge to the store: a record or a gap.
type Entry struct {
	Record *Record `json:"record,omitempty"`
	Gap    *Gap    `json:"gap,omitempty"`
	// Raw is the event that the record was made of, in the switch's own words,
	// as Packer wrote it; empty where it is not kept.
	Raw []byte `json:"raw,omitempty"`
}
