package stream

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/bulkhead-voip/bulkhead/internal/spool"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func TestMain(m *testing.M) {
	redis.SetLogger(silent{}) // it reports every failed dial
	goleak.VerifyTestMain(m)
}

const testStream = "test:c1:cdr"

func client(t testing.TB, o Options) *Client {
	t.Helper()
	c, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// until waits for a condition for up to 30 s, and fails with what it last said.
func until(t testing.TB, what string, ok func() string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		last := ok()
		if last == "" {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited too long for: %s: %s", what, last)
		}
	}
}

// store is the place that a record is to reach: what a warehouse is.
type store struct {
	mu   sync.Mutex
	seen map[string]int // how often
}

func (s *store) add(payloads [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range payloads {
		s.seen[string(p)]++
	}
}

func (s *store) count() (records, deliveries int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.seen {
		deliveries += n
	}
	return len(s.seen), deliveries
}

// writer is one spool with its forwarder.
type writer struct {
	t    testing.TB
	name string
	dir  string
	cfg  ForwarderConfig

	spool  *spool.Spool
	reader *spool.Reader
	f      *Forwarder
	stop   func()
	made   []string
}

// newWriter makes a spool of many small segments. Its forwarder does not run.
func newWriter(t testing.TB, c *Client, name string) *writer {
	t.Helper()
	w := &writer{t: t, name: name, dir: t.TempDir(), cfg: DefaultForwarderConfig()}
	o := spool.DefaultOptions()
	o.SegmentBytes, o.MaxRecord, o.QueueBytes = 16<<10, 4<<10, 1<<20
	var err error
	if w.spool, err = spool.Open(w.dir, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.kill()
		if err := w.spool.Close(); err != nil {
			t.Error(err)
		}
	})
	w.cfg.Client, w.cfg.Stream, w.cfg.Writer = c, testStream, name
	w.cfg.Groups = []string{"main"}
	w.cfg.BatchSize, w.cfg.Every = 50, 10*time.Millisecond
	w.cfg.Logger = testLog(t)
	return w
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// start starts a forwarder that knows nothing of earlier ones.
func (w *writer) start() {
	w.t.Helper()
	r, err := spool.OpenReader(w.dir, "one", spool.ReaderOptions{Poll: 2 * time.Millisecond})
	if err != nil {
		w.t.Fatal(err)
	}
	w.cfg.Source = r
	f, err := NewForwarder(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	w.reader, w.f = r, f
	w.stop = func() { cancel(); wg.Wait() }
}

// kill ends the forwarder. It may acknowledge nothing more at the spool.
func (w *writer) kill() {
	if w.reader == nil {
		return
	}
	if err := w.reader.Close(); err != nil {
		w.t.Error(err)
	}
	w.stop()
	w.reader = nil
}

// append puts n records of some hundred bytes into the spool.
func (w *writer) append(n int) {
	w.t.Helper()
	var all [][]byte
	for range n {
		p := fmt.Sprintf("%s/%06d/%0*d", w.name, len(w.made), 100+len(w.made)%400, 0)
		w.made = append(w.made, p)
		all = append(all, []byte(p))
	}
	if err := w.spool.Append(w.t.Context(), all...); err != nil {
		w.t.Fatal(err)
	}
}

// arrived waits until every record is in s and the spool is free of them.
func (w *writer) arrived(s *store) {
	w.t.Helper()
	until(w.t, "records of "+w.name+" to arrive and be freed", func() string {
		s.mu.Lock()
		missing := 0
		for _, p := range w.made {
			if s.seen[p] == 0 {
				missing++
			}
		}
		s.mu.Unlock()
		st, err := spool.Look(w.dir)
		if err != nil {
			return err.Error()
		}
		left := st.Readers[0].Behind
		if left > 0 && missing == 0 {
			return fmt.Sprintf("all arrived, %d bytes not acknowledged at the spool", left)
		}
		if left == 0 && missing > 0 {
			w.t.Fatalf("LOST: %d of %d records never arrived, and the spool was told that they had", missing, len(w.made))
		}
		if missing > 0 {
			return fmt.Sprintf("%d of %d missing", missing, len(w.made))
		}
		return ""
	})
}

// reading is a consumer that stores and acknowledges until it is stopped.
type reading struct {
	c    *Consumer
	stop func()
}

// consumerConfig takes over after a second.
func consumerConfig(t testing.TB, c *Client, group, name string) ConsumerConfig {
	cfg := DefaultConsumerConfig()
	cfg.Client, cfg.Stream, cfg.Group, cfg.Consumer, cfg.Claim = c, testStream, group, name, time.Second
	cfg.Logger = testLog(t)
	return cfg
}

func newConsumer(t testing.TB, c *Client, group, name string) *Consumer {
	t.Helper()
	x, err := NewConsumer(consumerConfig(t, c, group, name))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// read starts a consumer. drop, if set, is asked after each batch was stored
// whether to go on without acknowledging it for now.
func read(t testing.TB, c *Client, group, name string, limit int, s *store, drop func() bool) *reading {
	t.Helper()
	return readAs(t, consumerConfig(t, c, group, name), limit, s, drop)
}

func readAs(t testing.TB, cfg ConsumerConfig, limit int, s *store, drop func() bool) *reading {
	t.Helper()
	x, err := NewConsumer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			b, err := x.Read(ctx, limit)
			if err != nil {
				pause(ctx, 20*time.Millisecond)
				continue
			}
			s.add(b.Payloads)
			if drop != nil && drop() {
				continue
			}
			for b.Ack() != nil && ctx.Err() == nil {
				pause(ctx, 20*time.Millisecond)
			}
		}
	})
	r := &reading{c: x, stop: func() { cancel(); wg.Wait() }}
	t.Cleanup(r.stop)
	return r
}

// rig is a Redis with a client.
func rig(t testing.TB, options ...string) (*testenv.RedisServer, *Client) {
	t.Helper()
	r := testenv.StartRedis(t, options...)
	return r, client(t, Options{Addrs: []string{r.Socket}})
}

// trimmed waits until the stream is empty.
func trimmed(t testing.TB, c *Client) {
	t.Helper()
	until(t, "an empty stream", func() string {
		n, err := c.XLen(t.Context(), keys(testStream).stream()).Result()
		if err != nil || n > 0 {
			return fmt.Sprint(n, " entries, ", err)
		}
		return ""
	})
}

// do repeats a call until it succeeds: after a crash the pool of connections
// first returns errors of before.
func do(t testing.TB, call func() error) {
	t.Helper()
	until(t, "an answer of Redis", func() string {
		if err := call(); err != nil {
			return err.Error()
		}
		return ""
	})
}
