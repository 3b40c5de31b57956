package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/freeswitch"
	"github.com/bulkhead-voip/bulkhead/route"
)

// xmlNewTCP is xmlDialplan with a connection for each request, as a FreeSWITCH
// makes it (captures, xml_curl/connections-50-calls.txt).
func xmlNewTCP(ctx context.Context) ([]figure, error) {
	return xmlRatio(ctx, "xml_dialplan_new_tcp", bar{">=", 0.90}, func(addr string, bodies [][]byte) (float64, error) {
		return perSecond(ctx, func(rnd *rand.Rand) error { return connectAndAsk(ctx, addr, bodies[rnd.IntN(len(bodies))], rnd) })
	})
}

// connectAndAsk sends one request as mod_xml_curl does, and closes. It comes
// from one of many local addresses, so that ports that wait do not run out.
func connectAndAsk(ctx context.Context, addr string, body []byte, rnd *rand.Rand) error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+rnd.IntN(250)))}}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	basic := base64.StdEncoding.EncodeToString([]byte(benchNode + ":" + benchToken))
	b := make([]byte, 0, len(body)+300)
	b = append(b, "POST "+xmlPath+" HTTP/1.1\r\nHost: "+addr+"\r\nAuthorization: Basic "+basic+"\r\nUser-Agent: freeswitch-xml/1.0\r\nAccept: */*\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(append(b, "\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\n"...), body...)
	if _, err := c.Write(b); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered with status %d", resp.StatusCode)
	}
	return resp.Body.Close()
}

// modCurl compares the answers to mod_curl with a handler that writes as many
// fixed bytes.
func modCurl(ctx context.Context) ([]figure, error) {
	live := &route.Live{}
	live.Store(route.New(state(xmlTenants)))
	host, port, err := net.SplitHostPort(benchSBC)
	if err != nil {
		return nil, err
	}
	query := func(i int) string {
		return "dest=" + tenantNumber(i, 0) + "&context=bulkhead_curl&called=" + tenantNumber(i, 0) + "&uuid=6581e1a1-9509-4023-b790-54d9a7cc7836&direction=inbound&call_id=" +
			url.PathEscape("1-5347@127.0.0.1") + "&ip=" + host + "&port=" + port + "&h_tenant=" + string(tenantName(i)) + "&h_user=&transfer=&tenant=&sbc=&dialled=&time=&handover=&own=" +
			"&profile=internal&host=127.0.0.1&from=5550100&caller=%2B15550100&authorized=&auth_user=&auth_realm="
	}
	answer, sum := freeswitch.AnswerCurl(live.Load(), benchNode, time.Now(), query(7), nil)
	if sum.Outcome != "user" || !bytes.Contains(answer, []byte(tenantDomain(7))) {
		return nil, fmt.Errorf("a question was answered %+v: %s", sum, answer)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ours, err := startDialect(ctx, live, configsvc.Dialect{
		Name: "mod_curl", Pattern: curlPath, Methods: []string{http.MethodGet}, ContentType: "text/plain; charset=utf-8",
		Answer: func(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result) {
			answer, sum := freeswitch.AnswerCurl(x, q.Node, time.Now(), q.Query, dst)
			return answer, configsvc.Result{Outcome: sum.Outcome, Tenant: sum.Tenant}
		},
	})
	if err != nil {
		return nil, err
	}
	base, err := startBaseline(ctx, http.MethodGet, curlPath, len(answer))
	if err != nil {
		return nil, err
	}
	one := func(addr string) func() (float64, error) {
		return func() (float64, error) {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: xmlClients, DisableCompression: true}}
			defer client.CloseIdleConnections()
			return perSecond(ctx, func(rnd *rand.Rand) error {
				return request(ctx, client, benchNode, http.MethodGet, "http://"+addr+curlPath+"?"+query(rnd.IntN(xmlTenants)), nil)
			})
		}
	}
	return sideBySide("mod_curl", bar{">=", 0.80}, one(ours), one(base))
}

const (
	flatRuns     = 9
	flatRequests = 4000 // of each run
)

// xmlFlat compares the 99th percentile of the time to an answer among many
// tenants with that among few.
func xmlFlat(ctx context.Context) ([]figure, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	const few, many = 100, xmlTenants
	bodies, err := dialplanBodies(many)
	if err != nil {
		return nil, err
	}
	var addr [2]string
	for i, n := range []int{few, many} {
		live := &route.Live{}
		live.Store(route.New(state(n)))
		if addr[i], err = startConfigsvc(ctx, live); err != nil {
			return nil, err
		}
	}
	var small, large []float64
	for i := range flatRuns + 1 {
		for _, m := range []struct {
			into *[]float64
			addr string
			n    int
		}{{&small, addr[0], few}, {&large, addr[1], many}} {
			times, err := latencies(ctx, "http://"+m.addr+xmlPath, bodies[:m.n], flatRequests, 0)
			if err != nil {
				return nil, err
			}
			if i > 0 {
				*m.into = append(*m.into, p99(times))
			}
		}
	}
	a, b := median(small), median(large)
	return []figure{
		{name: "xml_dialplan_flat", value: b, unit: "us", ratio: b / a, bar: bar{"<=", 1.25}},
		{name: "xml_dialplan_flat_100", value: a, unit: "us"},
	}, nil
}

