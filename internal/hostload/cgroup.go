package hostload

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// group is a control group with a CPU quota.
type group struct {
	version int
	dir     string // of its cpu files, below the root
	usage   string // of its usage counter, version 1 only; empty: not counted for this group
	cpus    float64
}

// mounts are where the control groups' hierarchies can be seen.
type mounts struct {
	cpu, cpuacct, unified mount
}

// mount is where a hierarchy, or a part of it, is mounted.
type mount struct{ root, point string }

// parseMounts reads /proc/PID/mountinfo (proc_pid_mountinfo(5)).
func parseMounts(b []byte) mounts {
	var m mounts
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		at := mount{f[3], f[4]}
		switch g[0] {
		case "cgroup2":
			m.unified = at
		case "cgroup":
			for option := range strings.SplitSeq(g[2], ",") {
				switch option {
				case "cpu":
					m.cpu = at
				case "cpuacct":
					m.cpuacct = at
				}
			}
		}
	}
	return m
}

// parseMembership reads /proc/PID/cgroup: the program's group in the
// hierarchies of cpu and cpuacct and in the unified one (cgroups(7)).
func parseMembership(b []byte) (cpu, cpuacct, unified string) {
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[0] == "0" && f[1] == "" {
			unified = f[2]
		}
		for controller := range strings.SplitSeq(f[1], ",") {
			switch controller {
			case "cpu":
				cpu = f[2]
			case "cpuacct":
				cpuacct = f[2]
			}
		}
	}
	return cpu, cpuacct, unified
}

// folder returns where a group's files are, or "" if they cannot be seen.
func (m mount) folder(group string) string {
	if m.point == "" || group == "" {
		return ""
	}
	inside, ok := strings.CutPrefix(group, strings.TrimSuffix(m.root, "/"))
	if !ok || strings.Contains(group, "..") {
		return ""
	}
	return path.Join(m.point, inside)
}

// findGroup returns the nearest control group of a process that has a CPU
// quota, or nil.
func (r *Reader) findGroup(pid int) (*group, error) {
	of := func(name string) string { return fmt.Sprintf("proc/%d/%s", pid, name) }
	member, err := r.read(of("cgroup"))
	if err != nil {
		return nil, err
	}
	info, err := r.read("proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	m := parseMounts(info)
	cpu, cpuacct, unified := parseMembership(member)
	if dir := m.cpu.folder(cpu); dir != "" {
		for at := dir; strings.HasPrefix(at, m.cpu.point); at = path.Dir(at) {
			cpus, err := r.quota1(at)
			if err != nil {
				return nil, err
			}
			if cpus > 0 {
				g := &group{version: 1, dir: at, cpus: cpus}
				if cpuacct == cpu && m.cpuacct.folder(cpuacct) != "" {
					g.usage = path.Join(m.cpuacct.point, strings.TrimPrefix(at, m.cpu.point))
				}
				return g, nil
			}
		}
	}
	if dir := m.unified.folder(unified); dir != "" {
		for at := dir; strings.HasPrefix(at, m.unified.point); at = path.Dir(at) {
			cpus, err := r.quota2(at)
			if err != nil {
				return nil, err
			}
			if cpus > 0 {
				return &group{version: 2, dir: at, cpus: cpus}, nil
			}
		}
	}
	return nil, nil //nolint:nilnil // most programs have no quota
}

// quota1 returns how many CPUs a group of version 1 may use, 0 for all.
func (r *Reader) quota1(dir string) (float64, error) {
	quota, err := r.number(path.Join(dir, "cpu.cfs_quota_us"))
	if err != nil || quota <= 0 {
		return 0, ignoreMissing(err)
	}
	period, err := r.number(path.Join(dir, "cpu.cfs_period_us"))
	if err != nil || period <= 0 {
		return 0, ignoreMissing(err)
	}
	return quota / period, nil
}

// quota2 returns how many CPUs a group of version 2 may use, 0 for all.
func (r *Reader) quota2(dir string) (float64, error) {
	b, err := r.read(path.Join(dir, "cpu.max"))
	if err != nil {
		return 0, ignoreMissing(err)
	}
	f := strings.Fields(string(b))
	if len(f) != 2 || f[0] == "max" {
		return 0, nil
	}
	quota, err1 := strconv.ParseFloat(f[0], 64)
	period, err2 := strconv.ParseFloat(f[1], 64)
	if err := errors.Join(err1, err2); err != nil || period <= 0 {
		return 0, fmt.Errorf("%s/cpu.max is %q: %w", dir, b, err)
	}
	return quota / period, nil
}

// groupTimes are the counters of a group, in microseconds.
type groupTimes struct {
	used      uint64
	counted   bool // used is known
	periods   uint64
	throttled uint64 // periods in which the quota ran out
	pressure  uint64
	pressed   bool // pressure is known
}

func (r *Reader) groupTimes(g *group) (groupTimes, error) {
	b, err := r.read(path.Join(g.dir, "cpu.stat"))
	if err != nil {
		return groupTimes{}, err
	}
	k := parseKeys(b)
	t := groupTimes{periods: k["nr_periods"], throttled: k["nr_throttled"]}
	if g.version == 2 {
		t.used, t.counted = k["usage_usec"], true
		if b, err := r.read(path.Join(g.dir, "cpu.pressure")); err == nil {
			if t.pressure, err = parsePressure(b); err == nil {
				t.pressed = true
			}
		}
		return t, nil
	}
	if g.usage != "" {
		ns, err := r.number(path.Join(g.usage, "cpuacct.usage"))
		if err != nil {
			return t, err
		}
		t.used, t.counted = uint64(ns/1000), true
	}
	return t, nil
}

func (r *Reader) number(name string) (float64, error) {
	b, err := r.read(name)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(string(b)), 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

// ignoreMissing drops the error of a file that is not there: the group at the
// top of a hierarchy has no quota.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
