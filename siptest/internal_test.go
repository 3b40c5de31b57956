package siptest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"
)

// The codes of G.711 table 1a and 2a at well-known samples.
func TestG711(t *testing.T) {
	for _, c := range []struct {
		sample     int16
		ulaw, alaw byte
	}{{0, 0xff, 0xd5}, {-1, 0x7f, 0x55}, {1000, 0xce, 0xfa}, {-1000, 0x4e, 0x7a}, {32767, 0x80, 0xaa}, {-32768, 0x00, 0x2a}} {
		if u, a := PCMU.encode(c.sample), PCMA.encode(c.sample); u != c.ulaw || a != c.alaw {
			t.Errorf("%d: µ-law %#x, A-law %#x, want %#x, %#x", c.sample, u, a, c.ulaw, c.alaw)
		}
	}
	if f := PCMU.frame(0); len(f) != 160 || !bytes.Equal(f, bytes.Repeat([]byte{0xff}, 160)) {
		t.Errorf("silence is %x", f)
	}
}

// TestMeterJitter feeds packets that are late by 10 ms in turn: the transit
// time differs by 80 units each time, and the filter settles there.
func TestMeterJitter(t *testing.T) {
	var m meter
	at := time.UnixMicro(1_700_000_000_000_000)
	for i := range 500 {
		late := time.Duration(i%2) * 10 * time.Millisecond
		m.packet(1, uint16(i), uint32(160*i), at.Add(time.Duration(i)*frameTime+late))
	}
	if j := m.jitter(); j < 9*time.Millisecond || j > 10*time.Millisecond {
		t.Errorf("jitter %v, want just below 10ms", j)
	}
	m.packet(2, 9, 0, at.Add(time.Minute)) // another stream
	if m.lostNow() != 0 || m.got != 1 {
		t.Errorf("a new SSRC: %+v", m)
	}
}

// TestArrivalUnsaid: a kernel that says nothing, or something else, is no reason
// to end.
func TestArrivalUnsaid(t *testing.T) {
	for _, control := range [][]byte{nil, make([]byte, 8), make([]byte, 32), bytes.Repeat([]byte{0xff}, 32)} {
		if at := arrival(control); time.Since(at) > time.Hour || time.Until(at) > 0 {
			t.Errorf("of %x came %s", control, at)
		}
	}
}

func TestEventFieldsAreStrings(t *testing.T) {
	b, err := json.Marshal(Event{CallID: clean("a\"b\r\n<script>\x00\xff")})
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]string
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if len(m) != 15 || m["callid"] != "a_b___script___" {
		t.Errorf("%d fields, callid %q", len(m), m["callid"])
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	c := Credentials{User: "1001", Password: "hush", HA1: "hush"}
	b, err := json.Marshal([]any{c, Challenge{HA1: "hush"}})
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "c", c, "p", &c)
	for _, s := range []string{string(b), log.String(), fmt.Sprintf("%v %+v %#v %s", c, c, c, &c)} {
		if strings.Contains(s, "hush") {
			t.Errorf("a secret is in %s", s)
		}
	}
}

