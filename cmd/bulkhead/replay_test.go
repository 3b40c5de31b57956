package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/cdrpipe"
	"github.com/bulkhead-voip/bulkhead/freeswitch/freeswitchtest"
)

// TestReplay sends everything through the pipeline again, twice, and then lets
// every second source of a FreeSWITCH (its records posted, and left in files)
// and of an Asterisk (its channel event log) tell of the same legs: the rows
// and what is billed stay as they were. One Asterisk's manager interface is
// heard beside its REST interface from the first call on.
func TestReplay(t *testing.T) {
	p := startPipeline(t, 2, generatorConfig{Legs: 300, Rate: 150, Seed: chaosSeed, Held: true})
	<-p.generator.done
	truth := p.generator.ledger(t)
	unchanged := func(what string) map[string][]cdrpipe.Row {
		t.Helper()
		rows := p.settle(truth)
		if wrong := compare(t, truth, rows); wrong > 0 {
			t.Fatalf("%s: %d of %d legs are wrong", what, wrong, len(truth))
		}
		t.Logf("%s: %d rows, %v billed", what, len(rows), billed(rows))
		return rows
	}
	want := billed(unchanged("heard once"))

	p.bridge.kill()
	spooled, saved := filepath.Join(p.dir, "bridge", "spool"), filepath.Join(p.dir, "spool.saved")
	if err := os.CopyFS(saved, os.DirFS(spooled)); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		before := p.moved()
		p.respool(spooled, saved)
		eventually(t, 2*time.Minute, "the stream once more", func() string {
			if n := p.moved() - before; n < float64(len(truth)) {
				return fmt.Sprintf("%v of %d records", n, len(truth))
			}
			return ""
		})
		unchanged(fmt.Sprintf("replayed %d times", i+1))
		p.bridge.kill()
	}
	p.bridge.start()
	waitReady(t, p.admin, 30*time.Second)

	p.post(truth)
	p.release()
	eventually(t, 2*time.Minute, "what the second sources tell", func() string {
		rows, err := p.records()
		if err != nil {
			return err.Error()
		}
		if missing := untold(truth, rows); missing != "" {
			pauseFor(500 * time.Millisecond) // the store has work to do
			return missing
		}
		return ""
	})
	rows := unchanged("with all second sources")
	if got := billed(rows); got != want {
		t.Errorf("%v billed, want %v as before", got, want)
	}
	told := legsTold(rows)
	t.Logf("legs by who told of them: %v", told)
	if told[cdr.SourceAMI] == 0 {
		t.Error("no record is marked ami")
	}
}

func billed(rows map[string][]cdrpipe.Row) (sum time.Duration) {
	for _, records := range rows {
		for i := range records {
			sum += records[i].Billed()
		}
	}
	return sum
}

// untold names a leg of which a second source did not tell; "": there is none.
func untold(truth map[string]freeswitchtest.SimulatedLeg, rows map[string][]cdrpipe.Row) string {
	for leg := range truth {
		if len(rows[leg]) == 0 {
			return "leg " + leg + " is gone"
		}
		r := &rows[leg][0]
		want := []cdr.Source{cdr.SourceHTTP, cdr.SourceFile}
		if strings.HasPrefix(string(r.Node), "ast") {
			want = want[1:]
		}
		for _, s := range want {
			if !slices.Contains(r.Reporters(), s) {
				return fmt.Sprintf("leg %s of %s: only %v told of it", leg, r.Node, r.Reporters())
			}
		}
	}
	return ""
}

// moved is how many reports of legs the pipe has stored.
func (p *pipeline) moved() float64 {
	return metric(p.t, p.pipeAdmin, `bulkhead_cdrpipe_rows_total{kind="leg"}`)
}

// respool gives the bridge, which does not run, its first spool back, of which
// nothing is acknowledged, takes all that Redis holds away, and starts the bridge.
func (p *pipeline) respool(spooled, saved string) {
	t := p.t
	t.Helper()
	p.redis.Kill()
	for _, dir := range []string{spooled, filepath.Join(p.redis.Dir, "appendonlydir")} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(spooled, os.DirFS(saved)); err != nil {
		t.Fatal(err)
	}
	acks, err := filepath.Glob(filepath.Join(spooled, "*.ack"))
	if err != nil || len(acks) == 0 {
		t.Fatalf("no reader has acknowledged anything: %v", err)
	}
	for _, a := range acks {
		if err := os.Remove(a); err != nil {
			t.Fatal(err)
		}
	}
	p.redis.Start()
	p.bridge.start()
	waitReady(t, p.admin, 30*time.Second)
}

// post posts the records that are held, as the switches would have.
func (p *pipeline) post(truth map[string]freeswitchtest.SimulatedLeg) {
	t := p.t
	t.Helper()
	files, err := filepath.Glob(filepath.Join(p.generator.cfg.ErrDir, "*", "*.cdr.json"))
	if err != nil || len(files) < len(truth)/2 {
		t.Fatalf("%d records are held of %d legs, %v", len(files), len(truth), err)
	}
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		leg := strings.TrimPrefix(strings.TrimSuffix(filepath.Base(f), ".cdr.json"), "a_")
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.listen+"/freeswitch/cdr?uuid="+url.QueryEscape(leg), bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(filepath.Base(filepath.Dir(f)), "chaos-cdr")
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("the record of leg %s was answered %s", leg, resp.Status)
		}
	}
}

// release puts what is held where the bridge looks.
func (p *pipeline) release() {
	t := p.t
	t.Helper()
	cfg := &p.generator.cfg
	held := []string{}
	for i := range cfg.Asterisks {
		held = append(held, cfg.Asterisks[i].CELFile)
	}
	files, err := filepath.Glob(filepath.Join(cfg.ErrDir, "*", "*.cdr.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range append(held, files...) {
		if err := os.Rename(from, strings.Replace(from, heldSuffix, "", 1)); err != nil {
			t.Fatal(err)
		}
	}
}
