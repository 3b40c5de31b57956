package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/route"
)

type configFreeswitchCmd struct {
	stateFlags `embed:""`

	Node    string   `help:"The node." required:"" placeholder:"ID"`
	URL     []string `help:"URLs of configsvc, tried in order." default:"http://127.0.0.1:8080/freeswitch/xml" placeholder:"URL"`
	Bridge  []string `help:"Addresses of the event bridges that may use the event socket. Default: loopback." placeholder:"IP"`
	CDRURL  []string `help:"URLs of the event bridge's /freeswitch/cdr; none: mod_json_cdr is left out." name:"cdr-url" default:"http://127.0.0.1:8090/freeswitch/cdr" placeholder:"URL"`
	CDRDir  string   `help:"Folder on the node for call records that could not be posted." name:"cdr-dir" default:"/var/lib/freeswitch/json_cdr" placeholder:"DIR"`
	Attach  bool     `help:"Only what is added to a FreeSWITCH that has a configuration of its own."`
	Dir     string   `help:"With --attach: the switch's configuration folder, to see what it has already." default:"/etc/freeswitch" type:"path" placeholder:"DIR"`
	Write   bool     `help:"With --attach: add it to the files in --dir. bulkhead detach takes it out again."`
	Profile []string `help:"With --attach: a SIP profile of your own that reaches carriers which want a user and password. Repeatable." placeholder:"NAME"`
	Out     string   `short:"o" help:"Folder to write the files into. Default: print them." type:"path" placeholder:"DIR"`
}

// Validate is kong's hook after the flags were read.
func (c *configFreeswitchCmd) Validate() error {
	switch {
	case !c.Attach && (c.Write || len(c.Profile) > 0):
		return errors.New("--write and --profile go with --attach")
	case c.Attach && c.Out != "":
		return errors.New("--attach prints what to add, or adds it with --write: leave out --out")
	}
	return nil
}

func (c *configFreeswitchCmd) Run(ctx context.Context, a *app) error {
	head, err := c.head(ctx)
	if err != nil {
		return err
	}
	params, err := c.params(head)
	if err != nil {
		return err
	}
	if c.Attach {
		return c.attach(a, params)
	}
	files, err := freeswitch.RenderConf(params)
	if err != nil {
		return err
	}
	for _, f := range files {
		if c.Out == "" {
			fmt.Fprintf(a.out, "<!-- ===== %s ===== -->\n%s\n", f.Path, f.Text)
			continue
		}
		if err := a.writeNodeConf(c.Node, filepath.Join(c.Out, f.Path), f.Text); err != nil {
			return err
		}
	}
	return nil
}

// attach prints or adds what makes a switch ask that has a configuration of its own.
func (c *configFreeswitchCmd) attach(a *app, params freeswitch.Params) error {
	if c.Write {
		changed, err := freeswitch.Attach(c.Dir, params, c.Profile)
		for _, f := range changed {
			fmt.Fprintln(a.out, filepath.Join(c.Dir, f))
		}
		if err == nil {
			fmt.Fprintln(a.out, "now: fs_cli -x 'load mod_xml_curl' (reload, if it was loaded before); for each --profile: fs_cli -x 'sofia profile NAME rescan'")
		}
		return err
	}
	list, err := freeswitch.Additions(c.Dir, params, c.Profile)
	if err != nil {
		return err
	}
	places := map[string]string{
		freeswitch.BindingsFile: "before </bindings>", freeswitch.ModulesFile: "behind <modules>, before all other modules",
	}
	for _, add := range list {
		fmt.Fprintf(a.out, "<!-- ===== %s: %s ===== -->\n%s\n", filepath.Join(c.Dir, add.File), cmp.Or(places[add.File], "in the profile"), add.Text)
	}
	return nil
}

func (c *configFreeswitchCmd) params(head bulkhead.State) (freeswitch.Params, error) {
	node := head.Nodes[bulkhead.NodeID(c.Node)]
	if node == nil {
		return freeswitch.Params{}, fmt.Errorf("the registry has no node %q: %w", c.Node, bulkhead.NotFound)
	}
	p := freeswitch.Params{Node: node.ID, URLs: c.URL, SIP: node.SIP, ESL: node.ESL, Bridges: c.Bridge, CDRURLs: c.CDRURL, CDRErrDir: c.CDRDir}
	cell := route.New(head).CellOf(node.ID)
	for _, id := range slices.Sorted(maps.Keys(head.SBCs)) {
		if head.SBCs[id].Cell == cell {
			p.SBCs = append(p.SBCs, head.SBCs[id].SIP)
		}
	}
	var err error
	if p.Token, err = c.token(nodeToken); err != nil {
		return p, err
	}
	p.ESLPassword, err = dataDir(c.Data).secret(eslSecret)
	return p, err
}

// startFreeswitchCaches keeps the directory caches of the named FreeSWITCH nodes
// equal to the snapshot from which this process answers them.
func startFreeswitchCaches(p *parts, g *group, nodes map[string]string) error {
	if len(nodes) == 0 {
		return nil
	}
	password, err := p.data.secret(eslSecret)
	if err != nil {
		return err
	}
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		esl := freeswitch.Config{Addr: nodes[node], Password: password}
		c, err := freeswitch.NewCaches(bulkhead.NodeID(node), esl, p.live, p.log.With("service", "configsvc"), p.reg)
		if err != nil {
			return err
		}
		g.run(services, "cache of "+node, c.Run)
	}
	return nil
}
