package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

// drawPlatform draws a cell with a FreeSWITCH and an Asterisk, with an SBC or
// without, and two tenants with the same extensions that use all that tenants
// can have.
func drawPlatform(t *rapid.T) bulkhead.State {
	unmanaged := rapid.SampledFrom([]bulkhead.Unmanaged{"", bulkhead.DeferUnmanaged}).Draw(t, "unmanaged")
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c", Classes: []bulkhead.Class{{Name: bulkhead.Premium, Prefixes: []string{"49900"}}}}},
		Pools: []bulkhead.Pool{{ID: "p", Cell: "c", Profile: "standard"}},
		Nodes: []bulkhead.Node{
			{ID: "fs1", Pool: "p", SIP: "127.0.0.1:5071", Unmanaged: unmanaged},
			{ID: "ast1", Pool: "p", Kind: bulkhead.Asterisk, SIP: "127.0.0.1:5072", Unmanaged: unmanaged},
		},
		Tenants: []bulkhead.Tenant{drawTenant(t, 0), drawTenant(t, 1)},
	}
	if rapid.Bool().Draw(t, "sbc") {
		c.SBCs = []bulkhead.SBC{{ID: "s", Cell: "c", SIP: "127.0.0.1:5060"}}
	}
	s := bulkhead.State{Revision: 7}.Apply(&c)
	if err := s.Validate(); err != nil {
		t.Fatalf("the generator made an invalid state: %v", err)
	}
	return s
}

// drawTenant draws a tenant. Its targets lead from numbers to schedules, to
// groups, to users, to what ends a call, so that none leads in a circle.
func drawTenant(t *rapid.T, i int) bulkhead.Tenant {
	flag := func(label string) bool { return rapid.Bool().Draw(t, label) }
	one := func(label string, of ...bulkhead.Target) bulkhead.Target { return rapid.SampledFrom(of).Draw(t, label) }
	ends := []bulkhead.Target{"announcement:closed", "pbx:context", "pbx:queue", "pbx:menu", "pbx:room", "reject:480", "number:+4989123", "number:+49900123", "voicemail:103"}
	users := append([]bulkhead.Target{"user:103"}, ends...)
	groups := append([]bulkhead.Target{"user:101", "user:102"}, users...)
	open := append([]bulkhead.Target{"group:both", "group:line"}, groups...)
	k := bulkhead.Tenant{
		ID: bulkhead.TenantID(fmt.Sprintf("t%d", i)), Cell: "c", Profile: "standard",
		Domains: []string{fmt.Sprintf("t%d.example", i)}, Sources: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.0.%d.0/24", i))},
		TimeZone: rapid.SampledFrom([]string{"", "Europe/Berlin", "America/New_York"}).Draw(t, "zone"),
		Dialling: bulkhead.Dialling{Country: "49", Area: "30", NationalPrefix: "0", InternationalPrefix: "00"},
		Allow:    rapid.SampledFrom([][]string{nil, {"national", "international"}, {"national", "premium"}}).Draw(t, "allow"),
		CallerID: bulkhead.CallerIDPolicy{Mode: rapid.SampledFrom([]bulkhead.CallerIDMode{"", bulkhead.CallerIDAnonymous}).Draw(t, "mode")},
		Record:   rapid.SampledFrom([]bulkhead.Recording{"", bulkhead.RecordAll, bulkhead.RecordInbound, bulkhead.RecordOutbound}).Draw(t, "record"),
		Tap:      flag("tap"),
		Limits:   bulkhead.Limits{Calls: rapid.IntRange(0, 9).Draw(t, "calls"), MaxDuration: rapid.SampledFrom([]int{0, 3600}).Draw(t, "duration")},
		Codecs:   rapid.SampledFrom([][]string{nil, {"PCMA"}, {"opus", "PCMU"}}).Draw(t, "codecs"),
		Groups: []bulkhead.Group{
			{Name: "both", Members: []bulkhead.Target{"user:101", one("member", "user:102", "number:+4989777")}, Then: one("then", groups...)},
			{Name: "line", Ring: bulkhead.Sequential, Members: []bulkhead.Target{"user:101", "user:102"}, Timeout: 7, Then: one("then", append(groups, "")...)},
		},
		Schedules: []bulkhead.Schedule{{
			Name: "office", Open: one("open", open...), Closed: one("closed", open...),
			Hours: []bulkhead.Hours{{Days: []string{"mon", "tue", "wed", "sun"}, From: "09:00", To: "17:00"}},
		}},
		Announcements: []bulkhead.Announcement{{Name: "closed", File: "x/closed.wav"}},
		PBX: []bulkhead.Handover{
			{Name: "context", Kind: bulkhead.HandoverContext, Value: "support"}, {Name: "queue", Kind: bulkhead.HandoverQueue, Value: "q@x"},
			{Name: "menu", Kind: bulkhead.HandoverIVR, Value: "main"}, {Name: "room", Kind: bulkhead.HandoverConference, Value: "3000@default"},
		},
	}
	if rapid.IntRange(0, 5).Draw(t, "not managed") == 0 {
		k.Managed = new(bool)
	}
	if flag("header") {
		k.Headers = []bulkhead.HeaderRule{
			{Action: bulkhead.AddHeader, Name: "X-Account", Value: "a: 1"}, {Action: bulkhead.RemoveHeader, Name: "X-Gone"}, {Action: bulkhead.ReplaceHeader, Name: "Subject", Value: "b"},
		}
	}
	for n, to := range [][]bulkhead.Target{users, users, ends} {
		u := bulkhead.User{
			Extension: fmt.Sprint(101 + n), Name: rapid.SampledFrom([]string{"", "Ann Bee", "Ülker Ç"}).Draw(t, "name"), HA1: strings.Repeat("0", 32),
			DoNotDisturb: rapid.IntRange(0, 4).Draw(t, "dnd") == 0, Voicemail: n == 2 || flag("voicemail"),
		}
		if flag("forward") {
			to = append(to, "")
			u.Forward = &bulkhead.Forward{Busy: one("busy", to...), NoAnswer: one("no answer", to...), Unavailable: one("unavailable", to...), After: 15}
			if rapid.IntRange(0, 3).Draw(t, "always") == 0 {
				u.Forward.Always = one("always", to...)
			}
		}
		k.Users = append(k.Users, u)
		k.Numbers = append(k.Numbers, bulkhead.Number{Number: fmt.Sprintf("4930%d0%d", i, n), Target: one("number", append(open, "schedule:office")...)})
		if flag("trunk") {
			trunk := bulkhead.Trunk{Name: fmt.Sprint("k", n), Host: rapid.SampledFrom([]string{"192.0.2.1", "sip.example.net"}).Draw(t, "host"), Port: 5060, Priority: rapid.IntRange(0, 1).Draw(t, "priority")}
			if flag("credentials") {
				trunk.Username, trunk.Password = "u", "password"
			}
			k.Trunks = append(k.Trunks, trunk)
		}
	}
	return k
}

