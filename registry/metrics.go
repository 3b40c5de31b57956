package registry

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// register registers metrics; a nil registerer takes none.
func register(reg prometheus.Registerer, list ...prometheus.Collector) error {
	if reg == nil {
		return nil
	}
	for _, c := range list {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register the registry's metrics: %w", err)
		}
	}
	return nil
}

func boolGauge(name, help string, is func() bool) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
		if is() {
			return 1
		}
		return 0
	})
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

type followerMetrics struct {
	failures     prometheus.Counter
	quarantined  prometheus.Counter
	saveFailures prometheus.Counter
	saved        prometheus.Gauge
}

func newFollowerMetrics(reg prometheus.Registerer, status func() FollowerStatus) (*followerMetrics, error) {
	m := &followerMetrics{
		failures:     counter("bulkhead_registry_follow_failures_total", "Times that following the registry failed and was tried again."),
		quarantined:  counter("bulkhead_registry_lastgood_quarantined_total", "Files of the last known good configuration that were torn or tampered with."),
		saveFailures: counter("bulkhead_registry_lastgood_save_failures_total", "Times that the last known good configuration could not be written."),
		saved:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "bulkhead_registry_lastgood_revision", Help: "Revision that this process last wrote to disk."}),
	}
	return m, register(reg, m.failures, m.quarantined, m.saveFailures, m.saved,
		boolGauge("bulkhead_registry_following", "1 while the registry answers and its newest revision is in force here.", func() bool { return status().Following }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "bulkhead_registry_age_seconds", Help: "Seconds since what is in force was known to be the newest; 0 while the registry answers.",
		}, func() float64 {
			s := status()
			return s.Age(time.Now()).Seconds()
		}),
		boolGauge("bulkhead_registry_lost", "1 while the registry answers with an older revision than what is in force here, which stays.", func() bool { return status().Lost }),
		boolGauge("bulkhead_registry_from_disk", "1 while what is in force is the last known good from disk.", func() bool { return status().Source == FromDisk }),
	)
}
