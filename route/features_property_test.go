package route_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// drawFeatures draws a tenant whose names say whose they are. Its targets may
// lead in circles and to what is not there: State.Validate would refuse it,
// and Decide must stand it.
func drawFeatures(t *rapid.T, id string, i int) bulkhead.Tenant {
	name := func(kind string, n int) string { return fmt.Sprintf("%s-%s%d", id, kind, n) }
	target := func(label string) bulkhead.Target {
		n := rapid.IntRange(0, 2).Draw(t, label)
		return rapid.SampledFrom([]bulkhead.Target{
			bulkhead.Target("user:" + name("u", n)), bulkhead.Target("group:" + name("g", n)), bulkhead.Target("schedule:" + name("s", n)),
			bulkhead.Target("announcement:" + name("a", n)), bulkhead.Target("voicemail:" + name("u", n)), bulkhead.Target("pbx:" + name("p", n)),
			"number:+49900123", "number:+4989123", "number:+112", "reject:486", bulkhead.Target(fmt.Sprintf("number:+4930%d%d", i, n)), bulkhead.Target(fmt.Sprintf("number:+4930%d0", 1-i)), "",
		}).Draw(t, label)
	}
	k := bulkhead.Tenant{
		ID: bulkhead.TenantID(id), Cell: "c", Profile: "standard", Domains: []string{id + ".example"}, TimeZone: "Europe/Berlin",
		Dialling: bulkhead.Dialling{Country: "49", NationalPrefix: "0", InternationalPrefix: "00"},
		Allow:    rapid.SampledFrom([][]string{nil, {"national", "international"}, {"international"}, {"mobile"}}).Draw(t, "allow"),
		CallerID: bulkhead.CallerIDPolicy{Mode: rapid.SampledFrom([]bulkhead.CallerIDMode{"", bulkhead.CallerIDAnonymous}).Draw(t, "mode")},
	}
	for n := range 3 {
		u := bulkhead.User{Extension: name("u", n), HA1: ha1, DoNotDisturb: rapid.Bool().Draw(t, "dnd"), Voicemail: rapid.Bool().Draw(t, "voicemail")}
		if rapid.Bool().Draw(t, "forward") {
			u.Forward = &bulkhead.Forward{Always: target("always"), Busy: target("busy"), NoAnswer: target("no answer"), Unavailable: target("unavailable")}
		}
		k.Users = append(k.Users, u)
		k.Numbers = append(k.Numbers, bulkhead.Number{Number: fmt.Sprintf("4930%d%d", i, n), Target: target("number")})
		k.Groups = append(k.Groups, bulkhead.Group{Name: name("g", n), Members: []bulkhead.Target{target("member"), target("member")}, Then: target("then")})
		k.Schedules = append(k.Schedules, bulkhead.Schedule{
			Name: name("s", n), Open: target("open"), Closed: target("closed"),
			Hours: []bulkhead.Hours{{Days: []string{"mon", "sun"}, From: "09:00", To: "17:00"}},
		})
		k.Announcements = append(k.Announcements, bulkhead.Announcement{Name: name("a", n), File: name("file", n)})
		k.PBX = append(k.PBX, bulkhead.Handover{Name: name("p", n), Kind: bulkhead.HandoverQueue, Value: name("queue", n)})
		if rapid.Bool().Draw(t, "trunk") {
			k.Trunks = append(k.Trunks, bulkhead.Trunk{Name: name("t", n), Host: "192.0.2.1", Port: 5060, Prefix: rapid.SampledFrom([]string{"", "49", "1"}).Draw(t, "prefix")})
		}
	}
	return k
}

// planCheck holds a plan to what must be true of every plan.
type planCheck struct {
	t       *rapid.T
	tenant  string
	premium bool // allowed
	help    bool // an emergency call
	steps   int
}

func (k *planCheck) mine(what string) {
	if what != "" && !strings.HasPrefix(what, k.tenant) {
		k.t.Fatalf("the plan of %s holds %s", k.tenant, what)
	}
}

