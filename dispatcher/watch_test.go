package dispatcher

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Every node that is to be there is listed, whatever becomes of it: for who
// asks, and as a metric. Nodes of other cells are not the SBC's.
func TestEveryIntendedNodeIsListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live := &route.Live{}
		live.Store(route.New(bulkhead.State{}.Apply(&bulkhead.Change{
			Cells: []bulkhead.Cell{{ID: "c"}, {ID: "other"}}, SBCs: []bulkhead.SBC{{ID: "s", Cell: "c", SIP: "127.0.0.1:5060"}},
			Pools: []bulkhead.Pool{{ID: "p", Cell: "c", Profile: "standard"}, {ID: "q", Cell: "c", Profile: "ai"}, {ID: "o", Cell: "other", Profile: "standard"}},
			Nodes: []bulkhead.Node{
				{ID: "well", Pool: "p", SIP: "127.0.0.1:1"},
				{ID: "drained", Pool: "p", SIP: "127.0.0.1:2", Drain: true},
				{ID: "disabled", Pool: "q", SIP: "127.0.0.1:3", Disabled: true},
				{ID: "dead", Pool: "q", SIP: "127.0.0.1:4"},
				{ID: "elsewhere", Pool: "o", SIP: "127.0.0.1:5"},
			},
		})))
		reg := prometheus.NewRegistry()
		w, err := NewWatch(WatchConfig{SBC: "s"}, live, &pinged{dead: map[bulkhead.NodeID]bool{"dead": true}}, slog.New(slog.DiscardHandler), reg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { _ = w.Run(ctx); close(ended) }()
		defer func() { cancel(); <-ended }()
		time.Sleep(10 * time.Second)
		synctest.Wait()

		rec := httptest.NewRecorder()
		w.Routes().ServeHTTP(rec, httptest.NewRequest("GET", "/v1/dispatcher/nodes", nil))
		type node struct {
			Node     bulkhead.NodeID
			Pool     bulkhead.PoolID
			Weight   int
			Drain    bool
			Disabled bool
			Dead     bool
		}
		var got struct{ Nodes []node }
		if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
			t.Fatalf("%v: %s", err, rec.Body)
		}
		if d := cmp.Diff([]node{
			{Node: "dead", Pool: "q", Dead: true},
			{Node: "disabled", Pool: "q", Disabled: true},
			{Node: "drained", Pool: "p", Drain: true},
			{Node: "well", Pool: "p", Weight: 100},
		}, got.Nodes); d != "" {
			t.Errorf("listed are (-want +got)\n%s", d)
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP bulkhead_dispatcher_node_weight_percent Share of its usual calls that the node is offered; 0 for one that is drained or disabled.
# TYPE bulkhead_dispatcher_node_weight_percent gauge
bulkhead_dispatcher_node_weight_percent{node="dead",pool="q",sbc="s"} 0
bulkhead_dispatcher_node_weight_percent{node="disabled",pool="q",sbc="s"} 0
bulkhead_dispatcher_node_weight_percent{node="drained",pool="p",sbc="s"} 0
bulkhead_dispatcher_node_weight_percent{node="well",pool="p",sbc="s"} 100
`), "bulkhead_dispatcher_node_weight_percent"); err != nil {
			t.Error(err)
		}
	})
}

// pinged answers as nodes would.
type pinged struct{ dead map[bulkhead.NodeID]bool }

func (p *pinged) Ping(_ context.Context, id bulkhead.NodeID, _ string) (int, error) {
	if p.dead[id] {
		return 0, bulkhead.Unavailable
	}
	return 200, nil
}
