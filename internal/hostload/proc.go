package hostload

import (
	"bufio"
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// cpuTimes are the counters of the first line of /proc/stat, in ticks.
type cpuTimes struct {
	total, idle, softirq, steal uint64
}

// parseStat reads /proc/stat: user, nice, system, idle, iowait, irq, softirq,
// steal. What follows (guests) is part of user and nice already.
func parseStat(b []byte) (cpuTimes, int, error) {
	var t cpuTimes
	cpus := 0
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) == 0 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		if f[0] != "cpu" {
			cpus++
			continue
		}
		if len(f) < 9 {
			return t, 0, fmt.Errorf("%q has no steal time", strings.TrimSpace(string(line)))
		}
		for i, s := range f[1:9] {
			v, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				return t, 0, fmt.Errorf("%q: %w", s, err)
			}
			t.total += v
			switch i {
			case 3, 4:
				t.idle += v
			case 6:
				t.softirq = v
			case 7:
				t.steal = v
			}
		}
	}
	if t.total == 0 || cpus == 0 {
		return t, 0, fmt.Errorf("there are no counters of CPUs in it")
	}
	return t, cpus, nil
}

// parseSNMP reads from /proc/net/snmp how many UDP datagrams found a full
// receive buffer.
func parseSNMP(b []byte) (uint64, error) {
	var names []string
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) == 0 || f[0] != "Udp:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, n := range names {
			if n == "RcvbufErrors" && i < len(f) {
				return strconv.ParseUint(f[i], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("there are no RcvbufErrors of UDP in it")
}

// parseDev adds up what /proc/net/dev says that the network cards dropped,
// received or not yet sent. The loopback is no card.
func parseDev(b []byte) (uint64, error) {
	var sum uint64
	seen := false
	for line := range bytes.Lines(b) {
		name, rest, ok := strings.Cut(string(line), ":")
		if !ok {
			continue // the two lines of the heading
		}
		f := strings.Fields(rest)
		if len(f) < 12 {
			return 0, fmt.Errorf("the line of %s has %d fields, want 16", strings.TrimSpace(name), len(f))
		}
		seen = true
		if strings.TrimSpace(name) == "lo" {
			continue
		}
		for _, i := range []int{3, 4, 11} { // drop and fifo of receive, drop of transmit
			v, err := strconv.ParseUint(f[i], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("the line of %s: %w", strings.TrimSpace(name), err)
			}
			sum += v
		}
	}
	if !seen {
		return 0, fmt.Errorf("there is no interface in it")
	}
	return sum, nil
}

// parsePressure reads the line "some" of a pressure file: the microseconds in
// which some task waited for a CPU.
func parsePressure(b []byte) (uint64, error) {
	for line := range bytes.Lines(b) {
		if !bytes.HasPrefix(line, []byte("some ")) {
			continue
		}
		if _, total, ok := strings.Cut(strings.TrimSpace(string(line)), "total="); ok {
			return strconv.ParseUint(total, 10, 64)
		}
	}
	return 0, fmt.Errorf("there is no total of \"some\" in it")
}

// parseKeys reads "name value" lines, such as those of cpu.stat.
func parseKeys(b []byte) map[string]uint64 {
	out := map[string]uint64{}
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		name, value, ok := strings.Cut(s.Text(), " ")
		if !ok {
			continue
		}
		if v, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64); err == nil {
			out[name] = v
		}
	}
	return out
}
