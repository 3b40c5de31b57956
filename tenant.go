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

	Limits Limits   `json:"limits,omitzero"`
	Codecs []string `json:"codecs,omitempty"` // by preference; empty: the node's own
}

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

// Number is a DID: a number that the public network routes to the tenant.
type Number struct {
	Number string `json:"number"` // E.164 digits without '+', 2 to 15
	User   string `json:"user"`   // extension of the user that rings
}

// User is somebody with a phone.
type User struct {
	Extension string `json:"extension"` // 1 to 15 digits or letters; unique in its tenant
	Name      string `json:"name,omitempty"`
	// HA1 is the digest secret, MD5(extension:realm:password) in lower-case
	// hex (RFC 7616 section 3.4.2, RFC 3261 section 22). The password itself is never kept.
	HA1      string `json:"ha1"`
	CallerID string `json:"caller_id,omitempty"` // number shown on outbound calls, E.164 digits
}

// Trunk is a carrier that takes the tenant's outbound calls.
type Trunk struct {
	Name   string `json:"name"`             // unique in its tenant
	Host   string `json:"host"`             // IP address or host name
	Port   uint16 `json:"port"`             // 1 to 65535
	Prefix string `json:"prefix,omitempty"` // digits that the dialled number must begin with; the longest match wins
}

// Limits bound what a tenant may do. Zero means the cell's default.
type Limits struct {
	Calls          int `json:"calls,omitempty"`            // calls at once, 0 to 100000
	CallsPerSecond int `json:"calls_per_second,omitempty"` // new calls a second, 0 to 10000
}
