package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// ConsumerConfig of a Consumer. Start from DefaultConsumerConfig.
type ConsumerConfig struct {
	Client *Client
	Stream string // name of the stream, as its forwarders have it
	Group  string // name of the group; it gets every record of the stream
	// Consumer is the name of this consumer in its group. The same name after
	// a restart gets at once what it had not acknowledged.
	Consumer string
	// Claim is how long another consumer may keep a record before this one
	// takes it over; longer than acknowledging a batch usually takes, 100 ms or
	// more.
	Claim time.Duration

	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

// DefaultConsumerConfig returns a Claim of 60 s.
func DefaultConsumerConfig() ConsumerConfig { return ConsumerConfig{Claim: time.Minute} }

// Validate names every field that is out of its range.
func (c *ConsumerConfig) Validate() error {
	var errs []error
	check := func(ok bool, field, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("stream consumer: %s %s", field, want))
		}
	}
	check(c.Client != nil, "Client", "must be set")
	check(validName(c.Stream), "Stream", "must be 1 to 128 letters, digits and -_.:")
	check(validName(c.Group), "Group", "must be 1 to 128 letters, digits and -_.:")
	check(validName(c.Consumer), "Consumer", "must be 1 to 128 letters, digits and -_.:")
	check(c.Claim >= 100*time.Millisecond, "Claim", "must be 100 ms or more")
	return errors.Join(errs...)
}

const (
	readMax   = 10_000                 // entries in one batch
	readBlock = 500 * time.Millisecond // that Redis waits for entries; the end of a context is seen so late
)

// Batch is a run of records.
type Batch struct {
	Payloads [][]byte // at least one; they belong to the caller
	// Ack tells the stream that the records of this batch, and of all that
	// the same Consumer returned before, are done with. On an error some of
	// them may come again; it may be tried again.
	Ack func() error
}

// Consumer reads a stream as a member of a group. One goroutine at a time may
// call Read; Ack may be called by others.
type Consumer struct {
	cfg ConsumerConfig
	log *slog.Logger
	m   *consumerMetrics

	// Used by Read.
	dials     int64  // when the own entries were last looked through
	own       string // id behind which own entries are still to be looked through; "": none
	claimFrom string
	claimAt   time.Time // when others' entries are to be looked through next

	mu   sync.Mutex
	held map[string]bool // ids that were returned and are not acknowledged
	out  []*delivery     // the same by batch, oldest first
	next int             // number of the next delivery
}

// delivery is a batch that is not acknowledged.
type delivery struct {
	number int
	ids    []string
	runs   []origin
}

// NewConsumer returns a Consumer. Nothing is connected yet. Close takes its
// metrics back.
func NewConsumer(cfg ConsumerConfig) (*Consumer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m, err := newConsumerMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	log := cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler)).With("stream", cfg.Stream, "group", cfg.Group, "consumer", cfg.Consumer)
	return &Consumer{cfg: cfg, log: log, m: m, own: "0", claimFrom: "0-0", held: map[string]bool{}}, nil
}

// Close takes the metrics back. It acknowledges nothing.
func (c *Consumer) Close() error {
	c.m.Unregister()
	return nil
}

// Read waits until there is a record and returns up to limit, at most 10000:
// first what this consumer had not acknowledged before a restart, then what
// others have kept for too long, then new ones. After an error nothing is
// skipped. The end of ctx is noticed within 0.5 s, or 5 s while Redis does not
// answer.
func (c *Consumer) Read(ctx context.Context, limit int) (Batch, error) {
	if limit < 1 {
		return Batch{}, fmt.Errorf("read stream %s: limit is %d, it must be at least 1", c.cfg.Stream, limit)
	}
	limit = min(limit, readMax)
	for {
		if err := ctx.Err(); err != nil {
			return Batch{}, fmt.Errorf("read stream %s: %w", c.cfg.Stream, err)
		}
		b, err := c.look(ctx, limit)
		if err != nil && strings.HasPrefix(err.Error(), "NOGROUP") {
			err = c.join(ctx)
		}
		if err != nil {
			c.own = "0" // entries may have been given to us in an answer that was lost
			if ctx.Err() != nil {
				err = ctx.Err()
			} else {
				c.m.failures.Inc()
			}
			return Batch{}, fmt.Errorf("read stream %s: %w", c.cfg.Stream, explain(err))
		}
		if len(b.Payloads) > 0 {
			c.m.read.Add(float64(len(b.Payloads)))
			return b, nil
		}
	}
}

// join makes the group, from the stream's first entry on.
func (c *Consumer) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := c.cfg.Client.XGroupCreateMkStream(ctx, c.key().stream(), c.cfg.Group, "0").Err()
	if err != nil && !strings.HasPrefix(err.Error(), "BUSYGROUP") {
		return fmt.Errorf("make group %s: %w", c.cfg.Group, err)
	}
	return nil
}

