// Package kamailiotest starts the real Kamailio for tests, with exactly the
// configuration that is shipped.
package kamailiotest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/kamailio"
)

// Conf makes the kamailio.cfg of an operator who attached Bulkhead: with the
// files in dir and lines added as kamailio.Params.Lines says.
type Conf func(p kamailio.Params, dir string) string

// Daemon is a running Kamailio.
type Daemon struct {
	Client *kamailio.Client
	Addr   netip.AddrPort // where it takes SIP over UDP
	Dir    string         // its files
	Params kamailio.Params

	t       testing.TB
	log     logBuffer
	process *kamailio.Process
	conf    Conf
}

// Start starts Kamailio in a folder of its own and ends it with the test. SBC
// defaults to sbc1, Listen to a free port of 127.0.0.1, Workers to 2. The
// daemon's log is attached to a test that failed. Without Kamailio on the
// machine the test is skipped, or fails if BULKHEAD_REQUIRE_REAL is 1.
func Start(t testing.TB, p kamailio.Params) *Daemon {
	t.Helper()
	return start(t, p, nil, nil)
}

// Edited is Start with the shipped files as edit returns them, to see that a
// test fails without a part of them.
func Edited(t testing.TB, p kamailio.Params, edit func(name, text string) string) *Daemon {
	t.Helper()
	return start(t, p, nil, edit)
}

// Attach is Start with somebody else's kamailio.cfg. Listen is where it must listen.
func Attach(t testing.TB, p kamailio.Params, conf Conf) *Daemon {
	t.Helper()
	p.Attach = true
	return start(t, p, conf, nil)
}

func start(t testing.TB, p kamailio.Params, conf Conf, edit func(name, text string) string) *Daemon {
	t.Helper()
	if _, err := kamailio.Binary(); err != nil {
		if os.Getenv("BULKHEAD_REQUIRE_REAL") == "1" {
			t.Fatalf("needs kamailio: %v", err)
		}
		t.Skipf("needs kamailio: %v", err)
	}
	if p.SBC == "" {
		p.SBC = "sbc1"
	}
	if p.Workers == 0 {
		p.Workers = 2
	}
	chosen := p.Listen == ""
	// A unix socket's path has at most 107 bytes; t.TempDir has the test's name in it.
	dir, err := os.MkdirTemp("", "bhk")
	if err != nil {
		t.Fatalf("folder for kamailio: %v", err)
	}
	d := &Daemon{Dir: dir, t: t, conf: conf}
	t.Cleanup(d.cleanup)
	// A free port may be taken by somebody else before Kamailio binds it.
	for try := 0; ; try++ {
		if chosen {
			p.Listen = FreePort(t)
		}
		d.Params = p
		if err = p.Write(dir); err != nil {
			t.Fatalf("files of kamailio: %v", err)
		}
		if conf != nil {
			if err = os.WriteFile(filepath.Join(dir, kamailio.ConfFile), []byte(conf(p, dir)), 0o600); err != nil {
				t.Fatalf("files of kamailio: %v", err)
			}
		}
		if edit != nil {
			if err = editFiles(dir, edit); err != nil {
				t.Fatalf("files of kamailio: %v", err)
			}
		}
		if err = d.start(); err == nil {
			break
		}
		if !chosen || try == 2 {
			t.Fatalf("kamailio: %v", err)
		}
	}
	d.Addr = netip.MustParseAddrPort(p.Listen)
	if d.Client, err = kamailio.New(dir, nil, nil); err != nil {
		t.Fatalf("client of kamailio: %v", err)
	}
	return d
}

func editFiles(dir string, edit func(name, text string) string) error {
	for _, name := range []string{kamailio.ConfFile, kamailio.IncludeFile} {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(edit(name, string(b))), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) start() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	p, err := kamailio.Start(ctx, d.Dir, kamailio.Options{Output: &d.log, SharedMB: 128, PrivateMB: 64, Foreign: d.conf != nil}, nil)
	if err != nil {
		return err
	}
	d.process = p
	return nil
}

// Stop ends Kamailio. Its files stay.
func (d *Daemon) Stop() {
	d.t.Helper()
	if err := d.stop(); err != nil {
		d.t.Fatalf("stop kamailio: %v", err)
	}
}

func (d *Daemon) stop() error {
	if d.process == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := d.process.Stop(ctx)
	d.process = nil
	return err
}

// Restart ends Kamailio and starts it again on the same files and address.
func (d *Daemon) Restart() {
	d.t.Helper()
	d.Stop()
	if err := d.start(); err != nil {
		d.t.Fatalf("restart kamailio: %v", err)
	}
}

// PID returns the id of Kamailio's main process, 0 when it does not run.
func (d *Daemon) PID() int {
	if d.process == nil {
		return 0
	}
	return d.process.PID()
}

func (d *Daemon) cleanup() {
	var err error
	if d.Client != nil {
		err = d.Client.Close()
	}
	err = errors.Join(err, d.stop())
	if err != nil {
		d.t.Errorf("end of kamailio: %v", err)
	}
	if d.t.Failed() {
		d.t.Logf("log of kamailio in %s:\n%s", filepath.Base(d.Dir), d.log.String())
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		d.t.Errorf("folder of kamailio: %v", err)
	}
}

// Log returns what Kamailio printed so far, its last 256 KiB.
func (d *Daemon) Log() string { return d.log.String() }

// FreePort returns 127.0.0.1 with a UDP port that was free a moment ago.
func FreePort(t testing.TB) string {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("free port: %v", err)
	}
	defer c.Close() //nolint:errcheck // nothing was sent
	return c.LocalAddr().String()
}

// logBuffer keeps the end of what is written to it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const logLimit = 256 << 10

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Write(p)
	if extra := l.b.Len() - logLimit; extra > 0 {
		l.b.Next(extra)
	}
	return len(p), nil
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
