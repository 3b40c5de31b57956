package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/internal/stream"
	"github.com/bulkhead-voip/bulkhead/registry"
)

// backend is a registry's store and all that is in it.
type backend interface {
	registry.Backed
	registry.History
	Close() error
}

// storeFlags say which store the registry is in. Only a central configsvc and
// the tools have them: nobody else needs a store's credentials.
type storeFlags struct {
	Store                     string `help:"Where the registry is: sqlite, which is the file registry.db of the data folder, or a Redis: redis://HOST:PORT/DB, rediss:// with TLS, unix:///SOCKET; ?master=NAME for sentinels." default:"sqlite" env:"BULKHEAD_STORE" placeholder:"sqlite|URL"`
	StorePasswordFile         string `help:"File with the Redis's password. Default: the environment's BULKHEAD_STORE_PASSWORD." type:"path" placeholder:"FILE"`
	StoreSentinelPasswordFile string `help:"File with the password of its sentinels. Default: the environment's BULKHEAD_STORE_SENTINEL_PASSWORD." type:"path" placeholder:"FILE"`
	StoreReplicas             int    `help:"Replicas of the Redis that must have a revision, a token or a revocation before it is acknowledged. With sentinels, 0 lets a failover lose them. Default: 1 with sentinels, else 0." default:"-1" placeholder:"N"`
}

// embedded reports whether the registry is in the data folder.
func (f *storeFlags) embedded() bool { return f.Store == "" || f.Store == "sqlite" }

// open opens the store. That of the data folder must be there unless it may be
// made; a lazy Redis need not answer yet.
func (f *storeFlags) open(ctx context.Context, data dataDir, mayMake, lazy bool, log *slog.Logger) (backend, error) {
	if !f.embedded() {
		return f.openRedis(ctx, lazy, log)
	}
	if mayMake {
		if err := data.open(); err != nil {
			return nil, err
		}
	} else if _, err := os.Stat(data.registry()); err != nil {
		return nil, fmt.Errorf("there is no registry in %s: %w; name its folder with --data, or make one with bulkhead apply", data, bulkhead.NotFound)
	}
	store, err := registry.OpenSQLite(ctx, data.registry())
	if err != nil {
		return nil, err // not a backend that holds nil
	}
	return store, nil
}

func (f *storeFlags) openRedis(ctx context.Context, lazy bool, log *slog.Logger) (backend, error) {
	o, err := stream.ParseURL(f.Store)
	if err != nil {
		return nil, fmt.Errorf("--store: %w: %w", err, bulkhead.Invalid)
	}
	if o.Cluster {
		return nil, fmt.Errorf("--store: a Redis Cluster cannot hold the registry: name one server, or sentinels: %w", bulkhead.Invalid)
	}
	if o.Password, err = handedOver(f.StorePasswordFile, "BULKHEAD_STORE_PASSWORD"); err != nil {
		return nil, err
	}
	if o.SentinelPassword, err = handedOver(f.StoreSentinelPasswordFile, "BULKHEAD_STORE_SENTINEL_PASSWORD"); err != nil {
		return nil, err
	}
	replicas := f.StoreReplicas
	switch sentinels := o.MasterName != ""; {
	case replicas < 0 && sentinels:
		replicas = 1
	case replicas < 0:
		replicas = 0
	case replicas == 0 && sentinels:
		log.Warn("a failover of the registry's Redis can lose revisions, tokens and revocations that were acknowledged: set --store-replicas 1")
	}
	redis.SetLogger(libraryLog{log}) // of the library, for the whole process
	store, err := registry.OpenRedis(ctx, registry.RedisOptions{Client: o.Universal(), Replicas: replicas, Lazy: lazy, Log: log})
	if err != nil {
		return nil, err
	}
	return store, nil
}

// stateFlags are those of the tools that write a PBX's configuration, on the
// host of the registry or on the PBX's own.
type stateFlags struct {
	feedFlags `embed:""`

	Data string `help:"Folder that holds the registry and the secrets." default:"data" type:"path" placeholder:"DIR"`
}

// head returns the newest state: that of the central configsvcs if the flags
// name some, else of the data folder.
func (f *stateFlags) head(ctx context.Context) (bulkhead.State, error) {
	if len(f.Central) == 0 {
		return (&toolFlags{Data: f.Data}).head(ctx)
	}
	remote, err := f.remote(nil, nil, nil)
	if err != nil {
		return bulkhead.State{}, err
	}
	ctx, stop := context.WithTimeout(ctx, headWait)
	var running sync.WaitGroup
	running.Go(func() { _ = remote.Run(ctx) }) // it returns nothing else
	defer running.Wait()
	defer stop()
	return remote.Head(ctx)
}

// token returns the host's own token, or else the installation's.
func (f *stateFlags) token(shared string) (string, error) {
	return nodeSecret(dataDir(f.Data), f.TokenFile, shared)
}

func nodeSecret(data dataDir, file, shared string) (string, error) {
	if file != "" {
		return readToken(file)
	}
	return data.secret(shared)
}

// central returns the flags with which a service follows what head came from.
func (f *stateFlags) central() string {
	if len(f.Central) == 0 {
		return ""
	}
	return fmt.Sprintf(" --central %s --token-file %s", strings.Join(f.Central, ","), f.TokenFile)
}

// headWait is how long a tool waits for a central configsvc.
const headWait = 10 * time.Second

// toolFlags are those of the tools that work on a registry.
type toolFlags struct {
	storeFlags `embed:""`

	Data string `help:"Folder that holds the registry." default:"data" type:"path" placeholder:"DIR"`
}

// registry opens the registry, which must be there.
func (f *toolFlags) registry(ctx context.Context) (backend, error) {
	return f.open(ctx, dataDir(f.Data), false, false, slog.New(slog.DiscardHandler))
}

// make opens the registry, or makes an empty one.
func (f *toolFlags) make(ctx context.Context) (backend, error) {
	return f.open(ctx, dataDir(f.Data), true, false, slog.New(slog.DiscardHandler))
}

// head reads the newest state.
func (f *toolFlags) head(ctx context.Context) (bulkhead.State, error) {
	store, err := f.registry(ctx)
	if err != nil {
		return bulkhead.State{}, err
	}
	defer store.Close()
	return store.Head(ctx)
}
