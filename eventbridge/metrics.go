package eventbridge

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/internal/collectors"
)

type metrics struct {
	collectors.Set

	events        *prometheus.CounterVec
	dropped       *prometheus.CounterVec
	gaps          *prometheus.CounterVec
	untracked     *prometheus.CounterVec
	invalid       *prometheus.CounterVec
	append        prometheus.Histogram
	appendErrors  prometheus.Counter
	journalErrors prometheus.Counter
	unencodable   prometheus.Counter
	sbcRecords    *prometheus.CounterVec
	sbcUndecoded  prometheus.Counter
	cdrRecords    *prometheus.CounterVec
	cdrUndecoded  *prometheus.CounterVec
	sweepErrors   *prometheus.CounterVec
	followLost    *prometheus.CounterVec
	unmatched     *prometheus.CounterVec
	quarantined   *prometheus.CounterVec
}

// newMetrics registers with reg, or nowhere if it is nil.
func newMetrics(reg prometheus.Registerer, b *Bridge) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	plain := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		events:    counter("bulkhead_eventbridge_events_total", "Events that nodes sent.", "node", "type"),
		dropped:   counter("bulkhead_eventbridge_queue_dropped_total", "Events discarded because their node's queue was full. A gap covers them.", "node"),
		gaps:      counter("bulkhead_eventbridge_gaps_total", "Times from which a node was not heard.", "node"),
		untracked: counter("bulkhead_eventbridge_untracked_legs_total", "Legs not remembered as open because too many are.", "node"),
		invalid:   counter("bulkhead_eventbridge_invalid_events_total", "Events passed over because they name no leg.", "node"),
		append: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "bulkhead_eventbridge_append_seconds",
			Help:    "Time until a batch of records was durable in the stream.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		appendErrors:  plain("bulkhead_eventbridge_append_errors_total", "Failed attempts to store a batch of records."),
		journalErrors: plain("bulkhead_eventbridge_journal_errors_total", "Failed writes of the journal of open legs."),
		unencodable:   plain("bulkhead_eventbridge_unencodable_total", "Records that could not be encoded, and are lost."),
		sbcRecords:    counter("bulkhead_eventbridge_sbc_records_total", "Refusals and failovers that SBCs reported.", "kind"),
		sbcUndecoded:  plain("bulkhead_eventbridge_sbc_undecoded_total", "Bodies from SBCs that could not be decoded whole and went into the stream raw."),
		cdrRecords:    counter("bulkhead_eventbridge_cdr_records_total", "Call records that nodes posted, left in a folder or appended to a log.", "node", "source"),
		cdrUndecoded:  counter("bulkhead_eventbridge_cdr_undecoded_total", "Of those, bodies that could not be decoded whole, and rows that could not be decoded.", "node", "source"),
		sweepErrors:   counter("bulkhead_eventbridge_sweep_errors_total", "Failed attempts to read a folder or a log of call records, or to move a file away.", "node"),
		followLost:    counter("bulkhead_eventbridge_follow_lost_total", "Times that a log was replaced before it was read to its end, as far as is known.", "node"),
		unmatched:     counter("bulkhead_eventbridge_unmatched_legs_total", "Legs stored without a tenant, because neither the switch nor a rule names one.", "node"),
		quarantined:   counter("bulkhead_eventbridge_quarantined_fields_total", "Fields that could not be understood and are kept among the attributes.", "node", "source"),
	}
	err := m.Register(reg, "eventbridge", m.events, m.dropped, m.gaps, m.untracked, m.invalid, m.append, m.appendErrors,
		m.journalErrors, m.unencodable, m.sbcRecords, m.sbcUndecoded,
		m.cdrRecords, m.cdrUndecoded, m.sweepErrors, m.followLost, m.unmatched, m.quarantined, newStateCollector(b))
	if err != nil {
		return nil, err
	}
	return m, nil
}

// stateCollector reads the gauges when it is scraped: an age is right only then.
type stateCollector struct {
	bridge                                *Bridge
	connected, age, legs, queue, openGaps *prometheus.Desc
}

func newStateCollector(b *Bridge) *stateCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"node"}, nil)
	}
	return &stateCollector{
		bridge:    b,
		connected: desc("bulkhead_eventbridge_connected", "1 if the node is heard, else 0."),
		age:       desc("bulkhead_eventbridge_heard_age_seconds", "Time since anything, a heartbeat at least, was heard; absent before the first event."),
		legs:      desc("bulkhead_eventbridge_open_legs", "Legs that are open as far as known."),
		queue:     desc("bulkhead_eventbridge_queue_events", "Events that wait to be stored."),
		openGaps:  desc("bulkhead_eventbridge_in_gap", "1 while the node's events are missing, else 0."),
	}
}

func (c *stateCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.connected, c.age, c.legs, c.queue, c.openGaps} {
		out <- d
	}
}

func (c *stateCollector) Collect(out chan<- prometheus.Metric) {
	now := time.Now()
	for _, s := range c.bridge.Status().Sources {
		gauge := func(d *prometheus.Desc, v float64) {
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, string(s.Node))
		}
		gauge(c.connected, flag(s.Connected))
		gauge(c.legs, float64(s.OpenLegs))
		gauge(c.queue, float64(s.Queued))
		gauge(c.openGaps, flag(s.Gap != nil))
		if !s.received.IsZero() {
			gauge(c.age, now.Sub(s.received).Seconds())
		}
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Ready returns nil while every wanted node is heard and records are stored.
// It tells of a loss 5 s after it at the earliest and, if the loss was seen
// at once, 10 s after it at the latest; a connection that only falls silent is
// seen after Config.Silence.
func (b *Bridge) Ready() error {
	var errs []error
	now := time.Now()
	for _, s := range b.Status().Sources {
		if s.Wanted && !s.Connected && now.Sub(s.Since) > unreadyAfter {
			errs = append(errs, fmt.Errorf("node %s has not been heard for %v (%s); look at its event socket's address, password and acl: %w",
				s.Node, now.Sub(s.Since).Round(time.Second), s.Error, bulkhead.Unavailable))
		}
	}
	r := b.rec
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failure != nil && now.Sub(r.failingSince) > unreadyAfter {
		errs = append(errs, fmt.Errorf("call records cannot be stored since %v: %w: %w",
			r.failingSince.UTC().Format(time.RFC3339), r.failure, bulkhead.Unavailable))
	}
	if r.journalErr != nil {
		errs = append(errs, fmt.Errorf("the journal of open legs cannot be written; free space or repair the disk: %w", r.journalErr))
	}
	return errors.Join(errs...)
}
