package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/dispatcher"
	"github.com/bulkhead-voip/bulkhead/kamailio"
)

// keep says which Kamailio a dispatcher keeps.
type keep struct {
	sbc     bulkhead.SBCID
	dir     string // of its files
	route   string // where it asks about calls that its tables do not know; empty: nowhere
	token   string // of the SBC, which agents ask for
	observe bool   // write nothing
}

// startDispatcher keeps a Kamailio.
func startDispatcher(p *parts, g *group, k keep) error {
	if known := p.live.Load().State().SBCs; known[k.sbc] == nil {
		return fmt.Errorf("which SBC? --sbc is %q, the registry has %v: %w", k.sbc, slices.Sorted(maps.Keys(known)), bulkhead.NotFound)
	}
	log := p.log.With("service", "dispatcher")
	client, err := kamailio.New(k.dir, log, p.reg)
	if err != nil {
		return err
	}
	g.onClose("Kamailio's RPC socket", client.Close)
	if k.observe {
		if _, err := os.Stat(filepath.Join(k.dir, kamailio.TablesFile)); err != nil {
			return fmt.Errorf("%s is not the folder of an SBC's files: `bulkhead config kamailio --attach --sbc %s --rpc SOCKET -o %s` makes one and touches nothing of Kamailio's: %w: %w", k.dir, k.sbc, k.dir, bulkhead.NotFound, err)
		}
	} else if err := client.Lock(); err != nil { // here, and not when the first change comes
		return err
	}
	watch, err := dispatcher.NewWatch(dispatcher.WatchConfig{SBC: k.sbc, Token: k.token, Untaken: client}, p.live, dispatcher.UDPPinger{}, log, p.reg)
	if err != nil {
		return err
	}
	cfg := dispatcher.DefaultConfig()
	cfg.SBC, cfg.States, cfg.Observe = k.sbc, watch, k.observe
	c, err := dispatcher.New(cfg, p.live, client, log, p.reg)
	if err != nil {
		return err
	}
	g.run(services, "watch", watch.Run)
	g.run(services, "dispatcher", c.Run)
	g.readyWhen("dispatcher", c.Ready)
	if k.route != "" && !k.observe {
		g.run(services, "breaker", func(ctx context.Context) error { return client.KeepBreaker(ctx, k.route) })
	}
	p.mount([]string{"/v1/sbc"}, c.Routes())
	p.mount([]string{"/v1/dispatcher/nodes", "/v1/dispatcher/decisions"}, watch.Routes())
	return nil
}

// errKamailioDoesNotStart is for a Kamailio that is installed and of no use.
var errKamailioDoesNotStart = errors.New("the installed Kamailio does not start")

// startKamailio starts the installed Kamailio as a child, with the shipped
// configuration, and the dispatcher that feeds it. The error is
// bulkhead.NotFound where it is not installed.
func startKamailio(p *parts, g *group, sbc *bulkhead.SBC, events string) (kind string, err error) {
	if _, err := kamailio.Binary(); err != nil {
		return "", err
	}
	dir := p.data.path("kamailio")
	token, err := p.data.secret(sbcToken)
	if err != nil {
		return "", err
	}
	params := kamailio.Params{SBC: sbc.ID, Listen: sbc.SIP, Events: events, User: string(sbc.ID), Token: token, Workers: 2}
	if err := params.Write(dir); err != nil {
		return "", fmt.Errorf("%w: %w", errKamailioDoesNotStart, err)
	}
	out, err := openLogFile(p.data.path("kamailio.log"), logFileMax)
	if err != nil {
		return "", err
	}
	options := kamailio.Options{Output: out, SharedMB: 128}
	process, err := kamailio.Start(g.ctx, dir, options, p.log)
	if err != nil {
		return "", errors.Join(fmt.Errorf("%w: %w", errKamailioDoesNotStart, err), out.Close())
	}
	g.onClose("Kamailio's log", out.Close)
	g.run(services, "Kamailio", func(ctx context.Context) error {
		return superviseKamailio(ctx, process, func() (*kamailio.Process, error) {
			p.log.Error("Kamailio ended by itself and is started again", "log", out.path)
			return kamailio.Start(ctx, dir, options, p.log)
		})
	})
	version, err := kamailioVersion(g.ctx, dir)
	if err != nil {
		return "", err
	}
	return version, startDispatcher(p, g, keep{sbc: sbc.ID, dir: dir, token: token})
}

// superviseKamailio starts Kamailio again whenever it ends, and ends it with ctx.
func superviseKamailio(ctx context.Context, process *kamailio.Process, start func() (*kamailio.Process, error)) error {
	for {
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			return process.Stop(end)
		case <-process.Done():
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second): // not a busy loop when it cannot start
		}
		next, err := start()
		if err != nil {
			return err
		}
		process = next
	}
}

func kamailioVersion(ctx context.Context, dir string) (string, error) {
	client, err := kamailio.New(dir, nil, nil)
	if err != nil {
		return "", err
	}
	version, err := client.Version(ctx)
	return version, errors.Join(err, client.Close())
}
