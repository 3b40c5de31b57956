package cdrpipe

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// Dimension is something that KPIs are grouped by.
type Dimension string

// The dimensions of KPIs.
const (
	ByTenant Dimension = "tenant"
	ByPool   Dimension = "pool"
	ByNode   Dimension = "node"
)

// Dimensions lists all dimensions.
func Dimensions() []Dimension { return []Dimension{ByTenant, ByPool, ByNode} }

// KPIQuery asks for key performance indicators. A zero field does not
// restrict.
type KPIQuery struct {
	Since  time.Time // Row.Time at or after it
	Until  time.Time // Row.Time before it
	Tenant bulkhead.TenantID
	Pool   bulkhead.PoolID
	Node   bulkhead.NodeID

	// Bucket is the length of the intervals to report, whole minutes that
	// begin at a multiple of it since 1970 UTC; 0: all time in one.
	Bucket time.Duration
	By     []Dimension // each at most once
}

// Validate returns bulkhead.Invalid with what is wrong.
func (q *KPIQuery) Validate() error {
	var errs []error
	bad := func(field, msg string) {
		errs = append(errs, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: msg})
	}
	if q.Bucket < 0 || q.Bucket%time.Minute != 0 {
		bad("bucket", "must be whole minutes, or 0 for one interval")
	}
	for i, d := range q.By {
		if !slices.Contains(Dimensions(), d) {
			bad("by", fmt.Sprintf("has %.20q; it may name tenant, pool and node", string(d)))
		} else if slices.Contains(q.By[:i], d) {
			bad("by", fmt.Sprintf("names %s twice", d))
		}
	}
	return errors.Join(errs...)
}

// KPI is one interval of one combination of dimensions. Ratios are in percent
// as RFC 6076 has them, and nil where nothing can be said.
//
// A session request (RFC 6076's INVITE) is an A leg on a node, or a call that
// an SBC refused; a failover within a call is none. Its final response is 200
// if it was answered, else the record's SIP code. Requests whose response
// nobody saw (Unknown) are in Attempts and in no ratio.
type KPI struct {
	Time   time.Time         `json:"time,omitzero"` // begin of the interval; zero if there is one
	Tenant bulkhead.TenantID `json:"tenant,omitempty"`
	Pool   bulkhead.PoolID   `json:"pool,omitempty"`
	Node   bulkhead.NodeID   `json:"node,omitempty"`

	Attempts    int64 `json:"attempts"`
	Answered    int64 `json:"answered"`    // 200
	Effective   int64 `json:"effective"`   // 200, 480, 486, 600, 603
	Ineffective int64 `json:"ineffective"` // 408, 500, 503, 504
	Redirected  int64 `json:"redirected"`  // 3xx
	Challenged  int64 `json:"challenged"`  // 401, 407
	Unknown     int64 `json:"unknown"`     // no final response is known
	Failovers   int64 `json:"failovers"`   // attempts on a node after which an SBC took the next
	Gapped      int64 `json:"gapped"`      // legs whose end was not seen, B legs included
	Ended       int64 `json:"ended"`       // answered, with a known end
	BilledMS    int64 `json:"billed_ms"`   // of A legs

	SER  *float64 `json:"ser"`  // RFC 6076 4.6: 200 / (all - 3xx)
	SEER *float64 `json:"seer"` // RFC 6076 4.7: (200, 480, 486, 600, 603) / (all - 3xx)
	ISA  *float64 `json:"isa"`  // RFC 6076 4.8: (408, 500, 503, 504) / all
	ASR  *float64 `json:"asr"`  // 200 / (all - 3xx - 401 - 407)
	NER  *float64 `json:"ner"`  // (200, 480, 486, 600, 603) / (all - 3xx - 401 - 407)

	Minutes float64  `json:"minutes"` // billed
	ACD     *float64 `json:"acd_s"`   // mean seconds from answer to end; RFC 6076 4.5.1 (SDT), averaged

	// Post-dial delay: seconds from the begin of the leg to ringing, or to
	// the answer where nothing rang; RFC 6076 4.3.1 (SRD, successful).
	PDDs   int64    `json:"pdds"` // requests that have one
	PDDP50 *float64 `json:"pdd_p50_s"`
	PDDP95 *float64 `json:"pdd_p95_s"`
}

