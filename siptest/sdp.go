package siptest

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/pion/sdp/v3"

	"github.com/bulkhead-voip/bulkhead"
)

// maxSDP bounds a session description; real ones of PBXs stay below 2 KiB.
const maxSDP = 8 << 10

// telephoneEvent is the payload type that offers give to RFC 4733 events.
const telephoneEvent = 101

// SDP is the part of a session description that this package uses: the first
// audio stream.
type SDP struct {
	Addr      netip.AddrPort // where to send RTP; port 0: the stream is refused
	Codecs    []Codec        // G.711 laws in the sender's order of preference
	Event     uint8          // payload type of telephone-event; 0: none
	Direction string         // sendrecv, sendonly, recvonly or inactive
}

// Offer returns an offer of one audio stream at addr; without codecs, of PCMU
// and PCMA.
func Offer(addr netip.AddrPort, codecs ...Codec) []byte {
	if len(codecs) == 0 {
		codecs = []Codec{PCMU, PCMA}
	}
	return SDP{Addr: addr, Codecs: codecs, Event: telephoneEvent, Direction: "sendrecv"}.Marshal()
}

// Answer answers an offer from addr with the first of the offered codecs that
// is in accept (empty: PCMU and PCMA), and returns the parsed offer and the
// codec. An offer that shares no codec is an error of kind bulkhead.Conflict:
// refuse it with 488.
func Answer(offer []byte, addr netip.AddrPort, accept ...Codec) (answer []byte, remote SDP, c Codec, err error) {
	remote, err = ParseSDP(offer)
	if err != nil {
		return nil, SDP{}, 0, err
	}
	c, err = remote.Choose(accept...)
	if err != nil {
		return nil, SDP{}, 0, err
	}
	reverse := map[string]string{"sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}
	dir := reverse[remote.Direction]
	if dir == "" {
		dir = "sendrecv"
	}
	return SDP{Addr: addr, Codecs: []Codec{c}, Event: remote.Event, Direction: dir}.Marshal(), remote, c, nil
}

// Choose returns the first of the description's codecs that is in accept
// (empty: PCMU and PCMA).
func (s SDP) Choose(accept ...Codec) (Codec, error) {
	for _, c := range s.Codecs {
		if len(accept) == 0 || slices.Contains(accept, c) {
			return c, nil
		}
	}
	return 0, fmt.Errorf("the SDP offers %v and none of it is accepted: %w", s.Codecs, bulkhead.Conflict)
}

// Marshal prints s as a session description (RFC 8866).
func (s SDP) Marshal() []byte {
	family := "IP4"
	if s.Addr.Addr().Unmap().Is6() {
		family = "IP6"
	}
	host := s.Addr.Addr().Unmap().String()
	var pts, maps strings.Builder
	for _, c := range s.Codecs {
		fmt.Fprintf(&pts, " %d", uint8(c))
		fmt.Fprintf(&maps, "a=rtpmap:%d %s/8000\r\n", uint8(c), c)
	}
	if s.Event != 0 {
		fmt.Fprintf(&pts, " %d", s.Event)
		fmt.Fprintf(&maps, "a=rtpmap:%d telephone-event/8000\r\na=fmtp:%d 0-15\r\n", s.Event, s.Event)
	}
	dir := s.Direction
	if dir == "" {
		dir = "sendrecv"
	}
	return fmt.Appendf(nil, "v=0\r\no=- %d 1 IN %s %s\r\ns=-\r\nc=IN %s %s\r\nt=0 0\r\nm=audio %d RTP/AVP%s\r\n%sa=ptime:20\r\na=%s\r\n",
		s.Addr.Port(), family, host, family, host, s.Addr.Port(), pts.String(), maps.String(), dir)
}

// ParseSDP reads the first RTP/AVP audio stream of a session description.
// Errors are of kind bulkhead.Invalid: the text is too long or malformed, has
// no such stream, or names no numeric address.
func ParseSDP(b []byte) (SDP, error) {
	if len(b) > maxSDP {
		return SDP{}, fmt.Errorf("SDP of %d bytes, at most %d are read: %w", len(b), maxSDP, bulkhead.Invalid)
	}
	var d sdp.SessionDescription
	if err := d.Unmarshal(b); err != nil {
		return SDP{}, fmt.Errorf("parse SDP: %w: %w", err, bulkhead.Invalid)
	}
	for _, md := range d.MediaDescriptions {
		if md.MediaName.Media == "audio" && slices.Contains(md.MediaName.Protos, "AVP") {
			return audio(&d, md)
		}
	}
	return SDP{}, fmt.Errorf("the SDP has no RTP/AVP audio stream: %w", bulkhead.Invalid)
}

func audio(d *sdp.SessionDescription, md *sdp.MediaDescription) (SDP, error) {
	conn := md.ConnectionInformation
	if conn == nil {
		conn = d.ConnectionInformation
	}
	if conn == nil || conn.Address == nil {
		return SDP{}, fmt.Errorf("the SDP has no c= line: %w", bulkhead.Invalid)
	}
	ip, err := netip.ParseAddr(conn.Address.Address)
	if err != nil || ip.Zone() != "" {
		return SDP{}, fmt.Errorf("the SDP's c= line has %q, want a numeric address: %w", conn.Address.Address, bulkhead.Invalid)
	}
	port := md.MediaName.Port.Value
	if port < 0 || port > 65535 {
		return SDP{}, fmt.Errorf("the SDP's audio port is %d: %w", port, bulkhead.Invalid)
	}
	out := SDP{Addr: netip.AddrPortFrom(ip.Unmap(), uint16(port)), Direction: "sendrecv"}
	for _, attrs := range [][]sdp.Attribute{d.Attributes, md.Attributes} {
		for _, a := range attrs {
			switch a.Key {
			case "sendrecv", "sendonly", "recvonly", "inactive":
				out.Direction = a.Key
			case "rtpmap":
				out.rtpmap(a.Value)
			}
		}
	}
	for _, f := range md.MediaName.Formats {
		if c := Codec(atoi8(f)); c.valid() && f == strconv.Itoa(int(c)) && !slices.Contains(out.Codecs, c) {
			out.Codecs = append(out.Codecs, c)
		}
	}
	return out, nil
}

// rtpmap looks for telephone-event; G.711 has static numbers.
func (s *SDP) rtpmap(v string) {
	pt, enc, _ := strings.Cut(v, " ")
	if n := atoi8(pt); n >= 96 && n < 128 && strings.EqualFold(enc, "telephone-event/8000") && s.Event == 0 {
		s.Event = n
	}
}

// atoi8 returns 255 for what is no number below 128.
func atoi8(s string) uint8 {
	n, err := strconv.ParseUint(s, 10, 7)
	if err != nil {
		return 255
	}
	return uint8(n)
}
