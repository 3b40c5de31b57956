package dispatcher_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/dispatcher"
	"github.com/bulkhead-voip/bulkhead/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fault is what goes wrong in one call of a fakeProxy.
type fault int

const (
	none   fault = iota
	away         // nothing done, bulkhead.Unavailable
	half         // Apply: half the rows written, then an error
	lost         // Apply: all written, but the answer is lost
	hang         // no answer until the context ends, nothing done
	lie          // Apply: nothing done, no error
	faults       // how many there are
)

var errBroken = errors.New("broken on purpose")

// fakeProxy is an SBC whose calls take a time and go wrong as told.
type fakeProxy struct {
	takes time.Duration
	took  func(route.Tables) // what it holds from now on; nil: nobody asks

	mu       sync.Mutex
	holds    route.Tables
	faults   []fault // of the next calls, Apply and Verify alike
	inFlight int
	most     int // calls in flight at once
	applies  []bulkhead.RevisionNumber
	verifies int
	shifts   int
}

func (f *fakeProxy) begin(ctx context.Context, verify bool, r bulkhead.RevisionNumber) (fault, error) {
	f.mu.Lock()
	f.inFlight++
	f.most = max(f.most, f.inFlight)
	if verify {
		f.verifies++
	} else {
		f.applies = append(f.applies, r)
	}
	now := none
	if len(f.faults) > 0 {
		now, f.faults = f.faults[0], f.faults[1:]
	}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.inFlight--
		f.mu.Unlock()
	}()
	if now == hang {
		<-ctx.Done()
		return now, ctx.Err()
	}
	t := time.NewTimer(f.takes)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return now, ctx.Err()
	}
	if now == away {
		return now, fmt.Errorf("connect: %w", bulkhead.Unavailable)
	}
	return now, nil
}

func (f *fakeProxy) Apply(ctx context.Context, t route.Tables) error {
	now, err := f.begin(ctx, false, t.Revision)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch now {
	case lie:
		return nil
	case half:
		f.holds.Rows = slices.Clone(t.Rows[:len(t.Rows)/2])
		f.holds.Revision = t.Revision
		return errBroken
	}
	f.holds = t
	f.tell()
	if now == lost {
		return errBroken
	}
	return nil
}

func (f *fakeProxy) tell() {
	if f.took != nil {
		f.took(f.holds)
	}
}

func (f *fakeProxy) ApplySets(ctx context.Context, t route.Tables) error {
	now, err := f.begin(ctx, true, 0)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shifts++
	switch now {
	case lie:
		return nil
	case half:
		return errBroken
	}
	f.holds.Sets = t.Sets
	f.tell()
	if now == lost {
		return errBroken
	}
	return nil
}

func (f *fakeProxy) Verify(ctx context.Context, want route.Tables) ([]string, error) {
	now, err := f.begin(ctx, true, 0)
	if err != nil {
		return nil, err
	}
	if now == half || now == lost {
		return nil, errBroken
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return differences(f.holds, want), nil
}

func differences(holds, want route.Tables) []string {
	var out []string
	if holds.Revision != want.Revision {
		out = append(out, fmt.Sprintf("revision: %d, want %d", holds.Revision, want.Revision))
	}
	have := map[string]string{}
	for _, r := range holds.Rows {
		have[r.Key] = r.Value
	}
	for _, r := range want.Rows {
		if v, ok := have[r.Key]; !ok || v != r.Value {
			out = append(out, fmt.Sprintf("%s: %q, want %q", r.Key, v, r.Value))
		}
		delete(have, r.Key)
	}
	for k := range have {
		out = append(out, k+": not wanted")
	}
	if !cmp.Equal(holds.Sets, want.Sets) {
		out = append(out, "sets differ")
	}
	return out
}

// lose removes a row from what the SBC holds, as somebody else might.
func (f *fakeProxy) lose(prefix string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holds.Rows = slices.DeleteFunc(slices.Clone(f.holds.Rows), func(r route.Row) bool { return strings.HasPrefix(r.Key, prefix) })
}

func (f *fakeProxy) script(s ...fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = s
}

func (f *fakeProxy) seen() (applies []bulkhead.RevisionNumber, verifies, most int, holds route.Tables) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.applies), f.verifies, f.most, f.holds
}

