package main

import (
	"context"
	"os"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
)

type mediaNodeCmd struct {
	Data      string   `help:"Folder that holds the secrets." default:"data" type:"path" placeholder:"DIR"`
	TokenFile string   `help:"File with the node's token. Default: the installation's, in the data folder." type:"path" placeholder:"FILE"`
	ID        string   `help:"Id of the node in the registry." required:"" placeholder:"NODE"`
	SIP       string   `help:"Where it takes calls." required:"" placeholder:"IP:PORT"`
	ESL       string   `help:"Where it serves its event socket." required:"" placeholder:"IP:PORT"`
	XMLURL    []string `help:"URLs that it asks for each call, the next when one fails." name:"xml-url" placeholder:"URL"`
	Load      string   `help:"Where it tells at /load how busy it is; empty: nowhere." placeholder:"IP:PORT"`
	Sessions  int      `help:"Legs at once that it takes." default:"1000" placeholder:"N"`
	LogLevel  string   `help:"debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`
}

func (c *mediaNodeCmd) Run(ctx context.Context, a *app) error {
	log := (&serviceFlags{LogLevel: c.LogLevel}).logger(a.err)
	n := &bulkhead.Node{ID: bulkhead.NodeID(c.ID), SIP: c.SIP, ESL: c.ESL}
	token, err := nodeSecret(dataDir(c.Data), c.TokenFile, nodeToken)
	if err != nil {
		return err
	}
	cfg, err := mediaNodeConfig(dataDir(c.Data), n, token, c.XMLURL)
	if err != nil {
		return err
	}
	cfg.Logger, cfg.MaxSessions = log, c.Sessions
	node, err := freeswitchtest.New(cfg)
	if err != nil {
		return err
	}
	log.Info("media node runs", "node", c.ID, "sip", c.SIP, "esl", c.ESL)
	if c.Load == "" {
		return node.Run(ctx)
	}
	g := newGroup(ctx, serviceStop)
	esl := freeswitch.NewCounter(freeswitch.Config{Addr: c.ESL, Password: cfg.ESLPassword})
	g.onClose("event socket of the load", esl.Close)
	g.run(media, "media node", node.Run)
	load := configsvc.NewLoad(n.ID, os.Getpid, esl, log)
	if err := serveLoad(g, load, c.Load, func(string, string) bool { return false }, log); err != nil {
		g.fail(err)
	}
	g.started()
	return g.wait()
}

// mediaNodeConfig is how every media node of ours is set up: as the shipped
// freeswitch/conf sets up a real one.
func mediaNodeConfig(data dataDir, n *bulkhead.Node, token string, urls []string) (freeswitchtest.Config, error) {
	password, err := data.secret(eslSecret)
	if err != nil {
		return freeswitchtest.Config{}, err
	}
	return freeswitchtest.Config{
		ID: string(n.ID), Listen: n.SIP, ESLListen: n.ESL, ESLPassword: password,
		XMLURLs: urls, XMLUser: string(n.ID), XMLPassword: token, XMLTimeout: time.Second,
		Context: "bulkhead", // as the shipped profile has it
	}, nil
}
