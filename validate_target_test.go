package bulkhead

import (
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
)

// fullTenant uses every field.
func fullTenant() Tenant {
	managed := true
	return Tenant{
		ID: "acme", Name: "Acme", Cell: "cell1", Profile: ProfileStandard, Domains: []string{"acme.example"}, Sources: nets("10.1.0.0/16"),
		Numbers: []Number{{Number: "4930100", User: "101"}, {Number: "4930200", Target: "schedule:office"}},
		Users: []User{
			{Extension: "101", Name: "Ada", HA1: someHA1, CallerID: "4930100", Devices: 3, Voicemail: true, Forward: &Forward{
				Always: "number:+44207946", Busy: "voicemail:101", NoAnswer: "user:102", Unavailable: "announcement:closed", After: 20,
			}},
			{Extension: "102", HA1: someHA1, DoNotDisturb: true},
		},
		Trunks: []Trunk{{Name: "carrier", Host: "carrier.example", Port: 5060, Prefix: "49", Priority: 1, Weight: 50, Username: "acme", Password: "s3cr3t", Realm: "carrier.example", Register: true}},
		Groups: []Group{{Name: "sales", Ring: Sequential, Members: []Target{"user:102", "number:+44207946"}, Timeout: 20, Then: "pbx:queue"}},
		Schedules: []Schedule{{
			Name: "office", Hours: []Hours{{Days: []string{"mon"}, From: "09:00", To: "17:00"}}, Open: "group:sales", Closed: "reject:480",
			Exceptions: []Exception{{Date: "2026-12-24", From: "09:00", To: "12:00"}},
		}},
		Announcements: []Announcement{{Name: "closed", File: "acme/closed.wav"}},
		PBX:           []Handover{{Name: "queue", Kind: HandoverQueue, Value: "support@default"}},
		Managed:       &managed, TimeZone: "Europe/Berlin",
		Dialling:  Dialling{Country: "49", Area: "30", NationalPrefix: "0", InternationalPrefix: "00", OutsidePrefix: "9"},
		Emergency: []string{"110", "112"}, Allow: []string{National, Premium}, FailoverCauses: []int{34, 41},
		CallerID: CallerIDPolicy{Mode: CallerIDFixed, Number: "4930100"}, Headers: []HeaderRule{{Action: AddHeader, Name: "X-Account", Value: "acme-1"}},
		Record: RecordAll, Tap: true, Limits: Limits{Calls: 10, CallsPerSecond: 2, MaxDuration: 3600}, Priority: 5, Codecs: []string{"PCMA"},
	}
}

func TestFullTenantIsValidAndUsesEveryField(t *testing.T) {
	k := fullTenant()
	s := put(Change{Tenants: []Tenant{k}})
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	v := reflect.ValueOf(k)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%s is not used", v.Type().Field(i).Name)
		}
	}
}

// texts calls f with every text in v, which it may set, and its path.
func texts(v reflect.Value, path string, f func(path string, text reflect.Value)) {
	switch v.Kind() {
	case reflect.String:
		f(path, v)
	case reflect.Pointer:
		if !v.IsNil() {
			texts(v.Elem(), path, f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			texts(v.Index(i), fmt.Sprintf("%s[%d]", path, i), f)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				texts(v.Field(i), path+"."+v.Type().Field(i).Name, f)
			}
		}
	}
}

// TestHostileTexts: what would be code in an XML document, a dial string, a
// SIP message or an SQL pattern gets into no field.
func TestHostileTexts(t *testing.T) {
	fields := 0
	for _, hostile := range []string{
		"${hangup}", "$${x}", "${api(system touch x)}", "a\r\nVia: x", "a\nb", "a\x00b", `a"b`, "a<b", "a&b", "%", "a;b", "a|b", "a\\b", "a`b", "a{b}", "[a]", "é\xff",
	} {
		k := fullTenant()
		texts(reflect.ValueOf(&k), "", func(path string, text reflect.Value) {
			fields++
			for _, bad := range []string{hostile, text.String() + hostile} {
				old := text.String()
				text.SetString(bad)
				if k.Validate() == nil && path != ".Cell" { // a reference: State.Validate holds it to the cells
					t.Errorf("%s takes %q", path, bad)
				}
				text.SetString(old)
			}
		})
		node := Node{ID: "n", Pool: "p", SIP: "127.0.0.1:1", ESL: "127.0.0.1:2", ARI: "127.0.0.1:3", AMI: "127.0.0.1:4", Agent: "127.0.0.1:5", Kind: Asterisk, Unmanaged: DeferUnmanaged}
		texts(reflect.ValueOf(&node), "node", func(path string, text reflect.Value) {
			old := text.String()
			if text.SetString(old + hostile); node.Validate() == nil && path != "node.Pool" {
				t.Errorf("%s takes %q", path, text)
			}
			text.SetString(old)
		})
		cell := Cell{ID: "c", Classes: []Class{{Name: Premium, Prefixes: []string{"49900"}}}}
		texts(reflect.ValueOf(&cell), "cell", func(path string, text reflect.Value) {
			old := text.String()
			if text.SetString(old + hostile); cell.Validate() == nil {
				t.Errorf("%s takes %q", path, text)
			}
			text.SetString(old)
		})
	}
	if fields < 17*50 {
		t.Errorf("only %d fields were looked at", fields)
	}
}

