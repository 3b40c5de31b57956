package freeswitchtest

import (
	"slices"
	"time"
)

// fixedFields are how many fields of a form are not url-encoded (fact 1,
// capture xml_curl/dialplan-bridge.txt); field names never are.
const fixedFields = 5

// dialplanForm is what mod_xml_curl sends for a call, field by field in the
// order of capture xml_curl/dialplan-bridge.fields.txt. hunt is what is looked
// for: the call's own profile, or that of an execute_extension.
func (l *leg) dialplanForm(hunt *profile) fields {
	l.state, l.callState = "CS_ROUTING", "RINGING"
	l.vars.set("call_uuid", l.callUUID)
	n := l.n
	f := make(fields, 0, 200)
	f.add("hostname", n.cfg.ID)
	f.add("section", "dialplan")
	f.add("tag_name", "")
	f.add("key_name", "")
	f.add("key_value", "")
	f = append(f, n.hub.head("REQUEST_PARAMS", time.Now(), place{"mod_dialplan_xml.c", "dialplan_xml_locate", "619"}, n.hub.number(), 0)...)
	l.channelFields(&f, "2")
	l.variableFields(&f)
	hunt.appendTo(&f, "Hunt-")
	if keep := n.cfg.XMLPostVars; len(keep) > 0 {
		// Capture xml_curl/dialplan-enable-post-var.txt (fact 7).
		rest := slices.DeleteFunc(f[fixedFields:], func(x field) bool { return !slices.Contains(keep, x.name) })
		f = f[:fixedFields+len(rest)]
	}
	return f
}

// encodeForm prints the body of the request.
func encodeForm(f fields) []byte {
	b := make([]byte, 0, 8<<10)
	for i := range f {
		if i > 0 {
			b = append(b, '&')
		}
		b = append(b, f[i].name...)
		b = append(b, '=')
		if i < fixedFields {
			b = append(b, f[i].text()...)
			continue
		}
		b = appendEncoded(b, f[i].text())
	}
	return b
}
