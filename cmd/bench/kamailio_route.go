package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/kamailio"
	"github.com/bulkhead-voip/bulkhead/route"
)

const (
	routeTenants = 100_000
	routeRuns    = 7
	routeRun     = 1500 * time.Millisecond
)

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
	base, err := startFixed(ctx, len(answer))
	if err != nil {
		return nil, err
	}
	var a, b []float64
	for i := range routeRuns + 1 {
		x, err := questions(ctx, s.Addr().String(), query)
		if err != nil {
			return nil, err
		}
		y, err := questions(ctx, base, query)
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first pair warms up
			a, b = append(a, x), append(b, y)
		}
	}
	rate, baseline := median(a), median(b)
	return []figure{
		{name: "kamailio_route", value: rate, unit: "req/s", ratio: rate / baseline, bar: bar{">=", 0.80}},
		{name: "kamailio_route_baseline", value: baseline, unit: "req/s"},
	}, nil
}

// startFixed serves a GET with size bytes.
func startFixed(ctx context.Context, size int) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	answer := bytes.Repeat([]byte("x"), size)
	r := chi.NewRouter()
	r.Get("/kamailio/route", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write(answer)
	})
	srv := &http.Server{Handler: r, ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second}
	context.AfterFunc(ctx, func() { srv.Close() })
	go func() { _ = srv.Serve(l) }()
	return l.Addr().String(), nil
}

// questions returns the questions a second that a server answers to a fixed
// number of clients, each with one kept-alive connection.
func questions(ctx context.Context, addr string, query func(tenant int) string) (float64, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: xmlClients, DisableCompression: true}}
	defer client.CloseIdleConnections()
	var wg sync.WaitGroup
	counts, errs := make([]int, xmlClients), make([]error, xmlClients)
	start := time.Now()
	deadline := start.Add(routeRun)
	for c := range xmlClients {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(c), 7))
			for time.Now().Before(deadline) && ctx.Err() == nil {
				if errs[c] = question(ctx, client, "http://"+addr+query(rnd.IntN(routeTenants))); errs[c] != nil {
					return
				}
				counts[c]++
			}
		})
	}
	wg.Wait()
	total := 0
	for _, n := range counts {
		total += n
	}
	return float64(total) / time.Since(start).Seconds(), errors.Join(append(errs, ctx.Err())...)
}

func question(ctx context.Context, client *http.Client, target string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return err
	}
	req.SetBasicAuth("sbc1", benchToken)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered with status %d", resp.StatusCode)
	}
	return nil
}
