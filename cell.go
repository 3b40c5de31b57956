package bulkhead

import "time"

// CellID, PoolID, NodeID and SBCID have the same form as a TenantID.
type (
	CellID string
	PoolID string
	NodeID string
	SBCID  string
)

// DefaultMaxTenants is the number of tenants a cell takes when it says nothing else.
const DefaultMaxTenants = 500

// Cell is the unit of failure: its tenants, SBCs, media nodes and stores share
// nothing with another cell's.
type Cell struct {
	ID         CellID `json:"id"`
	MaxTenants int    `json:"max_tenants,omitempty"` // 0: DefaultMaxTenants; at most 200000

	// Classes sort what tenants call by E.164 prefix; the longest wins. What no
	// prefix fits is national or international, by the tenant's country.
	Classes []Class `json:"classes,omitempty"`
}

// Class is a class of destinations, such as premium, mobile or satellite.
// Tenants reach it only if they allow it by name.
type Class struct {
	Name     string   `json:"name"`     // form of an id; not national or international
	Prefixes []string `json:"prefixes"` // 1 to 15 digits, without '+'
}

// Placement says how a pool's nodes share its tenants.
type Placement string

const (
	// Sticky gives each tenant a home node, so that its conferences, queues,
	// parking and pickup meet on one node. The others are its fallback.
	Sticky Placement = "sticky"
	// Spread distributes calls by weight; for trunks, dialers and AI.
	Spread Placement = "spread"
)

// Pool is the media nodes that serve one profile in one cell.
type Pool struct {
	ID        PoolID    `json:"id"`
	Cell      CellID    `json:"cell"`
	Profile   ProfileID `json:"profile"`
	Placement Placement `json:"placement,omitempty"` // empty: Sticky
	Backup    PoolID    `json:"backup,omitempty"`    // takes the calls that the pool cannot
}

// NodeKind is the software of a media node.
type NodeKind string

// The kinds of media node.
const (
	FreeSWITCH NodeKind = "freeswitch"
	Asterisk   NodeKind = "asterisk"
)

// Node is one FreeSWITCH or Asterisk.
type Node struct {
	ID     NodeID   `json:"id"`
	Pool   PoolID   `json:"pool"`
	Kind   NodeKind `json:"kind,omitempty"`   // empty: FreeSWITCH
	SIP    string   `json:"sip"`              // ip:port that takes calls from the SBC over UDP
	Weight int      `json:"weight,omitempty"` // share of calls in a spread pool, 1 to 100; 0: 100
	ESL    string   `json:"esl,omitempty"`    // host:port of mod_event_socket
	Drain  bool     `json:"drain,omitempty"`  // takes no new calls

	ARI   string `json:"ari,omitempty"`   // ip:port of Asterisk's HTTP server
	AMI   string `json:"ami,omitempty"`   // ip:port of Asterisk's manager
	Agent string `json:"agent,omitempty"` // ip:port of the node's own agent, which serves its /load

	Unmanaged Unmanaged `json:"unmanaged,omitempty"` // empty: RejectUnmanaged
	MaxCalls  int       `json:"max_calls,omitempty"` // calls at once that it can take, 0 to 100000; 0: not known
	Disabled  bool      `json:"disabled,omitempty"`  // as if it were not there
	// Cacheable is how many seconds a FreeSWITCH may keep a directory user, 0
	// to 86400; 0: it asks each time.
	Cacheable int `json:"cacheable,omitempty"`
}

// Unmanaged says what a node does with a call that is no managed tenant's.
type Unmanaged string

// What is done with unmanaged calls.
const (
	RejectUnmanaged Unmanaged = "reject" // reject them
	DeferUnmanaged  Unmanaged = "defer"  // leave them to what the PBX has of its own
)

// SBC is a Kamailio at the edge of a cell.
type SBC struct {
	ID    SBCID    `json:"id"`
	Cell  CellID   `json:"cell"`
	SIP   string   `json:"sip"`             // ip:port that phones, carriers and nodes reach over UDP
	Names []string `json:"names,omitempty"` // further host names by which callers may address it
}

// RevisionNumber numbers a state of all configuration. The empty state is 0.
type RevisionNumber uint64

// Revision is one atomic change and the number of the state it led to.
type Revision struct {
	Number  RevisionNumber `json:"number"`
	Parent  RevisionNumber `json:"parent"`
	Time    time.Time      `json:"time"`
	Author  string         `json:"author"`
	Message string         `json:"message,omitempty"`
	Change  Change         `json:"change"`
}
