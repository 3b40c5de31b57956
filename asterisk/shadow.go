package asterisk

import (
	"fmt"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Decided is what would be done with a call that began, and which it is. Its
// texts may hold any bytes.
type Decided struct {
	Plan              route.Plan
	SIPCallID, Number string
}

// DecideCall returns what AnswerCall would do with a call; false if the node
// is not in the snapshot, or the call was transferred and thus asked about before.
func DecideCall(x *route.Snapshot, node bulkhead.NodeID, body []byte, now time.Time) (Decided, bool) {
	q := parseCall(body)
	if x == nil || x.CellOf(node) == "" || q.transfer {
		return Decided{}, false
	}
	s := &scope{x: x, node: node, cell: x.CellOf(node)}
	return Decided{Plan: s.decide(&q, now), SIPCallID: q.callID, Number: q.exten}, true
}

// DeferCall appends the answer to a call's question that leaves the call to
// Asterisk's own dialplan.
func DeferCall(x *route.Snapshot, dst []byte) []byte {
	var rev bulkhead.RevisionNumber
	if x != nil {
		rev = x.Revision()
	}
	return fmt.Appendf(dst, "v=1&do=defer&rev=%d\n", rev)
}

// DeferRealtime appends the answer to a res_config_curl request that has no
// rows: Asterisk then goes by its own files. path is as for AnswerRealtime.
func DeferRealtime(path string, dst []byte) []byte {
	switch parseRequest(path, nil).op {
	case "single", "multi", "static":
		return dst
	}
	return append(dst, "0\n"...)
}
