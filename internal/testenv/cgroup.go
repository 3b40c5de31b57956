package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// CPUGroup is a control group that has a share of the CPUs of its own, so that
// what runs in it can be overloaded without its neighbours.
type CPUGroup struct {
	dirs []string // in the hierarchies of cpu and cpuacct, or the unified one
}

var groups atomic.Int64

// CPUs makes a control group that may use so many CPUs, and ends it and what
// runs in it with the test. Where the machine does not let us, the test is
// skipped, also if the real programs are required: that takes no program but
// root, and a container seldom has it.
func CPUs(t testing.TB, cpus float64) *CPUGroup {
	t.Helper()
	g, err := NewCPUGroup(cpus)
	if err != nil {
		t.Skipf("needs root and the CPU controller of control groups: %v", err)
	}
	t.Cleanup(func() {
		if err := g.Remove(); err != nil {
			t.Errorf("end of a control group: %v", err)
		}
	})
	return g
}

// NewCPUGroup makes a control group, of version 1 or 2, whichever is mounted.
func NewCPUGroup(cpus float64) (*CPUGroup, error) {
	name := fmt.Sprintf("bulkhead-%d-%d", os.Getpid(), groups.Add(1))
	quota := strconv.Itoa(int(cpus * 100_000))
	g := &CPUGroup{}
	var files [][2]string
	if _, err := os.Stat("/sys/fs/cgroup/cpu/cpu.stat"); err == nil {
		dir := filepath.Join("/sys/fs/cgroup/cpu", name)
		g.dirs = append(g.dirs, dir)
		files = append(files, [2]string{filepath.Join(dir, "cpu.cfs_period_us"), "100000"}, [2]string{filepath.Join(dir, "cpu.cfs_quota_us"), quota})
		a, errA := os.Stat("/sys/fs/cgroup/cpuacct")
		c, errC := os.Stat("/sys/fs/cgroup/cpu")
		if errA == nil && errC == nil && !os.SameFile(a, c) {
			g.dirs = append(g.dirs, filepath.Join("/sys/fs/cgroup/cpuacct", name))
		}
	} else {
		// The controller may not be handed down yet.
		_ = os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+cpu"), 0o600)
		dir := filepath.Join("/sys/fs/cgroup", name)
		g.dirs = append(g.dirs, dir)
		files = append(files, [2]string{filepath.Join(dir, "cpu.max"), quota + " 100000"})
	}
	for _, d := range g.dirs {
		if err := os.Mkdir(d, 0o755); err != nil { //nolint:gosec // the kernel's own folder
			return nil, errors.Join(fmt.Errorf("make a control group: %w", err), g.Remove())
		}
	}
	for _, f := range files {
		if err := os.WriteFile(f[0], []byte(f[1]), 0o600); err != nil {
			return nil, errors.Join(fmt.Errorf("limit a control group: %w", err), g.Remove())
		}
	}
	return g, nil
}

// Add moves a process into the group. What it starts from then on is in it too.
func (g *CPUGroup) Add(pid int) error {
	for _, d := range g.dirs {
		if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
			return fmt.Errorf("put process %d into a control group: %w", pid, err)
		}
	}
	return nil
}

// Yield lets the group have a CPU only when nobody outside of it wants that one,
// as good as. On a host of their own its processes would not be in the way at all.
func (g *CPUGroup) Yield() error {
	name, least := "cpu.shares", "2" // version 1
	if _, err := os.Stat(filepath.Join(g.dirs[0], name)); err != nil {
		name, least = "cpu.weight", "1"
	}
	if err := os.WriteFile(filepath.Join(g.dirs[0], name), []byte(least), 0o600); err != nil {
		return fmt.Errorf("give a control group the least weight: %w", err)
	}
	return nil
}

// Periods returns in how many periods of 100 ms the group ran, and in how many
// of them it wanted more than its CPUs.
func (g *CPUGroup) Periods() (all, throttled int, err error) {
	b, err := os.ReadFile(filepath.Join(g.dirs[0], "cpu.stat"))
	if err != nil {
		return 0, 0, fmt.Errorf("read what a control group used: %w", err)
	}
	f := strings.Fields(string(b))
	for i := 0; i+1 < len(f); i += 2 {
		n, _ := strconv.Atoi(f[i+1]) // of the kernel
		switch f[i] {
		case "nr_periods":
			all = n
		case "nr_throttled":
			throttled = n
		}
	}
	return all, throttled, nil
}

// Remove removes the group, once its processes are gone.
func (g *CPUGroup) Remove() error {
	var errs []error
	for _, d := range g.dirs {
		var err error
		for end := time.Now().Add(10 * time.Second); ; {
			err = os.Remove(d)
			if !errors.Is(err, syscall.EBUSY) || time.Now().After(end) {
				break
			}
			t := time.NewTimer(10 * time.Millisecond) // a process that was killed is not gone at once
			<-t.C
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
