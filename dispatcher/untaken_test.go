package dispatcher

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

func TestRateOfUntakenCalls(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tt := range []struct {
		name   string
		counts []int // one each pollEvery
		want   float64
	}{
		{"never any", []int{0, 0, 0}, 0},
		{"many long ago", []int{7, 7, 7}, 0},
		{"one", []int{7, 8, 8}, 0.5},
		{"four a second", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, 4},
		{"some, and none for two seconds", []int{0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9}, 0},
		{"the SBC was restarted", []int{100, 101, 3}, 0},
	} {
		var u untaken
		var got float64
		for i, n := range tt.counts {
			got = u.add(now.Add(time.Duration(i)*pollEvery), n)
		}
		if got != tt.want {
			t.Errorf("%s: %v a second, want %v", tt.name, got, tt.want)
		}
	}
}

// takers counts the calls that a node does not take.
type takers struct {
	mu   sync.Mutex
	n    int
	each int // so many more each time it is asked
	err  error
}

func (k *takers) Refused(context.Context) (map[string]int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return nil, k.err
	}
	if k.n += k.each; k.n == 0 {
		return map[string]int{}, nil
	}
	return map[string]int{"127.0.0.1:1": k.n}, nil
}

func (k *takers) set(each int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.each, k.err = each, err
}

type well struct{}

func (well) Ping(context.Context, bulkhead.NodeID, string) (int, error) { return 200, nil }

// A node that answers OPTIONS, and refuses what its neighbour takes, is offered
// nothing, and calls again later. An SBC that does not answer moves nothing.
func TestNodeThatDoesNotTakeCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live := &route.Live{}
		live.Store(route.New(bulkhead.State{}.Apply(&bulkhead.Change{
			Cells: []bulkhead.Cell{{ID: "c"}}, SBCs: []bulkhead.SBC{{ID: "s", Cell: "c", SIP: "127.0.0.1:5060"}},
			Pools: []bulkhead.Pool{{ID: "p", Cell: "c", Profile: "standard"}},
			Nodes: []bulkhead.Node{{ID: "n1", Pool: "p", SIP: "127.0.0.1:1"}, {ID: "n2", Pool: "p", SIP: "127.0.0.1:2"}},
		})))
		k := &takers{}
		w, err := NewWatch(WatchConfig{SBC: "s", Untaken: k}, live, well{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { _ = w.Run(ctx); close(ended) }()
		defer func() { cancel(); <-ended }()
		pass := func(d time.Duration) (share int) {
			time.Sleep(d)
			synctest.Wait()
			states, _ := w.Next()
			if states.Of("n2").Share < 100 {
				t.Fatalf("the neighbour is offered less: %+v", states)
			}
			return states.Of("n1").Share
		}
		if got := pass(10 * time.Second); got != 100 {
			t.Fatalf("a node that takes its calls is offered %d", got)
		}
		k.set(1, nil)
		if got := pass(3 * time.Second); got != 0 {
			t.Errorf("a node that takes no call is offered %d", got)
		}
		k.set(0, errors.New("no answer"))
		if got := pass(time.Minute); got != 100 {
			t.Errorf("after a minute of nothing it is offered %d: %v", got, w.Decisions())
		}
	})
}
