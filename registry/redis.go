package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	// redisPoll is how often a waiting Watch looks for a commit of which no
	// message came.
	redisPoll = 200 * time.Millisecond
	// redisMaxChange is the most that one commit sends: half of what Redis
	// takes of one client (client-query-buffer-limit, 1 GiB).
	redisMaxChange = 512 << 20
	redisPage      = 32 // revisions asked for at once
	redisScan      = 500
)

// RedisOptions say where a Redis is and what is asked of it.
type RedisOptions struct {
	// Client names one server (an address, or the path of a unix socket), or
	// with MasterName the Sentinels that know it. Timeouts and retries that
	// are not set are short.
	Client redis.UniversalOptions
	// Name begins the names of all keys, as {NAME}:...; empty: bulkhead.
	Name string
	// Replicas is how many replicas must have a revision before it is
	// acknowledged. With Sentinel, 0 means that a failover can lose revisions.
	Replicas int
	// Relaxed accepts a server that can lose what it acknowledged: without
	// appendonly, with an appendfsync that is not always, or one that evicts keys.
	Relaxed bool
	// Lazy opens the store although Redis does not answer now. What would have
	// been found out about the server is found out, and said, when it does.
	Lazy bool
	// Log is told what could not be found out about the server; nil: nobody is.
	Log *slog.Logger
}

// Redis is a Store in a Redis with an append-only file. Any number of hosts
// may open it.
type Redis struct {
	client  redis.UniversalClient
	name    string
	options RedisOptions
	checked atomic.Bool // a server was there that keeps what it acknowledges
	unseen  atomic.Bool // it was said that this cannot be seen

	ledger    *ledger
	keys      *Tokens
	commits   *redis.PubSub
	listening sync.WaitGroup
}

// OpenRedis opens the store, which need not hold anything yet. The caller
// closes it. It returns bulkhead.Unavailable when Redis does not answer, but
// for a Lazy one, and
// bulkhead.Invalid when it would not keep what it acknowledges, or holds what
// this version cannot read.
func OpenRedis(ctx context.Context, o RedisOptions) (*Redis, error) {
	c := o.Client
	c.ContextTimeoutEnabled = true
	c.DisableIdentity = true
	c.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	setDefault(&c.MaxRetries, 2)
	setDefault(&c.DialerRetries, 1)
	setDefault(&c.DialTimeout, 2*time.Second)
	setDefault(&c.ReadTimeout, 5*time.Second)
	setDefault(&o.Name, "bulkhead")
	s := &Redis{name: o.Name, options: o, ledger: newLedger()}
	c.OnConnect = s.checkServer
	s.client = redis.NewUniversalClient(&c)
	s.keys = newTokens(s)
	if _, err := s.Head(ctx); err != nil && !(o.Lazy && errors.Is(err, bulkhead.Unavailable)) {
		return nil, errors.Join(err, s.client.Close())
	}
	s.commits = s.client.Subscribe(ctx, s.key("commits"))
	messages := s.commits.Channel() // it subscribes again by itself
	s.listening.Go(func() {
		for range messages {
			s.ledger.wakeAll()
		}
	})
	return s, nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// kept are the settings with which a server keeps what it acknowledged.
var kept = [][2]string{{"appendonly", "yes"}, {"appendfsync", "always"}, {"maxmemory-policy", "noeviction"}}

// checkServer refuses a server that would lose revisions. It is asked at every
// new connection: after a failover that is another server.
func (s *Redis) checkServer(ctx context.Context, c *redis.Conn) error {
	if s.options.Relaxed {
		return nil
	}
	role := redis.NewSliceCmd(ctx, "role")
	got := make([]*redis.MapStringStringCmd, len(kept))
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		_ = p.Process(ctx, role) // its error is the pipeline's
		for i := range kept {
			got[i] = p.ConfigGet(ctx, kept[i][0])
		}
		return nil
	})
	if answered := redis.Error(nil); err != nil && !errors.As(err, &answered) {
		return fmt.Errorf("ask Redis whether it keeps what it acknowledges: %w", err)
	}
	if r := role.Val(); len(r) > 0 && r[0] == "sentinel" {
		return nil // it holds nothing
	}
	var weak []string
	for i, want := range kept {
		if err := got[i].Err(); err != nil {
			if s.options.Log != nil && !s.unseen.Swap(true) {
				s.options.Log.Warn("cannot see whether Redis keeps what it acknowledges; see that it does", "setting", want[0], "err", err)
			}
			continue
		}
		if v := got[i].Val()[want[0]]; v != want[1] {
			weak = append(weak, want[0]+" "+v)
		}
	}
	if len(weak) == 0 {
		s.checked.Store(true)
		return nil
	}
	kind := bulkhead.Invalid
	if s.checked.Load() { // it was in order: another server has taken over, or somebody changed it
		kind = bulkhead.Unavailable
	}
	return &weakServer{kind, strings.Join(weak, ", ")}
}

