package cdr

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
)

func TestRawEvents(t *testing.T) {
	noise := make([]byte, 300<<10)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	var p Packer
	for name, c := range map[string]struct {
		event []byte
		whole bool
	}{
		"ordinary":     {bytes.Repeat([]byte(`{"variable_a":"b"}`), 500), true},
		"odd bytes":    {[]byte("J\xf6rg \x00"), true},
		"does not fit": {noise, false},
	} {
		raw := p.Pack(c.event)
		if len(raw) == 0 || len(raw) > MaxRaw {
			t.Fatalf("%s: %d bytes", name, len(raw))
		}
		b, err := Encode(Entry{Record: &Record{Leg: "l"}, Raw: raw})
		if err != nil {
			t.Fatal(err)
		}
		e, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Unpack(e.Raw)
		if err != nil || !bytes.HasPrefix(c.event, back) || c.whole != (len(back) == len(c.event)) || len(back) < min(len(c.event), minPacked) {
			t.Errorf("%s: %d of %d bytes are back, %v", name, len(back), len(c.event), err)
		}
	}
	if raw := p.Pack(nil); raw != nil {
		t.Errorf("Pack of nothing = %v", raw)
	}
}

func TestUnpackRefuses(t *testing.T) {
	var p Packer
	bomb := p.Pack(make([]byte, maxUnpacked+1))
	cut := p.Pack([]byte("some event"))
	for name, raw := range map[string][]byte{"empty": nil, "no gzip": []byte("some event"), "cut": cut[:len(cut)-6], "too long": bomb} {
		if _, err := Unpack(raw); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecodeLeavesOutTooLongRaw(t *testing.T) {
	b, err := Encode(Entry{Record: &Record{Leg: "l"}, Raw: make([]byte, MaxRaw+1)})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := Decode(b); err != nil || e.Raw != nil || e.Record.Leg != "l" {
		t.Errorf("%d bytes, %v", len(e.Raw), err)
	}
}

func BenchmarkPack(b *testing.B) {
	event := bytes.Repeat([]byte(`"variable_rtp_audio_in_packet_count":"0",`), 200)
	var p Packer
	b.SetBytes(int64(len(event)))
	for b.Loop() {
		_ = p.Pack(event)
	}
}
