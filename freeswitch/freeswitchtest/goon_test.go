package freeswitchtest

import (
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/route"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// After a bridge that failed the node asks again, and what it is told then
// depends on why: the whole way of a plan with branches, with the real answers.
func TestPlanGoesOnByTheCause(t *testing.T) {
	leg := func(g *siptest.Phones) []route.Leg {
		a := netip.MustParseAddrPort(g.Addr().String())
		return []route.Leg{route.DialTrunk{Trunk: "t", Host: a.Addr().String(), Port: a.Port(), Number: "9000"}}
	}
	refuses := func(code int) []route.Leg {
		g, _ := callee(t, func(*siptest.Incoming) siptest.Behaviour { return siptest.Behaviour{Code: code} })
		return leg(g)
	}
	answers, calls := callee(t, func(*siptest.Incoming) siptest.Behaviour { return siptest.Behaviour{} })
	to := func(legs []route.Leg) []route.Action { return []route.Action{route.Dial{Legs: legs}} }
	for name, c := range map[string]struct {
		dial   route.Dial
		status int // 0: answered
		asked  []string
	}{
		"busy": {route.Dial{Legs: refuses(486), Busy: to(leg(answers)), NoAnswer: to(refuses(603))}, 0, []string{"1004", "bulkhead-0.USER_BUSY"}},
		"not registered": {route.Dial{Legs: refuses(480), Busy: to(refuses(603)), Unavailable: to(leg(answers))}, 0,
			[]string{"1004", "bulkhead-0.NO_USER_RESPONSE"}},
		"nothing for that": {route.Dial{Legs: refuses(486), NoAnswer: to(leg(answers))}, 486, []string{"1004", "bulkhead-0.USER_BUSY"}},
		"branch of a branch": {route.Dial{Legs: refuses(486), Busy: []route.Action{route.Dial{Legs: refuses(404), Otherwise: to(leg(answers))}}}, 0,
			[]string{"1004", "bulkhead-0.USER_BUSY", "bulkhead-0b0.UNALLOCATED_NUMBER"}},
		"the next trunk": {route.Dial{Legs: append(refuses(503), leg(answers)...), Sequential: true, Causes: []int{41}}, 0, []string{"1004"}},
		"no other trunk": {route.Dial{Legs: append(refuses(486), leg(answers)...), Sequential: true, Causes: []int{41}}, 486, []string{"1004"}},
		"the next trunk, and more": {route.Dial{Legs: append(refuses(503), leg(answers)...), Sequential: true, Causes: []int{41}, Busy: to(refuses(603))}, 0,
			[]string{"1004", "bulkhead-0l0.NORMAL_TEMPORARY_FAILURE"}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newXMLServer(t, func(w http.ResponseWriter, r request) {
				req, err := freeswitch.ParseRequest([]byte(r.body))
				if err != nil {
					t.Error(err)
				}
				req.At = time.Now()
				doc, _ := freeswitch.RenderDialplan(nil, &req, "fs1", route.Plan{Tenant: "acme", Actions: []route.Action{c.dial}})
				_, _ = w.Write(doc)
			})
			n, _ := startNode(t, Config{XMLURLs: []string{srv.URL}})
			a, err := dialLike(t, n, "1004")
			if c.status != 0 {
				wantStatus(t, err, c.status)
			} else {
				if err != nil {
					t.Fatal(err)
				}
				<-calls
				if err := a.Hangup(testContext(t)); err != nil {
					t.Error(err)
				}
				<-a.Done()
			}
			var asked []string
			for _, r := range srv.requests() {
				asked = append(asked, r.get("Hunt-Destination-Number"))
				// What the record of the call says does not change.
				if r.get("Caller-Destination-Number") != "1004" || r.get("Hunt-Context") != r.get("Caller-Context") {
					t.Errorf("Caller-Destination-Number %q, context %q", r.get("Caller-Destination-Number"), r.get("Hunt-Context"))
				}
			}
			if len(asked) != len(c.asked) {
				t.Fatalf("asked for %q, want %q", asked, c.asked)
			}
			for i := range asked {
				if asked[i] != c.asked[i] {
					t.Errorf("asked for %q, want %q", asked, c.asked)
				}
			}
		})
	}
}
