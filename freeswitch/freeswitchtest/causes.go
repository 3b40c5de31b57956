package freeswitchtest

// cause is a hangup cause by FreeSWITCH's name.
type cause string

// The hangup causes that a node makes itself.
const (
	causeNormal       cause = "NORMAL_CLEARING"
	causeNoRoute      cause = "NO_ROUTE_DESTINATION"
	causeCancel       cause = "ORIGINATOR_CANCEL"
	causeShutdown     cause = "SYSTEM_SHUTDOWN"
	causeNoAnswer     cause = "NO_ANSWER"
	causeOutOfOrder   cause = "DESTINATION_OUT_OF_ORDER"
	causeTempFailure  cause = "NORMAL_TEMPORARY_FAILURE"
	causeIncompatible cause = "INCOMPATIBLE_DESTINATION"
	causeTimer        cause = "RECOVERY_ON_TIMER_EXPIRE"
)

// q850 returns the cause's number of ITU-T Q.850; causes that are FreeSWITCH's
// own have 16 (capture esl/shutdown.txt: SYSTEM_SHUTDOWN has 16).
func (c cause) q850() int {
	switch c {
	case "UNALLOCATED_NUMBER":
		return 1
	case causeNoRoute:
		return 3
	case "USER_BUSY":
		return 17
	case "NO_USER_RESPONSE":
		return 18
	case causeNoAnswer:
		return 19
	case "CALL_REJECTED":
		return 21
	case "NUMBER_CHANGED":
		return 22
	case "EXCHANGE_ROUTING_ERROR":
		return 25
	case causeOutOfOrder:
		return 27
	case "INVALID_NUMBER_FORMAT":
		return 28
	case "NORMAL_UNSPECIFIED":
		return 31
	case "NORMAL_CIRCUIT_CONGESTION":
		return 34
	case "NETWORK_OUT_OF_ORDER":
		return 38
	case causeTempFailure:
		return 41
	case "SWITCH_CONGESTION":
		return 42
	case "SERVICE_UNAVAILABLE":
		return 63
	case "SERVICE_NOT_IMPLEMENTED":
		return 79
	case causeIncompatible:
		return 88
	case causeTimer:
		return 102
	case "INTERWORKING":
		return 127
	}
	return 16
}

// sip returns the status with which a leg that was not answered is refused
// (source: mod_sofia.c, after RFC 4497 section 8.4.1; 486 and 404 also capture
// failures/xml_curl-answers.txt).
func (c cause) sip() int {
	switch c {
	case "UNALLOCATED_NUMBER", causeNoRoute:
		return 404
	case "USER_BUSY":
		return 486
	case "NO_USER_RESPONSE":
		return 408
	case "CALL_REJECTED":
		return 603
	case "NUMBER_CHANGED":
		return 410
	case causeOutOfOrder:
		return 502
	case "INVALID_NUMBER_FORMAT":
		return 484
	case "NORMAL_CIRCUIT_CONGESTION", "NETWORK_OUT_OF_ORDER", causeTempFailure, "SWITCH_CONGESTION":
		return 503
	case "SERVICE_NOT_IMPLEMENTED":
		return 501
	case causeIncompatible:
		return 488
	case causeTimer:
		return 504
	case causeCancel:
		return 487
	case "EXCHANGE_ROUTING_ERROR":
		return 483
	}
	return 480
}

// sipCause returns the cause of a leg that was refused with a status (source:
// sofia_glue.c, after RFC 4497 section 8.4.4; 486 also capture
// esl/json-bridge-busy.txt).
func sipCause(status int) cause {
	switch status {
	case 200:
		return causeNormal
	case 401, 402, 403, 407, 603:
		return "CALL_REJECTED"
	case 404:
		return "UNALLOCATED_NUMBER"
	case 485, 604:
		return causeNoRoute
	case 408, 504:
		return causeTimer
	case 410:
		return "NUMBER_CHANGED"
	case 413, 414, 416, 420, 421, 423, 505, 513:
		return "INTERWORKING"
	case 480:
		return "NO_USER_RESPONSE"
	case 400, 481, 500, 503:
		return causeTempFailure
	case 486, 600:
		return "USER_BUSY"
	case 484:
		return "INVALID_NUMBER_FORMAT"
	case 488, 606:
		return causeIncompatible
	case 502:
		return "NETWORK_OUT_OF_ORDER"
	case 405:
		return "SERVICE_UNAVAILABLE"
	case 406, 415, 501:
		return "SERVICE_NOT_IMPLEMENTED"
	case 482, 483:
		return "EXCHANGE_ROUTING_ERROR"
	case 487:
		return causeCancel
	}
	return "NORMAL_UNSPECIFIED"
}

// phrase is the reason phrase of a status that this node sends.
func phrase(status int) string {
	switch status {
	case 404:
		return "Not Found"
	case 408:
		return "Request Timeout"
	case 410:
		return "Gone"
	case 480:
		return "Temporarily Unavailable"
	case 483:
		return "Too Many Hops"
	case 484:
		return "Address Incomplete"
	case 486:
		return "Busy Here"
	case 487:
		return "Request Terminated"
	case 488:
		return "Not Acceptable Here"
	case 500:
		return "Internal Server Error"
	case 501:
		return "Not Implemented"
	case 502:
		return "Bad Gateway"
	case 503:
		return "Service Unavailable"
	case 504:
		return "Server Time-out"
	case 603:
		return "Decline"
	}
	return "Because"
}

// dialStatus is the DIALSTATUS of a failed bridge (BUSY: capture
// esl/json-bridge-busy.txt).
func (c cause) dialStatus() string {
	switch c {
	case "USER_BUSY":
		return "BUSY"
	case causeNoAnswer:
		return "NOANSWER"
	case causeCancel:
		return "CANCEL"
	}
	return string(c)
}
