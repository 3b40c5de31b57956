package main

import (
	"context"

	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/internal/spool"
)

// spoolReader is the name under which cdrpipe reads the spool.
const spoolReader = "cdrpipe"

// spoolStream fits the spool to cdrpipe.
type spoolStream struct{ r *spool.Reader }

func (s spoolStream) Read(ctx context.Context, limit int) (cdrpipe.Batch, error) {
	b, err := s.r.Read(ctx, limit)
	if err != nil {
		return cdrpipe.Batch{}, err
	}
	return cdrpipe.Batch{Payloads: b.Payloads, Ack: b.Ack}, nil
}

// startCdrpipe moves records from the spool, or from Redis, to the store.
func startCdrpipe(p *parts, g *group) (cdrpipe.Warehouse, error) {
	log := p.log.With("service", "cdrpipe")
	store, err := cdrpipe.OpenSQLite(g.ctx, p.data.cdrs())
	if err != nil {
		return nil, err
	}
	g.onClose("CDR store", store.Close)
	in, err := openStream(p, g, log)
	if err != nil {
		return nil, err
	}
	cfg := cdrpipe.DefaultConfig()
	cfg.Stream, cfg.Warehouse, cfg.Logger, cfg.Registerer = in, store, log, p.reg
	c, err := cdrpipe.New(cfg)
	if err != nil {
		return nil, err
	}
	g.run(services, "cdrpipe", c.Run)
	g.readyWhen("cdrpipe", c.Ready)
	p.mount([]string{"/v1/cdrs", "/v1/gaps", "/v1/summary"}, cdrpipe.Routes(store))
	return store, nil
}
