package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// coldStart compares the rows a second of a start from the snapshot on disk,
// until calls can be decided, with those of decoding the same bytes. A row is
// a tenant, domain, network, number or user. It also reports the memory that
// a loaded snapshot keeps for each tenant.
func coldStart(ctx context.Context) ([]figure, error) {
	const tenants, rows, runs = 100_000, 100_000 * (1 + 3 + 2 + 5 + 10), 5
	dir, err := os.MkdirTemp("", "bulkhead-bench")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "snapshot")
	if err := saveSnapshot(path, fullState(tenants)); err != nil {
		return nil, err
	}
	var loads, decodes []float64
	var kept uint64
	for range runs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		before := heap()
		began := time.Now()
		x, err := loadSnapshot(path)
		if err != nil {
			return nil, err
		}
		loads = append(loads, rows/time.Since(began).Seconds())
		if n := x.TenantCount(); n != tenants {
			return nil, errors.New("tenants are missing from the snapshot")
		}
		kept = heap() - before
		runtime.KeepAlive(x)
		runtime.GC()
		began = time.Now()
		if _, err := decodeSnapshot(path); err != nil {
			return nil, err
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

// saveSnapshot writes a state as lines of JSON, 256 tenants each, and a last
// line with the checksum of those before.
func saveSnapshot(path string, s bulkhead.State) error {
	var b bytes.Buffer
	c := s.Change()
	for tenants := range slices.Chunk(c.Tenants, 256) {
		line := c
		line.Tenants = tenants
		text, err := json.Marshal(&line)
		if err != nil {
			return err
		}
		b.Write(append(text, '\n'))
		c = bulkhead.Change{}
	}
	sum := sha256.Sum256(b.Bytes())
	b.WriteString(hex.EncodeToString(sum[:]) + "\n")
	return os.WriteFile(path, b.Bytes(), 0o600)
}

// loadSnapshot reads a state and makes it ready to decide.
func loadSnapshot(path string) (*route.Snapshot, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	end := bytes.LastIndexByte(text[:len(text)-1], '\n') + 1
	if sum := sha256.Sum256(text[:end]); hex.EncodeToString(sum[:]) != string(text[end:len(text)-1]) {
		return nil, errors.New("the snapshot's checksum is wrong")
	}
	c, err := decodeLines(text[:end])
	if err != nil {
		return nil, err
	}
	return route.New(bulkhead.State{}.Apply(c)), nil
}

// decodeSnapshot reads the same bytes and does nothing else with them.
func decodeSnapshot(path string) (*bulkhead.Change, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decodeLines(text[:bytes.LastIndexByte(text[:len(text)-1], '\n')+1])
}

func decodeLines(text []byte) (*bulkhead.Change, error) {
	var all bulkhead.Change
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var c bulkhead.Change
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return nil, err
		}
		all.Cells, all.Pools = append(all.Cells, c.Cells...), append(all.Pools, c.Pools...)
		all.Nodes, all.SBCs = append(all.Nodes, c.Nodes...), append(all.SBCs, c.SBCs...)
		all.Tenants = append(all.Tenants, c.Tenants...)
	}
	return &all, lines.Err()
}
