package kamailio

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	// maxInFlight is how many calls may wait for an answer: Kamailio drops
	// answers when more than 10 lie unread.
	maxInFlight = 8
	// maxAnswer is above the largest answer that Kamailio sends (about 128 KiB).
	maxAnswer = 160 << 10
	// callTimeout bounds one call whose ctx says nothing shorter.
	callTimeout = 3 * time.Second
	// reloadTimeout is callTimeout for htable.reload and dispatcher.reload,
	// which take a second for 100,000 rows or sets.
	reloadTimeout = 20 * time.Second
)

// noMethod is what Kamailio says to a method of a module that is not loaded.
const noMethod = "Method Not Found"

// RPCError is Kamailio's own refusal of a call.
type RPCError struct {
	Method  string
	Code    int // as HTTP has them; mostly 500
	Message string
}

func (e *RPCError) Error() string {
	return fmt.Sprintf("kamailio refused %s: %d %s", e.Method, e.Code, e.Message)
}

// Unwrap returns bulkhead.NotFound for a key or method that does not exist,
// else bulkhead.Conflict.
func (e *RPCError) Unwrap() error {
	if e.Code == 404 || e.Message == "Key name doesn't exist in htable." || e.Message == noMethod {
		return bulkhead.NotFound
	}
	return bulkhead.Conflict
}

// Client speaks JSON-RPC with the Kamailio whose files are in one folder, and
// keeps those files. It is safe for concurrent use; Close ends it.
type Client struct {
	dir     string
	sockets string // folder of our sockets
	rpc     string // Kamailio's socket
	log     *slog.Logger
	metrics *metrics
	slots   chan *slot
	serial  atomic.Uint64
	closed  atomic.Bool

	mu    sync.Mutex // one Apply or Verify at a time
	lock  *os.File   // held from Lock or the first Apply on
	file  *tableFile // opened by the first Apply or Verify
	since string     // when Kamailio last started, in its own words
	// clean names the sides whose memory is known to equal the file.
	clean map[side]bool
	// pretty says that Kamailio breaks its answers into lines (pretty_format of
	// jsonrpcs, as in Debian's kamailio.cfg), which makes them longer.
	pretty bool
	// listStale says that Kamailio may not have loaded the dispatcher list.
	listStale bool
	// out are the targets that were told to take no calls, by their states.
	out map[placed]string
}

// slot is the right to have one call in flight, and its socket once there is one.
type slot struct {
	conn *net.UnixConn
	path string
	buf  []byte
}

type metrics struct {
	calls   *prometheus.CounterVec
	applies *prometheus.CounterVec
	seconds prometheus.Histogram
	drift   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_kamailio_rpc_total", Help: "JSON-RPC calls to Kamailio by result (ok, refused, unavailable).",
		}, []string{"result"}),
		applies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_kamailio_applies_total", Help: "Tables written, by way (keys, reload) or error.",
		}, []string{"way"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "bulkhead_kamailio_apply_seconds", Help: "Time to write the tables and switch to them.",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 2, 5, 10, 30},
		}),
		drift: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_kamailio_differences_total", Help: "Differences found between what Kamailio holds and what it should hold.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.calls, m.applies, m.seconds, m.drift} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of a Kamailio client: %w", err)
		}
	}
	return m, nil
}

// New returns a client of the Kamailio whose files Params.Write has put into
// dir. Nothing is opened yet, and Kamailio need not run.
func New(dir string, log *slog.Logger, reg prometheus.Registerer) (*Client, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("client of the Kamailio in %s: %w", dir, err)
	}
	sockets, err := runtimeOf(dir)
	if err != nil {
		return nil, err
	}
	rpc, err := rpcOf(dir, sockets)
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Client{dir: dir, sockets: sockets, rpc: rpc, log: log, metrics: m, slots: make(chan *slot, maxInFlight), clean: map[side]bool{}}
	for range maxInFlight {
		c.slots <- &slot{}
	}
	removeOrphans(sockets)
	return c, nil
}