// asked is one call, and what happens to whom it rings.
type asked struct {
	call        route.Call // as a dialect that knows all of it asks route
	transferred bool
	from        string
	realm       string
	causes      []int // of the dials that fail, in turn; the next one is answered
}

func drawAsked(t *rapid.T, s *bulkhead.State) asked {
	i := rapid.IntRange(0, 1).Draw(t, "tenant")
	k := s.Tenants[bulkhead.TenantID(fmt.Sprintf("t%d", i))]
	a := asked{
		realm: k.Realm(), transferred: rapid.IntRange(0, 5).Draw(t, "transferred") == 0,
		from:   rapid.SampledFrom([]string{fmt.Sprintf("+4930%d00", i), fmt.Sprintf("4930%d01", i), "+4930100", "101", "x"}).Draw(t, "from"),
		causes: rapid.SliceOfN(rapid.SampledFrom([]int{1, 17, 18, 19, 20, 21, 34, 41}), 0, 9).Draw(t, "causes"),
	}
	a.call = route.Call{
		Tenant: k.ID, From: a.from, ID: rapid.SampledFrom([]string{"", "a@b", "c"}).Draw(t, "id"),
		Source: netip.MustParseAddr(fmt.Sprintf("10.0.%d.9", i)), Domain: k.Realm(),
		User: rapid.SampledFrom([]string{"", "101", "102"}).Draw(t, "user"),
		Time: time.Unix(rapid.Int64Range(1.5e9, 1.6e9).Draw(t, "time"), 0),
		Number: rapid.SampledFrom([]string{
			"101", "102", "103", "112", "4930000", "+4930101", "4930002", "+4930000", "030001", "030100", "089123", "0900123", "004412345", "+4412345", "999999999999999999", "12a4", "*97", "x y", "", "${x}",
		}).Draw(t, "number"),
	}
	if len(s.SBCs) > 0 {
		a.call.SBC = "s"
	}
	return a
}

// decided is a plan that was followed: what was said of the whole call, and
// what happened, one after the other.
type decided struct {
	Head   head
	Events []string
}

