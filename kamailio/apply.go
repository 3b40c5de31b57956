package kamailio

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

const (
	// maxKeys is how many changed rows are sent one by one; above it a reload
	// of the table is faster.
	maxKeys = 256
	// sampled is how many rows Verify reads back.
	sampled = 50
	// reloadPause is the wait after Kamailio's "Ongoing reload", whose
	// reload_delta is 1 s in whole seconds.
	reloadPause = 300 * time.Millisecond
	reloadTries = 10
)

// Apply makes t what Kamailio decides by, now and after a restart.
//
// The side that Kamailio does not look at is brought to t, first in the file,
// then in memory, and checked; then Kamailio is switched over. No call sees
// half of a revision, and a Kamailio that starts at any moment loads a whole
// one. Dispatcher sets are added before the switch and removed after it.
//
// Errors: bulkhead.Unavailable when Kamailio does not answer (the files are
// written nevertheless, and it will start from them), bulkhead.Conflict when
// another process writes this Kamailio's tables, bulkhead.Invalid for a table
// without rows where there were some, or with more than MaxRows.
func (c *Client) Apply(ctx context.Context, t route.Tables) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	start := time.Now()
	way, err := c.apply(ctx, t)
	if err != nil {
		way = "error"
		err = fmt.Errorf("apply revision %d to the Kamailio of SBC %s: %w", t.Revision, t.SBC, err)
	} else {
		c.metrics.seconds.Observe(time.Since(start).Seconds())
	}
	c.metrics.applies.WithLabelValues(way).Inc()
	return err
}

func (c *Client) apply(ctx context.Context, t route.Tables) (way string, err error) {
	if err := c.open(); err != nil {
		return "", err
	}
	if err := CheckRows(len(t.Rows)); err != nil {
		return "", err
	}
	if err := c.takeLock(); err != nil {
		return "", err
	}
	onDisk, err := c.file.meta(ctx)
	if err != nil {
		return "", err
	}
	if len(t.Rows) == 0 && onDisk.count[onDisk.live] > 0 {
		return "", fmt.Errorf("the new table is empty, the old one has %d rows: an SBC that loses all of its tenants at once is a mistake: %w", onDisk.count[onDisk.live], bulkhead.Invalid)
	}
	inMemory, down := c.observe(ctx)
	if errors.Is(down, errNotAttached) || errors.Is(down, errOldFiles) {
		return "", down // the files are none that it reads
	}
	idle := inMemory.live.other()
	if down != nil {
		idle = onDisk.live.other()
	}
	old, err := os.ReadFile(filepath.Join(c.dir, ListFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the dispatcher list: %w", err)
	}
	want := renderList(t.Sets)
	if err := c.writeList(ctx, old, keepOld(want, old), down == nil); err != nil {
		return "", err
	}
	ops, err := c.file.diff(ctx, idle, t.Rows)
	if err != nil {
		return "", err
	}
	inStep := c.clean[idle] && len(ops) <= maxKeys
	c.clean[idle] = false
	if err := c.file.update(ctx, idle, ops, t.Revision, len(t.Rows), down != nil); err != nil {
		return "", err
	}
	if down != nil {
		if err := c.writeList(ctx, keepOld(want, old), want, false); err != nil {
			return "", err
		}
		return "", fmt.Errorf("the files are written, but Kamailio does not answer: %w", down)
	}
	if way, err = c.load(ctx, idle, ops, len(t.Rows), inStep); err != nil {
		return "", err
	}
	if err := c.switchTo(ctx, idle, t); err != nil {
		return "", err
	}
	c.clean[idle] = true
	return way, c.writeList(ctx, keepOld(want, old), want, true)
}

// open opens the table file.
func (c *Client) open() error {
	if c.file != nil {
		return nil
	}
	path := filepath.Join(c.dir, TablesFile)
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("open the table file (`bulkhead config kamailio` makes it): %w: %w", bulkhead.NotFound, err)
	}
	db, err := openSQLite(path)
	if err != nil {
		return err
	}
	c.file = &tableFile{db: db}
	return nil
}

// errOldFiles is for one that was started on files which say otherwise which
// table counts: it would not see the switch to another one.
var errOldFiles = errors.New("it runs an older bulkhead.cfg: write its files anew with `bulkhead config kamailio`, and restart it")

// errNotAttached is for a Kamailio that answers and has no table of ours.
var errNotAttached = errors.New("its kamailio.cfg does not include bulkhead.cfg: add the lines that `bulkhead config kamailio --attach` prints, and restart it")