// removeOrphans removes the sockets of clients that were killed.
func removeOrphans(dir string) {
	paths, _ := filepath.Glob(filepath.Join(dir, "c*.sock")) // the pattern is right
	for _, p := range paths {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(p), "c"), "-")
		if n, err := strconv.Atoi(pid); err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			_ = os.Remove(p) // another client may have been faster
		}
	}
}

// Close waits for the calls in flight, each of which is bounded, and removes
// what the client opened. A second Close does nothing.
func (c *Client) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	for range maxInFlight {
		(<-c.slots).close()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	if c.file != nil {
		errs = append(errs, c.file.db.Close())
		c.file = nil
	}
	if c.lock != nil {
		errs = append(errs, c.lock.Close())
		c.lock = nil
	}
	return errors.Join(errs...)
}

// Lock makes this client the only writer of its Kamailio's tables until Close,
// as the first Apply does. Where another one is already the error is of kind
// bulkhead.Conflict. A client that only asks and verifies needs no Lock.
func (c *Client) Lock() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.takeLock()
}

// takeLock keeps a second writer out. The lock is held.
func (c *Client) takeLock() error {
	if c.lock != nil {
		return nil
	}
	// Not the table file itself: closing any descriptor of it would drop
	// SQLite's own locks.
	f, err := os.OpenFile(filepath.Join(c.dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the lock of the tables in %s: %w", c.dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0) // only for the message
		return fmt.Errorf("another dispatcher (process %s) writes the tables in %s: stop one of them: %w: %w",
			cmp.Or(strings.TrimSpace(string(pid[:n])), "unknown"), c.dir, bulkhead.Conflict, errors.Join(err, f.Close()))
	}
	// For the message above alone, so that a failure does not matter.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	c.lock = f
	return nil
}

// Call asks Kamailio and returns the result. Its errors are *RPCError when
// Kamailio refused, and of kind bulkhead.Unavailable when it did not answer
// in time (3 s, or what ctx leaves) or is not there.
func (c *Client) Call(ctx context.Context, method string, params ...any) (json.RawMessage, error) {
	timeout := callTimeout
	if strings.HasSuffix(method, ".reload") {
		timeout = reloadTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var s *slot
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("call %s: %d calls are in flight: %w: %w", method, maxInFlight, bulkhead.Unavailable, ctx.Err())
	case s = <-c.slots:
	}
	defer func() { c.slots <- s }()
	result, err := c.exchange(ctx, s, method, params)
	switch {
	case err == nil:
		c.metrics.calls.WithLabelValues("ok").Inc()
	case errors.As(err, new(*RPCError)):
		c.metrics.calls.WithLabelValues("refused").Inc()
	default:
		// What may still come in belongs to a call that is over.
		s.close()
		c.metrics.calls.WithLabelValues("unavailable").Inc()
		err = fmt.Errorf("call %s at %s, the socket of the Kamailio in %s: %w: %w", method, c.rpc, c.dir, bulkhead.Unavailable, why(err))
	}
	return result, err
}

// why is err without the path of our own socket, which is another one each
// time, and with what to look at.
func why(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err
	}
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: it does not run, or its jsonrpcs module has another dgram_socket", err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: it is stuck, or its user may not enter the folder, where the answer goes", err)
	}
	return err
}

type request struct {
	Version string `json:"jsonrpc"`
	Method  string `json:"method"`
	ID      uint64 `json:"id"`
	Params  []any  `json:"params,omitempty"`
}

