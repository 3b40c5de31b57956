package cdrpipe

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/internal/collectors"
)

type metrics struct {
	collectors.Set

	rows        *prometheus.CounterVec
	batch       prometheus.Histogram
	retries     prometheus.Counter
	quarantined prometheus.Counter
	lag         prometheus.Gauge
}

// newMetrics registers with reg, or nowhere if it is nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_cdrpipe_rows_total",
			Help: "Entries stored in the warehouse, repeated ones included, by kind: leg, refused, failover, gap.",
		}, []string{"kind"}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "bulkhead_cdrpipe_batch_seconds",
			Help:    "Time until a batch was in the warehouse, retries included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_cdrpipe_retries_total",
			Help: "Failed attempts to read, store or acknowledge, each of which is repeated.",
		}),
		quarantined: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_cdrpipe_quarantined_total",
			Help: "Payloads that are no entries and were set apart.",
		}),
		lag: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bulkhead_cdrpipe_lag_seconds",
			Help: "Age of the end of the last leg when it was stored.",
		}),
	}
	if err := m.Register(reg, "cdrpipe", m.rows, m.batch, m.retries, m.quarantined, m.lag); err != nil {
		return nil, err
	}
	return m, nil
}

func kindLabel(k cdr.Kind) string {
	switch k {
	case cdr.Leg, cdr.Refused, cdr.Failover:
		return string(k)
	}
	return "unknown"
}
