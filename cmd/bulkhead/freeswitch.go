package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/route"
)

type configFreeswitchCmd struct {
	stateFlags `embed:""`

	Node   string   `help:"The node." required:"" placeholder:"ID"`
	URL    []string `help:"URLs of configsvc, tried in order." default:"http://127.0.0.1:8080/freeswitch/xml" placeholder:"URL"`
	Bridge []string `help:"Addresses of the event bridges that may use the event socket. Default: loopback." placeholder:"IP"`
	CDRURL []string `help:"URLs of the event bridge's /freeswitch/cdr; none: mod_json_cdr is left out." name:"cdr-url" default:"http://127.0.0.1:8090/freeswitch/cdr" placeholder:"URL"`
	CDRDir string   `help:"Folder on the node for call records that could not be posted." name:"cdr-dir" default:"/var/lib/freeswitch/json_cdr" placeholder:"DIR"`
	Attach bool     `help:"Only what to add to a FreeSWITCH that has a configuration of its own: the bindings of mod_xml_curl."`
	Out    string   `short:"o" help:"Folder to write the files into. Default: print them." type:"path" placeholder:"DIR"`
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
	files, err := freeswitch.RenderConf(params)
	if err != nil {
		return err
	}
	for _, f := range files {
		if c.Attach && f.Path != freeswitch.BindingsFile {
			continue
		}
		if c.Out == "" {
			fmt.Fprintf(a.out, "<!-- ===== %s ===== -->\n%s\n", f.Path, f.Text)
			continue
		}
		path := filepath.Join(c.Out, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return fmt.Errorf("write the configuration of node %q: %w", c.Node, err)
		}
		// The files hold the node's secrets.
		if err := os.WriteFile(path, f.Text, 0o640); err != nil {
			return fmt.Errorf("write the configuration of node %q: %w", c.Node, err)
		}
		fmt.Fprintln(a.out, path)
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
