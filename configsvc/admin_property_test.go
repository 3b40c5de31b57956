package configsvc

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/bulkhead-voip/bulkhead"
)

// TestAnyWrites: whatever is written, by whomever, in whatever order: a
// refusal changes nothing, a write makes at most one revision and its ETag is
// that one's, every state is valid, and a tenant's token changes its own
// tenant alone.
func TestAnyWrites(t *testing.T) {
	x := newAdmin(t)
	rapid.Check(t, func(rt *rapid.T) {
		tenant := rapid.SampledFrom([]string{"acme", "bravo", "carol"})
		extension := rapid.SampledFrom([]string{"1001", "1002", "1003"})
		for range rapid.IntRange(1, 8).Draw(rt, "writes") {
			id := tenant.Draw(rt, "tenant")
			path, bodies := "/v1/tenants/"+id, []string{
				fmt.Sprintf(`{"cell": "c1", "profile": "standard", "domains": ["%s.example"]}`, tenant.Draw(rt, "domain")),
				`{"name": "N"}`, `{"limits": {"calls": 3}}`, `{"sources": ["192.0.2.0/25"]}`,
			}
			switch rapid.IntRange(0, 4).Draw(rt, "kind") {
			case 0:
				path, bodies = path+"/users/"+extension.Draw(rt, "extension"), []string{`{"password": "a"}`, `{"name": "U"}`, `{"caller_id": "4930200"}`, `{"caller_id": null}`}
			case 1:
				path, bodies = path+"/numbers/"+rapid.SampledFrom([]string{"4930100", "4930200"}).Draw(rt, "number"), []string{`{"user": "1001"}`, `{"user": "1003"}`}
			case 2:
				path, bodies = path+"/domains", []string{fmt.Sprintf(`{"items": ["%s.example", "%s.example"]}`, id, tenant.Draw(rt, "domain")), `{"items": []}`}
			case 3:
				path, bodies = path+"/sources", []string{`{"items": ["192.0.2.0/24"]}`, `{"items": ["198.51.100.0/24", "192.0.2.0/28"]}`, `{"items": []}`}
			}
			method := rapid.SampledFrom([]string{http.MethodPut, http.MethodPatch, http.MethodDelete}).Draw(rt, "method")
			token := rapid.SampledFrom([]string{"admin", "admin", "acme", "read"}).Draw(rt, "token")
			body := rapid.SampledFrom(bodies).Draw(rt, "body")
			var headers []string
			before := x.head()
			if back := rapid.IntRange(-1, 3).Draw(rt, "if-match"); back >= 0 {
				headers = []string{"If-Match", etag(before.Revision - min(before.Revision, bulkhead.RevisionNumber(back)))}
			}
			g := x.send(method, path, token, body, headers...)
			after := x.head()
			switch {
			case g.status/100 == 2 && (after.Revision > before.Revision+1 || g.header.Get("ETag") != etag(after.Revision)):
				rt.Fatalf("%s %s %s: revision %d became %d: %+v", method, path, body, before.Revision, after.Revision, g)
			case g.status/100 == 4 && after.Revision != before.Revision, g.status/100 != 2 && g.status/100 != 4:
				rt.Fatalf("%s %s %s: revision %d became %d: %+v", method, path, body, before.Revision, after.Revision, g)
			}
			if err := after.Validate(); err != nil {
				rt.Fatalf("%s %s %s leads to an invalid state: %v", method, path, body, err)
			}
			for _, name := range objectNames(ptr(before.Diff(after))) {
				if token == "read" || token == "acme" && name != "tenants[acme]" || name != "tenants["+id+"]" {
					rt.Fatalf("%s %s %s as %s changed %s", method, path, body, token, name)
				}
			}
		}
	})
	head := x.head()
	replayed, err := x.cfg.History.State(t.Context(), head.Revision)
	if d := head.Diff(replayed); err != nil || !d.IsZero() {
		t.Errorf("the log replayed differs from the head: %v %+v", err, d)
	}
}

func ptr[T any](v T) *T { return &v }

// TestMetricLabels: no request can make a new series.
func TestMetricLabels(t *testing.T) {
	x := newAdmin(t)
	for i := range 50 {
		x.send(http.MethodGet, fmt.Sprintf("/v1/none%d", i), "", "")
		x.send(http.MethodGet, fmt.Sprintf("/v1/tenants/none%d", i), "admin", "")
		x.send(fmt.Sprintf("METHOD%d", i), "/v1/cells", "admin", "")
		x.send(http.MethodPost, fmt.Sprintf("/v1/tenants/none%d", i), "admin", "")
	}
	families, err := x.cfg.Registerer.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	var series []string
	for _, f := range families {
		if f.GetName() == "bulkhead_api_requests_total" {
			for _, m := range f.GetMetric() {
				series = append(series, m.String())
			}
		}
	}
	if len(series) != 4 {
		t.Errorf("%d series:\n%s", len(series), strings.Join(series, "\n"))
	}
}
