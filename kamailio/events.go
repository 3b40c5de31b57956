package kamailio

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// maxEventLine bounds one line of a report. kamailio.cfg writes about 900
// bytes at most.
const maxEventLine = 8 << 10

// maxEventText bounds each text of an event.
const maxEventText = 256

// event is one line as route[EVENT] of kamailio.cfg writes it.
type event struct {
	Kind   string `json:"kind"`
	SBC    string `json:"sbc"`
	CallID string `json:"callid"`
	CSeq   string `json:"cseq"`
	Branch string `json:"branch"`
	From   string `json:"from"`
	To     string `json:"to"`
	Domain string `json:"domain"`
	Src    string `json:"src"`
	Tenant string `json:"tenant"`
	Node   string `json:"node"`
	Code   string `json:"code"`
	Reason string `json:"reason"`
	Time   string `json:"time"`
	Rev    string `json:"rev"`
}

// DecodeEvents reads what the SBC of a cell posts: one JSON object a line.
// resolve names the media node at an ip:port, or returns ""; nil: none is named.
//
// A line that cannot be read is left out and told of in the error, whose kind
// is bulkhead.Invalid; the records of all other lines are returned even then.
func DecodeEvents(cell bulkhead.CellID, resolve func(addr string) bulkhead.NodeID, body []byte) ([]cdr.Record, error) {
	var records []cdr.Record
	var first error
	bad, n := 0, 0
	for line := range bytes.Lines(body) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		r, err := decodeEvent(cell, resolve, line)
		if err != nil {
			if bad++; first == nil {
				first = fmt.Errorf("line %d: %w", n, err)
			}
			continue
		}
		records = append(records, r)
	}
	if bad > 0 {
		return records, fmt.Errorf("decode events of an SBC of cell %s: %d of %d lines left out, the first: %w: %w", cell, bad, n, bulkhead.Invalid, first)
	}
	return records, nil
}

func decodeEvent(cell bulkhead.CellID, resolve func(string) bulkhead.NodeID, line []byte) (cdr.Record, error) {
	if len(line) > maxEventLine {
		return cdr.Record{}, fmt.Errorf("%d bytes are more than %d", len(line), maxEventLine)
	}
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		return cdr.Record{}, err
	}
	for _, s := range []string{e.SBC, e.CallID, e.CSeq, e.Branch, e.From, e.To, e.Tenant, e.Node, e.Reason} {
		if len(s) > maxEventText {
			return cdr.Record{}, fmt.Errorf("a text is longer than %d bytes", maxEventText)
		}
	}
	kind := cdr.Kind(e.Kind)
	if kind != cdr.Refused && kind != cdr.Failover {
		return cdr.Record{}, fmt.Errorf("kind %.20q is neither refused nor failover", e.Kind)
	}
	micros, err := strconv.ParseInt(e.Time, 10, 64)
	// Four-digit years only: nothing else has a JSON form.
	if err != nil || micros <= 0 || micros >= 253402300800e6 {
		return cdr.Record{}, fmt.Errorf("time %.20q is not microseconds since 1970", e.Time)
	}
	code, err := strconv.Atoi(e.Code)
	if err != nil || code < 300 || code > 699 {
		return cdr.Record{}, fmt.Errorf("code %.20q is not a final SIP status", e.Code)
	}
	rev, err := strconv.ParseUint(e.Rev, 10, 64)
	if err != nil && e.Rev != "" {
		return cdr.Record{}, fmt.Errorf("revision %.20q is not a number", e.Rev)
	}
	if e.SBC == "" || e.CallID == "" {
		return cdr.Record{}, errors.New("sbc or callid is missing")
	}
	at := time.UnixMicro(micros).UTC()
	// The same attempt is reported alike when a caller sends his INVITE again.
	leg := strings.Join([]string{e.CallID, e.CSeq, e.Branch, e.Kind, e.Node}, "|")
	r := cdr.Record{
		Schema: cdr.SchemaVersion, ID: cdr.NewID(cell, e.SBC, leg), Kind: kind, Source: cdr.SourceSBC,
		Cell: cell, SBC: bulkhead.SBCID(e.SBC), Tenant: bulkhead.TenantID(e.Tenant), Revision: bulkhead.RevisionNumber(rev),
		Leg: leg, Call: e.CallID, SIPCallID: e.CallID, Direction: cdr.Inbound, Caller: e.From, Callee: e.To,
		Start: at, End: at, SIPCode: code, Q850: causeOf(code, e.Reason), Cause: e.Reason,
	}
	if e.Node != "" && resolve != nil {
		r.Node = resolve(e.Node)
	}
	return r, nil
}

// causeOf returns the ITU-T Q.850 cause of a refusal: for those that
// route.Decide knows too, the same one; else after RFC 3398 section 8.2.6.1.
func causeOf(code int, reason string) int {
	switch {
	case reason == "unknown domain":
		return 3 // no route to destination
	case code == 404:
		return 1 // unallocated number
	case code == 480:
		return 20 // subscriber absent
	case code == 408:
		return 102 // recovery on timer expiry
	case code == 400 || code == 481:
		return 95 // invalid message
	case code == 405:
		return 63 // service or option not available
	case code == 483:
		return 25 // exchange routing error
	case code >= 500 && code <= 599:
		return 41 // temporary failure
	}
	return 21 // call rejected
}
