package kamailio

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/route"
)

func TestParamsValidate(t *testing.T) {
	good := Params{SBC: "sbc1", Listen: "192.0.2.1:5060"}
	if err := good.Validate(); err != nil {
		t.Errorf("Validate() = %v", err)
	}
	const token = "0123456789abcdef"
	for field, p := range map[string]Params{
		"sbc":           {SBC: "a!b", Listen: good.Listen},
		"listen":        {SBC: "a", Listen: "0.0.0.0:5060"},
		"listen6":       {SBC: "a", Listen: good.Listen, Listen6: "192.0.2.1:5060"},
		"events":        {SBC: "a", Listen: good.Listen, Events: "h:1/\n#!define X"},
		"user":          {SBC: "a", Listen: good.Listen, Events: "h:1", User: "a:b", Token: token},
		"token":         {SBC: "a", Listen: good.Listen, Events: "h:1", User: "a", Token: token[1:]},
		"route":         {SBC: "a", Listen: good.Listen, Route: "h"},
		"rpc":           {SBC: "a", Listen: good.Listen, RPC: "/run/k.sock"},
		"workers":       {SBC: "a", Listen: good.Listen, Workers: 65},
		"node_timeout":  {SBC: "a", Listen: good.Listen, NodeTimeout: time.Minute},
		"ping_interval": {SBC: "a", Listen: good.Listen, PingInterval: 1500 * time.Millisecond},
	} {
		errs := bulkhead.FieldErrors(p.Validate())
		if len(errs) != 1 || errs[0].Field != field {
			t.Errorf("Validate of a wrong %s = %v", field, errs)
		}
	}
	for _, bad := range []string{"", token + "@", token + "!", token + "/", token + " "} {
		if err := (Params{SBC: "a", Listen: good.Listen, Events: "h:1", User: "a", Token: bad}).Validate(); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("Validate of the token %q = %v, want a refusal that does not tell it", bad, err)
		}
	}
	if errs := bulkhead.FieldErrors((Params{SBC: "a", Listen: good.Listen, User: "a", Token: token}).Validate()); len(errs) != 1 || errs[0].Field != "events" {
		t.Errorf("Validate of credentials for nobody = %v", errs)
	}
	for _, dir := range []string{"/x!y", "/x\"y", "/x#y", "relative", "/" + strings.Repeat("d", 210)} {
		if _, err := good.Local(dir); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("Local(%q) = %v, want invalid", dir, err)
		}
	}
}

func TestLocal(t *testing.T) {
	got, err := Params{SBC: "sbc1", Listen: "192.0.2.1:5060", Listen6: "[2001:db8::1]:5060", Events: "127.0.0.1:8090"}.Local("/var/lib/bulkhead")
	if err != nil {
		t.Fatal(err)
	}
	const want = `# Written by bulkhead: what differs between hosts. kamailio.cfg includes it.
#!define BULKHEAD_NODE_TIMEOUT 2000
#!define BULKHEAD_PING_INTERVAL 1
#!substdef "!BULKHEAD_SBC!sbc1!g"
#!substdef "!BULKHEAD_TABLES!/var/lib/bulkhead/tables.sqlite!g"
#!substdef "!BULKHEAD_DISPATCHER_LIST!/var/lib/bulkhead/dispatcher.list!g"
#!define BULKHEAD_LISTEN udp:192.0.2.1:5060
#!define BULKHEAD_LISTEN6 udp:[2001:db8::1]:5060
#!define BULKHEAD_CHILDREN 4
#!substdef "!BULKHEAD_RPC!/var/lib/bulkhead/rpc.sock!g"
#!substdef "!BULKHEAD_LOCATION!/var/lib/bulkhead/location.sqlite!g"
#!substdef "!BULKHEAD_EVENTS!127.0.0.1:8090!g"
`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
}

func TestMemory(t *testing.T) {
	if o := Memory(200_000); o.SharedMB < 200 || o.PrivateMB < 128 {
		t.Errorf("Memory(200000) = %+v, less than was measured", o)
	}
	if o := Memory(0); o.SharedMB > 128 || o.PrivateMB > 32 {
		t.Errorf("Memory(0) = %+v", o)
	}
	if err := CheckRows(MaxRows); err != nil {
		t.Error(err)
	}
	if err := CheckRows(MaxRows + 1); !errors.Is(err, bulkhead.Invalid) || !strings.Contains(err.Error(), "400001") {
		t.Errorf("CheckRows of one more = %v, want invalid with the number", err)
	}
}

