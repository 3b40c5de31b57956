package stream

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead/internal/collectors"
)

// The values of the label reason.
const (
	reasonFull   = "full"
	reasonMemory = "out_of_memory"
)

type forwarderMetrics struct {
	collectors.Set
	sent, resent, acked  prometheus.Counter
	age, length          prometheus.Gauge
	refused              *prometheus.CounterVec
	lost                 prometheus.Counter
	failures, reconnects prometheus.Counter
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

func newForwarderMetrics(reg prometheus.Registerer) (*forwarderMetrics, error) {
	m := &forwarderMetrics{
		sent:   counter("bulkhead_stream_sent_records_total", "Records added to the Redis Stream, repeats included."),
		resent: counter("bulkhead_stream_resent_records_total", "Records added to the Redis Stream once more, because Redis lost them or may have."),
		acked:  counter("bulkhead_stream_acked_records_total", "Records that every group has acknowledged; counted a batch at a time, and not where a batch's answer was lost."),
		age:    gauge("bulkhead_stream_oldest_unacked_age_seconds", "Time since the oldest record was sent that some group has not acknowledged; 0 if there is none."),
		length: gauge("bulkhead_stream_entries", "Entries in the Redis Stream."),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_stream_refused_batches_total",
			Help: "Batches that had to wait in the spool, by reason: full (the limit of entries), out_of_memory (maxmemory of Redis).",
		}, []string{"reason"}),
		lost:       counter("bulkhead_stream_losses_total", "Times that Redis was found to have lost records."),
		failures:   counter("bulkhead_stream_failures_total", "Attempts to send or to look that failed."),
		reconnects: counter("bulkhead_stream_reconnects_total", "Times that sending went on after it had failed or had to wait."),
	}
	m.refused.WithLabelValues(reasonFull)
	m.refused.WithLabelValues(reasonMemory)
	return m, m.Register(reg, "the stream", m.sent, m.resent, m.acked, m.age, m.length, m.refused, m.lost, m.failures, m.reconnects)
}

type consumerMetrics struct {
	collectors.Set
	read, acked, claimed, vanished, failures prometheus.Counter
}

func newConsumerMetrics(reg prometheus.Registerer) (*consumerMetrics, error) {
	m := &consumerMetrics{
		read:     counter("bulkhead_stream_consumer_read_records_total", "Records taken from the Redis Stream, repeats included."),
		acked:    counter("bulkhead_stream_consumer_acked_records_total", "Records acknowledged at the Redis Stream."),
		claimed:  counter("bulkhead_stream_consumer_claimed_records_total", "Records taken over that a consumer had for too long."),
		vanished: counter("bulkhead_stream_consumer_vanished_entries_total", "Entries that were gone before anybody acknowledged them; their records are sent again."),
		failures: counter("bulkhead_stream_consumer_failures_total", "Attempts to read or acknowledge that failed."),
	}
	return m, m.Register(reg, "the stream", m.read, m.acked, m.claimed, m.vanished, m.failures)
}
