package hostload

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

var update = flag.Bool("update", false, "write the golden files anew")

// parts splits a file of "-- name --" sections.
func parts(t *testing.T, file string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	name := ""
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "-- "); ok {
			name = strings.TrimSuffix(strings.TrimSpace(n), " --")
			continue
		}
		out[name] += line
	}
	return out
}

// root is a file system of the first n states of a fixture, those of
// host.txt below them.
func root(t *testing.T, file string, n int) fstest.MapFS {
	t.Helper()
	m := fstest.MapFS{}
	for _, f := range []string{"testdata/host.txt", file} {
		all := parts(t, f)
		for i := range n {
			for name, text := range all {
				if rest, ok := strings.CutPrefix(name, fmt.Sprintf("%d ", i)); ok {
					m[rest] = &fstest.MapFile{Data: []byte(text)}
					if net, ok := strings.CutPrefix(rest, "proc/net/"); ok {
						m["proc/4711/net/"+net] = m[rest]
					}
				}
			}
		}
	}
	return m
}

// Two readings of each fixture, 10 s apart.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 5 {
		t.Fatalf("fixtures: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			pid := 4711
			if strings.Contains(file, "host") {
				pid = 0
			}
			now := time.Unix(1000, 0)
			r := newReader(root(t, file, 1), func() int { return pid }, func() time.Time { return now })
			a, err := r.Read()
			if err != nil {
				t.Fatal(err)
			}
			r.root = root(t, file, 2)
			now = now.Add(10 * time.Second)
			b, err := r.Read()
			if err != nil {
				t.Fatal(err)
			}
			u := Between(a, b)
			got := fmt.Sprintf("group %t\ncpu %.3f\nsteal %.3f\nsoftirq %.3f\nthrottled %.3f\npressure %.3f\nudp errors %.3f\nnic drops %.3f\n",
				u.Group, u.CPU, u.Steal, u.SoftIRQ, u.Throttled, u.Pressure, u.UDPErrors, u.NICDrops)
			golden := strings.TrimSuffix(file, ".txt") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil || got != string(want) {
				t.Errorf("use is\n%swant\n%s%v", got, want, err)
			}
		})
	}
}

func TestBadFiles(t *testing.T) {
	for name, text := range map[string]string{
		"proc/stat":                              "cpu 1 2 3\n",
		"proc/4711/net/snmp":                     "Udp: InDatagrams\nUdp: 1\n",
		"proc/4711/net/dev":                      "eth0: 1 2 3\n",
		"proc/4711/cgroup":                       "",
		"sys/fs/cgroup/cpu/pbx/cpu.cfs_quota_us": "many\n",
	} {
		m := root(t, "testdata/cgroup-v1.txt", 1)
		m[name] = &fstest.MapFile{Data: []byte(text)}
		if text == "" {
			delete(m, name)
		}
		r := newReader(m, func() int { return 4711 }, time.Now)
		if _, err := r.Read(); err == nil || !strings.Contains(err.Error(), "read the load of this host") {
			t.Errorf("%s of %q gives %v, want an error", name, text, err)
		}
	}
}

// A counter that goes back, and a group that is another one, are no load.
func TestCountersThatJump(t *testing.T) {
	r := newReader(root(t, "testdata/cgroup-v1.txt", 2), func() int { return 4711 }, func() time.Time { return time.Unix(2000, 0) })
	late, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	r = newReader(root(t, "testdata/cgroup-v1.txt", 1), func() int { return 4711 }, func() time.Time { return time.Unix(2010, 0) })
	early, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	if u := Between(late, early); u != (Use{}) {
		t.Errorf("use is %+v, want none", u)
	}
	if u := Between(early, early); u != (Use{}) {
		t.Errorf("use within no time is %+v, want none", u)
	}
}

// This machine's own files.
func TestThisMachine(t *testing.T) {
	if _, err := os.Stat("/proc/stat"); err != nil {
		t.Skipf("needs Linux: %v", err)
	}
	r := NewReader(os.Getpid)
	a, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	burn(100 * time.Millisecond)
	b, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	if u := Between(a, b); u.CPU <= 0 || u.CPU > 1 {
		t.Errorf("use of this machine while it works is %+v", u)
	}
}

func burn(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
	}
}

// A process in a real control group with a fifth of a CPU, which it uses up.
func TestRealGroup(t *testing.T) {
	g := testenv.CPUs(t, 0.2)
	pid := spin(t)
	if err := g.Add(pid); err != nil {
		t.Fatal(err)
	}
	r := NewReader(func() int { return pid })
	a, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		<-time.After(300 * time.Millisecond) // what is measured is a use of time
		b, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		u := Between(a, b)
		if u.Group && u.CPU > 0.6 && u.Throttled > 0.3 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("use of a group that spins is %+v", u)
		}
		a = b
	}
}

// spin starts a process that uses all the CPU it gets, and ends it with the test.
func spin(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed: an error by design
	})
	return cmd.Process.Pid
}

// A Sampler has the newest use, and says so when it cannot read any more.
func TestSampler(t *testing.T) {
	m := root(t, "testdata/host.txt", 1)
	synctest.Test(t, func(t *testing.T) {
		var pid atomic.Int64
		s := NewSampler(newReader(m, func() int { return int(pid.Load()) }, time.Now), 250*time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		if _, _, err := s.Last(); err == nil {
			t.Error("there is a use after one reading")
		}
		pass(10 * time.Second)
		if _, at, err := s.Last(); err != nil || time.Since(at) > 250*time.Millisecond {
			t.Errorf("the newest use is of %s, %v", at, err)
		}
		pid.Store(99) // a process that is gone
		pass(time.Second)
		if _, _, err := s.Last(); err == nil {
			t.Error("there is a use though the process is gone")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// pass lets fake time pass.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
