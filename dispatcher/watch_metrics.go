package dispatcher

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// watchMetrics lists every intended node, drained and disabled ones too.
type watchMetrics struct {
	watch     *Watch
	decisions *prometheus.CounterVec

	weight, alive, agent, sessions, cpu, rtt *prometheus.Desc
}

func newWatchMetrics(reg prometheus.Registerer, w *Watch) (*watchMetrics, error) {
	sbc := prometheus.Labels{"sbc": string(w.cfg.SBC)}
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("bulkhead_dispatcher_node_"+name, help, []string{"node", "pool"}, sbc)
	}
	m := &watchMetrics{
		watch: w,
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bulkhead_dispatcher_decisions_total", ConstLabels: sbc,
			Help: "Changes of what a node is offered.",
		}, []string{"node"}),
		weight:   desc("weight_percent", "Share of its usual calls that the node is offered; 0 for one that is drained or disabled."),
		alive:    desc("up", "1 while the node answers OPTIONS."),
		agent:    desc("agent_up", "1 while the node's agent answers; not there for a node without one."),
		sessions: desc("sessions", "Sessions of the node's PBX."),
		cpu:      desc("cpu_ratio", "Share of its CPU, or of its quota, that the node uses."),
		rtt:      desc("options_seconds", "Time of the last answer to an OPTIONS."),
	}
	for _, c := range []prometheus.Collector{m, m.decisions} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the nodes of SBC %q: %w", w.cfg.SBC, err)
		}
	}
	return m, nil
}

// Describe implements prometheus.Collector.
func (m *watchMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.weight, m.alive, m.agent, m.sessions, m.cpu, m.rtt} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m *watchMetrics) Collect(to chan<- prometheus.Metric) {
	truth := map[bool]float64{true: 1}
	for _, n := range m.watch.Nodes() {
		send := func(d *prometheus.Desc, v float64) {
			to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, string(n.Node), string(n.Pool))
		}
		send(m.weight, float64(n.Weight))
		send(m.alive, truth[!n.Dead])
		send(m.rtt, n.OptionsSeconds)
		if n.Agent != "none" {
			send(m.agent, truth[n.Agent == "ok"])
		}
		if n.Load == nil {
			continue
		}
		send(m.cpu, n.Load.CPU)
		if n.Load.PBX != nil {
			send(m.sessions, float64(n.Load.PBX.Sessions))
		}
	}
}