// world is a Controller that runs over a fake SBC inside a synctest bubble.
type world struct {
	*dispatcher.Controller
	live  *route.Live
	proxy *fakeProxy
	reg   *prometheus.Registry
	log   *strings.Builder // read it in a bubble at rest only
	stop  func() error
}

func testConfig() dispatcher.Config {
	cfg := dispatcher.DefaultConfig()
	cfg.SBC = "sbc1"
	return cfg
}

// bear builds a world; Run begins with it. The caller must stop it.
func bear(cfg dispatcher.Config) (*world, error) {
	return bearOf(cfg, &route.Live{}, &fakeProxy{takes: 10 * time.Millisecond})
}

func bearOf(cfg dispatcher.Config, live *route.Live, proxy *fakeProxy) (*world, error) {
	w := &world{live: live, proxy: proxy, reg: prometheus.NewRegistry(), log: &strings.Builder{}}
	var err error
	w.Controller, err = dispatcher.New(cfg, w.live, w.proxy, slog.New(slog.NewTextHandler(w.log, nil)), w.reg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	w.stop = sync.OnceValue(func() error { cancel(); return <-done })
	return w, nil
}

func run(t *testing.T, cfg dispatcher.Config, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, err := bear(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := w.stop(); err != nil {
				t.Errorf("Run returned %v, want nil", err)
			}
		}()
		f(t, w)
	})
}

// after lets fake time pass.
func after(d time.Duration) {
	t := time.NewTimer(d)
	<-t.C
	synctest.Wait()
}

func (w *world) converged(t *testing.T, r bulkhead.RevisionNumber) {
	t.Helper()
	s := w.Status()
	if !s.Converged || s.Applied != r || s.Wanted != r || s.Phase != dispatcher.Resting || s.LastError != "" {
		t.Fatalf("status is %+v, want revision %d converged\n%s", s, r, w.log)
	}
	if err := w.Ready(); err != nil {
		t.Errorf("Ready returned %v, want nil", err)
	}
	want, err := route.MakeTables(w.live.Load(), "sbc1")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, holds := w.proxy.seen(); !cmp.Equal(holds, want) {
		t.Errorf("SBC holds other tables (-want +got):\n%s", cmp.Diff(want, holds))
	}
}

// state returns a valid state of two cells, with SBC sbc1 in cell c1 and the
// tenants given as id or id@cell.
func state(r bulkhead.RevisionNumber, tenants ...string) bulkhead.State {
	c := bulkhead.Change{
		Cells: []bulkhead.Cell{{ID: "c1"}, {ID: "c2"}},
		Pools: []bulkhead.Pool{{ID: "p1", Cell: "c1", Profile: "standard"}, {ID: "p2", Cell: "c2", Profile: "standard"}},
		Nodes: []bulkhead.Node{{ID: "n1", Pool: "p1", SIP: "127.0.0.1:7001"}, {ID: "n2", Pool: "p1", SIP: "127.0.0.1:7002"}},
		SBCs:  []bulkhead.SBC{{ID: "sbc1", Cell: "c1", SIP: "127.0.0.1:5060"}},
	}
	for _, t := range tenants {
		id, cell, moved := strings.Cut(t, "@")
		if !moved {
			cell = "c1"
		}
		c.Tenants = append(c.Tenants, bulkhead.Tenant{
			ID: bulkhead.TenantID(id), Cell: bulkhead.CellID(cell), Profile: "standard", Domains: []string{id + ".example"},
		})
	}
	s := bulkhead.State{}.Apply(&c)
	s.Revision = r
	return s
}

func (w *world) store(r bulkhead.RevisionNumber, tenants ...string) {
	w.live.Store(route.New(state(r, tenants...)))
}
