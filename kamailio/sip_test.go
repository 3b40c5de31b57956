package kamailio_test

import (
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Raw SIP over UDP, so that the tests can also say what no SIP library would.

const answerTimeout = 6 * time.Second

// socket sends and receives from one address.
type socket struct {
	t    testing.TB
	conn *net.UDPConn
	sbc  netip.AddrPort
}

func newSocket(t testing.TB, source string, sbc netip.AddrPort) *socket {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(source), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // some tests close it before
	return &socket{t, conn, sbc}
}

func (s *socket) addr() string { return s.conn.LocalAddr().String() }

func (s *socket) send(msg string) {
	s.t.Helper()
	if _, err := s.conn.WriteToUDPAddrPort([]byte(msg), s.sbc); err != nil {
		s.t.Fatal(err)
	}
}

// receive returns the next message, or "" when none came within d.
func (s *socket) receive(d time.Duration) string {
	s.t.Helper()
	if err := s.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	n, _, err := s.conn.ReadFromUDPAddrPort(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ""
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return string(buf[:n])
}

// final returns the next response that is final.
func (s *socket) final() string {
	s.t.Helper()
	for {
		switch m := s.receive(answerTimeout); {
		case m == "":
			s.t.Fatalf("no answer at %s", s.addr())
		case status(m) >= 200:
			return m
		}
	}
}

// call is a request to be.
type call struct {
	method, ruri, from, to string
	callID                 string
	cseq                   int
	extra                  string // header lines
	auth                   string // password, if credentials are to be sent
	user                   string // of the credentials; empty: From's
}

var serial = rand.Uint64

func (s *socket) request(c *call) string {
	if c.method == "" {
		c.method = "INVITE"
	}
	if c.from == "" {
		c.from = "sip:anybody@elsewhere.example"
	}
	if c.to == "" {
		c.to = c.ruri
	}
	if c.callID == "" {
		c.callID = fmt.Sprintf("%016x", serial())
	}
	c.cseq++
	return fmt.Sprintf("%s %s SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%x;rport\r\nMax-Forwards: 70\r\n"+
		"From: <%s>;tag=f%s\r\nTo: <%s>\r\nCall-ID: %s\r\nCSeq: %d %s\r\nContact: <sip:me@%s>\r\n%sContent-Length: 0\r\n\r\n",
		c.method, c.ruri, s.addr(), serial(), c.from, c.callID[:8], c.to, c.callID, c.cseq, c.method, s.addr(), c.extra)
}

// ask sends a request, with credentials when it is challenged and c has a
// password, and returns the final answer.
func (s *socket) ask(c *call) string {
	s.t.Helper()
	s.send(s.request(c))
	m := s.final()
	if st := status(m); c.auth == "" || (st != 401 && st != 407) {
		return m
	}
	in, out := "WWW-Authenticate", "Authorization"
	if status(m) == 407 {
		in, out = "Proxy-Authenticate", "Proxy-Authorization"
	}
	user := c.user
	if user == "" {
		user = userOf(c.from)
	}
	extra := c.extra
	c.extra += out + ": " + digest(header(m, in), user, c.auth, c.method, c.ruri) + "\r\n"
	s.send(s.request(c))
	c.extra = extra
	return s.final()
}

func userOf(uri string) string {
	u, _, _ := strings.Cut(strings.TrimPrefix(uri, "sip:"), "@")
	return u
}

func md5hex(s string) string {
	sum := md5.Sum([]byte(s))
	return hex.EncodeToString(sum[:])
}

var quoted = regexp.MustCompile(`(realm|nonce)="([^"]*)"`)

func digest(challenge, user, password, method, uri string) string {
	p := map[string]string{}
	for _, m := range quoted.FindAllStringSubmatch(challenge, -1) {
		p[m[1]] = m[2]
	}
	response := md5hex(strings.Join([]string{md5hex(user + ":" + p["realm"] + ":" + password), p["nonce"], "00000001", "cn", "auth", md5hex(method + ":" + uri)}, ":"))
	return fmt.Sprintf(`Digest username="%s", realm="%s", nonce="%s", uri="%s", response="%s", qop=auth, nc=00000001, cnonce="cn", algorithm=MD5`,
		user, p["realm"], p["nonce"], uri, response)
}

// status returns a response's status, 0 for a request.
func status(m string) int {
	if !strings.HasPrefix(m, "SIP/2.0 ") {
		return 0
	}
	n, _ := strconv.Atoi(m[8:11])
	return n
}

func headers(m, name string) []string {
	var out []string
	for line := range strings.SplitSeq(m, "\r\n") {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(strings.TrimSpace(k), name) {
			out = append(out, strings.TrimSpace(v))
		}
	}
	return out
}

func header(m, name string) string {
	if h := headers(m, name); len(h) > 0 {
		return h[0]
	}
	return ""
}

// reply makes the answer to a request.
func reply(req, line, contact string) string {
	var b strings.Builder
	b.WriteString("SIP/2.0 " + line + "\r\n")
	for h := range strings.SplitSeq(req, "\r\n") {
		k, _, _ := strings.Cut(h, ":")
		if slices.Contains([]string{"via", "from", "call-id", "cseq", "record-route"}, strings.ToLower(k)) {
			b.WriteString(h + "\r\n")
		}
	}
	to := header(req, "To")
	if !strings.Contains(to, "tag=") && !strings.HasPrefix(line, "100") {
		to += ";tag=t" + header(req, "Call-ID")
	}
	fmt.Fprintf(&b, "To: %s\r\nContact: <sip:%s>\r\nContent-Length: 0\r\n\r\n", to, contact)
	return b.String()
}

// node is a media node that answers OPTIONS, and INVITE as it is told.
type node struct {
	*socket
	addr  string
	heard chan string // INVITEs, one for each retransmission too

	mu     sync.Mutex
	extra  string // header lines of every answer
	answer string // status line for INVITE; "": nothing at all, not even to OPTIONS
	byCall map[string]string
	other  chan string // what is neither INVITE nor OPTIONS
	done   chan struct{}
}

func newNode(t testing.TB, answer string) *node {
	t.Helper()
	n := &node{
		socket: newSocket(t, "127.0.0.1", netip.AddrPort{}), heard: make(chan string, 4096), other: make(chan string, 64),
		answer: answer, byCall: map[string]string{}, done: make(chan struct{}),
	}
	n.addr = n.socket.addr()
	go n.serve()
	t.Cleanup(func() {
		_ = n.conn.Close()
		<-n.done
	})
	return n
}

func (n *node) set(answer string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answer = answer
}

// call returns the INVITE of a call, "" if there was none.
func (n *node) call(id string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byCall[id]
}

func (n *node) serve() {
	defer close(n.done)
	buf := make([]byte, 1<<16)
	for {
		l, src, err := n.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		m := string(buf[:l])
		n.mu.Lock()
		answer, extra := n.answer, n.extra
		if strings.HasPrefix(m, "INVITE ") {
			n.byCall[header(m, "Call-ID")] = m
		}
		n.mu.Unlock()
		switch {
		case answer == "":
		case strings.HasPrefix(m, "OPTIONS "):
			answer = "200 OK"
		case strings.HasPrefix(m, "INVITE "):
			n.heard <- m
		case strings.HasPrefix(m, "ACK ") && !strings.HasPrefix(answer, "200"):
			answer = ""
		default:
			n.other <- m
			answer = "200 OK"
			if strings.HasPrefix(m, "ACK ") || strings.HasPrefix(m, "SIP/2.0") {
				answer = ""
			}
		}
		if answer != "" {
			res := strings.Replace(reply(m, answer, n.addr), "Content-Length:", extra+"Content-Length:", 1)
			_, _ = n.conn.WriteToUDPAddrPort([]byte(res), src) // the test notices
		}
	}
}

func wait(t testing.TB, what string, from chan string) string {
	t.Helper()
	select {
	case m := <-from:
		return m
	case <-time.After(answerTimeout):
		t.Fatalf("%s did not come", what)
		return ""
	}
}

// eventually polls until ok or 8 s have passed.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(8 * time.Second); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("not in 8s: %s", what)
}
