package freeswitch

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// MaxCDR bounds what mod_json_cdr may send for one leg, in bytes; a usual one
// has 8 kB, three times as much where it is encoded.
const MaxCDR = 1 << 20

// CDRDecoder reads what mod_json_cdr posts, or leaves in its err-log-dir. Its
// fields are as those of SourceConfig.
type CDRDecoder struct {
	Cell  bulkhead.CellID
	SBCAt func(netip.AddrPort) (bulkhead.SBCID, bool)
	Vars  []string
}

// Decode reads one record. leg is what the request's uuid parameter, or the
// file's name, calls the leg; it counts where the body does not name one.
// source is cdr.SourceHTTP or cdr.SourceFile. The record has the id that the
// event socket's record of the same leg has.
//
// All forms are told apart by the body itself, since the Content-Type is not
// to be trusted (with disable-100-continue it is lost): JSON as it is,
// percent-encoded or in base64, with and without "cdr=" before it, and within
// it the values of variables percent-encoded (encode-values) or not.
//
// With encode=true and encode-values=false FreeSWITCH loses the backslashes
// (captures: encode-true), so that a quote in a caller's name ends its value,
// and what follows it could pass for another variable. The record is still
// read, but a caller could forge parts of it: do not use that combination.
//
// A value that cannot be understood costs only its field; see cdr.Record.Attrs.
// A body that is not whole is bulkhead.Invalid; then the record holds what
// could be read, and its Leg is empty if that was nothing.
func (d CDRDecoder) Decode(node bulkhead.NodeID, source cdr.Source, leg string, body []byte) (cdr.Record, error) {
	text := unwrap(body)
	e, read, err := d.parse(scanner{b: text})
	if err != nil {
		if loose, n, looseErr := d.parse(scanner{b: text, loose: true}); looseErr == nil || n > read {
			e, read, err = loose, n, looseErr
		}
	}
	if e.Leg == "" {
		e.Leg = leg
	}
	if e.Leg == "" {
		return cdr.Record{}, fmt.Errorf("decode call record of %d bytes: it names no leg: %w", len(body), bulkhead.Invalid)
	}
	o := origin{node: node, cell: d.Cell, sbcAt: d.SBCAt, source: source, vars: d.Vars}
	r := o.close(&e)
	if err != nil {
		if r.Attrs == nil {
			r.Attrs = map[string]string{}
		}
		r.Attrs[cdr.AttrBad+"json"] = "not whole"
		return r, fmt.Errorf("decode call record of %d bytes at byte %d: %w: %w", len(body), read, bulkhead.Invalid, err)
	}
	return r, nil
}

// parse reads the JSON, and tells how much of it.
func (d CDRDecoder) parse(s scanner) (e Event, read int, err error) {
	e.ask(d.Vars)
	err = s.document(func(name []byte) error { return s.part(string(name), &e) })
	return e, s.i, err
}

// unwrap returns the JSON within a body. Where an encoding is broken off, or
// is none, the begin that could be decoded is returned.
func unwrap(body []byte) []byte {
	body = bytes.TrimSpace(body)
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("cdr=")))
	switch {
	case len(body) == 0 || body[0] == '{':
		return body
	case body[0] == '%':
		return []byte(unescape(string(body)))
	}
	// Base64 with raw + / =; whoever read it as a form made spaces of the +.
	body = bytes.ReplaceAll(body, []byte(" "), []byte("+"))
	out := make([]byte, base64.StdEncoding.DecodedLen(len(body)))
	n, err := base64.StdEncoding.Decode(out, body)
	if n == 0 && err != nil {
		return body
	}
	return out[:n]
}

// part reads one member of the record's object.
func (s *scanner) part(name string, e *Event) error {
	switch name {
	case "core-uuid":
		return s.value(&e.Core)
	case "channel_data":
		return s.strings(func(name string) *string {
			if name == "direction" {
				return &e.Direction
			}
			return nil
		})
	case "variables":
		return s.variables(e)
	case "callflow":
		return s.callflow(e)
	}
	return s.skip(0)
}

