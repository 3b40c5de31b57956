package cdr

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"

	"github.com/bulkhead-voip/bulkhead"
)

// Bounds of a raw event.
const (
	MaxRaw      = 64 << 10 // bytes, compressed
	maxUnpacked = 16 << 20 // bytes, which is more than any switch sends
	minPacked   = 32 << 10 // bytes of an event that always fit, even if they do not compress
)

// Packer compresses raw events with gzip. It belongs to one goroutine; the
// zero Packer is ready.
type Packer struct {
	buf bytes.Buffer
	zip *gzip.Writer
}

// Pack returns event compressed to at most MaxRaw bytes. Of one that does not
// fit as much of the begin is kept as fits by halving it. An empty event is nil.
func (p *Packer) Pack(event []byte) []byte {
	for len(event) > 0 {
		p.buf.Reset()
		if p.zip == nil {
			p.zip, _ = gzip.NewWriterLevel(&p.buf, gzip.BestSpeed) // the level is a valid one
		} else {
			p.zip.Reset(&p.buf)
		}
		_, _ = p.zip.Write(event) // a Buffer takes everything
		_ = p.zip.Close()
		if p.buf.Len() <= MaxRaw {
			return bytes.Clone(p.buf.Bytes())
		}
		event = event[:max(minPacked, len(event)/2)]
	}
	return nil
}

// Unpack returns the event that Pack compressed. What is not gzip, or
// unreasonably long, is bulkhead.Invalid.
func Unpack(raw []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("unpack raw event of %d bytes: %w: %w", len(raw), bulkhead.Invalid, err)
	}
	out, err := io.ReadAll(io.LimitReader(z, maxUnpacked+1))
	if err != nil {
		return nil, fmt.Errorf("unpack raw event of %d bytes: %w: %w", len(raw), bulkhead.Invalid, err)
	}
	if len(out) > maxUnpacked {
		return nil, fmt.Errorf("unpack raw event of %d bytes: it has more than %d: %w", len(raw), maxUnpacked, bulkhead.Invalid)
	}
	return out, nil
}
