package route

import (
	"net/netip"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// Call is a call that somebody asks about.
type Call struct {
	// SBC is where the call came into the cell. Tenants of other cells do not exist there.
	SBC bulkhead.SBCID
	// Tenant, when set, was located by the SBC already: Domain, Source and
	// FromDomain are not looked at. Whoever sets it must have checked that an
	// SBC said so.
	Tenant bulkhead.TenantID

	Domain string     // host of the Request-URI
	Source netip.Addr // where the INVITE came from
	Number string     // user of the Request-URI: an extension or a number, '+' allowed
	User   string     // extension that the caller proved by digest to be; empty: none

	// Node asks without an SBC: with an empty SBC the cell is the node's, and
	// users are rung where they are registered, on the node itself.
	Node bulkhead.NodeID
	// From is the number that the caller shows. It is data for the plan, never proof.
	From string
	// ID is the Call-ID. It draws among trunks of equal priority.
	ID string
	// Time is now: what schedules go by.
	Time time.Time
}

// Plan is the PBX-neutral answer for one call.
type Plan struct {
	Revision bulkhead.RevisionNumber
	Cell     bulkhead.CellID
	SBC      bulkhead.SBCID
	Tenant   bulkhead.TenantID // empty: the call belongs to nobody
	Pool     bulkhead.PoolID
	Set      int      // dispatcher set that the SBC takes the node from
	Actions  []Action // in order; never empty. After the last the call is hung up

	// Managed false means that the call is no managed tenant's: a node that
	// defers such calls answers "not mine"; any other takes the Actions, which reject.
	Managed bool
	// Emergency: no limit of any kind may stand in the call's way.
	Emergency   bool
	Outbound    bool                  // a user or source of the tenant calls the outside
	Codecs      []string              // what may be offered, by preference; empty: the node's own
	MaxDuration int                   // seconds; 0: no limit
	Record      bool                  // record the call
	Tap         bool                  // the media goes to the AI tap too
	Headers     []bulkhead.HeaderRule // for the INVITEs to trunks
	CallerID    CallerID              // what users who are rung see
}

// CallerID is who the called sees. Empty fields stay as they came.
type CallerID struct {
	Number string // an extension, or E.164 digits
	Name   string
}

// Action is one step of a Plan: Dial, Play, Voicemail, Handover or Reject.
type Action interface{ action() }

// Dial rings legs until one answers; then the plan is over when that call is.
// When none does, the actions of what happened go on: the call ends with the
// far end's own answer if there are none.
type Dial struct {
	Legs       []Leg // never empty
	Sequential bool  // one after the other, not at once
	Timeout    int   // seconds: of all, or of each when sequential; 0: the node's own
	// Causes are the Q.850 causes after which the next of sequential legs is
	// tried. Empty: after any.
	Causes []int

	Busy        []Action // also when the call was declined
	NoAnswer    []Action
	Unavailable []Action // not registered, or not reachable
	Otherwise   []Action // instead of those above that are empty
}

// After returns what follows when no leg answered; of is Busy, NoAnswer or Unavailable.
func (d *Dial) After(of []Action) []Action {
	if len(of) == 0 {
		return d.Otherwise
	}
	return of
}

// Leg is who a Dial rings: DialUser or DialTrunk.
type Leg interface{ leg() }

// Play answers the call and plays a sound file.
type Play struct {
	File string // a path below the node's folder of sounds
}

// Voicemail takes a message.
type Voicemail struct {
	Box   string // the extension of the user whose it is
	Realm string // the tenant's primary domain
}

// Handover leaves the call to something on the operator's own PBX.
type Handover struct {
	Kind   bulkhead.HandoverKind
	Value  string // its name there
	Number string // what was dialled: the extension to call in a context
}

// DialUser rings a user by way of the SBC, which knows where he is registered.
type DialUser struct {
	Extension string
	Realm     string // the tenant's primary domain
	SBC       string // ip:port of the SBC; empty: he is registered on the node
}

// DialTrunk sends the call to a carrier.
type DialTrunk struct {
	Trunk    string // its name
	Host     string
	Port     uint16
	Number   string // digits, without '+'
	CallerID string // digits; empty: Anonymous, or as the caller sent it
	// Anonymous: the caller must not be shown (RFC 3323, Privacy: id).
	Anonymous bool
	// Gateway: the carrier wants credentials. The leg must go through the
	// node's gateway of the tenant and trunk.
	Gateway bool
}

// Reject ends the call.
type Reject struct {
	Status int    // SIP status, 400 to 499 or 600 to 699: an SBC takes a 5xx for a node that failed
	Cause  int    // ITU-T Q.850
	Reason string // in words, for the store
}

func (Dial) action()      {}
func (Play) action()      {}
func (Voicemail) action() {}
func (Handover) action()  {}
func (Reject) action()    {}

func (DialUser) leg()  {}
func (DialTrunk) leg() {}

// The rejections that Decide knows. The SBC gives the same ones. None is a 5xx:
// on those the SBC asks another node.
var (
	UnknownDomain  = Reject{Status: 404, Cause: 3, Reason: "unknown domain"}
	UnlistedSource = Reject{Status: 403, Cause: 21, Reason: "unlisted source"}
	UnknownNumber  = Reject{Status: 404, Cause: 1, Reason: "unknown number"}
	UnknownTenant  = Reject{Status: 403, Cause: 21, Reason: "unknown tenant"}
	UnknownSBC     = Reject{Status: 403, Cause: 21, Reason: "not from a known SBC"}
	UnknownNode    = Reject{Status: 403, Cause: 21, Reason: "not from a known node"}
	Unmanaged      = Reject{Status: 403, Cause: 21, Reason: "tenant is not managed"}
	NotAllowed     = Reject{Status: 403, Cause: 21, Reason: "destination class is not allowed"}
	NoTrunk        = Reject{Status: 404, Cause: 3, Reason: "no trunk takes the number"}
	NobodyRings    = Reject{Status: 480, Cause: 20, Reason: "nobody of the group rings"}
	DoNotDisturb   = Reject{Status: 486, Cause: 17, Reason: "do not disturb"}
)
