package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
	"github.com/bulkhead-voip/bulkhead/route"
)

// coldStart compares the rows a second of a start from the last known good
// configuration on disk, as every follower starts, until calls can be decided,
// with those of decoding the JSON of the same file. A row is a tenant, domain,
// network, number or user. It also reports the memory that a loaded snapshot
// keeps for each tenant.
func coldStart(ctx context.Context) ([]figure, error) {
	const tenants, rows, runs = 100_000, 100_000 * (1 + 3 + 2 + 5 + 10), 5
	dir, err := os.MkdirTemp("", "bulkhead-bench")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	saved, err := registry.OpenLastGood(dir)
	if err != nil {
		return nil, err
	}
	if err := saved.Save(fullState(tenants), nil); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		return nil, fmt.Errorf("files of one generation: %q, %w", files, err)
	}
	var loads, decodes []float64
	var kept uint64
	for range runs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		before := heap()
		began := time.Now()
		state, _, err := saved.Load()
		if err != nil {
			return nil, err
		}
		x := route.New(state)
		loads = append(loads, rows/time.Since(began).Seconds())
		if n := x.TenantCount(); n != tenants {
			return nil, errors.New("tenants are missing from the snapshot")
		}
		state = bulkhead.State{}
		kept = heap() - before
		runtime.KeepAlive(x)
		runtime.GC()
		began = time.Now()
		if c, err := decodeSnapshot(files[0]); err != nil || len(c.Tenants) != tenants {
			return nil, fmt.Errorf("decode %d tenants: %w", len(c.Tenants), err)
		}
		decodes = append(decodes, rows/time.Since(began).Seconds())
	}
	load, decode := median(loads), median(decodes)
	return []figure{
		{name: "cold_start", value: load, unit: "rows/s", ratio: load / decode, bar: bar{">=", 0.3}},
		{name: "cold_start_decode", value: decode, unit: "rows/s"},
		{name: "snapshot_bytes_per_tenant", value: float64(kept) / tenants, unit: "bytes"},
	}, nil
}

// heap returns the bytes that are in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// decodeSnapshot decodes a file's lines and does nothing else with them: no
// checksum, no check, no index.
func decodeSnapshot(path string) (c bulkhead.Change, err error) {
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var line struct {
			Put bulkhead.Change `json:"put"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return c, err
		}
		c.Cells, c.Pools = append(c.Cells, line.Put.Cells...), append(c.Pools, line.Put.Pools...)
		c.Nodes, c.SBCs = append(c.Nodes, line.Put.Nodes...), append(c.SBCs, line.Put.SBCs...)
		c.Tenants = append(c.Tenants, line.Put.Tenants...)
	}
	return c, lines.Err()
}