// observe reads what Kamailio has in memory, and notices a restart. The error
// is errNotAttached where nothing of ours is.
func (c *Client) observe(ctx context.Context) (meta, error) {
	var up struct {
		Since string `json:"up_since"`
	}
	b, err := c.Call(ctx, "core.uptime")
	if err != nil {
		return meta{}, err
	}
	if err := json.Unmarshal(b, &up); err != nil {
		return meta{}, fmt.Errorf("answer of kamailio to core.uptime: %w", err)
	}
	c.pretty = bytes.ContainsRune(b, '\n')
	if up.Since != c.since {
		if c.since != "" {
			c.log.Info("kamailio was restarted", "dir", c.dir, "since", up.Since)
		}
		c.since = up.Since
		clear(c.clean)
	}
	return parseMeta(func(key string) (string, error) { return c.get(ctx, "bulkhead_meta", key) })
}

// get returns the value of a key, empty if there is none.
func (c *Client) get(ctx context.Context, table, key string) (string, error) {
	var got struct {
		Item struct {
			Value any `json:"value"`
		} `json:"item"`
	}
	err := c.call(ctx, &got, "htable.get", table, key)
	if e := (*RPCError)(nil); errors.As(err, &e) && (e.Message == noMethod || e.Message == "No such htable") {
		return "", fmt.Errorf("%w: %w", errNotAttached, err)
	}
	if errors.Is(err, bulkhead.NotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprint(got.Item.Value), nil
}

// counts returns the number of rows of each table.
func (c *Client) counts(ctx context.Context) (map[string]int, error) {
	var stats []struct {
		Name string `json:"name"`
		All  int    `json:"all"`
	}
	if err := c.call(ctx, &stats, "htable.stats"); err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, s := range stats {
		out[s.Name] = s.All
	}
	return out, nil
}

// load brings the memory of a side to the file: by the changed keys alone
// when it was in step with the file before, else whole.
func (c *Client) load(ctx context.Context, s side, ops []op, count int, inStep bool) (way string, err error) {
	if inStep {
		if err := c.putKeys(ctx, s, ops); err != nil {
			return "", err
		}
		if n, err := c.counts(ctx); err != nil {
			return "", err
		} else if n[s.table()] == count {
			return "keys", nil
		}
		c.log.Warn("a table of kamailio was changed by somebody else; it is loaded anew", "table", s.table())
	}
	if _, err := c.Call(ctx, "htable.reload", s.table()); err != nil {
		return "", err
	}
	n, err := c.counts(ctx)
	if err != nil {
		return "", err
	}
	if n[s.table()] != count {
		return "", fmt.Errorf("%s has %d rows after its reload, want %d: does Kamailio read the table file of this folder? %w", s.table(), n[s.table()], count, bulkhead.Conflict)
	}
	return "reload", nil
}

func (c *Client) putKeys(ctx context.Context, s side, ops []op) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxInFlight)
	for _, o := range ops {
		g.Go(func() error {
			var err error
			if o.delete {
				_, err = c.Call(ctx, "htable.delete", s.table(), o.Key)
			} else {
				_, err = c.Call(ctx, "htable.sets", s.table(), o.Key, o.Value)
			}
			if errors.Is(err, bulkhead.NotFound) {
				return nil // deleted already; the count shows whether all is well
			}
			return err
		})
	}
	return g.Wait()
}

// switchTo makes a loaded side the live one: what it is, then in the file, so
// that a restart does not lead back, then in memory.
func (c *Client) switchTo(ctx context.Context, s side, t route.Tables) error {
	set := func(key, value string) error {
		_, err := c.Call(ctx, "htable.sets", "bulkhead_meta", key, value)
		return err
	}
	if err := set("rev_"+string(s), strconv.FormatUint(uint64(t.Revision), 10)); err != nil {
		return err
	}
	if err := set("count_"+string(s), strconv.Itoa(len(t.Rows))); err != nil {
		return err
	}
	if err := c.file.update(ctx, s, nil, t.Revision, len(t.Rows), true); err != nil {
		return err
	}
	return set(liveKey, liveValue(s))
}

// writeList replaces the dispatcher list if it changed, and has Kamailio load
// it: a reload makes every node active until its next ping, so none is done
// without need.
func (c *Client) writeList(ctx context.Context, old, list []byte, running bool) error {
	if !bytes.Equal(old, list) {
		c.listStale = true
		if err := writeFile(filepath.Join(c.dir, ListFile), list); err != nil {
			return err
		}
	}
	if !running || !c.listStale {
		return nil
	}
	if err := c.reloadList(ctx); err != nil {
		return err
	}
	c.listStale = false
	return nil
}

func (c *Client) reloadList(ctx context.Context) error {
	for try := 0; ; try++ {
		_, err := c.Call(ctx, "dispatcher.reload")
		if e := (*RPCError)(nil); !errors.As(err, &e) || e.Message != "Ongoing reload" || try == reloadTries {
			return err
		}
		t := time.NewTimer(reloadPause)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("wait for kamailio's limit of one reload a second: %w: %w", bulkhead.Unavailable, ctx.Err())
		case <-t.C:
		}
	}
}

