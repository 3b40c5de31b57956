package registry

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	// feedWrite is how long a follower may take to read what was sent.
	feedWrite = 10 * time.Second
	// feedRecheck is how often a running feed's token is looked at again.
	feedRecheck = 400 * time.Millisecond
)

// ServeHTTP serves one follower: GET with a Bearer token, and in the query
// "after" and "line", the revision that the follower has, and "cell", to see
// one cell only. A node's or SBC's token opens its own cell while the node or
// SBC is in it, an admin's everything; nobody else's does, since digest secrets
// are in it. The answer is application/x-ndjson and does not end by itself. It
// ends within a second after the token was revoked, or its node or SBC left.
func (f *Feed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		f.refuse(w, http.StatusMethodNotAllowed, "urn:bulkhead:method", "the feed is read with GET")
		return
	}
	secret, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	t, err := f.store.Tokens.Authenticate(r.Context(), secret)
	switch {
	case errors.Is(err, ErrRevoked):
		w.Header().Set("WWW-Authenticate", "Bearer")
		f.refuse(w, http.StatusUnauthorized, typeRevoked, "the token was revoked")
		return
	case errors.Is(err, bulkhead.Denied):
		w.Header().Set("WWW-Authenticate", "Bearer")
		f.refuse(w, http.StatusUnauthorized, "urn:bulkhead:unauthorized", "send a token that is good: Authorization: Bearer bh_...")
		return
	case err != nil:
		f.refuse(w, http.StatusServiceUnavailable, "urn:bulkhead:unavailable", "the tokens cannot be looked at now")
		return
	}
	cell, ok := feedScope(&t, bulkhead.CellID(r.URL.Query().Get("cell")))
	if !ok {
		f.refuse(w, http.StatusForbidden, "urn:bulkhead:forbidden", "the token does not open this feed: use one of a node or an SBC of the cell, or an admin's")
		return
	}
	c, err := f.enter(cell, t.ID)
	if err == nil {
		defer f.leave(c, t.ID)
		if err = f.left(&t); err != nil {
			f.refuse(w, http.StatusForbidden, "urn:bulkhead:forbidden", err.Error())
			return
		}
	}
	if err != nil {
		w.Header().Set("Retry-After", "1")
		f.refuse(w, http.StatusServiceUnavailable, "urn:bulkhead:unavailable", err.Error())
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	s := newFeedStream(w, r)
	var checking sync.WaitGroup
	defer checking.Wait()
	defer cancel()
	checking.Go(func() { f.recheck(ctx, secret, &t, func() { cancel(); s.abort() }) })
	if err := f.serve(ctx, s, c, askedMark(r)); err != nil && ctx.Err() == nil {
		f.log.Info("a follower of the feed is gone", "token", t.ID, "node", t.Node, "err", err)
	}
}

// feedScope returns the cell that a token may follow; empty: all.
func feedScope(t *Token, asked bulkhead.CellID) (bulkhead.CellID, bool) {
	switch t.Scope {
	case ScopeAdmin:
		return asked, true
	case ScopeNode, ScopeSBC:
		return t.Cell, t.Cell != "" && (asked == "" || asked == t.Cell)
	}
	return "", false
}

// left returns why a token does not open its cell any more: the node or SBC
// that it was made for is not there.
func (f *Feed) left(t *Token) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var what string
	var there bool
	var cell bulkhead.CellID
	switch t.Scope {
	case ScopeNode:
		what = fmt.Sprintf("node %q", t.Node)
		if n := f.frame.Nodes[t.Node]; n != nil && f.frame.Pools[n.Pool] != nil {
			there, cell = true, f.frame.Pools[n.Pool].Cell
		}
	case ScopeSBC:
		what = fmt.Sprintf("SBC %q", t.SBC)
		if b := f.frame.SBCs[t.SBC]; b != nil {
			there, cell = true, b.Cell
		}
	default:
		return nil
	}
	switch {
	case !there:
		return fmt.Errorf("%s, whose token this is, is not in the registry: %w", what, bulkhead.Denied)
	case cell != t.Cell:
		return fmt.Errorf("the token is for %s in cell %q, and it is in cell %q: make another token for it: %w", what, t.Cell, cell, bulkhead.Denied)
	}
	return nil
}

// askedMark is what the follower says that it has. What it has not said
// right, it has not.
func askedMark(r *http.Request) mark {
	q := r.URL.Query()
	n, err := strconv.ParseUint(q.Get("after"), 10, 63)
	if err != nil || q.Get("line") == "" {
		return mark{}
	}
	return mark{bulkhead.RevisionNumber(n), line(q.Get("line"))}
}

// typeRevoked is the type of the problem that tells a token's holder that it
// was revoked, and not only unknown to a server that lost its tokens.
const typeRevoked = "urn:bulkhead:revoked"

// feedProblem is an answer to who may not follow.
type feedProblem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

