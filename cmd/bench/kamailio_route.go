package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

const routeTenants = 100_000

// kamailioRoute compares what configsvc answers an SBC's http_client with a
// handler that reads the same and returns as many fixed bytes.
func kamailioRoute(ctx context.Context) ([]figure, error) {
	live := &route.Live{}
	live.Store(route.New(state(routeTenants)))
	query := func(i int) string {
		return "/kamailio/route?d=" + tenantDomain(i) + "&s=" + url.QueryEscape(tenantSource(i).String()) + "&n=%2B" + tenantNumber(i, 0)
	}
	answer, sum := kamailio.Answer(live.Load(), "sbc1", query(7)[len("/kamailio/route?"):], nil)
	if sum.Tenant != tenantName(7) {
		return nil, fmt.Errorf("a question about tenant 7 is answered with %q, %+v", answer, sum)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cfg := configsvc.DefaultConfig()
	want := sha256.Sum256([]byte(benchToken))
	cfg.Listen = "127.0.0.1:0"
	cfg.IsNode = func(*route.Snapshot, bulkhead.NodeID, string) bool { return false }
	cfg.IsSBC = func(_ *route.Snapshot, _ bulkhead.SBCID, password string) bool { // as the program does it
		return sha256.Sum256([]byte(password)) == want
	}
	s, err := configsvc.New(cfg, live, []configsvc.Dialect{{
		Name: "kamailio", Pattern: "/kamailio/route", Methods: []string{http.MethodGet}, ContentType: "text/plain", BySBC: true,
		Answer: func(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result) {
			answer, sum := kamailio.Answer(x, q.SBC, q.Query, dst)
			return answer, configsvc.Result{Outcome: sum.Outcome, Tenant: sum.Tenant, Status: sum.Status, Urgent: true}
		},
	}}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	go func() { _ = s.Run(ctx) }() // ends with ctx
	base, err := startBaseline(ctx, http.MethodGet, "/kamailio/route", len(answer))
	if err != nil {
		return nil, err
	}
	one := func(addr string) func() (float64, error) {
		return func() (float64, error) {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: xmlClients, DisableCompression: true}}
			defer client.CloseIdleConnections()
			return perSecond(ctx, func(rnd *rand.Rand) error {
				return request(ctx, client, "sbc1", http.MethodGet, "http://"+addr+query(rnd.IntN(routeTenants)), nil)
			})
		}
	}
	return sideBySide("kamailio_route", bar{">=", 0.80}, one(s.Addr().String()), one(base))
}
