package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
	"github.com/bulkhead-voip/bulkhead/internal/stream"
)

// redisFlags let records pass through a Redis, between an event bridge and a
// cdrpipe on different hosts.
type redisFlags struct {
	Redis                     string `help:"Pass call records through this Redis: redis://HOST:PORT/DB, rediss:// with TLS, unix:///SOCKET; ?master=NAME for sentinels, ?cluster=true for a cluster." env:"BULKHEAD_REDIS" placeholder:"URL"`
	RedisPasswordFile         string `help:"File with its password. Default: the environment's BULKHEAD_REDIS_PASSWORD." type:"path" placeholder:"FILE"`
	RedisSentinelPasswordFile string `help:"File with the password of the sentinels. Default: the environment's BULKHEAD_REDIS_SENTINEL_PASSWORD." type:"path" placeholder:"FILE"`
}

// forwardFlags are those of who writes to the Redis.
type forwardFlags struct {
	redisFlags `embed:""`

	RedisRecords int64 `help:"Most records that the Redis holds at a time, about 1 kB each; the others wait in the spool." default:"100000" placeholder:"N"`
}

// cdrGroup is the consumer group of the warehouse. Only its acknowledgement
// frees a spool.
const cdrGroup = "cdrpipe"

// redisStream is the stream of one cell.
type redisStream struct {
	client *stream.Client
	name   string // of the stream
	member string // name of this process in it
}

// connect joins p to the cell's stream if the flags name a Redis.
func (f *redisFlags) connect(p *parts, g *group, cell bulkhead.CellID) error {
	if f.Redis == "" {
		return nil
	}
	o, err := stream.ParseURL(f.Redis)
	if err != nil {
		return fmt.Errorf("--redis: %w: %w", err, bulkhead.Invalid)
	}
	if o.Password, err = handedOver(f.RedisPasswordFile, "BULKHEAD_REDIS_PASSWORD"); err != nil {
		return err
	}
	if o.SentinelPassword, err = handedOver(f.RedisSentinelPasswordFile, "BULKHEAD_REDIS_SENTINEL_PASSWORD"); err != nil {
		return err
	}
	redis.SetLogger(libraryLog{p.log}) // of the library, for the whole process
	client, err := stream.NewClient(o)
	if err != nil {
		return err
	}
	g.onClose("Redis", client.Close)
	p.redis = &redisStream{client: client, name: "bulkhead:" + string(cell) + ":cdr", member: memberName(p.data)}
	p.log.Info("call records pass through Redis", "redis", o, "stream", p.redis.name, "as", p.redis.member)
	return nil
}

// handedOver returns the secret in a file, or else that of the environment.
func handedOver(file, variable string) (string, error) {
	if file == "" {
		return os.Getenv(variable), nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read a secret: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// memberName is the same after every restart, and another one for every data
// folder of every host.
func memberName(data dataDir) string {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	host = strings.Map(func(r rune) rune {
		if r < 0x80 && (r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '.') {
			return r
		}
		return '_'
	}, cmp.Or(host, "host"))
	sum := fnv.New32a()
	sum.Write([]byte(data)) // it never fails
	return fmt.Sprintf("%.100s-%08x", host, sum.Sum32())
}

// startForwarder sends the process's spool to the cell's stream, if the flags
// name a Redis.
func startForwarder(p *parts, g *group, cell bulkhead.CellID, f *forwardFlags) error {
	if err := f.connect(p, g, cell); err != nil || p.redis == nil {
		return err
	}
	log := p.log.With("service", "forwarder")
	// The warehouse's own reader: who turns from the embedded pipe to Redis or
	// back goes on where the other stopped, and never runs both.
	reader, err := spool.OpenReader(p.data.spool(), spoolReader, spool.ReaderOptions{Logger: log, Registerer: p.reg})
	if err != nil {
		return err
	}
	g.onClose("spool reader", reader.Close)
	cfg := stream.DefaultForwarderConfig()
	cfg.Client, cfg.Stream, cfg.Writer, cfg.Groups, cfg.Source = p.redis.client, p.redis.name, p.redis.member, []string{cdrGroup}, reader
	cfg.MaxLen, cfg.Logger, cfg.Registerer = f.RedisRecords, log, p.reg
	fw, err := stream.NewForwarder(cfg)
	if err != nil {
		return err
	}
	g.run(services, "forwarder", fw.Run)
	g.readyWhen("forwarder", fw.Ready)
	return nil
}

// openStream returns what cdrpipe reads: the cell's stream in Redis, or the
// spool of this host.
func openStream(p *parts, g *group, log *slog.Logger) (cdrpipe.Stream, error) {
	if p.redis == nil {
		reader, err := spool.OpenReader(p.data.spool(), spoolReader, spool.ReaderOptions{Logger: log, Registerer: p.reg})
		if err != nil {
			return nil, err
		}
		g.onClose("spool reader", reader.Close)
		return spoolStream{reader}, nil
	}
	cfg := stream.DefaultConsumerConfig()
	cfg.Client, cfg.Stream, cfg.Group, cfg.Consumer = p.redis.client, p.redis.name, cdrGroup, p.redis.member
	cfg.Logger, cfg.Registerer = log, p.reg
	c, err := stream.NewConsumer(cfg)
	if err != nil {
		return nil, err
	}
	g.onClose("stream consumer", c.Close)
	return groupStream{c}, nil
}

// groupStream fits the stream in Redis to cdrpipe.
type groupStream struct{ c *stream.Consumer }

func (s groupStream) Read(ctx context.Context, limit int) (cdrpipe.Batch, error) {
	b, err := s.c.Read(ctx, limit)
	if errors.Is(err, stream.ErrDenied) {
		err = fmt.Errorf("%w: %w", bulkhead.Denied, err)
	}
	return cdrpipe.Batch(b), err
}

// cellOfStream returns the cell whose stream to read: the one that was asked
// for, or the only one of the registry in the data folder.
func cellOfStream(ctx context.Context, data dataDir, want bulkhead.CellID) (bulkhead.CellID, error) {
	if want != "" {
		return want, nil
	}
	if _, err := os.Stat(data.registry()); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("which cell's stream? There is no registry in %s that would tell: say --cell: %w", data, bulkhead.Invalid)
	}
	head, err := (&toolFlags{Data: string(data)}).head(ctx)
	if err != nil {
		return "", err
	}
	return cellOf(head, "")
}

// libraryLog takes what the Redis library reports: every failed dial, which
// the forwarder and the consumer report too.
type libraryLog struct{ log *slog.Logger }

func (l libraryLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.DebugContext(ctx, fmt.Sprintf(format, v...), "library", "go-redis")
}
