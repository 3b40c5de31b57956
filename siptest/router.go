package siptest

import (
	"net/netip"

	"github.com/emiago/sipgo/sip"
)

// Router decides for a Proxy, which knows no tables itself. It is called from
// many goroutines and must answer from memory.
type Router interface {
	// Peer returns the id of the media node that sends SIP from an address.
	// Within a dialog, what comes from elsewhere is relayed to peers only.
	Peer(src netip.AddrPort) (node string, ok bool)
	// Route decides about a request outside a dialog. It is asked again, with
	// AuthUser, after the challenge that it ordered was met.
	Route(Request) Verdict
}

// Request is what a Router gets to see.
type Request struct {
	Method sip.RequestMethod // INVITE or REGISTER
	Source netip.AddrPort    // where the request really came from
	Node   string            // id of the media node that sent it; empty: from outside
	// Domain and User are the Request-URI's of an INVITE and the To's of a
	// REGISTER; Domain in lower case and without brackets.
	Domain, User string
	// FromDomain and FromUser as the sender claims; domain in lower case.
	FromDomain, FromUser string
	// AuthUser has proved by digest to be who he is; empty: nobody has.
	AuthUser string
}

// Verdict is a Router's decision: the first of Refuse, Challenge, AOR and
// Targets that is set. None at all is refused with 503.
type Verdict struct {
	Tenant   string // whose call it is, for events
	Revision string // of the tables that decided, for events

	Refuse    *Refusal
	Challenge *Challenge
	// AOR is the key of the location table, such as sip:1001@acme: an INVITE is
	// sent to the Contact that is bound to it (none: 480), a REGISTER binds it.
	AOR string
	// Targets are media nodes in the order in which they are tried.
	Targets []Target
	// Headers are added to what is sent to the Targets.
	Headers []Header
}

// Refusal is a final response.
type Refusal struct {
	Code   int // 400 to 699
	Reason string
}

// Challenge orders digest authentication: 401 for a REGISTER, else 407. Only
// User can meet it; without HA1 nobody can, and the sender is not told.
type Challenge struct {
	Realm string
	User  string
	HA1   string `json:"-"`
}

// Target is a media node.
type Target struct {
	Node string // id
	Addr netip.AddrPort
}

// Header is a header by name and value.
type Header struct{ Name, Value string }