// TestValidateFeatures: each rule alone, and the one error that it gives.
func TestValidateFeatures(t *testing.T) {
	full := func(change func(*Tenant)) State {
		k := fullTenant()
		change(&k)
		return put(Change{Tenants: []Tenant{k}})
	}
	chain := func(n int) func(*Tenant) {
		return func(t *Tenant) {
			for i := range n {
				to := MakeTarget(ToSchedule, fmt.Sprint("s", i+1))
				if i == n-1 {
					to = "reject:480"
				}
				t.Schedules = append(t.Schedules, Schedule{Name: fmt.Sprint("s", i), Open: to, Closed: "reject:480"})
			}
		}
	}
	for _, c := range []struct {
		field string
		state State
		words string
	}{
		{"tenants[acme].numbers[1].user", full(func(t *Tenant) { t.Numbers[1].Target = "" }), "needs a user or a target"},
		{"tenants[acme].numbers[1].target", full(func(t *Tenant) { t.Numbers[1].User = "101" }), "leave one out"},
		{"tenants[acme].numbers[1].target", full(func(t *Tenant) { t.Numbers[1].Target = "group:none" }), `no group "none"`},
		{"tenants[acme].numbers[1].target", full(func(t *Tenant) { t.Numbers[1].Target = "exec:ls" }), "is not a target"},
		{"tenants[acme].numbers[1].target", full(func(t *Tenant) { t.Numbers[1].Target = "reject:200" }), "400 to 499"},
		{"tenants[acme].numbers[1].target", full(func(t *Tenant) { t.Numbers[1].Target = "reject:503" }), "next node"},
		{"tenants[acme].numbers[1].target", full(func(t *Tenant) { t.Numbers[1].Target = "number:0301" }), "E.164"},
		{"tenants[acme].numbers[1].target", full(func(t *Tenant) { t.Numbers[1].Target = "pbx:none" }), `no pbx "none"`},
		{"tenants[acme].users[0].forward.busy", full(func(t *Tenant) { t.Users[0].Forward.Busy = "voicemail:999" }), `no user "999"`},
		{"tenants[acme].users[0].forward.after", full(func(t *Tenant) { t.Users[0].Forward.After = 301 }), "5 to 300"},
		{"tenants[acme].users[0].devices", full(func(t *Tenant) { t.Users[0].Devices = 21 }), "0 to 20"},
		{"tenants[acme].users[1].extension", full(func(t *Tenant) {
			t.Users[0].Forward, t.Groups, t.Schedules, t.Numbers = nil, nil, nil, t.Numbers[:1]
			t.Users[1].Extension = "112"
		}), "emergency number"},
		{"tenants[acme].groups[0].then", full(func(t *Tenant) {
			t.Groups = append(t.Groups, Group{Name: "g", Members: []Target{"user:102"}})
			t.Groups[0].Then = "user:109"
		}), `no user "109"`},
		{"tenants[acme].groups[0].members[0]", full(func(t *Tenant) { t.Groups[0].Members[0] = "group:sales" }), "only those ring"},
		{"tenants[acme].groups[0].members[0]", full(func(t *Tenant) { t.Groups[0].Members[0] = "number:+4930100" }), "of the tenant itself"},
		{"tenants[acme].groups[0].members", full(func(t *Tenant) { t.Groups[0].Members = nil }), "1 to 32"},
		{"tenants[acme].groups[0].timeout", full(func(t *Tenant) { t.Groups[0].Timeout = 4 }), "5 to 300"},
		{"tenants[acme].groups[0].ring", full(func(t *Tenant) { t.Groups[0].Ring = "random" }), "neither simultaneous"},
		{"tenants[acme].groups[1].name", full(func(t *Tenant) { t.Groups = append(t.Groups, t.Groups[0]) }), "twice"},
		{"tenants[acme].schedules[0].hours[0].days[0]", full(func(t *Tenant) { t.Schedules[0].Hours[0].Days = []string{"monday"} }), "is not one of"},
		{"tenants[acme].schedules[0].hours[0].from", full(func(t *Tenant) { t.Schedules[0].Hours[0].From = "24:00" }), "23:59"},
		{"tenants[acme].schedules[0].hours[0].to", full(func(t *Tenant) { t.Schedules[0].Hours[0].To = "9:00" }), "is not HH:MM"},
		{"tenants[acme].schedules[0].hours[0].to", full(func(t *Tenant) { t.Schedules[0].Hours[0].To = "09:00" }), "whole day"},
		{"tenants[acme].schedules[0].exceptions[0].date", full(func(t *Tenant) { t.Schedules[0].Exceptions[0].Date = "2026-02-30" }), "is not a date"},
		{"tenants[acme].schedules[0].open", full(func(t *Tenant) { t.Schedules[0].Open = "" }), "is not a target"},
		{"tenants[acme].schedules[1].open", full(chain(9)), "9 targets"},
		{"tenants[acme].announcements[0].file", full(func(t *Tenant) { t.Announcements[0].File = "../../etc/passwd" }), "is not a path"},
		{"tenants[acme].announcements[0].file", full(func(t *Tenant) { t.Announcements[0].File = "/etc/passwd" }), "is not a path"},
		{"tenants[acme].pbx[0].kind", full(func(t *Tenant) { t.PBX[0].Kind = "exec" }), "is not one of"},
		{"tenants[acme].pbx[0].value", full(func(t *Tenant) { t.PBX[0].Value = "a,b" }), "is not 1 to 64"},
		{"tenants[acme].time_zone", full(func(t *Tenant) { t.TimeZone = "Europe/Atlantis" }), "not a time zone"},
		{"tenants[acme].dialling.country", full(func(t *Tenant) { t.Dialling.Country = "0049" }), "1 to 3 digits"},
		{"tenants[acme].dialling.international_prefix", full(func(t *Tenant) { t.Dialling.InternationalPrefix = "0" }), "nothing tells the two"},
		{"tenants[acme].emergency[0]", full(func(t *Tenant) { t.Emergency[0] = "1" }), "2 to 8 digits"},
		{"tenants[acme].allow[0]", full(func(t *Tenant) { t.Allow[0] = "Premium" }), "is not an id"},
		{"tenants[acme].failover_causes[0]", full(func(t *Tenant) { t.FailoverCauses[0] = 128 }), "1 to 127"},
		{"tenants[acme].caller_id.mode", full(func(t *Tenant) { t.CallerID.Mode = "any" }), "is not one of"},
		{"tenants[acme].caller_id.number", full(func(t *Tenant) { t.CallerID.Number = "" }), "is missing"},
		{"tenants[acme].caller_id.number", full(func(t *Tenant) { t.CallerID = CallerIDPolicy{Number: "4915"} }), "is no number of tenant"},
		{"tenants[acme].headers[0].name", full(func(t *Tenant) { t.Headers[0].Name = "X-Bulkhead-Tenant" }), "may not be changed"},
		{"tenants[acme].headers[0].name", full(func(t *Tenant) { t.Headers[0].Name = "X-BULKHEAD" }), "may not be changed"},
		{"tenants[acme].headers[0].name", full(func(t *Tenant) { t.Headers[0].Name = "Via" }), "may not be changed"},
		{"tenants[acme].headers[0].name", full(func(t *Tenant) { t.Headers[0].Name = "Contact" }), "may not be changed"},
		{"tenants[acme].headers[0].value", full(func(t *Tenant) { t.Headers[0].Action = RemoveHeader }), "all headers of the name"},
		{"tenants[acme].headers", full(func(t *Tenant) {
			for i := range 15 {
				t.Headers = append(t.Headers, HeaderRule{Action: AddHeader, Name: fmt.Sprintf("X-%058d", i), Value: strings.Repeat("v", 128)})
			}
			for i := range 7 {
				t.Trunks = append(t.Trunks, Trunk{Name: fmt.Sprint("more", i), Host: "192.0.2.1", Port: 5060})
			}
		}), "up to 32768 are taken"},
		{"tenants[acme].headers[0].action", full(func(t *Tenant) { t.Headers[0].Action = "set" }), "is not one of"},
		{"tenants[acme].record", full(func(t *Tenant) { t.Record = "some" }), "is not one of"},
		{"tenants[acme].limits.max_duration", full(func(t *Tenant) { t.Limits.MaxDuration = 86401 }), "0 to 86400"},
		{"tenants[acme].priority", full(func(t *Tenant) { t.Priority = 101 }), "0 to 100"},
		{"tenants[acme].trunks[0].weight", full(func(t *Tenant) { t.Trunks[0].Weight = 101 }), "0 to 100"},
		{"tenants[acme].trunks[0].password", full(func(t *Tenant) { t.Trunks[0].Password = "" }), "is missing"},
		{"tenants[acme].trunks[0].username", full(func(t *Tenant) { t.Trunks[0].Username = "" }), "beside a password"},
		{"cells[c].classes[0].name", put(Change{Cells: []Cell{{ID: "c", Classes: []Class{{Name: National, Prefixes: []string{"49"}}}}}}), "has no prefixes"},
		{"cells[c].classes[0].prefixes[0]", put(Change{Cells: []Cell{{ID: "c", Classes: []Class{{Name: Premium, Prefixes: []string{"0900"}}}}}}), "E.164"},
		{"cells[c].classes[1].prefixes[0]", put(Change{Cells: []Cell{{ID: "c", Classes: []Class{{Name: Premium, Prefixes: []string{"49"}}, {Name: "x", Prefixes: []string{"49"}}}}}}), `class "premium" and in class "x"`},
		{"nodes[fs1].unmanaged", withNode(func(n *Node) { n.Unmanaged = "drop" }), "neither defer nor reject"},
		{"nodes[fs1].cacheable", withNode(func(n *Node) { n.Cacheable = 86401 }), "0 to 86400"},
		{"nodes[fs1].agent", withNode(func(n *Node) { n.Agent = "localhost:1" }), "is not ip:port"},
	} {
		t.Run(c.field+" "+c.words, func(t *testing.T) { onlyError(t, c.state, c.field, c.words) })
	}
}