func (f *Feed) refuse(w http.ResponseWriter, status int, kind, detail string) {
	f.metrics.refused.Inc()
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(feedProblem{kind, http.StatusText(status), status, detail}) // it may be gone
}

// recheck calls end when the token is worth nothing any more. A store that
// does not answer is no reason.
func (f *Feed) recheck(ctx context.Context, secret string, t *Token, end func()) {
	tick := time.NewTicker(feedRecheck)
	defer tick.Stop()
	for {
		select {
		case <-f.ended:
			end()
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := f.left(t); err != nil {
			f.log.Info("a follower's feed is ended", "token", t.ID, "err", err)
			end()
			return
		}
		soon, cancel := context.WithTimeout(ctx, feedRecheck)
		_, err := f.store.Tokens.Authenticate(soon, secret)
		cancel()
		if errors.Is(err, bulkhead.Denied) {
			end()
			return
		}
	}
}

// serve sends what there is, and waits, until something fails.
func (f *Feed) serve(ctx context.Context, s *feedStream, c *feedCell, at mark) error {
	idle := time.NewTicker(feedHeartbeat)
	defer idle.Stop()
	// No follower has a revision 0 without a line: it always gets a snapshot.
	fresh := at == mark{}
	var keys []byte // the line that was sent last
	for said := false; ; said = true {
		lines, to, lost, wake := f.news(c, at)
		now, otherKeys, err := f.keysLine(c.id)
		if err != nil {
			return err
		}
		switch {
		case lost || fresh:
			m, err := f.sendSnapshot(s, c)
			if err != nil {
				return err
			}
			at, fresh = m, false
			continue
		case len(lines) > 0:
			if err := s.send(lines...); err != nil {
				return err
			}
			at = to
			continue
		case now != nil && !bytes.Equal(now, keys):
			if err := s.send(now); err != nil {
				return err
			}
			keys = now
			continue
		}
		if said {
			select {
			case <-ctx.Done():
				return nil
			case <-wake:
				continue
			case <-otherKeys:
				continue
			case <-idle.C:
			}
		}
		text, err := encodeLine(feedLine{Type: lineHeartbeat, Revision: at.number})
		if err == nil {
			err = s.send(text)
		}
		if err != nil {
			return err
		}
	}
}

// keysLine returns the line of a cell's keys, nil if they are not known yet
// or the registry is empty, and what is closed when there may be others.
func (f *Feed) keysLine(cell bulkhead.CellID) ([]byte, <-chan struct{}, error) {
	list, known, changed := f.keys.next()
	if !known || f.last() == 0 {
		return nil, changed, nil
	}
	list = keysIn(list, cell)
	text, err := encodeLine(feedLine{Type: lineKeys, Keys: &list})
	return text, changed, err
}

func (f *Feed) sendSnapshot(s *feedStream, c *feedCell) (mark, error) {
	f.metrics.snapshots.Inc()
	encoded, large, err := f.snapshot(c)
	if err != nil {
		return mark{}, err
	}
	if encoded != nil {
		return encoded.mark, s.send(encoded.lines...)
	}
	for text, err := range encodeSnapshot(*large) {
		if err == nil {
			err = s.send(text)
		}
		if err != nil {
			return mark{}, err
		}
	}
	return mark{large.state.Revision, large.line}, nil
}

// feedStream writes lines to one follower.
type feedStream struct {
	to   *http.ResponseController
	w    http.ResponseWriter
	gzip *gzip.Writer // nil: the follower wants none

	mu      sync.Mutex
	aborted bool
}

func newFeedStream(w http.ResponseWriter, r *http.Request) *feedStream {
	s := &feedStream{to: http.NewResponseController(w), w: w}
	// The server's own limits are for requests that end.
	_ = s.to.SetReadDeadline(time.Time{}) // a server without it has none
	h := w.Header()
	h.Set("Content-Type", "application/x-ndjson")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // for a reverse proxy that would collect lines
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		s.gzip, _ = gzip.NewWriterLevel(w, gzip.BestSpeed) // the level exists
	}
	return s
}

// abort ends a write that is under way, and all that would follow.
func (s *feedStream) abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aborted = true
	_ = s.to.SetWriteDeadline(time.Unix(1, 0)) // long ago
}

func (s *feedStream) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted {
		return errors.New("the feed was ended")
	}
	if err := s.to.SetWriteDeadline(time.Now().Add(feedWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// send writes lines and sees that they leave.
func (s *feedStream) send(lines ...[]byte) error {
	for _, text := range lines {
		if err := s.begin(); err != nil {
			return err
		}
		var err error
		if s.gzip != nil {
			_, err = s.gzip.Write(text)
		} else {
			_, err = s.w.Write(text)
		}
		if err != nil {
			return err
		}
	}
	if s.gzip != nil {
		if err := s.gzip.Flush(); err != nil {
			return err
		}
	}
	return s.to.Flush()
}
