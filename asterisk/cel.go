package asterisk

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// The columns of a row of the log, in the order of conf/cel_custom.conf.
const (
	celType = iota
	celTime
	celUniqueID
	celLinkedID
	celChannel
	celAccount
	celCaller
	celExten
	celContext
	celApp
	celExtra
	celColumns
)

// celLegs bounds the legs that a CELLog remembers while they go on.
const celLegs = 100_000

// CELLog makes records of the rows that Asterisk's cel_custom appends to a
// file (conf/cel_custom.conf): a second report of every leg, whoever listens
// while it goes on, with microseconds. Three rows of a channel make one
// record: CHAN_START, ANSWER if it was answered, HANGUP; others are passed over.
//
// What the file does not tell: the SIP Call-ID, when it rang, media, channel
// variables. The number of a leg that was dialled is that which the caller
// dialled. Its end is that of the channel, which may be some milliseconds
// after the far end hung up.
//
// A CELLog belongs to one goroutine.
type CELLog struct {
	identity
	legs map[string]*celLeg
	max  int
}

// celLeg is a leg that goes on.
type celLeg struct {
	cdr.Record
	// Begun: its first row was read, so what is not there did not happen.
	Begun bool `json:"begun,omitempty"`
}

// NewCELLog returns the decoder of one node's log.
func NewCELLog(cell bulkhead.CellID, node bulkhead.NodeID) *CELLog {
	return &CELLog{identity: identity{cell: cell, node: node}, legs: map[string]*celLeg{}, max: celLegs}
}

// Row takes one row, without its line end. ok: the leg has ended, and r is its
// record. What is no row of such a log is bulkhead.Invalid.
func (c *CELLog) Row(row []byte) (r cdr.Record, ok bool, err error) {
	f, at, err := decodeCEL(row)
	if err != nil {
		return cdr.Record{}, false, err
	}
	if !isLeg(f[celChannel]) {
		return cdr.Record{}, false, nil
	}
	switch f[celType] {
	case "CHAN_START":
		c.begin(f, at)
	case "ANSWER":
		l := c.leg(f)
		if l.Answer.IsZero() {
			l.Answer = at
		}
	case "HANGUP":
		l := c.leg(f)
		delete(c.legs, l.Leg)
		return l.hangup(f, at), true, nil
	}
	return cdr.Record{}, false, nil
}

// decodeCEL reads a row.
func decodeCEL(row []byte) (fields []string, at time.Time, err error) {
	bad := func(err error) error {
		return fmt.Errorf("decode row of the channel event log, %d bytes: %w: %w", len(row), bulkhead.Invalid, err)
	}
	r := csv.NewReader(bytes.NewReader(row))
	r.FieldsPerRecord = celColumns
	if fields, err = r.Read(); err != nil {
		return nil, time.Time{}, bad(err)
	}
	if _, err := r.Read(); !errors.Is(err, io.EOF) {
		return nil, time.Time{}, bad(errors.New("it is more than one row"))
	}
	if id := fields[celUniqueID]; id == "" || len(id) > maxName {
		return nil, time.Time{}, bad(errors.New("it has no usable uniqueid"))
	}
	if at = epoch(fields[celTime]); at.IsZero() {
		return nil, time.Time{}, bad(errors.New("its time is not in seconds since 1970: cel.conf must have no dateformat"))
	}
	return fields, at, nil
}

// begin takes CHAN_START.
func (c *CELLog) begin(f []string, at time.Time) {
	l := c.leg(f)
	l.Begun, l.Start = true, at
	caller := c.legs[f[celLinkedID]]
	switch {
	case f[celLinkedID] != f[celUniqueID] && f[celLinkedID] != "":
		l.Direction = cdr.Outbound
		if caller != nil {
			l.Caller = caller.Caller
		}
	case f[celExten] == "s" && f[celCaller] == "": // a channel that Asterisk makes by itself begins so
		l.Direction = cdr.Outbound
	default:
		l.Direction, l.Caller = cdr.Inbound, text(f[celCaller])
	}
	setAttr(&l.Record, "context", f[celContext])
}

