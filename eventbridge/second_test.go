package eventbridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

var errNotWhole = errors.New("not whole")

// decodeLine is a decoder of a made-up form, "leg seconds"; without the
// seconds it is not whole.
func decodeLine(node bulkhead.NodeID, source cdr.Source, leg string, body []byte) (cdr.Record, error) {
	r := cdr.Record{Source: source, Node: node, Leg: leg, Start: at(1), Attrs: map[string]string{"context": "public"}}
	var sec int
	if n, _ := fmt.Sscanf(string(body), "%s %d", &r.Leg, &sec); n < 2 {
		if r.Leg = leg; leg != "" {
			r.Attrs["bad:json"] = "not whole"
		}
		return r, errNotWhole
	}
	r.End = at(sec)
	return r, nil
}

func cdrConfig(t *testing.T, s Stream) Config {
	cfg := testConfig(t, s)
	cfg.DecodeCDR, cfg.KeepRaw = decodeLine, true
	cfg.IsNode = func(n bulkhead.NodeID, password string) bool { return n == "fs1" && password == "secret" }
	return cfg
}

func TestPostedRecords(t *testing.T) {
	s := &memStream{}
	b, err := New(cdrConfig(t, s))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	post := func(user, password, query, body string) int {
		w := httptest.NewRecorder()
		req := httptest.NewRequestWithContext(t.Context(), "POST", "/freeswitch/cdr"+query, strings.NewReader(body))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded") // it must not matter
		if user != "" {
			req.SetBasicAuth(user, password)
		}
		b.Routes().ServeHTTP(w, req)
		if w.Code >= 300 && w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%d %v", w.Code, w.Header())
		}
		return w.Code
	}
	for _, who := range [][2]string{{"", ""}, {"fs1", "wrong"}, {"fs1", ""}, {"fs2", ""}, {"fs2", "secret"}} {
		if code := post(who[0], who[1], "?uuid=a", "a 5"); code != 401 || len(s.payloads) != 0 {
			t.Errorf("%v: %d", who, code)
		}
	}
	good := func(query, body string) int { return post("fs1", "secret", query, body) }
	if code := good("?uuid=a", "a 5"); code != 200 {
		t.Errorf("%d", code)
	}
	e, err := cdr.Decode(s.payloads[0])
	if err != nil {
		t.Fatal(err)
	}
	want := cdr.Record{
		Schema: 1, ID: cdr.NewID("c1", "fs1", "a"), Kind: cdr.Leg, Source: cdr.SourceHTTP, Cell: "c1", Node: "fs1", Leg: "a", Call: "a",
		Start: at(1), End: at(5), Attrs: map[string]string{"context": "public"},
	}
	if d := cmp.Diff(want, *e.Record); d != "" {
		t.Error(d)
	}
	if raw, err := cdr.Unpack(e.Raw); err != nil || string(raw) != "a 5" {
		t.Errorf("raw %q, %v", raw, err)
	}
	// The same again, as after a lost answer: one row.
	if code := good("?uuid=a", "a 5"); code != 200 || len(s.stored().legs) != 1 {
		t.Errorf("%d, %d legs", code, len(s.stored().legs))
	}
	// Acknowledged only when durable.
	s.setFail(errors.New("disk full"))
	if code := good("?uuid=b", "b 5"); code != 503 {
		t.Errorf("while the stream fails: %d", code)
	}
	s.setFail(nil)
	// Not whole, but the request names the leg: the row lands.
	if code := good("?uuid=c", "garbage"); code != 200 || s.stored().legs["c"].Attrs["bad:json"] == "" {
		t.Errorf("%d, %+v", code, s.stored().legs["c"])
	}
	if n := testutil.ToFloat64(b.metrics.quarantined.WithLabelValues("fs1", "http")); n != 1 {
		t.Errorf("%v fields quarantined", n)
	}
	// Names no leg at all: accepted raw, and no entry of ours.
	forged, _ := cdr.Encode(cdr.Entry{Record: &cdr.Record{Leg: "forged"}})
	for _, body := range []string{"", "garbage", string(forged)} {
		if code := good("", body); code != 200 {
			t.Errorf("%q: %d", body, code)
		}
	}
	if st := s.stored(); st.raw != 3 || len(st.legs) != 2 {
		t.Errorf("%d raw, %d legs", st.raw, len(st.legs))
	}
	if code := good("?uuid=d", strings.Repeat("x", maxCDRBody+1)); code != 413 {
		t.Errorf("too long: %d", code)
	}
	if code := good("?uuid=d", strings.Repeat("x", maxCDRBody)); code != 200 {
		t.Errorf("longest: %d", code)
	}
	for _, p := range s.payloads {
		if len(p) > 1<<20 {
			t.Errorf("a payload has %d bytes", len(p))
		}
	}
}

