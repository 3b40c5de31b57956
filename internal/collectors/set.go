// Package collectors registers the metrics of a part together, and takes them
// back together, so that the part can be closed and opened again with the same
// registry.
package collectors

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Set is the metrics that one part has registered. The zero Set has none.
type Set struct {
	reg prometheus.Registerer
	all []prometheus.Collector
}

// Register adds metrics to reg, all of them or none; what names their part in
// the error. A nil reg takes nothing. A Set knows one registry.
func (s *Set) Register(reg prometheus.Registerer, what string, all ...prometheus.Collector) error {
	if reg == nil {
		return nil
	}
	s.reg = reg
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			s.Unregister()
			return fmt.Errorf("register metrics of %s: %w", what, err)
		}
		s.all = append(s.all, c)
	}
	return nil
}

// Unregister takes the metrics back. It may be called twice.
func (s *Set) Unregister() {
	for _, c := range s.all {
		s.reg.Unregister(c)
	}
	s.all = nil
}
