package dispatcher

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// scene plays time to a balancer.
type scene struct {
	b     *balancer
	now   time.Time
	nodes map[bulkhead.NodeID]*bulkhead.Node
	seen  map[bulkhead.NodeID]Observation

	states route.NodeStates
	made   []Decision
}

func newScene(ids ...bulkhead.NodeID) *scene {
	s := &scene{b: newBalancer(), now: time.Unix(1000, 0), nodes: map[bulkhead.NodeID]*bulkhead.Node{}, seen: map[bulkhead.NodeID]Observation{}}
	for _, id := range ids {
		s.nodes[id] = &bulkhead.Node{ID: id, Pool: "p", Agent: "127.0.0.1:1"}
		s.seen[id] = Observation{HasAgent: true, Load: &bulkhead.NodeLoad{CPU: 0.3}}
	}
	return s
}

// pass lets time pass, with an observation of each node every pollEvery.
func (s *scene) pass(d time.Duration) []Decision {
	var made []Decision
	for end := s.now.Add(d); s.now.Before(end); {
		s.now = s.now.Add(pollEvery)
		for id, o := range s.seen {
			o.At = s.now
			s.seen[id] = o
		}
		var now []Decision
		s.states, now = s.b.step(s.now, s.nodes, s.seen)
		made = append(made, now...)
	}
	s.made = append(s.made, made...)
	return made
}

func (s *scene) set(id bulkhead.NodeID, change func(*Observation)) {
	o := s.seen[id]
	if o.Load != nil {
		l := *o.Load
		if l.PBX != nil {
			p := *l.PBX
			l.PBX = &p
		}
		o.Load = &l
	}
	change(&o)
	s.seen[id] = o
}

func (s *scene) cpu(id bulkhead.NodeID, use float64) {
	s.set(id, func(o *Observation) { o.Load.CPU = use })
}

func TestOverloadIsMovedWithinASecondAndComesBackSlowly(t *testing.T) {
	s := newScene("n1", "n2")
	if made := s.pass(time.Minute); len(made) != 0 || len(s.states) != 0 {
		t.Fatalf("nodes that are well: %v, %v", made, s.states)
	}
	s.cpu("n2", 0.99)
	made := s.pass(time.Second)
	if len(made) != 1 || made[0].Node != "n2" || made[0].From != 100 || made[0].To != 0 || s.states.Of("n2").Share != 0 {
		t.Fatalf("after a second of overload: %v, %v", made, s.states)
	}
	if text := made[0].String(); text != "node n2 weight 100 -> 0: CPU idle 1 % for 0.75 s" {
		t.Errorf("the reason is %q", text)
	}
	s.cpu("n2", 0.1)
	if made := s.pass(4 * time.Second); len(made) != 0 {
		t.Errorf("it came back within 4 s: %v", made)
	}
	s.pass(10 * time.Second)
	if share := s.states.Of("n2").Share; share < 20 || share > 60 {
		t.Errorf("its share after 14 s is %d", share)
	}
	s.pass(20 * time.Second)
	if len(s.states) != 0 {
		t.Errorf("after 34 s of quiet: %v", s.states)
	}
}

// A spike of half a second, or a use that goes up and down around the limit,
// moves little.
func TestNoFlapping(t *testing.T) {
	s := newScene("n1")
	for range 20 {
		s.cpu("n1", 1)
		s.pass(2 * pollEvery)
		s.cpu("n1", 0.4)
		s.pass(2 * pollEvery)
	}
	if len(s.made) != 0 {
		t.Errorf("short spikes: %v", s.made)
	}
	for range 60 {
		s.cpu("n1", 0.95)
		s.pass(5 * time.Second)
		s.cpu("n1", 0.5)
		s.pass(5 * time.Second)
	}
	if n := len(s.made); n > 10*6 || n < 2 {
		t.Errorf("%d changes in 10 minutes of ups and downs, want at most 6 a minute", n)
	}
}

