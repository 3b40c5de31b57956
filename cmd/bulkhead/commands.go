package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
)

// Each service's own subcommand. It starts that service through the function
// that "run" uses.

type configsvcCmd struct {
	serviceFlags `embed:""`
	storeFlags   `embed:""`
	feedFlags    `embed:""`
	feedListener `embed:""`
	loadFlags    `embed:""`
	listenFlags  `embed:""`

	Agent bool `help:"Beside a node: hold no store, follow --central, and answer also when nobody else is alive."`

	Shadow     bool `help:"Answer every PBX that the call is not ours, and keep what would have been done, for bulkhead shadow report."`
	ShadowSize int  `help:"MiB of the data folder that the decisions may take; the oldest go. 64 are some 150,000 calls." default:"64" placeholder:"MIB"`

	Asterisk   map[string]string `help:"An Asterisk that asks here, and where its manager listens: what changes is expired in its caches. Repeatable." placeholder:"NODE=IP:PORT"`
	Freeswitch map[string]string `help:"A FreeSWITCH that asks here and may keep directory users (cacheable of the node), and where its event socket listens: its cache is emptied when users change. Repeatable." placeholder:"NODE=IP:PORT"`
}

// Validate is kong's hook after the flags were read.
func (c *configsvcCmd) Validate() error {
	switch {
	case c.Agent && len(c.Central) == 0:
		return errors.New("--agent needs --central URL and --token-file FILE")
	case c.Agent && !(c.embedded() && c.Feed == ""):
		return errors.New("--agent holds no store and serves no feed: leave out --store and --feed")
	case !c.Agent && len(c.Central) > 0:
		return errors.New("--central is for --agent: without it configsvc holds the store itself")
	}
	return nil
}

func (c *configsvcCmd) Run(ctx context.Context, a *app) error {
	return c.serve(ctx, a, "127.0.0.1:8081", func(p *parts, g *group) error {
		if c.Agent {
			if err := c.feedFlags.follow(p, g, "configsvc"); err != nil {
				return err
			}
		} else if err := p.followStore(g, &c.storeFlags, "configsvc"); err != nil {
			return err
		}
		shadow, err := c.shadow(p, g)
		if err != nil {
			return err
		}
		if _, err := startConfigsvc(p, g, c.listenFlags, shadow); err != nil {
			return err
		}
		if err := startCaches(p, g, c.Asterisk); err != nil {
			return err
		}
		if err := startFreeswitchCaches(p, g, c.Freeswitch); err != nil {
			return err
		}
		if err := startLoad(p, g, &c.loadFlags); err != nil {
			return err
		}
		feed, err := p.serveAPI(g)
		if err != nil || c.Feed == "" {
			return err
		}
		return startFeed(p, g, feed, &c.feedListener)
	})
}

// shadow starts what keeps decisions; nil: the answers are real.
func (c *configsvcCmd) shadow(p *parts, g *group) (*configsvc.Shadow, error) {
	if !c.Shadow {
		return nil, nil //nolint:nilnil // there is none
	}
	s, err := configsvc.OpenShadow(p.data.shadow(), int64(c.ShadowSize)<<20, p.log.With("service", "configsvc"), p.reg)
	if err != nil {
		return nil, err
	}
	g.run(services, "shadow", s.Run)
	p.log.Warn("shadow: every PBX is told that no call is ours")
	return s, nil
}

type eventbridgeCmd struct {
	serviceFlags `embed:""`
	feedFlags    `embed:""`
	bridgeFlags  `embed:""`
	forwardFlags `embed:""`

	Nodes  string `help:"Hear the nodes of this file instead of a registry's: records of any PBX, with nothing else of Bulkhead in place." type:"path" placeholder:"FILE.yaml"`
	Cell   string `help:"The cell whose nodes to hear; may be left out where there is one." placeholder:"ID"`
	Listen string `help:"Where SBCs and nodes post their events." default:"127.0.0.1:8090" placeholder:"IP:PORT"`
}