// derive fills the ratios from the counts.
func (k *KPI) derive() {
	known := k.Attempts - k.Unknown
	k.SER, k.SEER = percent(k.Answered, known-k.Redirected), percent(k.Effective, known-k.Redirected)
	k.ISA = percent(k.Ineffective, known)
	k.ASR, k.NER = percent(k.Answered, known-k.Redirected-k.Challenged), percent(k.Effective, known-k.Redirected-k.Challenged)
	k.Minutes = float64(k.BilledMS) / 60_000
	if k.Ended > 0 {
		acd := float64(k.BilledMS) / 1000 / float64(k.Ended)
		k.ACD = &acd
	}
}

func percent(n, of int64) *float64 {
	if of <= 0 {
		return nil
	}
	v := 100 * float64(n) / float64(of)
	return &v
}

func (k *KPI) setPDD(n, p50us, p95us int64) {
	if k.PDDs = n; n == 0 {
		return
	}
	p50, p95 := float64(p50us)/1e6, float64(p95us)/1e6
	k.PDDP50, k.PDDP95 = &p50, &p95
}

// The SQL that both stores have in common. A request's final response:
const (
	sqlAttempt = "(kind = 'leg' AND call = leg OR kind = 'refused')"
	sqlCode    = "(CASE WHEN answer_us IS NOT NULL THEN 200 ELSE sip_code END)"
	sqlPDD     = "(coalesce(ring_us, answer_us) - start_us)"
	sqlHasPDD  = "(kind = 'leg' AND call = leg AND start_us IS NOT NULL AND coalesce(ring_us, answer_us) IS NOT NULL)"
)

// kpiCounts are the counts of KPI in the order of KPI.counts.
func kpiCounts() []string {
	count := func(cond string) string { return "sum(CASE WHEN " + cond + " THEN 1 ELSE 0 END)" }
	attempt := func(cond string) string { return count(sqlAttempt + " AND " + sqlCode + cond) }
	return []string{
		count(sqlAttempt),
		attempt(" = 200"), attempt(" IN (200, 480, 486, 600, 603)"), attempt(" IN (408, 500, 503, 504)"),
		attempt(" BETWEEN 300 AND 399"), attempt(" IN (401, 407)"), attempt(" = 0"),
		count("kind = 'failover'"), count("source = 'synthesised'"),
		count("kind = 'leg' AND call = leg AND answer_us IS NOT NULL AND end_us IS NOT NULL"),
		"sum(CASE WHEN kind = 'leg' AND call = leg THEN billed_ms ELSE 0 END)",
	}
}

func (k *KPI) counts() []any {
	return []any{
		&k.Attempts, &k.Answered, &k.Effective, &k.Ineffective, &k.Redirected, &k.Challenged, &k.Unknown,
		&k.Failovers, &k.Gapped, &k.Ended, &k.BilledMS,
	}
}

// kpiKey is the SELECT list of what is grouped by: bucket, tenant, pool, node.
func (q *KPIQuery) kpiKey(bucket string) string {
	keys := []string{"CAST(0 AS BIGINT)"}
	if q.Bucket > 0 {
		keys[0] = bucket
	}
	keys[0] += " AS bucket"
	for _, d := range Dimensions() {
		if slices.Contains(q.By, d) {
			keys = append(keys, string(d)+" AS by_"+string(d))
		} else {
			keys = append(keys, "'' AS by_"+string(d))
		}
	}
	return strings.Join(keys, ", ")
}

const kpiGroups = "bucket, by_tenant, by_pool, by_node"

// tooMany is the error of more groups than an answer holds.
func tooMany() error {
	return fmt.Errorf("the answer has more than %d lines; ask for a shorter time, a longer bucket or fewer dimensions: %w", MaxLimit, bulkhead.Invalid)
}
