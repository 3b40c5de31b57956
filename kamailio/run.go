package kamailio

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	// startTimeout is how long Kamailio may take until it answers: 100,000
	// rows take about 2 s.
	startTimeout = 20 * time.Second
	// termTimeout is how long Kamailio may take to end by itself.
	termTimeout = 3 * time.Second
	pollEvery   = 20 * time.Millisecond
)

// Binary returns the path of the installed kamailio. Where there is none the
// error is of kind bulkhead.NotFound.
func Binary() (string, error) {
	for _, name := range []string{"kamailio", "/usr/sbin/kamailio", "/usr/local/sbin/kamailio"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("kamailio is not installed (Debian: kamailio, kamailio-extra-modules, kamailio-utils-modules and kamailio-sqlite-modules): %w", bulkhead.NotFound)
}

// Options are how a Kamailio is run.
type Options struct {
	Output io.Writer // what Kamailio prints, its log among it; nil: nowhere
	// Foreign says that kamailio.cfg is not the shipped one, which counts when it
	// is ready: it is as soon as it answers.
	Foreign bool
	// SharedMB holds tables, contacts and transactions; Memory computes it. 0: 256.
	SharedMB int
	// PrivateMB is each process's own, taken only when used; Memory computes what
	// the one that loads a table needs. 0: 128.
	PrivateMB int
}

// memoryManager allocates in constant time. Debian's default, qm, searches lists
// of free pieces, which took a quarter of a worker's time.
const memoryManager = "tlsf"

// Args returns the arguments that kamailio is run with on the files in dir,
// in the foreground. Whoever runs it otherwise needs the same memory.
func (o Options) Args(dir string) []string {
	return []string{
		"-DD", "-E", "-f", filepath.Join(dir, ConfFile), "-P", filepath.Join(dir, PIDFile), "-Y", dir, "-w", dir,
		"-x", memoryManager, "-X", memoryManager, "-m", strconv.Itoa(cmp.Or(o.SharedMB, 256)), "-M", strconv.Itoa(cmp.Or(o.PrivateMB, 128)),
	}
}

// Process is a running Kamailio. It lives no longer than the process that
// started it.
type Process struct {
	pid    int
	done   chan struct{}
	err    error         // set before done is closed
	output *output       // the end of what it printed
	copied chan struct{} // closed when the last of its processes has ended
}

// Start starts Kamailio on the files that Params.Write has put into dir, and
// returns when it answers. A Kamailio that an earlier run left behind on the
// same files is ended first. When ctx ends before it answers, it is ended again.
func Start(ctx context.Context, dir string, o Options, log *slog.Logger) (*Process, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("start kamailio in %s: %w", dir, err)
	}
	binary, err := Binary()
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := EndOrphan(ctx, dir, log); err != nil {
		return nil, err
	}
	client, err := New(dir, log, nil)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(binary, o.Args(dir)...)
	cmd.Dir = dir
	// No http_proxy: the events would go there.
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"}
	p := &Process{done: make(chan struct{}), output: &output{to: o.Output}, copied: make(chan struct{})}
	if err := p.run(cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start kamailio in %s: %w", dir, err), client.Close())
	}
	err = p.ready(ctx, client, o.Foreign)
	err = errors.Join(err, client.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start kamailio in %s: %w", dir, err), p.Stop(context.WithoutCancel(ctx)))
	}
	return p, nil
}

// run starts cmd in a process group of its own.
func (p *Process) run(cmd *exec.Cmd) error {
	// A pipe of our own: exec's would let Wait wait for children that outlive
	// a main process that crashed.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := p.fork(cmd); err != nil {
		return errors.Join(err, r.Close(), w.Close())
	}
	go func() { // ends with the last process that holds w
		defer close(p.copied)
		_, _ = io.Copy(p.output, r) // an output that fails must not block Kamailio
		_ = r.Close()
	}()
	return w.Close()
}

func (p *Process) fork(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends: keep it.
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	return <-started
}

func (p *Process) ready(ctx context.Context, client *Client, foreign bool) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		var n map[string]int64
		var err error
		if foreign {
			_, err = client.Version(ctx)
		} else {
			n, err = client.Counters(ctx)
		}
		if err == nil && (foreign || n["ready"] > 0) {
			return nil
		}
		select {
		case <-p.done:
			p.waitOutput()
			return fmt.Errorf("it ended at once (%v) and said: %s: %w", p.err, p.output.why(), bulkhead.Unavailable)
		case <-ctx.Done():
			return fmt.Errorf("it does not answer, or has not loaded its contacts: %w: %w", bulkhead.Unavailable, cmp.Or(err, ctx.Err()))
		case <-time.After(pollEvery):
		}
	}
}

// PID returns the id of Kamailio's main process, which is also that of its group.
func (p *Process) PID() int { return p.pid }

// Done is closed when Kamailio has ended, for whatever reason.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop ends Kamailio: it is asked to, and after 3 s, or when ctx ends,
// killed with all of its processes. Stopping twice is no error.
func (p *Process) Stop(ctx context.Context) error {
	_ = syscall.Kill(p.pid, syscall.SIGTERM) // gone already: then done is closed
	t := time.NewTimer(termTimeout)
	defer t.Stop()
	select {
	case <-p.done:
	case <-ctx.Done():
	case <-t.C:
	}
	// Also what a main process that was killed left behind.
	if err := syscall.Kill(-p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill the process group of kamailio %d: %w", p.pid, err)
	}
	<-p.done
	p.waitOutput()
	return nil
}

// EndOrphan ends every Kamailio process whose command line names dir's
// kamailio.cfg, as Start does: whoever looks for free ports before that must
// not find them taken by what an earlier run left behind. None is no error. The
// error is of kind bulkhead.Conflict if one cannot be ended.
func EndOrphan(ctx context.Context, dir string, log *slog.Logger) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("end the kamailio that an earlier run left in %s: %w", dir, err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	conf := filepath.Join(dir, ConfFile)
	pids := processesOf(conf)
	if len(pids) == 0 {
		return nil
	}
	log.Warn("ending a kamailio that an earlier run left behind", "dir", dir, "pids", pids)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for _, pid := range pids {
			_ = syscall.Kill(pid, sig) // gone already is what we want
		}
		deadline := time.Now().Add(termTimeout)
		for time.Now().Before(deadline) {
			if pids = slices.DeleteFunc(pids, ended); len(pids) == 0 {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("end the kamailio that an earlier run left in %s: %w", dir, ctx.Err())
			case <-time.After(pollEvery):
			}
		}
	}
	return fmt.Errorf("a kamailio of an earlier run (pids %v) cannot be ended: end it by hand: %w", pids, bulkhead.Conflict)
}

// ended says whether a process has let go of all that it had, its addresses
// among it: one that is about to end has no command line any more, but its sockets still.
func ended(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return true
	}
	_, state, _ := bytes.Cut(b, []byte(") "))
	return bytes.HasPrefix(state, []byte("Z"))
}

// processesOf returns the ids of the processes that were started as
// "kamailio ... -f conf ...".
func processesOf(conf string) []int {
	var pids []int
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is right
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		args := bytes.Split(b, []byte{0})
		at := slices.IndexFunc(args, func(a []byte) bool { return string(a) == "-f" })
		if filepath.Base(string(args[0])) != "kamailio" || at < 0 || at+1 >= len(args) || string(args[at+1]) != conf {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
