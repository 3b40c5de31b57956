package configsvc

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	answers *prometheus.CounterVec
	refused *prometheus.CounterVec
	waited  prometheus.Counter
	stale   *prometheus.CounterVec
	late    *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// Why a question got no answer.
const (
	refusedBody   = "body"         // too long, or it ended early
	refusedEmpty  = "no revision"  // nothing is loaded yet
	refusedStale  = "too old"      // what is loaded is older than the policy allows
	refusedTenant = "tenant rate"  // its tenant asked too much
	refusedPeer   = "peer's limit" // too many connections from one address
)

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_configsvc_answers_total",
			Help: "Questions of PBXs answered, by dialect and kind of answer.",
		}, []string{"dialect", "outcome"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_configsvc_refused_total",
			Help: "Questions of PBXs that got no answer, and connections that were closed at once, by reason.",
		}, []string{"reason"}),
		waited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_configsvc_waited_total",
			Help: "Questions that waited for their tenant's turn.",
		}),
		stale: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_configsvc_stale_answers_total",
			Help: "Answers made from a revision that nobody confirmed lately.",
		}, []string{"dialect"}),
		late: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_configsvc_late_urgent_answers_total",
			Help: "Answers to what a PBX asks one at a time, as a REGISTER's directory look-up, that took longer than their own deadline.",
		}, []string{"dialect"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "bulkhead_configsvc_answer_seconds",
			Help:    "Time from the first byte of a question read to its answer written.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25},
		}, []string{"dialect"}),
	}
	reg.MustRegister(m.answers, m.refused, m.waited, m.stale, m.late, m.seconds)
	for _, reason := range []string{refusedBody, refusedEmpty, refusedStale, refusedTenant, refusedPeer} {
		m.refused.WithLabelValues(reason)
	}
	return m
}

// outcomes counts the answers in one dialect. It keeps the few counters that
// there are, since finding one by its labels takes longer than some answers.
type outcomes struct {
	counter func(outcome string) prometheus.Counter
	mu      sync.Mutex // held to add one
	known   atomic.Pointer[map[string]prometheus.Counter]
}

func newOutcomes(answers *prometheus.CounterVec, dialect string) *outcomes {
	o := &outcomes{counter: func(outcome string) prometheus.Counter { return answers.WithLabelValues(dialect, outcome) }}
	o.known.Store(&map[string]prometheus.Counter{})
	return o
}

func (o *outcomes) inc(outcome string) {
	c, ok := (*o.known.Load())[outcome]
	if !ok {
		o.mu.Lock()
		more := maps.Clone(*o.known.Load())
		c = o.counter(outcome)
		more[outcome] = c
		o.known.Store(&more)
		o.mu.Unlock()
	}
	c.Inc()
}
