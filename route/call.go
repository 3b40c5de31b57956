package route

import (
	"net/netip"

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
}

// Plan is the PBX-neutral answer for one call.
type Plan struct {
	Revision bulkhead.RevisionNumber
	Cell     bulkhead.CellID
	SBC      bulkhead.SBCID
	Tenant   bulkhead.TenantID // empty: the call belongs to nobody
	Pool     bulkhead.PoolID
	Set      int      // dispatcher set that the SBC takes the node from
	Codecs   []string // what may be offered, by preference; empty: the node's own
	Actions  []Action // in order; never empty
}

// Action is one step of a Plan: DialUser, DialTrunk or Reject.
type Action interface{ action() }

// DialUser rings a user by way of the SBC, which knows where he is registered.
type DialUser struct {
	Extension string
	Realm     string // the tenant's primary domain
	SBC       string // ip:port of the SBC
}

// DialTrunk sends the call to a carrier.
type DialTrunk struct {
	Trunk    string // its name
	Host     string
	Port     uint16
	Number   string // digits, without '+'
	CallerID string // digits; empty: as the caller sent it
}

// Reject ends the call.
type Reject struct {
	Status int    // SIP status, 400 to 699
	Cause  int    // ITU-T Q.850
	Reason string // in words, for the store
}

func (DialUser) action()  {}
func (DialTrunk) action() {}
func (Reject) action()    {}

// The rejections that Decide knows. The SBC gives the same ones.
var (
	UnknownDomain  = Reject{Status: 404, Cause: 3, Reason: "unknown domain"}
	UnlistedSource = Reject{Status: 403, Cause: 21, Reason: "unlisted source"}
	UnknownNumber  = Reject{Status: 404, Cause: 1, Reason: "unknown number"}
	UnknownTenant  = Reject{Status: 403, Cause: 21, Reason: "unknown tenant"}
	UnknownSBC     = Reject{Status: 403, Cause: 21, Reason: "not from a known SBC"}
)
