package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
	"github.com/bulkhead-voip/bulkhead/route"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// sbcCase is what one call must come to, whichever SBC decides.
type sbcCase struct {
	name   string
	source string // where it is sent from
	uri    string // Request-URI; SBC stands for the SBC's own address
	from   string
	auth   *siptest.Credentials
	code   int    // final status; 486 is the first node's own
	tenant string // that the node was told
	user   string
}

var sbcCases = []sbcCase{
	{name: "unknown domain", source: "127.1.0.9", uri: "sip:1001@nobody.example", code: 404},
	{name: "unlisted source", source: "127.9.0.9", uri: "sip:1001@acme.example", code: 403},
	{name: "another tenant's source", source: "127.2.0.9", uri: "sip:1001@acme.example", code: 403},
	{name: "listed source", source: "127.1.0.9", uri: "sip:1001@acme.example", code: 486, tenant: "acme"},
	{name: "listed source, upper case", source: "127.1.0.9", uri: "sip:1001@ACME.example", code: 486, tenant: "acme"},
	{name: "listed source, spread pool", source: "127.2.0.9", uri: "sip:1001@beta.example", code: 486, tenant: "beta"},
	{name: "another tenant's user", source: "127.9.0.9", uri: "sip:1002@acme.example", from: "sip:1001@beta.example", code: 403},
	{name: "challenge", source: "127.9.0.9", uri: "sip:1002@acme.example", from: "sip:1001@acme.example", code: 407},
	{name: "challenge of nobody", source: "127.9.0.9", uri: "sip:1002@acme.example", from: "sip:7777@acme.example", code: 407},
	{name: "password", source: "127.9.0.9", uri: "sip:+4930123@acme.example", from: "sip:1001@acme.example",
		auth: &siptest.Credentials{User: "1001", Password: "pw-1001"}, code: 486, tenant: "acme", user: "1001"},
	{name: "wrong password", source: "127.9.0.9", uri: "sip:1002@acme.example", from: "sip:1001@acme.example",
		auth: &siptest.Credentials{User: "1001", Password: "guess"}, code: 403},
	{name: "in another user's name", source: "127.9.0.9", uri: "sip:1002@acme.example", from: "sip:1002@acme.example",
		auth: &siptest.Credentials{User: "1001", Password: "pw-1001"}, code: 403},
	{name: "user claimed inside a listed network", source: "127.1.0.9", uri: "sip:1002@acme.example", from: "sip:1001@acme.example", code: 407},
	{name: "user proved inside a listed network", source: "127.1.0.9", uri: "sip:1002@acme.example", from: "sip:1001@acme.example",
		auth: &siptest.Credentials{User: "1001", Password: "pw-1001"}, code: 486, tenant: "acme", user: "1001"},
	{name: "trunk inside a listed network", source: "127.1.0.9", uri: "sip:1002@acme.example", from: "sip:+49555@acme.example", code: 486, tenant: "acme"},
	{name: "own address, number of the source's tenant", source: "127.1.0.9", uri: "sip:+493010@SBC", code: 486, tenant: "acme"},
	{name: "own address, another tenant's number", source: "127.1.0.9", uri: "sip:+493020@SBC", code: 403},
	{name: "own address, nobody's number", source: "127.1.0.9", uri: "sip:+1999@SBC", code: 486, tenant: "acme"},
	{name: "own address, unlisted source", source: "127.9.0.9", uri: "sip:+493010@SBC", code: 403},
	{name: "own name", source: "127.2.0.9", uri: "sip:493020@sbc.example", code: 486, tenant: "beta"},
}

// TestSBC puts the same calls to the stand-in SBC and to the real Kamailio,
// both with the same tables: the stand-in is only worth something if it
// decides as Kamailio does.
func TestSBC(t *testing.T) {
	for name, start := range map[string]func(*testing.T, *sbcWorld){"stand-in": standIn, "Kamailio": realSBC} {
		t.Run(name, func(t *testing.T) {
			w := newSBCWorld(t, start)
			for _, tt := range sbcCases {
				t.Run(tt.name, func(t *testing.T) { w.decides(t, tt) })
			}
			t.Run("headers", w.headers)
			t.Run("within a dialog", w.dialog)
			t.Run("from a node", w.fromNode)
			t.Run("failover", w.failover)
		})
	}
}

