package stream_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
	"github.com/bulkhead-voip/bulkhead/internal/stream"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// log is one implementation of what cdrpipe reads: the spool itself, or the
// spool through Redis.
type log struct {
	spool *spool.Spool
	// open returns the reader as it is after a start of its process; what is
	// open already is ended without a word.
	open func() cdrpipe.Stream
}

type spoolStream struct{ *spool.Reader }

func (s spoolStream) Read(ctx context.Context, limit int) (cdrpipe.Batch, error) {
	b, err := s.Reader.Read(ctx, limit)
	if err != nil {
		return cdrpipe.Batch{}, err
	}
	return cdrpipe.Batch{Payloads: b.Payloads, Ack: b.Ack}, nil
}

type redisStream struct{ *stream.Consumer }

func (s redisStream) Read(ctx context.Context, limit int) (cdrpipe.Batch, error) {
	b, err := s.Consumer.Read(ctx, limit)
	return cdrpipe.Batch(b), err
}

func newSpool(t *testing.T) (string, *spool.Spool) {
	t.Helper()
	dir := t.TempDir()
	o := spool.DefaultOptions()
	o.SegmentBytes, o.MaxRecord = 16<<10, 4<<10
	s, err := spool.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir, s
}

func openReader(t *testing.T, dir string) *spool.Reader {
	t.Helper()
	r, err := spool.OpenReader(dir, "one", spool.ReaderOptions{Poll: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func onSpool(t *testing.T) log {
	dir, s := newSpool(t)
	var last *spool.Reader
	return log{s, func() cdrpipe.Stream {
		if last != nil {
			if err := last.Close(); err != nil {
				t.Error(err)
			}
		}
		last = openReader(t, dir)
		return spoolStream{last}
	}}
}

func onRedis(t *testing.T) log {
	client, err := stream.NewClient(stream.Options{Addrs: []string{testenv.Redis(t)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	dir, s := newSpool(t)
	f := stream.DefaultForwarderConfig()
	f.Client, f.Stream, f.Writer, f.Groups, f.Source = client, "suite", "w1", []string{"main"}, openReader(t, dir)
	f.BatchSize, f.Every = 20, 10*time.Millisecond
	forwarder, err := stream.NewForwarder(f)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := forwarder.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return log{s, func() cdrpipe.Stream {
		cfg := stream.DefaultConsumerConfig()
		cfg.Client, cfg.Stream, cfg.Group, cfg.Consumer = client, "suite", "main", "a"
		c, err := stream.NewConsumer(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return redisStream{c}
	}}
}

func (l log) append(t *testing.T, payloads ...string) {
	t.Helper()
	for _, p := range payloads {
		if err := l.spool.Append(t.Context(), []byte(p)); err != nil {
			t.Fatal(err)
		}
	}
}

// next reads up to n payloads, and returns what it read in their batches.
func next(t *testing.T, s cdrpipe.Stream, n, limit int) (payloads []string, batches []cdrpipe.Batch) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for len(payloads) < n {
		b, err := s.Read(ctx, min(limit, n-len(payloads)))
		if err != nil {
			t.Fatalf("after %d of %d: %v", len(payloads), n, err)
		}
		if len(b.Payloads) == 0 || len(b.Payloads) > limit {
			t.Fatalf("a batch of %d payloads, limit %d", len(b.Payloads), limit)
		}
		for _, p := range b.Payloads {
			payloads = append(payloads, string(p))
		}
		batches = append(batches, b)
	}
	return payloads, batches
}

// nothing fails if something comes.
func nothing(t *testing.T, s cdrpipe.Stream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	if b, err := s.Read(ctx, 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %q, %v; want nothing", b.Payloads, err)
	}
}

func ack(t *testing.T, b cdrpipe.Batch) {
	t.Helper()
	if err := b.Ack(); err != nil {
		t.Fatal(err)
	}
}

func numbered(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("payload %d", i))
	}
	return all
}

// TestStream is what cdrpipe may rely on, whatever carries its records.
func TestStream(t *testing.T) {
	for name, open := range map[string]func(*testing.T) log{"spool": onSpool, "redis": onRedis} {
		t.Run(name, func(t *testing.T) {
			for name, test := range map[string]func(*testing.T, log){
				"Order": suiteOrder, "Bytes": suiteBytes, "Restart": suiteRestart, "AckAll": suiteAckAll,
				"AckLate": suiteAckLate, "Wait": suiteWait, "RandomRestarts": suiteRandomRestarts,
			} {
				t.Run(name, func(t *testing.T) { test(t, open(t)) })
			}
		})
	}
}

// Payloads come in the order of their appends, also far ahead of an Ack.
func suiteOrder(t *testing.T, l log) {
	want := numbered(1000)
	s := l.open()
	l.append(t, want...)
	got, batches := next(t, s, len(want), 33)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, b := range batches {
		ack(t, b)
	}
	nothing(t, s)
}

// Any bytes are a payload, and none is changed.
func suiteBytes(t *testing.T, l log) {
	long := make([]byte, 4000)
	for i := range long {
		long[i] = byte(rand.Uint32())
	}
	want := []string{"\x00\xff\r\n$5\r\n", "", "ü\xc3", string(long), " ", "*"}
	l.append(t, want...)
	got, _ := next(t, l.open(), len(want), 10)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// What was not acknowledged comes again after a restart, and nothing else.
func suiteRestart(t *testing.T, l log) {
	want := numbered(30)
	l.append(t, want...)
	s := l.open()
	_, batches := next(t, s, 10, 5)
	next(t, s, 15, 5)
	ack(t, batches[0])
	ack(t, batches[1])
	s = l.open()
	got, batches := next(t, s, 20, 7)
	if d := cmp.Diff(want[10:], got); d != "" {
		t.Fatal(d)
	}
	ack(t, batches[len(batches)-1])
	s = l.open()
	nothing(t, s)
	l.append(t, "later")
	if got, _ := next(t, s, 1, 5); got[0] != "later" {
		t.Fatal(got)
	}
}

// Ack of a batch holds for all before it.
func suiteAckAll(t *testing.T, l log) {
	l.append(t, numbered(30)...)
	_, batches := next(t, l.open(), 30, 5)
	ack(t, batches[3])
	got, _ := next(t, l.open(), 30-payloads(batches[:4]), 100)
	if want := numbered(30)[payloads(batches[:4]):]; !slices.Equal(got, want) {
		t.Fatal(cmp.Diff(want, got))
	}
}

func payloads(batches []cdrpipe.Batch) (n int) {
	for _, b := range batches {
		n += len(b.Payloads)
	}
	return n
}

// Ack behind that of a later batch, or once more, changes nothing.
func suiteAckLate(t *testing.T, l log) {
	l.append(t, numbered(20)...)
	_, batches := next(t, l.open(), 20, 5)
	last := len(batches) - 1
	for _, i := range []int{last, 0, last, 1, 0} {
		ack(t, batches[i])
	}
	nothing(t, l.open())
}

// Read waits; when its context ends it returns that, and skips nothing.
func suiteWait(t *testing.T, l log) {
	s := l.open()
	nothing(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Read(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Read(t.Context(), 0); err == nil {
		t.Fatal("a limit of 0 was accepted")
	}
	arrives := make(chan string, 1)
	go func() {
		b, err := s.Read(t.Context(), 5)
		arrives <- fmt.Sprintf("%s, %v", b.Payloads, err)
	}()
	l.append(t, "now")
	if got := <-arrives; got != "[now], <nil>" {
		t.Fatal(got)
	}
}

// Over restarts at any moment everything comes, and nothing that was
// acknowledged comes again.
func suiteRandomRestarts(t *testing.T, l log) {
	rng := rand.New(rand.NewPCG(1, 2))
	want := numbered(400)
	done, made := 0, 0
	s := l.open()
	read := 0
	for done < len(want) {
		if more := min(len(want)-made, rng.IntN(30)); more > 0 {
			l.append(t, want[made:made+more]...)
			made += more
		}
		if read == made {
			continue
		}
		got, batches := next(t, s, 1+rng.IntN(made-read), 1+rng.IntN(20))
		if d := cmp.Diff(want[read:read+len(got)], got); d != "" {
			t.Fatal(d)
		}
		read += len(got)
		if rng.IntN(2) == 0 {
			ack(t, batches[len(batches)-1])
			done = read
		}
		if rng.IntN(3) == 0 {
			s, read = l.open(), done
		}
	}
	nothing(t, s)
}
