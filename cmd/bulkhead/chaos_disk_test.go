package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// disk is a file system of its own in memory that can be made full: its size
// is set to what is used, so that nothing else of the machine suffers.
type disk struct {
	t    *testing.T
	path string
}

// diskSize is more than a run of full size needs, and taken only as it is used.
const diskSize = 4 << 30

// newDisk mounts one at path until the test ends; nil, and loudly, where this
// process may not.
func newDisk(t *testing.T, path string) *disk {
	t.Helper()
	err := syscall.Mount("bulkhead-test", path, "tmpfs", 0, fmt.Sprintf("size=%d", diskSize))
	if errors.Is(err, syscall.EPERM) {
		if testenv.RequireReal() {
			t.Fatalf("NO DISK IS FILLED at %s: mounting needs root, and BULKHEAD_REQUIRE_REAL=1", path)
		}
		t.Logf("NO DISK IS FILLED at %s: mounting needs root", path)
		return nil
	}
	if err != nil {
		t.Fatalf("mount a disk at %s: %v", path, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	return &disk{t: t, path: path}
}

func (d *disk) name() string { return strings.TrimRight(filepath.Base(d.path), "0123456789") }

// fill leaves no room. What uses the disk writes meanwhile, so that the first
// size may be too small already.
func (d *disk) fill() {
	d.t.Helper()
	for try := 0; ; try++ {
		var st syscall.Statfs_t
		if err := syscall.Statfs(d.path, &st); err != nil {
			d.t.Fatalf("look at disk %s: %v", d.path, err)
		}
		used := int64(st.Blocks-st.Bfree) * st.Bsize
		err := d.resize(used)
		if err == nil {
			return
		}
		if !errors.Is(err, syscall.EINVAL) || try == 100 {
			d.t.Fatalf("fill disk %s: %v", d.path, err)
		}
	}
}

func (d *disk) free() {
	d.t.Helper()
	if err := d.resize(diskSize); err != nil {
		d.t.Fatalf("free disk %s: %v", d.path, err)
	}
}

func (d *disk) resize(bytes int64) error {
	return syscall.Mount("bulkhead-test", d.path, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", bytes))
}

// metric returns a value that a process exports, 0 if it does not.
func metric(t *testing.T, admin, name string) float64 {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + admin + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0
	}
	var v float64
	if m := regexp.MustCompile(`(?m)^` + name + ` (.*)$`).FindSubmatch(b); m != nil {
		_, _ = fmt.Sscan(string(m[1]), &v)
	}
	return v
}

// TestChaosDiskFull fills the bridge's disk, spool and journal, in the middle
// of traffic: it says so, goes on reading, and loses nothing.
func TestChaosDiskFull(t *testing.T) {
	p := startPipeline(t, 0, generatorConfig{Legs: 1500, Rate: 100, Seed: chaosSeed})
	if len(p.disks) == 0 {
		t.Skip("mounting needs root")
	}
	until := func(what string, ok func() string) {
		t.Helper()
		eventually(t, 2*time.Minute, what, ok)
	}
	until("traffic", func() string {
		if n := p.generator.ended(t); n < 100 {
			return fmt.Sprintf("%d legs", n)
		}
		return ""
	})
	until("/readyz to say that records cannot be stored", func() string {
		p.disks[0].fill() // again: a journal written anew gives back what the old one took
		if said := notReadyOf(t, p.admin); !strings.Contains(said, "cannot be stored") {
			return "it says " + said
		}
		return ""
	})
	until("the alarm of the spool", func() string {
		if metric(t, p.admin, "bulkhead_spool_alarm") != 1 || !strings.Contains(p.bridge.log.String(), "spool fills") {
			return "there is none"
		}
		return ""
	})
	until("refused records to be counted", func() string {
		if metric(t, p.admin, `bulkhead_spool_refused_records_total{reason="disk_error"}`) == 0 {
			return "none are"
		}
		return ""
	})
	p.disks[0].free()
	until("ready again", func() string {
		if said := notReadyOf(t, p.admin); !strings.Contains(said, `"ready":true`) {
			return said
		}
		return ""
	})
	<-p.generator.done
	p.alive()
	truth := p.generator.ledger(t)
	if wrong := compare(t, truth, p.settle(truth)); wrong > 0 {
		t.Errorf("%d of %d legs are wrong", wrong, len(truth))
	}
}
