package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

// spoolReader is the name under which cdrpipe reads the spool.
const spoolReader = "cdrpipe"

// spoolStream fits the spool to cdrpipe.
type spoolStream struct{ r *spool.Reader }

func (s spoolStream) Read(ctx context.Context, limit int) (cdrpipe.Batch, error) {
	b, err := s.r.Read(ctx, limit)
	if err != nil {
		return cdrpipe.Batch{}, err
	}
	return cdrpipe.Batch{Payloads: b.Payloads, Ack: b.Ack}, nil
}

// sqliteStore is the value of --warehouse for the embedded store.
const sqliteStore = "sqlite"

// warehousePassword is the environment variable that holds the password.
const warehousePassword = "BULKHEAD_WAREHOUSE_PASSWORD"

// warehouseFlags say where the call records are.
type warehouseFlags struct {
	Warehouse             string `help:"Where call records are kept: sqlite, a file in the data folder, or clickhouse://user@host:9000/database, after which ?secure=true, cluster=NAME, records=DAYS and raw=DAYS may stand, joined by &. Its password is read from --warehouse-password-file or BULKHEAD_WAREHOUSE_PASSWORD." default:"sqlite" placeholder:"URL"`
	WarehousePasswordFile string `help:"File that holds the password of the ClickHouse user." type:"path" placeholder:"FILE"`
}

// warehouse is a cdrpipe.Warehouse that is closed by who opened it.
type warehouse interface {
	cdrpipe.Warehouse
	io.Closer
}

// open opens the store of who writes to it. It waits for a ClickHouse that is
// away, and for one that refuses us: it may be started, or its users mended,
// later than we are started, and nobody has to start us again. Meanwhile
// /readyz says which of the two it is.
func (f *warehouseFlags) open(p *parts, g *group, log *slog.Logger) (warehouse, error) {
	if f.Warehouse == sqliteStore {
		return cdrpipe.OpenSQLite(g.ctx, p.data.cdrs())
	}
	var failure atomic.Pointer[error] // of the last attempt
	g.readyWhen("CDR store", func() error {
		if err := failure.Load(); err != nil {
			return *err
		}
		return nil
	})
	for said := ""; ; {
		cfg, err := f.clickHouse() // again, since the password may be mended in its file
		if err != nil {
			return nil, err
		}
		w, err := cdrpipe.OpenClickHouse(g.ctx, cfg)
		if err == nil {
			failure.Store(nil)
			return w, nil
		}
		denied := errors.Is(err, bulkhead.Denied)
		if !denied && !errors.Is(err, bulkhead.Unavailable) || g.ctx.Err() != nil {
			return nil, err
		}
		failure.Store(&err)
		if err.Error() != said {
			said = err.Error()
			if denied {
				log.Error("the warehouse refuses us; no record is stored until somebody mends it", "error", err)
			} else {
				log.Warn("waiting for the warehouse", "error", err)
			}
		}
		select {
		case <-g.ctx.Done():
			return nil, err
		case <-time.After(clickHouseRetry):
		}
	}
}

// clickHouseRetry is the pause before a ClickHouse that is away is tried again.
const clickHouseRetry = time.Second

// ask opens the store of who only asks: nothing is made that is not there.
func (f *warehouseFlags) ask(ctx context.Context, data dataDir) (warehouse, error) {
	if f.Warehouse == sqliteStore {
		if _, err := os.Stat(data.cdrs()); err != nil {
			return nil, fmt.Errorf("there is no CDR store in %s: %w; name its folder with --data, or a ClickHouse with --warehouse", data, bulkhead.NotFound)
		}
		return cdrpipe.OpenSQLite(ctx, data.cdrs())
	}
	cfg, err := f.clickHouse()
	if err != nil {
		return nil, err
	}
	cfg.ReadOnly = true
	return cdrpipe.OpenClickHouse(ctx, cfg)
}

func (f *warehouseFlags) clickHouse() (cdrpipe.ClickHouseConfig, error) {
	if !strings.HasPrefix(f.Warehouse, "clickhouse://") {
		return cdrpipe.ClickHouseConfig{}, fmt.Errorf("--warehouse must be sqlite or begin with clickhouse:// : %w", bulkhead.Invalid)
	}
	cfg, err := cdrpipe.ParseClickHouseURL(f.Warehouse)
	if err != nil {
		return cfg, err
	}
	cfg.Password = os.Getenv(warehousePassword)
	if f.WarehousePasswordFile != "" {
		b, err := os.ReadFile(f.WarehousePasswordFile)
		if err != nil {
			return cfg, fmt.Errorf("read the password of the warehouse: %w", err)
		}
		cfg.Password = strings.TrimRight(string(b), "\r\n")
	}
	return cfg, nil
}

// ClickHouse wants few and large inserts.
const (
	clickHouseBatch    = 20_000
	clickHouseInterval = time.Second
)

// startCdrpipe moves records from the spool, or from Redis, to the store.
func startCdrpipe(p *parts, g *group, f *warehouseFlags) (cdrpipe.Warehouse, error) {
	log := p.log.With("service", "cdrpipe")
	store, err := f.open(p, g, log)
	if err != nil {
		return nil, err
	}
	g.onClose("CDR store", store.Close)
	in, err := openStream(p, g, log)
	if err != nil {
		return nil, err
	}
	cfg := cdrpipe.DefaultConfig()
	cfg.Stream, cfg.Warehouse, cfg.Logger, cfg.Registerer = in, store, log, p.reg
	if _, remote := store.(*cdrpipe.ClickHouse); remote {
		cfg.BatchSize, cfg.Interval = clickHouseBatch, clickHouseInterval
	}
	c, err := cdrpipe.New(cfg)
	if err != nil {
		return nil, err
	}
	g.run(services, "cdrpipe", c.Run)
	g.readyWhen("cdrpipe", c.Ready)
	p.mount([]string{"/v1/cdrs", "/v1/cdrs/export", "/v1/gaps", "/v1/kpis", "/v1/summary"}, cdrpipe.Routes(store))
	return store, nil
}
