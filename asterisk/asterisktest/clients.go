package asterisktest

import (
	"bufio"
	"context"
	"crypto/md5" //nolint:gosec // what AMI's challenge uses
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// client is a WebSocket of an application.
type client struct {
	queue chan []byte
	stop  context.CancelFunc
}

func newClient(queue int, stop context.CancelFunc) *client {
	return &client{queue: make(chan []byte, queue), stop: stop}
}

// send tells whether there was room.
func (c *client) send(b []byte) bool {
	select {
	case c.queue <- b:
		return true
	default:
		return false
	}
}

func (c *client) cut() { c.stop() }

// filter sets the event filter (capture ari-14). Nothing but what is allowed
// is sent from then on, not even ApplicationReplaced.
func (a *application) filter(body []byte) answer {
	var f struct {
		Allowed []struct {
			Type string `json:"type"`
		} `json:"allowed"`
	}
	if err := json.Unmarshal(body, &f); err != nil {
		return refuse(400, "Invalid JSON")
	}
	a.allowed = nil
	for _, t := range f.Allowed {
		a.allowed = append(a.allowed, t.Type)
	}
	return answer{200, encode(map[string]any{"events_allowed": f.Allowed})}
}

// serveEvents is GET /ari/events: a WebSocket that holds an application while
// it is open (captures ari-11, ari-12).
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) {
	s.handlers.Add(1)
	defer s.handlers.Done()
	if !s.allowed(w, r) {
		return
	}
	name := r.URL.Query().Get("app")
	if name == "" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	c := newClient(s.cfg.Queue, cancel)
	s.take(name, c) // before the handshake is over, as a real one does
	defer s.release(name, c)
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // Asterisk lets any origin in
	if err != nil {
		return
	}
	defer ws.CloseNow() //nolint:errcheck // it is over
	s.handlers.Add(1)
	go func() { // drains, so that pings are answered; ends with the connection
		defer s.handlers.Done()
		defer cancel()
		for {
			if _, _, err := ws.Read(ctx); err != nil {
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-c.queue:
			if err := ws.Write(ctx, websocket.MessageText, b); err != nil {
				return
			}
		}
	}
}

// take gives an application to a client. The one that had it is told, and then
// hears nothing any more, though its connection stays.
func (s *Server) take(name string, c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[c] = struct{}{}
	if old := s.apps[name]; old != nil && old.client != nil {
		if len(old.allowed) == 0 || contains(old.allowed, "ApplicationReplaced") {
			old.client.send(encode(&eventObject{Type: "ApplicationReplaced", Timestamp: stamp(time.Now()), AsteriskID: s.entity, Application: name}))
		}
		delete(s.clients, old.client)
	}
	s.apps[name] = &application{client: c}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// release forgets an application with its WebSocket, its filter too.
func (s *Server) release(name string, c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c)
	if app := s.apps[name]; app != nil && app.client == c {
		delete(s.apps, name)
	}
}

// outbox is the outbound WebSocket: while it is away, messages wait in it
// (capture ari-13). Its fields are guarded by the server's lock.
type outbox struct {
	s     *Server
	queue [][]byte
	wake  chan struct{}
	stop  context.CancelFunc // of the present connection; nil: none
}

func newOutbox(s *Server) *outbox {
	o := &outbox{s: s, wake: make(chan struct{}, 1)}
	s.apps[s.cfg.App] = &application{}
	return o
}

func (o *outbox) put(b []byte) {
	o.queue = append(o.queue, b)
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) cut() {
	if o.stop != nil {
		o.stop()
	}
}

func (o *outbox) up() bool { return o.stop != nil }

// forget is what a crash does to the queue.
func (o *outbox) forget() {
	o.queue = nil
	o.s.apps[o.s.cfg.App] = &application{}
}

func (o *outbox) take() [][]byte {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	q := o.queue
	o.queue = nil
	return q
}

func (o *outbox) putBack(messages [][]byte) {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	o.queue = append(messages[:len(messages):len(messages)], o.queue...)
}

// run connects, again and again.
func (o *outbox) run(ctx context.Context) {
	for ctx.Err() == nil {
		o.once(ctx)
		t := time.NewTimer(100 * time.Millisecond)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

func (o *outbox) once(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	header := http.Request{Header: http.Header{}}
	header.SetBasicAuth(o.s.cfg.User, o.s.cfg.Password)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ws, _, err := websocket.Dial(ctx, o.s.cfg.OutboundURL, &websocket.DialOptions{HTTPClient: client, HTTPHeader: header.Header, Subprotocols: []string{"ari"}})
	if err != nil {
		return
	}
	defer ws.CloseNow() //nolint:errcheck // it is over
	o.s.mu.Lock()
	o.stop = cancel
	// What waited goes first, then the registration, then what comes.
	o.put(encode(&eventObject{Type: "ApplicationRegistered", Timestamp: stamp(time.Now()), AsteriskID: o.s.entity, Application: o.s.cfg.App}))
	o.s.mu.Unlock()
	defer func() {
		o.s.mu.Lock()
		o.stop = nil
		o.s.mu.Unlock()
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer cancel()
		o.requests(ctx, ws)
	})
	for {
		messages := o.take()
		for i, b := range messages {
			if err := ws.Write(ctx, websocket.MessageText, b); err != nil {
				o.putBack(messages[i+1:]) // as of a real one, what was being written is lost
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		}
	}
}

// requests answers RESTRequests in the stream (capture ari-13).
func (o *outbox) requests(ctx context.Context, ws *websocket.Conn) {
	for {
		_, b, err := ws.Read(ctx)
		if err != nil {
			return
		}
		var req struct {
			Type        string `json:"type"`
			Transaction string `json:"transaction_id"`
			ID          string `json:"request_id"`
			Method      string `json:"method"`
			URI         string `json:"uri"`
			Query       []struct {
				Name  string `json:"name"`
				Value string `json:"value"`
			} `json:"query_strings"`
			Body string `json:"message_body"`
		}
		if json.Unmarshal(b, &req) != nil || req.Type != "RESTRequest" {
			continue
		}
		path, err := url.PathUnescape(req.URI)
		if err != nil {
			continue
		}
		a := o.s.rest(req.Method, "/"+path, func(name string) string {
			for _, q := range req.Query {
				if q.Name == name {
					return q.Value
				}
			}
			return ""
		}, []byte(req.Body))
		o.s.mu.Lock()
		o.put(encode(map[string]any{
			"type": "RESTResponse", "transaction_id": req.Transaction, "request_id": req.ID, "status_code": a.status,
			"reason_phrase": http.StatusText(a.status), "uri": req.URI, "content_type": "application/json", "message_body": string(a.body),
			"application": o.s.cfg.App, "timestamp": stamp(time.Now()), "asterisk_id": o.s.entity,
		}))
		o.s.mu.Unlock()
	}
}

// manager is a client of AMI.
type manager struct {
	nc    net.Conn
	queue chan []byte
}

func (m *manager) send(b []byte) bool {
	select {
	case m.queue <- b:
		return true
	default:
		return false
	}
}

func (m *manager) cut() { _ = m.nc.Close() }

func (s *Server) serveAMI(ctx context.Context, wg *sync.WaitGroup) {
	for {
		nc, err := s.ami.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
			defer stop()
			s.manage(nc)
		})
	}
}

// manage serves one AMI connection: Challenge, Login, Ping and Logoff.
func (s *Server) manage(nc net.Conn) {
	defer nc.Close()
	m := &manager{nc: nc, queue: make(chan []byte, s.cfg.Queue)}
	done := make(chan struct{})
	defer close(done)
	s.handlers.Add(1)
	go func() { // ends with the connection
		defer s.handlers.Done()
		for {
			select {
			case <-done:
				return
			case b := <-m.queue:
				if _, err := nc.Write(b); err != nil {
					return
				}
			}
		}
	}()
	m.send([]byte("Asterisk Call Manager/11.0.0\r\n"))
	defer func() {
		s.mu.Lock()
		delete(s.managers, m)
		s.mu.Unlock()
	}()
	in := bufio.NewReader(nc)
	challenge := ""
	for {
		action, err := readAction(in)
		if err != nil {
			return
		}
		id := ""
		if a := action["ActionID"]; a != "" {
			id = "ActionID: " + a + "\r\n"
		}
		switch action["Action"] {
		case "Challenge":
			challenge = fmt.Sprintf("%d", time.Now().UnixNano()%1e9)
			m.send([]byte("Response: Success\r\n" + id + "Challenge: " + challenge + "\r\n\r\n"))
		case "Login":
			sum := md5.Sum([]byte(challenge + s.cfg.Secret)) //nolint:gosec // as above
			if action["Username"] != s.cfg.User || action["Secret"] != s.cfg.Secret && (challenge == "" || action["Key"] != hex.EncodeToString(sum[:])) {
				m.send([]byte("Response: Error\r\n" + id + "Message: Authentication failed\r\n\r\n"))
				continue
			}
			m.send([]byte("Response: Success\r\n" + id + "Message: Authentication accepted\r\n\r\n"))
			s.mu.Lock()
			s.managers[m] = struct{}{}
			s.mu.Unlock()
		case "Ping":
			m.send([]byte("Response: Success\r\n" + id + "Ping: Pong\r\nTimestamp: " + fmt.Sprintf("%.6f", float64(time.Now().UnixMicro())/1e6) + "\r\n\r\n"))
		case "Logoff":
			return
		default:
			m.send([]byte("Response: Error\r\n" + id + "Message: Invalid/unknown command\r\n\r\n"))
		}
	}
}

func readAction(in *bufio.Reader) (map[string]string, error) {
	out := map[string]string{}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			if len(out) == 0 {
				continue
			}
			return out, nil
		}
		if key, value, ok := strings.Cut(line, ":"); ok {
			out[key] = strings.TrimSpace(value)
		}
	}
}