// head is what is true of the whole call, as far as a dialect says it.
type head struct {
	Deferred bool
	Tenant   bulkhead.TenantID
	Max      int
	Record   bool
	Tap      bool
	Number   string // that users who are rung see
	Name     string
	Codecs   string
}

// follower follows a plan; each dialect has an interpreter that must come to
// the same events.
type follower struct {
	decided

	causes  []int
	gateway bool // the dialect names gateways, not addresses
	plan    *route.Plan
}

func (f *follower) note(format string, args ...any) {
	f.Events = append(f.Events, fmt.Sprintf(format, args...))
}

// ring notes that legs ring, and returns why nobody answered; 0: somebody did.
func (f *follower) ring(legs []string, timeout int) (cause int) {
	f.note("ring %s for %d", strings.Join(legs, " and "), timeout)
	if len(f.causes) == 0 {
		f.note("answered")
		return 0
	}
	cause, f.causes = f.causes[0], f.causes[1:]
	return cause
}

// follow returns what a plan itself comes to.
func follow(p route.Plan, a asked, deferred, gateway bool) decided {
	f := &follower{causes: a.causes, gateway: gateway, plan: &p}
	if deferred {
		f.Head.Deferred = true
		return f.decided
	}
	if _, refused := p.Actions[0].(route.Reject); !refused {
		f.Head = head{
			Tenant: p.Tenant, Max: p.MaxDuration, Record: p.Record, Tap: p.Tap, Number: p.CallerID.Number, Name: p.CallerID.Name, Codecs: strings.Join(p.Codecs, ","),
		}
	}
	f.actions(p.Actions)
	return f.decided
}

func (f *follower) actions(list []route.Action) {
	for _, a := range list {
		switch a := a.(type) {
		case route.Dial:
			f.dial(&a)
			return
		case route.Play:
			f.note("play %s", strings.TrimSuffix(a.File, ".wav"))
		case route.Voicemail:
			f.note("voicemail %s", a.Box)
		case route.Handover:
			if a.Kind == bulkhead.HandoverContext {
				f.note("context %s %s", a.Value, a.Number)
				return
			}
			f.note("%s %s", a.Kind, a.Value)
		case route.Reject:
			f.note("reject %d", a.Status)
			return
		}
	}
	f.note("over")
}

func (f *follower) dial(d *route.Dial) {
	groups := [][]route.Leg{d.Legs}
	if d.Sequential {
		groups = nil
		for i := range d.Legs {
			groups = append(groups, d.Legs[i:i+1])
		}
	}
	cause := 0
	for _, legs := range groups {
		var to []string
		for _, l := range legs {
			to = append(to, f.leg(l))
		}
		if cause = f.ring(to, d.Timeout); cause == 0 {
			return
		}
		if len(d.Causes) > 0 && !slices.Contains(d.Causes, cause) {
			break
		}
	}
	after := d.Unavailable
	switch cause {
	case 17, 21:
		after = d.Busy
	case 19:
		after = d.NoAnswer
	}
	if after = d.After(after); len(after) == 0 {
		f.note("over")
		return
	}
	f.actions(after)
}

func (f *follower) leg(l route.Leg) string {
	switch l := l.(type) {
	case route.DialUser:
		if l.SBC != "" {
			return l.Extension + "@" + l.Realm + " by the SBC"
		}
		return l.Extension + "@" + l.Realm
	case route.DialTrunk:
		to := fmt.Sprintf("%s@%s:%d", l.Number, l.Host, l.Port)
		if f.gateway && l.Gateway {
			to = fmt.Sprintf("%s by %s %s", l.Number, f.plan.Tenant, l.Trunk)
		}
		shows := l.CallerID
		if l.Anonymous {
			shows = "nobody"
		}
		var headers []string
		for _, h := range f.plan.Headers {
			if h.Action != bulkhead.RemoveHeader {
				headers = append(headers, h.Name+"="+h.Value)
			}
		}
		return trunkLeg(to, shows, headers)
	}
	return fmt.Sprintf("%T", l)
}

func trunkLeg(to, shows string, headers []string) string {
	return fmt.Sprintf("%s as %q with %q", to, shows, headers)
}

