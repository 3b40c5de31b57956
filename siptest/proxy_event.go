package siptest

import "strings"

// Event is a refusal by the SBC or a failover, in the fields that a Kamailio
// of Bulkhead posts: all strings, one JSON object a line.
type Event struct {
	Kind   string `json:"kind"` // refused or failover
	SBC    string `json:"sbc"`
	CallID string `json:"callid"`
	CSeq   string `json:"cseq"`
	Branch string `json:"branch"` // tells one attempt from another
	From   string `json:"from"`   // user
	To     string `json:"to"`     // user of the Request-URI
	Domain string `json:"domain"` // host of the Request-URI
	Src    string `json:"src"`    // IP address of the sender
	Tenant string `json:"tenant"` // empty: nobody's
	Node   string `json:"node"`   // ip:port of the node tried; failover only
	Code   string `json:"code"`   // SIP status; of a silent node 408
	Reason string `json:"reason"`
	Time   string `json:"time"` // microseconds since 1970
	Rev    string `json:"rev"`  // revision of the tables
}

// maxField bounds a field of an Event.
const maxField = 256

// clean reduces text from SIP to what may stand in any log or JSON.
func clean(s string) string {
	if len(s) > maxField {
		s = s[:maxField]
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune(" !#*+-./:;=?@_~,()'$%&", r):
			return r
		}
		return '_'
	}, s)
}