// TestTargetSteps: targets that branch are held to a number of steps.
func TestTargetSteps(t *testing.T) {
	k := fullTenant()
	k.Users = nil
	for i := range 8 { // each branches three times into the next
		u := User{Extension: fmt.Sprint(101 + i), HA1: someHA1}
		if i < 7 {
			next := MakeTarget(ToUser, fmt.Sprint(102+i))
			u.Forward = &Forward{Busy: next, NoAnswer: next, Unavailable: next}
		}
		k.Users = append(k.Users, u)
	}
	err := k.Validate()
	if err == nil || !strings.Contains(err.Error(), "comes to") {
		t.Errorf("3^7 steps are taken: %v", err)
	}
}

// TestLoopsAreRefused: everybody in a circle is told.
func TestLoopsAreRefused(t *testing.T) {
	k := fullTenant()
	k.Users[0].Forward = &Forward{NoAnswer: "user:102"}
	k.Users[1].Forward = &Forward{NoAnswer: "user:101"}
	if err := k.Validate(); err == nil || !strings.Contains(err.Error(), "leads back to itself") {
		t.Errorf("two who forward to each other: %v", err)
	}
	k = fullTenant()
	k.Groups[0].Then = "schedule:office" // which is open to the group
	if err := k.Validate(); err == nil || !strings.Contains(err.Error(), "leads back to itself") {
		t.Errorf("a group and a schedule: %v", err)
	}
}

func TestSecretIsNotShown(t *testing.T) {
	k := fullTenant()
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "trunk", k.Trunks[0], "password", k.Trunks[0].Password)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "password", k.Trunks[0].Password)
	for _, text := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %s %q", k, k.Trunks, k.Trunks, k.Trunks[0].Password, k.Trunks[0].Password), log.String()} {
		if strings.Contains(text, "s3cr3t") {
			t.Errorf("the password is in %s", text)
		}
	}
	k.Trunks[0].Password = "bad\n"
	if err := k.Validate(); err == nil || strings.Contains(err.Error(), "bad") {
		t.Errorf("the error is %v", err)
	}
}
