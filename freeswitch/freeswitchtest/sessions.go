package freeswitchtest

import (
	"slices"
	"sync"
	"time"
)

// sessions knows the legs that exist and counts them. A leg is a session, so a
// bridged call counts two (fact 36, capture esl/heartbeat-during-calls.txt).
type sessions struct {
	limit, perSecond int

	mu    sync.Mutex
	legs  map[string]*leg
	rows  map[string]row
	order []string // of the rows, oldest first
	c     counts
	rate  [300]int // sessions begun in each of the last 300 seconds
	high  [5]int   // peak of each of the last 5 minutes
	now   int64    // the second that c.current counts
}

// counts is what status and HEARTBEAT tell.
type counts struct {
	active, total, peak, peak5 int
	last, ratePeak, ratePeak5  int // sessions begun: in the last second, the most in one
	current                    int
}

// row is a leg as show channels lists it, without the hostname.
type row struct {
	fields  fields
	partner string // uuid of the leg that it is bridged with
}

func newSessions(limit, perSecond int) *sessions {
	return &sessions{limit: limit, perSecond: perSecond, legs: map[string]*leg{}, rows: map[string]row{}}
}

// tick moves the counters to the present second; called with the lock held.
func (s *sessions) tick(now time.Time) {
	sec := now.Unix()
	if s.now == 0 {
		s.now = sec
	}
	for i := s.now; i < sec && i < s.now+300; i++ {
		s.rate[i%300] = s.c.current
		s.c.last = s.c.current
		s.c.current = 0
		s.rate[(i+1)%300] = 0
		if (i+1)%60 == 0 {
			s.high[(i+1)/60%5] = s.c.active
		}
	}
	s.now = max(s.now, sec)
	m := s.now / 60 % 5
	s.high[m] = max(s.high[m], s.c.active)
	s.c.ratePeak = max(s.c.ratePeak, s.c.current)
	s.c.ratePeak5 = max(slices.Max(s.rate[:]), s.c.current)
	s.c.peak = max(s.c.peak, s.c.active)
	s.c.peak5 = slices.Max(s.high[:])
}

// begin counts a new leg, and reports false if a limit is reached.
func (s *sessions) begin(l *leg) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tick(time.Now())
	if s.c.active >= s.limit || s.c.current >= s.perSecond {
		return false
	}
	s.c.active++
	s.c.current++
	s.c.total++
	l.session = s.c.total
	s.legs[l.uuid] = l
	s.tick(time.Now())
	return true
}

// end forgets a leg.
func (s *sessions) end(l *leg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.legs[l.uuid] != l {
		return
	}
	s.tick(time.Now())
	delete(s.legs, l.uuid)
	s.c.active--
	s.drop(l.uuid)
}

func (s *sessions) drop(uuid string) {
	delete(s.rows, uuid)
	if i := slices.Index(s.order, uuid); i >= 0 {
		s.order = slices.Delete(s.order, i, i+1)
	}
}

// show sets what show channels lists of a leg.
func (s *sessions) show(uuid string, r row) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.rows[uuid]; !ok {
		s.order = append(s.order, uuid)
	}
	s.rows[uuid] = r
}

// hide takes a leg off the list.
func (s *sessions) hide(uuid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(uuid)
}

func (s *sessions) leg(uuid string) *leg {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.legs[uuid]
}

func (s *sessions) counts() counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tick(time.Now())
	return s.c
}

// channelRows are the rows of show channels, oldest first.
func (s *sessions) channelRows(host string) []fields {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]fields, 0, len(s.order))
	for _, id := range s.order {
		f := s.rows[id].fields.clone(0)
		for i := range f {
			if f[i].name == "hostname" {
				f[i].value = host
			}
		}
		out = append(out, f)
	}
	return out
}

// callRows are the rows of show calls: the columns of the A leg, and those of
// the B leg with a prefix (capture esl/api-during-bridge.txt).
func (s *sessions) callRows(host string) []fields {
	s.mu.Lock()
	defer s.mu.Unlock()
	columns := func(f fields, prefix string, names ...string) fields {
		var out fields
		for _, n := range names {
			v, _ := f.get(n)
			if n == "hostname" {
				v = host
			}
			out.add(prefix+n, v)
		}
		return out
	}
	base := []string{"uuid", "direction", "created", "created_epoch", "name", "state", "cid_name", "cid_num", "ip_addr", "dest",
		"presence_id", "presence_data", "accountcode", "callstate", "callee_name", "callee_num", "callee_direction"}
	sent := []string{"sent_callee_name", "sent_callee_num"}
	var out []fields
	for _, id := range s.order {
		a := s.rows[id]
		b, ok := s.rows[a.partner]
		if dir, _ := a.fields.get("direction"); !ok || dir != "inbound" {
			continue
		}
		f := columns(a.fields, "", slices.Concat(base, []string{"call_uuid", "hostname"}, sent)...)
		f = append(f, columns(b.fields, "b_", slices.Concat(base, sent)...)...)
		created, _ := b.fields.get("created_epoch")
		f.add("call_created_epoch", created)
		out = append(out, f)
	}
	return out
}