func (c *eventbridgeCmd) Run(ctx context.Context, a *app) error {
	var file *nodesFile
	if c.Nodes != "" {
		if c.Cell != "" || len(c.Sweep) > 0 || len(c.Central) > 0 {
			return fmt.Errorf("--nodes names a file that says the cell and the folders too: leave out --cell, --sweep and --central: %w", bulkhead.Invalid)
		}
		var err error
		if file, err = readNodesFile(c.Nodes); err != nil {
			return err
		}
	}
	return c.serve(ctx, a, "127.0.0.1:8082", func(p *parts, g *group) error {
		if file != nil {
			if _, err := startEventsOnly(p, g, file, c.Listen, c.Raw); err != nil {
				return err
			}
			return startForwarder(p, g, file.cell, &c.forwardFlags)
		}
		if err := c.follow(p, g, "eventbridge"); err != nil {
			return err
		}
		cell, err := cellOf(p.live.Load().State(), bulkhead.CellID(c.Cell))
		if err != nil {
			return err
		}
		if _, err = startEventbridge(p, g, cell, c.Listen, c.bridgeFlags); err != nil {
			return err
		}
		return startForwarder(p, g, cell, &c.forwardFlags)
	})
}

// cellOf returns the cell that was asked for, or the only one.
func cellOf(s bulkhead.State, want bulkhead.CellID) (bulkhead.CellID, error) {
	ids := slices.Sorted(maps.Keys(s.Cells))
	switch {
	case want != "" && s.Cells[want] != nil:
		return want, nil
	case want == "" && len(ids) == 1:
		return ids[0], nil
	}
	return "", fmt.Errorf("which cell? --cell is %q, the registry has %v: %w", want, ids, bulkhead.NotFound)
}

type cdrpipeCmd struct {
	serviceFlags   `embed:""`
	redisFlags     `embed:""`
	warehouseFlags `embed:""`

	Cell string `help:"With --redis: the cell whose records to move; may be left out where the data folder's registry has one." placeholder:"ID"`
}

func (c *cdrpipeCmd) Run(ctx context.Context, a *app) error {
	return c.serve(ctx, a, "127.0.0.1:8083", func(p *parts, g *group) error {
		if c.Redis != "" {
			cell, err := cellOfStream(ctx, p.data, bulkhead.CellID(c.Cell))
			if err != nil {
				return err
			}
			if err := c.connect(p, g, cell); err != nil {
				return err
			}
		}
		_, err := startCdrpipe(p, g, &c.warehouseFlags)
		return err
	})
}

type dispatcherCmd struct {
	serviceFlags `embed:""`
	feedFlags    `embed:""`

	SBC      string `help:"The SBC to keep." required:"" placeholder:"ID"`
	Kamailio string `help:"Folder of its table file, dispatcher list and RPC socket. Default: kamailio in the data folder." placeholder:"DIR"`
	Route    string `help:"Where that Kamailio asks configsvc about calls that its tables do not know (config kamailio --route): while nobody answers there it is told not to." placeholder:"HOST:PORT"`
	Observe  bool   `help:"Write nothing: show what would be written against what is there."`
}

func (c *dispatcherCmd) Run(ctx context.Context, a *app) error {
	return c.serve(ctx, a, "127.0.0.1:8084", func(p *parts, g *group) error {
		if err := c.follow(p, g, "dispatcher"); err != nil {
			return err
		}
		dir := c.Kamailio
		if dir == "" {
			dir = p.data.path("kamailio")
		}
		token, err := nodeSecret(p.data, c.TokenFile, sbcToken)
		if err != nil {
			return err
		}
		return startDispatcher(p, g, keep{sbc: bulkhead.SBCID(c.SBC), dir: dir, route: c.Route, token: token, observe: c.Observe})
	})
}

// serviceStop is how long a service of its own takes to end, at most.
const serviceStop = 12 * time.Second

// serve opens the parts, starts what start says, and waits for its end.
func (f *serviceFlags) serve(ctx context.Context, a *app, admin string, start func(*parts, *group) error) error {
	if f.Admin == "" {
		f.Admin = admin
	}
	g := newGroup(ctx, serviceStop)
	p, err := openParts(g, f, f.logger(a.err))
	if err == nil {
		err = start(p, g)
	}
	if err != nil {
		if !errors.Is(err, context.Canceled) { // else it was told to end
			g.fail(err)
		}
	} else {
		g.started()
		p.log.Info("serving", "admin", p.addr.String())
	}
	return g.wait()
}

type configCmd struct {
	Kamailio   configKamailioCmd   `cmd:"" help:"Print or write a Kamailio's configuration, whole or just what to add to one that is there."`
	Freeswitch configFreeswitchCmd `cmd:"" help:"Print a FreeSWITCH's configuration files."`
	Asterisk   configAsteriskCmd   `cmd:"" help:"Print an Asterisk's configuration files, or what to add to them."`
}
