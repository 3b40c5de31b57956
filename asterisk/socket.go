package asterisk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	maxMessage = 32 << 20 // bytes of one WebSocket message; an event has about 1 kB, a list of channels that much a channel
	maxAnswer  = 32 << 20 // bytes of an answer over HTTP
)

// ErrQueueFull ends a connection whose events could not be taken in time:
// Config.QueueBytes of them were waiting. The connection is ended rather than
// single events left out, so that a gap is never silent.
var ErrQueueFull = fmt.Errorf("the queue of received events is full: %w", bulkhead.Unavailable)

// ErrReplaced ends a connection after another listener took its application.
var ErrReplaced = fmt.Errorf("another listener took the ARI application (ApplicationReplaced): "+
	"give every event bridge an application name of its own: %w", bulkhead.Conflict)

// socket is one WebSocket of ARI. Its reader goroutine always drains it, and
// its pinger tries it. Close joins both.
type socket struct {
	ws     *websocket.Conn
	limit  int
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // capacity 1: there is something new

	mu    sync.Mutex
	queue [][]byte
	bytes int
	heard time.Time // of the last message
	alive bool      // a pong came since the last time that somebody looked
	err   error     // why the connection is over
}

func newSocket(ctx context.Context, ws *websocket.Conn, limit int, ping time.Duration) *socket {
	ctx, cancel := context.WithCancel(ctx)
	s := &socket{ws: ws, limit: limit, ctx: ctx, cancel: cancel, wake: make(chan struct{}, 1)}
	ws.SetReadLimit(maxMessage)
	s.wg.Add(2)
	go s.read(ctx)
	go s.ping(ctx, ping)
	return s
}

// read drains the socket until it ends.
func (s *socket) read(ctx context.Context) {
	defer s.wg.Done()
	for {
		kind, b, err := s.ws.Read(ctx)
		switch {
		case websocket.CloseStatus(err) == websocket.StatusNormalClosure, websocket.CloseStatus(err) == websocket.StatusGoingAway:
			err = fmt.Errorf("the switch closed the connection: %w: %w", bulkhead.Unavailable, err)
		case err != nil:
			err = fmt.Errorf("read: %w: %w", bulkhead.Unavailable, err)
		case kind == websocket.MessageText:
			err = s.push(b)
		}
		if err != nil {
			s.end(err)
			return
		}
	}
}

func (s *socket) push(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes+len(b) > s.limit && len(s.queue) > 0 {
		return ErrQueueFull
	}
	s.bytes += len(b)
	s.queue = append(s.queue, b)
	s.heard = time.Now()
	s.signal()
	return nil
}

// ping tries the connection every so often. Asterisk answers pings also while
// nothing happens, so silence is a broken connection. Where events are behind,
// the answer waits behind them: then they show that the connection works.
func (s *socket) ping(ctx context.Context, every time.Duration) {
	defer s.wg.Done()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		wait, cancel := context.WithTimeout(ctx, pongWait)
		err := s.ws.Ping(wait)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil && errors.Is(err, context.DeadlineExceeded) && s.heardSince(pongWait) {
			continue
		}
		if err != nil {
			s.end(fmt.Errorf("no answer to a ping within %s, the connection is half-open: %w: %w", pongWait, bulkhead.Unavailable, err))
			return
		}
		s.mu.Lock()
		s.alive = true
		s.signal()
		s.mu.Unlock()
	}
}

// heardSince tells whether a message came within the last d.
func (s *socket) heardSince(d time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.heard) < d
}

// signal wakes whoever takes. The lock is held.
func (s *socket) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end records why the connection is over; the first reason stays.
func (s *socket) end(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.signal()
	s.mu.Unlock()
	s.cancel()
	_ = s.ws.CloseNow() // it is over in any case
}

// take returns everything that is there without waiting: messages, whether a
// pong came, and, once the messages are used up, why the connection is over.
func (s *socket) take() (messages [][]byte, alive bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	messages, alive = s.queue, s.alive
	s.queue, s.bytes, s.alive = nil, 0, false
	if len(messages) == 0 {
		err = s.err
	}
	return messages, alive, err
}

// send writes a text message.
func (s *socket) send(ctx context.Context, b []byte) error {
	if err := s.ws.Write(ctx, websocket.MessageText, b); err != nil {
		return fmt.Errorf("write: %w: %w", bulkhead.Unavailable, err)
	}
	return nil
}

// close ends the connection and joins its goroutines.
func (s *socket) close() {
	s.end(errors.New("closed"))
	s.wg.Wait()
}

// isResponse tells cheaply whether a message may be the answer to a request.
func isResponse(b []byte) bool { return bytes.Contains(b, []byte(`"`+typeResponse+`"`)) }
