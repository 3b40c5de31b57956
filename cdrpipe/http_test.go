package cdrpipe

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-voip/bulkhead/cdr"
)

func get(t *testing.T, h http.Handler, url, accept string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	req.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

func TestRoutes(t *testing.T) {
	s := openTemp(t)
	h := Routes(s)
	for _, url := range []string{"/v1/cdrs", "/v1/gaps", "/v1/summary", "/v1/kpis?by=tenant"} {
		if w := get(t, h, url, ""); w.Code != 200 || !strings.Contains(w.Body.String(), "[]") {
			t.Errorf("%s of an empty warehouse: %d %s", url, w.Code, w.Body)
		}
	}
	for i := range 5 {
		insert(t, s, entry(fullRecord(i)))
	}
	insert(t, s, cdr.Entry{Gap: &cdr.Gap{ID: "g", Node: "fs1", From: at(0), Reason: "lost"}})

	t.Run("pages", func(t *testing.T) {
		var got []string
		after := ""
		for range 4 {
			w := get(t, h, "/v1/cdrs?limit=2&after="+after, "")
			var page struct {
				Records []struct {
					Leg      string `json:"leg"`
					BilledMS int64  `json:"billed_ms"`
				} `json:"records"`
				Next string `json:"next"`
			}
			if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
				t.Fatalf("%d %s: %v", w.Code, w.Body, err)
			}
			for _, r := range page.Records {
				got = append(got, r.Leg)
				if r.BilledMS != 2000 {
					t.Errorf("billed_ms = %d", r.BilledMS)
				}
			}
			if after = page.Next; after == "" {
				break
			}
		}
		if d := cmp.Diff([]string{"leg-0000", "leg-0001", "leg-0002", "leg-0003", "leg-0004"}, got); d != "" {
			t.Error(d)
		}
	})
	t.Run("ndjson", func(t *testing.T) {
		w := get(t, h, "/v1/cdrs?limit=3&tenant=t1&since=2026-01-01T00:00:00Z&until=1900000000", "application/x-ndjson")
		lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n")
		if w.Header().Get("Content-Type") != "application/x-ndjson" || len(lines) != 2 || w.Header().Get("Bulkhead-Next") != "" {
			t.Errorf("%v\n%s", w.Header(), w.Body)
		}
		var r Row
		if err := json.Unmarshal([]byte(lines[0]), &r); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(newRow(fullRecord(1)), r); d != "" {
			t.Error(d)
		}
	})
	t.Run("gaps and summary", func(t *testing.T) {
		if w := get(t, h, "/v1/gaps?since=0&limit=5", ""); !strings.Contains(w.Body.String(), `"reason":"lost"`) {
			t.Error(w.Body)
		}
		if w := get(t, h, "/v1/summary?since=1", ""); !strings.Contains(w.Body.String(), `"tenant":"t1","pool":"p1","legs":2,"calls":2`) {
			t.Error(w.Body)
		}
	})
}

func TestRoutesExport(t *testing.T) {
	s := openTemp(t)
	h := Routes(s)
	var got []string
	after := ""
	for i := range 5 { // a page, then one more record
		insert(t, s, entry(fullRecord(9-i)))
		w := get(t, h, "/v1/cdrs/export?format=csv&after="+after, "")
		lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n")
		if w.Code != 200 || len(lines) != 2 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/csv") || !strings.HasPrefix(lines[0], "id,kind,") {
			t.Fatalf("%d %v\n%s", w.Code, w.Header(), w.Body)
		}
		got = append(got, strings.Split(lines[1], ",")[10])
		if after = w.Header().Get("Bulkhead-Next"); after == "" {
			t.Fatal("there is no next")
		}
	}
	if d := cmp.Diff([]string{"leg-0009", "leg-0008", "leg-0007", "leg-0006", "leg-0005"}, got); d != "" {
		t.Error(d)
	}
	w := get(t, h, "/v1/cdrs/export?after="+after, "")
	if w.Body.Len() != 0 || w.Header().Get("Bulkhead-Next") != after {
		t.Errorf("behind the end: %v\n%s", w.Header(), w.Body)
	}
	if w := get(t, h, "/v1/cdrs/export?limit=2&tenant=t2", ""); strings.Count(w.Body.String(), "\n") != 2 {
		t.Errorf("two of t2: %s", w.Body)
	}
}

func TestRoutesKPIs(t *testing.T) {
	s := openTemp(t)
	insert(t, s, entry(fullRecord(0)), entry(fullRecord(1)))
	w := get(t, Routes(s), "/v1/kpis?by=tenant,pool&bucket=1h&since=2026-01-01T00:00:00Z&until=1900000000&node=fs1", "")
	want := `{"kpis":[{"time":"2026-01-02T03:00:00Z","tenant":"t0","pool":"p1","attempts":1,"answered":1,"effective":1,`
	if w.Code != 200 || !strings.HasPrefix(w.Body.String(), want) || !strings.Contains(w.Body.String(), `"ser":100,"seer":100,"isa":0,"asr":100,"ner":100,`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestRoutesRefuse(t *testing.T) {
	s := openTemp(t)
	h := Routes(s)
	for _, url := range []string{
		"/v1/cdrs?limit=0", "/v1/cdrs?limit=10001", "/v1/cdrs?limit=x", "/v1/cdrs?kind=odd", "/v1/cdrs?since=yesterday",
		"/v1/cdrs?after=zz", "/v1/gaps?since=-1", "/v1/gaps?limit=-1", "/v1/summary?since=x",
		"/v1/cdrs/export?limit=0", "/v1/cdrs/export?after=5-6a7ba5a5dcb86f34ed54cfbd8eaa3c1e", "/v1/cdrs/export?format=xml", "/v1/cdrs/export?kind=odd",
		"/v1/kpis?bucket=1s", "/v1/kpis?bucket=day", "/v1/kpis?by=cause", "/v1/kpis?since=x",
	} {
		w := get(t, h, url, "")
		if w.Code != 400 || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s", url, w.Code, w.Body)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"/v1/cdrs", "/v1/cdrs/export", "/v1/gaps", "/v1/summary", "/v1/kpis"} {
		if w := get(t, h, url, ""); w.Code != 503 || strings.Contains(w.Body.String(), "sql") {
			t.Errorf("%s of a closed warehouse: %d %s", url, w.Code, w.Body)
		}
	}
}
