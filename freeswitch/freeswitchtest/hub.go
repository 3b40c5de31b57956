package freeswitchtest

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// newUUID returns a random UUID (RFC 9562 version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// place is the source line that an event names.
type place struct {
	file, fn, line string
}

// event is one fired event. It does not change afterwards.
type event struct {
	name     string
	subclass string
	fields   fields
	body     string

	onceJSON, oncePlain sync.Once
	json, plain         []byte
}

// hub gives events their sequence and hands them to every client.
type hub struct {
	host string // hostname and switchname
	ip   string
	core string // Core-UUID, new with every start (fact 33)

	mu      sync.Mutex
	seq     uint64
	clients map[*client]struct{}
}

func newHub(host, ip string) *hub {
	return &hub{host: host, ip: ip, core: newUUID(), clients: map[*client]struct{}{}}
}

// head is the beginning of every event, in the captured order.
func (h *hub) head(name string, at time.Time, p place, seq uint64, extra int) fields {
	f := make(fields, 0, 13+extra)
	f.add("Event-Name", name)
	f.add("Core-UUID", h.core)
	f.add("FreeSWITCH-Hostname", h.host)
	f.add("FreeSWITCH-Switchname", h.host)
	f.add("FreeSWITCH-IPv4", h.ip)
	f.add("FreeSWITCH-IPv6", "::1")
	f.add("Event-Date-Local", at.Local().Format(time.DateTime))
	f.add("Event-Date-GMT", at.UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"))
	f.add("Event-Date-Timestamp", strconv.FormatInt(at.UnixMicro(), 10))
	f.add("Event-Calling-File", p.file)
	f.add("Event-Calling-Function", p.fn)
	f.add("Event-Calling-Line-Number", p.line)
	f.add("Event-Sequence", strconv.FormatUint(seq, 10))
	return f
}

// number takes the next number of the process-wide sequence. The fetches of
// mod_xml_curl take one too, so gaps are normal (fact 32).
func (h *hub) number() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	return h.seq
}

// fire numbers an event and queues it for each client that wants it. Nothing
// is kept for a client that is not there (capture esl/reconnect.txt). before,
// if not nil, runs in the same critical section.
func (h *hub) fire(name string, p place, rest fields, body string, before func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if before != nil {
		before()
	}
	h.seq++
	ev := &event{name: name, body: body}
	ev.fields = append(h.head(name, time.Now(), p, h.seq, len(rest)), rest...)
	ev.subclass, _ = rest.get("Event-Subclass")
	for c := range h.clients {
		c.offer(ev)
	}
}

func (h *hub) join(c *client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clients[c] = struct{}{}
}

func (h *hub) leave(c *client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, c)
}

// frame encodes the event for one client: header lines, a blank line, the
// body, and directly the next frame (fact 29, captures esl/json-bridge.txt and
// esl/plain-calls.txt).
func (ev *event) frame(asJSON bool) []byte {
	if asJSON {
		ev.onceJSON.Do(func() {
			f := ev.fields
			if ev.body != "" { // capture esl/json-bgapi.txt
				f = f.clone(2)
				f.add("Content-Length", strconv.Itoa(len(ev.body)))
				f.add("_body", ev.body)
			}
			ev.json = frame("text/event-json", appendJSON(make([]byte, 0, 8<<10), f))
		})
		return ev.json
	}
	ev.oncePlain.Do(func() {
		b := make([]byte, 0, 8<<10)
		for i := range ev.fields {
			b = append(b, ev.fields[i].name...)
			b = append(b, ": "...)
			b = appendEncoded(b, ev.fields[i].text())
			b = append(b, '\n')
		}
		if ev.body != "" {
			b = fmt.Appendf(b, "Content-Length: %d\n\n%s", len(ev.body), ev.body)
		} else {
			b = append(b, '\n')
		}
		ev.plain = frame("text/event-plain", b)
	})
	return ev.plain
}

func frame(contentType string, body []byte) []byte {
	return append(fmt.Appendf(make([]byte, 0, len(body)+64), "Content-Length: %d\nContent-Type: %s\n\n", len(body), contentType), body...)
}
