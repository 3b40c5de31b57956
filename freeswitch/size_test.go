package freeswitch

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// wordy is a tenant whose answers are as long as these numbers make them.
func wordy(members, rules, trunks, host, causes int, sequential bool) bulkhead.State {
	long := strings.Repeat("a", 60) + "."
	k := bulkhead.Tenant{
		ID: bulkhead.TenantID(strings.Repeat("t", 63)), Cell: "c1", Profile: "standard", Domains: []string{strings.Repeat(long, host) + "tenant.example"},
		Users:    []bulkhead.User{{Extension: strings.Repeat("1", 15), HA1: ha1, Voicemail: true}},
		Numbers:  []bulkhead.Number{{Number: "15550001", Target: "group:g"}},
		Dialling: bulkhead.Dialling{Country: "49"}, Codecs: []string{"PCMU", "PCMA", "G722", "opus"}, Record: bulkhead.RecordAll, Tap: true,
		Limits: bulkhead.Limits{MaxDuration: 86400},
	}
	g := bulkhead.Group{Name: "g", Then: bulkhead.MakeTarget(bulkhead.ToVoicemail, k.Users[0].Extension)}
	if sequential {
		g.Ring = bulkhead.Sequential
	}
	for i := range members {
		ext := fmt.Sprintf("%s%02d", strings.Repeat("9", 13), i)
		k.Users = append(k.Users, bulkhead.User{Extension: ext, HA1: ha1})
		m := bulkhead.MakeTarget(bulkhead.ToUser, ext)
		if trunks > 0 && i%2 == 1 {
			m = bulkhead.Target(fmt.Sprintf("number:+4930%09d", i))
		}
		g.Members = append(g.Members, m)
	}
	k.Groups = []bulkhead.Group{g}
	for i := range rules {
		k.Headers = append(k.Headers, bulkhead.HeaderRule{Action: bulkhead.AddHeader, Name: fmt.Sprintf("X-%s-%02d", strings.Repeat("N", 57), i), Value: strings.Repeat("v", 128)})
	}
	for i := range trunks {
		k.Trunks = append(k.Trunks, bulkhead.Trunk{Name: fmt.Sprintf("%s%d", strings.Repeat("k", 62), i), Host: strings.Repeat(long, host) + "carrier.example", Port: 65535, Username: "u", Password: "p"})
	}
	for i := range causes {
		k.FailoverCauses = append(k.FailoverCauses, 64+i)
	}
	return bulkhead.State{}.Apply(&bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1"}}, Pools: []bulkhead.Pool{{ID: "p1", Cell: "c1", Profile: "standard"}},
		Nodes:   []bulkhead.Node{{ID: "fs1", Pool: "p1", SIP: "10.0.1.1:5080"}},
		SBCs:    []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: "[2001:db8:1234:5678:9abc:def0:1234:5678]:50600"}},
		Tenants: []bulkhead.Tenant{k},
	})
}

// TestAnswersFit: every tenant that is let in gets answers that a FreeSWITCH
// takes whole (P9), in each of its words; a tenant that would not is refused
// when he is written.
func TestAnswersFit(t *testing.T) {
	accepted, refused, longest := 0, 0, 0
	for _, members := range []int{1, 8, 16, 24, 32} {
		for _, rules := range []int{0, 2, 8, 16} {
			for _, trunks := range []int{0, 1, 8} {
				for _, shape := range []struct {
					host, causes int
					sequential   bool
				}{{0, 0, false}, {3, 63, true}, {3, 0, false}, {0, 63, true}} {
					s := wordy(members, rules, trunks, shape.host, shape.causes, shape.sequential)
					if err := s.Validate(); err != nil {
						if !strings.Contains(err.Error(), "bytes") {
							t.Fatal(err)
						}
						refused++
						continue
					}
					accepted++
					longest = max(longest, answersFit(t, route.New(s)))
				}
			}
		}
	}
	t.Logf("%d tenants let in, %d refused; the longest answer has %d bytes", accepted, refused, longest)
	if accepted < 50 || refused < 20 || longest < maxAnswer/4 {
		t.Errorf("the bound is not where it should be")
	}
}

// answersFit decides the tenant's calls and returns the longest answer.
func answersFit(t *testing.T, x *route.Snapshot) (longest int) {
	t.Helper()
	tenant := bulkhead.TenantID(strings.Repeat("t", 63))
	for _, number := range []string{"15550001", strings.Repeat("1", 15), "4930123456789", "112"} {
		p := route.Decide(x, route.Call{SBC: "sbc1", Tenant: tenant, User: strings.Repeat("1", 15), Number: number, From: "1"})
		r := &Request{Context: strings.Repeat("c", 64), Destination: number, At: testTime}
		check := func(b []byte, reject *route.Reject) {
			t.Helper()
			if len(b) > maxAnswer || reject != nil && reject.Reason == unrenderable.Reason {
				t.Fatalf("%s: %d bytes, %+v", number, len(b), reject)
			}
			longest = max(longest, len(b))
		}
		check(RenderDialplan(nil, r, "fs1", p))
		check(appendMultiset(nil, r, "fs1", &p, false))
		check(appendPlanJSON(nil, "fs1", p, false))
	}
	return longest
}
