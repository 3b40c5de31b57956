package freeswitch

import (
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead/route"
)

// What happens after a bridge that nobody answered depends on why, and a
// dialplan's conditions are all looked at before its first action runs. So the
// switch is told to ask again: execute_extension is a new question, whose
// destination is a position in the plan and the cause of the failure:
//
//	bulkhead-0.USER_BUSY       the Dial that is the plan's first action failed
//	bulkhead-0l1.NO_ANSWER     its second leg did
//	bulkhead-0b0.NO_ANSWER     the first action of what follows when it is busy did
//
// Nothing is kept here in between. The plan is made once more, from the same
// headers and from what the first answer left in the channel: the number that
// was dialled and the time. Unlike a transfer, execute_extension leaves the
// call's own destination as it was, and a far end cannot ask for it.

// position is where in a plan an action is. The empty one is the plan's list.
type position string

func (p position) item(i int) position { return p + position(strconv.Itoa(i)) }
func (p position) leg(i int) position  { return p + "l" + position(strconv.Itoa(i)) }

const askPrefix = "bulkhead-"

// ask appends the question of what follows.
func (s *script) ask(at position) bool {
	if !isContext(s.req.Context) {
		return false
	}
	s.add("execute_extension", askPrefix+string(at)+"."+lastCause+" XML "+s.req.Context)
	return true
}

// remember leaves in the channel what the next question needs.
func (s *script) remember() bool {
	if !isDialled(s.req.Destination) {
		return false
	}
	s.set(varDialled, s.req.Destination)
	s.set(varTime, strconv.FormatInt(s.req.At.Unix(), 10))
	return true
}

// branches reports whether the switch will have to ask again: for what follows
// a Dial, and with each for each of sequential legs.
func branches(list []route.Action, each bool) bool {
	for _, a := range list {
		if d, ok := a.(route.Dial); ok && (len(d.Busy)+len(d.NoAnswer)+len(d.Unavailable)+len(d.Otherwise) > 0 || each && d.Sequential && len(d.Legs) > 1) {
			return true
		}
	}
	return false
}

// asksAgain reports whether a request goes on with an earlier plan. Only our
// own answer can have set these variables, and only an execute_extension, not
// a caller or a transfer, leads to such a destination with them.
func (r *Request) asksAgain() bool {
	return strings.HasPrefix(r.Destination, askPrefix) && r.Application == "execute_extension" && r.Dialled != ""
}

// original is the request that the plan was first made for.
func (r *Request) original() *Request {
	first := new(Request)
	*first = *r
	first.Destination = r.Dialled
	if t, err := strconv.ParseInt(r.Time, 10, 64); err == nil && t > 0 && r.At.Sub(time.Unix(t, 0)) < 24*time.Hour {
		first.At = time.Unix(t, 0)
	}
	return first
}

// maxDepth is how many branches a position may have.
const maxDepth = 32

// goOn appends what follows at a position; false if the plan, which may be of
// a newer revision, has no such place.
func (s *script) goOn(destination string) bool {
	at, cause, ok := strings.Cut(strings.TrimPrefix(destination, askPrefix), ".")
	if !ok || !isCause(cause) && cause != "" {
		return false
	}
	list, here := s.plan.Actions, position("")
	for range maxDepth {
		n, rest, ok := index(at)
		if !ok || n >= len(list) {
			return false
		}
		d, ok := list[n].(route.Dial)
		if !ok {
			return false
		}
		here = here.item(n)
		switch {
		case rest == "":
			return s.after(&d, here, cause)
		case rest[0] == 'l':
			leg, end, ok := index(rest[1:])
			if !ok || end != "" || leg >= len(d.Legs) || !d.Sequential {
				return false
			}
			if leg+1 < len(d.Legs) && triesNext(&d, cause) {
				return s.dial(&d, here, leg+1)
			}
			return s.after(&d, here, cause)
		}
		if list = branch(&d, rest[0]); len(list) == 0 {
			return false
		}
		here += position(rest[:1])
		at = rest[1:]
	}
	return false
}

// after appends what follows when nobody answered.
func (s *script) after(d *route.Dial, here position, cause string) bool {
	letter := class(cause)
	if len(branch(d, letter)) == 0 {
		letter = 'o'
	}
	list := branch(d, letter)
	if len(list) == 0 { // the call ends with the far end's own answer
		if cause == "" {
			cause = "NO_ANSWER"
		}
		s.add("hangup", cause)
		return true
	}
	return s.actions(list, here+position(letter))
}

func branch(d *route.Dial, letter byte) []route.Action {
	switch letter {
	case 'b':
		return d.Busy
	case 'n':
		return d.NoAnswer
	case 'u':
		return d.Unavailable
	case 'o':
		return d.Otherwise
	}
	return nil
}

