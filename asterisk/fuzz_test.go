package asterisk

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// valid holds a record to what every record promises.
func valid(t *testing.T, r *cdr.Record) {
	t.Helper()
	b, err := cdr.Encode(cdr.Entry{Record: r})
	if err != nil {
		t.Fatalf("%+v: %v", r, err)
	}
	if len(b) > 64<<10 || r.ID != cdr.NewID(r.Cell, string(r.Node), r.Leg) || r.Leg == "" || len(r.Leg) > maxName || r.Call == "" {
		t.Fatalf("record of %d bytes: %+v", len(b), r)
	}
	if r.Billed() < 0 || r.SIPCode < 0 || r.SIPCode > 699 || r.Q850 < 0 || r.Q850 > 127 || len(r.Attrs) > cdr.MaxAttrs {
		t.Fatalf("record %+v", r)
	}
	for k, v := range r.Attrs {
		if len(v) > maxAttr || !utf8.ValidString(v) || len(k) > maxAttr {
			t.Fatalf("attribute %q of %d bytes", k, len(v))
		}
	}
}

func FuzzEvents(f *testing.F) {
	names, err := filepath.Glob("testdata/captures/*.jsonl")
	if err != nil || len(names) == 0 {
		f.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		var some []byte // without the many that are not used
		for line := range bytes.Lines(b) {
			if !bytes.Contains(line, []byte(`"ChannelVarset"`)) && !bytes.Contains(line, []byte(`DeviceState`)) {
				some = append(some, line...)
			}
		}
		f.Add(some)
	}
	f.Add([]byte(`{"type":"ChannelDestroyed","cause":"x","channel":{"id":"1.1","name":7,"state":"Up","channelvars":{"TENANT":"../x"}}}`))
	f.Add([]byte(`{"type":"Dial","peer":{"id":"1.2","name":"PJSIP/a-1"}}` + "\n" + `{"type":"Dial","caller":{"id":"1.2"}}`))
	f.Fuzz(func(t *testing.T, stream []byte) {
		tr := newTracker(testIdentity, 8)
		tr.open()
		for line := range bytes.Lines(stream) {
			e, _, err := decodeEvent(line)
			if err != nil {
				if !errors.Is(err, bulkhead.Invalid) {
					t.Fatalf("error %v", err)
				}
				continue
			}
			tr.apply(&e, func(ev cdr.Event) {
				valid(t, &ev.Record)
				if !isLeg(tr.nameOf(&e, ev.Record.Leg)) {
					t.Fatalf("%s of a channel that is no leg: %s", ev.Type, line)
				}
			})
			if len(tr.legs) > 8 {
				t.Fatalf("%d legs are remembered", len(tr.legs))
			}
		}
		live, found, _ := tr.seed(nil)
		if len(live) != 0 || len(found) != 0 {
			t.Fatal("legs out of an empty list")
		}
	})
}

// nameOf is the name under which an event has a channel.
func (t *tracker) nameOf(e *event, id string) string {
	for _, ch := range []*channel{e.Channel, e.Caller, e.Peer} {
		if ch != nil && ch.ID == id {
			if l := t.legs[id]; l != nil {
				return l.name
			}
			return "" // closed
		}
	}
	return ""
}