// leg returns the leg of a row, with what every row tells of it.
func (c *CELLog) leg(f []string) *celLeg {
	l := c.legs[f[celUniqueID]]
	if l == nil {
		if len(c.legs) >= c.max {
			c.forget()
		}
		l = &celLeg{Record: c.blank(f[celUniqueID], cdr.SourceFile)}
		l.Start = begun(l.Leg)
		setAttr(&l.Record, "endpoint", endpoint(f[celChannel]))
		c.legs[l.Leg] = l
	}
	if linked := f[celLinkedID]; linked != "" && len(linked) <= maxName {
		l.Call = text(linked)
	}
	setAttr(&l.Record, "account_code", f[celAccount])
	if f[celApp] == "AppDial" || f[celApp] == "AppDial2" {
		l.Direction = cdr.Outbound
	}
	if l.Direction == cdr.Outbound {
		l.Callee = text(cmp.Or(f[celCaller], l.Callee))
	} else {
		l.Callee = text(cmp.Or(f[celExten], l.Callee))
	}
	return l
}

// forget drops the older half: those that a crash of Asterisk left without an
// end are among them.
func (c *CELLog) forget() {
	all := make([]*celLeg, 0, len(c.legs))
	for _, l := range c.legs {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b *celLeg) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Leg, b.Leg)) })
	for _, l := range all[:(len(all)+1)/2] {
		delete(c.legs, l.Leg)
	}
}

// hangup takes HANGUP.
func (l *celLeg) hangup(f []string, at time.Time) cdr.Record {
	var extra struct {
		Cause  int    `json:"hangupcause"`
		Source string `json:"hangupsource"`
		Dialed string `json:"dialstatus"`
	}
	if _, err := lenient([]byte(f[celExtra]), &extra); err != nil && f[celExtra] != "" {
		setAttr(&l.Record, cdr.AttrBad+"extra", url.PathEscape(text(f[celExtra])))
	}
	r := l.Record
	r.End = at
	if extra.Cause > 0 && extra.Cause < 128 {
		r.Q850 = extra.Cause
	} else if extra.Cause != 0 {
		setBad(&r, "q850", strconv.Itoa(extra.Cause))
	}
	r.HangupBy = cdr.HangupSwitch
	byPeer := extra.Source != "" && extra.Source == f[celChannel]
	if byPeer {
		r.HangupBy = cdr.HangupPeer
	}
	r.Cause = causeText(extra.Cause)
	switch {
	case !r.Answer.IsZero():
		r.SIPCode = 200
	case !l.Begun:
		// It may have been answered before the first row that was read.
	case r.Direction == cdr.Outbound && byPeer:
		if extra.Cause != 21 { // 401, 403, 407 or 603
			r.SIPCode = statusOf(extra.Cause)
		}
	case byPeer:
		r.SIPCode, r.Cause = 487, "CANCEL"
	case r.Direction == cdr.Outbound:
		r.SIPCode = 487
	default:
		r.SIPCode, r.Cause = statusOf(extra.Cause), text(cmp.Or(extra.Dialed, r.Cause))
	}
	return r
}

// State returns the legs that go on, for Restore.
func (c *CELLog) State() ([]byte, error) {
	list := make([]*celLeg, 0, len(c.legs))
	for _, l := range c.legs {
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b *celLeg) int { return strings.Compare(a.Leg, b.Leg) })
	return json.Marshal(list)
}

// Restore takes what State returned, in place of what is known.
func (c *CELLog) Restore(state []byte) error {
	var list []*celLeg
	if err := json.Unmarshal(state, &list); err != nil {
		return fmt.Errorf("read the open legs of the channel event log: %w: %w", bulkhead.Invalid, err)
	}
	c.legs = make(map[string]*celLeg, len(list))
	for _, l := range list {
		if l != nil && l.Leg != "" && len(c.legs) < c.max {
			c.legs[l.Leg] = l
		}
	}
	return nil
}

// causeText is Asterisk's own word for a hangup cause, as ChannelDestroyed has it.
func causeText(cause int) string {
	switch cause {
	case 1:
		return "Unallocated (unassigned) number"
	case 3:
		return "No route to destination"
	case 16:
		return "Normal Clearing"
	case 17:
		return "User busy"
	case 18:
		return "No user responding"
	case 19:
		return "User alerting, no answer"
	case 20:
		return "Subscriber absent"
	case 21:
		return "Call Rejected"
	case 26:
		return "Answered elsewhere"
	case 27:
		return "Destination out of order"
	case 31:
		return "Normal, unspecified"
	case 34:
		return "Circuit/channel congestion"
	case 38:
		return "Network out of order"
	case 42:
		return "Switching equipment congestion"
	case 58:
		return "Bearer capability not available"
	case 127:
		return "Interworking, unspecified"
	}
	return "Unknown"
}
