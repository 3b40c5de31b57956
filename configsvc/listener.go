package configsvc

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// peerListener bounds the connections that one address may hold.
type peerListener struct {
	net.Listener
	limit   int
	refused prometheus.Counter

	mu   sync.Mutex
	open map[netip.Addr]int
}

func newPeerListener(l net.Listener, limit int, refused prometheus.Counter) *peerListener {
	return &peerListener{Listener: l, limit: limit, refused: refused, open: map[netip.Addr]int{}}
}

// Accept closes at once what is over the limit.
func (l *peerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := c.RemoteAddr().(*net.TCPAddr)
		if !ok {
			return c, nil
		}
		peer := tcp.AddrPort().Addr().Unmap()
		if l.take(peer) {
			return &peerConn{Conn: c, listener: l, peer: peer}, nil
		}
		l.refused.Inc()
		c.Close()
	}
}

func (l *peerListener) take(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[peer] >= l.limit {
		return false
	}
	l.open[peer]++
	return true
}

func (l *peerListener) free(peer netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[peer]--; l.open[peer] <= 0 {
		delete(l.open, peer)
	}
}

type peerConn struct {
	net.Conn
	listener *peerListener
	peer     netip.Addr
	closed   atomic.Bool
}

// Close gives the peer's place back, once.
func (c *peerConn) Close() error {
	if !c.closed.Swap(true) {
		c.listener.free(c.peer)
	}
	return c.Conn.Close()
}