// strings reads an object, and those of its values that slot wants.
func (s *scanner) strings(slot func(name string) *string) error {
	if s.peek() != '{' {
		return s.skip(0)
	}
	return s.members(func(name []byte) error {
		if v := slot(string(name)); v != nil {
			return s.value(v)
		}
		return s.skip(0)
	})
}

// variables reads the channel variables. A first pass finds out whether their
// values are percent-encoded.
func (s *scanner) variables(e *Event) error {
	if s.peek() != '{' {
		return s.skip(0)
	}
	begin, encoded := s.i, true
	_ = s.members(func([]byte) error { // the second pass meets the same error
		if s.peek() != '"' {
			return s.skip(0)
		}
		raw, _, err := s.raw()
		encoded = encoded && !anyUnsafe(raw)
		return err
	})
	s.i = begin
	return s.members(func(name []byte) error {
		slot := e.cdrVariable(name)
		if slot == nil || s.peek() != '"' {
			return s.skip(0)
		}
		var v string
		if err := s.value(&v); err != nil {
			return err
		}
		if encoded {
			v = unescape(v)
		}
		if v = firstOfArray(v); bytes.HasSuffix(name, []byte("_uepoch")) {
			*slot = v // the switch writes these behind everything that a caller may have forged
		}
		take(slot, v)
		return nil
	})
}

// anyUnsafe tells whether a value was not percent-encoded: it holds a byte that
// switch_url_encode would have encoded (SWITCH_URL_UNSAFE). Every record has
// such values, start_stamp for one.
func anyUnsafe(raw []byte) bool {
	for _, c := range raw {
		if c < ' ' || c > '~' || strings.IndexByte(" #&+:;<=>?@[\\]^`{|}\"", c) >= 0 {
			return true
		}
	}
	return false
}

// firstOfArray returns the first element of an array variable, as DecodeJSON does.
func firstOfArray(v string) string {
	if rest, ok := strings.CutPrefix(v, "ARRAY::"); ok {
		v, _, _ = strings.Cut(rest, "|:")
	}
	return v
}

// cdrVariable returns where a variable's value belongs, or nil: besides those
// of an event the ones that an event has as headers.
func (e *Event) cdrVariable(name []byte) *string {
	switch string(name) {
	case "uuid":
		return &e.Leg
	case "direction":
		return &e.Direction
	case "hangup_cause":
		return &e.Cause
	case "read_codec":
		return &e.ReadCodec
	case "start_uepoch":
		return &e.Created
	case "progress_uepoch":
		return &e.Progress
	case "progress_media_uepoch":
		return &e.ProgressMedia
	case "answer_uepoch":
		return &e.Answered
	case "end_uepoch":
		return &e.HungUp
	}
	return e.variable(name)
}

// callflow reads the first element of the list: the profile that the leg had
// last, which is the one of its hangup event.
func (s *scanner) callflow(e *Event) error {
	if s.peek() != '[' {
		return s.skip(0)
	}
	begin := s.i
	s.i++
	if s.peek() == '{' {
		if err := s.members(func(name []byte) error {
			switch string(name) {
			case "caller_profile":
				return s.strings(e.profile)
			case "times":
				return s.strings(e.time)
			}
			return s.skip(0)
		}); err != nil {
			return err
		}
	}
	s.i = begin
	return s.skip(0)
}

func (e *Event) profile(name string) *string {
	switch name {
	case "uuid":
		return &e.Leg
	case "caller_id_number":
		return &e.CallerID
	case "destination_number":
		return &e.Destination
	case "context":
		return &e.Context
	}
	return nil
}

// time takes the times of the profile where no variable told them.
func (e *Event) time(name string) *string {
	switch name {
	case "created_time":
		return &e.Created
	case "progress_time":
		return &e.Progress
	case "progress_media_time":
		return &e.ProgressMedia
	case "answered_time":
		return &e.Answered
	case "hangup_time":
		return &e.HungUp
	}
	return nil
}
