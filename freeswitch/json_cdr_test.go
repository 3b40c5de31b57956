package freeswitch

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

var decoder = CDRDecoder{Cell: "c1", Vars: []string{"tenant_id", "account_code"}}

// posted returns the leg and the body of a captured request.
func posted(t testing.TB, name string) (leg string, body []byte) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "json_cdr", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	b, _, _ = bytes.Cut(b, []byte("\n===== answered"))
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ = bytes.Cut(b, []byte("\r\n\r\n"))
	return req.URL.Query().Get("uuid"), bytes.TrimRight(body, "\n")
}

// written returns the record that a person wrote down.
func written(t testing.TB, name string) cdr.Record {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "json_cdr", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var r cdr.Record
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	r.ID = cdr.NewID(r.Cell, string(r.Node), r.Leg)
	return r
}

func cdrCaptures(t testing.TB) (names []string) {
	t.Helper()
	files, err := filepath.Glob("testdata/json_cdr/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".txt"); name != "README" {
			names = append(names, name)
		}
	}
	if len(names) < 14 {
		t.Fatalf("only %d captures", len(names))
	}
	return names
}

func TestJSONCDRCaptures(t *testing.T) {
	for _, name := range cdrCaptures(t) {
		t.Run(name, func(t *testing.T) {
			leg, body := posted(t, name)
			got, err := decoder.Decode("fs1", cdr.SourceHTTP, leg, body)
			if broken := name == "disable-100-continue-true"; (err != nil) != broken || broken && !errors.Is(err, bulkhead.Invalid) {
				t.Errorf("error %v", err)
			}
			if d := cmp.Diff(written(t, name), got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestJSONCDRFile(t *testing.T) {
	const name = "f4bd057d-49cc-452a-99d7-78d29a54d4f4"
	b, err := os.ReadFile("testdata/json_cdr/" + name + ".cdr.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err := decoder.Decode("fs1", cdr.SourceFile, name, b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(written(t, name+".file"), got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if _, err := decoder.Decode("fs1", cdr.SourceFile, name, b[:len(b)/2]); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("half a file: %v", err)
	}
}

// TestBothSourcesAgree: where a leg was captured on the event socket and as a
// posted record, they differ in nothing but who told.
func TestBothSourcesAgree(t *testing.T) {
	for capture, stream := range map[string]string{
		"answered": "plain-calls", "busy": "plain-calls", "not-found": "plain-calls", "bridge-1-b-leg": "json-bridge",
		"bridge-2-a-leg": "json-bridge", "bridge-busy-1-b-leg": "json-bridge-busy", "bridge-busy-2-a-leg": "json-bridge-busy",
		"array-and-odd-values": "array-and-odd-values-json", "non-utf8-caller-name-encode-values-false": "non-utf8-caller-name-json",
	} {
		leg, body := posted(t, capture)
		want, err := CDRDecoder{Cell: "c1"}.Decode("fs1", cdr.SourceESL, leg, body)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events(t, stream) {
			if e.Name != "CHANNEL_HANGUP_COMPLETE" || e.Leg != leg {
				continue
			}
			if d := cmp.Diff(want, origin{node: "fs1", cell: "c1"}.close(&e)); d != "" {
				t.Errorf("%s: -posted +event:\n%s", capture, d)
			}
			leg = ""
		}
		if leg != "" {
			t.Errorf("%s: leg %s is not in %s", capture, leg, stream)
		}
	}
}

// TestJSONCDREncodings wraps one record in every way that mod_json_cdr has.
func TestJSONCDREncodings(t *testing.T) {
	_, inner := posted(t, "answered")
	_, plain := posted(t, "encode-values-false")
	want := written(t, "answered")
	percent := func(b []byte) string {
		return regexp.MustCompile(`[^a-zA-Z0-9,./_-]`).ReplaceAllStringFunc(string(b), func(s string) string {
			return strings.ToUpper(percentByte(s))
		})
	}
	b64 := base64.StdEncoding.EncodeToString(inner)
	for name, body := range map[string]string{
		"as it is":             string(inner),
		"with a line end":      string(inner) + "\n",
		"form":                 "cdr=" + percent(inner),
		"form, in a file":      percent(inner) + "\n",
		"base64":               "cdr=" + b64,
		"base64, in a file":    b64 + "\n",
		"base64, read as form": "cdr=" + strings.ReplaceAll(b64, "+", " "),
		"JSON behind cdr=":     "cdr=" + string(inner),
	} {
		got, err := decoder.Decode("fs1", cdr.SourceHTTP, "", []byte(body))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: -want +got:\n%s", name, d)
		}
	}
	// A percent sign in a value that is not encoded is a percent sign.
	odd := bytes.Replace(plain, []byte(`"sip_from_user":"5550100"`), []byte(`"sip_from_user":"5%41"`), 1)
	if r, err := decoder.Decode("fs1", cdr.SourceHTTP, "", odd); err != nil || r.Caller != "5%41" {
		t.Errorf("caller %q, %v", r.Caller, err)
	}
}

func percentByte(s string) string {
	const hex = "0123456789ABCDEF"
	var out []byte
	for i := range len(s) {
		out = append(out, '%', hex[s[i]>>4], hex[s[i]&15])
	}
	return string(out)
}

// hostileValues are values that callers and broken switches may put anywhere.
var hostileValues = []string{
	"", "-1", "1e999", "NaN", "99999999999999999999", "0x10", " 5", "\u00bd", "J\xf6rg \xff\xfe", "\xf0\x28\x8c\x28", "\u202e", "a\x00b",
	"'; DROP TABLE cdr;--", `\"`, `\u0000`, `\ud800`, `${hash}`, "<xml>&amp;", "ARRAY::", "ARRAY::|:", "%", "%zz", "%f6", strings.Repeat("A", 300), strings.Repeat("\u20ac", 100),
}

// TestHostileValues puts every hostile value into every field that a record is
// made of: the record lands, keeps its id and whatever else there is, and can
// be stored.
func TestHostileValues(t *testing.T) {
	_, body := posted(t, "encode-values-false")
	whole := written(t, "encode-values-false")
	fields := regexp.MustCompile(`"(sip_[a-z_]*user|sip_call_id|start_uepoch|answer_uepoch|end_uepoch|progress_uepoch|hangup_cause|hangup_cause_q850|read_codec|rtp_audio_in_packet_count|rtp_audio_in_mos|sofia_profile_name|destination_number|caller_id_number|context|direction)":"[^"]*"`)
	places := fields.FindAllIndex(body, -1)
	if len(places) < 15 {
		t.Fatalf("only %d places", len(places))
	}
	for _, at := range places {
		name, _, _ := strings.Cut(string(body[at[0]+1:at[1]]), `"`)
		for _, v := range hostileValues {
			odd := bytes.Join([][]byte{body[:at[0]], []byte(`"` + name + `":"` + v + `"`), body[at[1]:]}, nil)
			r, err := decoder.Decode("fs1", cdr.SourceHTTP, whole.Leg, odd)
			if err != nil || r.ID != whole.ID || r.Leg != whole.Leg {
				t.Fatalf("%s = %q: %+v, %v", name, v, r, err)
			}
			if us := r.Billed().Microseconds(); us != 220_001 && name != "end_uepoch" && name != "answer_uepoch" {
				t.Errorf("%s = %q: billed %d us", name, v, us)
			}
			storable(t, r)
		}
	}
}

// storable checks what a store relies on.
func storable(t testing.TB, r cdr.Record) {
	t.Helper()
	b, err := cdr.Encode(cdr.Entry{Record: &r})
	if err != nil {
		t.Fatal(err)
	}
	back, err := cdr.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, *back.Record); d != "" {
		t.Fatalf("the record changes on its way: %s", d)
	}
	if r.Billed() < 0 || len(r.Attrs) > cdr.MaxAttrs {
		t.Fatalf("billed %v, %d attributes", r.Billed(), len(r.Attrs))
	}
	for k, v := range r.Attrs {
		if len(v) > maxText || k == "" {
			t.Fatalf("attribute %q has %d bytes", k, len(v))
		}
	}
}

// TestQuarantine: a bad field is kept where it can be found, and costs only itself.
func TestQuarantine(t *testing.T) {
	_, body := posted(t, "encode-values-false")
	body = bytes.Replace(body, []byte(`"answer_uepoch":"1795397650212616"`), []byte(`"answer_uepoch":"yesterday"`), 1)
	body = bytes.Replace(body, []byte(`"sip_from_user":"5550100"`), []byte("\"sip_from_user\":\"J\xf6rg%\""), 1)
	body = bytes.Replace(body, []byte(`"hangup_cause_q850":"16"`), []byte(`"hangup_cause_q850":""`), 1)
	want := written(t, "encode-values-false")
	want.Answer, want.SIPCode, want.Caller, want.Q850 = want.End.AddDate(-9999, 0, 0), 480, "J\uFFFDrg%", 0
	want.Attrs["bad:answer"], want.Attrs["bad:caller"] = "yesterday", "J%F6rg%25"
	got, err := decoder.Decode("fs1", cdr.SourceHTTP, "", body)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Answer.IsZero() {
		t.Errorf("answered at %v", got.Answer)
	}
	want.Answer = got.Answer
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	// The event socket's records are treated alike.
	e := Event{Leg: "a", Direction: "inbound", Created: "now", Q850: "x", PacketsIn: "many", CallerID: "J\xf6rg"}
	r := origin{node: "fs1", cell: "c1"}.close(&e)
	if d := cmp.Diff(map[string]string{"bad:start": "now", "bad:q850": "x", "bad:rtp_in": "many", "bad:caller": "J%F6rg"}, r.Attrs); d != "" {
		t.Error(d)
	}
}

func TestMeasuredQuality(t *testing.T) {
	base := Event{Leg: "a", PacketsIn: "500", Spacing: "19.98", Variance: "6.25", Flaws: "3", MOS: "4.31"}
	for name, c := range map[string]struct {
		change func(*Event)
		want   bool
	}{
		"measured":            {func(*Event) {}, true},
		"no packets":          {func(e *Event) { e.PacketsIn = "0" }, false},
		"ten packets":         {func(e *Event) { e.PacketsIn, e.Spacing = "10", "0.00" }, false},
		"no media at all":     {func(e *Event) { e.PacketsIn = "" }, false},
		"nonsense in the MOS": {func(e *Event) { e.MOS = "NaN" }, false},
	} {
		e := base
		c.change(&e)
		r := origin{}.close(&e)
		if got := r.MOS != nil; got != c.want {
			t.Errorf("%s: MOS %v", name, r.MOS)
		}
		if c.want && (*r.MOS != 4.31 || *r.RTPLost != 3 || *r.JitterMS != 2.5) {
			t.Errorf("%s: %v %v %v", name, *r.MOS, *r.RTPLost, *r.JitterMS)
		}
	}
}

func FuzzDecodeCDR(f *testing.F) {
	for _, name := range cdrCaptures(f) {
		_, body := posted(f, name)
		f.Add("leg", body)
	}
	for _, v := range hostileValues {
		f.Add("leg", []byte(`{"variables":{"uuid":"`+v+`","answer_uepoch":"`+v+`","sip_from_user":"`+v+`"}}`))
	}
	f.Add("", []byte("cdr=%7B%22variables%22%3A%7B%22uuid%22%3A%22a"))
	f.Add("", []byte(`{"variables":5,"callflow":{},"channel_data":[]}`))
	f.Add("", []byte(`{"callflow":[[],{"caller_profile":{"uuid":"x"}}]}`))
	f.Fuzz(func(t *testing.T, leg string, body []byte) {
		r, err := decoder.Decode("fs1", cdr.SourceHTTP, leg, body)
		if err != nil && !errors.Is(err, bulkhead.Invalid) {
			t.Fatalf("error is not bulkhead.Invalid: %v", err)
		}
		if leg != "" && r.Leg == "" {
			t.Fatal("a leg that was named has no record")
		}
		if r.Leg != "" {
			storable(t, r)
		}
	})
}