// sbcWorld is an SBC with the nodes n1 and n2 of a sticky pool and n3 of its
// backup pool, and n4, which takes no calls but sends them.
type sbcWorld struct {
	addr  netip.AddrPort
	apply func(*route.Snapshot)
	x     *route.Snapshot
	nodes map[bulkhead.NodeID]*sbcNode
	n4    *siptest.Stack
	rang  chan struct{} // capacity 1: a caller heard that it rings
}

func newSBCWorld(t *testing.T, start func(*testing.T, *sbcWorld)) *sbcWorld {
	w := &sbcWorld{nodes: map[bulkhead.NodeID]*sbcNode{}, rang: make(chan struct{}, 1)}
	start(t, w)
	w.n4 = sbcStack(t, "127.0.0.1")
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1", MaxTenants: 10}},
		Pools: []bulkhead.Pool{
			{ID: "std", Cell: "c1", Profile: bulkhead.ProfileStandard, Backup: "hv"},
			{ID: "hv", Cell: "c1", Profile: bulkhead.ProfileHighVolume, Placement: bulkhead.Spread},
			{ID: "ai", Cell: "c1", Profile: bulkhead.ProfileAI},
		},
		SBCs:  []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: w.addr.String(), Names: []string{"sbc.example"}}},
		Nodes: []bulkhead.Node{{ID: "n4", Pool: "ai", SIP: w.n4.Addr().String()}},
	}
	for id, pool := range map[bulkhead.NodeID]bulkhead.PoolID{"n1": "std", "n2": "std", "n3": "hv"} {
		w.nodes[id] = newSBCNode(t, w.rang)
		c.Nodes = append(c.Nodes, bulkhead.Node{ID: id, Pool: pool, SIP: w.nodes[id].conn.LocalAddr().String()})
	}
	for _, tenant := range []bulkhead.Tenant{
		{ID: "acme", Profile: bulkhead.ProfileStandard, Numbers: []bulkhead.Number{{Number: "493010", User: "1001"}}, Sources: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/24")}},
		{ID: "beta", Profile: bulkhead.ProfileHighVolume, Numbers: []bulkhead.Number{{Number: "493020", User: "1001"}}, Sources: []netip.Prefix{netip.MustParsePrefix("127.2.0.0/24")}},
	} {
		realm := string(tenant.ID) + ".example"
		tenant.Cell, tenant.Domains = "c1", []string{realm}
		for _, u := range []string{"1001", "1002"} {
			tenant.Users = append(tenant.Users, bulkhead.User{Extension: u, HA1: siptest.HA1(u, realm, "pw-"+u)})
		}
		c.Tenants = append(c.Tenants, tenant)
	}
	s := bulkhead.State{}.Apply(&c)
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	w.x = route.New(s)
	w.apply(w.x)
	return w
}

