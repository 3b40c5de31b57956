package route_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// office is a state with one tenant who uses everything.
func office(t testing.TB, change func(*bulkhead.Tenant)) *route.Snapshot {
	t.Helper()
	k := bulkhead.Tenant{
		ID: "acme", Cell: "c", Profile: "standard", Domains: []string{"acme.example"}, Sources: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		Numbers: []bulkhead.Number{{Number: "4930100", User: "100"}, {Number: "4930101", User: "101"}, {Number: "4930200", Target: "schedule:office"}},
		Users: []bulkhead.User{
			{Extension: "100", HA1: ha1}, {Extension: "101", Name: "Ada", HA1: ha1, CallerID: "4930101"}, {Extension: "102", HA1: ha1, CallerID: "15550100"},
			{Extension: "dnd", HA1: ha1, DoNotDisturb: true}, {Extension: "dndbox", HA1: ha1, DoNotDisturb: true, Voicemail: true},
			{Extension: "dndbusy", HA1: ha1, DoNotDisturb: true, Forward: &bulkhead.Forward{Busy: "user:100"}},
			{Extension: "away", HA1: ha1, DoNotDisturb: true, Forward: &bulkhead.Forward{Always: "number:+4989123"}},
			{Extension: "box", HA1: ha1, Voicemail: true, Forward: &bulkhead.Forward{Busy: "user:100", NoAnswer: "announcement:closed", After: 15}},
			{Extension: "paid", HA1: ha1, Forward: &bulkhead.Forward{Always: "number:+49900123"}},
		},
		Trunks: []bulkhead.Trunk{
			{Name: "b", Host: "192.0.2.2", Port: 5060, Priority: 2}, {Name: "a", Host: "192.0.2.1", Port: 5060, Priority: 1, Username: "u", Password: "p"},
			{Name: "uk", Host: "192.0.2.3", Port: 5060, Prefix: "44"},
		},
		Groups: []bulkhead.Group{
			{Name: "all", Members: []bulkhead.Target{"user:100", "user:dnd", "number:+4989123", "number:+49900123"}, Then: "reject:480"},
			{Name: "turn", Ring: bulkhead.Sequential, Members: []bulkhead.Target{"user:100", "user:101"}, Timeout: 10},
			{Name: "none", Members: []bulkhead.Target{"user:dnd"}}, {Name: "nonethen", Members: []bulkhead.Target{"user:dnd"}, Then: "voicemail:100"},
		},
		Schedules:     []bulkhead.Schedule{{Name: "office", Hours: []bulkhead.Hours{{Days: []string{"mon"}, From: "09:00", To: "17:00"}}, Open: "group:turn", Closed: "announcement:closed"}},
		Announcements: []bulkhead.Announcement{{Name: "closed", File: "acme/closed.wav"}},
		PBX:           []bulkhead.Handover{{Name: "support", Kind: bulkhead.HandoverQueue, Value: "support@default"}},
		TimeZone:      "Europe/Berlin", Dialling: bulkhead.Dialling{Country: "49", Area: "30", NationalPrefix: "0", InternationalPrefix: "00"},
		Limits: bulkhead.Limits{MaxDuration: 3600}, Record: bulkhead.RecordInbound, Headers: []bulkhead.HeaderRule{{Action: bulkhead.AddHeader, Name: "X-A", Value: "b"}},
	}
	if change != nil {
		change(&k)
	}
	s := bulkhead.State{}.Apply(&bulkhead.Change{
		Cells:   []bulkhead.Cell{{ID: "c", Classes: []bulkhead.Class{{Name: bulkhead.Premium, Prefixes: []string{"49900"}}, {Name: "mobile", Prefixes: []string{"491"}}, {Name: "inner", Prefixes: []string{"499001"}}}}},
		Pools:   []bulkhead.Pool{{ID: "p", Cell: "c", Profile: "standard"}},
		Nodes:   []bulkhead.Node{{ID: "n", Pool: "p", SIP: "127.0.0.1:7001"}},
		SBCs:    []bulkhead.SBC{{ID: "s", Cell: "c", SIP: "127.0.0.1:5060"}},
		Tenants: []bulkhead.Tenant{k},
	})
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return route.New(s)
}

func to(list ...bulkhead.Target) func(*bulkhead.Tenant) {
	return func(t *bulkhead.Tenant) { t.Numbers[2].Target = list[0] }
}

func allow(classes ...string) func(*bulkhead.Tenant) {
	return func(t *bulkhead.Tenant) { t.Allow = classes }
}

func ring(extension string) route.Leg {
	return route.DialUser{Extension: extension, Realm: "acme.example", SBC: "127.0.0.1:5060"}
}