// TestLock keeps a second writer out before either has written anything.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	clients := make([]*Client, 3)
	for i := range clients {
		c, err := New(dir, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() //nolint:errcheck // closed again below
		clients[i] = c
	}
	for range 2 { // one's own lock is no conflict
		if err := clients[0].Lock(); err != nil {
			t.Fatal(err)
		}
	}
	err := clients[1].Lock()
	if pid := strconv.Itoa(os.Getpid()); !errors.Is(err, bulkhead.Conflict) || !strings.Contains(err.Error(), pid) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Lock() of a second writer = %v, want a conflict that names folder and process %s", err, pid)
	}
	// Who only looks is not in the way, nor hindered.
	if _, err := clients[2].Verify(t.Context(), route.Tables{}); errors.Is(err, bulkhead.Conflict) {
		t.Errorf("Verify() beside a writer = %v", err)
	}
	if err := clients[0].Close(); err != nil {
		t.Fatal(err)
	}
	if err := clients[1].Lock(); err != nil {
		t.Errorf("Lock() after the first writer has ended = %v", err)
	}
}

func TestWriteKeepsWhatIsThere(t *testing.T) {
	dir, err := os.MkdirTemp("", "bhk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := Params{SBC: "sbc1", Listen: "127.0.0.1:5060"}
	if err := p.Write(dir); err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, ListFile)
	if err := os.WriteFile(list, []byte("1 sip:127.0.0.1:1 0 1 duid=a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := openSQLite(filepath.Join(dir, TablesFile))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // a test
	f := tableFile{db}
	rows := []route.Row{{Key: "d:a.example", Value: "a"}, {Key: "d:b.example", Value: "b"}}
	ops, err := f.diff(t.Context(), sideB, rows)
	if err != nil || len(ops) != 2 {
		t.Fatalf("diff() = %v, %v", ops, err)
	}
	if err := f.update(t.Context(), sideB, ops, 7, 2, true); err != nil {
		t.Fatal(err)
	}
	if err := p.Write(dir); err != nil {
		t.Fatal(err)
	}
	m, err := f.meta(t.Context())
	if err != nil || m.live != sideB || m.rev[sideB] != 7 || m.count[sideB] != 2 {
		t.Errorf("meta() = %+v, %v", m, err)
	}
	if b, err := os.ReadFile(list); err != nil || len(b) == 0 {
		t.Errorf("the list was overwritten: %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, ConfFile)); err != nil || !bytes.Equal(b, shippedConf) {
		t.Errorf("kamailio.cfg is not the shipped one: %v", err)
	}
	// As a file of before says it.
	if _, err := db.Exec(`UPDATE bulkhead_meta SET key_name = 'live', key_value = 'b' WHERE key_name = 'b_live'`); err != nil {
		t.Fatal(err)
	}
	if err := p.Write(dir); err != nil {
		t.Fatal(err)
	}
	if m, err := f.meta(t.Context()); err != nil || m.live != sideB {
		t.Errorf("meta() of a file of before = %+v, %v", m, err)
	}
	next := []route.Row{{Key: "c", Value: "c"}, {Key: "d:b.example", Value: "x"}}
	ops, err = f.diff(t.Context(), sideB, next)
	want := []op{{Row: next[0]}, {Row: rows[0], delete: true}, {Row: next[1]}}
	if d := cmp.Diff(want, ops, cmp.AllowUnexported(op{})); err != nil || d != "" {
		t.Errorf("diff: %v, %s", err, d)
	}
}

func TestRenderList(t *testing.T) {
	sets := []route.Set{{ID: 7, Algorithm: route.ByWeight, Targets: []route.Target{
		{Node: "n1", URI: "sip:192.0.2.1:5060", Priority: 3, Weight: 100},
		{Node: "n2", URI: "sip:192.0.2.2:5060", Priority: 2, Weight: 100, Disabled: true},
		{Node: "n3", URI: "sip:192.0.2.3:5060", Priority: 1, Weight: 50},
	}}}
	const want = "7 sip:192.0.2.1:5060 0 3 duid=n1;weight=67\n7 sip:192.0.2.2:5060 4 0 duid=n2\n7 sip:192.0.2.3:5060 0 1 duid=n3;weight=33\n"
	if d := cmp.Diff(want, string(renderList(sets))); d != "" {
		t.Error(d)
	}
	kept := keepOld([]byte(want), []byte("6 sip:192.0.2.9:5060 0 1 duid=n9\n7 sip:192.0.2.8:5060 0 1 duid=n8\n8 cut"))
	if d := cmp.Diff(want+"6 sip:192.0.2.9:5060 0 1 duid=n9\n", string(kept)); d != "" {
		t.Error(d)
	}
}

func TestSharesAddUp(t *testing.T) {
	for n := 1; n <= 100; n++ {
		targets := make([]route.Target, n)
		for i := range targets {
			targets[i].Weight = 1 + (i*37)%100
		}
		sum, least := 0, 100
		for _, s := range shares(targets) {
			sum += s
			least = min(least, s)
		}
		if sum != 100 || least < 1 {
			t.Errorf("%d targets: the shares add up to %d, the least is %d", n, sum, least)
		}
	}
}

const eventLine = `{"kind":"failover","sbc":"sbc1","callid":"c1@x","cseq":"2","branch":"z9hG4bK1","from":"1001","to":"+49301","domain":"acme.example","src":"192.0.2.7","tenant":"acme","node":"192.0.2.1:5060","code":"408","reason":"no answer from the node","time":"1795451968526184","rev":"7"}`

func TestDecodeEvents(t *testing.T) {
	resolve := func(addr string) bulkhead.NodeID {
		if addr == "192.0.2.1:5060" {
			return "n1"
		}
		return ""
	}
	refused := strings.NewReplacer("failover", "refused", `"408"`, `"404"`, "no answer from the node", "unknown domain", "192.0.2.1:5060", "", `"acme"`, `""`).Replace(eventLine)
	got, err := DecodeEvents("c1", resolve, []byte(eventLine+"\n"+refused+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	at := time.UnixMicro(1795451968526184).UTC()
	want := []cdr.Record{{
		Schema: cdr.SchemaVersion, ID: cdr.NewID("c1", "sbc1", "c1@x|2|z9hG4bK1|failover|192.0.2.1:5060"), Kind: cdr.Failover, Source: cdr.SourceSBC,
		Cell: "c1", Node: "n1", SBC: "sbc1", Tenant: "acme", Revision: 7, Leg: "c1@x|2|z9hG4bK1|failover|192.0.2.1:5060", Call: "c1@x", SIPCallID: "c1@x",
		Direction: cdr.Inbound, Caller: "1001", Callee: "+49301", Start: at, End: at, SIPCode: 408, Q850: 102, Cause: "no answer from the node",
	}, {
		Schema: cdr.SchemaVersion, ID: cdr.NewID("c1", "sbc1", "c1@x|2|z9hG4bK1|refused|"), Kind: cdr.Refused, Source: cdr.SourceSBC,
		Cell: "c1", SBC: "sbc1", Revision: 7, Leg: "c1@x|2|z9hG4bK1|refused|", Call: "c1@x", SIPCallID: "c1@x",
		Direction: cdr.Inbound, Caller: "1001", Callee: "+49301", Start: at, End: at, SIPCode: 404, Q850: 3, Cause: "unknown domain",
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestDecodeEventsLeavesOutBadLines(t *testing.T) {
	bad := []string{"nonsense", "{}", strings.Replace(eventLine, "failover", "other", 1), strings.Replace(eventLine, "1795451968526184", "-1", 1),
		strings.Replace(eventLine, "c1@x", strings.Repeat("x", 300), 1), strings.Replace(eventLine, `"408"`, `"99"`, 1), strings.Replace(eventLine, `"7"`, `"x"`, 1)}
	got, err := DecodeEvents("c1", nil, []byte(strings.Join(bad, "\n")+"\n\n"+eventLine))
	if len(got) != 1 || !errors.Is(err, bulkhead.Invalid) || !strings.Contains(err.Error(), "7 of 9 lines") {
		t.Errorf("DecodeEvents() = %d records, %v", len(got), err)
	}
}

// TestRefusalsHaveRoutesCauses holds the SBC's words to those of route.Decide.
func TestRefusalsHaveRoutesCauses(t *testing.T) {
	for _, r := range []route.Reject{route.UnknownDomain, route.UnlistedSource} {
		if got := causeOf(r.Status, r.Reason); got != r.Cause {
			t.Errorf("cause of %+v = %d", r, got)
		}
		if !bytes.Contains(shippedConf, []byte(`$var(code) = `+strconv.Itoa(r.Status)+`; $var(phrase)`)) || !bytes.Contains(shippedConf, []byte(`"`+r.Reason+`"`)) {
			t.Errorf("kamailio.cfg does not know %+v", r)
		}
	}
}

func FuzzDecodeEvents(f *testing.F) {
	f.Add([]byte(eventLine + "\n" + eventLine))
	f.Add([]byte(`{"kind":"refused","sbc":"s","callid":"c","code":"404","time":"253402300799999999"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		records, err := DecodeEvents("c1", nil, body)
		if err != nil && !errors.Is(err, bulkhead.Invalid) {
			t.Fatalf("kind of %v", err)
		}
		for i := range records {
			if _, err := cdr.Encode(cdr.Entry{Record: &records[i]}); err != nil {
				t.Fatalf("a record that cannot be stored: %v", err)
			}
		}
	})
}

// answers yields the recorded answers of a real Kamailio.
func answers(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/jsonrpc-*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	var out []string
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(bytes.NewReader(b))
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			if a, ok := strings.CutPrefix(sc.Text(), "<<< "); ok {
				out = append(out, a)
			}
		}
	}
	return out
}

func TestDecodeAnswerOfCaptures(t *testing.T) {
	refused := 0
	for _, a := range answers(t) {
		var id struct {
			ID *uint64 `json:"id"`
		}
		if json.Unmarshal([]byte(a), &id) != nil || id.ID == nil {
			continue // recorded for being odd
		}
		if _, ours, _ := decodeAnswer("m", *id.ID+1, []byte(a)); ours {
			t.Errorf("taken for the answer to another call: %.100s", a)
		}
		result, ours, err := decodeAnswer("m", *id.ID, []byte(a))
		if !ours || (err == nil) == (len(result) == 0) {
			t.Errorf("decodeAnswer(%.100s) = %.20s, %t, %v", a, result, ours, err)
		}
		if err != nil {
			refused++
		}
	}
	if refused == 0 {
		t.Error("no capture holds a refusal")
	}
}

func FuzzDecodeAnswer(f *testing.F) {
	for _, a := range answers(f) {
		f.Add(uint64(18), []byte(a))
	}
	f.Fuzz(func(t *testing.T, id uint64, b []byte) {
		result, ours, err := decodeAnswer("m", id, b)
		if !ours && (err != nil || result != nil) {
			t.Fatal("something of an answer that is not ours")
		}
		if err != nil && !errors.As(err, new(*RPCError)) {
			t.Fatalf("type of %v", err)
		}
	})
}

// TestCallEndsWithItsContext: a Kamailio that does not answer costs a call its
// own time and nothing else, however near the end its context is.
func TestCallEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{dir: dir, sockets: dir, rpc: filepath.Join(dir, "rpc"), metrics: m, slots: make(chan *slot, 1)}
	c.slots <- &slot{}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: c.rpc, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for b := make([]byte, 1024); ; {
			if _, err := l.Read(b); err != nil {
				return
			}
		}
	}()
	defer func() {
		_ = l.Close() // nobody sends any more
		<-heard
	}()
	for n := range 200 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n%5)*200*time.Microsecond)
		if _, err := c.Call(ctx, "core.version"); !errors.Is(err, bulkhead.Unavailable) {
			t.Fatalf("call %d: %v", n, err)
		}
		cancel()
	}
}

// TestAwaySaysTheSame: who says a thing once, and not again while it is the
// same, must be able to, each time that Kamailio is not there.
func TestAwaySaysTheSame(t *testing.T) {
	c, err := New(t.TempDir(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, first := c.Call(t.Context(), "core.version")
	_, second := c.Call(t.Context(), "core.version")
	if first == nil || second == nil || first.Error() != second.Error() {
		t.Errorf("first %v, then %v", first, second)
	}
}
