package asterisktest

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

//go:embed conf
var confFiles embed.FS

const (
	startWait = 30 * time.Second
	stopWait  = 10 * time.Second
	// DefaultRoot is where scripts/test-deps puts an Asterisk, unless
	// BULKHEAD_ASTERISK_ROOT names another folder.
	DefaultRoot = "/var/cache/bulkhead/asterisk-root"
)

// Options of Start.
type Options struct {
	// Conf replaces files of Asterisk's configuration, by name, such as
	// extensions.conf, or adds some. They are templates as those in conf/.
	Conf map[string]string
	// Phones is the address of the phones that the dialplan calls.
	Phones netip.AddrPort
	// Params go into the files that asterisk.RenderConf makes, which the
	// configuration includes. Addresses, and a password, are filled in.
	Params asterisk.Params
	// Node, when set, replaces the whole configuration by that of
	// asterisk.RenderNode. Addresses and secrets are filled in, but for URLs and
	// Token; Conf replaces or adds files all the same.
	Node *asterisk.NodeParams
	// Bare leaves out what package asterisk ships: it is a PBX that knows nothing
	// of Bulkhead. Config and ARI have nothing to talk to then.
	Bare bool
}

// Daemon is a running Asterisk.
type Daemon struct {
	SIP     netip.AddrPort // where it takes SIP over UDP
	Dir     string         // its files
	Params  asterisk.Params
	Version string

	t    testing.TB
	opts Options
	vals confValues
	log  logBuffer

	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
}

// confValues is what the configuration's templates see.
type confValues struct {
	Dir, Root, Modules   string
	SIPPort, RTP, RTPEnd int
	Phones               string
}

// Root is the folder of the Debian system that has Asterisk in it.
func Root() string {
	if dir := os.Getenv("BULKHEAD_ASTERISK_ROOT"); dir != "" {
		return dir
	}
	return DefaultRoot
}

// Need skips the test where there is no Asterisk, or fails it if
// BULKHEAD_REQUIRE_REAL is 1.
func Need(t testing.TB) {
	t.Helper()
	root := Root()
	if _, _, err := loader(root); err == nil {
		return
	}
	if testenv.RequireReal() {
		t.Fatalf("no Asterisk in %s, and BULKHEAD_REQUIRE_REAL=1: scripts/test-deps makes it", root)
	}
	t.Skipf("needs Asterisk in %s: scripts/test-deps makes it", root)
}

// loader returns the root's own dynamic loader and the library path to start
// its programs with. So they run on any Linux, without chroot and without
// being root, and their files may lie anywhere.
func loader(root string) (ld string, libraries []string, err error) {
	if _, err := os.Stat(filepath.Join(root, "usr/sbin/asterisk")); err != nil {
		return "", nil, err
	}
	lds, _ := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu*/ld-linux*.so.*"))
	if len(lds) == 0 {
		return "", nil, fmt.Errorf("no ld-linux*.so in %s", root)
	}
	return lds[0], []string{filepath.Dir(lds[0])}, nil
}

// Start starts the real Asterisk in a folder of its own, on free ports of
// 127.0.0.1, and ends it with the test. Its log is attached to a test that
// failed. Where there is no Asterisk it does what Need does.
func Start(t testing.TB, opts Options) *Daemon {
	t.Helper()
	Need(t)
	// A unix socket's path has at most 107 bytes; t.TempDir has the test's name in it.
	dir, err := os.MkdirTemp("", "bha")
	if err != nil {
		t.Fatalf("folder for asterisk: %v", err)
	}
	d := &Daemon{Dir: dir, t: t, opts: opts}
	t.Cleanup(d.cleanup)
	// A free port may be taken by somebody else before Asterisk binds it.
	for try := 0; ; try++ {
		if err := d.configure(); err != nil {
			t.Fatalf("configuration of asterisk: %v", err)
		}
		if err = d.start(); err == nil {
			break
		}
		if try == 2 {
			t.Fatalf("start asterisk: %v\n%s", err, d.log.String())
		}
		d.Kill()
	}
	t.Logf("Asterisk %s", d.Version)
	return d
}