func trunk(name, host, number, callerID string) route.DialTrunk {
	return route.DialTrunk{Trunk: name, Host: host, Port: 5060, Number: number, CallerID: callerID, Gateway: name == "a", Anonymous: callerID == ""}
}

// outOf is a call out by both trunks without a prefix.
func outOf(number, callerID string) route.Action {
	return route.Dial{
		Legs: []route.Leg{trunk("a", "192.0.2.1", number, callerID), trunk("b", "192.0.2.2", number, callerID)}, Sequential: true, Causes: bulkhead.DefaultFailoverCauses,
	}
}

func TestFeatures(t *testing.T) {
	box := func(of string) route.Action { return route.Voicemail{Box: of, Realm: "acme.example"} }
	closed := route.Play{File: "acme/closed.wav"}
	declined := route.Reject{Status: 480, Cause: 18, Reason: "as configured"}
	monday, sunday := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC), time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		change       func(*bulkhead.Tenant)
		user, number string
		at           time.Time
		want         route.Action
	}{
		"user":                         {nil, "", "101", monday, dial(ring("101"))},
		"do not disturb":               {nil, "", "dnd", monday, route.DoNotDisturb},
		"do not disturb, voicemail":    {nil, "", "dndbox", monday, box("dndbox")},
		"do not disturb, forward busy": {nil, "", "dndbusy", monday, dial(ring("100"))},
		"forward, before do not disturb, as the tenant's own number": {nil, "", "away", monday, outOf("4989123", "4930100")},
		"busy, no answer and voicemail": {nil, "", "box", monday, route.Dial{
			Legs: []route.Leg{ring("box")}, Timeout: 15, Busy: []route.Action{dial(ring("100"))}, NoAnswer: []route.Action{closed}, Otherwise: []route.Action{box("box")},
		}},
		"forward to what is not allowed": {nil, "", "paid", monday, route.NotAllowed},
		"group at once": {to("group:all"), "", "4930200", monday, route.Dial{
			Legs: []route.Leg{ring("100"), trunk("a", "192.0.2.1", "4989123", "4930100")}, Timeout: bulkhead.DefaultRing, Otherwise: []route.Action{declined},
		}},
		"group in turn":           {to("group:turn"), "", "4930200", monday, route.Dial{Legs: []route.Leg{ring("100"), ring("101")}, Sequential: true, Timeout: 10}},
		"group of nobody":         {to("group:none"), "", "4930200", monday, route.NobodyRings},
		"group of nobody, then":   {to("group:nonethen"), "", "4930200", monday, box("100")},
		"schedule, open":          {nil, "", "4930200", monday, route.Dial{Legs: []route.Leg{ring("100"), ring("101")}, Sequential: true, Timeout: 10}},
		"schedule, closed":        {nil, "", "4930200", sunday, closed},
		"announcement":            {to("announcement:closed"), "", "4930200", monday, closed},
		"voicemail":               {to("voicemail:101"), "", "4930200", monday, box("101")},
		"handover":                {to("pbx:support"), "", "4930200", monday, route.Handover{Kind: bulkhead.HandoverQueue, Value: "support@default", Number: "4930200"}},
		"rejection":               {to("reject:603"), "", "4930200", monday, route.Reject{Status: 603, Cause: 21, Reason: "as configured"}},
		"number to own number":    {to("number:+4930101"), "", "4930200", monday, dial(ring("101"))},
		"number to the outside":   {to("number:+4989123"), "", "4930200", monday, outOf("4989123", "4930100")},
		"number as nationals say": {nil, "", "030101", monday, dial(ring("101"))},

		"local number":                   {nil, "101", "123456", monday, outOf("4930123456", "4930101")},
		"own number, dialled locally":    {nil, "101", "100", monday, dial(ring("100"))},
		"own number, dialled nationally": {nil, "102", "030101", monday, dial(ring("101"))},
		"caller id that is not its own":  {nil, "102", "089123", monday, outOf("4989123", "4930100")},
		"no caller id":                   {nil, "100", "089123", monday, outOf("4989123", "4930100")},
		"policy's number":                {func(t *bulkhead.Tenant) { t.CallerID.Number = "4930200" }, "100", "089123", monday, outOf("4989123", "4930200")},
		"fixed": {func(t *bulkhead.Tenant) {
			t.CallerID = bulkhead.CallerIDPolicy{Mode: bulkhead.CallerIDFixed, Number: "4940999"}
		}, "101", "089123", monday, outOf("4989123", "4940999")},
		"anonymous": {func(t *bulkhead.Tenant) { t.CallerID.Mode = bulkhead.CallerIDAnonymous }, "101", "089123", monday, outOf("4989123", "")},
		"other causes": {func(t *bulkhead.Tenant) { t.FailoverCauses = []int{34} }, "101", "089123", monday, func() route.Action {
			d, _ := outOf("4989123", "4930101").(route.Dial)
			d.Causes = []int{34}
			return d
		}()},
		"abroad, denied":                  {nil, "101", "0044207946", monday, route.NotAllowed},
		"abroad, allowed":                 {allow("international"), "101", "0044207946", monday, dial(trunk("uk", "192.0.2.3", "44207946", "4930101"))},
		"national, no longer allowed":     {allow("international"), "101", "089123", monday, route.NotAllowed},
		"premium":                         {nil, "101", "0900123", monday, route.NotAllowed},
		"premium, with + and 0":           {nil, "101", "+490900123", monday, route.NotAllowed},
		"premium, from abroad":            {allow("national", "international"), "101", "0049900123", monday, route.NotAllowed},
		"premium, allowed":                {allow("premium"), "101", "0900223", monday, outOf("49900223", "4930101")},
		"class within a class":            {allow("premium"), "101", "0900123", monday, route.NotAllowed},
		"class of the operator's":         {nil, "101", "0170123", monday, route.NotAllowed},
		"class of the operator's, opened": {allow("mobile"), "101", "0170123", monday, outOf("49170123", "4930101")},
		"no trunk":                        {func(t *bulkhead.Tenant) { t.Trunks = t.Trunks[2:] }, "101", "089123", monday, route.NoTrunk},
		"from outside":                    {nil, "", "089123", monday, route.UnknownNumber},
		"unmanaged":                       {func(t *bulkhead.Tenant) { t.Managed = new(bool) }, "101", "100", monday, route.Unmanaged},
	} {
		t.Run(name, func(t *testing.T) {
			call := route.Call{SBC: "s", Tenant: "acme", Number: c.number, User: c.user, Time: c.at}
			x := office(t, c.change)
			p := route.Decide(x, call)
			if d := cmp.Diff([]route.Action{c.want}, p.Actions); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			if p.Tenant != "acme" || p.Managed == (name == "unmanaged") {
				t.Errorf("plan is %+v", p)
			}
			explained, why := route.Explain(x, call)
			if !cmp.Equal(explained, p) || len(why) < 3 {
				t.Errorf("explained as %+v because %q", explained, why)
			}
		})
	}
}