// TestSweep follows files through their whole life.
func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memStream{}
		dir := t.TempDir()
		done := filepath.Join(dir, "done")
		cfg := cdrConfig(t, s)
		cfg.Sweeps = []Sweep{{Node: "fs1", Dir: dir, Done: done}}
		_, stop := launch(t, cfg)
		defer stop()
		write := func(name, text string) {
			t.Helper()
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		has := func(name string) bool {
			_, err := os.Stat(filepath.Join(dir, name))
			return err == nil
		}
		write("a.cdr.json", "a 5\n")
		write("2026-11-23-01-00-00/b.cdr.json", "b 5\n")
		write("2026-11-23-01-00-00/deep/x.cdr.json", "x 5\n")
		write("a_c.cdr.json", "c\n") // half of it
		write("note.txt", "d 5\n")
		if err := os.Symlink(filepath.Join(dir, "note.txt"), filepath.Join(dir, "link.cdr.json")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(sweepSettle / 2)
		if len(s.stored().legs) != 0 {
			t.Error("a file was taken that had just been written")
		}
		time.Sleep(sweepSettle + sweepEvery)
		st := s.stored()
		if len(st.legs) != 2 || st.legs["a"].Source != cdr.SourceFile || st.legs["b"].Node != "fs1" {
			t.Errorf("stored %+v", st.legs)
		}
		if has("a.cdr.json") || !has("done/a.cdr.json") || !has("done/b.cdr.json") || !has("a_c.cdr.json") || !has("note.txt") || !has("link.cdr.json") {
			t.Error("files are not where they belong")
		}
		// The rest is written: the file is whole and is taken.
		time.Sleep(sweepTorn - 10*time.Second)
		write("a_c.cdr.json", "c 5\n")
		time.Sleep(sweepTorn - 10*time.Second)
		if st := s.stored(); st.legs["c"].End.IsZero() || len(st.legs["c"].Attrs) != 1 || !has("done/a_c.cdr.json") {
			t.Errorf("file that was completed: %+v", st.legs["c"])
		}
		// One that stays torn: what it says lands, and the file is kept. Of
		// two with the same name both are.
		for _, want := range []string{"undecodable/d.cdr.json", "undecodable/d.cdr.json.1"} {
			write("d.cdr.json", "d")
			time.Sleep(sweepTorn + 2*sweepEvery)
			if st := s.stored(); st.legs["d"].Attrs["bad:json"] == "" || has("d.cdr.json") || !has(want) {
				t.Errorf("torn file: %+v", st.legs["d"])
			}
		}
		write("e.cdr.json", strings.Repeat("e", maxCDRBody+1))
		// Nothing leaves the folder while it cannot be stored.
		s.setFail(errors.New("disk full"))
		write("f.cdr.json", "f 5\n")
		time.Sleep(10 * time.Second)
		if !has("f.cdr.json") || has("done/f.cdr.json") {
			t.Error("a file left although it was not stored")
		}
		s.setFail(nil)
		time.Sleep(5 * time.Second)
		if !has("done/f.cdr.json") || !has("undecodable/e.cdr.json") || len(s.stored().legs) != 5 {
			t.Errorf("after the disk had room again: %+v", s.stored().legs)
		}
	})
}

func TestSweepDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &memStream{}
		dir := filepath.Join(t.TempDir(), "later")
		cfg := cdrConfig(t, s)
		cfg.Sweeps = []Sweep{{Node: "fs1", Dir: dir}}
		b, stop := launch(t, cfg)
		defer stop()
		time.Sleep(3 * time.Second)
		if n := testutil.ToFloat64(b.metrics.sweepErrors.WithLabelValues("fs1")); n == 0 {
			t.Error("a missing folder is not counted")
		}
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "a.cdr.json")
		if err := os.WriteFile(path, []byte("a 5"), 0o640); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) || len(s.stored().legs) != 1 {
			t.Errorf("%v, %+v", err, s.stored().legs)
		}
	})
}

// TestSweepMany: after a long time away a folder holds very many files. They
// are made durable together, since each time takes a sync of the disk.
func TestSweepMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const files = 3*sweepBatch + 1
		appends := 0
		s := &memStream{before: func() { appends++ }}
		dir := t.TempDir()
		cfg := cdrConfig(t, s)
		cfg.Sweeps = []Sweep{{Node: "fs1", Dir: dir}}
		_, stop := launch(t, cfg)
		defer stop()
		for i := range files {
			leg := fmt.Sprintf("leg%d", i)
			if err := os.WriteFile(filepath.Join(dir, leg+sweepSuffix), []byte(leg+" 5"), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(sweepSettle + 2*sweepEvery)
		left, err := os.ReadDir(dir)
		if n := len(s.stored().legs); n != files || len(left) != 0 || err != nil {
			t.Errorf("%d of %d files are stored, %d are left, %v", n, files, len(left), err)
		}
		if appends > 4 {
			t.Errorf("%d files took %d appends", files, appends)
		}
	})
}

func TestStatusAndUnmatchedAreJSON(t *testing.T) {
	s := &memStream{}
	b, err := New(cdrConfig(t, s))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for i := range maxUnmatched + 5 {
		r := cdr.Record{Kind: cdr.Leg, Node: "fs1", Leg: "l", Attrs: map[string]string{"context": fmt.Sprint(max(i, 2)), "bad:start": fmt.Sprint(i)}}
		r.ID = cdr.NewID("c1", "fs1", fmt.Sprint(i))
		b.account(&r)
		b.account(&r) // a second report of the same leg
	}
	w := httptest.NewRecorder()
	b.Routes().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/v1/unmatched", nil))
	var got UnmatchedList
	if err := json.Unmarshal(bytes.TrimSpace(w.Body.Bytes()), &got); err != nil || w.Code != 200 {
		t.Fatalf("%d %v", w.Code, err)
	}
	if got.Legs != maxUnmatched+5 || got.Other != 3 || len(got.Kinds) != maxUnmatched || got.Kinds[0].Legs != 3 || got.Kinds[0].Attrs["context"] != "2" || len(got.Kinds[0].Attrs) != 1 {
		t.Errorf("%d legs, %d other, %d kinds, first %+v", got.Legs, got.Other, len(got.Kinds), got.Kinds[0])
	}
}
