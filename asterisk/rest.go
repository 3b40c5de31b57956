package asterisk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// caller makes requests of the REST interface: over HTTP, or over a WebSocket
// that Asterisk opened.
type caller interface {
	// call returns the body of an answer with a status of 2xx. Any other status
	// is bulkhead.Denied (401, 403), bulkhead.NotFound (404) or bulkhead.Invalid.
	call(ctx context.Context, method, path string, query url.Values, body []byte) ([]byte, error)
}

func statusError(method, path string, status int, reason string) error {
	kind := bulkhead.Invalid
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		kind = bulkhead.Denied
	case status == http.StatusNotFound:
		kind = bulkhead.NotFound
	case status >= 500:
		kind = bulkhead.Unavailable
	}
	return fmt.Errorf("ARI %s %s: %d %s: %w", method, path, status, text(reason), kind)
}

// overHTTP is a caller over HTTP.
type overHTTP struct {
	cfg    ARI
	client *http.Client
}

func newOverHTTP(cfg ARI) *overHTTP {
	return &overHTTP{cfg: cfg, client: &http.Client{
		Transport:     &http.Transport{MaxIdleConns: 4, MaxConnsPerHost: 4, ResponseHeaderTimeout: cfg.Timeout},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (o *overHTTP) close() { o.client.CloseIdleConnections() }

func (o *overHTTP) url(path string, query url.Values) string {
	u := strings.TrimSuffix(o.cfg.URL, "/") + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	return u
}

// authorization is sent as a header, so that no log of URLs shows it.
func (o *overHTTP) authorization() http.Header {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth(o.cfg.User, o.cfg.Password)
	return r.Header
}

func (o *overHTTP) call(ctx context.Context, method, path string, query url.Values, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, o.url(path, query), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ARI %s %s: %w: %w", method, path, bulkhead.Invalid, err)
	}
	req.Header = o.authorization()
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ARI %s %s: %w: %w", method, path, bulkhead.Unavailable, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("ARI %s %s: %w: %w", method, path, bulkhead.Unavailable, err)
	}
	if len(answer) > maxAnswer {
		return nil, fmt.Errorf("ARI %s %s: the answer is longer than %d bytes: %w", method, path, maxAnswer, bulkhead.Invalid)
	}
	if resp.StatusCode/100 != 2 {
		return nil, statusError(method, path, resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	return answer, nil
}

// overSocket is a caller over a WebSocket that Asterisk opened. It belongs to
// the goroutine that takes from the socket. What is not the answer is kept in
// early, in its order.
type overSocket struct {
	socket  *socket
	timeout time.Duration
	n       int
	early   [][]byte
	held    int // bytes of early
}

// request is a RESTRequest of Asterisk 22.
type request struct {
	Type        string      `json:"type"`
	Transaction string      `json:"transaction_id"`
	ID          string      `json:"request_id"`
	Method      string      `json:"method"`
	URI         string      `json:"uri"`
	ContentType string      `json:"content_type,omitempty"`
	Query       []nameValue `json:"query_strings,omitempty"`
	Body        string      `json:"message_body,omitempty"`
}

type nameValue struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (o *overSocket) call(ctx context.Context, method, path string, query url.Values, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	o.n++
	id := "bulkhead-" + strconv.Itoa(o.n)
	req := request{Type: typeRESTRequest, Transaction: id, ID: id, Method: method, URI: strings.TrimPrefix(path, "/"), Body: string(body)}
	if body != nil {
		req.ContentType = "application/json"
	}
	for name := range query {
		req.Query = append(req.Query, nameValue{name, query.Get(name)})
	}
	b, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("ARI %s %s: %w: %w", method, path, bulkhead.Invalid, err)
	}
	if err := o.socket.send(ctx, b); err != nil {
		return nil, fmt.Errorf("ARI %s %s: %w", method, path, err)
	}
	for {
		messages, _, err := o.socket.take()
		if err != nil {
			return nil, fmt.Errorf("ARI %s %s: %w", method, path, err)
		}
		for i, m := range messages {
			var e event
			if isResponse(m) {
				e, _, _ = decodeEvent(m) // what cannot be decoded is no response either
			}
			if e.Type != typeResponse {
				o.early = append(o.early, m)
				o.held += len(m)
				continue
			}
			if e.RequestID != id {
				continue // the answer to one that was given up
			}
			o.socket.putBack(messages[i+1:])
			if e.Status/100 != 2 {
				return nil, statusError(method, path, e.Status, http.StatusText(e.Status))
			}
			return []byte(e.Body), nil
		}
		if o.held > o.socket.limit {
			return nil, ErrQueueFull
		}
		if len(messages) > 0 {
			continue
		}
		select {
		case <-o.socket.wake:
		case <-ctx.Done():
			return nil, fmt.Errorf("ARI %s %s: no answer: %w: %w", method, path, bulkhead.Unavailable, ctx.Err())
		}
	}
}

// putBack puts messages before those that came since.
func (s *socket) putBack(messages [][]byte) {
	if len(messages) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range messages {
		s.bytes += len(m)
	}
	s.queue = append(messages[:len(messages):len(messages)], s.queue...)
	s.signal()
}

// setFilter asks for the events that a Source needs and no others: of a call,
// 16 instead of 87. It must be set on every connection, since the application
// is forgotten with its WebSocket.
func setFilter(ctx context.Context, c caller, app string) error {
	type allowed struct {
		Type string `json:"type"`
	}
	var filter struct {
		Allowed []allowed `json:"allowed"`
	}
	// The filter holds back even what Asterisk says of the connection itself.
	for _, typ := range []string{typeCreated, typeState, typeDial, typeHangup, typeDestroyed, typeReplaced, typeRegistered, typeResponse} {
		filter.Allowed = append(filter.Allowed, allowed{typ})
	}
	body, err := json.Marshal(filter)
	if err != nil {
		return err
	}
	_, err = c.call(ctx, http.MethodPut, "/applications/"+url.PathEscape(app)+"/eventFilter", nil, body)
	return err
}

// checkApp asks whether the application is there; errAppGone if it is not.
func checkApp(ctx context.Context, c caller, app string) error {
	_, err := c.call(ctx, http.MethodGet, "/applications/"+url.PathEscape(app), nil, nil)
	if errors.Is(err, bulkhead.NotFound) {
		return fmt.Errorf("%w: %w", errAppGone, err)
	}
	return err
}

// start returns a text that changes with every start of Asterisk.
func start(ctx context.Context, c caller) (string, error) {
	body, err := c.call(ctx, http.MethodGet, "/asterisk/info", nil, nil)
	if err != nil {
		return "", err
	}
	var info struct {
		System struct {
			EntityID string `json:"entity_id"`
		} `json:"system"`
		Status struct {
			Started string `json:"startup_time"`
		} `json:"status"`
	}
	if _, err := lenient(body, &info); err != nil || info.Status.Started == "" {
		return "", fmt.Errorf("ARI GET /asterisk/info: the answer names no startup_time, so a restart could not be noticed: %w", bulkhead.Invalid)
	}
	return text(info.System.EntityID + " " + info.Status.Started), nil
}

// answeredAt asks when a live channel was answered. Only a channel that calls
// has a CDR of its own; any other answer is the zero time.
func answeredAt(ctx context.Context, c caller, id string) (time.Time, error) {
	body, err := c.call(ctx, http.MethodGet, "/channels/"+url.PathEscape(id)+"/variable", url.Values{"variable": {"CDR(answer,u)"}}, nil)
	if err != nil {
		return time.Time{}, err
	}
	var v struct {
		Value string `json:"value"`
	}
	if _, err := lenient(body, &v); err != nil {
		return time.Time{}, fmt.Errorf("ARI GET CDR(answer,u): %w: %w", bulkhead.Invalid, err)
	}
	return epoch(v.Value), nil
}

// epoch reads seconds since 1970 with a fraction, such as 1795396355.841234.
func epoch(s string) time.Time {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f > 0) || f > 253402300799 {
		return time.Time{}
	}
	return time.UnixMicro(int64(math.Round(f * 1e6))).UTC()
}
