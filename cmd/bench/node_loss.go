package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	lossNodes  = 6
	lossRounds = 10 // of lossNodes-1 nodes each
	lossRate   = 60 // calls a second, over all nodes
	// lossQuiet is how long no INVITE must have come to be the last.
	lossQuiet = 1200 * time.Millisecond
	// lossBar is within how many seconds a dead node must be left alone (P20).
	lossBar = 2
)

// nodeLoss kills nodes with SIGKILL in the middle of calls and times the last
// call that Kamailio still sends each of them first.
func nodeLoss(ctx context.Context) (_ []figure, err error) {
	c, err := startCell(ctx, lossNodes, 0, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	var seconds []float64
	placed, lost := 0, 0
	for i := range lossRounds {
		lasts, calls, err := c.lose(ctx, fmt.Sprintf("loss-%d", i))
		if err != nil {
			return nil, fmt.Errorf("round %d: %w", i, err)
		}
		seconds = append(seconds, lasts...)
		placed += len(calls)
		lost += failed(calls)
	}
	runs := len(seconds)
	worst := p99(seconds)
	return []figure{
		{name: "node_loss", value: worst, unit: "s", ratio: worst / lossBar, bar: bar{"<=", 1.0}},
		{name: "node_loss_p50", value: median(seconds), unit: "s"},
		{name: "node_loss_runs", value: float64(runs), unit: "kills"},
		{name: "node_loss_failed", value: float64(lost), unit: fmt.Sprintf("of_%d_calls", placed)},
	}, nil
}

// lose starts the nodes that are not there, and kills all but the last, one
// after another. It returns how long after its death, in seconds, each of them
// was sent the last call, and all calls of the round.
func (c *cell) lose(ctx context.Context, name string) (lasts []float64, calls []called, err error) {
	for _, n := range c.nodes {
		if n.child == nil {
			if err := n.start(); err != nil {
				return nil, nil, err
			}
		}
	}
	stop, err := c.dispatch(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer stop()
	k, err := c.call(ctx, 0, lossRate, name)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		var e error
		calls, e = k.finish()
		err = errors.Join(err, e)
	}()
	for _, victim := range c.nodes[:lossNodes-1] {
		if err := until(ctx, 10*time.Second, func() error { return k.answeredBy(victim.SIP, 5) }); err != nil {
			return nil, nil, err
		}
		time.Sleep(rand.N(time.Second)) // anywhere between two pings
		victim.child.kill()
		killed := time.Now()
		victim.child = nil
		h, err := openHole(victim.SIP)
		if err != nil {
			return nil, nil, err
		}
		defer h.close()
		var last time.Duration
		err = until(ctx, 30*time.Second, func() error {
			last = h.lastOf(k, killed)
			if quiet := time.Since(killed) - last; quiet < lossQuiet {
				return fmt.Errorf("an INVITE came %s ago", quiet)
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
		lasts = append(lasts, last.Seconds())
	}
	return lasts, nil, nil
}

// answeredBy returns nil when so many calls were answered at addr.
func (k *cellCallers) answeredBy(addr string, want int) error {
	n := 0
	for _, p := range k.soFar() {
		if p.node == addr {
			n++
		}
	}
	if n < want {
		return fmt.Errorf("node %s answered %d calls, want %d", addr, n, want)
	}
	return nil
}

// hole takes the place of a node that was killed. Nothing answers there, and
// nothing says that the port is closed, as with a host that is gone: this is
// the longest that a death can go unnoticed.
type hole struct {
	conn net.PacketConn
	done chan struct{}

	mu    sync.Mutex
	first map[string]time.Time // when the first INVITE of a call came, by Call-ID
}

func openHole(addr string) (*hole, error) {
	conn, err := net.ListenPacket("udp4", addr)
	if err != nil {
		return nil, fmt.Errorf("take the place of a killed node: %w", err)
	}
	h := &hole{conn: conn, done: make(chan struct{}), first: map[string]time.Time{}}
	go h.read()
	return h, nil
}

func (h *hole) read() {
	defer close(h.done)
	buf := make([]byte, 64<<10)
	for {
		n, _, err := h.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(buf[:n], []byte("INVITE ")) {
			continue
		}
		_, rest, _ := strings.Cut(string(buf[:n]), "\r\nCall-ID: ")
		id, _, _ := strings.Cut(rest, "\r\n")
		h.mu.Lock()
		if h.first[id].IsZero() {
			h.first[id] = time.Now()
		}
		h.mu.Unlock()
	}
}

// lastOf returns how long after killed the last call came here that was begun
// since then: of others only a repetition may have been seen.
func (h *hole) lastOf(k *cellCallers, killed time.Time) (last time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, at := range h.first {
		if k.begunBy(id).Before(killed) {
			continue
		}
		last = max(last, at.Sub(killed))
	}
	return last
}

func (h *hole) close() {
	_ = h.conn.Close() // nothing is buffered
	<-h.done
}