func TestNonces(t *testing.T) {
	n, err := newNonces(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := n.issue(now)
	other, err := newNonces(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what        string
		n           *nonces
		s           string
		at          time.Time
		ours, stale bool
	}{
		{"fresh", n, s, now.Add(time.Second), true, false},
		{"old", n, s, now.Add(2 * time.Minute), true, true},
		{"another key", other, s, now, false, false},
		{"forged", n, "ff" + s[2:], now, false, false},
		{"short", n, s[:10], now, false, false},
	} {
		if ours, stale := c.n.check(c.s, c.at); ours != c.ours || stale != c.stale {
			t.Errorf("%s: %v %v", c.what, ours, stale)
		}
	}
}

func register(t *testing.T, contact, expires, callID string, seq uint32) *sip.Request {
	t.Helper()
	req := sip.NewRequest(sip.REGISTER, sip.Uri{Scheme: "sip", Host: "acme.example"})
	id := sip.CallIDHeader(callID)
	req.AppendHeader(&id)
	req.AppendHeader(&sip.CSeqHeader{SeqNo: seq, MethodName: sip.REGISTER})
	var u sip.Uri
	if err := sip.ParseUri(contact, &u); err != nil {
		t.Fatal(err)
	}
	req.AppendHeader(&sip.ContactHeader{Address: u})
	req.AppendHeader(sip.NewHeader("Expires", expires))
	return req
}

func TestLocations(t *testing.T) {
	l := newLocations(time.Hour)
	now, src := time.Now(), netip.MustParseAddrPort("127.0.0.1:5060")
	step := func(contact, expires, callID string, seq uint32, want int) {
		t.Helper()
		if code, _ := l.update("a", register(t, contact, expires, callID, seq), src, now); code != want {
			t.Errorf("register %s %s %s %d: %d, want %d", contact, expires, callID, seq, code, want)
		}
	}
	step("sip:1@127.0.0.1", "7200", "x", 1, 0)
	step("sip:1@127.0.0.1", "60", "x", 1, 500) // not newer
	step("sip:2@127.0.0.1", "60", "y", 1, 0)
	if got := l.lookup("a", now.Add(59*time.Minute)); len(got) != 1 || got[0].contact.Address.User != "1" {
		t.Errorf("after 59 minutes: %v", got)
	}
	if got := l.lookup("a", now.Add(61*time.Minute)); len(got) != 0 {
		t.Errorf("the bound of an hour was not kept: %v", got)
	}
	step("*", "60", "z", 1, 400)
	step("*", "0", "z", 2, 0)
	step("sip:1@127.0.0.1", "many", "z", 3, 400)
	if n := l.size(now); n != 0 || len(l.table) != 0 {
		t.Errorf("%d bindings left", n)
	}
	for i := range 20 {
		step("sip:1@127.0.0.1:"+string(rune('1'+i%9))+"00"+string(rune('0'+i/9)), "60", "x", uint32(10+i), 0)
	}
	if got := l.lookup("a", now); len(got) != maxContacts || l.size(now) != maxContacts {
		t.Errorf("%d bindings, want %d", len(got), maxContacts)
	}
}

// FuzzMessage takes a datagram through everything that happens before and
// around sending.
func FuzzMessage(f *testing.F) {
	for _, file := range []string{"testdata/invite-kamailio.txt", "testdata/options-kamailio.txt"} {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n")))
	}
	f.Add([]byte("SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 1.2.3.4;branch=z9hG4bKx\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:a@b>;tag=2\r\nCall-ID: x\r\nCSeq: 1 INVITE\r\nContact: <sip:x@1.2.3.4>\r\nRecord-Route: <sip:1.2.3.4;lr>, <sip:5.6.7.8;lr>\r\n\r\n"))
	p := &Proxy{e: &endpoint{addr: netip.MustParseAddrPort("127.0.0.1:5060"), timers: newTimers(0)}}
	src := netip.MustParseAddrPort("127.0.0.9:4000")
	f.Fuzz(func(t *testing.T, b []byte) {
		if smuggles(b) {
			return
		}
		msg, err := sip.NewParser().ParseSIP(b)
		if err != nil || !wellFormed(msg) {
			return
		}
		msg.SetSource(src.String())
		switch m := msg.(type) {
		case *sip.Response:
			_ = (&forward{}).strip(m)
		case *sip.Request:
			stampVia(m.Via(), src)
			if !replyTo(m.Via(), src).IsValid() {
				t.Error("no way back")
			}
			tx := newServerTx(p.e, serverKey(m, m.Method), m, src)
			res := tx.response(200, "OK", nil, sip.NewHeader("Contact", "<sip:a@127.0.0.1>"))
			if d, err := newDialog(&Stack{e: p.e}, m, res, false); err == nil {
				_, _ = nextHop(d.newRequest(sip.BYE))
			}
			_, _, _ = p.loose(m, src)
			if out, err := p.outgoing(m); err == nil {
				raw := []byte(out.String())
				if smuggles(raw) {
					t.Errorf("smuggled through: %q", raw)
				}
				again, err := sip.NewParser().ParseSIP(raw)
				if err != nil {
					return // the parser takes what it does not print the same way
				}
				if r, ok := again.(*sip.Request); ok && slices.ContainsFunc(r.Headers(), func(h sip.Header) bool {
					return len(h.Name()) > len(trustedPrefix) && bytes.EqualFold([]byte(h.Name()[:len(trustedPrefix)]), []byte(trustedPrefix))
				}) {
					t.Errorf("a private header came through: %q", raw)
				}
			}
		}
	})
}
