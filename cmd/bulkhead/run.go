package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/siptest"
)

type runCmd struct {
	serviceFlags   `embed:""`
	forwardFlags   `embed:""`
	warehouseFlags `embed:""`

	Listen    string        `help:"Where PBXs ask." default:"127.0.0.1:8080" placeholder:"IP:PORT"`
	Events    string        `help:"Where SBCs post their events." default:"127.0.0.1:8090" placeholder:"IP:PORT"`
	Demo      bool          `help:"Load example tenants if the registry is empty, start pure-Go media nodes and place calls."`
	Kamailio  bool          `help:"Use Kamailio as the SBC if it is installed." default:"true" negatable:""`
	StopAfter time.Duration `help:"End by itself after so long." placeholder:"TIME"`
	LogFile   string        `help:"Where to log; - is standard error. Default: bulkhead.log in the data folder." placeholder:"FILE"`
}

// runStop is how long "run" takes to end, at most.
const runStop = 5 * time.Second

// runAdmin is where the admin API of "run" is unless --admin says otherwise.
const runAdmin = "127.0.0.1:8088"

func (c *runCmd) Run(ctx context.Context, a *app) error {
	if c.StopAfter > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.StopAfter)
		defer cancel()
	}
	data := dataDir(c.Data)
	if err := data.open(); err != nil {
		return err
	}
	unlock, err := lockData(data)
	if err != nil {
		return err
	}
	defer unlock()
	logTo, closeLog, err := c.openLog(data, a.err)
	if err != nil {
		return err
	}
	defer closeLog()
	if c.Demo {
		// A Kamailio that an earlier run left behind must not keep its port.
		if err := kamailio.EndOrphan(ctx, data.path("kamailio"), slog.New(slog.NewTextHandler(logTo, nil))); err != nil {
			return err
		}
		if err := c.demoAddresses(a.out); err != nil {
			return err
		}
		if err := seedDemo(ctx, data, a.out); err != nil {
			return err
		}
	}
	if c.Admin == "" {
		c.Admin = runAdmin
	}
	g := newGroup(ctx, runStop)
	if err := c.start(g, a, c.logger(logTo)); err != nil && !errors.Is(err, context.Canceled) {
		g.fail(err)
	}
	g.started()
	return g.wait()
}

// start starts every service, and with --demo what they serve.
func (c *runCmd) start(g *group, a *app, log *slog.Logger) error {
	p, err := openParts(g, &c.serviceFlags, log)
	if err != nil {
		return err
	}
	if err := p.followStore(g, &storeFlags{}, ""); err != nil {
		return err
	}
	x := p.live.Load()
	sbc, err := onlySBC(x.State())
	if err != nil {
		return err
	}
	xml, err := startConfigsvc(p, g, listenFlags{Listen: c.Listen}, nil)
	if err != nil {
		return err
	}
	if _, err := p.serveAPI(g); err != nil {
		return err
	}
	events, err := startEventbridge(p, g, sbc.Cell, c.Events, bridgeFlags{Raw: true})
	if err != nil {
		return err
	}
	if err := startForwarder(p, g, sbc.Cell, &c.forwardFlags); err != nil {
		return err
	}
	store, err := startCdrpipe(p, g, &c.warehouseFlags)
	if err != nil {
		return err
	}
	kind, err := startSBC(p, g, sbc, events.addr.String(), c, a.out)
	if err != nil {
		return err
	}
	b := &board{
		out: a.out, live: p.live, store: store, started: time.Now(), now: time.Now, open: events.OpenCalls,
		head: fmt.Sprintf("SBC: %s at %s   admin http://%s", kind, sbc.SIP, p.addr),
	}
	if c.Demo {
		nodes, err := startMediaNodes(p, g, x.State(), "http://"+xml.Addr().String()+"/freeswitch/xml")
		if err != nil {
			return err
		}
		b.ended = nodes.ended
		d, err := newDemo(x.State(), sbc.SIP, demoCarrier(x.State()), log.With("part", "demo"))
		if err != nil {
			return err
		}
		g.run(outside, "demo", d.Run)
	}
	fmt.Fprintf(a.out, "%s\nadmin token: %s\n", b.head, p.data.path("secrets", adminToken))
	g.run(outside, "table", b.Run)
	return nil
}

