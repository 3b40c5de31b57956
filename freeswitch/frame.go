package freeswitch

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/bulkhead-voip/bulkhead"
)

// Limits of one frame of the event socket. The sizes are far above what
// FreeSWITCH sends, except for the list of channels of a very busy node.
const (
	maxFrameHeader = 64 << 10
	maxFrameBody   = 16 << 20
)

// The content types that the client knows. Any other is just a frame.
const (
	typeAuthRequest   = "auth/request"
	typeReply         = "command/reply"
	typeResponse      = "api/response"
	typeEventJSON     = "text/event-json"
	typeEventPlain    = "text/event-plain"
	typeDisconnect    = "text/disconnect-notice"
	typeRudeRejection = "text/rude-rejection"
)

// frame is one message of the event socket: header lines, a blank line, and
// Content-Length bytes of body, directly followed by the next frame.
type frame struct {
	contentType string
	reply       string // Reply-Text
	body        []byte
}

// frameReader reads frames. It neither panics nor allocates more than the
// limits for any input.
type frameReader struct {
	r *bufio.Reader
	// spare are bodies that nobody uses any more, as *[]byte, by their room in
	// units of spareUnit.
	spare [spareUnits + 1]sync.Pool
}

// Events of 4 to 12 kB come by the thousand; their bodies are used again for
// others of about the same size.
const (
	spareUnit  = 1 << 10 // bytes
	spareUnits = 16
)

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, maxFrameHeader)}
}

// room returns memory for a body of n bytes, or nil if that is not to come from here.
func (f *frameReader) room(n int) []byte {
	units := (n + spareUnit - 1) / spareUnit
	if units == 0 || units > spareUnits {
		return nil
	}
	if b, ok := f.spare[units].Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 0, units*spareUnit)
}

// reuse takes the memory of a body back.
func (f *frameReader) reuse(body []byte) {
	if units := cap(body) / spareUnit; units > 0 && units <= spareUnits && cap(body)%spareUnit == 0 {
		body = body[:0]
		f.spare[units].Put(&body)
	}
}

// next reads one frame. It returns io.EOF at the end of the stream between
// two frames, io.ErrUnexpectedEOF within one, and bulkhead.Invalid for what is
// not a frame.
//
// A header that occurs twice counts with its last value: FreeSWITCH writes
// the notice that it gives up on a slow client into the middle of a header
// block (captures: client-that-does-not-read).
func (f *frameReader) next() (frame, error) {
	var (
		fr     frame
		length int
		seen   int // bytes of this header block
		inside bool
	)
header:
	for {
		line, err := f.r.ReadSlice('\n')
		seen += len(line)
		switch {
		case errors.Is(err, bufio.ErrBufferFull) || seen > maxFrameHeader:
			return frame{}, fmt.Errorf("read event socket: header block over %d bytes: %w", maxFrameHeader, bulkhead.Invalid)
		case errors.Is(err, io.EOF) && (inside || len(line) > 0):
			return frame{}, fmt.Errorf("read event socket: header cut off: %w", io.ErrUnexpectedEOF)
		case err != nil:
			return frame{}, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			if inside {
				break header
			}
			continue // blank lines between frames
		}
		inside = true
		if err := fr.header(line, &length); err != nil {
			return frame{}, err
		}
	}
	body, err := readBody(f.r, f.room(length), length)
	fr.body = body
	return fr, err
}

// header takes over one header line. A line without a colon means nothing.
func (fr *frame) header(line []byte, length *int) error {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok {
		return nil
	}
	value = bytes.TrimSpace(value)
	switch string(name) {
	case "Content-Type":
		fr.contentType = string(value)
	case "Reply-Text":
		fr.reply = string(value)
	case "Content-Length":
		n, err := strconv.ParseUint(string(value), 10, 32)
		if err != nil || n > maxFrameBody {
			return fmt.Errorf("read event socket: Content-Length %q is not within 0 to %d: %w", clip(string(value)), maxFrameBody, bulkhead.Invalid)
		}
		*length = int(n)
	}
	return nil
}

// readBody reads n bytes into b or, if it is nil, into memory that it takes as
// they arrive: the number alone, from a peer that then sends nothing, must not
// cost much.
func readBody(r io.Reader, b []byte, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	// A number is believed as far as honest events go, and beyond that as far
	// as as much has arrived.
	const believed = 64 << 10
	if b == nil {
		b = make([]byte, 0, min(n, believed))
	}
	for len(b) < n {
		b = slices.Grow(b, min(n-len(b), max(len(b), believed)))
		got, err := io.ReadFull(r, b[len(b):min(n, cap(b))])
		b = b[:len(b)+got]
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("read event socket: %d of %d bytes of a body: %w", len(b), n, err)
		}
	}
	return b, nil
}

// clip shortens what a peer sent to what an error message can hold.
func clip(s string) string {
	const limit = 80
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
