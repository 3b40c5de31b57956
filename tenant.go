package bulkhead

import "net/netip"

// TenantID names a tenant: 1 to 63 of a-z, 0-9, '-' and '_', beginning with a
// letter or digit. It is part of keys, file names and SIP headers.
type TenantID string

// ProfileID is the tag that says what traffic a tenant makes: standard,
// high_volume, ai, or the operator's own word. Same form as a TenantID.
type ProfileID string

// The profiles that Bulkhead knows by name.
const (
	ProfileStandard   ProfileID = "standard"
	ProfileHighVolume ProfileID = "high_volume"
	ProfileAI         ProfileID = "ai"
)

// Tenant is a customer: what reaches it, who belongs to it and what it may do.
type Tenant struct {
	ID      TenantID  `json:"id"`
	Name    string    `json:"name,omitempty"`
	Cell    CellID    `json:"cell"`
	Profile ProfileID `json:"profile"` // chooses the pool within the cell

	// Domains are the SIP domains that belong to the tenant, lower case. The
	// first is its primary one: the digest realm of its users.
	Domains []string `json:"domains"`

	// Sources are the networks whose calls are the tenant's without digest
	// authentication: its own PBX, its carrier. IPv4 /8 to /32, IPv6 /32,
	// /40 to /48, /56 to /64 and /128. Networks may overlap within one tenant only.
	Sources []netip.Prefix `json:"sources,omitempty"`

	Numbers []Number `json:"numbers,omitempty"`
	Users   []User   `json:"users,omitempty"`
	Trunks  []Trunk  `json:"trunks,omitempty"`

	// What a Target may name beside users and numbers.
	Groups        []Group        `json:"groups,omitempty"`
	Schedules     []Schedule     `json:"schedules,omitempty"`
	Announcements []Announcement `json:"announcements,omitempty"`
	PBX           []Handover     `json:"pbx,omitempty"` // the allow-list of handovers

	// Managed says whether Bulkhead decides the tenant's calls; nil: it does.
	// An unmanaged tenant is located, but its calls are left to what the
	// operator has.
	Managed *bool `json:"managed,omitempty"`

	TimeZone  string   `json:"time_zone,omitempty"` // IANA name; empty: UTC
	Dialling  Dialling `json:"dialling,omitzero"`
	Emergency []string `json:"emergency,omitempty"` // as dialled; empty: DefaultEmergency
	// Allow lists the destination classes that outbound calls may have: national,
	// international, and those of the cell. Empty: national alone.
	Allow []string `json:"allow,omitempty"`
	// FailoverCauses are the Q.850 causes after which the next trunk is tried,
	// 1 to 127. Empty: DefaultFailoverCauses.
	FailoverCauses []int          `json:"failover_causes,omitempty"`
	CallerID       CallerIDPolicy `json:"caller_id,omitzero"`
	Headers        []HeaderRule   `json:"headers,omitempty"` // of calls to trunks, and of those that an SBC sends to a node
	Record         Recording      `json:"record,omitempty"`  // empty: RecordNone
	Tap            bool           `json:"tap,omitempty"`     // the media goes to the AI tap too

	Limits   Limits   `json:"limits,omitzero"`
	Priority int      `json:"priority,omitempty"` // 0 to 100: in a hot pool the lowest overflow first
	Codecs   []string `json:"codecs,omitempty"`   // by preference; empty: the node's own
}

// IsManaged reports whether Bulkhead decides the tenant's calls.
func (t *Tenant) IsManaged() bool { return t.Managed == nil || *t.Managed }

// Realm returns the digest realm of the tenant's users: its primary domain.
func (t *Tenant) Realm() string {
	if len(t.Domains) == 0 {
		return ""
	}
	return t.Domains[0]
}

// User returns the user with the given extension, or nil.
func (t *Tenant) User(extension string) *User {
	for i := range t.Users {
		if t.Users[i].Extension == extension {
			return &t.Users[i]
		}
	}
	return nil
}

// Number is a DID: a number that the public network routes to the tenant. It
// has either a User or a Target.
type Number struct {
	Number string `json:"number"`           // E.164 digits without '+', 2 to 15
	User   string `json:"user,omitempty"`   // extension of the user that rings: short for user:EXTENSION
	Target Target `json:"target,omitempty"` // where the number leads
}

// Leads returns where the number leads.
func (n *Number) Leads() Target {
	if n.Target == "" {
		return MakeTarget(ToUser, n.User)
	}
	return n.Target
}

// User is somebody with a phone.
type User struct {
	Extension string `json:"extension"` // 1 to 15 digits or letters; unique in its tenant
	Name      string `json:"name,omitempty"`
	// HA1 is the digest secret, MD5(extension:realm:password) in lower-case
	// hex (RFC 7616 section 3.4.2, RFC 3261 section 22). The password itself is never kept.
	HA1      string `json:"ha1"`
	CallerID string `json:"caller_id,omitempty"` // number shown on outbound calls, E.164 digits

	Forward      *Forward `json:"forward,omitempty"`        // nil: no forwarding
	Devices      int      `json:"devices,omitempty"`        // contacts at once, 0 to 20; 0: the SBC's or PBX's own limit
	DoNotDisturb bool     `json:"do_not_disturb,omitempty"` // does not ring: as busy
	Voicemail    bool     `json:"voicemail,omitempty"`      // has a box, which takes what Forward does not
}

// Forward says where a user's calls go instead.
type Forward struct {
	Always      Target `json:"always,omitempty"`
	Busy        Target `json:"busy,omitempty"`
	NoAnswer    Target `json:"no_answer,omitempty"`
	Unavailable Target `json:"unavailable,omitempty"` // no device is reachable
	After       int    `json:"after,omitempty"`       // seconds of ringing that are no answer, 5 to 300; 0: DefaultRing
}

// DefaultRing is how many seconds something rings before what follows.
const DefaultRing = 30

// Trunk is a carrier that takes the tenant's outbound calls.
type Trunk struct {
	Name   string `json:"name"`             // unique in its tenant
	Host   string `json:"host"`             // IP address or host name
	Port   uint16 `json:"port"`             // 1 to 65535
	Prefix string `json:"prefix,omitempty"` // digits that the E.164 number must begin with; the longest match wins

	// Among trunks with the same prefix: the lowest priority first, 0 to 100;
	// of equals each comes first in proportion to its weight, 1 to 100; 0: 100.
	Priority int `json:"priority,omitempty"`
	Weight   int `json:"weight,omitempty"`

	// Credentials, when the carrier asks for them; empty: it knows the address.
	Username string `json:"username,omitempty"`
	Password Secret `json:"password,omitempty"`
	Realm    string `json:"realm,omitempty"`    // empty: Host
	Register bool   `json:"register,omitempty"` // the carrier wants a REGISTER
}

// Limits bound what a tenant may do. Zero means the cell's default.
type Limits struct {
	Calls          int `json:"calls,omitempty"`            // calls at once, 0 to 100000
	CallsPerSecond int `json:"calls_per_second,omitempty"` // new calls a second, 0 to 10000
	MaxDuration    int `json:"max_duration,omitempty"`     // seconds that a call may last, 0 to 86400; 0: no limit
}
