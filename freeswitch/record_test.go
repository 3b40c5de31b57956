package freeswitch

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

// events decodes every event of a capture.
func events(t testing.TB, name string) []Event {
	t.Helper()
	frames, err := readAll(stream(t, name))
	if err != nil {
		t.Fatal(err)
	}
	var out []Event
	for _, fr := range frames {
		var e Event
		switch fr.contentType {
		case typeEventJSON:
			e, err = DecodeJSON(fr.body)
		case typeEventPlain:
			e, err = DecodePlain(fr.body)
		default:
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out = append(out, e)
	}
	return out
}

func TestRecordsOfCaptures(t *testing.T) {
	files, err := filepath.Glob("testdata/records/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no expected records: %v", err)
	}
	o := origin{node: "fs1", cell: "c1"}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want []cdr.Record
			if err := json.Unmarshal(b, &want); err != nil {
				t.Fatal(err)
			}
			var got []cdr.Record
			for _, e := range events(t, name) {
				if e.Name != "CHANNEL_HANGUP_COMPLETE" {
					continue
				}
				r := o.close(&e)
				if r.ID != cdr.NewID("c1", "fs1", r.Leg) {
					t.Errorf("leg %s has id %s", r.Leg, r.ID)
				}
				r.ID = cdr.ID{}
				got = append(got, r)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("records differ (-want +got):\n%s", d)
			}
		})
	}
}

// TestEveryHangupHasExpectation keeps a capture from going untested.
func TestEveryHangupHasExpectation(t *testing.T) {
	for _, name := range streams(t) {
		for _, e := range events(t, name) {
			if e.Name != "CHANNEL_HANGUP_COMPLETE" {
				continue
			}
			if _, err := os.Stat(filepath.Join("testdata", "records", name+".json")); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			break
		}
	}
}

func TestExportedVariables(t *testing.T) {
	e, err := DecodeJSON([]byte(`{"Event-Name":"CHANNEL_HANGUP_COMPLETE","Unique-ID":"b","Call-Direction":"outbound",
		"variable_originator":"a","variable_bulkhead_tenant":"acme","variable_bulkhead_pool":"p1","variable_bulkhead_sbc":"sbc1",
		"variable_bulkhead_revision":"7","variable_bulkhead_node":"other","variable_bulkhead_cell":"other",
		"Event-Date-Timestamp":"1795398469134879","Hangup-Cause":"NO_ANSWER"}`))
	if err != nil {
		t.Fatal(err)
	}
	got := origin{node: "fs1", cell: "c1"}.close(&e)
	want := cdr.Record{
		Schema: 1, ID: cdr.NewID("c1", "fs1", "b"), Kind: cdr.Leg, Source: cdr.SourceESL, Cell: "c1", Node: "fs1",
		SBC: "sbc1", Pool: "p1", Tenant: "acme", Revision: 7, Leg: "b", Call: "a", Direction: cdr.Outbound,
		End: time.UnixMicro(1795398469134879).UTC(), SIPCode: 480, Cause: "NO_ANSWER",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestTenantFromHeader: the header counts on an inbound leg from an SBC only.
func TestTenantFromHeader(t *testing.T) {
	sbc := func(a netip.AddrPort) (bulkhead.SBCID, bool) {
		return "sbc1", a == netip.MustParseAddrPort("10.0.0.1:5060")
	}
	base := Event{Leg: "a", Direction: "inbound", NetworkIP: "10.0.0.1", NetworkPort: "5060", HeaderTenant: "acme", HeaderSBC: "sbc9", HeaderRevision: "7"}
	tests := []struct {
		name   string
		change func(*Event, *origin)
		tenant bulkhead.TenantID
		sbc    bulkhead.SBCID
	}{
		{"from the SBC", func(*Event, *origin) {}, "acme", "sbc1"},
		{"no way to tell", func(_ *Event, o *origin) { o.sbcAt = nil }, "", ""},
		{"another port", func(e *Event, _ *origin) { e.NetworkPort = "5061" }, "", ""},
		{"an outbound leg", func(e *Event, _ *origin) { e.Direction = "outbound" }, "", ""},
		{"no id", func(e *Event, _ *origin) { e.HeaderTenant = "a c;m" }, "", "sbc1"},
		{"marked by an answer", func(e *Event, _ *origin) { e.Tenant, e.SBC = "other", "sbc2" }, "other", "sbc2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, o := base, origin{node: "fs1", cell: "c1", sbcAt: sbc}
			tt.change(&e, &o)
			if r := o.record(&e); r.Tenant != tt.tenant || r.SBC != tt.sbc {
				t.Errorf("tenant %q of SBC %q, want %q of %q", r.Tenant, r.SBC, tt.tenant, tt.sbc)
			}
		})
	}
}

func TestSIPCode(t *testing.T) {
	tests := []struct {
		name string
		e    Event
		want int
	}{
		{"answered", Event{Direction: "inbound", Answered: "1795398469134879", Cause: "USER_BUSY"}, 200},
		{"caller gave up", Event{Direction: "inbound", Disposition: "recv_cancel", Cause: "ORIGINATOR_CANCEL", BridgeProtoCause: "sip:503"}, 487},
		{"our own rejection", Event{Direction: "inbound", Status: "403", Cause: "CALL_REJECTED"}, 403},
		{"the other leg's code", Event{Direction: "inbound", BridgeProtoCause: "sip:480", Cause: "NORMAL_TEMPORARY_FAILURE"}, 480},
		{"by the cause", Event{Direction: "inbound", Cause: "CALL_REJECTED"}, 603},
		{"unknown cause", Event{Direction: "inbound", Cause: "MEDIA_TIMEOUT"}, 480},
		{"no cause", Event{Direction: "inbound"}, 0},
		{"refused by the callee", Event{Direction: "outbound", TermStatus: "486", Cause: "USER_BUSY"}, 486},
		{"given up", Event{Direction: "outbound", FailureStatus: "487", Cause: "ORIGINATOR_CANCEL"}, 487},
		{"an exported status is not the B leg's", Event{Direction: "outbound", Status: "403", ProtoCause: "sip:500"}, 500},
		{"nonsense", Event{Direction: "outbound", TermStatus: "banana", Cause: "NO_USER_RESPONSE"}, 408},
	}
	for _, tt := range tests {
		e := tt.e
		if r := (origin{}).close(&e); r.SIPCode != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, r.SIPCode, tt.want)
		}
	}
}

