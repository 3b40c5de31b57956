package spool

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead/internal/collectors"
)

// The values of the label reason.
const (
	reasonDisk   = "max_bytes"
	reasonQueue  = "queue"
	reasonFailed = "disk_error"
)

type metrics struct {
	collectors.Set
	bytes       prometheus.Gauge
	segments    prometheus.Gauge
	room        prometheus.Gauge
	alarm       prometheus.Gauge
	age         prometheus.Gauge
	appended    prometheus.Counter
	fsync       prometheus.Histogram
	refused     *prometheus.CounterVec
	quarantined prometheus.Counter
	truncated   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bulkhead_spool_bytes",
			Help: "Bytes in segments that are not yet freed, as counted against the limit.",
		}),
		segments: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bulkhead_spool_segments",
			Help: "Segments on disk, those in quarantine included.",
		}),
		room: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bulkhead_spool_room_bytes",
			Help: "Bytes that can still be stored: up to the limit, or what the file system has free if that is less.",
		}),
		alarm: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bulkhead_spool_alarm",
			Help: "1 while the room is less than half of the limit, else 0.",
		}),
		age: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "bulkhead_spool_oldest_unacked_age_seconds",
			Help: "Age of the oldest record that some reader has not acknowledged; 0 if there is none.",
		}),
		appended: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_spool_appended_records_total",
			Help: "Records made durable.",
		}),
		fsync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "bulkhead_spool_fsync_seconds",
			Help:    "Time of one fdatasync.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_spool_refused_records_total",
			Help: "Records that were not stored, by reason: max_bytes, queue, disk_error.",
		}, []string{"reason"}),
		quarantined: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_spool_quarantined_total",
			Help: "Segments found damaged and set apart.",
		}),
		truncated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bulkhead_spool_truncated_bytes_total",
			Help: "Bytes of half-written records that were cut when the spool was opened.",
		}),
	}
	for _, reason := range []string{reasonDisk, reasonQueue, reasonFailed} {
		m.refused.WithLabelValues(reason)
	}
	return m, m.Register(reg, "the spool", m.bytes, m.segments, m.room, m.alarm, m.age, m.appended, m.fsync, m.refused, m.quarantined, m.truncated)
}

type readerMetrics struct {
	collectors.Set
	records prometheus.Counter
	skipped prometheus.Counter
}

func newReaderMetrics(reg prometheus.Registerer, name string) (*readerMetrics, error) {
	label := prometheus.Labels{"reader": name}
	m := &readerMetrics{
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Name:        "bulkhead_spool_read_records_total",
			Help:        "Records delivered to a reader, repeats included.",
			ConstLabels: label,
		}),
		skipped: prometheus.NewCounter(prometheus.CounterOpts{
			Name:        "bulkhead_spool_skipped_bytes_total",
			Help:        "Damaged bytes that a reader had to pass over.",
			ConstLabels: label,
		}),
	}
	return m, m.Register(reg, "the spool", m.records, m.skipped)
}
