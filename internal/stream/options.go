package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	dialTimeout = 2 * time.Second
	callTimeout = 5 * time.Second // of one call of Redis, connecting included
	poolSize    = 8
)

// Options say where a Redis is: one server, the sentinels of a replicated one,
// or nodes of a cluster.
type Options struct {
	Addrs      []string // host:port of each, or the path of one unix socket
	MasterName string   // of the replicated server; Addrs are its sentinels then
	Cluster    bool     // Addrs are nodes of a Redis Cluster
	DB         int      // number of the database; 0 in a cluster
	TLS        bool     // certificates are checked against the system's roots

	// The passwords are never part of String or of an error.
	Username, Password                 string
	SentinelUsername, SentinelPassword string
}

// ParseURL reads where a Redis is:
//
//	redis://[user@]host[:port][,host[:port]...][/db][?master=NAME|cluster=true]
//	rediss://...                the same, with TLS
//	unix:///path/of/socket[?db=N]
//
// A password in it is refused: a command line is no place for one.
func ParseURL(s string) (Options, error) {
	fail := func(format string, args ...any) (Options, error) {
		return Options{}, fmt.Errorf("Redis URL: "+format, args...)
	}
	scheme, rest, _ := strings.Cut(s, "://")
	end := strings.IndexAny(rest+"?", "/?#")
	list, rest := rest[:end], rest[end:]
	user := ""
	if at := strings.LastIndexByte(list, '@'); at >= 0 {
		user, list = list[:at], list[at+1:]
	}
	if strings.Contains(user, ":") {
		return fail("it holds a password, which everybody on this host could read from the list of processes: hand the password over by file or environment")
	}
	u, err := url.Parse(rest) // without the hosts, of which it would take one only
	if err != nil {
		return fail("what follows the hosts is not of the form /db?parameter=value")
	}
	o := Options{TLS: scheme == "rediss"}
	if o.Username, err = url.PathUnescape(user); err != nil {
		return fail("the user is not of the form of a URL")
	}
	q := u.Query()
	for key := range q {
		if !slices.Contains([]string{"master", "cluster", "db"}, key) {
			return fail("parameter %q is not known: master, cluster and db are", key)
		}
	}
	o.MasterName = q.Get("master")
	if c := q.Get("cluster"); c != "" {
		if o.Cluster, err = strconv.ParseBool(c); err != nil {
			return fail("cluster=%s is neither true nor false", c)
		}
	}
	db := q.Get("db")
	switch scheme {
	case "unix":
		o.Addrs = []string{u.Path}
	case "redis", "rediss":
		o.Addrs = hosts(list, o.MasterName)
		if path := strings.Trim(u.Path, "/"); path != "" {
			db = path
		}
	default:
		return fail("it begins with none of redis://, rediss://, unix://")
	}
	if db != "" {
		if o.DB, err = strconv.Atoi(db); err != nil {
			return fail("database %q is no number", db)
		}
	}
	return o, o.Validate()
}

// hosts adds the port that is usual where one is missing.
func hosts(list, master string) []string {
	port := "6379"
	if master != "" {
		port = "26379"
	}
	all := strings.Split(list, ",")
	for i, h := range all {
		if _, _, err := net.SplitHostPort(h); err != nil && h != "" {
			all[i] = net.JoinHostPort(strings.Trim(h, "[]"), port)
		}
	}
	return all
}

// Validate names every field that is out of its range.
func (o Options) Validate() error {
	var errs []error
	check := func(ok bool, want string) {
		if !ok {
			errs = append(errs, errors.New("Redis options: "+want))
		}
	}
	check(len(o.Addrs) > 0 && !slices.Contains(o.Addrs, ""), "an address is missing")
	check(o.MasterName == "" || !o.Cluster, "a master name and a cluster exclude each other")
	check(len(o.Addrs) < 2 || o.MasterName != "" || o.Cluster, "several addresses need the name of a master (sentinel) or a cluster")
	check(o.DB >= 0, "the database is a negative number")
	check(o.DB == 0 || !o.Cluster, "a cluster has the database 0 only")
	return errors.Join(errs...)
}

// String says where the Redis is, without user and passwords.
func (o Options) String() string {
	s := strings.Join(o.Addrs, ",")
	switch {
	case o.MasterName != "":
		return fmt.Sprintf("master %s of sentinels %s, database %d", o.MasterName, s, o.DB)
	case o.Cluster:
		return "cluster " + s
	}
	return fmt.Sprintf("%s, database %d", s, o.DB)
}

// GoString is String.
func (o Options) GoString() string { return o.String() }

// LogValue is String.
func (o Options) LogValue() slog.Value { return slog.StringValue(o.String()) }

// Client is a pool of connections. Any number of forwarders and consumers may
// share one.
type Client struct {
	redis.UniversalClient
	dials atomic.Int64
}

// Universal returns the options in the words of the library, without limits.
func (o Options) Universal() redis.UniversalOptions {
	u := redis.UniversalOptions{
		Addrs: o.Addrs, MasterName: o.MasterName, IsClusterMode: o.Cluster, DB: o.DB,
		Username: o.Username, Password: o.Password,
		SentinelUsername: o.SentinelUsername, SentinelPassword: o.SentinelPassword,
	}
	if o.TLS {
		u.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if len(o.Addrs) == 1 {
			u.TLSConfig.ServerName, _, _ = net.SplitHostPort(o.Addrs[0])
		}
	}
	return u
}

// NewClient returns a client that connects when it is first used. Nothing is
// tried twice by itself: a Forwarder and a Consumer must see every failure.
// Close must be called.
func NewClient(o Options) (*Client, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	u := o.Universal()
	u.MaxRetries, u.DialerRetries, u.PoolSize = -1, 1, poolSize
	u.DialTimeout, u.ReadTimeout, u.WriteTimeout = dialTimeout, callTimeout, callTimeout
	u.ContextTimeoutEnabled = true
	u.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	c := &Client{UniversalClient: redis.NewUniversalClient(&u)}
	c.AddHook(dialCounter{&c.dials})
	return c, nil
}

// dialCounter counts connections: a new one may lead to a Redis that forgot
// what another had done.
type dialCounter struct{ n *atomic.Int64 }

func (d dialCounter) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := next(ctx, network, addr)
		if err == nil {
			d.n.Add(1)
		}
		return c, err
	}
}

func (d dialCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (d dialCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