func (c *Client) exchange(ctx context.Context, s *slot, method string, params []any) (json.RawMessage, error) {
	id, err := newID()
	if err != nil {
		return nil, err
	}
	msg, err := json.Marshal(request{"2.0", method, id, params})
	if err != nil {
		return nil, err
	}
	if err := c.send(ctx, s, msg); err != nil {
		return nil, err
	}
	// Every wait ends with ctx: by its deadline, or when it is cancelled. It may
	// do so while an answer comes: the socket would then end a call to come.
	conn := s.conn
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			s.close()
		}
	}()
	for {
		n, err := conn.Read(s.buf)
		if err != nil {
			return nil, err
		}
		if n == len(s.buf) {
			return nil, fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
		}
		if result, ours, err := decodeAnswer(method, id, s.buf[:n]); ours {
			return result, err
		}
	}
}

// newID returns a number that nobody else on the host can guess, so that only
// Kamailio can answer the call.
func newID() (uint64, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b[:]) >> 12, nil // exact in any JSON reader
}

// send writes msg, over a new socket if Kamailio made itself a new one.
func (c *Client) send(ctx context.Context, s *slot, msg []byte) error {
	for try := 0; ; try++ {
		if s.conn == nil {
			if err := c.dial(s); err != nil {
				return err
			}
		}
		deadline, _ := ctx.Deadline()
		if err := s.conn.SetDeadline(deadline); err != nil {
			return err
		}
		_, err := s.conn.Write(msg)
		if err == nil || try > 0 {
			return err
		}
		s.close()
	}
}

func (c *Client) dial(s *slot) error {
	path := filepath.Join(c.sockets, fmt.Sprintf("c%d-%p-%d.sock", os.Getpid(), c, c.serial.Add(1)))
	conn, err := net.DialUnix("unixgram",
		&net.UnixAddr{Name: path, Net: "unixgram"},
		&net.UnixAddr{Name: c.rpc, Net: "unixgram"})
	if err != nil {
		_ = os.Remove(path) // bound, but not connected
		return err
	}
	s.conn, s.path = conn, path
	// Kamailio may be of another user. Others are kept out by the folder, and
	// do not know what an answer must say.
	if err := os.Chmod(path, 0o666); err != nil {
		s.close()
		return err
	}
	if s.buf == nil {
		s.buf = make([]byte, maxAnswer)
	}
	return nil
}

func (s *slot) close() {
	if s.conn != nil {
		_ = s.conn.Close() // a datagram socket has nothing left to say
		_ = os.Remove(s.path)
		s.conn = nil
	}
}

// decodeAnswer reads one datagram. ours is false for anything that is not
// the answer to call id.
func decodeAnswer(method string, id uint64, b []byte) (result json.RawMessage, ours bool, err error) {
	var a struct {
		ID     *uint64         `json:"id"`
		Result json.RawMessage `json:"result"`
		Error  *struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(b, &a); err != nil || a.ID == nil || *a.ID != id {
		return nil, false, nil
	}
	if a.Error != nil {
		return nil, true, &RPCError{Method: method, Code: a.Error.Code, Message: a.Error.Message}
	}
	return a.Result, true, nil
}

// call asks and decodes the result into out.
func (c *Client) call(ctx context.Context, out any, method string, params ...any) error {
	b, err := c.Call(ctx, method, params...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("answer of kamailio to %s: %w", method, err)
	}
	return nil
}

// Version returns Kamailio's own words for its version, such as
// "kamailio 5.6.3 (x86_64/linux)".
func (c *Client) Version(ctx context.Context) (string, error) {
	var v string
	err := c.call(ctx, &v, "core.version")
	return strings.TrimSpace(v), err
}

// Counters returns the counters of kamailio.cfg by name, such as
// refused_domain or failovers: since Kamailio's start.
func (c *Client) Counters(ctx context.Context) (map[string]int64, error) {
	var raw map[string]string
	if err := c.call(ctx, &raw, "stats.fetch", "script:"); err != nil {
		return nil, err
	}
	out := make(map[string]int64, len(raw))
	for k, v := range raw {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("counter %s of kamailio: %w", k, err)
		}
		out[strings.TrimPrefix(k, "script.")] = n
	}
	return out, nil
}
