package freeswitchtest

import (
	"regexp"
	"strings"
)

// action is one application with its arguments, as the dialplan names it.
type action struct {
	app, data string
}

// hunt is what the search of the dialplan sees of a call, and leaves in it.
type hunt struct {
	context string
	// value returns the caller profile's field or the channel variable of that
	// name; it also expands ${...} in the name of a condition's field.
	value func(name string) string
	// inline runs an action with inline="true" at once.
	inline func(action)
	// match is the result of the last condition whose expression has a group:
	// the channel variable DP_MATCH (fact 30 of the captures' README).
	match []string
}

// find returns the actions for the call. Without any the call is refused with
// 404 (capture failures/xml_curl-answers.txt numbers 2004 to 2007): an answer
// is final even if its context has another name.
func (h *hunt) find(doc *element) []action {
	section := doc.child("section", "dialplan")
	if section == nil {
		return nil
	}
	ctx := section.child("context", h.context)
	if ctx == nil {
		ctx = section.child("context", "global") // xml_curl-answers.txt number 2016
	}
	if ctx == nil {
		return nil
	}
	var all []action
	for _, ext := range ctx.children {
		if ext.name != "extension" {
			continue
		}
		acts, ok := h.extension(ext)
		all = append(all, acts...)
		if ok && ext.attr("continue") != "true" {
			break
		}
	}
	return all
}

// extension reports whether all conditions held. The break attribute decides
// whether the next condition is looked at; its default is on-false (source:
// mod_dialplan_xml.c).
func (h *hunt) extension(ext *element) (acts []action, matched bool) {
	matched = true
	seen := false
	for _, c := range ext.children {
		if c.name != "condition" {
			continue
		}
		seen = true
		ok, groups := h.condition(c)
		kind := "action"
		if !ok {
			kind = "anti-action"
		}
		for _, a := range c.children {
			if a.name != kind {
				continue
			}
			act := action{app: a.attr("application"), data: substitute(a.attr("data"), groups)}
			if a.attr("inline") == "true" {
				h.inline(act)
				continue
			}
			acts = append(acts, act)
		}
		if !ok {
			matched = false
		}
		switch brk := c.attr("break"); {
		case brk == "always", brk == "on-true" && ok, (brk == "" || brk == "on-false") && !ok:
			return acts, matched && len(acts) > 0
		}
	}
	return acts, seen && matched
}

func (h *hunt) condition(c *element) (ok bool, groups []string) {
	name, expr := c.attr("field"), c.attr("expression")
	if name == "" && expr == "" {
		return true, nil
	}
	// PCRE in a real one; RE2 here, which has no look-around and no back-references.
	re, err := regexp.Compile(expr)
	if err != nil {
		return false, nil
	}
	v := ""
	if strings.HasPrefix(name, "${") {
		v = expand(name, h.value)
	} else {
		v = h.value(name)
	}
	m := re.FindStringSubmatch(v)
	if m == nil {
		return false, nil
	}
	if len(m) > 1 {
		h.match = m
		return true, m
	}
	return true, nil
}

// substitute puts the groups of the condition's expression for $0 to $9.
func substitute(data string, groups []string) string {
	if groups == nil || !strings.Contains(data, "$") {
		return data
	}
	var b strings.Builder
	for i := 0; i < len(data); i++ {
		if data[i] == '$' && i+1 < len(data) && data[i+1] >= '0' && data[i+1] <= '9' {
			if n := int(data[i+1] - '0'); n < len(groups) {
				b.WriteString(groups[n])
			}
			i++
			continue
		}
		b.WriteByte(data[i])
	}
	return b.String()
}

// expand replaces ${name} by the variable. ${hostname()} is the one API call
// that is known (capture failures/preprocessing-of-http-answers.txt number
// 1008); others give nothing.
func expand(s string, value func(string) string) string {
	if !strings.Contains(s, "${") {
		return s
	}
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(s, "${")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		name, after, ok := strings.Cut(rest, "}")
		if !ok {
			b.WriteString("${" + rest)
			return b.String()
		}
		switch {
		case name == "hostname()":
			b.WriteString(value("hostname"))
		case !strings.Contains(name, "("):
			b.WriteString(value(name))
		}
		s = after
	}
}

// dialTarget is one parsed dial string.
type dialTarget struct {
	vars    fields // of {...}
	profile string
	user    string
	host    string // with the port, if there is one
	path    string // of fs_path, without sip:
}

// parseDial reads {var=value,...}sofia/<profile>/<user>@<host>[:port][;params].
// The only parameter that is used is fs_path (RFC 3261 loose route of the
// first hop, without a Route header; source: sofia_glue.c passes it as the
// handle's proxy).
func parseDial(s string) (dialTarget, bool) {
	var t dialTarget
	s = strings.TrimSpace(s)
	for strings.HasPrefix(s, "{") || strings.HasPrefix(s, "[") {
		end := map[byte]string{'{': "}", '[': "]"}[s[0]]
		list, rest, ok := strings.Cut(s[1:], end)
		if !ok {
			return t, false
		}
		for _, kv := range splitVars(list) {
			if k, v, ok := strings.Cut(kv, "="); ok {
				t.vars.set(strings.TrimSpace(k), strings.Trim(strings.TrimSpace(v), "'"))
			}
		}
		s = rest
	}
	if strings.ContainsAny(s, ",|") { // several targets
		return t, false
	}
	rest, ok := strings.CutPrefix(s, "sofia/")
	if !ok {
		return t, false
	}
	if t.profile, rest, ok = strings.Cut(rest, "/"); !ok || t.profile == "" {
		return t, false
	}
	uri, params, _ := strings.Cut(rest, ";")
	uri = strings.TrimPrefix(uri, "sip:")
	if t.user, t.host, ok = strings.Cut(uri, "@"); !ok || t.host == "" {
		return t, false
	}
	for _, p := range strings.Split(params, ";") {
		if v, ok := strings.CutPrefix(p, "fs_path="); ok {
			v = strings.NewReplacer("%3A", ":", "%3a", ":").Replace(v)
			t.path = strings.TrimPrefix(v, "sip:")
		}
	}
	return t, true
}

// splitVars splits at commas that stand outside of single quotes and are not
// escaped by a backslash.
func splitVars(s string) []string {
	var out []string
	var cur strings.Builder
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == ',' || s[i+1] == '\''):
			i++
			cur.WriteByte(s[i])
			continue
		case s[i] == '\'':
			quoted = !quoted
		case s[i] == ',' && !quoted:
			out = append(out, cur.String())
			cur.Reset()
			continue
		}
		cur.WriteByte(s[i])
	}
	return append(out, cur.String())
}