// class sorts FreeSWITCH's causes into what a Dial has branches for. A phone
// that is not registered is one that the SBC answers 404 or 480 for, or, on
// the node itself, USER_NOT_REGISTERED; whatever else fails was not reached.
func class(cause string) byte {
	switch cause {
	case "USER_BUSY", "CALL_REJECTED", "BUSY_EVERYWHERE", "DECLINE", "REJECT_ALL":
		return 'b'
	case "NO_ANSWER", "ALLOTTED_TIMEOUT", "PROGRESS_TIMEOUT", "NO_PICKUP":
		return 'n'
	}
	return 'u'
}

// triesNext reports whether the next of sequential legs is tried after a cause.
func triesNext(d *route.Dial, cause string) bool {
	if len(d.Causes) == 0 {
		return true
	}
	code, ok := causeCodes[cause]
	if ok && code >= 800 { // the switch's own: a gateway that is down or not there
		return code == 808 || code == 809 || code == 811
	}
	for _, c := range d.Causes {
		if ok && c == code {
			return true
		}
	}
	return false
}

// index reads the decimal number that s begins with.
func index(s string) (n int, rest string, ok bool) {
	i := 0
	for i < len(s) && i < 4 && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, err := strconv.Atoi(s[:i])
	return n, s[i:], err == nil
}

func isCause(s string) bool {
	_, ok := causeCodes[s]
	return ok
}

// causeCodes are FreeSWITCH's causes (switch_types.h): those up to 127 are
// ITU-T Q.850's.
var causeCodes = map[string]int{
	"UNALLOCATED_NUMBER": 1, "NO_ROUTE_TRANSIT_NET": 2, "NO_ROUTE_DESTINATION": 3, "CHANNEL_UNACCEPTABLE": 6, "CALL_AWARDED_DELIVERED": 7,
	"NORMAL_CLEARING": 16, "USER_BUSY": 17, "NO_USER_RESPONSE": 18, "NO_ANSWER": 19, "SUBSCRIBER_ABSENT": 20, "CALL_REJECTED": 21,
	"NUMBER_CHANGED": 22, "REDIRECTION_TO_NEW_DESTINATION": 23, "EXCHANGE_ROUTING_ERROR": 25, "DESTINATION_OUT_OF_ORDER": 27,
	"INVALID_NUMBER_FORMAT": 28, "FACILITY_REJECTED": 29, "RESPONSE_TO_STATUS_ENQUIRY": 30, "NORMAL_UNSPECIFIED": 31,
	"NORMAL_CIRCUIT_CONGESTION": 34, "NETWORK_OUT_OF_ORDER": 38, "NORMAL_TEMPORARY_FAILURE": 41, "SWITCH_CONGESTION": 42,
	"ACCESS_INFO_DISCARDED": 43, "REQUESTED_CHAN_UNAVAIL": 44, "PRE_EMPTED": 45, "FACILITY_NOT_SUBSCRIBED": 50, "OUTGOING_CALL_BARRED": 52,
	"INCOMING_CALL_BARRED": 54, "BEARERCAPABILITY_NOTAUTH": 57, "BEARERCAPABILITY_NOTAVAIL": 58, "SERVICE_UNAVAILABLE": 63,
	"BEARERCAPABILITY_NOTIMPL": 65, "CHAN_NOT_IMPLEMENTED": 66, "FACILITY_NOT_IMPLEMENTED": 69, "SERVICE_NOT_IMPLEMENTED": 79,
	"INVALID_CALL_REFERENCE": 81, "INCOMPATIBLE_DESTINATION": 88, "INVALID_MSG_UNSPECIFIED": 95, "MANDATORY_IE_MISSING": 96,
	"MESSAGE_TYPE_NONEXIST": 97, "WRONG_MESSAGE": 98, "IE_NONEXIST": 99, "INVALID_IE_CONTENTS": 100, "WRONG_CALL_STATE": 101,
	"RECOVERY_ON_TIMER_EXPIRE": 102, "MANDATORY_IE_LENGTH_ERROR": 103, "PROTOCOL_ERROR": 111, "INTERWORKING": 127,
	"ORIGINATOR_CANCEL": 487, "CRASH": 700, "SYSTEM_SHUTDOWN": 701, "LOSE_RACE": 702, "MANAGER_REQUEST": 703, "BLIND_TRANSFER": 800,
	"ATTENDED_TRANSFER": 801, "ALLOTTED_TIMEOUT": 802, "USER_CHALLENGE": 803, "MEDIA_TIMEOUT": 804, "PICKED_OFF": 805,
	"USER_NOT_REGISTERED": 806, "PROGRESS_TIMEOUT": 807, "INVALID_GATEWAY": 808, "GATEWAY_DOWN": 809, "INVALID_URL": 810,
	"INVALID_PROFILE": 811, "NO_PICKUP": 812, "SRTP_READ_ERROR": 813, "BOWOUT": 814, "BUSY_EVERYWHERE": 815, "DECLINE": 816,
	"DOES_NOT_EXIST_ANYWHERE": 817, "NOT_ACCEPTABLE": 818, "UNWANTED": 819, "REJECT_ALL": 825,
}