func (k *planCheck) actions(list []route.Action, depth int) {
	if depth > bulkhead.MaxTargetDepth+1 {
		k.t.Fatalf("depth %d", depth)
	}
	for _, a := range list {
		k.steps++
		switch a := a.(type) {
		case route.Dial:
			if len(a.Legs) == 0 {
				k.t.Fatal("a dial of nobody")
			}
			for _, l := range a.Legs {
				k.steps++
				k.leg(l)
			}
			for _, after := range [][]route.Action{a.Busy, a.NoAnswer, a.Unavailable, a.Otherwise} {
				k.actions(after, depth+1)
			}
		case route.Play:
			k.mine(a.File)
		case route.Voicemail:
			k.mine(a.Box)
		case route.Handover:
			k.mine(a.Value)
		case route.Reject:
			if k.help && a != route.NoTrunk {
				k.t.Fatalf("an emergency call is rejected: %+v", a)
			}
		default:
			k.t.Fatalf("action %T", a)
		}
	}
}

func (k *planCheck) leg(l route.Leg) {
	switch l := l.(type) {
	case route.DialUser:
		k.mine(l.Extension)
		if l.Realm != k.tenant+".example" {
			k.t.Fatalf("realm %s", l.Realm)
		}
	case route.DialTrunk:
		k.mine(l.Trunk)
		if strings.HasPrefix(l.Number, "49900") && !k.premium {
			k.t.Fatalf("premium number %s", l.Number)
		}
		if l.CallerID != "" && !strings.HasPrefix(l.CallerID, map[string]string{"t0": "49300", "t1": "49301"}[k.tenant]) {
			k.t.Fatalf("%s shows %s", k.tenant, l.CallerID)
		}
	}
}

// Of any call, under any configuration: the plan is bounded, has an action,
// refers to nothing of another tenant, never leads to a premium number that is
// not allowed, and never blocks an emergency call.
func TestPlansHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := bulkhead.State{}.Apply(&bulkhead.Change{
			Cells:   []bulkhead.Cell{{ID: "c", Classes: []bulkhead.Class{{Name: bulkhead.Premium, Prefixes: []string{"49900"}}, {Name: "mobile", Prefixes: []string{"491"}}}}},
			Pools:   []bulkhead.Pool{{ID: "p", Cell: "c", Profile: "standard"}},
			SBCs:    []bulkhead.SBC{{ID: "s", Cell: "c", SIP: "127.0.0.1:5060"}},
			Tenants: []bulkhead.Tenant{drawFeatures(t, "t0", 0), drawFeatures(t, "t1", 1)},
		})
		x := route.New(s)
		for range 10 {
			tenant := rapid.SampledFrom([]string{"t0", "t1"}).Draw(t, "tenant")
			number := rapid.SampledFrom([]string{
				"112", "+911", "49300", "49301", "49300" + "0", "49301" + "1", "t0-u0", "t1-u1", "0900123", "0049900123", "+49900123", "+490900123", "089123", "0017", "x", "${x}", "",
			}).Draw(t, "number")
			c := route.Call{
				SBC: "s", Tenant: bulkhead.TenantID(tenant), Number: number, User: rapid.SampledFrom([]string{"", "t0-u0", "t1-u0"}).Draw(t, "user"),
				ID: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "id"), Time: time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "time"), 0),
			}
			p, why := route.Explain(x, c)
			help := number == "112" || number == "+911"
			if len(p.Actions) == 0 || len(why) == 0 || p.Emergency != help {
				t.Fatalf("%+v: %+v", c, p)
			}
			k := planCheck{t: t, tenant: tenant, help: help}
			k.actions(p.Actions, 1)
			// A dial that is cut ends in a rejection for each of what may follow.
			if k.steps > 6*bulkhead.MaxTargetSteps {
				t.Fatalf("%d steps", k.steps)
			}
		}
	})
}