// weakServer is the error about a server that can lose what it acknowledged.
type weakServer struct {
	kind bulkhead.Kind
	weak string
}

func (e *weakServer) Error() string {
	return fmt.Sprintf("the registry in Redis: %v: the server can lose revisions that it acknowledged (%s): set appendonly yes, appendfsync always and maxmemory-policy noeviction", e.kind, e.weak)
}

// Is tells the kind. There is no Unwrap: the library would throw away the rest.
func (e *weakServer) Is(target error) bool { return target == e.kind }

// Close ends the handle. Calls that wait return bulkhead.Unavailable.
func (s *Redis) Close() error {
	err := errors.Join(s.commits.Close(), s.client.Close())
	s.listening.Wait()
	return err
}

// key names a key. All have one hash tag, so that a script may touch them all.
func (s *Redis) key(what string) string { return "{" + s.name + "}:" + what }

func (s *Redis) failed(ctx context.Context, doing string, err error) error {
	return storeFailed(ctx, doing, "the registry in Redis", err)
}

// Head implements Store.
func (s *Redis) Head(ctx context.Context) (bulkhead.State, error) {
	state, err := s.ledger.head(ctx, s)
	return state, s.failed(ctx, "read the head", err)
}

// Watch implements Store.
func (s *Redis) Watch(ctx context.Context, after bulkhead.RevisionNumber) ([]bulkhead.Revision, error) {
	revisions, err := s.ledger.watch(ctx, s, after, redisPoll)
	return revisions, s.failed(ctx, "watch", err)
}

// Log implements History.
func (s *Redis) Log(ctx context.Context, from bulkhead.RevisionNumber, limit int) ([]bulkhead.Revision, error) {
	revisions, err := readLog(ctx, s, from, limit)
	return revisions, s.failed(ctx, "read revisions", err)
}

// State implements History.
func (s *Redis) State(ctx context.Context, number bulkhead.RevisionNumber) (bulkhead.State, error) {
	state, err := replay(ctx, s, number)
	return state, s.failed(ctx, "replay revisions", err)
}

// text is how the key "head" says a mark.
func (m mark) text() string { return fmt.Sprintf("%d:%s", m.number, m.line) }

func (s *Redis) head(ctx context.Context) (mark, error) {
	if err := ctx.Err(); err != nil {
		return mark{}, err
	}
	text, err := s.client.Get(ctx, s.key("head")).Result()
	if errors.Is(err, redis.Nil) {
		return mark{}, nil
	}
	if err != nil {
		return mark{}, err
	}
	number, l, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil {
		return mark{}, fmt.Errorf("the key %s holds %q: %w", s.key("head"), text, bulkhead.Invalid)
	}
	return mark{bulkhead.RevisionNumber(n), line(l)}, nil
}

func (s *Redis) origin(ctx context.Context) (bulkhead.RevisionNumber, error) {
	n, err := s.client.Get(ctx, s.key("origin")).Uint64()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	return bulkhead.RevisionNumber(n), err
}

// redisRevision is how a revision is stored.
type redisRevision struct {
	After line `json:"after,omitempty"` // the line of the parent
	bulkhead.Revision
}

