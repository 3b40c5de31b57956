package bulkhead

import "strings"

// Dialling is how a tenant's users dial, to make E.164 numbers of it. All are
// digits. With a country alone, or none, what is dialled must be E.164 already.
type Dialling struct {
	Country             string `json:"country,omitempty"`              // country code, 1 to 3 digits: 49
	Area                string `json:"area,omitempty"`                 // of local numbers, 1 to 5 digits: 30; empty: there are none
	NationalPrefix      string `json:"national_prefix,omitempty"`      // 0 to 3 digits: 0
	InternationalPrefix string `json:"international_prefix,omitempty"` // 0 to 5 digits: 00
	OutsidePrefix       string `json:"outside_prefix,omitempty"`       // 0 to 2 digits that get an outside line: 9
}

// E164 makes an E.164 number, without '+', of what a user dialled; ok is false
// if there is none in it. An outside line must be asked for if there is a
// prefix for it, unless the number begins with '+'.
func (d *Dialling) E164(dialled string) (number string, ok bool) {
	if rest, plus := strings.CutPrefix(dialled, "+"); plus {
		return d.canonical(rest)
	}
	if d.OutsidePrefix != "" {
		rest, outside := strings.CutPrefix(dialled, d.OutsidePrefix)
		if !outside {
			return "", false
		}
		dialled = rest
	}
	return d.Public(dialled)
}

// Public makes an E.164 number, without '+', of a number as the public network
// of the tenant's country writes it.
func (d *Dialling) Public(number string) (e164 string, ok bool) {
	if len(number) < 2 {
		return "", false
	}
	if d.Country == "" || d.Area+d.NationalPrefix+d.InternationalPrefix == "" {
		return d.canonical(strings.TrimPrefix(number, "+"))
	}
	if rest, plus := strings.CutPrefix(number, "+"); plus {
		return d.canonical(rest)
	}
	if rest, abroad := strings.CutPrefix(number, d.InternationalPrefix); abroad && d.InternationalPrefix != "" {
		return d.canonical(rest)
	}
	if rest, national := strings.CutPrefix(number, d.NationalPrefix); national && (d.NationalPrefix != "" || d.Area == "") {
		return d.canonical(d.Country + rest)
	}
	// In North America a number of ten digits has its area code.
	if d.Area == "" || d.Country == "1" && len(number) == 10 {
		return d.canonical(d.Country + number)
	}
	return d.canonical(d.Country + d.Area + number)
}

// canonical refuses what is not E.164, and takes out a national prefix that
// was left in behind the country code, as in +49 (0)30: with it, a number
// would have another class than where it leads.
func (d *Dialling) canonical(number string) (string, bool) {
	// Only where it is a zero: +7 812 begins a number, although 8 is a prefix there.
	if strings.HasPrefix(d.NationalPrefix, "0") {
		prefix := d.Country + d.NationalPrefix
		if rest, ok := strings.CutPrefix(number, prefix); ok {
			number = d.Country + rest
		}
		if strings.HasPrefix(number, prefix) { // nor does one begin with what is left of 0000
			return "", false
		}
	}
	if len(number) < 3 || len(number) > 15 || number[0] == '0' {
		return "", false
	}
	for i := range len(number) {
		if number[i] < '0' || number[i] > '9' {
			return "", false
		}
	}
	return number, true
}

// The destination classes that no cell defines.
const (
	National      = "national"      // in the tenant's country
	International = "international" // in another, or the tenant has none
)

// Premium is the usual name of the class of numbers that cost the caller money.
const Premium = "premium"

// DefaultEmergency are a tenant's emergency numbers when it lists none.
var DefaultEmergency = []string{"112", "911"}

// EmergencyNumbers returns the tenant's emergency numbers, as dialled.
func (t *Tenant) EmergencyNumbers() []string {
	if len(t.Emergency) == 0 {
		return DefaultEmergency
	}
	return t.Emergency
}

// DefaultFailoverCauses are the Q.850 causes after which the next trunk is
// tried: the trunk's fault, not the called's. No route (2, 3), out of order
// (27, 38), no circuit (34), temporary failure (41), congestion (42), channel
// not available (44), resource unavailable (47), service not available (63)
// and not implemented (79), timer expiry (102), interworking (127).
var DefaultFailoverCauses = []int{2, 3, 27, 34, 38, 41, 42, 44, 47, 63, 79, 102, 127}

// Causes returns the Q.850 causes after which the next trunk is tried.
func (t *Tenant) Causes() []int {
	if len(t.FailoverCauses) == 0 {
		return DefaultFailoverCauses
	}
	return t.FailoverCauses
}

// CallerIDMode says what the called of an outbound call sees.
type CallerIDMode string

// The modes of caller id.
const (
	CallerIDOwn       CallerIDMode = "own"       // the user's, if it is a number of the tenant, else the policy's, else the tenant's first, else anonymous
	CallerIDFixed     CallerIDMode = "fixed"     // the policy's number
	CallerIDAnonymous CallerIDMode = "anonymous" // nothing
)

// CallerIDPolicy is the tenant's policy for outbound calls.
type CallerIDPolicy struct {
	Mode   CallerIDMode `json:"mode,omitempty"`   // empty: CallerIDOwn
	Number string       `json:"number,omitempty"` // E.164 digits: a number of the tenant, or any for CallerIDFixed
}

// HeaderAction is what a rule does to a SIP header.
type HeaderAction string

// The actions on headers.
const (
	AddHeader     HeaderAction = "add"     // beside those of the same name
	RemoveHeader  HeaderAction = "remove"  // all of the name
	ReplaceHeader HeaderAction = "replace" // instead of those of the same name
)

// HeaderRule changes a header of the INVITE to a trunk.
type HeaderRule struct {
	Action HeaderAction `json:"action"`
	Name   string       `json:"name"`            // X-..., but not X-Bulkhead-..., or one of HeaderNames
	Value  string       `json:"value,omitempty"` // 1 to 128 of letters, digits, space and . : @ + / _ = -; none to remove
}

// HeaderNames are the headers without X- that a rule may name.
var HeaderNames = []string{"Accept-Language", "Alert-Info", "Diversion", "Organization", "P-Charge-Info", "Priority", "Privacy", "Subject", "User-to-User"}

// Recording says which calls are recorded.
type Recording string

// What is recorded.
const (
	RecordNone     Recording = "none"
	RecordInbound  Recording = "inbound"  // calls that come from outside
	RecordOutbound Recording = "outbound" // calls that a user places to the outside
	RecordAll      Recording = "all"      // also those between users
)
