package cdrpipe

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
)

const (
	defaultLimit = 100
	nextHeader   = "Bulkhead-Next"
)

// Routes serves what w holds, for reading only and without authentication:
//
//	GET /v1/cdrs         ?tenant= kind= call= since= until= after= limit=
//	GET /v1/cdrs/export  ?tenant= kind= after= limit= format=ndjson|csv
//	GET /v1/gaps         ?since= limit=
//	GET /v1/kpis         ?tenant= pool= node= since= until= bucket= by=tenant,pool,node
//	GET /v1/summary      ?since=
//
// Times are RFC 3339 or seconds since 1970. /v1/cdrs answers a JSON object
// with records and next, the value of after for the following page; or, asked
// with Accept: application/x-ndjson, a record a line and next in the header
// Bulkhead-Next. next is empty behind the last page.
//
// /v1/cdrs is in the order of calls, so a record that is stored late can be
// before a page that was read. /v1/cdrs/export is in the order of storing: who
// keeps the header Bulkhead-Next and goes on from it gets every record, and a
// record again when a better report changed it. There is always a next; a page
// of fewer lines than limit was the last for now. The bucket of /v1/kpis is a
// duration such as 15m or 24h.
func Routes(w Warehouse) http.Handler {
	a := &api{warehouse: w}
	r := chi.NewRouter()
	r.Get("/v1/cdrs", a.records)
	r.Get("/v1/cdrs/export", a.export)
	r.Get("/v1/gaps", a.gaps)
	r.Get("/v1/kpis", a.kpis)
	r.Get("/v1/summary", a.summary)
	return r
}

type api struct{ warehouse Warehouse }

func (a *api) records(w http.ResponseWriter, req *http.Request) {
	f, err := parseFilter(req.URL.Query())
	if err != nil {
		problem(w, err)
		return
	}
	rows, err := a.warehouse.Records(req.Context(), f)
	if err != nil {
		problem(w, err)
		return
	}
	next := ""
	if len(rows) == f.Limit {
		next = rows[len(rows)-1].Cursor().String()
	}
	if !strings.Contains(req.Header.Get("Accept"), "application/x-ndjson") {
		answer(w, struct {
			Records []Row  `json:"records"`
			Next    string `json:"next"`
		}{append([]Row{}, rows...), next})
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set(nextHeader, next)
	_ = NewNDJSON(w).Write(rows) // the asker may have gone
}

func (a *api) export(w http.ResponseWriter, req *http.Request) {
	q := query{values: req.URL.Query()}
	e := Export{Tenant: bulkhead.TenantID(q.values.Get("tenant")), Kind: q.kind(), Limit: q.limit()}
	var err error
	if e.After, err = ParsePosition(q.values.Get("after")); err != nil {
		q.bad("after", err.Error())
	}
	kind, to := "application/x-ndjson", NewNDJSON(w)
	switch q.values.Get("format") {
	case "", "ndjson":
	case "csv":
		kind, to = "text/csv; charset=utf-8; header=present", NewCSV(w, true)
	default:
		q.bad("format", "must be ndjson or csv")
	}
	if err := q.err(); err != nil {
		problem(w, err)
		return
	}
	rows, next, err := a.warehouse.Export(req.Context(), e)
	if err != nil {
		problem(w, err)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Disposition", "attachment")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set(nextHeader, next.String())
	_ = to.Write(rows) // the asker may have gone
}

func (a *api) kpis(w http.ResponseWriter, req *http.Request) {
	q := query{values: req.URL.Query()}
	k := KPIQuery{
		Since: q.time("since"), Until: q.time("until"),
		Tenant: bulkhead.TenantID(q.values.Get("tenant")), Pool: bulkhead.PoolID(q.values.Get("pool")), Node: bulkhead.NodeID(q.values.Get("node")),
	}
	if s := q.values.Get("bucket"); s != "" {
		var err error
		if k.Bucket, err = time.ParseDuration(s); err != nil {
			q.bad("bucket", "must be a duration such as 15m or 24h")
		}
	}
	for d := range strings.SplitSeq(q.values.Get("by"), ",") {
		if d != "" {
			k.By = append(k.By, Dimension(d))
		}
	}
	if err := q.err(); err != nil {
		problem(w, err)
		return
	}
	kpis, err := a.warehouse.KPIs(req.Context(), k)
	if err != nil {
		problem(w, err)
		return
	}
	answer(w, map[string]any{"kpis": append([]KPI{}, kpis...)})
}

func (a *api) gaps(w http.ResponseWriter, req *http.Request) {
	q := query{values: req.URL.Query()}
	since, limit := q.time("since"), q.limit()
	if err := q.err(); err != nil {
		problem(w, err)
		return
	}
	gaps, err := a.warehouse.Gaps(req.Context(), since, limit)
	if err != nil {
		problem(w, err)
		return
	}
	answer(w, map[string]any{"gaps": append([]cdr.Gap{}, gaps...)})
}

func (a *api) summary(w http.ResponseWriter, req *http.Request) {
	q := query{values: req.URL.Query()}
	since := q.time("since")
	if err := q.err(); err != nil {
		problem(w, err)
		return
	}
	tenants, err := a.warehouse.Summary(req.Context(), since)
	if err != nil {
		problem(w, err)
		return
	}
	answer(w, map[string]any{"tenants": append([]TenantSummary{}, tenants...)})
}

func parseFilter(values url.Values) (Filter, error) {
	q := query{values: values}
	f := Filter{
		Tenant: bulkhead.TenantID(values.Get("tenant")),
		Kind:   q.kind(),
		Call:   values.Get("call"),
		Since:  q.time("since"),
		Until:  q.time("until"),
		Limit:  q.limit(),
	}
	var err error
	if f.After, err = ParseCursor(values.Get("after")); err != nil {
		q.bad("after", err.Error())
	}
	return f, q.err()
}

// query reads parameters and gathers what is wrong with them.
type query struct {
	values url.Values
	errs   []error
}

func (q *query) bad(field, msg string) {
	q.errs = append(q.errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: msg})
}

func (q *query) err() error { return errors.Join(q.errs...) }

func (q *query) kind() cdr.Kind {
	k := cdr.Kind(q.values.Get("kind"))
	switch k {
	case "", cdr.Leg, cdr.Refused, cdr.Failover:
	default:
		q.bad("kind", "must be leg, refused or failover")
	}
	return k
}

func (q *query) time(field string) time.Time {
	s := q.values.Get(field)
	if s == "" {
		return time.Time{}
	}
	if sec, err := strconv.ParseInt(s, 10, 64); err == nil && sec >= 0 && sec < 1<<38 {
		return time.Unix(sec, 0).UTC()
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		q.bad(field, "must be a time such as 2026-01-31T12:00:00Z, or seconds since 1970")
	}
	return t
}

func (q *query) limit() int {
	s := q.values.Get("limit")
	if s == "" {
		return defaultLimit
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > MaxLimit {
		q.bad("limit", fmt.Sprintf("must be 1 to %d", MaxLimit))
	}
	return n
}

func answer(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		problem(w, fmt.Errorf("encode the answer: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the asker may have gone
}

// problem answers with an error as RFC 9457 has it. What is not the asker's
// fault is not told in detail.
func problem(w http.ResponseWriter, err error) {
	status, detail := http.StatusServiceUnavailable, "the warehouse does not answer; ask again later"
	if errors.Is(err, bulkhead.Invalid) {
		status, detail = http.StatusBadRequest, err.Error()
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{ // the asker may have gone
		"title": http.StatusText(status), "status": status, "detail": detail,
	})
}
