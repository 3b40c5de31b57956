package freeswitch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// maxRequest bounds a request's body. A dialplan request has about 6 kB; 64 KiB
// leaves room for long SDP and many headers.
const maxRequest = 64 << 10

// The sections that mod_xml_curl asks for.
const (
	SectionDialplan      = "dialplan"
	SectionDirectory     = "directory"
	SectionConfiguration = "configuration"
)

// Request is what Bulkhead reads of a mod_xml_curl request. All other fields,
// some 150 of a dialplan request, are skipped unread. A field that the request
// does not have is empty. Every value may hold any bytes.
type Request struct {
	Hostname string // hostname
	Section  string // section
	TagName  string // tag_name
	KeyName  string // key_name
	KeyValue string // key_value

	// A dialplan request. Destination and Context are Hunt-Destination-Number
	// and Hunt-Context: the Caller-* ones are those of the call before a
	// transfer or an execute_extension.
	Destination string
	Context     string
	Leg         string // Unique-ID
	Direction   string // Call-Direction
	SIPCallID   string // variable_sip_call_id
	// The call was transferred if one of Hunt-Transfer-Source and
	// Caller-Transfer-Source is set.
	Transfer, EarlierTransfer string
	NetworkIP                 string // variable_sip_network_ip: who sent the INVITE
	NetworkPort               string // variable_sip_network_port

	// The headers that an SBC adds. Anybody could have written them; see Call.
	HeaderTenant   string // variable_sip_h_X-Bulkhead-Tenant
	HeaderUser     string // variable_sip_h_X-Bulkhead-User
	HeaderSBC      string // variable_sip_h_X-Bulkhead-SBC
	HeaderRevision string // variable_sip_h_X-Bulkhead-Revision

	// What our own earlier answer exported to this channel, or set.
	Tenant   string // variable_bulkhead_tenant
	SBC      string // variable_bulkhead_sbc
	Dialled  string // variable_bulkhead_dialled
	Time     string // variable_bulkhead_time
	Handover string // variable_bulkhead_handover
	Own      string // variable_bulkhead_context: the context before the handover

	// Whom the node itself knows, where there is no SBC.
	Application string // variable_current_application
	Profile     string // variable_sofia_profile_name
	Host        string // variable_sip_req_host
	FromUser    string // variable_sip_from_user
	CallerID    string // Hunt-Caller-ID-Number: from P-Asserted-Identity, if there is one
	Authorized  string // variable_sip_authorized: true after digest authentication
	AuthUser    string // variable_sip_auth_username
	AuthRealm   string // variable_sip_auth_realm

	// A directory request.
	Action  string // sip_auth, user_call, group_call
	Purpose string // network-list, gateways
	Domain  string
	User    string
	Key     string // the attribute that User is looked up by
	Realm   string // sip_auth_realm
	Method  string // sip_auth_method
	Group   string // group_name of a group_call, group of an older one

	Called string // only of a question by mod_curl: the call's own destination

	At time.Time // when it came, or when the plan was made that it goes on with; not a field
}

// read reports whether a field can be one of those that Bulkhead reads, by
// eight letters of its name: most of the some 160 fields of a request are passed
// over by this alone. See slot, which decides.
func read(field []byte) bool {
	at := 0
	switch field[0] {
	case 'v':
		at = len("variable_")
	case 'C', 'H':
	case 'A', 'E', 'F', 'P':
		return false
	default:
		return true
	}
	if len(field) < at+8 {
		return true
	}
	h := letters(field[at:])
	return readLetters[h/64]&(1<<(h%64)) != 0
}

// readLetters has a bit for the letters of each name that begins with
// variable_, C or H. All are long enough.
var readLetters = func() (bits [64]uint64) {
	for _, s := range []string{
		"Call-Dir", "Caller-T", "Hunt-Cal", "Hunt-Con", "Hunt-Des", "Hunt-Tra", "bulkhead", "current_",
		"sip_auth", "sip_call", "sip_from", "sip_h_X-", "sip_netw", "sip_req_", "sofia_pr",
	} {
		h := letters([]byte(s))
		bits[h/64] |= 1 << (h % 64)
	}
	return bits
}()

// letters hashes eight bytes to 12 bits.
func letters(b []byte) uint64 { return binary.LittleEndian.Uint64(b) * 0x9e3779b97f4a7c15 >> 52 }