func TestEmergency(t *testing.T) {
	every := func(callerID string) []route.Action {
		a, b, uk := trunk("a", "192.0.2.1", "112", callerID), trunk("b", "192.0.2.2", "112", callerID), trunk("uk", "192.0.2.3", "112", callerID)
		return []route.Action{route.Dial{Legs: []route.Leg{a, b, uk}, Sequential: true, Causes: bulkhead.DefaultFailoverCauses}}
	}
	for name, c := range map[string]struct {
		change             func(*bulkhead.Tenant)
		user, from, number string
		want               []route.Action
	}{
		"by a user":               {nil, "101", "", "112", every("4930101")},
		"who may call nothing":    {func(t *bulkhead.Tenant) { t.Allow, t.CallerID.Mode = []string{"mobile"}, bulkhead.CallerIDAnonymous }, "101", "", "112", every("4930101")},
		"from a source":           {nil, "", "+4930200", "112", every("4930200")},
		"under a foreign number":  {nil, "", "+4940999", "112", every("4930100")},
		"with a plus":             {nil, "", "", "+112", every("4930100")},
		"with the outside prefix": {func(t *bulkhead.Tenant) { t.Dialling.OutsidePrefix = "9" }, "101", "", "9112", every("4930101")},
		"without a trunk":         {func(t *bulkhead.Tenant) { t.Trunks = nil }, "101", "", "112", []route.Action{route.NoTrunk}},
		"that the tenant lists":   {func(t *bulkhead.Tenant) { t.Emergency = []string{"112", "110"} }, "101", "", "112", every("4930101")},
	} {
		t.Run(name, func(t *testing.T) {
			p := route.Decide(office(t, c.change), route.Call{SBC: "s", Tenant: "acme", Number: c.number, User: c.user, From: c.from})
			if d := cmp.Diff(c.want, p.Actions); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			if !p.Emergency || p.MaxDuration != 0 {
				t.Errorf("limits hold: %+v", p)
			}
		})
	}
	p := route.Decide(office(t, func(t *bulkhead.Tenant) { t.Emergency = []string{"110"} }), route.Call{SBC: "s", Tenant: "acme", Number: "112", User: "101"})
	if p.Emergency {
		t.Error("112 is none of the tenant's")
	}
}