func FuzzChannels(f *testing.F) {
	f.Add([]byte(`[]`))
	f.Add([]byte(`[{"id":"1795397105.30","name":"PJSIP/acme-1001-00000000","state":"Up","creationtime":"2026-11-23T01:25:05.067+0000","channelvars":{"SIPDOMAIN":"x"}},{"id":"1.2","name":"Snoop/1-2"},{"id":""},{}]`))
	f.Add([]byte(`[{"id":1,"channelvars":null}]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := decodeChannels(body)
		if err != nil {
			if !errors.Is(err, bulkhead.Invalid) {
				t.Fatalf("error %v", err)
			}
			return
		}
		tr := newTracker(testIdentity, 16)
		live, found, _ := tr.seed(list)
		if len(found) > len(live) {
			t.Fatalf("%d found of %d", len(found), len(live))
		}
		for i := range found {
			valid(t, &found[i])
		}
	})
}

func FuzzAMI(f *testing.F) {
	names, err := filepath.Glob("testdata/captures/ami-*.txt")
	if err != nil || len(names) == 0 {
		f.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if i := bytes.Index(b, []byte("Event: Cdr")); i >= 0 {
			b = b[i:]
		}
		f.Add(b)
	}
	f.Add([]byte("Event: Cdr\r\nUniqueID: 1.1\r\nChannel: Snoop/1-2\r\nDisposition: ANSWERED\r\n\r\n"))
	f.Add([]byte("Event: Cdr\r\nUniqueID: 1.1\r\nStartTime: 2026-10-25 02:59:59\r\nAnswerTime: 2026-10-25 02:00:01\r\nEndTime: 2026-10-25 02:00:02\r\nTimestamp: 1792890002.5\r\nDisposition: ANSWERED\r\n\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := &amiReader{bufio.NewReaderSize(bytes.NewReader(stream), maxLine)}
		feed := newAMIFeed(AMI{}, testIdentity, discard(), newMetrics(nil, "ast1"))
		var rows assembler
		leg := map[string]bool{} // by UniqueID: one of its rows is of a leg
		for {
			m, err := r.next()
			if err != nil {
				break
			}
			if m["Event"] == "Cdr" {
				feed.row(m, &rows)
				id, tech := m["UniqueID"], technology(m["Channel"])
				leg[id] = leg[id] || !slices.Contains([]string{"Snoop", "UnicastRTP", "AudioSocket", "WebSocket", "Local"}, tech)
			}
		}
		feed.flush(&rows)
		for _, rec := range closed(feed.take()) {
			valid(t, &rec)
			if rec.Source != cdr.SourceAMI || !leg[rec.Leg] {
				t.Fatalf("%+v", rec)
			}
		}
	})
}

func FuzzQuality(f *testing.F) {
	f.Add("ssrc=1;themssrc=2;lp=0;rxjitter=0.000000;rxcount=250;txjitter=0.001125;txcount=0;rlp=0;rtt=0.000000;rxmes=0.000000;txmes=88.087887")
	f.Add("rxcount=1;txjitter=NaN;lp=-1")
	f.Add("txjitter=1e400;rxcount=9999999999999999999")
	f.Fuzz(func(t *testing.T, qos string) {
		r := cdr.Record{}
		setQuality(&r, qos)
		if _, err := json.Marshal(r); err != nil {
			t.Fatal(err)
		}
		for _, n := range []*int64{r.RTPIn, r.RTPOut, r.RTPLost} {
			if n != nil && *n < 0 {
				t.Fatalf("%q gives %d packets", qos, *n)
			}
		}
	})
}

func FuzzCELLog(f *testing.F) {
	b, err := os.ReadFile("testdata/captures/cel-01-calls.csv")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`"HANGUP","1795691243.5","1.1","","PJSIP/a-1","","","","","","{""hangupcause"":""x"",""hangupsource"":7}"`))
	f.Add([]byte(`"CHAN_START","1e308","1.1","1.1","","","","","","",""`))
	f.Add([]byte("\"CHAN_START\",\"1795691243.5\",\"1.1\"\n\"\xff\"\r\n"))
	f.Fuzz(func(t *testing.T, rows []byte) {
		c := NewCELLog("c1", "ast1")
		c.max = 8
		for row := range bytes.SplitSeq(rows, []byte("\n")) {
			r, ok, err := c.Row(row)
			if err != nil && (ok || !errors.Is(err, bulkhead.Invalid)) {
				t.Fatalf("%t %v", ok, err)
			}
			if ok {
				valid(t, &r)
			}
		}
		if len(c.legs) > 8 {
			t.Fatalf("%d legs are remembered", len(c.legs))
		}
		state, err := c.State()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Restore(state); err != nil {
			t.Fatal(err)
		}
	})
}