func TestEachSign(t *testing.T) {
	for name, change := range map[string]func(*Observation){
		"CPU idle":                 func(o *Observation) { o.Load.CPU = 0.99 },
		"CPU quota":                func(o *Observation) { o.Load.Throttled = 1 },
		"stolen":                   func(o *Observation) { o.Load.Steal = 0.6 },
		"softirq":                  func(o *Observation) { o.Load.SoftIRQ = 0.7 },
		"receive-buffer":           func(o *Observation) { o.Load.UDPErrors = 500 },
		"dropped by network cards": func(o *Observation) { o.Load.NICDrops = 5000 },
		"sessions a second":        func(o *Observation) { o.Load.PBX = &bulkhead.PBXLoad{Rate: 30, MaxRate: 30} },
		"its agent":                func(o *Observation) { o.Silent = 10; o.Why = "connection refused" },
		"its PBX":                  func(o *Observation) { o.Load.PBXError = "connection refused" },
		"503":                      func(o *Observation) { o.Refuses = true },
		"that it does not take":    func(o *Observation) { o.Untaken = 5 },
		"OPTIONS takes":            func(o *Observation) { o.RTT = time.Second },
		"no answer to":             func(o *Observation) { o.Missed = 2 },
		"95 of 100 sessions":       func(o *Observation) { o.Load.PBX = &bulkhead.PBXLoad{Sessions: 95, MaxSessions: 100} },
	} {
		s := newScene("n1", "n2")
		s.pass(10 * time.Second)
		s.set("n1", change)
		made := s.pass(time.Second)
		if len(made) != 1 || made[0].To != 0 || !strings.Contains(made[0].Reason, name) {
			t.Errorf("%s: decisions are %v", name, made)
		}
	}
}

// A node without an agent has its OPTIONS only.
func TestWithoutAgent(t *testing.T) {
	s := newScene("n1")
	s.nodes["n1"].Agent = ""
	s.seen["n1"] = Observation{RTT: time.Millisecond}
	if made := s.pass(time.Minute); len(made) != 0 {
		t.Errorf("decisions are %v", made)
	}
	s.set("n1", func(o *Observation) { o.Missed = 3 })
	if s.pass(time.Second); !s.states.Of("n1").Dead {
		t.Errorf("states are %v", s.states)
	}
	s.set("n1", func(o *Observation) { o.Missed = 0 })
	if s.pass(time.Second); s.states.Of("n1").Dead {
		t.Errorf("states are %v", s.states)
	}
}

// P34: a node is closed before nine tenths of its sessions are in use, also
// by a burst between two observations, by the nearer of two limits.
func TestSessionLimit(t *testing.T) {
	for _, tt := range []struct{ max, calls int }{{200, 0}, {0, 100}, {1000, 100}, {200, 5000}} {
		s := newScene("n1", "n2")
		s.nodes["n1"].MaxCalls = tt.calls
		sessions := 0
		s.set("n1", func(o *Observation) { o.Load.PBX = &bulkhead.PBXLoad{MaxSessions: tt.max} })
		s.pass(10 * time.Second)
		for range 400 {
			if !s.states.Of("n1").Closed {
				sessions += 4 * s.states.Of("n1").Share / 100
			}
			s.set("n1", func(o *Observation) { o.Load.PBX.Sessions = sessions })
			s.pass(pollEvery)
		}
		if sessions > 180 || sessions < 100 {
			t.Errorf("limits %+v: %d of 200 sessions were offered", tt, sessions)
		}
	}
}

// The few sessions of a small node come and go: it is not closed and opened
// with each of them.
func TestSmallSessionLimitDoesNotFlap(t *testing.T) {
	s := newScene("n1", "n2")
	s.set("n1", func(o *Observation) { o.Load.PBX = &bulkhead.PBXLoad{MaxSessions: 8} })
	s.pass(10 * time.Second)
	for range 60 {
		for _, sessions := range []int{8, 6, 8, 6} {
			s.set("n1", func(o *Observation) { o.Load.PBX.Sessions = sessions })
			s.pass(pollEvery)
		}
	}
	if n := len(s.made); n > 30 || n < 2 {
		t.Errorf("%d changes in a minute, want at most 30: %v", n, s.made)
	}
}

