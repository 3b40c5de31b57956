package dispatcher

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
)

type metrics struct {
	applied        prometheus.Gauge
	applySeconds   prometheus.Histogram
	shiftSeconds   prometheus.Histogram
	applyFailures  prometheus.Counter
	verifyFailures prometheus.Counter
	drift          prometheus.Counter
}

// newMetrics registers the metrics with the SBC as their label, so that the
// controllers of several SBCs can share a registry.
func newMetrics(reg prometheus.Registerer, sbc bulkhead.SBCID, converged func() bool) (*metrics, error) {
	label := prometheus.Labels{"sbc": string(sbc)}
	m := &metrics{
		applied: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bulkhead_dispatcher_applied_revision", ConstLabels: label,
			Help: "Revision of the tables that the SBC took last.",
		}),
		applySeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "bulkhead_dispatcher_apply_seconds", ConstLabels: label,
			Help:    "Time of an Apply that succeeded.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		shiftSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "bulkhead_dispatcher_sets_seconds", ConstLabels: label,
			Help:    "Time in which the SBC took new sets because of what is known of the nodes.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		applyFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_dispatcher_apply_failures_total", ConstLabels: label,
			Help: "Applies that failed, or whose tables were not those read back.",
		}),
		verifyFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_dispatcher_verify_failures_total", ConstLabels: label,
			Help: "Read-backs that failed.",
		}),
		drift: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_dispatcher_drift_total", ConstLabels: label,
			Help: "Times that tables which had been read back right were found changed.",
		}),
	}
	holds := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "bulkhead_dispatcher_converged", ConstLabels: label,
		Help: "1 while the SBC is known to hold the tables of the newest revision, else 0.",
	}, func() float64 {
		if converged() {
			return 1
		}
		return 0
	})
	for _, c := range []prometheus.Collector{m.applied, m.applySeconds, m.shiftSeconds, m.applyFailures, m.verifyFailures, m.drift, holds} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register the dispatcher's metrics of SBC %q: %w", sbc, err)
		}
	}
	return m, nil
}
