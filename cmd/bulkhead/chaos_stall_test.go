package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	stallLong   = 5 * time.Minute // a stall from here on has to reach the figures, in make chaos
	stallRate   = 170             // legs a second: each is created, answered and hung up, so about 500 events
	stallMemory = 64 << 20        // in a long stall, of which it takes a quarter and is told several times as much
	stallQueue  = 64 << 10
)

// TestChaosStall stops Redis and ClickHouse, which keep their connections and
// answer nothing, under 500 events a second. The bridge reads its event
// sockets all the time and does not grow; afterwards everything arrives, much
// faster than it was made, and once. The programs are as they are shipped: this
// is about how much they carry, and the other runs look for races.
func TestChaosStall(t *testing.T) {
	stall := time.Duration(fromEnv(t, "BULKHEAD_CHAOS_STALL", 20)) * time.Second
	seed := uint64(fromEnv(t, "BULKHEAD_CHAOS_SEED", chaosSeed))
	legs := int((stall + 8*time.Second).Seconds()) * stallRate
	p := startPipelineOf(t, shipped, 0, generatorConfig{Legs: legs, Rate: stallRate, Seed: seed})
	eventually(t, 2*time.Minute, "a pipeline that runs", func() string {
		if n := p.stored(); n == 0 {
			return "no row"
		}
		return ""
	})
	before, size := p.generator.ended(t), residentBytes(t, p.bridge.cmd.Process.Pid)
	p.redis.Pause()
	if err := p.clickhouse.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	queues, peak := p.watchBridge(stall)
	grown := peak - size
	made := p.generator.ended(t) - before
	if made == 0 {
		t.Fatal("no leg ended in the stall: the test showed nothing")
	}
	_ = p.clickhouse.Signal(syscall.SIGCONT) // it runs: it was stopped above
	p.redis.Resume()
	resumed := time.Now()
	first, caughtUp := p.catchUp(before)

	live := float64(made) / stall.Seconds()
	rate := float64(made) / caughtUp.Sub(resumed).Seconds()
	median, p90 := queues[len(queues)/2], queues[len(queues)*9/10]
	t.Logf("%v of stall: %d legs ended (%.0f/s); receive queue median %d, p90 %d, p99 %d, max %d bytes; the bridge grew by up to %d KiB to %d KiB; first row %v after, all of them %v after: %.1f times the live rate",
		stall, made, live, median, p90, queues[len(queues)*99/100], queues[len(queues)-1], grown>>10, peak>>10,
		first.Sub(resumed).Round(time.Millisecond), caughtUp.Sub(resumed).Round(time.Millisecond), rate/live)
	// A busy machine leaves the bridge without a core for moments; the queues
	// of one that stops reading are full, to megabytes, from then on. The figures
	// to reach need a machine of one's own, which the long run has.
	if q := queues[len(queues)/10]; q > stallQueue {
		t.Errorf("nine of ten looks saw %d bytes and more in the receive queues of the event sockets", q)
	}
	if took := caughtUp.Sub(resumed); took > stall+2*time.Minute {
		t.Errorf("what waited needed %v to arrive", took)
	}
	if most := 4 * stallMemory; grown > most {
		t.Errorf("the bridge grew by %d MiB, want %d at most", grown>>20, most>>20)
	}
	if stall >= stallLong {
		if median >= 4<<10 || p90 >= stallQueue {
			t.Errorf("in the receive queues of the event sockets were %d bytes, the median, and %d, the ninth of ten, want less than 4 and 64 KiB", median, p90)
		}
		if grown > stallMemory {
			t.Errorf("the bridge grew by %d MiB, want %d at most", grown>>20, stallMemory>>20)
		}
		if rate < 5*live {
			t.Errorf("what waited came %.1f times as fast as it was made, want 5 times", rate/live)
		}
	}
	<-p.generator.done
	p.alive()
	truth := p.generator.ledger(t)
	if wrong := compare(t, truth, p.settle(truth)); wrong > 0 {
		t.Errorf("%d of %d legs are wrong", wrong, len(truth))
	}
}

// stored returns the number of rows in the store; 0 while it cannot be asked.
func (p *pipeline) stored() int {
	ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
	defer cancel()
	w, err := p.store(ctx)
	if err != nil {
		return 0
	}
	defer w.Close()
	n, err := w.Counts(ctx)
	if err != nil {
		return 0
	}
	return int(n.Records)
}

// catchUp waits until the store holds what the ledger held when it was called,
// and returns when the first row came and when the last did. have is what it
// held before.
func (p *pipeline) catchUp(have int) (first, all time.Time) {
	p.t.Helper()
	want := p.generator.ended(p.t)
	eventually(p.t, 5*time.Minute, "what waited", func() string {
		n := p.stored()
		if first.IsZero() && n > have {
			first = time.Now()
		}
		if n < want {
			pauseFor(50 * time.Millisecond) // the store has work to do
			return fmt.Sprintf("%d of %d rows", n, want)
		}
		all = time.Now()
		return ""
	})
	return first, all
}

// watchBridge looks for as long as d at what waits in the bridge's event
// sockets and at its memory, and returns what it saw in the sockets, sorted,
// and the most memory that the bridge had.
func (p *pipeline) watchBridge(d time.Duration) (seen []int, peak int) {
	p.t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
		if bytes, heard := p.receiveQueues(); heard {
			seen = append(seen, bytes)
		}
		peak = max(peak, residentBytes(p.t, p.bridge.cmd.Process.Pid))
	}
	if len(seen) == 0 {
		p.t.Fatal("the bridge had no connection to an event socket")
	}
	slices.Sort(seen)
	return seen, peak
}

// receiveQueues returns the bytes that wait in the bridge's event sockets: TCP
// sockets whose far end is one of the wires to the switches. false: it has none.
func (p *pipeline) receiveQueues() (total int, heard bool) {
	p.t.Helper()
	ports := map[uint64]bool{}
	for _, w := range p.switches {
		ports[uint64(w.l.Addr().(*net.TCPAddr).Port)] = true
	}
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// sl local_address rem_address st tx_queue:rx_queue ...
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || fields[3] != "01" { // established
			continue
		}
		_, port, _ := strings.Cut(fields[2], ":")
		_, queue, _ := strings.Cut(fields[4], ":")
		n, err := strconv.ParseUint(port, 16, 16)
		bytes, err2 := strconv.ParseUint(queue, 16, 32)
		if err == nil && err2 == nil && ports[n] {
			heard = true
			total += int(bytes)
		}
	}
	return total, heard
}

// residentBytes returns the memory that a process has.
func residentBytes(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}
