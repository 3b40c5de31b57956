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
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/route"
)

const (
	xmlTenants = 100_000
	xmlClients = 8
	xmlRuns    = 7
	xmlRun     = 1500 * time.Millisecond
	benchToken = "bench-token-0123456789"
	// capture is a dialplan request as a FreeSWITCH sent it.
	capture = "freeswitch/testdata/xml_curl/dialplan-answer.txt"

	xmlPath  = "/freeswitch/xml"
	curlPath = "/freeswitch/curl"
)

// xmlDialplan compares the requests a second that configsvc answers with
// those of a handler that reads the same body and writes as many fixed bytes.
func xmlDialplan(ctx context.Context) ([]figure, error) {
	return xmlRatio(ctx, "xml_dialplan", bar{">=", 0.80}, func(addr string, bodies [][]byte) (float64, error) {
		return requests(ctx, "http://"+addr+xmlPath, bodies)
	})
}

// xmlRatio measures configsvc and the baseline in turn.
func xmlRatio(ctx context.Context, name string, want bar, measure func(addr string, bodies [][]byte) (float64, error)) ([]figure, error) {
	bodies, err := dialplanBodies(xmlTenants)
	if err != nil {
		return nil, err
	}
	live := &route.Live{}
	live.Store(route.New(state(xmlTenants)))
	size, err := checkAnswers(live.Load(), bodies)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ours, err := startConfigsvc(ctx, live)
	if err != nil {
		return nil, err
	}
	base, err := startBaseline(ctx, http.MethodPost, xmlPath, size)
	if err != nil {
		return nil, err
	}
	return sideBySide(name, want, func() (float64, error) { return measure(ours, bodies) }, func() (float64, error) { return measure(base, bodies) })
}

// sideBySide compares two rates, measured in turn.
func sideBySide(name string, want bar, ours, base func() (float64, error)) ([]figure, error) {
	var a, b []float64
	for i := range xmlRuns + 1 {
		x, err := ours()
		if err != nil {
			return nil, err
		}
		y, err := base()
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first pair warms up
			a, b = append(a, x), append(b, y)
		}
	}
	rate, baseline := median(a), median(b)
	return []figure{
		{name: name, value: rate, unit: "req/s", ratio: rate / baseline, bar: want},
		{name: name + "_baseline", value: baseline, unit: "req/s"},
	}, nil
}

// dialplanBodies makes one body for each tenant out of the captured one: the
// same fields, with the tenant's header, number and the SBC's address.
func dialplanBodies(tenants int) ([][]byte, error) {
	file, err := os.ReadFile(capture)
	if err != nil {
		return nil, fmt.Errorf("read the captured request (run this in the repository's root): %w", err)
	}
	_, rest, ok := bytes.Cut(bytes.ReplaceAll(file, []byte("\r\n"), []byte("\n")), []byte("\n\n"))
	if !ok {
		return nil, errors.New("the captured request has no body")
	}
	body, _, _ := strings.Cut(string(rest), "\n")
	host, port, err := net.SplitHostPort(benchSBC)
	if err != nil {
		return nil, err
	}
	out := make([][]byte, tenants)
	for i := range out {
		fields := strings.Split(body, "&")
		for f, field := range fields {
			name, _, _ := strings.Cut(field, "=")
			switch name {
			case "Hunt-Destination-Number", "Caller-Destination-Number":
				fields[f] = name + "=" + url.QueryEscape(tenantNumber(i, 0))
			case "variable_sip_network_ip", "variable_sip_received_ip":
				fields[f] = name + "=" + host
			case "variable_sip_network_port", "variable_sip_received_port":
				fields[f] = name + "=" + port
			case "variable_sip_h_X-Tenant":
				fields[f] = "variable_sip_h_X-Bulkhead-Tenant=" + string(tenantName(i)) +
					"&variable_sip_h_X-Bulkhead-SBC=sbc1&variable_sip_h_X-Bulkhead-Revision=1"
			}
		}
		out[i] = []byte(strings.Join(fields, "&"))
	}
	return out, nil
}

// checkAnswers makes sure that every request is answered with a call to a
// user, and returns the median answer's size.
func checkAnswers(x *route.Snapshot, bodies [][]byte) (int, error) {
	sizes := make([]float64, 0, len(bodies))
	for i, b := range bodies {
		answer, sum := freeswitch.Answer(x, benchNode, time.Now(), b, nil)
		if sum.Outcome != "user" || !bytes.Contains(answer, []byte(tenantDomain(i))) {
			return 0, fmt.Errorf("request %d was answered %+v", i, sum)
		}
		sizes = append(sizes, float64(len(answer)))
	}
	return int(median(sizes)), nil
}

func startConfigsvc(ctx context.Context, live *route.Live) (string, error) {
	return startDialect(ctx, live, configsvc.Dialect{
		Name: "freeswitch", Pattern: xmlPath, Methods: []string{http.MethodPost}, ContentType: "text/xml; charset=utf-8",
		Answer: func(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result) {
			answer, sum := freeswitch.Answer(x, q.Node, time.Now(), q.Body, dst)
			return answer, configsvc.Result{Outcome: sum.Section + " " + sum.Outcome, Tenant: sum.Tenant}
		},
	})
}

// startDialect serves one dialect as the program does.
func startDialect(ctx context.Context, live *route.Live, d configsvc.Dialect) (string, error) {
	cfg := configsvc.DefaultConfig()
	want := sha256.Sum256([]byte(benchToken))
	cfg.Listen = "127.0.0.1:0"
	cfg.IsNode = func(_ *route.Snapshot, _ bulkhead.NodeID, password string) bool { // as the program does it
		return sha256.Sum256([]byte(password)) == want
	}
	s, err := configsvc.New(cfg, live, []configsvc.Dialect{d}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return "", err
	}
	go func() { _ = s.Run(ctx) }() // ends with ctx
	return s.Addr().String(), nil
}

// startBaseline serves the least that any such service must do.
func startBaseline(ctx context.Context, method, pattern string, size int) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	answer := bytes.Repeat([]byte("x"), size)
	r := chi.NewRouter()
	r.MethodFunc(method, pattern, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "text/xml")
		_, _ = w.Write(answer)
	})
	srv := &http.Server{Handler: r, ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second}
	context.AfterFunc(ctx, func() { srv.Close() })
	go func() { _ = srv.Serve(l) }()
	return l.Addr().String(), nil
}

// requests returns the requests a second that a server answers to a fixed
// number of clients, each with one kept-alive connection.
func requests(ctx context.Context, target string, bodies [][]byte) (float64, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: xmlClients, DisableCompression: true}}
	defer client.CloseIdleConnections()
	return perSecond(ctx, func(rnd *rand.Rand) error {
		return request(ctx, client, benchNode, http.MethodPost, target, bodies[rnd.IntN(len(bodies))])
	})
}

// perSecond returns how often a second a fixed number of clients do one thing,
// each again and again.
func perSecond(ctx context.Context, one func(rnd *rand.Rand) error) (float64, error) {
	var wg sync.WaitGroup
	counts, errs := make([]int, xmlClients), make([]error, xmlClients)
	start := time.Now()
	deadline := start.Add(xmlRun)
	for c := range xmlClients {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(c), 7))
			for time.Now().Before(deadline) && ctx.Err() == nil {
				if errs[c] = one(rnd); errs[c] != nil {
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

func request(ctx context.Context, client *http.Client, who, method, target string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.SetBasicAuth(who, benchToken)
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New("answered with status " + strconv.Itoa(resp.StatusCode))
	}
	return nil
}
