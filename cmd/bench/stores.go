package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// stores are a Redis and a ClickHouse of a benchmark's own.
type stores struct {
	dir        string // of the Redis
	redis      *exec.Cmd
	clickhouse *testenv.ClickHouseServer
}

// startStores starts both, with the ClickHouse's data below dir.
func startStores(ctx context.Context, dir string) (_ *stores, err error) {
	s := &stores{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.dir, err = os.MkdirTemp("", "bhr"); err != nil { // paths of sockets must be short
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	s.redis = exec.Command("redis-server", "--port", "0", "--unixsocket", s.socket(), "--dir", s.dir, "--appendonly", "yes", "--appendfsync", "everysec", "--save", "")
	s.redis.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.redis.Start(); err != nil {
		s.redis = nil
		return nil, fmt.Errorf("start redis-server (scripts/test-deps installs it): %w", err)
	}
	if s.clickhouse, err = testenv.StartClickHouse(ctx, dir, testenv.ClickHouseOptions{}); err != nil {
		return nil, err
	}
	return s, s.waitRedis(ctx)
}

func (s *stores) socket() string { return filepath.Join(s.dir, "redis.sock") }

func (s *stores) waitRedis(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("unix", s.socket())
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("redis-server does not listen: %w", err)
		case <-tick.C:
		}
	}
}

// signal sends both a signal: SIGSTOP and SIGCONT make them hang.
func (s *stores) signal(sig syscall.Signal) error {
	return errors.Join(s.redis.Process.Signal(sig), s.clickhouse.Signal(sig))
}

// open opens a database of the ClickHouse, and makes its tables.
func (s *stores) open(ctx context.Context, database string) (*cdrpipe.ClickHouse, error) {
	cfg := cdrpipe.DefaultClickHouseConfig()
	cfg.Addrs, cfg.Database = []string{s.clickhouse.Native}, database
	return cdrpipe.OpenClickHouse(ctx, cfg)
}

// close ends both: their data is of no use to anybody.
func (s *stores) close() {
	if s.clickhouse != nil {
		s.clickhouse.Kill()
	}
	if s.redis != nil {
		_ = s.redis.Process.Kill()
		_ = s.redis.Wait() // it was killed
	}
	os.RemoveAll(s.dir)
}
