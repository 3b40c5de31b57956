package main

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/asterisk"
)

// The passwords of an Asterisk's interfaces, made on its host.
const (
	ariSecret   = "ari.password"
	amiSecret   = "ami.password"
	cacheSecret = "ami-cache.password" // of the user who expires cached objects and counts channels
)

// cacheUser is that user, as the shipped configuration names it.
const cacheUser = "bulkhead-cache"

type configAsteriskCmd struct {
	stateFlags `embed:""`

	Node     string   `help:"The node." required:"" placeholder:"ID"`
	URL      []string `help:"URLs of configsvc, at most two, tried in order." default:"http://127.0.0.1:8080" placeholder:"URL"`
	Attach   bool     `help:"Only what is added to an Asterisk that is there."`
	Dir      string   `help:"With --attach: the Asterisk's configuration folder, to see what it has already." default:"/etc/asterisk" type:"path" placeholder:"DIR"`
	Write    bool     `help:"With --attach: add it to the files in --dir. bulkhead detach takes it out again."`
	Endpoint []string `help:"With --attach: an endpoint of your own pjsip.conf whose calls Bulkhead is asked about, the context that it has, and whose it is. Repeatable." placeholder:"NAME=CONTEXT[,TENANT[,USER]]"`
	Out      string   `short:"o" help:"Folder to write the files into. Default: print them." type:"path" placeholder:"DIR"`
}

// Validate is kong's hook after the flags were read.
func (c *configAsteriskCmd) Validate() error {
	if !c.Attach && (c.Write || len(c.Endpoint) > 0) {
		return fmt.Errorf("--write and --endpoint go with --attach")
	}
	return nil
}

func (c *configAsteriskCmd) Run(ctx context.Context, a *app) error {
	head, err := c.head(ctx)
	if err != nil {
		return err
	}
	params, err := c.params(head)
	if err != nil {
		return err
	}
	if c.Write {
		if err := asterisk.Attach(c.Dir, params); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "added to %s; restart Asterisk when no call goes on\n", c.Dir)
		return nil
	}
	files, err := asterisk.RenderNode(params)
	if err != nil {
		return err
	}
	if c.Attach && c.Out == "" {
		list, err := asterisk.Additions(c.Dir)
		if err != nil {
			return err
		}
		for _, add := range list {
			fmt.Fprintf(a.out, "; ===== at the end of %s =====%s\n", filepath.Join(c.Dir, add.File), add.Text())
		}
	}
	for _, f := range files {
		if c.Out == "" {
			fmt.Fprintf(a.out, "; ===== %s =====\n%s\n", f.Path, f.Text)
			continue
		}
		if err := a.writeNodeConf(c.Node, filepath.Join(c.Out, f.Path), f.Text); err != nil {
			return err
		}
	}
	return nil
}

func (c *configAsteriskCmd) params(head bulkhead.State) (asterisk.NodeParams, error) {
	node := head.Nodes[bulkhead.NodeID(c.Node)]
	if node == nil {
		return asterisk.NodeParams{}, fmt.Errorf("the registry has no node %q: %w", c.Node, bulkhead.NotFound)
	}
	if node.Kind != bulkhead.Asterisk {
		return asterisk.NodeParams{}, fmt.Errorf("node %q is no Asterisk: give it kind: asterisk: %w", c.Node, bulkhead.Invalid)
	}
	p := asterisk.NodeParams{
		Node: node.ID, URLs: c.URL, SIP: node.SIP, Attach: c.Attach, Defer: node.Unmanaged == bulkhead.DeferUnmanaged,
		Events: asterisk.Params{HTTP: node.ARI, AMI: node.AMI},
	}
	for _, s := range c.Endpoint {
		name, rest, _ := strings.Cut(s, "=")
		parts := append(strings.SplitN(rest, ",", 3), "", "")
		p.Own = append(p.Own, asterisk.OwnEndpoint{Name: name, Context: parts[0], Tenant: bulkhead.TenantID(parts[1]), User: parts[2]})
	}
	var err error
	if p.Token, err = c.token(nodeToken); err != nil {
		return p, err
	}
	for name, to := range map[string]*string{ariSecret: &p.Events.Password, amiSecret: &p.Events.Secret, cacheSecret: &p.CacheSecret} {
		if *to, err = dataDir(c.Data).secret(name); err != nil {
			return p, err
		}
	}
	return p, nil
}

// startCaches keeps the caches of the named Asterisk nodes equal to the
// snapshot from which this process answers them.
func startCaches(p *parts, g *group, nodes map[string]string) error {
	if len(nodes) == 0 {
		return nil
	}
	secret, err := p.data.secret(cacheSecret)
	if err != nil {
		return err
	}
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		ami := asterisk.AMI{Addr: nodes[node], User: cacheUser, Secret: secret}
		c, err := asterisk.NewCaches(bulkhead.NodeID(node), ami, p.live, p.log.With("service", "configsvc"), p.reg)
		if err != nil {
			return err
		}
		g.run(services, "caches of "+node, c.Run)
	}
	return nil
}
