package cdr

import "time"

// EventType says what an Event tells.
type EventType string

// The types of event that a PBX adapter emits.
const (
	// Connected: the source listens from now on. Core and Live are set.
	Connected EventType = "connected"
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
	Type   EventType
	Time   time.Time // by the node's clock, UTC
	Record Record    // Opened, Answered, Closed
	Core   string    // Connected: changes with every start of the PBX
	Live   []string  // Connected: the legs that exist on the node now
}
