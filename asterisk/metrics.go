package asterisk

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
)

// metrics of a source.
type metrics struct {
	events     *prometheus.CounterVec // by type
	ignored    *prometheus.CounterVec // by reason
	resolved   *prometheus.CounterVec // by result
	badFields  prometheus.Counter
	untracked  prometheus.Counter
	overflows  prometheus.Counter
	replaced   prometheus.Counter
	unfiltered prometheus.Counter
	connected  prometheus.Gauge

	amiConnected prometheus.Gauge
	amiRows      prometheus.Counter
	amiDropped   prometheus.Counter
	amiLost      prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, node bulkhead.NodeID) *metrics {
	if reg != nil {
		reg = prometheus.WrapRegistererWith(prometheus.Labels{"node": string(node)}, reg)
	}
	counter := func(name, help string) prometheus.Counter {
		return register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help}))
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label}))
	}
	gauge := func(name, help string) prometheus.Gauge {
		return register(reg, prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help}))
	}
	return &metrics{
		events:     vec("bulkhead_asterisk_events_total", "Call events that were made of what ARI and AMI sent.", "type"),
		ignored:    vec("bulkhead_asterisk_events_ignored_total", "Messages of ARI and AMI that no event could be made of.", "reason"),
		resolved:   vec("bulkhead_asterisk_answers_resolved_total", "Legs that were up before we listened, by whether Asterisk could say since when.", "result"),
		badFields:  counter("bulkhead_asterisk_bad_fields_total", "Events with a field of an unexpected form, which was left empty."),
		untracked:  counter("bulkhead_asterisk_legs_untracked_total", "Legs that were not remembered while they went on, because too many were."),
		overflows:  counter("bulkhead_asterisk_queue_overflows_total", "Connections that were ended because the queue of received events was full."),
		replaced:   counter("bulkhead_asterisk_replaced_total", "Connections that ended because another listener took the application."),
		unfiltered: counter("bulkhead_asterisk_unfiltered_total", "Connections without an event filter, because the user may not set one."),
		connected:  gauge("bulkhead_asterisk_ari_connected", "1 while events of ARI are heard, else 0."),

		amiConnected: gauge("bulkhead_asterisk_ami_connected", "1 while Cdr events of AMI are heard, else 0."),
		amiRows:      counter("bulkhead_asterisk_ami_rows_total", "Cdr events received from AMI; a leg may have several."),
		amiDropped:   counter("bulkhead_asterisk_ami_dropped_total", "Records of AMI that were discarded because nobody took them; those of ARI are not concerned."),
		amiLost:      counter("bulkhead_asterisk_ami_lost_total", "Connections to AMI that were lost or could not be made."),
	}
}

// register registers c, or returns the collector of an earlier source of the
// same node: sources come and go as nodes are configured.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg == nil {
		return c
	}
	var there prometheus.AlreadyRegisteredError
	if err := reg.Register(c); errors.As(err, &there) {
		if old, ok := there.ExistingCollector.(C); ok {
			return old
		}
	}
	return c
}