func (c *runCmd) openLog(data dataDir, stderr io.Writer) (io.Writer, func(), error) {
	switch c.LogFile {
	case "-":
		return stderr, func() {}, nil
	case "":
		c.LogFile = data.path("bulkhead.log")
	}
	f, err := openLogFile(c.LogFile, logFileMax)
	if err != nil {
		return nil, nil, err
	}
	return f, func() { f.Close() }, nil
}

// onlySBC returns the SBC that this process is or keeps.
func onlySBC(s bulkhead.State) (*bulkhead.SBC, error) {
	if len(s.SBCs) != 1 {
		return nil, fmt.Errorf("the registry has %d SBCs, and \"run\" is for one: apply a configuration with one (deploy/example.yaml), or start the services one by one: %w", len(s.SBCs), bulkhead.Invalid)
	}
	for _, b := range s.SBCs {
		return b, nil
	}
	return nil, nil //nolint:nilnil // unreachable: there is one
}

// startSBC starts Kamailio where it is installed and wanted, else the pure-Go
// stand-in, and says which. Only a demo goes on without a Kamailio that is
// installed but does not start.
func startSBC(p *parts, g *group, sbc *bulkhead.SBC, events string, c *runCmd, out io.Writer) (kind string, err error) {
	kind = "pure-Go stand-in"
	if c.Kamailio {
		version, err := startKamailio(p, g, sbc, events)
		switch {
		case err == nil:
			return version, nil
		case errors.Is(err, bulkhead.NotFound):
			kind += " (Kamailio is not installed)"
		case c.Demo && errors.Is(err, errKamailioDoesNotStart) && g.ctx.Err() == nil:
			kind += " (Kamailio does not start)"
			fmt.Fprintf(out, "%v\nThe demo goes on with the stand-in. Kamailio 5.6 needs Debian's packages kamailio, kamailio-extra-modules, kamailio-utils-modules and "+
				"kamailio-sqlite-modules; --no-kamailio does without it from the start.\n", err)
		default:
			return "", err
		}
	}
	log := p.log.With("part", "SBC")
	token, err := p.data.secret(sbcToken)
	if err != nil {
		return "", err
	}
	post := newSBCEvents(events, sbc.ID, token, log)
	proxy, err := siptest.NewProxy(siptest.ProxyConfig{
		Listen: sbc.SIP, Name: string(sbc.ID), Router: &router{sbc: sbc.ID, live: p.live}, OnEvent: post.add, Logger: log,
	})
	if err != nil {
		return "", fmt.Errorf("start the SBC: %w", err)
	}
	g.run(services, "SBC", proxy.Run)
	g.run(services, "SBC events", post.Run)
	return kind, nil
}

// mediaNodes are the pure-Go media nodes of the demo.
type mediaNodes []*freeswitchtest.Node

func (m mediaNodes) ended() int64 {
	var n int64
	for _, node := range m {
		n += node.Ended()
	}
	return n
}

func startMediaNodes(p *parts, g *group, s bulkhead.State, xmlURL string) (mediaNodes, error) {
	var all mediaNodes
	token, err := p.data.secret(nodeToken)
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		n := s.Nodes[id]
		if !isLoopback(n.SIP) {
			continue // a real one, somewhere else
		}
		cfg, err := mediaNodeConfig(p.data, n, token, []string{xmlURL})
		if err != nil {
			return nil, err
		}
		cfg.Logger = p.log
		node, err := freeswitchtest.New(cfg)
		if err != nil {
			return nil, fmt.Errorf("media node %q: %w", id, err)
		}
		g.run(media, "media node "+string(id), node.Run)
		all = append(all, node)
	}
	return all, nil
}

// demoAddresses moves the default listeners of a demo aside where something
// else already listens: a first look must not fail because of that.
func (c *runCmd) demoAddresses(out io.Writer) error {
	if c.Admin == "" {
		c.Admin = runAdmin
	}
	for _, a := range []*string{&c.Admin, &c.Listen, &c.Events} {
		l, err := net.Listen("tcp", *a)
		if err != nil {
			host, _, splitErr := net.SplitHostPort(*a)
			if splitErr != nil {
				return fmt.Errorf("address %q is not ip:port: %w", *a, bulkhead.Invalid)
			}
			fmt.Fprintf(out, "%s is taken: another port is used\n", *a)
			*a = net.JoinHostPort(host, "0")
			continue
		}
		l.Close()
	}
	return nil
}