func TestPlanFields(t *testing.T) {
	x := office(t, nil)
	in := route.Decide(x, route.Call{SBC: "s", Tenant: "acme", Number: "101"})
	inside := route.Decide(x, route.Call{SBC: "s", Tenant: "acme", Number: "100", User: "101"})
	out := route.Decide(x, route.Call{SBC: "s", Tenant: "acme", Number: "089123", User: "101"})
	if !in.Record || inside.Record || out.Record || in.Outbound || inside.Outbound || !out.Outbound {
		t.Errorf("recorded and outbound: %v %v, %v %v, %v %v", in.Record, in.Outbound, inside.Record, inside.Outbound, out.Record, out.Outbound)
	}
	if in.MaxDuration != 3600 || len(out.Headers) != 1 || in.CallerID != (route.CallerID{}) || inside.CallerID != (route.CallerID{Number: "101", Name: "Ada"}) {
		t.Errorf("%+v\n%+v\n%+v", in, inside, out)
	}
}

// TestManagedOwnerOfARefusal: what claims to be a managed tenant's call and is
// not let in is rejected also by nodes that defer what is nobody's.
func TestManagedOwnerOfARefusal(t *testing.T) {
	stranger := netip.MustParseAddr("203.0.113.9")
	for name, c := range map[string]struct {
		change  func(*bulkhead.Tenant)
		domain  string
		managed bool
	}{
		"managed": {nil, "acme.example", true}, "unmanaged": {func(t *bulkhead.Tenant) { t.Managed = new(bool) }, "acme.example", false}, "nobody's": {nil, "nobody.example", false},
	} {
		p := route.Decide(office(t, c.change), route.Call{SBC: "s", Domain: c.domain, Source: stranger, Number: "100"})
		if p.Tenant != "" || p.Managed != c.managed {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestNodeAsksWithoutAnSBC(t *testing.T) {
	x := office(t, nil)
	source := netip.MustParseAddr("198.51.100.7")
	want := []route.Action{dial(route.DialUser{Extension: "101", Realm: "acme.example"})}
	for name, c := range map[string]route.Call{
		"located":                   {Node: "n", Tenant: "acme", Number: "101"},
		"by domain":                 {Node: "n", Domain: "acme.example", Source: source, Number: "101"},
		"by source":                 {Node: "n", Source: source, Number: "4930101"},
		"by the node's own address": {Node: "n", Domain: "127.0.0.1", Source: source, Number: "4930101"},
	} {
		if p := route.Decide(x, c); !cmp.Equal(p.Actions, want) {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if p := route.Decide(x, route.Call{Node: "none", Tenant: "acme", Number: "101"}); !cmp.Equal(p.Actions, []route.Action{route.UnknownNode}) {
		t.Errorf("a node that is not there: %+v", p)
	}
}

// TestTrunksByWeight: of equals each comes first in proportion to its weight,
// and the same call always gets the same order.
func TestTrunksByWeight(t *testing.T) {
	x := office(t, func(t *bulkhead.Tenant) {
		t.Trunks = []bulkhead.Trunk{
			{Name: "heavy", Host: "192.0.2.1", Port: 5060, Weight: 75}, {Name: "light", Host: "192.0.2.2", Port: 5060, Weight: 25},
			{Name: "last", Host: "192.0.2.3", Port: 5060, Priority: 1},
		}
	})
	first := map[string]int{}
	const calls = 4000
	for i := range calls {
		c := route.Call{SBC: "s", Tenant: "acme", Number: "089123", User: "101", ID: strings.Repeat("x", i%7) + time.Duration(i).String()}
		d, _ := route.Decide(x, c).Actions[0].(route.Dial)
		var names []string
		for _, l := range d.Legs {
			k, _ := l.(route.DialTrunk)
			names = append(names, k.Trunk)
		}
		if len(names) != 3 || names[2] != "last" {
			t.Fatalf("order %q", names)
		}
		first[names[0]]++
		if again := route.Decide(x, c); !cmp.Equal(again.Actions[0], route.Action(d)) {
			t.Fatal("the same call in another order")
		}
	}
	if share := float64(first["heavy"]) / calls; share < 0.70 || share > 0.80 {
		t.Errorf("weight 75 of 100 comes first in %.3f of calls", share)
	}
}

// TestClassesFollowTheCell: a change of a cell's classes alone changes what is allowed.
func TestClassesFollowTheCell(t *testing.T) {
	x := office(t, nil)
	call := route.Call{SBC: "s", Tenant: "acme", Number: "089123", User: "101"}
	y := x.Apply(&bulkhead.Change{Cells: []bulkhead.Cell{{ID: "c", Classes: []bulkhead.Class{{Name: "munich", Prefixes: []string{"4989"}}}}}}, 2)
	before, after := route.Decide(x, call), route.Decide(y, call)
	if _, ok := before.Actions[0].(route.Dial); !ok || !cmp.Equal(after.Actions, []route.Action{route.NotAllowed}) {
		t.Errorf("before %+v, after %+v", before.Actions, after.Actions)
	}
}
