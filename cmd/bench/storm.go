package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// stormEnv makes this program the callers of a storm: its value is a
// stormConfig in JSON.
const stormEnv = "BULKHEAD_BENCH_STORM"

// stormConfig says whom a storm calls: tenant's calls, Rate a second, at the SBC.
type stormConfig struct {
	SBC          string
	Tenant, Rate int
	Name         string
}

// stormSeen is what the callers of a storm saw.
type stormSeen struct {
	Placed, Failed int
	SetupP99       float64 // milliseconds
}

// runStorm places calls until standard input ends, and prints what it saw.
func runStorm(text string) error {
	var c stormConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return fmt.Errorf("%s: %w", stormEnv, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	k, err := placeCalls(ctx, c.SBC, c.Tenant, c.Rate, c.Name)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	calls, err := k.finish()
	if err != nil {
		return err
	}
	if len(calls) == 0 {
		return fmt.Errorf("no call was placed")
	}
	return json.NewEncoder(os.Stdout).Encode(stormSeen{Placed: len(calls), Failed: failed(calls), SetupP99: p99(setupTimes(calls))})
}

// storm is callers in a process and a control group of their own.
type storm struct {
	child *child
	seen  bytes.Buffer
}

func startStorm(c stormConfig, group *testenv.CPUGroup) (*storm, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	env, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	s := &storm{}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), stormEnv+"="+string(env))
	cmd.Stdout, cmd.Stderr = &s.seen, os.Stderr
	if s.child, err = startChild(cmd); err != nil {
		return nil, err
	}
	if err := group.Add(s.child.cmd.Process.Pid); err != nil {
		s.child.kill()
		return nil, err
	}
	return s, nil
}

// end ends the storm, when its last calls are answered or given up.
func (s *storm) end() (seen stormSeen, err error) {
	_ = s.child.in.Close() // it may have ended
	late := time.AfterFunc(30*time.Second, s.child.kill)
	defer late.Stop()
	<-s.child.done
	if s.child.err != nil {
		return stormSeen{}, fmt.Errorf("callers of a storm: %w", s.child.err)
	}
	if err := json.Unmarshal(s.seen.Bytes(), &seen); err != nil {
		return stormSeen{}, fmt.Errorf("callers of a storm said %q: %w", s.seen.String(), err)
	}
	return seen, nil
}