// Whatever happens to the nodes, in simulated time: a set of a pool with a
// living node has one that takes calls, what is drained takes none, there are
// few changes a minute, and a node that has been well for long has all of its
// calls again.
func TestAnyLoadDeathAndDrain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		placement := rapid.SampledFrom([]bulkhead.Placement{bulkhead.Sticky, bulkhead.Spread}).Draw(t, "placement")
		ids := []bulkhead.NodeID{"n1", "n2", "n3", "n4"}
		s := newScene(ids...)
		c := bulkhead.Change{
			Cells: []bulkhead.Cell{{ID: "c"}}, SBCs: []bulkhead.SBC{{ID: "s", Cell: "c", SIP: "127.0.0.1:5060"}},
			Pools: []bulkhead.Pool{{ID: "p", Cell: "c", Profile: "standard", Placement: placement}},
		}
		for i, id := range ids {
			s.nodes[id].SIP = fmt.Sprintf("127.0.0.1:%d", 7000+i)
			c.Nodes = append(c.Nodes, *s.nodes[id])
		}
		state := bulkhead.State{}.Apply(&c)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			id := rapid.SampledFrom(ids).Draw(t, "node")
			switch rapid.IntRange(0, 6).Draw(t, "step") {
			case 0:
				s.cpu(id, rapid.Float64Range(0, 1).Draw(t, "cpu"))
			case 1:
				s.set(id, func(o *Observation) { o.Missed = rapid.IntRange(0, 4).Draw(t, "missed") })
			case 2:
				s.set(id, func(o *Observation) { o.Silent = rapid.IntRange(0, 6).Draw(t, "silent") })
			case 3:
				s.set(id, func(o *Observation) {
					o.Load.PBX = &bulkhead.PBXLoad{Sessions: rapid.IntRange(0, 100).Draw(t, "sessions"), MaxSessions: 100}
				})
			case 4:
				n := *s.nodes[id]
				n.Drain = !n.Drain
				s.nodes[id] = &n
				state = state.Apply(&bulkhead.Change{Nodes: []bulkhead.Node{n}})
			default:
				s.pass(time.Duration(rapid.IntRange(1, 15000).Draw(t, "ms")) * time.Millisecond)
			}
			checkSets(t, state, s.states)
		}
		for _, id := range ids {
			changes := map[int64]int{}
			for _, d := range s.made {
				if d.Node == id {
					changes[d.At.Unix()/60]++
				}
			}
			for minute, n := range changes {
				if n > 20 {
					t.Fatalf("%d changes of node %s in minute %d: %v", n, id, minute, s.made)
				}
			}
			s.seen[id] = Observation{HasAgent: true, Load: &bulkhead.NodeLoad{CPU: 0.2}}
		}
		s.pass(2 * time.Minute)
		if len(s.states) != 0 {
			t.Fatalf("after two minutes of quiet: %+v", s.states)
		}
	})
}

func checkSets(t *rapid.T, state bulkhead.State, states route.NodeStates) {
	sets, err := route.MakeSets(route.New(state), "s", states)
	if err != nil {
		t.Fatal(err)
	}
	undrained := 0
	for _, n := range state.Nodes {
		if !n.Drain {
			undrained++
		}
	}
	for _, set := range sets {
		takers := 0
		for _, to := range set.Targets {
			if state.Nodes[to.Node].Drain && !to.Disabled {
				t.Fatalf("node %s is drained, and offered calls", to.Node)
			}
			if to.Weight > 0 {
				takers++
			}
		}
		if undrained > 0 && takers == 0 {
			t.Fatalf("nobody takes the calls of %+v, states %+v", set, states)
		}
	}
}
