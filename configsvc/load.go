package configsvc

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/internal/hostload"
)

const (
	// readLoadEvery is how often the host is looked at, and countEvery how often
	// the PBX is asked for its counts.
	readLoadEvery = 250 * time.Millisecond
	countEvery    = time.Second
	countTimeout  = 900 * time.Millisecond
	// countStale is how old a PBX's counts may be to be told.
	countStale = 5 * time.Second
)

// Counter asks a PBX for its counts. It is called by one goroutine.
type Counter interface {
	Count(ctx context.Context) (bulkhead.PBXLoad, error)
}

// Load knows how busy a node is and tells it at /load.
type Load struct {
	node    bulkhead.NodeID
	sampler *hostload.Sampler
	counter Counter // nil: the PBX is not asked
	log     *slog.Logger

	mu      sync.Mutex
	pbx     *bulkhead.PBXLoad
	pbxErr  string
	counted time.Time
}

// NewLoad returns a Load that has not begun. pid returns the PBX's process, 0
// for the whole host.
func NewLoad(node bulkhead.NodeID, pid func() int, counter Counter, log *slog.Logger) *Load {
	return &Load{node: node, sampler: hostload.NewSampler(hostload.NewReader(pid), readLoadEvery), counter: counter, log: log}
}

// Run reads until ctx ends.
func (l *Load) Run(ctx context.Context) error {
	if l.counter == nil {
		return l.sampler.Run(ctx)
	}
	var counting sync.WaitGroup
	defer counting.Wait()
	counting.Go(func() { l.count(ctx) })
	return l.sampler.Run(ctx)
}

func (l *Load) count(ctx context.Context) {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, countTimeout)
		pbx, err := l.counter.Count(bounded)
		cancel()
		if ctx.Err() != nil {
			return
		}
		l.keep(pbx, err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keep keeps counts, or why there are none. What was counted last is told on
// for a while: one late answer is no dead PBX.
func (l *Load) keep(pbx bulkhead.PBXLoad, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if err == nil {
		if l.pbxErr != "" {
			l.log.Info("the PBX answers for its counts again")
		}
		l.pbx, l.pbxErr, l.counted = &pbx, "", now
		return
	}
	if l.pbx != nil && now.Sub(l.counted) < countStale {
		return
	}
	if l.pbxErr == "" {
		l.log.Warn("the PBX does not answer for its counts", "error", err)
	}
	l.pbx, l.pbxErr = nil, err.Error()
}

// Now returns the load. The error says why there is none.
func (l *Load) Now() (bulkhead.NodeLoad, error) {
	u, at, err := l.sampler.Last()
	if err != nil {
		return bulkhead.NodeLoad{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return bulkhead.NodeLoad{
		Node: l.node, Time: at, Group: u.Group, CPU: u.CPU, Steal: u.Steal, SoftIRQ: u.SoftIRQ, Throttled: u.Throttled,
		Pressure: u.Pressure, UDPErrors: u.UDPErrors, NICDrops: u.NICDrops, PBX: l.pbx, PBXError: l.pbxErr,
	}, nil
}

// Handler serves GET /load to whoever asks from this host, and to an SBC that
// shows its id and token by HTTP Basic.
func (l *Load) Handler(isSBC func(id, password string) bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /load", func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !from.Addr().Unmap().IsLoopback() {
			if id, password, ok := r.BasicAuth(); !ok || !isSBC(id, password) {
				w.Header().Set("WWW-Authenticate", "Basic")
				http.Error(w, "send the id and the token of an SBC of this node's cell by HTTP Basic", http.StatusUnauthorized)
				return
			}
		}
		load, err := l.Now()
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		body, err := json.Marshal(load)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(append(body, '\n')) // the asker is gone: nobody is left to tell
	})
	return mux
}
