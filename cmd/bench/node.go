package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

// nodeEnv makes this program a media node: its value is a nodeConfig in JSON.
const nodeEnv = "BULKHEAD_BENCH_NODE"

// nodeConfig says where a media node takes calls, and where it tells how busy
// it is; empty: nowhere.
type nodeConfig struct {
	ID   bulkhead.NodeID
	SIP  string
	Load string
}

// runNode answers every call until standard input ends.
func runNode(text string) error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return fmt.Errorf("%s: %w", nodeEnv, err)
	}
	group, err := siptest.NewPhones(siptest.PhonesConfig{Listen: c.SIP})
	if err != nil {
		return err
	}
	defer group.Close() //nolint:errcheck // the process ends
	if _, err := group.Add(siptest.PhoneConfig{User: "*", Domain: c.SIP}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if c.Load != "" {
		load := configsvc.NewLoad(c.ID, os.Getpid, nil, slog.New(slog.DiscardHandler))
		l, err := net.Listen("tcp", c.Load)
		if err != nil {
			return err
		}
		srv := &http.Server{Handler: load.Handler(func(string, string) bool { return false }), ReadTimeout: time.Second, WriteTimeout: time.Second}
		defer srv.Close()                 //nolint:errcheck // the process ends
		go func() { _ = load.Run(ctx) }() // ends with ctx
		go func() { _ = srv.Serve(l) }()  // ends with Close
	}
	_, err = io.Copy(io.Discard, os.Stdin) // until whoever started it ends it, or ends
	return err
}

// node is a media node in a process of its own.
type node struct {
	nodeConfig
	child    *child
	confined bool // it is in a control group of its own
}

// start starts its process.
func (n *node) start() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	env, err := json.Marshal(n.nodeConfig)
	if err != nil {
		return err
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), nodeEnv+"="+string(env))
	n.child, err = startChild(cmd)
	return err
}

// child is a process that does not outlive this one.
type child struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan struct{}
	err  error // set before done is closed
}

// startChild starts cmd. The kernel kills it with the thread that started it,
// which is therefore kept.
func startChild(cmd *exec.Cmd) (*child, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, in: in, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return c, nil
}

// runChild runs cmd to its end, which is not later than ctx's.
func runChild(ctx context.Context, cmd *exec.Cmd) error {
	c, err := startChild(cmd)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, c.kill)
	defer stop()
	<-c.done
	return errors.Join(c.err, ctx.Err())
}

// kill ends the process with SIGKILL and waits until it is gone. A nil child
// is gone already.
func (c *child) kill() {
	if c == nil {
		return
	}
	_ = c.cmd.Process.Kill() // it may be gone already
	<-c.done
}
