package cdrpipe

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// chServer is one real server for many tests, each with its own database.
type chServer struct {
	*testenv.ClickHouseServer
	databases atomic.Int64
}

func startClickHouse(t *testing.T) *chServer {
	return &chServer{ClickHouseServer: testenv.ClickHouse(t)}
}

// config is that of a new database.
func (s *chServer) config() ClickHouseConfig {
	c := DefaultClickHouseConfig()
	c.Addrs = []string{s.Native}
	c.Database = fmt.Sprintf("db%d", s.databases.Add(1))
	c.ExportLag = 0 // the test's clock does not step
	return c
}

func openClickHouse(t *testing.T, cfg ClickHouseConfig) *ClickHouse {
	t.Helper()
	c, err := OpenClickHouse(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestClickHouse(t *testing.T) {
	s := startClickHouse(t)
	testWarehouse(t, func(t *testing.T) Warehouse { return openClickHouse(t, s.config()) })
}
