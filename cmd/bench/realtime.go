package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead/asterisk"
	"github.com/bulkhead-voip/bulkhead/configsvc"
	"github.com/bulkhead-voip/bulkhead/route"
)

const (
	realtimeTenants = 100_000
	realtimePath    = "/asterisk/realtime/"
)

// realtimeSingle compares the requests a second that configsvc answers with one
// endpoint of an Asterisk with those of a handler that reads the same body and
// writes as many fixed bytes.
func realtimeSingle(ctx context.Context) ([]figure, error) {
	live := &route.Live{}
	live.Store(route.New(state(realtimeTenants)))
	bodies := make([][]byte, realtimeTenants)
	size := 0
	for i := range bodies {
		bodies[i] = []byte("id=102%40" + tenantDomain(i))
		answer, sum := asterisk.AnswerRealtime(live.Load(), benchNode, time.Now(), "ps_endpoints/single", bodies[i], nil)
		if sum.Outcome != "found" || sum.Tenant != tenantName(i) {
			return nil, fmt.Errorf("request %d was answered %q", i, answer)
		}
		size = len(answer) // the names are of one length
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ours, err := startDialect(ctx, live, configsvc.Dialect{
		Name: "asterisk_realtime", Pattern: realtimePath + "*", Methods: []string{http.MethodPost}, ContentType: "text/plain",
		Answer: func(x *route.Snapshot, q configsvc.Question, dst []byte) ([]byte, configsvc.Result) {
			answer, sum := asterisk.AnswerRealtime(x, q.Node, time.Now(), strings.TrimPrefix(q.Path, realtimePath), q.Body, dst)
			return answer, configsvc.Result{Outcome: sum.Outcome, Tenant: sum.Tenant, Urgent: true}
		},
	})
	if err != nil {
		return nil, err
	}
	base, err := startBaseline(ctx, http.MethodPost, realtimePath+"*", size)
	if err != nil {
		return nil, err
	}
	one := func(addr string) func() (float64, error) {
		return func() (float64, error) {
			return requests(ctx, "http://"+addr+realtimePath+"ps_endpoints/single", bodies)
		}
	}
	return sideBySide("realtime_single", bar{">=", 0.80}, one(ours), one(base))
}
