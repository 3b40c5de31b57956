package freeswitch

import (
	"bytes"
	"math/rand/v2"
	"net/url"
	"reflect"
	"strings"
	"testing"
)

// requestNames are the fields that are read of a mod_xml_curl request.
var requestNames = []string{
	"hostname", "section", "tag_name", "key_name", "key_value", "Hunt-Destination-Number", "Hunt-Context", "Hunt-Transfer-Source",
	"Caller-Transfer-Source", "Unique-ID", "Call-Direction", "action", "purpose", "domain", "user", "key", "group_name", "Hunt-Caller-ID-Number",
	"sip_auth_realm", "sip_auth_method", "variable_sip_call_id", "variable_sip_network_ip", "variable_sip_network_port",
	"variable_sip_h_X-Bulkhead-Tenant", "variable_sip_h_X-Bulkhead-User", "variable_sip_h_X-Bulkhead-SBC", "variable_sip_h_X-Bulkhead-Revision",
	"variable_bulkhead_tenant", "variable_bulkhead_sbc", "variable_bulkhead_dialled", "variable_bulkhead_time", "variable_bulkhead_handover",
	"variable_bulkhead_context", "variable_current_application", "variable_sofia_profile_name", "variable_sip_req_host", "variable_sip_from_user",
	"variable_sip_authorized", "variable_sip_auth_username", "variable_sip_auth_realm",
}

// curlNames are those of a question by mod_curl.
var curlNames = []string{
	"dest", "context", "uuid", "direction", "call_id", "ip", "port", "h_tenant", "h_user", "transfer", "tenant", "sbc", "dialled", "time", "handover",
	"own", "profile", "host", "from", "caller", "authorized", "auth_user", "auth_realm", "called",
}

// TestRequestNames: each field has a place of its own, and none is passed over.
func TestRequestNames(t *testing.T) {
	var r Request
	seen := map[*string]string{}
	for _, name := range requestNames {
		slot := r.slot([]byte(name))
		if slot == nil || seen[slot] != "" || !read([]byte(name+"=")) || !read([]byte(name+"=x")) {
			t.Errorf("%s: its place is %v, also that of %q, and it is read: %v", name, slot, seen[slot], read([]byte(name+"=x")))
		}
		seen[slot] = name
	}
	curl := map[*string]string{}
	for _, name := range curlNames {
		slot := r.curlSlot(name)
		if slot == nil || curl[slot] != "" {
			t.Errorf("%s: its place is %v, also that of %q", name, slot, curl[slot])
		}
		curl[slot] = name
	}
	for i, v := 0, reflect.ValueOf(&r).Elem(); i < v.NumField(); i++ {
		if s, ok := v.Field(i).Addr().Interface().(*string); ok && seen[s] == "" && curl[s] == "" {
			t.Errorf("nothing that is sent is read as %s", v.Type().Field(i).Name)
		}
	}
}

// TestRequestAgreesWithURL: random fields in random order, encoded as
// FreeSWITCH does, are what net/url says that they are.
func TestRequestAgreesWithURL(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 11))
	letters := []byte("abcXYZ019 +%&=;?#/<>${}\r\n\x00\xff.-_@\"'")
	text := func() string {
		b := make([]byte, rnd.IntN(20))
		for i := range b {
			b[i] = letters[rnd.IntN(len(letters))]
		}
		return strings.ReplaceAll(url.QueryEscape(string(b)), "+", "%20")
	}
	for range 2000 {
		fields, query := []string{"hostname=vm", "section=dialplan", "tag_name=", "key_name=", "key_value="}, []string{}
		for _, name := range requestNames[fixedFields:] {
			if rnd.IntN(2) == 0 {
				fields = append(fields, name+"="+text())
			}
			other := []byte(name)
			other[rnd.IntN(len(other))]++
			fields = append(fields, string(other)+"="+text())
		}
		for _, name := range curlNames {
			if rnd.IntN(2) == 0 {
				query = append(query, name+"="+text())
			}
		}
		rest := fields[fixedFields:]
		rnd.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
		rnd.Shuffle(len(query), func(i, j int) { query[i], query[j] = query[j], query[i] })
		agreeRequest(t, []byte(strings.Join(fields, "&")))
		agreeCurl(t, strings.Join(query, "&"))
	}
}

// agreeRequest compares what is read of a body with what a parser that knows
// no hurry reads of it, and with net/url where the two mean the same.
func agreeRequest(t *testing.T, body []byte) {
	t.Helper()
	got, err := ParseRequest(body)
	if len(body) > maxRequest {
		if err == nil {
			t.Fatal("a body that is too long was read")
		}
		return
	}
	want, twice, plain := map[string]string{}, false, true
	for n, field := range strings.Split(string(body), "&") {
		name, value, ok := strings.Cut(field, "=")
		plain = plain && ok && !strings.ContainsAny(name, "%+") && !strings.Contains(value, "+") && (n >= fixedFields || !strings.Contains(value, "%"))
		if n >= fixedFields {
			value = unescape(value)
		}
		if !ok || new(Request).slot([]byte(name)) == nil {
			continue
		}
		if old, there := want[name]; there && old != value {
			twice = true
			break
		}
		want[name] = value
	}
	if refused := twice || want["section"] == ""; refused != (err != nil) {
		t.Fatalf("%q: %v, but it is to be refused: %v", body, err, refused)
	}
	others, badly := url.ParseQuery(string(body))
	for _, name := range requestNames {
		value := *got.slot([]byte(name))
		if value != want[name] {
			t.Fatalf("%q: %s is %q, not %q", body, name, value, want[name])
		}
		if plain && badly == nil && !twice && others.Get(name) != value {
			t.Fatalf("%q: %s is %q, but net/url says %q", body, name, value, others.Get(name))
		}
	}
}

// agreeCurl is agreeRequest for the query of a question by mod_curl.
func agreeCurl(t *testing.T, query string) {
	t.Helper()
	got, err := parseCurl(query)
	want, bad := map[string]string{}, false
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if new(Request).curlSlot(name) == nil {
			continue
		}
		value, malformed := url.PathUnescape(value)
		if old, there := want[name]; malformed != nil || there && old != value {
			bad = true
			break
		}
		want[name] = value
	}
	if bad != (err != nil) {
		t.Fatalf("%q: %v, but it is to be refused: %v", query, err, bad)
	}
	for _, name := range curlNames {
		if value := *got.curlSlot(name); value != want[name] {
			t.Fatalf("%q: %s is %q, not %q", query, name, value, want[name])
		}
	}
}

func FuzzRequest(f *testing.F) {
	for _, file := range requests(f) {
		f.Add(requestBody(f, file))
	}
	f.Add([]byte("hostname=%41&section=dialplan&&=&v&variable_=&variable_sip_=x&H=&C&section=dialplan&user=%zz&user=%4"))
	f.Add([]byte("section=a&section=b"))
	f.Fuzz(func(t *testing.T, body []byte) {
		agreeRequest(t, body)
		before := bytes.Clone(body)
		r, _ := ParseRequest(body)
		clear(body)
		again, _ := ParseRequest(before)
		if r != again {
			t.Fatal("a request changed with the buffer that it was read from")
		}
	})
}
