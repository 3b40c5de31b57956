package asterisktest_test

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/siptest"
)

// wire speaks SIP by hand, so that it can say what no phone would.
type wire struct {
	t    *testing.T
	conn net.Conn
	seq  int
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	conn, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &wire{t: t, conn: conn}
}

var challenge = regexp.MustCompile(`realm="([^"]*)"[^\r]*nonce="([^"]*)"|nonce="([^"]*)"[^\r]*realm="([^"]*)"`)

// send sends a request of a user, answers one challenge as him, and returns the
// status of the final answer.
func (w *wire) send(method, uri, from, to, password string, headers ...string) int {
	w.t.Helper()
	status, answer := w.once(method, uri, from, to, headers)
	if status != 401 {
		return status
	}
	m := challenge.FindStringSubmatch(answer)
	if m == nil {
		w.t.Fatalf("a challenge without realm or nonce: %q", answer)
	}
	realm, nonce := m[1]+m[4], m[2]+m[3]
	name, _, _ := strings.Cut(from, "@")
	hash := func(s string) string { sum := md5.Sum([]byte(s)); return hex.EncodeToString(sum[:]) }
	response := hash(hash(name+":"+realm+":"+password) + ":" + nonce + ":00000001:c:auth:" + hash(method+":"+uri))
	headers = append(headers, fmt.Sprintf(`Authorization: Digest username="%s", realm="%s", nonce="%s", uri="%s", response="%s", algorithm=MD5, qop=auth, nc=00000001, cnonce="c"%s`,
		name, realm, nonce, uri, response, opaque(answer)))
	status, _ = w.once(method, uri, from, to, headers)
	return status
}

func opaque(answer string) string {
	if _, rest, ok := strings.Cut(answer, `opaque="`); ok {
		value, _, _ := strings.Cut(rest, `"`)
		return `, opaque="` + value + `"`
	}
	return ""
}

func (w *wire) once(method, uri, from, to string, headers []string) (int, string) {
	w.t.Helper()
	w.seq++
	self := w.conn.LocalAddr().String()
	lines := append([]string{
		method + " " + uri + " SIP/2.0", fmt.Sprintf("Via: SIP/2.0/UDP %s;rport;branch=z9hG4bK%d", self, w.seq), "Max-Forwards: 70",
		"From: <sip:" + from + ">;tag=f" + fmt.Sprint(w.seq), "To: <sip:" + to + ">", "Call-ID: wire@" + self,
		fmt.Sprintf("CSeq: %d %s", w.seq, method), "Contact: <sip:w@" + self + ">", "Content-Length: 0",
	}, headers...)
	if _, err := w.conn.Write([]byte(strings.Join(lines, "\r\n") + "\r\n\r\n")); err != nil {
		w.t.Fatal(err)
	}
	buf := make([]byte, 8192)
	for {
		_ = w.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := w.conn.Read(buf)
		if err != nil {
			w.t.Fatalf("%s %s: %v", method, uri, err)
		}
		var status, seq int
		answer := string(buf[:n])
		if _, err := fmt.Sscanf(answer, "SIP/2.0 %d", &status); err != nil || status < 200 {
			continue
		}
		if _, rest, ok := strings.Cut(answer, "\r\nCSeq: "); ok {
			if _, err := fmt.Sscanf(rest, "%d", &seq); err == nil && seq == w.seq {
				return status, answer
			}
		}
	}
}

// TestTenantsApart: a phone of one tenant, whose password is right, can neither
// see, nor subscribe to, nor register or call as a user of the other.
func TestTenantsApart(t *testing.T) {
	r := newRig(t, nil)
	_ = r.phone(t, "102", "acme.example", siptest.Behaviour{})
	w := newWire(t, r.SIP.String())
	const globex, secret = "101@globex.example", "secret-101"
	ok := w.send("REGISTER", "sip:globex.example", globex, globex, secret, "Expires: 60")
	if ok != 200 {
		t.Fatalf("its own registration: %d", ok)
	}
	for _, c := range []struct {
		what, method, uri, from, to, password string
		headers                               []string
	}{
		{"registers as a user of the other", "REGISTER", "sip:acme.example", globex, "102@acme.example", secret, []string{"Expires: 60"}},
		{"registers as the other's with its own password", "REGISTER", "sip:acme.example", "102@acme.example", "102@acme.example", secret, []string{"Expires: 60"}},
		{"asks who is registered", "REGISTER", "sip:acme.example", globex, "102@acme.example", secret, nil},
		{"subscribes to dialogs", "SUBSCRIBE", "sip:102@acme.example", globex, "102@acme.example", secret, []string{"Event: dialog", "Expires: 60", "Accept: application/dialog-info+xml"}},
		{"subscribes to presence", "SUBSCRIBE", "sip:102@acme.example", globex, "102@acme.example", secret, []string{"Event: presence", "Expires: 60", "Accept: application/pidf+xml"}},
		{"subscribes to messages", "SUBSCRIBE", "sip:102@acme.example", globex, "102@acme.example", secret, []string{"Event: message-summary", "Expires: 60"}},
		{"sends a message", "MESSAGE", "sip:102@acme.example", globex, "102@acme.example", secret, nil},
		{"is nobody", "REGISTER", "sip:globex.example", "nobody@globex.example", "nobody@globex.example", secret, []string{"Expires: 60"}},
		{"has no domain", "REGISTER", "sip:globex.example", "101@none.example", "101@none.example", secret, []string{"Expires: 60"}},
		{"calls itself a trunk", "OPTIONS", "sip:102@acme.example", "acme.trunk.first", "102@acme.example", secret, nil},
	} {
		if got := w.send(c.method, c.uri, c.from, c.to, c.password, c.headers...); got < 400 {
			t.Errorf("%s: %d", c.what, got)
		} else {
			t.Logf("%s: %d", c.what, got)
		}
	}
	if got := r.called(); got != "" {
		t.Errorf("%s was reached", got)
	}
}
