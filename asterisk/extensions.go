package asterisk

import (
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// value returns what a condition demands a column to be, or "".
func value(conds []cond, field string) string {
	for _, c := range conds {
		if c.field == field && c.op == "" {
			return c.value
		}
	}
	return ""
}

// appendExtension answers pbx_realtime, for whoever has a
// "switch => Realtime/TENANT@extensions": the context is a tenant's id. A number
// inside the tenant has one line, which goes on in the shipped dialplan; there
// the call's one question is asked. pbx_realtime does not tell who calls, so
// that numbers to which only users may call are none here. Pattern extensions
// do not exist.
func appendExtension(dst []byte, s *scope, conds []cond, now time.Time, sum Summary) ([]byte, Summary) {
	t := s.tenant(bulkhead.TenantID(value(conds, "context")))
	exten := value(conds, "exten")
	if t == nil || value(conds, "priority") != "1" || !only(exten, 64, "+*#-_.") || exten == "h" {
		return dst, sum
	}
	plan := route.Decide(s.x, route.Call{Node: s.node, Tenant: t.ID, Number: exten, Time: now})
	if _, ok := plan.Actions[0].(route.Reject); ok {
		return dst, sum
	}
	sum.Outcome, sum.Tenant = "found", t.ID
	return appendRow(dst, record{
		{"context", string(t.ID)}, {"exten", exten}, {"priority", "1"}, {"app", "Goto"}, {"appdata", callContext + "," + exten + ",1"},
	}), sum
}

// appendMailbox answers app_voicemail, for which a mailbox is EXTENSION@TENANT.
// Nobody gets in by a password: it has letters, which phones cannot send.
func appendMailbox(dst []byte, s *scope, conds []cond, sum Summary) ([]byte, Summary) {
	t := s.tenant(bulkhead.TenantID(value(conds, "context")))
	if t == nil {
		return dst, sum
	}
	box := value(conds, "mailbox")
	u := s.x.User(t.ID, box)
	if u == nil || !u.Voicemail || !isExtension(box) {
		return dst, sum
	}
	sum.Outcome, sum.Tenant = "found", t.ID
	return appendRow(dst, record{
		{"context", string(t.ID)}, {"mailbox", box}, {"password", "-none"}, {"fullname", plainName(u.Name)},
	}), sum
}
