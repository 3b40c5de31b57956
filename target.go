package bulkhead

import "strings"

// Target is where a call goes within a tenant, as text kind:value:
//
//	user:101            rings the user
//	group:sales         rings the ring group
//	schedule:office     the schedule's open or closed target
//	number:+4930123     the public number, as if the tenant called it
//	announcement:closed plays the announcement and hangs up
//	voicemail:101       the user's voicemail box
//	pbx:support         hands over to what the operator's PBX has
//	reject:486          rejects with the SIP status, 400 to 499 or 600 to 699
//
// Users, groups, schedules, announcements and handovers are the tenant's own.
type Target string

// TargetKind is the first part of a Target.
type TargetKind string

// The kinds of target.
const (
	ToUser         TargetKind = "user"
	ToGroup        TargetKind = "group"
	ToSchedule     TargetKind = "schedule"
	ToNumber       TargetKind = "number"
	ToAnnouncement TargetKind = "announcement"
	ToVoicemail    TargetKind = "voicemail"
	ToPBX          TargetKind = "pbx"
	ToReject       TargetKind = "reject"
)

// MakeTarget joins a kind and a value.
func MakeTarget(kind TargetKind, value string) Target { return Target(string(kind) + ":" + value) }

// Parse returns the target's kind and value. Whether they mean anything is for
// Validate.
func (t Target) Parse() (kind TargetKind, value string) {
	k, v, _ := strings.Cut(string(t), ":")
	return TargetKind(k), v
}

// Ring says how a group rings.
type Ring string

// The ways to ring.
const (
	Simultaneous Ring = "simultaneous" // all members at once
	Sequential   Ring = "sequential"   // one after the other
)

// Group is a ring group. A member who does not want to be disturbed is passed
// over; members' own forwarding does not apply.
type Group struct {
	Name    string   `json:"name"`           // form of an id; unique in its tenant
	Ring    Ring     `json:"ring,omitempty"` // empty: Simultaneous
	Members []Target `json:"members"`        // user: and number: targets, 1 to 32
	// Timeout is how many seconds the group rings, or each member of a
	// sequential one, 5 to 300; 0: DefaultRing.
	Timeout int    `json:"timeout,omitempty"`
	Then    Target `json:"then,omitempty"` // when nobody answered; empty: the call ends
}

// Announcement is a sound file that the media nodes have.
type Announcement struct {
	Name string `json:"name"` // form of an id; unique in its tenant
	File string `json:"file"` // path below the PBX's folder of sounds: letters, digits, - _ / and one . before the ending
}

// HandoverKind is what a Handover leads to.
type HandoverKind string

// The kinds of handover.
const (
	HandoverContext    HandoverKind = "context"
	HandoverQueue      HandoverKind = "queue"
	HandoverIVR        HandoverKind = "ivr"
	HandoverConference HandoverKind = "conference"
)

// Handover is something on the operator's own PBX that calls may be handed
// over to.
type Handover struct {
	Name  string       `json:"name"`  // form of an id; unique in its tenant
	Kind  HandoverKind `json:"kind"`  // what it is
	Value string       `json:"value"` // its name on the PBX: 1 to 64 of letters, digits, - _ . @
}