// latencies asks n times, one after the other, and returns the times to the
// answers in microseconds. pause is between two questions.
func latencies(ctx context.Context, target string, bodies [][]byte, n int, pause time.Duration) ([]float64, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true}}
	defer client.CloseIdleConnections()
	rnd := rand.New(rand.NewPCG(3, 7))
	out := make([]float64, 0, n)
	for range n {
		start := time.Now()
		if err := request(ctx, client, benchNode, http.MethodPost, target, bodies[rnd.IntN(len(bodies))]); err != nil {
			return nil, err
		}
		out = append(out, float64(time.Since(start).Nanoseconds())/1e3)
		if pause > 0 {
			time.Sleep(pause)
		}
	}
	return out, nil
}

func p99(times []float64) float64 {
	slices.Sort(times)
	return times[len(times)*99/100]
}

const (
	fairRuns     = 5
	fairRequests = 600 // of each run
	fairPause    = time.Millisecond
	fairFlood    = 64 // connections of the tenant that floods
)

// configFair compares the 99th percentile of the time to an answer for one
// tenant while another one floods, with that while nobody does. The flood
// asks on all its connections as fast as it is answered; it is measured when it
// has used up what it may ask at once.
func configFair(ctx context.Context) ([]figure, error) {
	bodies, err := dialplanBodies(2)
	if err != nil {
		return nil, err
	}
	live := &route.Live{}
	live.Store(route.New(state(xmlTenants)))
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	addr, err := startConfigsvc(ctx, live)
	if err != nil {
		return nil, err
	}
	target := "http://" + addr + xmlPath
	var alone, flooded, floods []float64
	for i := range fairRuns + 1 {
		x, err := latencies(ctx, target, bodies[1:], fairRequests, fairPause)
		if err != nil {
			return nil, err
		}
		asked, end := flood(ctx, target, bodies[0])
		for asked() < configsvc.DefaultConfig().TenantRate && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		start, before := time.Now(), asked()
		y, err := latencies(ctx, target, bodies[1:], fairRequests, fairPause)
		n := float64(asked()-before) / time.Since(start).Seconds()
		if err := errors.Join(err, end()); err != nil {
			return nil, err
		}
		if i > 0 {
			alone, flooded, floods = append(alone, p99(x)), append(flooded, p99(y)), append(floods, n)
		}
	}
	a, b := median(alone), median(flooded)
	return []figure{
		{name: "config_fair", value: b, unit: "us", ratio: b / a, bar: bar{"<=", 2.0}},
		{name: "config_fair_alone", value: a, unit: "us"},
		{name: "config_fair_flood", value: median(floods), unit: "req/s"},
	}, nil
}

// flood asks for one tenant on many connections until end, which returns the
// first error. asked tells how often it was answered or refused.
func flood(ctx context.Context, target string, body []byte) (asked func() int, end func() error) {
	ctx, cancel := context.WithCancel(ctx)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: fairFlood, DisableCompression: true}}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var total int
	var failed error
	for range fairFlood {
		wg.Go(func() {
			for ctx.Err() == nil {
				err := request(ctx, client, benchNode, http.MethodPost, target, body)
				refused := err != nil && strings.Contains(err.Error(), "status 503")
				mu.Lock()
				total++
				if err != nil && !refused && ctx.Err() == nil && failed == nil {
					failed = err
				}
				mu.Unlock()
			}
		})
	}
	asked = func() int { mu.Lock(); defer mu.Unlock(); return total }
	return asked, func() error {
		cancel()
		wg.Wait()
		client.CloseIdleConnections()
		return failed
	}
}

// allocsPerAnswer counts what the garbage collector gets of one answer to
// mod_xml_curl, from the request's body to the answer's, and its time.
func allocsPerAnswer(context.Context) ([]figure, error) {
	bodies, err := dialplanBodies(1000)
	if err != nil {
		return nil, err
	}
	x := route.New(state(1000))
	var dst []byte
	answer := func(n int) error {
		for i := range n {
			var sum freeswitch.Summary
			if dst, sum = freeswitch.Answer(x, benchNode, time.Now(), bodies[i%len(bodies)], dst[:0]); sum.Outcome != "user" {
				return fmt.Errorf("a request was answered %+v", sum)
			}
		}
		return nil
	}
	const n = 50_000
	if err := answer(1000); err != nil {
		return nil, err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	if err := answer(n); err != nil {
		return nil, err
	}
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	return []figure{
		{name: "allocs_per_answer", value: float64(after.Mallocs-before.Mallocs) / n, unit: "allocs"},
		{name: "allocs_per_answer_bytes", value: float64(after.TotalAlloc-before.TotalAlloc) / n, unit: "B"},
		{name: "allocs_per_answer_time", value: float64(took.Nanoseconds()) / n, unit: "ns"},
	}, nil
}
