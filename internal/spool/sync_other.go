//go:build unix && !linux

package spool

import (
	"math"
	"os"
)

// fdatasync is fsync where the system has nothing cheaper.
func fdatasync(f *os.File) error { return f.Sync() }

// freeBytes is not known here: the limit of the spool alone counts.
func freeBytes(string) (int64, error) { return math.MaxInt64, nil }
