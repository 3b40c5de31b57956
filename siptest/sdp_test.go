package siptest_test

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

func compareAddr(a, b netip.AddrPort) bool { return a == b }

func TestParseSDPOfRealAgents(t *testing.T) {
	for file, want := range map[string]siptest.SDP{
		"testdata/sdp-freeswitch.txt": {Addr: netip.MustParseAddrPort("127.0.0.1:17382"), Codecs: []siptest.Codec{siptest.PCMU}, Event: 101, Direction: "sendrecv"},
		"testdata/sdp-sipp.txt":       {Addr: netip.MustParseAddrPort("127.0.0.1:6200"), Codecs: []siptest.Codec{siptest.PCMU}, Event: 101, Direction: "sendrecv"},
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := siptest.ParseSDP(b)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if d := cmp.Diff(want, got, cmp.Comparer(compareAddr)); d != "" {
			t.Errorf("%s: %s", file, d)
		}
	}
}

func TestSDPOfferAndAnswer(t *testing.T) {
	for _, host := range []string{"127.0.0.7:4000", "[2001:db8::1]:4000"} {
		addr, local := netip.MustParseAddrPort(host), netip.MustParseAddrPort("127.0.0.8:5000")
		offer := siptest.Offer(addr, siptest.PCMA, siptest.PCMU)
		answer, remote, codec, err := siptest.Answer(offer, local)
		if err != nil || codec != siptest.PCMA || remote.Addr != addr || remote.Event != 101 {
			t.Fatalf("%s: %v %v %+v", host, err, codec, remote)
		}
		got, err := siptest.ParseSDP(answer)
		if err != nil || got.Addr != local || len(got.Codecs) != 1 || got.Codecs[0] != siptest.PCMA {
			t.Errorf("answer %q: %+v %v", answer, got, err)
		}
	}
	_, _, _, err := siptest.Answer(siptest.Offer(netip.MustParseAddrPort("127.0.0.7:4000"), siptest.PCMA), netip.MustParseAddrPort("127.0.0.8:5000"), siptest.PCMU)
	if !errors.Is(err, bulkhead.Conflict) {
		t.Errorf("no common codec: %v", err)
	}
	held := strings.Replace(string(siptest.Offer(netip.MustParseAddrPort("127.0.0.7:4000"))), "sendrecv", "sendonly", 1)
	answer, _, _, err := siptest.Answer([]byte(held), netip.MustParseAddrPort("127.0.0.8:5000"))
	if err != nil || !strings.Contains(string(answer), "a=recvonly") {
		t.Errorf("answer to a held call: %q %v", answer, err)
	}
}

func TestParseSDPRefuses(t *testing.T) {
	head := "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\n"
	for name, text := range map[string]string{
		"empty":     "",
		"no audio":  head + "c=IN IP4 127.0.0.1\r\nt=0 0\r\n",
		"no c line": head + "t=0 0\r\nm=audio 4000 RTP/AVP 0\r\n",
		"host name": head + "c=IN IP4 pbx.example\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n",
		"too long":  head + "c=IN IP4 127.0.0.1\r\nt=0 0\r\n" + strings.Repeat("a=x\r\n", 4000),
		"video":     head + "c=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 4000 RTP/AVP 0\r\n",
	} {
		if _, err := siptest.ParseSDP([]byte(text)); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

// FuzzParseSDP wants that what was parsed survives printing and parsing.
func FuzzParseSDP(f *testing.F) {
	for _, file := range []string{"testdata/sdp-freeswitch.txt", "testdata/sdp-sipp.txt"} {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(siptest.Offer(netip.MustParseAddrPort("[2001:db8::1]:4000")))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := siptest.ParseSDP(b)
		if err != nil {
			if !errors.Is(err, bulkhead.Invalid) {
				t.Fatalf("error %v is of no kind", err)
			}
			return
		}
		if _, err := s.Choose(); err != nil {
			return
		}
		again, err := siptest.ParseSDP(s.Marshal())
		if err != nil {
			t.Fatalf("printed %q: %v", s.Marshal(), err)
		}
		if d := cmp.Diff(s, again, cmp.Comparer(compareAddr)); d != "" {
			t.Fatal(d)
		}
	})
}