func (s *Redis) revisions(ctx context.Context, from, to bulkhead.RevisionNumber, limit int) ([]stored, error) {
	var out []stored
	size := 0
	for from <= to && len(out) < limit && size < watchBytes {
		var fields []string
		for n := from; n <= to && len(fields) < min(redisPage, limit-len(out)); n++ {
			fields = append(fields, strconv.FormatUint(uint64(n), 10))
		}
		values, err := s.client.HMGet(ctx, s.key("revisions"), fields...).Result()
		if err != nil {
			return nil, err
		}
		for _, v := range values {
			text, ok := v.(string)
			if !ok {
				return out, nil
			}
			var r redisRevision
			if err := decode([]byte(text), &r); err != nil {
				return nil, fmt.Errorf("read revision %d: %w", from, err)
			}
			if r.Number != from {
				return nil, fmt.Errorf("read revision %d: the stored one says that it is %d", from, r.Number)
			}
			r.Time = r.Time.UTC()
			out = append(out, stored{r.Revision, r.After})
			size += len(text)
			from++
		}
	}
	return out, nil
}

// objects scans the objects while others may commit, and then makes the
// changes again that came meanwhile: an object is put or deleted whole, so
// whatever the scan saw of them ends up the same.
func (s *Redis) objects(ctx context.Context) (position, error) {
	for range 5 {
		before, err := s.head(ctx)
		if err != nil {
			return position{}, err
		}
		var c bulkhead.Change
		scan := s.client.HScan(ctx, s.key("objects"), 0, "", redisScan).Iterator()
		for scan.Next(ctx) {
			field := scan.Val()
			if !scan.Next(ctx) {
				break
			}
			kind, id, _ := strings.Cut(field, "/")
			if err := addObject(&c, kind, id, []byte(scan.Val())); err != nil {
				return position{}, fmt.Errorf("read %s: %w", field, err)
			}
		}
		if err := scan.Err(); err != nil {
			return position{}, err
		}
		after, err := s.head(ctx)
		if err != nil {
			return position{}, err
		}
		delta, _, err := between(ctx, s, before, after)
		if err != nil {
			return position{}, err
		}
		if delta == nil {
			continue // too much, or the store went another way
		}
		state := bulkhead.State{}.Apply(&c)
		if !delta.IsZero() {
			state = state.Apply(delta)
		}
		state.Revision = after.number
		return position{state, after.line}, nil
	}
	return position{}, errors.New("others commit faster than the objects can be read")
}

// commitScript does all of a commit at once, and nothing of a stale one. A
// commit that is sent again, because its answer got lost, succeeds again. It
// touches every key before it writes, so that a key of another type stops it
// while nothing is written yet. The append-only file holds it as one transaction.
const commitScript = `
local head = redis.call('GET', KEYS[1]) or '0:'
if redis.call('HGET', KEYS[2], ARGV[2]) == ARGV[3] then return {1, head} end
redis.call('HLEN', KEYS[3])
redis.call('HLEN', KEYS[4])
redis.call('GET', KEYS[5])
if head ~= ARGV[1] then return {0, head} end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
for id in string.gmatch(ARGV[6], '%S+') do
	redis.call('HSETNX', KEYS[4], id, ARGV[7])
	redis.call('INCR', KEYS[5])
end
local i = 10
for _ = 1, tonumber(ARGV[9]) do
	redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
	i = i + 2
end
for j = i, #ARGV do redis.call('HDEL', KEYS[3], ARGV[j]) end
if ARGV[8] ~= '' then redis.call('SET', KEYS[6], ARGV[8]) end
redis.call('SET', KEYS[1], ARGV[4])
redis.call('PUBLISH', ARGV[5], ARGV[4])
return {1, head}`

// Commit implements Store.
func (s *Redis) Commit(ctx context.Context, base bulkhead.RevisionNumber, r bulkhead.Revision) (bulkhead.Revision, error) {
	return s.commitAfter(ctx, base, base, r)
}

func (s *Redis) commitAfter(ctx context.Context, base, parent bulkhead.RevisionNumber, r bulkhead.Revision) (bulkhead.Revision, error) {
	_, change, err := checkRevision(&r)
	if err != nil {
		return bulkhead.Revision{}, err
	}
	if err := s.ledger.begin(ctx); err != nil {
		return bulkhead.Revision{}, s.failed(ctx, "begin a commit", err)
	}
	defer s.ledger.done()
	r.Number, r.Parent = parent+1, parent
	if err := s.commit(ctx, base, &r, change); err != nil {
		return bulkhead.Revision{}, s.failed(ctx, "commit", err)
	}
	s.ledger.committed(&r, change)
	return r, nil
}

