package cdr

import "time"

// EventType says what an Event tells.
type EventType string

// The types of event that a PBX adapter emits.
const (
	// Connected: the source listens from now on. Core and Live are set.
	Connected EventType = "connected"
	// Listed: the live legs once more, some seconds after Connected, because a
	// switch may make its list from a table that lags behind its events. Live
	// is set.
	Listed EventType = "listed"
	// Opened: a leg began. Record holds what is known of it.
	Opened EventType = "opened"
	// Answered: a leg was answered. Record holds what is known of it.
	Answered EventType = "answered"
	// Closed: a leg ended. Record is whole.
	Closed EventType = "closed"
	// Heartbeat: the node lives.
	Heartbeat EventType = "heartbeat"
)

// Event is what an adapter makes of a PBX's own event.
type Event struct {
	Type EventType
	// Time is by the node's clock, UTC. Zero where the switch does not tell, as
	// in its answer to a question (Connected, Listed): then the bridge works it
	// out from its own clock and what it knows of the node's.
	Time   time.Time
	Record Record   // Opened, Answered, Closed
	Core   string   // Connected: changes with every start of the PBX
	Live   []string // Connected, Listed: the legs that exist on the node now
	Found  []Record // Connected, Listed: what the list says of them; may be shorter than Live, Source is SourceReconciled
	Raw    []byte   // Closed: the switch's own event, as Packer wrote it; empty where it is not kept
}