func standIn(t *testing.T, w *sbcWorld) {
	var live route.Live
	proxy, err := siptest.NewProxy(siptest.ProxyConfig{
		Listen: "127.0.0.1:0", Name: "sbc1", Router: &router{sbc: "sbc1", live: &live}, Failover: 300 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- proxy.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	live.Store(route.New(bulkhead.State{}))
	w.addr, w.apply = proxy.Addr(), func(x *route.Snapshot) { live.Store(x) }
}

func realSBC(t *testing.T, w *sbcWorld) {
	// Pings would bring a node back that a case has made silent.
	d := kamailiotest.Start(t, kamailio.Params{NodeTimeout: 300 * time.Millisecond, PingInterval: time.Hour})
	w.addr, w.apply = d.Addr, func(x *route.Snapshot) {
		tables, err := route.MakeTables(x, "sbc1")
		if err == nil {
			err = d.Client.Apply(t.Context(), tables)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func sbcStack(t *testing.T, ip string) *siptest.Stack {
	t.Helper()
	s, err := siptest.NewStack(siptest.StackConfig{Listen: ip + ":0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func sipURI(t *testing.T, s string) sip.Uri {
	t.Helper()
	var u sip.Uri
	if err := sip.ParseUri(s, &u); err != nil {
		t.Fatal(err)
	}
	return u
}

// call places one call and returns its Call-ID and the answer: 200 too.
func (w *sbcWorld) call(t *testing.T, tt sbcCase, headers ...sip.Header) (string, *sip.Response) {
	t.Helper()
	if tt.from == "" {
		tt.from = "sip:anybody@elsewhere.example"
	}
	id := "call-" + strings.ReplaceAll(t.Name(), " ", "-") + "-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	id = strings.NewReplacer("/", ".", "'", "", ",", "").Replace(id)
	select {
	case <-w.rang: // of an earlier call
	default:
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	d, err := sbcStack(t, tt.source).Invite(ctx, siptest.Invitation{
		URI: sipURI(t, strings.ReplaceAll(tt.uri, "SBC", w.addr.String())), From: sipURI(t, tt.from),
		CallID: id, Dest: w.addr, Auth: tt.auth, Headers: headers,
		OnProvisional: func(*sip.Response) {
			select {
			case w.rang <- struct{}{}:
			default:
			}
		},
	})
	var refused *siptest.StatusError
	switch {
	case errors.As(err, &refused):
		return id, refused.Response
	case err != nil:
		t.Fatal(err)
	}
	return id, d.Response()
}

// decides places a call while every node is busy.
func (w *sbcWorld) decides(t *testing.T, tt sbcCase) {
	id, res := w.call(t, tt, sip.NewHeader("X-Bulkhead-Tenant", "evil"), sip.NewHeader("x-bulkhead-user", "evil"), sip.NewHeader("X-Other", "stays"))
	if res.StatusCode != tt.code {
		t.Errorf("got %d %s, want %d", res.StatusCode, res.Reason, tt.code)
	}
	asked := w.asked(id)
	if len(asked) != len(tt.tenant)/max(1, len(tt.tenant)) { // one, or none
		t.Fatalf("nodes asked: %v", asked)
	}
	if len(asked) == 0 {
		return
	}
	got := map[string]string{}
	for _, h := range asked[0].invite.Headers() {
		got[strings.ToLower(h.Name())] += h.Value() // twice would show
	}
	for name, want := range map[string]string{
		"x-bulkhead-tenant": tt.tenant, "x-bulkhead-user": tt.user, "x-bulkhead-sbc": "sbc1", "x-other": "stays",
		"x-bulkhead-revision": strconv.FormatUint(uint64(w.x.Revision()), 10), "proxy-authorization": "", "route": "",
	} {
		if got[name] != want {
			t.Errorf("the node got %s %q, want %q", name, got[name], want)
		}
	}
}

// headers wants what a node says to the SBC to stay there.
func (w *sbcWorld) headers(t *testing.T) {
	for _, answers := range [][]int{{180, 486}, {180, 200}} {
		w.all(answers...)
		_, res := w.call(t, sbcCase{source: "127.1.0.9", uri: "sip:1001@acme.example"})
		if res.StatusCode != answers[1] || res.GetHeader("X-Bulkhead-Tenant") != nil || res.GetHeader("x-bulkhead-revision") != nil || res.GetHeader("X-Other") == nil {
			t.Errorf("the caller got\n%s", res)
		}
	}
	w.all(486)
}

// dialog sends what looks like part of a call.
func (w *sbcWorld) dialog(t *testing.T) {
	stranger := newSBCNode(t, nil)
	send := func(from *siptest.Stack, to net.Addr, withRoute bool) (int, bool) {
		t.Helper()
		target := sipURI(t, "sip:x@"+to.String())
		req := sip.NewRequest(sip.MESSAGE, target)
		if withRoute {
			req.AppendHeader(&sip.RouteHeader{Address: sipURI(t, "sip:"+w.addr.String()+";lr")})
		}
		req.AppendHeader(&sip.ToHeader{Address: target, Params: sip.HeaderParams{{K: "tag", V: "made-up"}}})
		id := sip.CallIDHeader(strconv.FormatInt(time.Now().UnixNano(), 36) + "@dialog")
		req.AppendHeader(&id)
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		defer cancel()
		res, err := from.Do(ctx, req, w.addr)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, stranger.heard(string(id)) != nil || slices.ContainsFunc(w.ids(), func(n bulkhead.NodeID) bool { return w.nodes[n].heard(string(id)) != nil })
	}
	outside := sbcStack(t, "127.9.0.9")
	for _, tt := range []struct {
		name   string
		from   *siptest.Stack
		to     net.Addr
		route  bool
		code   int
		passed bool
	}{
		{"no Route, to a stranger", outside, stranger.conn.LocalAddr(), false, 481, false},
		{"to a stranger", outside, stranger.conn.LocalAddr(), true, 481, false},
		{"to a node", outside, w.nodes["n1"].conn.LocalAddr(), true, 200, true},
		{"from a node to anybody", w.n4, stranger.conn.LocalAddr(), true, 200, true},
	} {
		if code, passed := send(tt.from, tt.to, tt.route); code != tt.code || passed != tt.passed {
			t.Errorf("%s: got %d, relayed %t; want %d, %t", tt.name, code, passed, tt.code, tt.passed)
		}
	}
}

// fromNode places the calls that a node sends on to a user.
func (w *sbcWorld) fromNode(t *testing.T) {
	for uri, code := range map[string]int{"sip:1001@nobody.example": 404, "sip:7777@acme.example": 404, "sip:1002@acme.example": 480, "sip:1001@SBC": 404} {
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		defer cancel()
		_, err := w.n4.Invite(ctx, siptest.Invitation{
			URI: sipURI(t, strings.ReplaceAll(uri, "SBC", w.addr.String())), From: sipURI(t, "sip:1001@acme.example"), Dest: w.addr,
		})
		var refused *siptest.StatusError
		if !errors.As(err, &refused) || refused.Code != code {
			t.Errorf("%s: got %v, want %d", uri, err, code)
		}
	}
}

// failover lets one node after the other fail a tenant whose pool is sticky.
// A silent node comes last: Kamailio does not ask it again.
func (w *sbcWorld) failover(t *testing.T) {
	tables, err := route.MakeTables(w.x, "sbc1")
	if err != nil {
		t.Fatal(err)
	}
	home := route.Decide(w.x, route.Call{SBC: "sbc1", Tenant: "acme"}).Set
	at := slices.IndexFunc(tables.Sets, func(s route.Set) bool { return s.ID == home })
	first, second := tables.Sets[at].Targets[0].Node, tables.Sets[at].Targets[1].Node
	for _, tt := range []struct {
		name                 string
		first, second, third []int
		code                 int
		asked                []bulkhead.NodeID
	}{
		{"busy is an answer", []int{486}, []int{480}, []int{480}, 486, []bulkhead.NodeID{first}},
		{"503", []int{503}, []int{486}, []int{480}, 486, []bulkhead.NodeID{first, second}},
		{"500 after 100", []int{100, 500}, []int{486}, []int{480}, 486, []bulkhead.NodeID{first, second}},
		{"rang", []int{180, 503}, []int{486}, []int{480}, 503, []bulkhead.NodeID{first}},
		{"backup pool", []int{503}, []int{503}, []int{486}, 486, []bulkhead.NodeID{first, second, "n3"}},
		{"rang at the second", []int{503}, []int{183, 500}, []int{486}, 500, []bulkhead.NodeID{first, second}},
		{"none left", []int{503}, []int{500}, []int{503}, 503, []bulkhead.NodeID{first, second, "n3"}},
		{"silence", nil, []int{486}, []int{480}, 486, []bulkhead.NodeID{first, second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.nodes[first].set(tt.first...)
			w.nodes[second].set(tt.second...)
			w.nodes["n3"].set(tt.third...)
			id, res := w.call(t, sbcCase{source: "127.1.0.9", uri: "sip:1001@acme.example"})
			if res.StatusCode != tt.code {
				t.Errorf("got %d %s, want %d", res.StatusCode, res.Reason, tt.code)
			}
			var asked []bulkhead.NodeID
			for _, a := range w.asked(id) {
				asked = append(asked, a.node)
			}
			if !slices.Equal(asked, tt.asked) {
				t.Errorf("asked %v, want %v", asked, tt.asked)
			}
		})
	}
}

func (w *sbcWorld) ids() []bulkhead.NodeID { return []bulkhead.NodeID{"n1", "n2", "n3"} }

func (w *sbcWorld) all(answers ...int) {
	for _, n := range w.nodes {
		n.set(answers...)
	}
}

// asking is one INVITE at a node, without its repetitions.
type asking struct {
	node   bulkhead.NodeID
	invite *sip.Request
	at     time.Time
}

// asked returns who was asked to take a call, in order.
func (w *sbcWorld) asked(callID string) []asking {
	var out []asking
	for id, n := range w.nodes {
		if a := n.heard(callID); a != nil {
			out = append(out, asking{id, a.invite, a.at})
		}
	}
	slices.SortFunc(out, func(a, b asking) int { return a.at.Compare(b.at) })
	return out
}

// sbcNode is a media node on a bare socket: it can also say nothing.
type sbcNode struct {
	conn net.PacketConn
	rang <-chan struct{}

	mu      sync.Mutex
	answers []int // to an INVITE, in turn; none: silence
	calls   map[string]*asking
}

// newSBCNode makes one that goes on from a 18x to its next answer when rang
// says that the caller heard it: two workers of a Kamailio may turn them round.
func newSBCNode(t *testing.T, rang <-chan struct{}) *sbcNode {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &sbcNode{conn: conn, rang: rang, answers: []int{486}, calls: map[string]*asking{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.serve()
	}()
	t.Cleanup(func() {
		_ = conn.Close() // ends serve
		<-done
	})
	return n
}

func (n *sbcNode) set(answers ...int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers = answers
}

func (n *sbcNode) heard(callID string) *asking {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.calls[callID]
}

func (n *sbcNode) serve() {
	buf := make([]byte, 1<<16)
	for {
		l, src, err := n.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		msg, err := sip.ParseMessage(slices.Clone(buf[:l]))
		req, ok := msg.(*sip.Request)
		if err != nil || !ok || req.Method == sip.ACK {
			continue
		}
		answers := []int{200}
		if req.Method != sip.OPTIONS {
			answers = n.note(req)
		}
		for _, code := range answers {
			res := sip.NewResponseFromRequest(req, code, "Answer", nil)
			if code > 100 && res.To().Params != nil && !res.To().Params.Has("tag") {
				res.To().Params.Add("tag", "node")
			}
			res.AppendHeader(sip.NewHeader("Contact", "<sip:"+n.conn.LocalAddr().String()+">"))
			res.AppendHeader(sip.NewHeader("X-Bulkhead-Tenant", "secret"))
			res.AppendHeader(sip.NewHeader("x-bulkhead-revision", "secret"))
			res.AppendHeader(sip.NewHeader("X-Other", "stays"))
			_, _ = n.conn.WriteTo([]byte(res.String()), src) // the test notices
			if code > 100 && code < 200 {
				select {
				case <-n.rang:
				case <-time.After(5 * time.Second):
				}
			}
		}
	}
}

// note writes a request down and says how to answer it.
func (n *sbcNode) note(req *sip.Request) []int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id := req.CallID().Value(); n.calls[id] == nil {
		n.calls[id] = &asking{invite: req, at: time.Now()}
	}
	if req.Method != sip.INVITE {
		return []int{200}
	}
	return n.answers
}