// TestDialectsDecideAlike: the same call, asked in the words of each PBX, has
// the same plan, whatever the tenant is like and whatever happens on the way.
func TestDialectsDecideAlike(t *testing.T) {
	kinds := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		s := drawPlatform(t)
		x := route.New(s)
		rows := map[string]string{} // Kamailio's table
		if len(s.SBCs) > 0 {
			made, err := route.MakeTables(x, "s")
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range made.Rows {
				rows[r.Key] = r.Value
			}
		}
		for range 6 {
			a := drawAsked(t, &s)
			q := a.call
			if a.transferred {
				q.User = ""
			}
			fs, ast := q, q
			if q.SBC == "" {
				fs.Node, ast.Node = "fs1", "ast1"
			}
			p, other := route.Decide(x, fs), route.Decide(x, ast)
			if !cmp.Equal(p, other) {
				t.Fatalf("%+v\n one node: %+v\n the other: %+v", q, p, other)
			}
			deferred := !p.Managed && s.Nodes["fs1"].Unmanaged == bulkhead.DeferUnmanaged
			same := func(dialect string, got, want decided) {
				t.Helper()
				if d := cmp.Diff(want, got); d != "" {
					t.Fatalf("%s decides otherwise (-plan +%s)\n%s\n%+v\n%+v", dialect, dialect, d, a, p)
				}
			}
			want := follow(p, a, deferred, true)
			same("mod_xml_curl", followXML(t, x, a), want)
			same("mod_curl", followCurl(t, x, a), want)
			planJSON(t, x, a, p, deferred)
			want = follow(p, a, deferred, false)
			if q.SBC == "" {
				want.Head.Codecs = "" // endpoints have them
			}
			same("Asterisk", followAsterisk(t, x, a), want)
			if q.SBC != "" {
				sameTenant(t, x, rows, a)
			}
			word, _, _ := strings.Cut(strings.Join(want.Events, " "), " ")
			kinds[word]++
		}
	})
	t.Logf("how calls began: %v", kinds)
	for _, k := range []string{"", "ring", "reject"} { // the others are rare
		if !t.Failed() && kinds[k] == 0 {
			t.Errorf("no call began with %q", k)
		}
	}
}

// sameTenant compares Kamailio's answer and its tables with Decide: they say
// whose the call is, and where it goes.
func sameTenant(t *rapid.T, x *route.Snapshot, rows map[string]string, a asked) {
	domain := rapid.SampledFrom([]string{a.realm, strings.ToUpper(a.realm), "127.0.0.1", "nobody.example"}).Draw(t, "domain")
	number := strings.Map(func(r rune) rune {
		if strings.ContainsRune(" ${}", r) {
			return -1 // bulkhead.cfg does not ask about such
		}
		return r
	}, a.call.Number)
	p := route.Decide(x, route.Call{SBC: "s", Domain: domain, Source: a.call.Source, Number: number})
	query := url.Values{"d": {domain}, "s": {a.call.Source.String()}, "n": {number}}.Encode()
	answer, sum := kamailio.Answer(x, "s", query, nil)
	if p.Tenant == "" {
		if len(answer) > 0 || sum.Status != 404 {
			t.Fatalf("%s: %q %d, but it is nobody's", query, answer, sum.Status)
		}
		return
	}
	row := rows["t:"+string(p.Tenant)]
	if want := string(p.Tenant) + "|" + row; string(answer) != want {
		t.Fatalf("%s: Kamailio is answered %q, its table says %q", query, answer, want)
	}
	if f := strings.Split(row, "|"); f[0] != fmt.Sprint(p.Set) || f[2] != string(p.Pool) {
		t.Fatalf("%s: the row %q, the plan's set %d and pool %s", query, row, p.Set, p.Pool)
	}
	owner := rows["d:"+strings.ToLower(domain)]
	network := a.call.Source.As4()
	source := rows[fmt.Sprintf("s:%d.%d.%d", network[0], network[1], network[2])]
	if by := rows["n:"+strings.TrimPrefix(number, "+")]; owner == "*" && by != "" && by != source || owner != "*" && owner != source || source != string(p.Tenant) {
		t.Fatalf("%s: by domain %q, number %q, source %q, the plan's tenant %s", query, owner, by, source, p.Tenant)
	}
}

// planJSON compares the whole plan that scripts get by mod_curl.
func planJSON(t *rapid.T, x *route.Snapshot, a asked, p route.Plan, deferred bool) {
	answer, _ := freeswitch.AnswerCurl(x, "fs1", a.call.Time, "format=json&"+curlQuery(freeswitchFields(a, nil)), nil)
	var got struct {
		Deferred bool
		Tenant   bulkhead.TenantID
		Pool     bulkhead.PoolID
		Actions  []jsonAction
	}
	if err := json.Unmarshal(answer, &got); err != nil {
		t.Fatalf("%s: %v", answer, err)
	}
	if got.Deferred != deferred || !deferred && (got.Tenant != p.Tenant || got.Pool != p.Pool || !cmp.Equal(jsonActions(got.Actions), p.Actions)) {
		t.Fatalf("the JSON %s is not the plan %+v", answer, p)
	}
}