// Config is how to reach the daemon, through both of its interfaces.
func (d *Daemon) Config() asterisk.Config {
	return asterisk.Config{
		Node: "ast1", Cell: "c1",
		ARI: asterisk.ARI{URL: "http://" + d.Params.HTTP + "/ari", User: "bulkhead", Password: d.Params.Password},
		AMI: asterisk.AMI{Addr: d.Params.AMI, User: "bulkhead", Secret: d.Params.Secret},
	}
}

// configure chooses ports and writes the files.
func (d *Daemon) configure() error {
	sip, err := freePort("udp")
	if err != nil {
		return err
	}
	rtp, err := freePort("udp")
	if err != nil {
		return err
	}
	rtp = min(rtp&^1, 65000)
	d.SIP = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sip))
	p := d.opts.Params
	p.Password, p.Secret = "test-password-1", "test-secret-2"
	for _, addr := range []*string{&p.HTTP, &p.AMI} {
		port, err := freePort("tcp")
		if err != nil {
			return err
		}
		*addr = fmt.Sprintf("127.0.0.1:%d", port)
	}
	d.Params = p
	ld, libraries, err := loader(Root())
	if err != nil {
		return err
	}
	d.vals = confValues{Dir: d.Dir, Root: Root(), Modules: filepath.Join(libraries[0], "asterisk/modules"),
		SIPPort: sip, RTP: rtp, RTPEnd: rtp + 400, Phones: d.opts.Phones.String()}
	d.cmd = exec.Command(ld, "--library-path", strings.Join(libraries, ":"),
		filepath.Join(Root(), "usr/sbin/asterisk"), "-f", "-C", filepath.Join(d.Dir, "etc/asterisk.conf"))
	return d.write()
}

