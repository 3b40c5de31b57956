package kamailio_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/kamailio/kamailiotest"
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
