package asterisk

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// The types of ARI event that a Source asks for, and those that it must not miss.
const (
	typeCreated     = "ChannelCreated"
	typeState       = "ChannelStateChange"
	typeDial        = "Dial"
	typeHangup      = "ChannelHangupRequest"
	typeDestroyed   = "ChannelDestroyed"
	typeVarset      = "ChannelVarset" // not asked for, but used where it comes
	typeReplaced    = "ApplicationReplaced"
	typeRegistered  = "ApplicationRegistered"
	typeRESTRequest = "RESTRequest"
	typeResponse    = "RESTResponse"
)

// channel is what we read of a channel object. Its id is the UniqueID of AMI.
type channel struct {
	ID          string `json:"id"`
	Name        string `json:"name"`  // technology/name-number
	State       string `json:"state"` // Down, Ring, Ringing, Up, ...
	ProtocolID  string `json:"protocol_id"`
	Caller      party  `json:"caller"`
	Connected   party  `json:"connected"`
	AccountCode string `json:"accountcode"`
	Dialplan    struct {
		Context string `json:"context"`
		Exten   string `json:"exten"`
		App     string `json:"app_name"`
	} `json:"dialplan"`
	Created string            `json:"creationtime"`
	Vars    map[string]string `json:"channelvars"`
}

type party struct {
	Number string `json:"number"`
}

// event is what we read of any ARI message.
type event struct {
	Type        string   `json:"type"`
	Timestamp   string   `json:"timestamp"`
	Application string   `json:"application"`
	Channel     *channel `json:"channel"`

	Caller     *channel `json:"caller"` // Dial; absent where nobody dials, as for an originated call
	Peer       *channel `json:"peer"`
	DialStatus string   `json:"dialstatus"`
	DialString string   `json:"dialstring"`

	// Cause is a Q.850 cause. In a ChannelHangupRequest with Soft it is not: there
	// it is a flag of Asterisk's own, such as 16 for the end of the dialplan.
	Cause     int    `json:"cause"`
	CauseText string `json:"cause_txt"`
	TechCause int    `json:"tech_cause"` // SIP status
	Soft      bool   `json:"soft"`

	Variable string `json:"variable"`
	Value    string `json:"value"`

	RequestID string `json:"request_id"`
	Status    int    `json:"status_code"`
	Body      string `json:"message_body"`
}

// decodeEvent reads an ARI message. A field of an unexpected JSON type is left
// empty and named in bad, so that one of them does not cost the event; what is
// no JSON object with a type is bulkhead.Invalid.
func decodeEvent(b []byte) (e event, bad string, err error) {
	bad, err = lenient(b, &e)
	if err == nil && e.Type == "" {
		err = errors.New("it has no type")
	}
	if err != nil {
		return event{}, "", fmt.Errorf("decode ARI event of %d bytes: %w: %w", len(b), bulkhead.Invalid, err)
	}
	return e, bad, nil
}

// decodeChannels reads the answer to GET /channels.
func decodeChannels(b []byte) ([]channel, error) {
	var list []channel
	if _, err := lenient(b, &list); err != nil {
		return nil, fmt.Errorf("decode the list of channels, %d bytes: %w: %w", len(b), bulkhead.Invalid, err)
	}
	return list, nil
}

// lenient decodes JSON and passes over fields of a wrong type. It returns the
// name of the first such.
func lenient(b []byte, v any) (bad string, err error) {
	err = json.Unmarshal(b, v)
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
		// The decoder has gone on and filled in everything else.
		if wrong.Field == "" {
			return "", err // it is not even an object
		}
		return wrong.Field, nil
	}
	return "", err
}

// moment reads a time of ARI, such as 2026-11-23T01:12:35.495+0000, as UTC.
// What is no such time is the zero time.
func moment(s string) time.Time {
	t, err := time.Parse("2006-01-02T15:04:05Z0700", s)
	if err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Microsecond)
}

// notLegs are channel technologies that carry a copy of somebody's media, or
// are a tool of Asterisk's own, and are no call legs.
var notLegs = map[string]bool{
	"Snoop": true, "UnicastRTP": true, "MulticastRTP": true, "AudioSocket": true, "WebSocket": true,
	"Local": true, "Surrogate": true, "Announcer": true, "Recorder": true, "CBAnn": true, "CBRec": true, "Message": true,
}

// technology is the part of a channel's name before the slash.
func technology(name string) string {
	tech, _, _ := strings.Cut(name, "/")
	return tech
}

// isLeg tells whether a channel of this name is a call leg.
func isLeg(name string) bool { return !notLegs[technology(name)] }

// endpoint is the name without technology and number: acme-1001 of
// PJSIP/acme-1001-00000004.
func endpoint(name string) string {
	_, rest, ok := strings.Cut(name, "/")
	if !ok {
		return ""
	}
	if i := strings.LastIndexByte(rest, '-'); i > 0 {
		rest = rest[:i]
	}
	return rest
}

// dialled is the number in a dial string such as +441632960001@trunk or
// trunk/sip:+441632960001@host; empty if there is none.
func dialled(dialString string) string {
	user, _, ok := strings.Cut(dialString, "@")
	if !ok {
		return ""
	}
	user = user[strings.LastIndexByte(user, '/')+1:]
	user = strings.TrimPrefix(strings.TrimPrefix(user, "sips:"), "sip:")
	return user
}
