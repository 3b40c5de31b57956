package freeswitchtest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// describe prints the description of one audio stream as FreeSWITCH does
// (rtp_local_sdp_str of capture esl/json-bridge.txt). event 0 leaves
// telephone-event out; an offer names comfort noise as well.
func describe(addr netip.AddrPort, codec siptest.Codec, event uint8, offer bool) []byte {
	var pts, attrs strings.Builder
	fmt.Fprintf(&pts, " %d", uint8(codec))
	fmt.Fprintf(&attrs, "a=rtpmap:%d %s/8000\r\n", uint8(codec), codec)
	if event != 0 {
		fmt.Fprintf(&pts, " %d", event)
		fmt.Fprintf(&attrs, "a=rtpmap:%d telephone-event/8000\r\na=fmtp:%d 0-15\r\n", event, event)
	}
	if offer {
		pts.WriteString(" 13")
		attrs.WriteString("a=rtpmap:13 CN/8000\r\n")
	}
	family := "IP4"
	if addr.Addr().Is6() {
		family = "IP6"
	}
	ip, id := addr.Addr(), time.Now().Unix()
	return fmt.Appendf(nil, "v=0\r\no=FreeSWITCH %d %d IN %s %s\r\ns=FreeSWITCH\r\nc=IN %s %s\r\nt=0 0\r\nm=audio %d RTP/AVP%s\r\n%sa=ptime:20\r\na=sendrecv\r\n",
		id, id+1, family, ip, family, ip, addr.Port(), pts.String(), attrs.String())
}

// codecSpec is a codec as rtp_use_codec_string of an outbound leg names it.
func codecSpec(c siptest.Codec) string { return c.String() + "@8000h@20i" }

// setCodec sets the variables that tell what was negotiated from the other
// side's description.
func (l *leg) setCodec(c siptest.Codec, remote siptest.SDP) {
	l.codec, l.hasCodec, l.event = c, true, remote.Event
	name, v := c.String(), &l.vars
	v.set("ep_codec_string", "CORE_PCM_MODULE."+name+"@8000h@20i@64000b")
	if l.outbound {
		v.set("rtp_use_codec_string", codecSpec(c))
	} else {
		v.set("rtp_use_codec_string", "PCMU,PCMA")
	}
	v.set("remote_video_media_flow", "inactive")
	v.set("remote_text_media_flow", "inactive")
	v.set("remote_audio_media_flow", remote.Direction)
	if !l.outbound {
		v.set("audio_media_flow", "sendrecv")
		v.set("remote_media_ip", remote.Addr.Addr().String())
		v.set("remote_media_port", fmt.Sprint(remote.Addr.Port()))
	}
	v.set("rtp_audio_recv_pt", fmt.Sprint(uint8(c)))
	v.set("rtp_use_codec_name", name)
	v.set("rtp_use_codec_rate", "8000")
	v.set("rtp_use_codec_ptime", "20")
	v.set("rtp_use_codec_channels", "1")
	v.set("rtp_last_audio_codec_string", name+"@8000h@20i@1c")
	v.set("read_codec", name)
	v.set("original_read_codec", name)
	v.set("read_rate", "8000")
	v.set("original_read_rate", "8000")
	v.set("write_codec", name)
	v.set("write_rate", "8000")
	dtmf := "info" // capture xml_curl/dialplan-authenticated-user.txt: an offer without telephone-event
	if l.event != 0 {
		dtmf = "rfc2833"
	}
	v.set("dtmf_type", dtmf)
}

// setLocalMedia sets what a leg tells of its own end.
func (l *leg) setLocalMedia() {
	v, addr := &l.vars, l.media.Addr()
	v.set("local_media_ip", addr.Addr().String())
	v.set("local_media_port", fmt.Sprint(addr.Port()))
	v.set("advertised_media_ip", addr.Addr().String())
}

// startMedia sends to the other side's address from now on.
func (l *leg) startMedia(remote siptest.SDP) {
	v := &l.vars
	l.mediaUp = true
	l.media.SetRemote(remote.Addr)
	v.set("rtp_use_timer_name", "soft")
	v.set("rtp_use_pt", fmt.Sprint(uint8(l.codec)))
	v.set("rtp_use_ssrc", fmt.Sprint(rand.Uint32())) // only the form is right: relayed packets keep their sender's
	if l.event != 0 {
		v.set("rtp_2833_send_payload", fmt.Sprint(l.event))
		v.set("rtp_2833_recv_payload", fmt.Sprint(l.event))
	}
	v.set("remote_media_ip", remote.Addr.Addr().String())
	v.set("remote_media_port", fmt.Sprint(remote.Addr.Port()))
}
