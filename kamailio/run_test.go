package kamailio_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
	"github.com/bulkhead-voip/bulkhead/route"
)

// TestOrphanIsEnded starts Kamailio on the files of one that is still running
// and belongs to nobody.
func TestOrphanIsEnded(t *testing.T) {
	d := kamailiotest.Start(t, kamailio.Params{})
	d.Stop()
	binary, err := kamailio.Binary()
	if err != nil {
		t.Fatal(err)
	}
	orphan := exec.Command(binary, kamailio.Options{SharedMB: 128}.Args(d.Dir)...)
	orphan.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- orphan.Wait() }()
	eventually(t, "the orphan answers", func() bool {
		_, err := d.Client.Version(t.Context())
		return err == nil
	})
	d.Restart()
	select {
	case <-ended:
	case <-time.After(answerTimeout):
		t.Error("the orphan still runs")
		_ = syscall.Kill(-orphan.Process.Pid, syscall.SIGKILL)
	}
	if _, err := d.Client.Version(t.Context()); err != nil {
		t.Errorf("after the restart: %v", err)
	}
}

// TestEndOrphanAlone frees the address before anything is started.
func TestEndOrphanAlone(t *testing.T) {
	d := kamailiotest.Start(t, kamailio.Params{})
	if err := kamailio.EndOrphan(t.Context(), d.Dir+"/./", nil); err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp", d.Addr.String())
	if err != nil {
		t.Fatalf("its address is not free: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if err := kamailio.EndOrphan(t.Context(), d.Dir, nil); err != nil {
		t.Errorf("EndOrphan() with nobody there = %v", err)
	}
}

func TestKillLeavesNothing(t *testing.T) {
	d := kamailiotest.Start(t, kamailio.Params{})
	pid := d.PID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.Restart() // Stop ends what the main process left
	eventually(t, "the old group is gone", func() bool { return errors.Is(syscall.Kill(-pid, 0), syscall.ESRCH) })
	if _, err := d.Client.Version(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestOddFolder runs Kamailio in a folder with a space in its path, which is
// too long for a socket.
func TestOddFolder(t *testing.T) {
	if _, err := kamailio.Binary(); err != nil {
		if os.Getenv("BULKHEAD_REQUIRE_REAL") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	tmp, err := os.MkdirTemp("", "bhk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	t.Setenv("TMPDIR", tmp)
	dir := filepath.Join(tmp, "my calls", strings.Repeat("x", 120-len(tmp)-len("/my calls/")))
	if len(dir) != 120 {
		t.Fatalf("the path has %d bytes", len(dir))
	}
	p := kamailio.Params{SBC: "sbc1", Listen: kamailiotest.FreePort(t), Workers: 1}
	if err := p.Write(dir); err != nil {
		t.Fatal(err)
	}
	process, err := kamailio.Start(t.Context(), dir, kamailio.Options{SharedMB: 64, PrivateMB: 32}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("TMPDIR", "/nowhere") // another process finds it all the same
	c, err := kamailio.New(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // only asked
	want := route.Tables{SBC: "sbc1", Revision: 7, Rows: []route.Row{{Key: "d:acme.example", Value: "acme"}}}
	if err := c.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if diffs, err := c.Verify(t.Context(), want); err != nil || len(diffs) != 0 {
		t.Errorf("Verify() = %q, %v", diffs, err)
	}
	sockets, err := filepath.Glob(filepath.Join(tmp, "bulkhead-*"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("folders for sockets: %q, %v", sockets, err)
	}
	// Nobody else may listen there, or be let in.
	if err := os.Chmod(sockets[0], 0o755); err != nil { //nolint:gosec // that is the point
		t.Fatal(err)
	}
	if _, err := kamailio.New(dir, nil, nil); !errors.Is(err, bulkhead.Conflict) {
		t.Errorf("New() with an open folder = %v, want a conflict", err)
	}
}

func TestStartFails(t *testing.T) {
	if _, err := kamailio.Binary(); err != nil {
		if os.Getenv("BULKHEAD_REQUIRE_REAL") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "bhk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := (kamailio.Params{SBC: "sbc1", Listen: "192.0.2.1:5060"}).Write(dir); err != nil { // not ours
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = kamailio.Start(ctx, dir, kamailio.Options{Output: io.Discard}, nil)
	if !errors.Is(err, bulkhead.Unavailable) || !strings.Contains(err.Error(), "192.0.2.1") || len(err.Error()) > 2500 {
		t.Errorf("Start() = %v, want unavailable, and why", err)
	}
	t.Log(err)
}
