package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
)

// loadFlags are those of the process beside a PBX that tells how busy it is.
type loadFlags struct {
	Load   string `help:"Where to tell the dispatchers at /load how busy this host is; the node's agent in the registry. Empty: nowhere." placeholder:"IP:PORT"`
	Node   string `help:"With --load: the node whose PBX is asked for its sessions." placeholder:"ID"`
	PBXPID string `help:"With --load: the PBX's pid file. If the PBX lives in a control group with a CPU quota, that is what counts." name:"pbx-pid" type:"path" placeholder:"FILE"`
}

// startLoad tells at --load how busy this host is.
func startLoad(p *parts, g *group, f *loadFlags) error {
	if f.Load == "" {
		return nil
	}
	x := p.live.Load()
	n := x.Node(bulkhead.NodeID(f.Node))
	if n == nil {
		return fmt.Errorf("--load: the registry has no node %q: say with --node whose load it is: %w", f.Node, bulkhead.NotFound)
	}
	counts, err := counterOf(p.data, n)
	if err != nil {
		return err
	}
	var counter configsvc.Counter
	if counts != nil {
		g.onClose("counter of the load", counts.Close)
		counter = counts
	}
	log := p.log.With("service", "load")
	load := configsvc.NewLoad(n.ID, pidOf(f.PBXPID), counter, log)
	return serveLoad(g, load, f.Load, func(id, password string) bool {
		return p.isSBC(p.live.Load(), bulkhead.SBCID(id), password)
	}, log)
}

// counter counts a PBX's sessions, over a connection of its own.
type counter interface {
	Count(ctx context.Context) (bulkhead.PBXLoad, error)
	Close() error
}

// counterOf returns what counts the sessions of a node's PBX: a FreeSWITCH over
// its event socket, an Asterisk over AMI. Nil: the registry does not say where
// to ask.
func counterOf(data dataDir, n *bulkhead.Node) (counter, error) {
	switch {
	case n.Kind == bulkhead.Asterisk && n.AMI != "":
		secret, err := data.secret(cacheSecret)
		if err != nil {
			return nil, err
		}
		return asterisk.NewCounter(asterisk.AMI{Addr: n.AMI, User: cacheUser, Secret: secret}), nil
	case n.Kind != bulkhead.Asterisk && n.ESL != "":
		password, err := data.secret(eslSecret)
		if err != nil {
			return nil, err
		}
		return freeswitch.NewCounter(freeswitch.Config{Addr: n.ESL, Password: password}), nil
	}
	return nil, nil //nolint:nilnil // there is none
}

// serveLoad runs a Load and serves it on a listener of its own: the SBCs reach
// it, and nothing else of this process.
func serveLoad(g *group, load *configsvc.Load, listen string, isSBC func(id, password string) bool, log *slog.Logger) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listen for /load on %s: %w; choose another address with --load", listen, err)
	}
	srv := &http.Server{Handler: load.Handler(isSBC), ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	g.run(services, "load", load.Run)
	g.run(services, "load listener", func(ctx context.Context) error { return serve(ctx, srv, l) })
	log.Info("tells the load", "addr", l.Addr().String())
	return nil
}

// pidOf returns what reads a pid file, which changes when the PBX is started
// again. An empty path, or a file that is not there, is the whole host.
func pidOf(path string) func() int {
	return func() int {
		if path == "" {
			return 0
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return 0
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || pid < 0 {
			return 0
		}
		return pid
	}
}
