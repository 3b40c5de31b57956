package configsvc

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	answers *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_configsvc_answers_total",
			Help: "Questions of PBXs answered, by dialect and kind of answer.",
		}, []string{"dialect", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "bulkhead_configsvc_answer_seconds",
			Help:    "Time from the first byte of a question read to its answer written.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25},
		}, []string{"dialect"}),
	}
	reg.MustRegister(m.answers, m.seconds)
	return m
}