// write writes the configuration: the one in conf/, what replaces it, and what
// RenderConf makes.
func (d *Daemon) write() error {
	for _, sub := range []string{"etc/bulkhead", "var/keys", "var/log", "var/cel-custom"} {
		if err := os.MkdirAll(filepath.Join(d.Dir, sub), 0o700); err != nil {
			return err
		}
	}
	files := map[string]string{"udptl.conf": "", "pjproject.conf": ""}
	entries, err := fs.ReadDir(confFiles, "conf")
	if err != nil {
		return err
	}
	for _, e := range entries {
		b, err := confFiles.ReadFile("conf/" + e.Name())
		if err != nil {
			return err
		}
		files[e.Name()] = string(b)
	}
	if d.opts.Node != nil {
		whole, err := d.node()
		if err != nil {
			return err
		}
		files = whole
	}
	for name, body := range d.opts.Conf {
		files[name] = body
	}
	for name, body := range files {
		t, err := template.New(name).Option("missingkey=error").Parse(body)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := t.Execute(&b, d.vals); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(d.Dir, "etc", name), b.Bytes(), 0o600); err != nil {
			return err
		}
	}
	if d.opts.Bare {
		return nil
	}
	shipped, err := asterisk.RenderConf(d.Params)
	if err != nil {
		return err
	}
	for _, f := range shipped {
		if err := os.WriteFile(filepath.Join(d.Dir, "etc/bulkhead", f.Path), f.Text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// node returns the configuration of a node that asks Bulkhead, and what says
// where this Asterisk's files are.
func (d *Daemon) node() (map[string]string, error) {
	p := *d.opts.Node
	p.SIP, p.RTPStart, p.RTPEnd = d.SIP.String(), d.vals.RTP, d.vals.RTPEnd
	p.Recordings, p.CacheSecret, p.Events = filepath.Join(d.Dir, "var"), cacheSecret, d.Params
	rendered, err := asterisk.RenderNode(p)
	if err != nil {
		return nil, err
	}
	files := map[string]string{"udptl.conf": "", "pjproject.conf": ""}
	for _, name := range []string{"asterisk.conf", "logger.conf"} {
		b, err := confFiles.ReadFile("conf/" + name)
		if err != nil {
			return nil, err
		}
		files[name] = string(b)
	}
	for _, f := range rendered {
		files[f.Path] = string(f.Text)
	}
	return files, nil
}

// Caches is how to expire the objects that the daemon keeps.
func (d *Daemon) Caches() asterisk.AMI {
	return asterisk.AMI{Addr: d.Params.AMI, User: "bulkhead-cache", Secret: cacheSecret}
}

const cacheSecret = "test-cache-secret-3"

// start starts the process and waits until ARI answers.
func (d *Daemon) start() error {
	cmd := exec.Command(d.cmd.Path, d.cmd.Args[1:]...)
	cmd.Stdout, cmd.Stderr = &d.log, &d.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.cmd = cmd
	done := make(chan struct{})
	d.done = done
	go func() {
		_ = cmd.Wait() // how it ended shows in its log
		close(done)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := d.ready(ctx); err == nil {
			return nil
		} else if ctx.Err() != nil {
			return fmt.Errorf("it is not ready within %s: %w", startWait, err)
		}
		select {
		case <-done:
			return errors.New("it has ended")
		case <-tick.C:
		}
	}
}

// ready tells whether all interfaces are open.
func (d *Daemon) ready(ctx context.Context) error {
	if !strings.Contains(d.log.String(), "Asterisk Ready.") {
		return errors.New("it does not say that it is ready")
	}
	_, version, _ := strings.Cut(d.log.String(), "Asterisk ")
	d.Version, _, _ = strings.Cut(version, ",")
	if d.opts.Bare {
		return nil
	}
	if _, err := d.ARI(ctx, http.MethodGet, "/asterisk/info?only=system"); err != nil {
		return err
	}
	nc, err := net.DialTimeout("tcp", d.Params.AMI, time.Second)
	if err != nil {
		return err
	}
	return nc.Close()
}

// CLI runs a command as "asterisk -rx" does, and returns what it printed.
func (d *Daemon) CLI(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	program := slices.DeleteFunc(slices.Clone(d.cmd.Args[1:]), func(arg string) bool { return arg == "-f" })
	out, err := exec.CommandContext(ctx, d.cmd.Path, append(program, "-rx", command)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("asterisk -rx %q: %w: %s", command, err, out)
	}
	return string(out), nil
}

// ARI makes a request of the REST interface and returns the answer's body; a
// status other than 2xx is an error.
func (d *Daemon) ARI(ctx context.Context, method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return ariRequest(ctx, method, "http://"+d.Params.HTTP+"/ari"+path, "bulkhead", d.Params.Password)
}

// PID returns the id of the process.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Log returns what Asterisk has printed.
func (d *Daemon) Log() string { return d.log.String() }

// Kill ends Asterisk at once. Its files stay.
func (d *Daemon) Kill() { d.end(syscall.SIGKILL) }

// Stop ends Asterisk as its service does. Its files stay.
func (d *Daemon) Stop() { d.end(syscall.SIGTERM) }

func (d *Daemon) end(sig syscall.Signal) {
	if d.done == nil {
		return
	}
	_ = d.cmd.Process.Signal(sig) // it may have ended already
	select {
	case <-d.done:
	case <-time.After(stopWait):
		_ = d.cmd.Process.Kill()
		<-d.done
	}
	d.done = nil
}

// Restart starts Asterisk again on the same files and addresses.
func (d *Daemon) Restart() {
	d.t.Helper()
	d.Kill()
	d.log.mark()
	if err := d.start(); err != nil {
		d.t.Fatalf("restart asterisk: %v\n%s", err, d.log.String())
	}
}

func (d *Daemon) cleanup() {
	d.Kill()
	if d.t.Failed() {
		d.t.Logf("asterisk's log:\n%s", d.log.tail())
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		d.t.Errorf("remove asterisk's folder: %v", err)
	}
}

// freePort returns a port of 127.0.0.1 that is free now.
func freePort(network string) (int, error) {
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).Port, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// logBuffer keeps what a process prints.
type logBuffer struct {
	mu   sync.Mutex
	all  []byte
	from int // of the present start
}

const (
	maxLog  = 16 << 20
	tailLog = 32 << 10
)

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) < maxLog {
		l.all = append(l.all, b...)
	}
	return len(b), nil
}

func (l *logBuffer) mark() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from = len(l.all)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.all[l.from:])
}

func (l *logBuffer) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.all[max(0, len(l.all)-tailLog):])
}