// Verify reads back what Kamailio decides by and returns each difference to
// want in words; none means that all is well. It compares revision, row
// count, 50 rows drawn at random (all, if there are no more), the dispatcher sets and the files that
// Kamailio would start from. The error is of kind bulkhead.Unavailable when
// Kamailio does not answer.
func (c *Client) Verify(ctx context.Context, want route.Tables) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	diffs, err := c.verify(ctx, want)
	if err != nil {
		return nil, fmt.Errorf("verify revision %d at the Kamailio of SBC %s: %w", want.Revision, want.SBC, err)
	}
	if len(diffs) > 0 {
		// Somebody else was at work: believe neither side.
		clear(c.clean)
		c.metrics.drift.Add(float64(len(diffs)))
	}
	return diffs, nil
}

func (c *Client) verify(ctx context.Context, want route.Tables) ([]string, error) {
	if err := c.open(); err != nil {
		return nil, err
	}
	m, err := c.observe(ctx)
	if errors.Is(err, errNotAttached) {
		return c.verifyBare(ctx, want)
	}
	if err != nil {
		return nil, err
	}
	var diffs []string
	differ := func(what string, got, want any) {
		if got != want {
			diffs = append(diffs, fmt.Sprintf("%s is %v, want %v", what, got, want))
		}
	}
	differ("revision in memory", m.rev[m.live], want.Revision)
	counts, err := c.counts(ctx)
	if err != nil {
		return nil, err
	}
	differ("number of rows in memory", counts[m.live.table()], len(want.Rows))
	for i := range min(sampled, len(want.Rows)) {
		r := want.Rows[i]
		if len(want.Rows) > sampled {
			r = want.Rows[rand.IntN(len(want.Rows))]
		}
		got, err := c.get(ctx, m.live.table(), r.Key)
		if err != nil {
			return nil, err
		}
		if got != r.Value {
			// Not the values: some are secrets.
			diffs = append(diffs, fmt.Sprintf("row %s differs", r.Key))
		}
	}
	onDisk, err := c.file.meta(ctx)
	if err != nil {
		return nil, err
	}
	differ("revision in the table file", onDisk.rev[onDisk.live], want.Revision)
	differ("number of rows in the table file", onDisk.count[onDisk.live], len(want.Rows))
	list, err := os.ReadFile(filepath.Join(c.dir, ListFile))
	if err != nil || !bytes.Equal(list, renderList(want.Sets)) {
		diffs = append(diffs, "the dispatcher list file differs")
	}
	sets, err := c.verifySets(ctx, want.Sets)
	if err != nil {
		return nil, err
	}
	c.listStale = c.listStale || len(sets) > 0
	return append(diffs, sets...), nil
}

// verifyBare is verify for a Kamailio that has nothing of ours: what it would
// get, and what of its own would go.
func (c *Client) verifyBare(ctx context.Context, want route.Tables) ([]string, error) {
	have, err := c.listSets(ctx)
	if e := (*RPCError)(nil); errors.As(err, &e) && e.Message == noMethod {
		err = nil // it has no dispatcher module
	}
	if err != nil {
		return nil, err
	}
	diffs := []string{
		"nothing of Bulkhead's is in this Kamailio: " + errNotAttached.Error(),
		fmt.Sprintf("it would then get the %d rows of revision %d", len(want.Rows), want.Revision),
	}
	for _, id := range slices.Sorted(maps.Keys(have)) {
		diffs = append(diffs, fmt.Sprintf("dispatcher set %d is its own and would go: the module has one list", id))
	}
	for _, s := range want.Sets {
		var uris []string
		for _, t := range s.Targets {
			uris = append(uris, t.URI)
		}
		diffs = append(diffs, fmt.Sprintf("it would get dispatcher set %d (pool %s, home %q): %s", s.ID, s.Pool, s.Home, strings.Join(uris, " ")))
	}
	return diffs, nil
}

// AskOnMiss says whether Kamailio may ask configsvc about calls of nobody in
// its tables. It does until it is told otherwise, and again after a restart.
// Where it was not configured to ask the error is of kind bulkhead.Conflict.
func (c *Client) AskOnMiss(ctx context.Context, may bool) error {
	breaker := 1
	if may {
		breaker = 0
	}
	if _, err := c.Call(ctx, "htable.seti", "bulkhead_gate", "breaker", breaker); err != nil {
		return fmt.Errorf("tell the Kamailio in %s whether to ask configsvc: %w", c.dir, err)
	}
	return nil
}