// look asks once: for own entries if there may be some, for others' if it is
// time, and for new ones.
func (c *Consumer) look(ctx context.Context, limit int) (Batch, error) {
	if n := c.cfg.Client.dials.Load(); n != c.dials {
		c.dials, c.own = n, "0" // a Redis that forgot acknowledgements holds entries as ours again
	}
	for c.own != "" {
		got, err := c.group(ctx, c.own, limit, -1)
		if err != nil {
			return Batch{}, err
		}
		if len(got) == 0 {
			c.own = ""
			break
		}
		c.own = got[len(got)-1].ID
		if b, err := c.take(ctx, got, false); err != nil || len(b.Payloads) > 0 {
			return b, err
		}
	}
	if b, err := c.claim(ctx, limit); err != nil || len(b.Payloads) > 0 {
		return b, err
	}
	block := readBlock
	if until, ok := ctx.Deadline(); ok {
		block = max(time.Millisecond, min(block, time.Until(until)))
	}
	got, err := c.group(ctx, ">", limit, block)
	if err != nil {
		return Batch{}, err
	}
	return c.take(ctx, got, true)
}

// group is XREADGROUP. The end of ctx does not cut it off, or entries that
// Redis has given away would have to be fetched once more.
func (c *Consumer) group(ctx context.Context, id string, limit int, block time.Duration) ([]redis.XMessage, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	all, err := c.cfg.Client.XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: c.cfg.Group, Consumer: c.cfg.Consumer, Streams: []string{c.key().stream(), id}, Count: int64(limit), Block: block,
	}).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[0].Messages, nil
}

// claim takes over what a consumer, perhaps an earlier life of this one, has
// kept for too long.
func (c *Consumer) claim(ctx context.Context, limit int) (Batch, error) {
	for !time.Now().Before(c.claimAt) {
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		got, next, err := c.cfg.Client.XAutoClaim(call, &redis.XAutoClaimArgs{
			Stream: c.key().stream(), Group: c.cfg.Group, Consumer: c.cfg.Consumer,
			MinIdle: c.cfg.Claim, Start: c.claimFrom, Count: int64(limit),
		}).Result()
		cancel()
		if err != nil {
			return Batch{}, err
		}
		if c.claimFrom = next; next == "0-0" {
			c.claimAt = time.Now().Add(c.cfg.Claim / 4)
		}
		b, err := c.take(ctx, got, false)
		if err != nil {
			return Batch{}, err
		}
		if n := len(b.Payloads); n > 0 {
			c.m.claimed.Add(float64(n))
			c.log.Warn("records are taken over that a consumer did not acknowledge in time", "records", n)
			return b, nil
		}
	}
	return Batch{}, nil
}

// take makes a batch of entries. Those that are not new may be held already,
// or may be gone from the stream while Redis still has them as pending.
func (c *Consumer) take(ctx context.Context, got []redis.XMessage, fresh bool) (Batch, error) {
	c.mu.Lock()
	d := &delivery{number: c.next}
	var b Batch
	var gone []string
	for _, x := range got {
		if !fresh && c.held[x.ID] {
			continue
		}
		if x.Values == nil {
			gone = append(gone, x.ID)
			continue
		}
		payload, _ := x.Values[fieldPayload].(string) // what somebody else added is for the reader of payloads to refuse
		from, _ := x.Values[fieldOrigin].(string)
		if o, err := parseOrigin(from); err == nil {
			d.runs = join(d.runs, o)
		} else {
			c.log.Error("an entry of the stream does not say where it comes from", "id", x.ID, "err", err)
		}
		b.Payloads = append(b.Payloads, []byte(payload))
		d.ids = append(d.ids, x.ID)
		c.held[x.ID] = true
	}
	if len(d.ids) > 0 {
		c.next++
		c.out = append(c.out, d)
		b.Ack = func() error { return c.ack(d.number) }
	}
	c.mu.Unlock()
	if len(gone) == 0 {
		return b, nil
	}
	// Their forwarders see that the place does not move, and send again.
	c.m.vanished.Add(float64(len(gone)))
	c.log.Error("entries are gone from the stream that nobody had acknowledged", "entries", len(gone))
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := c.cfg.Client.XAck(call, c.key().stream(), c.cfg.Group, gone...).Err(); err != nil {
		c.log.Warn("cannot strike out entries that are gone", "err", err) // they are met again
	}
	return b, nil
}

// ack acknowledges every delivery up to a number.
func (c *Consumer) ack(upto int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.out) > 0 && c.out[0].number <= upto {
		d := c.out[0]
		args := make([]any, 0, 2+len(d.ids)+4*len(d.runs))
		args = append(args, c.cfg.Group, len(d.ids))
		for _, id := range d.ids {
			args = append(args, id)
		}
		for _, o := range d.runs {
			args = append(args, o.writer, o.session, place(nil, o.from), place(nil, o.to))
		}
		// A batch that is done with is acknowledged even while all else ends.
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		err := ackScript.Run(ctx, c.cfg.Client, []string{c.key().stream(), c.key().acked(c.cfg.Group)}, args...).Err()
		cancel()
		if err != nil {
			c.m.failures.Inc()
			return fmt.Errorf("acknowledge %d records of stream %s: %w", len(d.ids), c.cfg.Stream, explain(err))
		}
		c.m.acked.Add(float64(len(d.ids)))
		for _, id := range d.ids {
			delete(c.held, id)
		}
		c.out = c.out[1:]
	}
	return nil
}

func (c *Consumer) key() keys { return keys(c.cfg.Stream) }