func (s *Redis) commit(ctx context.Context, base bulkhead.RevisionNumber, r *bulkhead.Revision, change *bulkhead.Change) error {
	head, err := s.ledger.prepare(ctx, s, base, change)
	if err != nil {
		return err
	}
	r.Time = now()
	text, err := json.Marshal(redisRevision{head.line, *r})
	if err != nil {
		return fmt.Errorf("encode the revision: %w: %w", bulkhead.Invalid, err)
	}
	objects, size, err := objectArgs(change)
	if err != nil {
		return err
	}
	if size+len(text) > redisMaxChange || len(objects) > 500_000 {
		return fmt.Errorf("the change is too large for one commit in Redis: %w: split it", bulkhead.Invalid)
	}
	next := mark{r.Number, lineOf(r)}
	tokens, err := s.keys.ofTenants(ctx, change.Delete.Tenants)
	if err != nil {
		return err
	}
	origin := ""
	if r.Parent != base {
		origin = strconv.FormatUint(uint64(r.Parent), 10)
	}
	args := append([]any{head.text(), uint64(r.Number), text, next.text(), s.key("commits"), strings.Join(tokens, " "), micros(r.Time), origin}, objects...)
	keys := []string{s.key("head"), s.key("revisions"), s.key("objects"), s.key("tokens_revoked"), s.key("tokens_version"), s.key("origin")}
	done, copied, err := s.write(ctx, commitScript, keys, args...)
	if err != nil {
		return err
	}
	if answer, ok := done.([]any); !ok || len(answer) != 2 {
		return fmt.Errorf("the commit was answered with %v", done)
	} else if answer[0] != int64(1) {
		number, _, _ := strings.Cut(fmt.Sprint(answer[1]), ":")
		n, _ := strconv.ParseUint(number, 10, 63) // 0 then; it is only for the text
		return staleBase(base, bulkhead.RevisionNumber(n))
	}
	if copied != nil {
		return fmt.Errorf("revision %d: %w", r.Number, copied)
	}
	return nil
}

// write runs a script that writes, and where replicas are asked for waits
// until they have it; copied says that they have not.
func (s *Redis) write(ctx context.Context, script string, keys []string, args ...any) (answer any, copied, err error) {
	var done *redis.Cmd
	var copies *redis.IntCmd
	_, err = s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		done = p.Eval(ctx, script, keys, args...)
		if s.options.Replicas > 0 { // WAIT counts for the connection that wrote
			copies = redis.NewIntCmd(ctx, "wait", s.options.Replicas, time.Second.Milliseconds())
			return p.Process(ctx, copies)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if copies != nil && copies.Val() < int64(s.options.Replicas) {
		copied = fmt.Errorf("it is stored, but only %d of %d replicas have it: a failover would lose it", copies.Val(), s.options.Replicas)
	}
	answer, err = done.Result()
	return answer, copied, err
}

// objectArgs lists the arguments of commitScript from the number of puts on,
// and their size.
func objectArgs(c *bulkhead.Change) ([]any, int, error) {
	a := objectList{args: []any{0}}
	err := errors.Join(
		addArgs(&a, "cell", c.Cells, cellID),
		addArgs(&a, "pool", c.Pools, poolID),
		addArgs(&a, "node", c.Nodes, nodeID),
		addArgs(&a, "sbc", c.SBCs, sbcID),
		addArgs(&a, "tenant", c.Tenants, tenantID),
	)
	a.args[0] = (len(a.args) - 1) / 2
	addDeletions(&a, "cell", c.Delete.Cells)
	addDeletions(&a, "pool", c.Delete.Pools)
	addDeletions(&a, "node", c.Delete.Nodes)
	addDeletions(&a, "sbc", c.Delete.SBCs)
	addDeletions(&a, "tenant", c.Delete.Tenants)
	return a.args, a.size, err
}

type objectList struct {
	args []any
	size int
}

func addArgs[V any](a *objectList, kind string, put []V, id func(*V) string) error {
	for i := range put {
		text, err := json.Marshal(&put[i])
		if err != nil {
			return err
		}
		a.args = append(a.args, kind+"/"+id(&put[i]), text)
		a.size += len(text)
	}
	return nil
}

func addDeletions[K ~string](a *objectList, kind string, del []K) {
	for _, k := range del {
		a.args = append(a.args, kind+"/"+string(k))
	}
}