// slot returns where a field's value belongs, or nil.
func (r *Request) slot(name []byte) *string {
	if v, ok := bytes.CutPrefix(name, []byte("variable_")); ok {
		return r.variable(v)
	}
	switch string(name) {
	case "hostname":
		return &r.Hostname
	case "section":
		return &r.Section
	case "tag_name":
		return &r.TagName
	case "key_name":
		return &r.KeyName
	case "key_value":
		return &r.KeyValue
	case "Hunt-Destination-Number":
		return &r.Destination
	case "Hunt-Context":
		return &r.Context
	case "Hunt-Transfer-Source":
		return &r.Transfer
	case "Caller-Transfer-Source":
		return &r.EarlierTransfer
	case "Unique-ID":
		return &r.Leg
	case "Call-Direction":
		return &r.Direction
	case "action":
		return &r.Action
	case "purpose":
		return &r.Purpose
	case "domain":
		return &r.Domain
	case "user":
		return &r.User
	case "key":
		return &r.Key
	case "group_name":
		return &r.Group
	case "Hunt-Caller-ID-Number":
		return &r.CallerID
	case "sip_auth_realm":
		return &r.Realm
	case "sip_auth_method":
		return &r.Method
	}
	return nil
}

func (r *Request) variable(name []byte) *string {
	switch string(name) {
	case "sip_call_id":
		return &r.SIPCallID
	case "sip_network_ip":
		return &r.NetworkIP
	case "sip_network_port":
		return &r.NetworkPort
	case "sip_h_X-Bulkhead-Tenant":
		return &r.HeaderTenant
	case "sip_h_X-Bulkhead-User":
		return &r.HeaderUser
	case "sip_h_X-Bulkhead-SBC":
		return &r.HeaderSBC
	case "sip_h_X-Bulkhead-Revision":
		return &r.HeaderRevision
	case varTenant:
		return &r.Tenant
	case varSBC:
		return &r.SBC
	case varDialled:
		return &r.Dialled
	case varTime:
		return &r.Time
	case varHandover:
		return &r.Handover
	case varContext:
		return &r.Own
	case "current_application":
		return &r.Application
	case "sofia_profile_name":
		return &r.Profile
	case "sip_req_host":
		return &r.Host
	case "sip_from_user":
		return &r.FromUser
	case "sip_authorized":
		return &r.Authorized
	case "sip_auth_username":
		return &r.AuthUser
	case "sip_auth_realm":
		return &r.AuthRealm
	}
	return nil
}

// fixedFields is how many fields at the start of a request are not url-encoded
// (mod_xml_curl.c:179): hostname, section, tag_name, key_name, key_value.
const fixedFields = 5

// ParseRequest reads the form body of a mod_xml_curl request. It is
// bulkhead.Invalid if it is over 64 KiB, names no section, or holds a field
// that Bulkhead reads twice with different values: since the first five fields
// are not encoded, a '&' in one of them would begin a field of the caller's
// choice. The Request that comes with an error holds what was read before.
func ParseRequest(body []byte) (Request, error) {
	var r Request
	err := r.parse(body, &values{})
	return r, err
}

// parse reads a request into an empty r.
func (r *Request) parse(body []byte, v *values) error {
	if len(body) > maxRequest {
		return fmt.Errorf("xml_curl request: %d bytes are over %d: %w", len(body), maxRequest, bulkhead.Invalid)
	}
	v.reset()
	err := r.fields(body, v)
	v.fill()
	if err == nil && r.Section == "" {
		err = fmt.Errorf("xml_curl request: it names no section: %w", bulkhead.Invalid)
	}
	return err
}

func (r *Request) fields(body []byte, v *values) error {
	rest := body
	for n := 0; len(rest) > 0; n++ {
		field := rest
		if i := bytes.IndexByte(rest, '&'); i >= 0 {
			field, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		if len(field) == 0 || !read(field) {
			continue
		}
		eq := bytes.IndexByte(field, '=')
		if eq < 0 {
			continue
		}
		slot := r.slot(field[:eq])
		if slot == nil {
			continue
		}
		start, raw := len(v.bytes), field[eq+1:]
		if n >= fixedFields && bytes.IndexByte(raw, '%') >= 0 {
			v.bytes = appendUnescaped(v.bytes, raw)
		} else {
			v.bytes = append(v.bytes, raw...)
		}
		if !v.add(slot, start) {
			return fmt.Errorf("xml_curl request: field %s is there twice: %w", clip(string(field[:eq])), bulkhead.Invalid)
		}
	}
	return nil
}

// values gathers the values of a request's fields, one behind the other: they
// become a single string, which is as little work for the garbage collector as
// there can be.
type values struct {
	bytes []byte
	found []found
}

// found is a field that has a value.
type found struct {
	slot       *string // where it belongs
	start, end int     // of it in values.bytes
}

func (v *values) reset() { v.bytes, v.found = v.bytes[:0], v.found[:0] }

// add takes what stands in bytes from start on for a field's value; false if
// the field has another one.
func (v *values) add(slot *string, start int) bool {
	for i := range v.found {
		if f := &v.found[i]; f.slot == slot {
			same := bytes.Equal(v.bytes[f.start:f.end], v.bytes[start:])
			v.bytes = v.bytes[:start]
			return same
		}
	}
	v.found = append(v.found, found{slot, start, len(v.bytes)})
	return true
}

// fill puts the values where they belong.
func (v *values) fill() {
	all := string(v.bytes)
	for _, f := range v.found {
		*f.slot = all[f.start:f.end]
	}
}