func TestDecodeJSON(t *testing.T) {
	tests := []struct {
		name, in string
		want     Event
		bad      bool
	}{
		{"escapes", `{"Event-Name":"X","Unique-ID":"a\"\\\/\n\u00e9\ud83d\ude00\ud800"}`, Event{Name: "X", Leg: "a\"\\/\né😀\uFFFD"}, false},
		{"raw bytes", "{\"Event-Name\":\"X\",\"Unique-ID\":\"J\xf6rg\"}", Event{Name: "X", Leg: "J\xf6rg"}, false},
		{"array", `{"Event-Name":"X","Unique-ID":["1","2"],"variable_DP_MATCH":["1004","1004"]}`, Event{Name: "X", Leg: "1"}, false},
		{"empty array", `{"Event-Name":"X","Unique-ID":[ ]}`, Event{Name: "X"}, false},
		{"twice", `{"Event-Name":"X","Hangup-Cause":"A","Hangup-Cause":"B"}`, Event{Name: "X", Cause: "A"}, false},
		{"other values", `{"a":1,"b":null,"c":{"d":[true,{}]},"Unique-ID":5,"Event-Name":"X"}`, Event{Name: "X"}, false},
		{"spaces", " { \"Event-Name\" : \"X\" , \"a\" : 1 } \n", Event{Name: "X"}, false},
		{"no name", `{"Unique-ID":"a"}`, Event{}, true},
		{"empty object", `{}`, Event{}, true},
		{"empty", ``, Event{}, true},
		{"cut", `{"Event-Name":"X","Unique-ID":"a`, Event{}, true},
		{"more behind", `{"Event-Name":"X"}{`, Event{}, true},
		{"deep", `{"Event-Name":"X","a":` + strings.Repeat("[", 1000) + `}`, Event{}, true},
		{"no value", `{"Event-Name":}`, Event{}, true},
	}
	for _, tt := range tests {
		got, err := DecodeJSON([]byte(tt.in))
		if (err != nil) != tt.bad || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
	}
}

// FuzzDecodeJSON compares with encoding/json on what both read.
func FuzzDecodeJSON(f *testing.F) {
	for _, name := range streams(f) {
		frames, _ := readAll(stream(f, name))
		for _, fr := range frames {
			if fr.contentType == typeEventJSON {
				f.Add(fr.body)
			}
		}
	}
	f.Add([]byte(`{"Event-Name":"X","Unique-ID":["1","2"],"a":{"b":[1]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := DecodeJSON(b)
		if err == nil {
			r := origin{node: "n", cell: "c"}.close(&got)
			if _, err := cdr.Encode(cdr.Entry{Record: &r}); err != nil {
				t.Fatalf("record does not encode: %v", err)
			}
			return
		}
		var m map[string]json.RawMessage
		if json.Unmarshal(b, &m) == nil && strings.HasPrefix(string(m["Event-Name"]), `"`) && len(m["Event-Name"]) > 2 && depth(b) < maxNesting {
			t.Fatalf("valid JSON refused: %v", err)
		}
	})
}

// depth bounds the nesting of a JSON text from above.
func depth(b []byte) int { return strings.Count(string(b), "[") + strings.Count(string(b), "{") }
