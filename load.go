package bulkhead

import "time"

// NodeLoad is what a node says of itself at /load. Shares are 0 to 1, of the
// time since the reading before.
type NodeLoad struct {
	Node NodeID    `json:"node,omitempty"`
	Time time.Time `json:"time"` // of the reading

	// Group says what CPU, Throttled and Pressure are of: the control group with
	// a CPU quota that the PBX lives in, else the host.
	Group     bool    `json:"group,omitempty"`
	CPU       float64 `json:"cpu"`                 // used
	Steal     float64 `json:"steal,omitempty"`     // kept back by the host's own host
	SoftIRQ   float64 `json:"softirq,omitempty"`   // spent on interrupts, network packets above all
	Throttled float64 `json:"throttled,omitempty"` // periods in which the quota ran out
	Pressure  float64 `json:"pressure,omitempty"`  // time in which something waited for a CPU

	UDPErrors float64 `json:"udp_errors_per_second,omitempty"` // datagrams that found a full receive buffer
	NICDrops  float64 `json:"nic_drops_per_second,omitempty"`  // packets that network cards dropped

	PBX      *PBXLoad `json:"pbx,omitempty"`       // nil: it was not asked, or did not answer
	PBXError string   `json:"pbx_error,omitempty"` // why it did not answer
}

// PBXLoad is what a PBX counts itself. A limit of 0 is none.
type PBXLoad struct {
	Sessions    int     `json:"sessions"` // legs; a bridged call has two
	MaxSessions int     `json:"max_sessions,omitempty"`
	Rate        float64 `json:"rate"` // sessions begun in the last second
	MaxRate     float64 `json:"max_rate,omitempty"`
}
